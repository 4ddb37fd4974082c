"""Which server runs on a folder, and how to connect to it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from pybq.errors import ServerError


class Running(NamedTuple):
    """What a server says of itself in its data folder."""

    pid: int
    port: int
    socket_dir: Path | None

    @property
    def dsn(self) -> str:
        """Connection string for psycopg, SQLAlchemy and psql; ServerError without a socket."""
        if self.socket_dir is None:
            raise ServerError(
                "the server listens on no Unix socket, which pybq needs; leave "
                "unix_socket_directories out, or set it to a folder"
            )
        return (
            f"postgresql://postgres@/postgres?host={quote(str(self.socket_dir))}&port={self.port}"
        )


def read_pidfile(data_dir: Path) -> Running | None:
    """What runs on a folder, or ran there before a crash; None if nothing did."""
    try:
        # PostgreSQL, src/include/utils/pidfile.h: line 1 process, line 4 port, line 5 socket folder
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        return Running(int(lines[0]), int(lines[3]), Path(lines[4]) if lines[4] else None)
    except (OSError, IndexError, ValueError):
        return None


def find_dsn(data_dir: Path) -> str | None:
    """Connection string of the server that runs on a folder, if one answers."""
    import psycopg

    running = read_pidfile(data_dir)
    if running is None:
        return None
    try:
        psycopg.connect(running.dsn).close()
    except psycopg.OperationalError:
        return None  # left behind by a crash
    return running.dsn
