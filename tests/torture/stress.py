"""Load without faults: what clients do to each other, and what is left behind."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from typing import Any

from torture.cluster import PATIENCE, Cluster
from torture.judge import Judge
from torture.load import INDEXES, TABLE, Load

SETTINGS: dict[str, Any] = {
    "deadlock_timeout": "20ms",  # who waits so long for a lock cancels autovacuum
    "log_autovacuum_min_duration": 0,
    "log_lock_waits": False,
}

# Not by_tenant: it must not grow without being rebuilt.
REBUILT = ("plain",)

# Autovacuum may be cancelled, by builds that want its lock, but comes to an end after so many.
MOST_CANCELLED = 20

# Times what the index would have, made anew.  Lists keep the room of their fullest day, and are
# split into twice the number that a build would choose, at most: each has half a block to spare.
MOST_GROWN = 2.5

LOGGED = re.compile(r"canceling autovacuum task|automatic vacuum of table .*\.items")


def run(
    cluster: Cluster,
    load: Load,
    seconds: float,
    say: Callable[[str], Any],
    find: Callable[[str], Any],
) -> None:
    """Let clients work for so many seconds, then judge what is there."""
    end = time.monotonic() + seconds
    load.go()
    while time.monotonic() < end and not load.findings:
        time.sleep(1)
    busy = load.pause(PATIENCE)
    if busy:
        find(f"{busy} still at work after {PATIENCE} s")
        return
    for text in load.findings:  # deadlocks among them, and wrong answers
        find(text)
    for name, count in load.errors.items():
        find(f"{count} clients met {name}, though nothing was made to fail")

    cancelled, ended, worst = autovacuums(cluster.log.read_text(errors="replace"))
    say(f"autovacuum: {ended} ended, {cancelled} were cancelled, {worst} in a row at most")
    if worst > MOST_CANCELLED:
        find(f"autovacuum was cancelled {worst} times in a row")

    with contextlib.closing(cluster.connect(statement_timeout=PATIENCE * 5000)) as conn:
        for complaint in (
            *(writer.account(conn) for writer in load.writers),
            Judge(conn, list(INDEXES)).judge(),
        ):
            if complaint:
                find(complaint)
        size = "SELECT pg_relation_size('by_tenant'), count(*) FROM items"
        (grown, rows) = conn.execute(size).fetchone() or (0, 0)
        lists = conn.execute("SELECT lists FROM bq_index_info('by_tenant')").fetchone()
        conn.execute("REINDEX INDEX by_tenant")
        (fresh, _) = conn.execute(size).fetchone() or (0, 0)
        say(f"by_tenant: {rows:,} rows, {lists}, {grown:,} bytes, made anew {fresh:,}")
        if grown > MOST_GROWN * fresh:
            find(f"index of {TABLE} has {grown:,} bytes, made anew {fresh:,}")


def autovacuums(log: str) -> tuple[int, int, int]:
    """How many of the table were cancelled, how many ended, and most cancelled in a row."""
    cancelled = ended = row = worst = 0
    for found in LOGGED.findall(log):
        if found.startswith("canceling"):
            cancelled += 1
            row += 1
            worst = max(worst, row)
        else:
            ended += 1
            row = 0
    return cancelled, ended, worst
