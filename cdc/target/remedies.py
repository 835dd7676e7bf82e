"""The commands that our messages tell people to run, so that every message names the same ones."""

from __future__ import annotations

import shlex
from collections.abc import Iterable


def again_command(tables: Iterable[str], target: str) -> str:
    """The command that loads tables (``schema.table`` at the source) of one target again."""
    wanted = " ".join(f"--again {shlex.quote(table)}" for table in tables)
    return f"cdc bootstrap --from live {wanted} --target {target}"


def resync_command(table: str, target: str) -> str:
    """The command that brings a table (``schema.table`` at the source) to what the source has, while all streams."""
    return f"cdc resync {shlex.quote(table)} --target {target}"


def load_table_again(table: str, target: str) -> str:
    """How one table of one target is loaded again, to stand behind a colon or in brackets.

    The second way is for what the first refuses: a table without a key that `cdc` did not create, say.
    """
    return (
        f"run `{resync_command(table, target)}`; where that is refused: stop the worker, run "
        f"`{again_command([table], target)}`, start the worker"
    )


def load_target_again(target: str) -> str:
    """How one target is loaded again while the slot and the other targets stay as they are."""
    return (
        f"run `cdc bootstrap --from live --anew --target {target}` (or --from backup): it is loaded beside its tables "
        f"and swapped in at the end; where its tables are somebody else's: stop the worker, run "
        f"`cdc teardown --target {target}`, empty the tables that it names, run `cdc setup` and "
        f"`cdc bootstrap --from live`, start the worker"
    )
