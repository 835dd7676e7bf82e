from cdc.pgoutput._messages import Messages
from cdc.pgoutput.framing import Keepalive

def take(
    connection: int,
    get_copy_data: int,
    free_memory: int,
    consume_input: int,
    messages: Messages,
    keepalives: list[Keepalive],
    budget_bytes: int,
    budget_frames: int,
) -> int: ...
