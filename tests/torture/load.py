"""Clients that write, vacuum, rebuild and search, and know what must be there after any fault."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import errors
from shared import Conn

from torture.cluster import steps
from torture.judge import Judge

DIM = 32
CLIENTS = 4
OWN = 1_000_000  # ids of a client
MOST_ROWS = 1500  # of a client, so that long runs find what short ones do
TABLE = "items"
INDEXES = ("by_tenant", "plain", "of_grown")
REBUILT = ("by_tenant", "plain")


@dataclass(frozen=True)
class Kind:
    """What is indexed."""

    extensions: tuple[str, ...]
    type: str
    of_array: str  # a real[] as one
    operator: str  # a distance between two
    columns: dict[str, str]  # of the indexes of TABLE, and of one that comes and goes
    grown: str  # of an index whose lists are split


VECTORS = Kind(
    ("bq", "vector", "bq_pgvector"),
    f"halfvec({DIM})",
    f"{{}}::halfvec({DIM})",
    "<=>",
    {
        "by_tenant": "(embedding halfvec_cosine_ops, tenant) WITH (lists = 16)",
        "plain": "(embedding halfvec_l2_ops)",
        "extra": "(embedding halfvec_ip_ops)",
    },
    "(embedding halfvec_cosine_ops) WITH (lists = 40)",
)

# Of a server without pgvector.  The second index is on an expression: of two on one column, only
# one would be searched.
CODES = Kind(
    ("bq",),
    f"bqvec({DIM})",
    "bq_encode({}, 1)",
    "<~>",
    {
        "by_tenant": "(embedding, tenant) WITH (lists = 16)",
        "plain": f"((bq_encode(embedding::real[], 7)::bqvec({DIM})))",
        "extra": f"((bq_encode(embedding::real[], 3)::bqvec({DIM})))",
    },
    "(embedding) WITH (lists = 40)",
)


def setup(kind: Kind) -> str:
    """The statements that make what the load works on."""
    array = "array_agg((cos(j * (id % 37)) + 0.4 * sin(j * 1.7 * id + version))::real)"
    return f"""
{"".join(f"CREATE EXTENSION IF NOT EXISTS {name};" for name in kind.extensions)}
-- of an id and a version, anywhere and at any time the same vector
CREATE FUNCTION make_vector(id int, version int) RETURNS {kind.type.partition("(")[0]}
IMMUTABLE PARALLEL SAFE AS $$
    SELECT {kind.of_array.format(array)} FROM generate_series(1, {DIM}) AS j
$$ LANGUAGE sql SET search_path = public, pg_catalog;
CREATE TABLE {TABLE} (id int PRIMARY KEY, version int, tenant int, embedding {kind.type})
    WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE TABLE ledger (client int PRIMARY KEY, done int);
INSERT INTO ledger SELECT i, 0 FROM generate_series(1, {CLIENTS}) AS i;
INSERT INTO {TABLE} SELECT i, 0, i % 5, make_vector(i, 0) FROM generate_series(-2000, -1) AS i;
CREATE INDEX by_tenant ON {TABLE} USING bq {kind.columns["by_tenant"]};
CREATE INDEX plain ON {TABLE} USING bq {kind.columns["plain"]};
-- rows that clients write beside others, and nobody counts; often emptied, so that VACUUM finds
-- one list for all
CREATE TABLE grown (id int, embedding {kind.type});
CREATE INDEX of_grown ON grown USING bq {kind.grown};
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

LISTS = "SELECT lists FROM bq_index_info('of_grown')"

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
        if len(rows) > MOST_ROWS:
            kind = "delete"
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
            conn.execute(
                "INSERT INTO grown SELECT i, make_vector(i, 0)"
                " FROM generate_series(%s::int, %s) AS i",
                (first, first + n - 1),
            )
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

    def __init__(
        self, connect: Callable[[], Conn], kind: Kind, seed: int, rebuilt: Sequence[str] = REBUILT
    ) -> None:
        self.connect = connect
        self.kind = kind
        self.rebuilt = rebuilt
        self.writers = [Writer(i, seed) for i in range(1, CLIENTS + 1)]
        self.random = random.Random(seed)
        self.findings: list[str] = []
        self.counts: Counter[str] = Counter()  # what was done, by job
        self.errors: Counter[str] = Counter()  # what clients met
        self._go = threading.Event()
        self._stop = threading.Event()
        self._busy: dict[str, float] = {}  # since when a thread is at work
        self._lock = threading.Lock()
        jobs: dict[str, Callable[[Conn], None]] = {
            f"writer {w.number}": w.work for w in self.writers
        }
        jobs |= {"vacuum": self._vacuum, "regroup": self._regroup, "rebuild": self._rebuild}
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
        for _ in steps(patience):
            if not self._busy:
                break
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
                self.errors[type(error).__name__] += 1
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

    def _regroup(self, conn: Conn) -> None:
        """Split the one list of an index, beside those who write to it."""
        (rows,) = conn.execute("SELECT count(*) FROM grown").fetchone() or (0,)
        if rows > 3000:
            conn.execute("TRUNCATE grown")
        conn.execute(f"INSERT INTO grown SELECT id, embedding FROM {TABLE} LIMIT 500")
        (before,) = conn.execute(LISTS).fetchone() or (0,)
        conn.execute("VACUUM (INDEX_CLEANUP on) grown")
        (after,) = conn.execute(LISTS).fetchone() or (0,)
        self.counts["splits"] += after > before
        time.sleep(self.random.random() / 4)

    def _rebuild(self, conn: Conn) -> None:
        """Indexes that a fault left invalid go first."""
        for (name,) in conn.execute(
            "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
            " AND indrelid = %s::regclass", (TABLE,)
        ).fetchall():  # fmt: skip
            conn.execute(f"DROP INDEX IF EXISTS {name}")
        name = self.random.choice((*self.rebuilt, "extra"))
        if name == "extra":
            conn.execute("DROP INDEX IF EXISTS extra")
            conn.execute(
                f"CREATE INDEX CONCURRENTLY extra ON {TABLE} USING bq {self.kind.columns[name]}"
            )
        else:
            conn.execute(f"REINDEX INDEX CONCURRENTLY {name}")
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
        distance = f"embedding {self.kind.operator} make_vector(7, 7)"
        rows = conn.execute(
            f"SELECT id, {distance} AS d FROM {TABLE} WHERE tenant = 3"
            f" ORDER BY {distance} LIMIT 100"
        ).fetchall()
        if len({id_ for id_, _ in rows}) < len(rows):
            self.findings.append(f"reader: a row twice in {rows}")
        distances = [d for _, d in rows]
        if distances != sorted(distances):
            self.findings.append(f"reader: not in order: {distances}")
