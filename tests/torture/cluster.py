"""A PostgreSQL cluster that is killed and started again, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from shared import Conn

PATIENCE = 120  # seconds for anything: longer is a hang

SETTINGS = {
    "listen_addresses": "",
    "max_connections": 60,
    "max_wal_senders": 5,
    "wal_level": "replica",
    "wal_sender_timeout": 0,  # nor are connections given up while the machine stops
    "wal_receiver_timeout": 0,
    "shared_buffers": "16MB",  # less than the data: pages are written and read again
    "maintenance_work_mem": "8MB",
    "checkpoint_timeout": "30s",
    "max_wal_size": "64MB",
    "min_wal_size": "32MB",
    # not all: of heaps that were truncated and have grown again, pages are taken for damaged
    "wal_consistency_checking": "generic",
    "autovacuum_naptime": "1s",
    "autovacuum_vacuum_cost_delay": 0,
    "restart_after_crash": True,
    "fsync": False,  # processes are killed, not the machine
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %b ",
}


class Hang(Exception):
    """Something took longer than PATIENCE."""


def steps(seconds: float = PATIENCE, step: float = 0.02) -> Iterator[None]:
    """Wait so long in small steps, each time round; while we are stopped, no time passes."""
    for _ in range(int(seconds / step)):
        yield
        time.sleep(step)


class Cluster:
    """Of an installation's programs, in `folder`, with the socket there."""

    def __init__(self, bin: Path, folder: Path, port: int = 5432, **settings: Any) -> None:
        self.bin, self.folder, self.port = bin, folder, port
        self.data = folder / "data"
        self.log = folder / "log"
        self.settings: dict[str, Any] = (
            SETTINGS | {"unix_socket_directories": folder, "port": port} | settings
        )
        # PostgreSQL refuses to run as root
        self._user = "nobody" if os.getuid() == 0 else None
        folder.mkdir(parents=True, exist_ok=True)
        self.give(folder)

    @property
    def dsn(self) -> str:
        return f"host={self.folder} port={self.port} user=postgres dbname=postgres"

    def give(self, path: Path) -> None:
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(path, entry.pw_uid, entry.pw_gid)

    def run(self, program: str, *arguments: str | Path, check: bool = True) -> int:
        """Run a program of the server as its user."""
        with (self.folder / "output").open("w+") as output:
            done = subprocess.Popen(
                [self.bin / program, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                user=self._user,
                group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
                extra_groups=None if self._user is None else [],
            )
            if all(done.poll() is None for _ in steps()):
                done.kill()
                done.wait()
                raise Hang(f"{program} took more than {PATIENCE} s")
            output.seek(0)
            if check and done.returncode != 0:
                raise RuntimeError(f"{program}: {output.read()}{self.log_tail()}")
        return done.returncode

    def create(self) -> None:
        self.run(
            "initdb", "--pgdata", self.data, "--username=postgres", "--auth=trust", "--no-sync",
            "--locale=C", "--encoding=UTF8",
        )  # fmt: skip

    def copy(self, source: Cluster) -> None:
        """Become a base backup of a running cluster."""
        self.run("pg_basebackup", "-D", self.data, "-X", "stream", "-c", "fast", "-d", source.dsn)

    def start(self) -> None:
        options = " ".join(f"-c '{name}={value}'" for name, value in self.settings.items())
        patience = ("--timeout", str(PATIENCE - 5))
        self.run("pg_ctl", "-D", self.data, "-w", *patience, "-l", self.log, "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        self.run("pg_ctl", "-D", self.data, "-w", "-m", mode, "stop", check=False)

    def promote(self) -> None:
        self.run("pg_ctl", "-D", self.data, "-w", "promote")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self, **settings: Any) -> Conn:
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        return psycopg.connect(self.dsn, autocommit=True, options=options)

    def wait(self, revive: bool = False) -> None:
        """Wait until the server takes connections, after the crash of one of its processes.

        With `revive`, it is started if it has given up, as it does if it cannot write WAL.
        """
        problem: object = None
        for _ in steps(step=0.05):
            try:
                if revive and self.run("pg_ctl", "-D", self.data, "status", check=False) != 0:
                    with contextlib.suppress(RuntimeError):
                        self.start()
                with contextlib.closing(self.connect()) as conn:
                    conn.execute("SELECT 1")
                return
            except psycopg.OperationalError as error:
                problem = error
        raise Hang(f"no recovery within {PATIENCE} s: {problem}")

    def postmaster(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def processes(self) -> list[int]:
        """Children of the postmaster that still run."""
        parent = str(self.postmaster())
        output = subprocess.run(["pgrep", "--parent", parent], capture_output=True, text=True)
        return [int(pid) for pid in output.stdout.split()]

    def kill_postmaster(self) -> None:
        """Kill it, and wait until its children have noticed."""
        parent, children = self.postmaster(), self.processes()
        os.kill(parent, signal.SIGKILL)
        alive = children
        for _ in steps():
            alive = [pid for pid in alive if Path(f"/proc/{pid}").exists()]
            if not alive:
                return
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        raise Hang(f"processes {alive} outlived the postmaster by {PATIENCE} s")

    def log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-20:])
