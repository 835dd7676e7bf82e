"""What our messages tell people to do when a whole pipeline has to be loaded again, or a load was left behind.

The source's room and the targets' both say it; the commands for one target or one table are in `cdc.target.remedies`.
"""

from __future__ import annotations

LOAD_ALL_AGAIN = (
    "run `cdc bootstrap --from live --anew` (or --from backup), which loads the targets beside their tables and then "
    "swaps them; where tables are somebody else's: stop the worker, run `cdc teardown`, empty the tables of the "
    "targets, run `cdc setup` and `cdc bootstrap --from live`, start the worker"
)
"""What is left when the slot is gone or lost: nothing joins any target to the stream again."""


def left_load(slot: str, target: str, retained: str) -> str:
    """What to say of the slot of a load beside a target's tables that nobody streams from; ``retained``: how much WAL.

    A load that runs has not begun to stream while it copies, which nobody can tell from one that was left.
    """
    return (
        f"the slot {slot} of what is loaded beside the tables of target {target} is not in use, and keeps {retained} "
        "of WAL at the source: if that load does not run any more, run the same `cdc bootstrap` or `cdc resync` again, "
        f"which goes on with it, or give it up: `cdc teardown --target {target} --load`"
    )
