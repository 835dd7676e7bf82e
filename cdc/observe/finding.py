"""One thing that `cdc check` has to say.

A finding names what it is about, says in one sentence what is so and what follows from it, and, where something can
mend it, holds that SQL or setting ready to be copied. It holds no row value and no secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a finding matters, the worst first."""

    ERROR = "error"
    """Replication cannot run, or a table cannot, until this is mended."""
    WARNING = "warning"
    """It runs, and this endangers it or the source."""
    INFO = "info"
    """Worth knowing; nothing to do."""
    OK = "ok"
    """Looked at, and in order."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found.

    ``where`` is ``source`` or a target's name, ``subject`` the setting, table or right that it is about, ``message``
    one or two sentences for a person, ``mend`` the SQL or the setting that mends it.
    """

    severity: Severity
    where: str
    subject: str
    message: str
    mend: str | None = None

    @property
    def stops(self) -> bool:
        """Whether replication cannot run until this is mended."""
        return self.severity is Severity.ERROR
