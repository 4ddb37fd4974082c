"""What can go wrong with a server while clients are at work."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable

import psycopg

from torture.cluster import Cluster
from torture.load import TABLE

Fault = Callable[[Cluster, random.Random], None]


def _backends(cluster: Cluster) -> list[int]:
    with contextlib.closing(cluster.connect()) as conn:
        rows = conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type IN"
            " ('client backend', 'autovacuum worker', 'parallel worker')"
        ).fetchall()
    return [pid for (pid,) in rows]


def _signal_backend(cluster: Cluster, random: random.Random, function: str) -> None:
    """Several of them: one may just have been idle."""
    pids = _backends(cluster)
    with contextlib.closing(cluster.connect()) as conn:
        for pid in random.sample(pids, min(3, len(pids))):
            conn.execute(f"SELECT {function}(%s)", (pid,))


def cancel(cluster: Cluster, random: random.Random) -> None:
    _signal_backend(cluster, random, "pg_cancel_backend")


def terminate(cluster: Cluster, random: random.Random) -> None:
    _signal_backend(cluster, random, "pg_terminate_backend")


def time_out(cluster: Cluster, random: random.Random) -> None:
    """All statements that begin now have a moment only."""
    with contextlib.closing(cluster.connect()) as conn:
        for value in (f"'{random.randint(1, 40)}ms'", "DEFAULT"):
            conn.execute(f"ALTER SYSTEM SET statement_timeout = {value}")
            conn.execute("SELECT pg_reload_conf()")
            time.sleep(0.3)


def kill_backend(cluster: Cluster, random: random.Random) -> None:
    pids = _backends(cluster)
    if pids:
        os.kill(random.choice(pids), signal.SIGKILL)
    time.sleep(0.05)
    cluster.wait()


def kill_postmaster(cluster: Cluster, random: random.Random) -> None:
    cluster.kill_postmaster()
    cluster.start()


def stop_immediately(cluster: Cluster, random: random.Random) -> None:
    cluster.stop("immediate")
    cluster.start()


def fill_disk(cluster: Cluster, random: random.Random) -> None:
    """Nothing is left for a while; if WAL cannot be written, the server crashes."""
    filler = cluster.folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        free = shutil.disk_usage(cluster.folder).free
        os.posix_fallocate(file.fileno(), 0, max(1, free - random.choice((0, 1 << 20))))
    time.sleep(random.uniform(0.2, 1))
    filler.unlink(missing_ok=True)
    cluster.wait(revive=True)


def fail_at_points(cluster: Cluster, random: random.Random) -> None:
    """Sessions that begin now fail at one of the calls of the extension (bqfault.c)."""
    with contextlib.closing(cluster.connect()) as conn:
        try:
            conn.execute("LOAD 'bq'")
            conn.execute(f"ALTER SYSTEM SET bq_fault.at = {random.randint(1, 2000)}")
        except psycopg.errors.UndefinedObject:
            raise NotImplementedError from None
        conn.execute("SELECT pg_reload_conf()")
        time.sleep(0.3)
        conn.execute("ALTER SYSTEM RESET bq_fault.at")
        conn.execute("SELECT pg_reload_conf()")


def lose_unlogged(cluster: Cluster, random: random.Random) -> None:
    """A crash right after a checkpoint that wrote half of what there is."""
    with contextlib.closing(cluster.connect()) as conn:
        conn.execute("CHECKPOINT")
        conn.execute(f"VACUUM {TABLE}")
    kill_postmaster(cluster, random)


# how often each, beside the others
FAULTS: dict[Fault, int] = {
    cancel: 6,
    terminate: 4,
    time_out: 3,
    kill_backend: 6,
    kill_postmaster: 3,
    stop_immediately: 3,
    fail_at_points: 6,
    fill_disk: 2,
    lose_unlogged: 1,
}
