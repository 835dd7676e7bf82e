from collections.abc import Sequence

from cdc.changes._blocks import Block

class Projection:
    picks: int
    content: tuple[bytes, tuple[int, ...]]
    def __init__(self, wire: bytes, indices: Sequence[int], key: Sequence[int]) -> None: ...

class BlockRows:
    block: Block
    projections: list[Projection | None]
    def __init__(self, block: Block, projections: list[Projection | None]) -> None: ...
    def __len__(self) -> int: ...

def encode_inserts(rows: BlockRows, position: int, room: int, columns: int) -> tuple[bytes, int, bool]: ...
def behind(rows: BlockRows, position: int) -> int: ...
