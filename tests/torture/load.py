"""Clients that write, vacuum, rebuild and search, and know what must be there after any fault."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import errors
from shared import Conn

from torture.judge import Judge

DIM = 32
CLIENTS = 4
OWN = 1_000_000  # ids of a client
TABLE = "items"
INDEXES = ("by_cosine", "by_l2")

SETUP = f"""
CREATE EXTENSION IF NOT EXISTS bq;
CREATE EXTENSION IF NOT EXISTS vector;
CREATE EXTENSION IF NOT EXISTS bq_pgvector;
-- of an id and a version, anywhere and at any time the same vector
CREATE FUNCTION make_vector(id int, version int) RETURNS halfvec IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_agg((cos(j * (id % 37)) + 0.4 * sin(j * 1.7 * id + version))::real)::halfvec({DIM})
    FROM generate_series(1, {DIM}) AS j
$$ LANGUAGE sql SET search_path = public, pg_catalog;
CREATE TABLE {TABLE} (id int PRIMARY KEY, version int, tenant int, embedding halfvec({DIM}))
    WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE TABLE ledger (client int PRIMARY KEY, done int);
INSERT INTO ledger SELECT i, 0 FROM generate_series(1, {CLIENTS}) AS i;
INSERT INTO {TABLE} SELECT i, 0, i % 5, make_vector(i, 0) FROM generate_series(-2000, -1) AS i;
CREATE INDEX by_cosine ON {TABLE} USING bq (embedding halfvec_cosine_ops, tenant) WITH (lists = 16);
CREATE INDEX by_l2 ON {TABLE} USING bq (embedding halfvec_l2_ops);
"""

# What every fault may do to a session; anything else is a finding.
EXPECTED = (
    psycopg.OperationalError,  # gone, shutting down, starting up, out of resources
    psycopg.InterfaceError,
    errors.QueryCanceled,
    errors.ReadOnlySqlTransaction,
)

# count, and sums that no lost, doubled or stale row leaves as they were
SIGNATURE = f"""
SELECT count(*), coalesce(sum(id), 0), coalesce(sum(version), 0),
    coalesce(sum(id::bigint * version), 0)
FROM {TABLE} WHERE id / {OWN} = %s AND id > 0
"""

Signature = tuple[int, int, int, int]


def _sign(rows: dict[int, int]) -> Signature:
    return (
        len(rows),
        sum(rows),
        sum(rows.values()),
        sum(id_ * version for id_, version in rows.items()),
    )


class Writer:
    """A client: what it did, transaction by transaction, and what each left behind."""

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.random = random.Random(seed * 1000 + number)
        self.rows: dict[int, int] = {}  # id -> version, as of the last transaction
        self.history: dict[int, Signature] = {0: _sign({})}
        self.tried: tuple[int, dict[int, int]] | None = None  # one whose end is not known
        self.done = 0
        self._next = number * OWN + 1

    def work(self, conn: Conn) -> None:
        """One transaction, when it is known how the last one ended."""
        if self.tried is not None:
            self._settle(self._done(conn))
        new = dict(self.rows)
        with conn.transaction():
            self.tried = (self.done + 1, new)
            for _ in range(self.random.randint(1, 3)):
                self._change(conn, new)
            conn.execute("UPDATE ledger SET done = done + 1 WHERE client = %s", (self.number,))
            self.history[self.done + 1] = _sign(new)
        self._settle(self.done + 1)

    def _change(self, conn: Conn, rows: dict[int, int]) -> None:
        n = self.random.choice((1, 5, 60))
        some = self.random.sample(sorted(rows), min(n, len(rows)))
        kind = self.random.choice(("insert", "insert", "copy", "update", "delete"))
        if kind in ("insert", "copy") or not some:
            first, self._next = self._next, self._next + n
            values = (
                "SELECT i, 0, mod(i, 5), make_vector(i, 0) FROM generate_series(%s::int, %s) AS i"
            )
            if kind == "copy":
                made = conn.execute(values, (first, first + n - 1)).fetchall()
                with conn.cursor().copy(f"COPY {TABLE} FROM STDIN") as copy:
                    for row in made:
                        copy.write_row(row)
            else:
                conn.execute(f"INSERT INTO {TABLE} {values}", (first, first + n - 1))
            rows.update(dict.fromkeys(range(first, first + n), 0))
        elif kind == "update":
            conn.execute(
                f"UPDATE {TABLE} SET version = version + 1,"
                " embedding = make_vector(id, version + 1) WHERE id = ANY(%s)",
                (some,),
            )
            rows.update({id_: rows[id_] + 1 for id_ in some})
        else:
            conn.execute(f"DELETE FROM {TABLE} WHERE id = ANY(%s)", (some,))
            for id_ in some:
                del rows[id_]

    def account(self, conn: Conn, exact: bool = True) -> str | None:
        """What is not there as it must be, if anything; settles how the last transaction ended.

        Not `exact`: the server is of an earlier time, of which the history tells.
        """
        done = self._done(conn)
        found = conn.execute(SIGNATURE, (self.number,)).fetchone()
        possible = {self.done} | ({self.tried[0]} if self.tried else set())
        if exact and done not in possible:
            return f"client {self.number} has done {done}, expected one of {possible}"
        if done not in self.history:
            return f"client {self.number} has done {done}, never reached"
        if found != self.history[done]:
            return f"client {self.number}, {done}: rows {found}, expected {self.history[done]}"
        if exact:
            self._settle(done)
        return None

    def _done(self, conn: Conn) -> int:
        query = "SELECT done FROM ledger WHERE client = %s"
        (done,) = conn.execute(query, (self.number,)).fetchone() or (-1,)
        return int(done)

    def _settle(self, done: int) -> None:
        if self.tried is not None and done == self.tried[0]:
            self.done, self.rows = self.tried
        self.tried = None


class Load:
    """Threads that work until they are stopped, and wait while a fault is judged."""

    def __init__(self, connect: Callable[[], Conn], seed: int, say: Callable[[str], Any]) -> None:
        self.connect = connect
        self.writers = [Writer(i, seed) for i in range(1, CLIENTS + 1)]
        self.random = random.Random(seed)
        self.findings: list[str] = []
        self.counts: Counter[str] = Counter()
        self._go = threading.Event()
        self._stop = threading.Event()
        self._busy: dict[str, float] = {}  # since when a thread is at work
        self._lock = threading.Lock()
        jobs: dict[str, Callable[[Conn], None]] = {
            f"writer {w.number}": w.work for w in self.writers
        }
        jobs |= {"vacuum": self._vacuum, "rebuild": self._rebuild}
        jobs |= {"reader 1": self._read, "reader 2": self._search}
        self._threads = [
            threading.Thread(target=self._repeat, args=item, daemon=True) for item in jobs.items()
        ]
        for thread in self._threads:
            thread.start()

    def go(self) -> None:
        self._go.set()

    def pause(self, patience: float) -> list[str]:
        """Wait until nobody is at work; names of those that still are after `patience` seconds."""
        self._go.clear()
        end = time.monotonic() + patience
        while self._busy and time.monotonic() < end:
            time.sleep(0.01)
        return sorted(self._busy)

    def stop(self) -> None:
        self._stop.set()
        self._go.set()

    def _repeat(self, name: str, job: Callable[[Conn], None]) -> None:
        conn: Conn | None = None
        while True:
            self._go.wait()
            if self._stop.is_set():
                return
            with self._lock:
                self._busy[name] = time.monotonic()
            try:
                if not self._go.is_set():
                    continue
                if conn is None or conn.closed:
                    conn = self.connect()
                job(conn)
                self.counts[name.split()[0]] += 1
            except EXPECTED as error:
                # a deadlock is an OperationalError, too
                if isinstance(error, errors.DeadlockDetected | errors.LockNotAvailable):
                    self.findings.append(f"{name}: {error}")
                self.counts["errors"] += 1
                if conn is not None and conn.closed:
                    conn = None
                time.sleep(0.02)
            except Exception as error:
                self.findings.append(f"{name}: {type(error).__name__}: {error}")
                time.sleep(0.1)
            finally:
                with self._lock:
                    self._busy.pop(name, None)

    def _vacuum(self, conn: Conn) -> None:
        option = self.random.choice(("INDEX_CLEANUP on", "PARALLEL 0", "FREEZE"))
        conn.execute(f"VACUUM ({option}) {TABLE}")
        time.sleep(self.random.random() / 2)

    def _rebuild(self, conn: Conn) -> None:
        """Indexes that a fault left invalid go first."""
        for (name,) in conn.execute(
            "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
            " AND indrelid = %s::regclass", (TABLE,)
        ).fetchall():  # fmt: skip
            conn.execute(f"DROP INDEX IF EXISTS {name}")
        choice = self.random.randrange(3)
        if choice == 0:
            conn.execute("REINDEX INDEX CONCURRENTLY by_l2")
        elif choice == 1:
            conn.execute("DROP INDEX IF EXISTS extra")
            conn.execute(
                f"CREATE INDEX CONCURRENTLY extra ON {TABLE} USING bq (embedding halfvec_ip_ops)"
            )
        else:
            conn.execute("REINDEX INDEX CONCURRENTLY by_cosine")
        time.sleep(self.random.random())

    def _read(self, conn: Conn) -> None:
        """In one snapshot, an index answers as a sort does."""
        with conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            complaint = Judge(conn, list(INDEXES)).searches()
        if complaint:
            self.findings.append(f"reader: {complaint}")

    def _search(self, conn: Conn) -> None:
        """Each row is given once, nearest first."""
        conn.execute("SET enable_seqscan = off")
        rows = conn.execute(
            f"SELECT id, embedding <=> make_vector(7, 7) AS d FROM {TABLE} WHERE tenant = 3"
            " ORDER BY embedding <=> make_vector(7, 7) LIMIT 100"
        ).fetchall()
        if len({id_ for id_, _ in rows}) < len(rows):
            self.findings.append(f"reader: a row twice in {rows}")
        distances = [d for _, d in rows]
        if distances != sorted(distances):
            self.findings.append(f"reader: not in order: {distances}")
