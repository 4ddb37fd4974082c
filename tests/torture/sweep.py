"""Every point of every operation fails once: what was there before is there afterwards.

For each operation the number of its points is counted, then it runs again and again, failing at
another point each time: first at each place in the code, then at points drawn at random, or at all
of them if time allows.  Each failure must be the one injected, without a warning (of a pin or a
lock that was left behind), and leave a session in which the index answers as a sort does,
bq_index_check finds nothing, and no row is lost or gained.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg
from shared import Conn

from torture.judge import Judge

DIM = 24
ROWS = 1500
MANY = 10_500  # more than an index has in one list
INJECTED = re.compile(r"fault at point \d+, in (\w+)")


@dataclass(frozen=True)
class Operation:
    """Statements that fail together, what comes before each try, and what undoes a success."""

    name: str
    run: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    alone: bool = False  # not within a transaction
    reads: bool = False  # and changes nothing: judged at the end only


QUERY = "SELECT id FROM items ORDER BY embedding <=> '{q}' LIMIT {k}"
MORE = f"""
INSERT INTO items SELECT i, mod(i, 7), (SELECT array_agg(sin(i * j)::real)
    FROM generate_series(1, {DIM}) AS j)::halfvec FROM generate_series(%s, %s) AS i
"""


def _operations(q: str) -> list[Operation]:
    query = QUERY.format(q=q, k="{k}")
    new = "CREATE INDEX new ON items USING bq (embedding halfvec_cosine_ops, tenant)"
    return [
        Operation("search", (query.format(k=10),), reads=True),
        Operation("search for many", (query.format(k=ROWS // 2),), reads=True),
        Operation(
            "search with a filter",
            (query.format(k=10).replace("ORDER", "WHERE tenant = 3 ORDER"),),
            reads=True,
        ),
        Operation(
            "search in relaxed order",
            ("SET LOCAL bq.iterative_scan = relaxed_order", query.format(k=50)),
            reads=True,
        ),
        Operation(
            "cursor",
            (f"DECLARE c CURSOR FOR {query.format(k=200)}", "FETCH 20 FROM c", "FETCH 150 FROM c"),
            reads=True,
        ),
        Operation(
            "search by code",
            (
                "SELECT id FROM codes ORDER BY code <~> (SELECT code FROM codes WHERE id = 7)"
                " LIMIT 5",
            ),
            reads=True,
        ),
        Operation("one row", (MORE % (10_000, 10_000),)),
        Operation("hundred rows", (MORE % (10_000, 10_100),)),
        Operation(
            "codes",
            ("INSERT INTO codes SELECT id, bq_encode(embedding::real[], 1) FROM items LIMIT 50",),
        ),
        Operation(
            "first row",
            (MORE.replace("items", "none") % (1, 3),),
            (
                "CREATE TABLE none (LIKE items)",
                "CREATE INDEX ON none USING bq (embedding halfvec_l2_ops)",
            ),
        ),
        Operation(
            "update", ("UPDATE items SET embedding = embedding + embedding WHERE mod(id, 50) = 0",)
        ),
        Operation(
            "vacuum",
            ("VACUUM (INDEX_CLEANUP on) items",),
            (
                "DELETE FROM items WHERE id >= 10000",
                MORE % (10_000, 10_200),
                "DELETE FROM items WHERE id >= 10100",
            ),
            ("DELETE FROM items WHERE id >= 10000", "VACUUM (INDEX_CLEANUP on) items"),
            alone=True,
        ),
        Operation(
            "vacuum that splits lists",
            ("VACUUM (INDEX_CLEANUP on) grown",),
            (
                "DROP TABLE IF EXISTS grown",
                "CREATE TABLE grown (LIKE items)",
                "CREATE INDEX grown_index ON grown USING bq (embedding halfvec_cosine_ops)",
                "INSERT INTO grown SELECT * FROM many",
            ),
            # what a failure left is finished, and well
            ("VACUUM (INDEX_CLEANUP on) grown", "SELECT bq_index_check('grown_index', true)"),
            alone=True,
        ),
        Operation("create index", (new,)),
        Operation(
            "create index in parallel",
            (
                "SET LOCAL min_parallel_table_scan_size = 0",
                "SET LOCAL max_parallel_maintenance_workers = 2",
                new,
            ),
        ),
        Operation(
            "create index concurrently",
            (new.replace("INDEX", "INDEX CONCURRENTLY", 1),),
            ("DROP INDEX IF EXISTS new",),
            ("DROP INDEX IF EXISTS new",),
            alone=True,
        ),
        Operation("reindex", ("REINDEX INDEX items_index",)),
        Operation(
            "reindex concurrently",
            ("REINDEX INDEX CONCURRENTLY items_index",),
            after=(
                "DROP INDEX IF EXISTS items_index_ccnew",
                "DROP INDEX IF EXISTS items_index_ccold",
            ),
            alone=True,
        ),
        Operation("truncate", ("TRUNCATE items", MORE % (1, 20))),
        Operation("check", ("SELECT bq_index_check('items_index', true)",), reads=True),
        Operation("info", ("SELECT * FROM bq_index_info('items_index')",), reads=True),
        Operation("statistics", ("SELECT * FROM bq_index_statistics('items_index')",), reads=True),
        Operation("explain", (f"EXPLAIN (ANALYZE, BUFFERS) {query.format(k=10)}",), reads=True),
        Operation(
            "types",
            (
                "SELECT bq_encode(embedding::real[], 5)::text::bqvec FROM items LIMIT 3",
                f"SELECT bq_query('{q.replace('[', '{').replace(']', '}')}', 1)::text::bqquery",
            ),
            reads=True,
        ),
    ]


@dataclass
class Sweep:
    """What became of the faults."""

    sites: dict[str, int] = field(default_factory=dict)  # places in the code, by operation
    points: dict[str, int] = field(default_factory=dict)
    injected: Counter[str] = field(default_factory=Counter)  # by operation
    functions: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def create(conn: Conn) -> None:
    for extension in ("bq", "vector", "bq_pgvector"):
        conn.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}")
    conn.execute(f"CREATE TABLE items (id int PRIMARY KEY, tenant int, embedding halfvec({DIM}))")
    conn.execute(MORE % (1, ROWS))
    conn.execute(
        "CREATE INDEX items_index ON items USING bq (embedding halfvec_cosine_ops, tenant)"
        " WITH (lists = 20)"
    )
    conn.execute(f"CREATE TABLE codes (id int, code bqvec({DIM}))")
    conn.execute("INSERT INTO codes SELECT id, bq_encode(embedding::real[], 1) FROM items")
    conn.execute("CREATE INDEX codes_index ON codes USING bq (code) WITH (lists = 10)")
    conn.execute("CREATE TABLE many (LIKE items)")
    conn.execute(MORE.replace("items", "many") % (1, MANY))
    conn.execute("ANALYZE items, codes")


def sweep(
    connect: Callable[[], Conn], seed: int, seconds: float, say: Callable[[str], Any]
) -> Sweep:
    """Let each operation fail at its points, for so many seconds in all."""
    rng = np.random.default_rng(seed)
    found = Sweep()
    conn = connect()
    create(conn)
    judge = Judge(connect(), ["items_index", "codes_index"])
    operations = _operations(str(rng.standard_normal(DIM).round(3).tolist()))
    end = time.monotonic() + seconds
    for i, operation in enumerate(operations):
        share = (end - time.monotonic()) / (len(operations) - i)
        _sweep_operation(conn, judge, operation, rng, time.monotonic() + share, found)
        say(
            f"{operation.name}: {found.sites[operation.name]} places,"
            f" {found.points[operation.name]} points,"
            f" {found.injected[operation.name]} failed"
        )
        if conn.closed:
            conn = connect()
    return found


def _sweep_operation(
    conn: Conn,
    judge: Judge,
    operation: Operation,
    rng: np.random.Generator,
    until: float,
    found: Sweep,
) -> None:
    warnings: list[str] = []
    conn.add_notice_handler(
        lambda d: warnings.append(str(d.message_primary)) if d.severity == "WARNING" else None
    )
    conn.execute("SET enable_seqscan = off")
    _try(conn, operation, 0)
    counts = [_try(conn, operation, 2**31 - 1, sites) for sites in (True, False)]
    found.sites[operation.name], found.points[operation.name] = counts
    plan = [(True, point) for point in range(1, counts[0] + 1)]
    plan += [(False, int(point)) for point in rng.permutation(np.arange(1, counts[1] + 1))]
    for sites, point in plan:
        if not sites and time.monotonic() > until:
            break
        before = None if operation.reads else judge.contents()
        warnings.clear()
        try:
            _try(conn, operation, point, sites)
        except psycopg.Error as error:
            text = str(error)
            injected = INJECTED.search(text)
            if injected is None:
                found.findings.append(f"{operation.name}, point {point}: {text}")
            else:
                found.injected[operation.name] += 1
                found.functions[injected[1]] += 1
            if conn.closed:
                return
        if warnings:
            found.findings.append(f"{operation.name}, point {point}: warning {warnings[0]}")
        if before is not None:
            complaint = judge.judge() or judge.compare(before)
            if complaint:
                found.findings.append(f"{operation.name}, point {point}: {complaint}")
                return


def _try(conn: Conn, operation: Operation, point: int, sites: bool = False) -> int:
    """Run an operation that fails at a point; returns how many points it passed."""
    conn.execute("SET bq_fault.at = 0")
    conn.execute(f"SET bq_fault.sites = {sites}")
    for statement in operation.before if operation.alone else ():
        conn.execute(statement)
    try:
        if operation.alone:
            conn.execute(f"SET bq_fault.at = {point}")
            for statement in operation.run:
                conn.execute(statement)
            return _passed(conn)
        with conn.transaction(force_rollback=True):
            for statement in operation.before:
                conn.execute(statement)
            conn.execute(f"SET bq_fault.at = {point}")
            for statement in operation.run:
                conn.execute(statement)
            return _passed(conn)
    finally:
        if not conn.closed:
            conn.execute("SET bq_fault.at = 0")
            for statement in operation.after:
                conn.execute(statement)


def _passed(conn: Conn) -> int:
    row = conn.execute("SELECT current_setting('bq_fault.passed')").fetchone()
    assert row is not None
    return int(row[0])
