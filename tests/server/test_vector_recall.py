"""What is asked for is found: bq.recall against held-out queries on real vectors (tests/data)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import psycopg
import pytest
from indexlib import (
    COSINE,
    HALF_COSINE,
    IP,
    L2,
    Column,
    check,
    clustered_vectors,
    create,
    explain,
    info,
    insert,
    measure_scan,
)
from shared import Conn, Vectors, load_vectors

ROOT = Path(__file__).parents[2]
K = 10
TOLERANCE = 0.02
DEFAULT_RECALL = 0.98
RECALLS = (0.9, 0.95, 0.98, 0.99)

COLUMNS = [
    COSINE,
    IP,
    L2,
    HALF_COSINE,
]

each_column = pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.opclass)


pytestmark = [pytest.mark.autocommit, pytest.mark.usefixtures("bq_pgvector")]


def distances(column: Column, base: Vectors, queries: Vectors) -> Any:
    """What grows with the distance of each row from each query, shape (queries, rows)."""
    products = queries @ base.T
    norms = np.linalg.norm(base, axis=1)
    if column.operators == ("<=>",):
        return -products / norms
    return -products if column.operators == ("<#>",) else norms**2 - 2 * products


def measure(conn: Conn, column: Column, keys: Any, queries: Vectors, k: int = K) -> float:
    """Recall@k of the index; rows as near as the tenth count, whichever they are."""
    operator = column.operators[0]
    distance = f"embedding {operator} %(q)s"
    query: Any = f"SELECT id FROM items ORDER BY {distance} LIMIT {k}"
    conn.execute("SET enable_seqscan = off")
    plan = explain(conn, query, {"q": column.operand(operator, queries[0])})
    assert "Index Scan using" in plan, plan
    nhits = 0
    for vector, of_rows in zip(queries, keys, strict=True):
        rows = conn.execute(query, {"q": column.operand(operator, vector)}).fetchall()
        assert len({i for (i,) in rows}) == k
        last = np.partition(of_rows, k - 1)[k - 1]
        # floats and halves are rounded
        last += abs(last) * (1e-3 if column.type == "halfvec" else 1e-5)
        nhits += sum(of_rows[i] <= last for (i,) in rows)
    return nhits / (k * len(queries))


def assert_promise(
    conn: Conn, column: Column, base: Vectors, queries: Vectors
) -> dict[float, float]:
    """Recall at each setting, and at the default, which is returned."""
    keys = distances(column, base, queries)
    found = {}
    for wanted in (0, *RECALLS, 1):
        conn.execute(cast(Any, f"SET bq.recall = {wanted}"))
        found[wanted or DEFAULT_RECALL] = measure(conn, column, keys, queries)
    facts = info(conn, "items_embedding")
    print(f"{column.opclass}, {facts['lists']} lists, transform {facts['transform']}: {found}")
    assert all(recall >= wanted - TOLERANCE for wanted, recall in found.items()), found
    assert found[1] == 1
    return found


def create_index(conn: Conn, column: Column, lists: int, transform: int = -1) -> None:
    options = f"lists = {lists}, transform = {transform}"
    conn.execute(
        cast(Any, f"CREATE INDEX items_embedding ON items USING bq ({column.key}) WITH ({options})")
    )


@pytest.mark.parametrize("lists", [1, 40])
@each_column
def test_recall_is_what_was_asked_for(
    conn: Conn, lsa: tuple[Vectors, Vectors], column: Column, lists: int
) -> None:
    base, queries = lsa
    create(conn, base, column=column)
    create_index(conn, column, lists)
    found = assert_promise(conn, column, base, queries)
    for wanted in (0.9, DEFAULT_RECALL, 1):
        conn.execute(cast(Any, f"SET bq.recall = {wanted}"))
        row = conn.execute("SELECT bq_recall('items_embedding', 200)").fetchone()
        assert row is not None and abs(row[0] - found[wanted]) <= 0.03, (wanted, row)


@each_column
def test_promise_holds_beyond_the_first_rows(
    conn: Conn, lsa: tuple[Vectors, Vectors], column: Column
) -> None:
    """Rows lie closer together there, so that smaller errors of their estimates lose them."""
    base, queries = lsa
    create(conn, base, column=column)
    create_index(conn, column, 40)
    keys = distances(column, base, queries)
    found = {k: measure(conn, column, keys, queries, k) for k in (30, 100, 200)}
    assert all(recall >= DEFAULT_RECALL - TOLERANCE for recall in found.values()), found


def test_every_distance_reads_lists_alike_where_rows_have_one_length(
    conn: Conn, rng: np.random.Generator
) -> None:
    """As far as each query needs, where a fixed number would be wrong for most."""
    vectors = clustered_vectors(rng, 8000, 32)
    vectors = vectors[np.any(vectors != 0, axis=1)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    base, queries = vectors[40:], vectors[:40]
    create(conn, base, column=COSINE)
    conn.execute("SET enable_seqscan = off; SET enable_sort = off")
    found: dict[str, Any] = {}
    nlists: dict[str, list[float]] = {}
    for column in (COSINE, L2, IP):
        create_index(conn, column, 200)
        (operator,) = column.operators
        query = f"SELECT id FROM items ORDER BY embedding {operator} %(q)s LIMIT {K}"
        operands = [{"q": column.operand(operator, vector)} for vector in queries]
        found[operator] = [
            {i for (i,) in conn.execute(cast(Any, query), q).fetchall()} for q in operands
        ]
        if conn.info.server_version >= 180000:
            nlists[operator] = [measure_scan(conn, query, q)["Lists Read"] for q in operands]
        conn.execute("DROP INDEX items_embedding")
    for operator in ("<->", "<#>"):
        same = sum(len(a & b) for a, b in zip(found["<=>"], found[operator], strict=True))
        assert same >= 0.98 * K * 40
    for ours in nlists.values():
        assert len(set(ours)) > 1
        assert abs(sum(ours) / sum(nlists["<=>"]) - 1) < 0.05


def test_copies_of_rows_do_not_make_other_queries_slow(conn: Conn) -> None:
    """More rows are equal than tell how far to go, from so near that a margin would be large."""
    if conn.info.server_version < 180000:
        pytest.skip("EXPLAIN counts lists from 18 on")
    base, queries = load_vectors(ROOT / "demo/data/glosses.npz")
    base, queries = base[:5000], queries[:50]
    everything = np.concatenate([base, np.repeat(base[:20], 70, axis=0)])
    (operator,) = HALF_COSINE.operators
    query = f"SELECT id FROM items ORDER BY embedding {operator} %(q)s LIMIT {K}"
    nlists = []
    for vectors in (base, everything):
        conn.execute("DROP TABLE IF EXISTS items")
        create(conn, vectors, column=HALF_COSINE)
        create_index(conn, HALF_COSINE, 25)
        keys = distances(HALF_COSINE, vectors, queries)
        assert measure(conn, HALF_COSINE, keys, queries) >= DEFAULT_RECALL - TOLERANCE
        operands = [{"q": HALF_COSINE.operand(operator, vector)} for vector in queries]
        nlists.append(np.mean([measure_scan(conn, query, q)["Lists Read"] for q in operands]))
    assert nlists[1] < 1.5 * nlists[0]


def test_few_dimensions(conn: Conn, rng: np.random.Generator) -> None:
    """Codes of few dimensions tell rows apart less well, and the promise is kept all the same."""
    vectors = rng.standard_normal((12_100, 8)).astype(np.float32)
    base, queries = vectors[:-100], vectors[-100:]
    create(conn, base, column=COSINE)
    create_index(conn, COSINE, 0)
    assert_promise(conn, COSINE, base, queries)


def test_option_holds_where_no_setting_does(conn: Conn, lsa: tuple[Vectors, Vectors]) -> None:
    base, queries = lsa
    create(conn, base, column=COSINE)
    create_index(conn, COSINE, 40)
    found = {}
    for option in (0.8, 0.99):
        conn.execute(cast(Any, f"ALTER INDEX items_embedding SET (recall = {option})"))
        found[option] = measure(conn, COSINE, distances(COSINE, base, queries), queries)
    assert found[0.99] >= 0.99 - TOLERANCE
    assert 0.8 - TOLERANCE <= found[0.8] < found[0.99]


@each_column
def test_empty_index_that_is_filled(
    conn: Conn, lsa: tuple[Vectors, Vectors], column: Column
) -> None:
    """As migrations do it: made on the empty table, filled by INSERT; then lists by VACUUM."""
    base, queries = lsa
    create(conn, np.empty((0, 256), np.float32), typmod=256, column=column)
    create_index(conn, column, 40)
    insert(conn, base, column=column)
    assert info(conn, "items_embedding")["lists"] == 1
    assert_promise(conn, column, base, queries)
    conn.execute("VACUUM items")
    assert info(conn, "items_embedding")["lists"] == 40
    check(conn, "items_embedding")
    assert_promise(conn, column, base, queries)


@pytest.fixture(scope="module")
def many(lsa: tuple[Vectors, Vectors]) -> tuple[Vectors, Vectors]:
    """12,000 rows: each one of the real ones with five variants of its own."""
    rng = np.random.default_rng(20261121)
    base, queries = lsa
    scale = 0.5 * base.std(axis=0)
    variants = [base + scale * rng.standard_normal(base.shape) for _ in range(5)]
    return np.vstack([base, *variants]).astype(np.float32), queries


@pytest.mark.parametrize("lists", [1, 75])
def test_little_memory_keeps_the_promise(
    conn: Conn, many: tuple[Vectors, Vectors], lists: int
) -> None:
    """More rows than maintenance_work_mem holds: measured on a sample, written by a sort."""
    base, queries = many
    create(conn, base, column=COSINE)
    conn.execute("SET maintenance_work_mem = '1MB'")
    create_index(conn, COSINE, lists)
    check(conn, "items_embedding")
    assert_promise(conn, COSINE, base, queries)


@pytest.mark.parametrize("command", ["CREATE INDEX", "VACUUM FULL", "ALTER TYPE", "SET LOGGED"])
def test_recall_of_rewritten_tables(conn: Conn, lsa: tuple[Vectors, Vectors], command: str) -> None:
    """Rows that the command itself wrote are measured, too, and rows of its transaction."""
    base, queries = lsa
    column = COSINE
    with conn.transaction():
        create(conn, base, column=column)
        if command == "CREATE INDEX":
            create_index(conn, column, 40)
    if command != "CREATE INDEX":
        create_index(conn, column, 40)
    if command == "VACUUM FULL":
        conn.execute("VACUUM FULL items")
    elif command == "ALTER TYPE":
        conn.execute("DROP INDEX items_embedding")
        create_index(conn, COSINE, 40)
        conn.execute("ALTER TABLE items ALTER COLUMN other TYPE bigint")
    elif command == "SET LOGGED":
        conn.execute("ALTER TABLE items SET UNLOGGED")
        conn.execute("ALTER TABLE items SET LOGGED")
    assert_promise(conn, column, base, queries)


def test_rows_that_an_old_snapshot_does_not_see(conn: Conn, lsa: tuple[Vectors, Vectors]) -> None:
    """An index may be made in a transaction that began before its rows came."""
    base, queries = lsa
    create(conn, base[:0], typmod=256, column=COSINE)
    with psycopg.connect(conn.info.dsn) as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1")
        insert(conn, base, column=COSINE)
        create_index(cast(Conn, old), COSINE, 40)
    assert_promise(conn, COSINE, base, queries)


def test_filter_keeps_the_promise(conn: Conn, lsa: tuple[Vectors, Vectors]) -> None:
    """A tenth of the rows: the nearest of them lie far beyond the first lists."""
    base, queries = lsa
    create(conn, base, column=COSINE)
    create_index(conn, COSINE, 40)
    conn.execute("SET enable_seqscan = off")
    operator = COSINE.operators[0]
    nhits = 0
    for vector, keys in zip(queries, distances(COSINE, base, queries), strict=True):
        rows = conn.execute(
            cast(
                Any,
                f"SELECT id FROM items WHERE other = 3 ORDER BY embedding {operator} %s LIMIT {K}",
            ),
            (COSINE.operand(operator, vector),),
        ).fetchall()
        expected = [i for i in np.argsort(keys) if i % 10 == 3][:K]
        assert len(rows) == K
        nhits += len({i for (i,) in rows} & set(expected))
    recall = nhits / (K * len(queries))
    assert recall >= DEFAULT_RECALL - TOLERANCE, recall


def widen(vectors: Vectors) -> Vectors:
    """The same in 768 dimensions, about: blocks that large may be left half read."""
    turn = np.random.default_rng(20261121).standard_normal((vectors.shape[1], 768))
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.tanh(vectors / norms @ turn) * norms, np.float32)


@pytest.fixture(scope="module")
def wide(lsa: tuple[Vectors, Vectors]) -> tuple[Vectors, Vectors]:
    return widen(lsa[0]), widen(lsa[1])


@pytest.mark.parametrize("transform", [0, 1])
@each_column
def test_half_read_blocks_lose_no_more_than_promised(
    conn: Conn, wide: tuple[Vectors, Vectors], column: Column, transform: int
) -> None:
    base, queries = wide
    create(conn, base, column=column)
    create_index(conn, column, 12, transform)
    assert_promise(conn, column, base, queries)


@pytest.mark.parametrize("column", COLUMNS[:3], ids=lambda column: column.opclass)
def test_half_read_blocks_are_looked_at_again(
    conn: Conn, many: tuple[Vectors, Vectors], column: Column
) -> None:
    """Beyond ten rows: rows hardly nearer than the last candidate of the first look."""
    base, queries = (widen(part) for part in many)
    create(conn, base, column=column)
    create_index(conn, column, 40)
    keys = distances(column, base, queries)
    conn.execute("SET bq.recall = 0.95")
    for k in (15, 50, 300):
        found = {}
        # all lists: all blocks, to the end
        for probes in (39, 40):
            conn.execute(cast(Any, f"SET bq.probes = {probes}"))
            found[probes] = measure(conn, column, keys, queries, k)
        # only the last list is missing, and of the rows of passed blocks those far down
        assert found[39] >= found[40] - (0.001 if k < 100 else 0.003), (k, found)


def codes_compared(conn: Conn, queries: Vectors) -> float:
    """In all dimensions, by queries for ten rows."""
    query = "SELECT id FROM items ORDER BY embedding <=> %s LIMIT 10"
    scans = (measure_scan(conn, query, (COSINE.operand("<=>", vector),)) for vector in queries)
    return float(sum(scan["Codes Compared"] for scan in scans))


def test_blocks_are_left_half_read(conn: Conn, wide: tuple[Vectors, Vectors]) -> None:
    if conn.info.server_version < 180000:
        pytest.skip("EXPLAIN tells of scans from PostgreSQL 18 on")
    base, queries = wide
    create(conn, base, column=COSINE)
    create_index(conn, COSINE, 12)
    conn.execute("SET enable_seqscan = off")
    conn.execute("SET bq.recall = 0.9")
    compared = {}
    for probes in (10, 12):
        conn.execute(cast(Any, f"SET bq.probes = {probes}"))
        compared[probes] = codes_compared(conn, queries[:20])
    # all lists: all rows, to the end
    assert compared[12] >= 20 * len(base)
    assert compared[10] < 0.9 * 10 / 12 * compared[12]
