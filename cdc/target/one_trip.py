"""The way that is tried first: a whole target transaction in one round trip (`cdc.target.together`).

It ends in one of three ways: all is applied and durable; nothing is applied, and the batch is to be applied step by
step, which finds out why (`None`); or an error that passes is raised, and nothing is applied either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from cdc.changes.row_reader import FormatChanged, ValueRefused
from cdc.changes.translation import UnknownObjects
from cdc.errors import CdcError, FenceLost, ProtocolError, TransientError
from cdc.target.copy_encoding import NotSent
from cdc.target.fast_path import FastPath
from cdc.target.rejection import OUTDATED, Refused, Unfit
from cdc.target.session import DRIVER_ERRORS, Session, target_errors, translate
from cdc.target.staging import Staging
from cdc.target.steps import RoutedPart
from cdc.target.survey import Applied, Survey
from cdc.target.table_version import TablesChanged
from cdc.target.together import NotTogether, PreparedStatements, Together

MOST_WARY = 64
"""How many batches are applied step by step at most, after several in a row went wrong together: a target on which each
needs that pays for one more attempt in so many."""

_LOOKED_INTO_LATER = (
    FormatChanged,
    NotSent,
    NotTogether,
    ProtocolError,
    Refused,
    TablesChanged,
    Unfit,
    UnknownObjects,
    ValueRefused,
)
"""What is met again when the batch is applied step by step."""


class OneTrip:
    """Applies batches of one session. ``collecting`` makes a `FastPath` that only collects its statements."""

    def __init__(self, session: Session, staging: Staging, collecting: Callable[[Together], FastPath]) -> None:
        self._session = session
        self._staging = staging
        self._collecting = collecting
        self._prepared = PreparedStatements()
        self._failures = 0
        self._wary_for = 0

    async def apply(self, routed: Sequence[RoutedPart], end: Iterable[str]) -> Applied | None:
        """Apply whole transactions, and execute the statements of ``end`` before the COMMIT.

        Durable when it returns what was applied. `None`: nothing is. Raises `TargetUnavailable` and `FenceLost`, with
        nothing applied unless the connection was lost. Any other error is a fault of ours, and the session's end.
        """
        survey = Survey(routed)
        if survey.needs_answers or not self._staging.has(survey.staged):
            return None
        if self._wary_for:
            self._wary_for -= 1
            return None
        together = Together(self._prepared)
        emptying = self._staging.emptying(survey.staged)
        if emptying is not None:
            together.first(emptying)
        if survey.defers:
            together.defer()
        is_sent = False
        try:
            versions = survey.versions()
            await self._collecting(together).apply(routed)
            is_sent = True
            await together.send(self._session.connection, versions, end)
        except _LOOKED_INTO_LATER:
            pass
        except DRIVER_ERRORS as error:
            found = translate(error, "applying a batch", self._session.where)
            is_outdated = found.server is not None and found.server.sqlstate in OUTDATED
            if isinstance(found, FenceLost) or (isinstance(found, TransientError) and not is_outdated):
                if not self._session.connection.is_closed():
                    with suppress(CdcError):  # what is to be told is what went wrong first
                        await self._roll_back()
                raise found from None
        else:
            self._failures = 0
            return survey.applied()
        self._staging.not_emptied()
        if is_sent:
            self._failures += 1
            self._wary_for = min(2**self._failures, MOST_WARY) - 1
            await self._roll_back()
        else:
            self._prepared.give_up()
        return None

    async def _roll_back(self) -> None:
        with target_errors("rolling back", self._session.where):
            await self._session.connection.execute(f"ROLLBACK; {self._prepared.forget()}")
