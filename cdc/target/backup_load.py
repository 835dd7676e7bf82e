"""What a load from a backup has to remember, in the target: which backup may serve, which one it is, what it holds.

One row of ``cdc.backup_load`` for a generation that is being loaded. It is written before a backup is asked for, so a
run that was killed waits for the same backup, or downloads it again, instead of asking for another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cdc import statements
from cdc.target.session import Session, target_errors


@dataclass(frozen=True, slots=True)
class BackupLoad:
    """What the backup has to be.

    It has to hold the heartbeat ``first_heartbeat``, written at ``asked_at`` (the source's clock), or a later one.
    ``backup`` is the provider's id, once there is one, ``heartbeat`` the last one that was found in it.
    """

    slot: str
    first_heartbeat: int
    asked_at: datetime
    backup: str | None = None
    heartbeat: int | None = None


async def read(session: Session, key: str) -> BackupLoad | None:
    """What is recorded of a generation (``cdc.target.pipeline``); `None` when no backup was ever asked for."""
    with target_errors("reading which backup is restored", session.where):
        row = await session.connection.fetchrow(statements.load("target", "read_backup_load"), key)
    return None if row is None else BackupLoad(**row)


async def record(session: Session, key: str, load: BackupLoad) -> None:
    """Record what the backup must hold; a former backup is forgotten, what tables of it were restored is not.

    In the caller's transaction, if there is one.
    """
    with target_errors("recording what the backup must hold", session.where):
        await session.connection.execute(
            statements.load("target", "record_backup_load"), key, load.slot, load.first_heartbeat, load.asked_at
        )


async def record_backup(session: Session, key: str, backup: str | None, heartbeat: int | None = None) -> None:
    """Record the provider's id of the backup (`None` forgets it), and the last heartbeat that was found in it.

    Where tables of several backups are restored, the last heartbeat of all of them counts.
    """
    with target_errors("recording the backup", session.where):
        await session.connection.execute(
            "UPDATE cdc.backup_load SET backup = $2, heartbeat = greatest(heartbeat, $3::bigint) WHERE pipeline = $1",
            key,
            backup,
            heartbeat,
        )


async def forget(session: Session, key: str) -> None:
    """The load is over."""
    with target_errors("forgetting the backup", session.where):
        await session.connection.execute("DELETE FROM cdc.backup_load WHERE pipeline = $1", key)
