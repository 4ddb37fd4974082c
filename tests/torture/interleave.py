"""One session stops at a place in the code, another works meanwhile: every place in turn.

What tests/isolation cannot reach from SQL: the middle of an insertion, of a split, of a build.  A
session that stopped waits for an advisory lock (bqfault.c), holding what it holds there, a closed
list among it.  The other one may have to wait for it, but both come to their end, and then the
index answers as a sort does.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from shared import Conn

from torture.cluster import PATIENCE, steps
from torture.judge import Judge

SETUP = """
CREATE EXTENSION IF NOT EXISTS bq;
CREATE FUNCTION code(i int) RETURNS bqvec IMMUTABLE LANGUAGE sql AS $$
    SELECT bq_encode(array_agg((hashint4extended(j, i) / 9223372036854775808.0)::real ORDER BY j))
    FROM generate_series(1, 16) AS j
$$;
CREATE TABLE codes AS SELECT i AS id, code(i) FROM generate_series(1, 2000) AS i;
CREATE TABLE met (id int, code bqvec(16)) WITH (autovacuum_enabled = off);
CREATE INDEX met_code ON met USING bq (code) WITH (lists = 8);
"""

# As before each try: one list, which VACUUM splits; or eight, of which it removes rows.
FEW = "INSERT INTO met SELECT * FROM codes WHERE id BETWEEN 1 AND 300"
GROWN = ("TRUNCATE met", FEW)
GROUPED = (*GROWN, "VACUUM met", "DELETE FROM met WHERE mod(id, 3) = 0")

INSERT = "INSERT INTO met SELECT * FROM codes WHERE id BETWEEN 301 AND 340"
VACUUM = "VACUUM (INDEX_CLEANUP on) met"
BUILD = "CREATE INDEX CONCURRENTLY new ON met USING bq (code)"
SEARCH = (
    "BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL bq.recall = 1",
    "SELECT id FROM met ORDER BY code <~> (SELECT code FROM codes WHERE id = 7) LIMIT 1000",
    "COMMIT",
)
WRITE = (
    "BEGIN; INSERT INTO met SELECT * FROM codes WHERE id BETWEEN 401 AND 430; ROLLBACK",
    "INSERT INTO met SELECT * FROM codes WHERE id BETWEEN 501 AND 530",
    "DELETE FROM met WHERE id BETWEEN 1 AND 20",
    "UPDATE met SET code = (SELECT c.code FROM codes AS c WHERE c.id = met.id + 1000)"
    " WHERE id BETWEEN 21 AND 40",
)

# name, what comes before, who stops, who comes meanwhile
MEETINGS = (
    ("a split and writers", GROWN, (VACUUM,), WRITE),
    ("a split and a search", GROWN, (VACUUM,), SEARCH),
    ("vacuum and writers", GROUPED, (VACUUM,), WRITE),
    ("vacuum and a search", GROUPED, (VACUUM,), SEARCH),
    ("an insertion and a split", GROWN, (INSERT,), (VACUUM,)),
    ("an insertion and vacuum", GROUPED, (INSERT,), (VACUUM,)),
    ("an insertion and writers", GROUPED, (INSERT,), WRITE),
    ("a search and a split", GROWN, SEARCH, (VACUUM,)),
    ("a search, vacuum and writers", GROUPED, SEARCH, (VACUUM, *WRITE)),
    ("a build and writers", GROUPED, (BUILD,), WRITE),
)

WAITING = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"


@dataclass
class Met:
    """What became of the meetings."""

    places: Counter[str] = field(default_factory=Counter)
    waited: Counter[str] = field(default_factory=Counter)  # the other one, until the first went on
    findings: list[str] = field(default_factory=list)


class _Work:
    """Statements that a session runs beside others."""

    def __init__(self, conn: Conn, statements: tuple[str, ...]) -> None:
        self.pid = conn.info.backend_pid
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(conn, statements), daemon=True)
        self._thread.start()

    def _run(self, conn: Conn, statements: tuple[str, ...]) -> None:
        try:
            for statement in statements:
                conn.execute(statement)
        except psycopg.Error as error:
            self.error = error

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, watcher: Conn | None = None) -> bool:
        """Until it has ended or, as the watcher sees, waits for a lock; False if neither comes."""
        return any(
            self.ended() or (watcher and watcher.execute(WAITING, (self.pid,)).fetchone())
            for _ in steps(step=0.002)
        )


def interleave(
    connect: Callable[[], Conn], seed: int, seconds: float, say: Callable[[str], Any]
) -> Met:
    """Let sessions meet at every place, for so many seconds at most."""
    met = Met()
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        first, second, watcher = (
            stack.enter_context(contextlib.closing(connect())) for _ in range(3)
        )
        watcher.execute(SETUP)
        first.execute("LOAD 'bq'; SET bq_fault.waits = on")
        # each place in the code, then points: what is passed again may hold more than at first
        for i, (name, before, stops, comes) in enumerate(MEETINGS):
            plans = []
            for sites in (True, False):
                first.execute(f"SET bq_fault.sites = {sites}")
                plans.append(list(range(1, _count(first, watcher, before, stops) + 1)))
                chance.shuffle(plans[-1])
            share = (end - time.monotonic()) / (len(MEETINGS) - i)
            for sites, until in ((True, share / 2), (False, share)):
                first.execute(f"SET bq_fault.sites = {sites}")
                until += end - share * (len(MEETINGS) - i)
                for place in plans[not sites]:
                    complaint = _meet(
                        first, second, watcher, place, before, stops, comes, name, met
                    )
                    if complaint:
                        kind = "place" if sites else "point"
                        met.findings.append(f"{name}, {kind} {place}: {complaint}")
                        return met
                    if time.monotonic() > until:
                        break
            say(
                f"{name}: {len(plans[0])} places, {len(plans[1]):,} points,"
                f" {met.places[name]} stops, at {met.waited[name]} the other one waited"
            )
    return met


def _count(conn: Conn, watcher: Conn, before: tuple[str, ...], stops: tuple[str, ...]) -> int:
    """How many places there are."""
    for statement in before:
        watcher.execute(statement)
    for statement in ("SET bq_fault.at = 2147483647", *stops):
        conn.execute(statement)
    row = conn.execute("SELECT current_setting('bq_fault.passed')").fetchone()
    watcher.execute("DROP INDEX IF EXISTS new")
    return int(row[0]) if row else 0


def _meet(
    first: Conn,
    second: Conn,
    watcher: Conn,
    place: int,
    before: tuple[str, ...],
    stops: tuple[str, ...],
    comes: tuple[str, ...],
    name: str,
    met: Met,
) -> str | None:
    for statement in before:
        watcher.execute(statement)
    watcher.execute("SELECT pg_advisory_lock(0)")
    stopped = _Work(first, (f"SET bq_fault.at = {place}", *stops, "SET bq_fault.at = 0"))
    if not stopped.wait(watcher):
        return f"still at work after {PATIENCE} s"
    if not stopped.ended():
        met.places[name] += 1
    coming = _Work(second, comes)
    if not coming.wait(watcher):
        return f"the other one is still at work after {PATIENCE} s"
    met.waited[name] += not coming.ended() and not stopped.ended()
    watcher.execute("SELECT pg_advisory_unlock(0)")
    for work in (stopped, coming):
        if not work.wait():
            return f"still at work after {PATIENCE} s"
        if work.error is not None:
            return str(work.error)
    if watcher.execute("SELECT to_regclass('new')").fetchone() != (None,):
        watcher.execute("SELECT bq_index_check('new', true)")
        watcher.execute("DROP INDEX new")
    return Judge(watcher, ["met_code"]).judge()
