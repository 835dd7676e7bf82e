"""PostgreSQL servers of our own on this machine, for the demo, the tests and the measurements.

A `Cluster` is one server in a temporary directory: initialised, started, stopped, killed, restarted, and gone without
a trace when it is closed. It promises:

- it works as root, by running the server as another system user (PostgreSQL refuses root);
- it outlives nobody: a guard process holds the reading end of a pipe, and when this process ends, however it ends
  (SIGKILL too), the guard stops the server and removes its directory;
- Ctrl-C at the terminal reaches us, not the server: the server is in a session of its own;
- its port lies outside the range from which the kernel gives ports to outgoing connections, so that nobody can take
  it while the server restarts.

Nothing here is meant for data that anybody wants to keep: connections are trusted and files are not synced.
"""

from __future__ import annotations

import atexit
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote as url_quote

import psycopg

from cdc.bootstrap.programs import embedded_binaries
from cdc.errors import SetupError
from cdc.identifiers import quote, quote_literal

SUPERUSER = "postgres"

BINARIES_VARIABLE = "CDC_TEST_PG_BIN"

# Below Linux's default ip_local_port_range (32768 to 60999) and macOS's (49152 to 65535).
_PORTS = range(15000, 32000)

# initdb takes one to two seconds on an idle core; a loaded machine is allowed thirty times that.
START_TIMEOUT_S = 60.0

_POLL_S = 0.01

# The longest path of a unix socket is 107 bytes on Linux and 103 on macOS; `/.s.PGSQL.31999.lock` takes 20 of them.
_LONGEST_DIRECTORY = 80

# The guard: waits until its standard input ends. The word "done" means that all was tidied up already.
_GUARD = """
trap '' INT TERM HUP QUIT
read -r word
[ "$word" = done ] && exit 0
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ]; then
    kill -QUIT "$pid"
    for tenth in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        kill -0 "$pid" || break
        sleep 0.1
    done
fi
rm -rf "$1"
"""


@dataclass(frozen=True, slots=True)
class Account:
    """The system user that servers run as; ``None`` in both fields means ourselves."""

    uid: int | None
    gid: int | None

    @classmethod
    def for_servers(cls) -> Self:
        """Ourselves, or, when we are root, ``postgres`` if that user exists and ``nobody`` otherwise."""
        if os.geteuid() != 0:
            return cls(None, None)
        for name in ("postgres", "nobody"):
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(entry.pw_uid, entry.pw_gid)
        raise SetupError(
            "PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody: create one"
        )

    def own(self, path: Path) -> None:
        """Give a file or directory to this user."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def popen(self, command: Sequence[str | Path], *, cwd: Path, output: int) -> subprocess.Popen[bytes]:
        """Start a program as this user, in a session of its own, without our PG* settings."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
        )

    def run(self, command: Sequence[str | Path], *, cwd: Path) -> tuple[int, str]:
        """Run a program as this user and wait for it: its exit status and what it printed."""
        with self.popen(command, cwd=cwd, output=subprocess.PIPE) as process:
            output, _ = process.communicate()
            return process.returncode, output.decode(errors="replace")


def find_binaries(explicit: Path | None = None) -> Path:
    """The directory of a PostgreSQL server's programs: the given one, ``CDC_TEST_PG_BIN``'s, or the embedded wheel's.

    Raises `SetupError` when there is none.
    """
    named = explicit or (Path(os.environ[BINARIES_VARIABLE]) if os.environ.get(BINARIES_VARIABLE) else None)
    found = named or embedded_binaries()
    if found is None:
        raise SetupError(
            "no PostgreSQL server programs were found: install cdc with its extra embedded, "
            f"or set {BINARIES_VARIABLE} to a directory that holds initdb and postgres"
        )
    for program in ("initdb", "postgres"):
        if not (found / program).is_file():
            raise SetupError(f"there is no {program} in {found}: name the bin directory of a PostgreSQL server")
    return found


class Cluster:
    """One PostgreSQL server with a directory of its own. Use it as a context manager, or call `close`.

    All methods block; from asyncio call them in a thread. Attributes: ``binaries`` (a directory), ``directory`` (holds
    ``data``, the unix socket and the log), ``port`` (TCP on 127.0.0.1, and the socket's), ``log`` (a file).
    """

    def __init__(
        self,
        *,
        binaries: Path | None = None,
        settings: Mapping[str, str | int] | None = None,
        hba: Sequence[str] = (),
        parent: Path | None = None,
    ) -> None:
        """Initialise a cluster; `start` is yet to be called.

        ``settings`` are lines of postgresql.conf; ``hba`` are lines of pg_hba.conf that come before the last ones,
        which trust everybody on this machine; ``parent`` is where its directory is made, instead of the directory for
        temporary files. Raises `SetupError` when ``initdb`` fails.
        """
        self._account = Account.for_servers()
        self.binaries = _readable(find_binaries(binaries), self._account)
        self.directory = _directory(self._account, parent)
        self._guard = _Guard(self.directory)
        self._process: subprocess.Popen[bytes] | None = None
        self.data = self.directory / "data"
        self.log = self.directory / "server.log"
        self.port = _free_port()
        try:
            self._initialise(hba)
            self.configure(settings or {})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def dsn(self, database: str = "postgres", *, user: str = SUPERUSER, password: str | None = None) -> str:
        """A URL for one database, over TCP."""
        secret = f":{url_quote(password, safe='')}" if password is not None else ""
        return f"postgresql://{url_quote(user, safe='')}{secret}@127.0.0.1:{self.port}/{url_quote(database, safe='')}"

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            # To copy the template's files, as versions before 15 always do, takes half of the time, on a disk, that it
            # takes to write their pages to the WAL.
            strategy = " STRATEGY file_copy" if connection.info.server_version >= 150000 else ""
            connection.execute(f"CREATE DATABASE {quote(name)} TEMPLATE template0{strategy}".encode())
        return self.dsn(name)

    def configure(self, settings: Mapping[str, str | int]) -> None:
        """Add settings; they hold from the next start (or reload) on."""
        with (self.data / "cdc.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{name} = {quote_literal(str(value))}\n" for name, value in settings.items())

    def start(self) -> None:
        """Start the server and wait until it accepts connections. Raises `SetupError` with the log's end otherwise."""
        if self.running:
            return
        with self.log.open("ab") as log:
            self._process = self._account.popen(
                [self.binaries / "postgres", "-D", self.data, "-p", str(self.port), "-k", self.directory],
                cwd=self.directory,
                output=log.fileno(),
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end(signal.SIGQUIT)
                raise SetupError(f"the PostgreSQL server in {self.directory} does not start: {self.log_text()[-2000:]}")
            time.sleep(_POLL_S)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast", *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Stop the server the way ``pg_ctl stop -m`` does, and wait until it is gone.

        A fast stop lets every walsender finish first; it raises ``subprocess.TimeoutExpired`` when one does not.
        """
        self._end({"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode], timeout_s)

    def kill(self) -> None:
        """Stop as in a crash: no checkpoint, connections torn; the next start recovers from the WAL."""
        self.stop("immediate")

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop and start, on the same port."""
        self.stop(mode)
        self.start()

    def reload(self) -> None:
        """Make the server read its configuration files again (it does so a moment later)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The postmaster's process id."""
        return self._process.pid if self._process is not None and self.running else None

    def log_text(self) -> str:
        """What the server has logged so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def close(self) -> None:
        """Stop at once and remove every file. Can be called twice."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)
        self._guard.dismiss()

    def _initialise(self, hba: Sequence[str]) -> None:
        common = ["--auth=trust", f"--username={SUPERUSER}", "--encoding=UTF8", "--no-sync", "--no-instructions"]
        command = [str(self.binaries / "initdb"), "-D", str(self.data), *common]
        # C.UTF-8 knows letters beyond ASCII; where the system lacks it, C sorts the same.
        for locale in ("C.UTF-8", "C"):
            status, output = self._account.run([*command, f"--locale={locale}"], cwd=self.directory)
            if status == 0:
                break
        else:
            raise SetupError(f"initdb failed: {output[-2000:]}")
        rules = self.data / "pg_hba.conf"
        rules.write_text("\n".join([*hba, rules.read_text(encoding="utf-8")]), encoding="utf-8")
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write("include = 'cdc.conf'\n")
        (self.data / "cdc.conf").write_text("listen_addresses = '127.0.0.1'\n", encoding="utf-8")
        self._account.own(self.data / "cdc.conf")

    def _ready(self) -> bool:
        """The eighth line of the pid file says so (the way ``pg_ctl -w`` waits), without a connection in the log."""
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        assert self._process is not None
        return len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"

    def _end(self, how: signal.Signals, timeout_s: float = START_TIMEOUT_S) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(timeout_s)
        self._process = None


class _Guard:
    """A shell that removes a directory, and stops the server in it, when this process ends without having done so."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", str(directory)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Tell the guard that all is tidied up, and wait for its end."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.communicate(b"done\n")


def _directory(account: Account, parent: Path | None = None) -> Path:
    """A new directory that the account owns and can reach, under ``parent`` or where temporary files are."""
    for place in (parent or Path(tempfile.gettempdir()), Path("/tmp")):
        directory = Path(tempfile.mkdtemp(prefix="cdc-", dir=place)).resolve()
        account.own(directory)
        short = len(str(directory)) <= _LONGEST_DIRECTORY
        if short and _may_run(["/bin/sh", "-c", 'cd "$1"', "sh", directory], account):
            return directory
        directory.rmdir()
    raise SetupError(f"the user that runs PostgreSQL cannot reach {place}: set TMPDIR to a directory that it can read")


def _readable(binaries: Path, account: Account) -> Path:
    """The same programs where the account can read them: in place, or in a copy of the whole installation."""
    if _may_run([binaries / "initdb", "--version"], account):
        return binaries
    return _copied(binaries, account)


@cache
def _copied(binaries: Path, account: Account) -> Path:
    directory = _directory(account)
    guard = _Guard(directory)
    atexit.register(_remove_copy, directory, guard)
    installation = binaries.parent
    print(f"cdc: the user of the servers cannot read {installation}; using a copy in {directory}", file=sys.stderr)
    copy = directory / "package" / "pginstall"
    shutil.copytree(installation, copy, symlinks=True)
    # A wheel keeps the shared libraries that it bundles beside its package, and its programs look for them there.
    libraries = Path(f"{installation.parent}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, directory / libraries.name, symlinks=True)
    for path in directory.rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
    if not _may_run([copy / binaries.name / "initdb", "--version"], account):
        raise SetupError(f"the programs in {binaries} do not run as the user of the servers, not even copied")
    return copy / binaries.name


def _remove_copy(directory: Path, guard: _Guard) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    guard.dismiss()


def _may_run(command: Sequence[str | Path], account: Account) -> bool:
    try:
        return account.run(command, cwd=Path("/"))[0] == 0
    except OSError:
        return False


def _free_port() -> int:
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SetupError(f"no free TCP port between {_PORTS.start} and {_PORTS.stop} on 127.0.0.1")
