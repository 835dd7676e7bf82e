"""A session on a target for work that takes long and is done now and then: another one where it was lost.

Proxies cut sessions that are idle (hazard 20). Only for what needs neither a fence nor a transaction across calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from cdc.errors import TargetUnavailable
from cdc.target.session import Session, connect, target_errors


@dataclass(slots=True)
class LastingSession:
    """One session at a time, opened when it is asked for."""

    dsn: str
    application_name: str
    target: str
    _session: Session | None = None

    async def ready(self) -> Session:
        """The session, once it has answered. Raises `TargetUnavailable` where none can be had."""
        if self._session is not None:
            try:
                with target_errors("using the session", self._session.where):
                    await self._session.connection.execute("SELECT 1")
                return self._session
            except TargetUnavailable:
                await self.close()
        self._session = await connect(self.dsn, application_name=self.application_name, target=self.target)
        return self._session

    async def close(self) -> None:
        """Close the session."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
