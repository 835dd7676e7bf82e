"""What our messages tell people to do when a whole pipeline has to be loaded again.

The source's room and the targets' both say it; the commands for one target or one table are in `cdc.target.remedies`.
"""

from __future__ import annotations

LOAD_ALL_AGAIN = (
    "run `cdc bootstrap --from live --anew` (or --from backup), which loads the targets beside their tables and then "
    "swaps them; where tables are somebody else's: stop the worker, run `cdc teardown`, empty the tables of the "
    "targets, run `cdc setup` and `cdc bootstrap --from live`, start the worker"
)
"""What is left when the slot is gone or lost: nothing joins any target to the stream again."""
