"""Table.search: conditions, forms of the result, the recall that was asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from shared import Conn, needs_pgvector
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

import pybq
from pybq import TableError
from pybq._searching.condition import make_condition
from pybq._tables.bench import bench_table
from pybq._tables.recall import measure_recall

ROOT = Path(__file__).parents[2]
N, DIM = 3000, 32


class Yesterday(sa.TypeDecorator[int]):
    """Stored as one less than what the application says."""

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value - 1


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    cost: Mapped[int] = mapped_column("price")
    day: Mapped[int] = mapped_column(Yesterday)
    title: Mapped[str]
    sold: Mapped[bool]


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int]


items = Item.__table__


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((N, DIM), dtype=np.float32)


@pytest.fixture
def queries(rng: np.random.Generator) -> np.ndarray:
    return np.random.default_rng(rng.integers(2**32)).standard_normal((20, DIM), dtype=np.float32)


@pytest.fixture
def table(conn: Conn, vectors: np.ndarray) -> pybq.Table:
    """Codes of N rows; price 0 to 99, day 0 to 9, every third sold, some titles with a %."""
    columns = {"price": "int", "day": "int", "title": "text", "sold": "bool"}
    table = pybq.Table.create(conn, "items", DIM, store=None, columns=columns, transform=1)
    i = np.arange(N)
    titles = [f"{n}% wool" if n % 50 == 0 else f"title {n}" for n in i]
    table.ingest(i, vectors, {"price": i % 100, "day": i % 10, "title": titles, "sold": i % 3 == 0})
    return table


def by_code(conn: Conn, table: pybq.Table, query: np.ndarray, condition: str, k: int) -> list[Any]:
    """What a sort of all rows that meet a condition gives."""
    with conn.transaction():
        conn.execute("SET LOCAL enable_indexscan = off")
        return conn.execute(
            f"SELECT id, code <=> bq_query(array{query.tolist()}::real[], 1) FROM items"
            f" WHERE {condition} ORDER BY 2, 1 LIMIT {k}".encode()
        ).fetchall()


def assert_same(hits: list[pybq.Hit], expected: list[Any]) -> None:
    assert [hit.id for hit in hits] == [row[0] for row in expected]
    np.testing.assert_allclose([hit.distance for hit in hits], [row[1] for row in expected], 1e-6)


# -- conditions -----------------------------------------------------------------------


def correlated() -> Any:
    return sa.exists().where(Order.item_id == Item.id)


CONDITIONS: dict[str, tuple[Any, dict[str, Any] | None, str]] = {
    "text": ("price < 3", None, "price < 3"),
    "text with parameters": (
        "price < %(most)s AND title <> %(title)s",
        {"most": 3, "title": "5% ' wool"},
        "price < 3",
    ),
    "percent sign": ("title LIKE '%0\\% w%'", None, r"title LIKE '%0\% w%'"),
    "percent sign beside parameters": (
        "price %% 7 = %(rest)s",
        {"rest": 3},
        "price % 7 = 3",
    ),
    "either or": ("price < 3 OR price > 97", None, "(price < 3 OR price > 97)"),
    "comment": ("price < 3 -- cheap", None, "price < 3"),
    "composable": (
        sql.SQL("{} < {}").format(sql.Identifier("price"), sql.Literal(3)),
        None,
        "price < 3",
    ),
    "composable with parameters": (
        sql.Identifier("price") + sql.SQL(" < ") + sql.Placeholder("most"),
        {"most": 3},
        "price < 3",
    ),
    "mapped class": ((Item.cost < 3) | (Item.title == "7% '"), None, "price < 3"),
    "list": (Item.cost.in_([1, 2, 98]), None, "price IN (1, 2, 98)"),
    "empty list": (Item.cost.in_([]), None, "false"),
    "own type": (Item.day == 4, None, "day = 3"),
    "list as bind parameter": (
        Item.cost.in_(sa.bindparam("some", expanding=True)),
        {"some": [1, 2, 98]},
        "price IN (1, 2, 98)",
    ),
    "own type in a list": (Item.day.in_([4, 6]), None, "day IN (3, 5)"),
    "boolean attribute": (Item.sold, None, "sold"),
    "not": (~Item.sold, None, "NOT sold"),
    "modulo": (Item.cost % 7 == 3, None, "price % 7 = 3"),
    "like": (Item.title.contains("%", autoescape=True), None, "strpos(title, '%') > 0"),
    "core table": (items.c.price < 3, None, "price < 3"),
    "alias": (aliased(Item, name="i").cost < 3, None, "price < 3"),
    "alias without a name": (aliased(Item).cost < 3, None, "price < 3"),
    "alias that needs quotes": (items.alias('my "items" %').c.price < 3, None, "price < 3"),
    "bind parameter": (Item.cost < sa.bindparam("most"), {"most": 3}, "price < 3"),
    "sqlalchemy text": (sa.text("price < :most"), {"most": 3}, "price < 3"),
    "correlated subquery": (correlated(), None, "id IN (SELECT item_id FROM orders)"),
    "uncorrelated subquery": (
        Item.cost.in_(sa.select(Order.id)),
        None,
        "price IN (SELECT id FROM orders)",
    ),
    "true": (sa.true(), None, "true"),
}


@pytest.mark.parametrize("index", [False, True], ids=["sort", "index"])
@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_choose_the_rows_that_are_searched(
    conn: Conn, table: pybq.Table, queries: np.ndarray, name: str, index: bool
) -> None:
    where, parameters, condition = CONDITIONS[name]
    conn.execute("CREATE TABLE orders (id int, item_id int)")
    conn.execute("INSERT INTO orders SELECT i, 7 * i FROM generate_series(1, 20) i")
    if index:  # a flat one: its order is that of the codes
        table.create_index()
        conn.execute("SET enable_seqscan = off")
    hits = table.search(queries[0], k=15, where=where, parameters=parameters)
    expected = by_code(conn, table, queries[0], condition, 15)
    assert_same(hits, expected)
    assert len(hits) == (0 if name == "empty list" else 15)


def test_reflected_tables_will_do(conn: Conn, table: pybq.Table, queries: np.ndarray) -> None:
    url = sa.URL.create(
        "postgresql+psycopg",
        username=conn.info.user,
        password=conn.info.password or None,
        database=conn.info.dbname,
        query={"host": conn.info.host, "port": str(conn.info.port)},
    )
    conn.commit()
    engine = sa.create_engine(url)
    # without pybq.sqlalchemy, which may be loaded or not, SQLAlchemy does not know the codes
    with warnings.catch_warnings(action="ignore", category=sa.exc.SAWarning):
        reflected = sa.Table("items", sa.MetaData(), autoload_with=engine)
    engine.dispose()
    hits = table.search(queries[0], where=reflected.c.price < 3)
    assert_same(hits, by_code(conn, table, queries[0], "price < 3", 10))


@needs_pgvector
def test_conditions_hold_for_candidates_and_come_with_everything_else(
    conn: Conn, vectors: np.ndarray, queries: np.ndarray
) -> None:
    """Re-ranked, several queries, further columns: all k rows are there, each meets it."""
    table = pybq.Table.create(
        conn, "items", DIM, columns={"price": "int", "distance": "text"}, codes=True
    )
    table.ingest(np.arange(N), vectors, {"price": np.arange(N) % 100, "distance": ["far"] * N})
    found = table.search(
        queries,
        k=20,
        rerank=N,
        columns=["price", "distance"],
        where="price < %(most)s",
        parameters={"most": 2},
    )
    cheap = np.flatnonzero(np.arange(N) % 100 < 2)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for query, hits in zip(queries, found, strict=True):
        exact = np.sort(1 - unit[cheap] @ query / np.linalg.norm(query))
        np.testing.assert_allclose([hit.distance for hit in hits], exact[:20], atol=2e-3)
        assert {hit["price"] for hit in hits} == {0, 1}
        assert {hit["distance"] for hit in hits} == {"far"}
    alone = table.search(
        queries[3], 20, N, ["price", "distance"], where=Item.cost < 2, parameters=None
    )
    assert alone == found[3]


def test_a_selective_condition_gets_its_rows_from_an_index_of_lists(
    conn: Conn, table: pybq.Table, queries: np.ndarray
) -> None:
    """The scan goes on through further lists; with all lists read at once, order is exact."""
    conn.execute("CREATE INDEX ON items USING bq (code) WITH (lists = 40, probes = 1)")
    conn.execute("SET enable_seqscan = off")
    few = [table.search(query, k=30, where="price = 7") for query in queries]
    assert [len(hits) for hits in few] == [30] * len(queries)
    plan = conn.execute(
        "EXPLAIN SELECT id FROM items WHERE price = 7"
        " ORDER BY code <=> bq_query(%s::real[], 1) LIMIT 30",
        [queries[0].tolist()],
    ).fetchall()
    assert "Index Scan using items_code_idx" in str(plan)

    conn.execute("SET bq.probes = 40")
    for query in queries:
        hits = table.search(query, k=10, where="price = 7")
        expected = by_code(conn, table, query, "price = 7", 10)
        assert_same(hits, expected)


@needs_pgvector
@pytest.mark.parametrize("rerank", [None, 1.5, 4])
def test_rows_come_in_the_order_of_their_distances(
    conn: Conn, vectors: np.ndarray, queries: np.ndarray, rerank: float | None
) -> None:
    """Of all scans: one that goes on through further lists need not find them so."""
    table = pybq.Table.create(conn, "items", DIM, columns={"price": "int"}, transform=1, codes=True)
    table.ingest(range(N), vectors, {"price": np.arange(N) % 10})
    conn.execute("CREATE INDEX ON items USING bq (code) WITH (lists = 40, probes = 1)")
    conn.execute("SET enable_seqscan = off")
    ((values,),) = conn.execute(
        "SELECT coalesce(enumvals, '{on,off}') FROM pg_settings WHERE name = 'bq.iterative_scan'"
    ).fetchall()
    for setting in values:
        conn.execute(sql.SQL("SET bq.iterative_scan = {}").format(setting))
        for where in (None, "price = 7"):
            found = table.search(queries, k=100, rerank=rerank, where=where, probes=2)
            assert setting == "off" or [len(hits) for hits in found] == [100] * len(queries)
            for hits in found:
                distances = [hit.distance for hit in hits]
                assert distances == sorted(distances)
        _, distances = table.search(queries, 200, rerank, where="price < 3", output="numpy")
        assert (np.diff(distances[np.isfinite(distances).all(axis=1)]) >= 0).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"where": 3}, TypeError, "expected where as str, psycopg.sql.Composable or SQLAlchemy"),
        ({"where": Item.cost is None}, TypeError, "SQLAlchemy expression, got bool"),
        ({"where": " "}, ValueError, "expected a condition in where, got an empty text"),
        ({"parameters": {"a": 1}}, ValueError, "expected where with parameters"),
        (
            {"where": "price < %(_bq_a)s", "parameters": {"_bq_a": 1}},
            ValueError,
            "parameter '_bq_a': names with _bq_ are taken",
        ),
        ({"where": Order.id < 3}, ValueError, "on the columns of table 'items', got orders"),
        (
            {"where": (Order.id < 3) & (Item.cost < 3)},
            ValueError,
            "got orders, items; put other tables into a subquery",
        ),
        (
            {"where": sa.table("items", sa.column("price"), schema="other").c.price < 3},
            ValueError,
            "got other.items",
        ),
        (
            {"where": Item.id.in_(sa.select(sa.select(Order.id).cte("o").c.id))},
            ValueError,
            "common table expressions are not supported",
        ),
        ({"where": "nope = 1"}, psycopg.errors.UndefinedColumn, '"nope"'),
        ({"where": "price < %(a)s", "parameters": {}}, psycopg.ProgrammingError, "a"),
        ({"rerank": np.inf}, ValueError, "expected a finite rerank of at least 1, got inf"),
        ({"rerank": np.nan}, ValueError, "expected a finite rerank of at least 1, got nan"),
        ({"query": ["1"] * DIM}, TypeError, "expected a query of float32, got dtype <U1"),
        ({"query": np.ones(DIM) * 1j}, TypeError, "expected a query of float32, got dtype complex"),
        ({"probes": 0}, ValueError, "expected probes between 1 and 65536, got 0"),
        ({"output": "list"}, ValueError, "expected output of hits, numpy, arrow, pandas, polars"),
        ({"output": "numpy", "columns": ["price"]}, ValueError, "ids and distances only"),
        ({"recall": 0.9}, TableError, "keeps codes only: there is nothing to re-rank by"),
        ({"recall": 1.0}, ValueError, "expected recall between 0 and 1, got 1.0"),
    ],
)
def test_bad_arguments_say_what_is_wrong(
    table: pybq.Table, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        table.search(**{"query": np.ones(DIM), **options})


def test_conditions_of_a_schema(conn: Conn, vectors: np.ndarray) -> None:
    conn.execute("CREATE SCHEMA shop")
    here = pybq.Table.create(conn, "items", DIM, store=None, columns={"price": "int"})
    there = pybq.Table.create(
        conn, "items", DIM, store=None, columns={"price": "int"}, schema="shop"
    )
    for table in (here, there):
        table.ingest(range(100), vectors[:100], {"price": range(100)})
    mapped = sa.Table("items", sa.MetaData(), sa.Column("price"), schema="shop")
    for where in (mapped.c.price < 3, Item.cost < 3):
        assert len(there.search(vectors[0], where=where)) == 3
    condition = make_condition(mapped.c.price < 3, None, there._layout, conn)
    assert "shop.items.price" in condition.text


# -- forms of the result --------------------------------------------------------------


def test_arrays(conn: Conn, table: pybq.Table, queries: np.ndarray) -> None:
    hits = table.search(queries, k=7)
    ids, distances = table.search(queries, k=7, output="numpy")
    assert (ids.dtype, distances.dtype) == (np.int64, np.float64)
    assert ids.tolist() == [[hit.id for hit in some] for some in hits]
    assert distances.tolist() == [[hit.distance for hit in some] for some in hits]
    one = table.search(queries[3], k=7, output="numpy")
    np.testing.assert_array_equal(one.ids, ids[3])
    np.testing.assert_array_equal(one.distances, distances[3])


def test_arrays_are_filled_where_rows_are_missing(
    conn: Conn, table: pybq.Table, vectors: np.ndarray, queries: np.ndarray
) -> None:
    ids, distances = table.search(queries, k=4, where="id < 3", output="numpy")
    assert np.sort(ids, axis=1).tolist() == [[-1, 0, 1, 2]] * len(queries)
    assert (ids[:, 3] == -1).all() and np.isinf(distances[:, 3]).all()
    assert np.isfinite(distances[:, :3]).all()
    words = pybq.Table.create(conn, "words", DIM, store=None, id_type="text")
    nothing = words.search(queries, k=4, output="numpy")
    assert nothing.ids.shape == (len(queries), 4) and nothing.ids[0, 0] is None
    words.ingest(["a", "b"], vectors[:2])
    ids, _ = words.search(vectors[0], k=3, output="numpy")
    assert ids.tolist() == ["a", "b", None]


FRAMES: dict[str, Callable[[Any], dict[str, list[Any]]]] = {
    "arrow": lambda frame: frame.to_pydict(),
    "pandas": lambda frame: frame.to_dict("list"),
    "polars": lambda frame: frame.to_dict(as_series=False),
}


@pytest.mark.parametrize("output", FRAMES)
def test_frames(table: pybq.Table, queries: np.ndarray, output: Any) -> None:
    pytest.importorskip({"arrow": "pyarrow"}.get(output, output))
    hits = table.search(queries, k=7, columns=["title", "price"])
    flat = [(i, hit) for i, some in enumerate(hits) for hit in some]
    frame = FRAMES[output](table.search(queries, 7, columns=["title", "price"], output=output))
    assert frame == {
        "query": [i for i, _ in flat],
        "id": [hit.id for _, hit in flat],
        "distance": [hit.distance for _, hit in flat],
        "title": [hit["title"] for _, hit in flat],
        "price": [hit["price"] for _, hit in flat],
    }
    one = FRAMES[output](table.search(queries[2], 7, output=output))
    assert one == {"id": [h.id for h in hits[2]], "distance": [h.distance for h in hits[2]]}
    nothing = FRAMES[output](table.search(queries, where="false", output=output))
    assert nothing == {"query": [], "id": [], "distance": []}


@pytest.mark.parametrize("output", ["arrow", "polars"])
def test_frames_have_the_same_types_whatever_was_found(
    conn: Conn, vectors: np.ndarray, output: Any
) -> None:
    module = pytest.importorskip({"arrow": "pyarrow"}.get(output, output))
    now = datetime(2026, 11, 21, 12, 30)
    values: dict[str, tuple[str, Any]] = {
        "title": ("text", "a title"),
        "letter": ("varchar(3)", "abc"),
        "price": ("int", 3),
        "weight": ("real", 0.5),
        "sold": ("bool", True),
        "picture": ("bytea", b"\0\1"),
        "day": ("date", now.date()),
        "made": ("timestamp", now),
        "owner": ("uuid", UUID(int=5)),
    }
    columns = {name: kind for name, (kind, _) in values.items()}
    table = pybq.Table.create(
        conn, "items", DIM, store=None, id_type="uuid", columns=columns, transform=1
    )
    ids = [UUID(int=i) for i in range(4)]
    filled = {name: [value, None, value, None] for name, (_, value) in values.items()}
    table.ingest(ids, vectors[:4], filled)
    frames = [
        table.search(vectors[0], columns=list(columns), where=where, output=output)
        for where in ("true", "false", "price IS NULL")
    ]
    rows, nothing, nulls = frames
    assert [len(frame) for frame in frames] == [4, 0, 2]
    assert rows.schema == nothing.schema == nulls.schema
    found = FRAMES[output](rows)
    i = found["id"].index(str(ids[2]))
    expected = {name: value for name, (_, value) in values.items()} | {"owner": str(UUID(int=5))}
    assert {name: found[name][i] for name in columns} == expected
    join = getattr(module, "concat_tables", None) or module.concat
    assert len(join(frames)) == 6


@pytest.mark.parametrize(("output", "package"), [("arrow", "pyarrow"), ("polars", "polars")])
def test_a_missing_package_is_named(
    table: pybq.Table, monkeypatch: pytest.MonkeyPatch, output: Any, package: str
) -> None:
    def refuse(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ModuleNotFoundError, match=f"run pip install {package}"):
        table.search(np.ones(DIM), output=output)


def test_nothing_is_imported_unasked() -> None:
    script = "import pybq._tables.table, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()
    assert "psycopg" in loaded
    assert not {"sqlalchemy", "pandas", "polars", "pyarrow", "pgvector"} & set(loaded)


# -- recall ---------------------------------------------------------------------------


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Real vectors (n, dim) and queries; README.md beside them."""
    with np.load(path) as packed:
        base, queries = (
            packed[name].astype(np.float32) * packed[f"{name}_scale"][:, None]
            for name in ("base", "queries")
        )
    return base, queries


def low_fidelity(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Few dimensions, where two bits of each say little: seed 16, shape (n, 16)."""
    rng = np.random.default_rng(16)
    return rng.standard_normal((n, 16)), rng.standard_normal((200, 16))


SETS = {
    "lsa": lambda: load(ROOT / "tests/data/lsa.npz"),
    "glosses": lambda: load(ROOT / "demo/data/glosses.npz"),
    "low fidelity": lambda: low_fidelity(4000),
}


def measure(table: pybq.Table, base: np.ndarray, queries: np.ndarray, **options: Any) -> float:
    """Recall@10 against the exact order; what is as near as the tenth counts."""
    x, q = (v.astype(np.float16).astype(np.float64) for v in (base, queries))
    x, q = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, q))
    similarity = q @ x.T
    tenth = np.partition(similarity, -10, axis=1)[:, -10]
    ids, _ = table.search(queries, k=10, output="numpy", **options)
    found = np.take_along_axis(similarity, ids, axis=1)
    return float((found >= tenth[:, None] - 1e-6).mean())


@needs_pgvector
@pytest.mark.parametrize(
    ("name", "index"),
    [("lsa", False), ("lsa", True), ("glosses", True), ("low fidelity", False)],
)
def test_wanted_recall_is_met(conn: Conn, name: str, index: bool) -> None:
    """On queries that the measurement has not seen; floor: what was wanted, less 0.005 of 200."""
    base, queries = SETS[name]()
    table = pybq.Table.create(conn, "items", base.shape[1], codes=True)
    table.ingest(range(len(base)), base)
    if index:
        table.create_index()
    for wanted in (0.9, 0.98, 0.995):
        rerank, probes = table.calibrate(wanted)
        recall = measure(table, base, queries, recall=wanted)
        print(f"{name}: wanted {wanted}, found {recall:.4f} by rerank {rerank:g}, probes {probes}")
        assert recall >= wanted - 0.005
        # not by taking far more than is needed
        assert measure(table, base, queries, rerank=max(1, rerank / 8), probes=probes) < wanted
        assert rerank <= 48
        assert probes is None or index


@needs_pgvector
def test_lists_are_added_where_the_index_misses_rows(conn: Conn) -> None:
    base, queries = SETS["glosses"]()
    table = pybq.Table.create(conn, "items", base.shape[1], codes=True)
    table.ingest(range(len(base)), base)
    conn.execute("CREATE INDEX ON items USING bq (code) WITH (lists = 100, probes = 2)")
    few = measure(table, base, queries)
    effort = table.calibrate(0.98)
    enough = measure(table, base, queries, recall=0.98)
    print(f"glosses: {few:.4f} with 2 probes, {enough:.4f} with {effort}")
    assert few < 0.95
    assert effort.probes is not None and effort.rerank <= 8
    assert enough >= 0.98 - 0.005
    assert measure(table, base, queries, probes=100) > few
    assert conn.execute("SHOW bq.probes").fetchone() == ("0",)


@needs_pgvector
@pytest.mark.parametrize("name", ["lsa", "glosses"])
def test_default_rerank_finds_98_percent_of_real_vectors(conn: Conn, name: str) -> None:
    base, queries = SETS[name]()
    table = pybq.Table.create(conn, "items", base.shape[1], codes=True)
    table.ingest(range(len(base)), base)
    table.create_index()
    recall = measure(table, base, queries)
    print(f"{name}: recall@10 {recall:.4f} by default")
    assert recall >= 0.98


@needs_pgvector
def test_a_search_finds_what_was_calibrated_and_never_measures(conn: Conn) -> None:
    base, queries = low_fidelity(4000)
    table = pybq.Table.create(conn, "items", 16, codes=True)
    with pytest.raises(TableError, match="no rows to measure recall on"):
        table.calibrate()
    assert table.search(queries[0], recall=0.9) == []
    table.ingest(range(4000), base)
    advice = r"not calibrated for recall 0.9 of the 10 nearest rows; call calibrate\(0.9, k=10\)"
    with pytest.raises(TableError, match=advice):
        table.search(queries[0], recall=0.9)
    effort = table.calibrate(0.9)
    assert effort.rerank > 1 and effort.probes is None
    table.ingest([4000], base[:1])  # does not end it
    expected = table.search(queries, rerank=effort.rerank)
    assert table.search(queries, recall=0.9) == expected
    # other connections find it, for a lower recall, too, but not for a higher one or another k
    with psycopg.connect(conn.info.dsn, password=conn.info.password) as other:
        same = pybq.Table(other, "items")
        assert same.search(queries, recall=0.9) == expected
        assert same.search(queries, recall=0.5) == expected
        for options in ({"recall": 0.91}, {"recall": 0.9, "k": 9}):
            with pytest.raises(TableError, match="not calibrated"):
                same.search(queries[0], **options)
        (kept,) = same.status().calibrations
        assert (kept.recall, kept.k, kept.rerank, kept.probes) == (0.9, 10, effort.rerank, None)
        assert kept.rows == 4000
        more = f"recall: 0.9 of the 10 nearest by rerank {effort.rerank:g}, measured at 4,000 rows"
        assert more in str(same.status())
        # of several, the one for the lowest recall that suffices
        high = same.calibrate(0.99)
        assert high.rerank > effort.rerank
        assert same.search(queries, recall=0.8) == expected
        assert same.search(queries, recall=0.95) == same.search(queries, rerank=high.rerank)
        assert len(same.status().calibrations) == 2
    # from the queries given, which are rows: each finds itself
    assert table.calibrate(0.9, k=1, queries=base[:50]) == (1, None)
    assert table.calibrate(0.9, k=1) != (1, None)
    assert [(one.recall, one.k) for one in table.status().calibrations] == [
        (0.9, 1),
        (0.9, 10),
        (0.99, 10),
    ]


@needs_pgvector
def test_a_search_says_when_the_table_has_outgrown_its_calibration(conn: Conn) -> None:
    base, queries = low_fidelity(4000)
    table = pybq.Table.create(conn, "items", 16, transform=1, codes=True)
    table.ingest(range(1000), base[:1000])
    table.calibrate(0.9)
    table.ingest(range(1000, 1900), base[1000:1900])
    conn.execute("ANALYZE items")
    pybq.Table(conn, "items").search(queries[0], recall=0.9)
    table.ingest(range(1900, 4000), base[1900:])  # estimated, with nothing analyzed since
    with pytest.warns(UserWarning, match=r"calibrated at 1,000 rows; call calibrate\(0.9, k=10\)"):
        pybq.Table(conn, "items").search(queries[0], recall=0.9)
    table.calibrate(0.9)
    pybq.Table(conn, "items").search(queries[0], recall=0.9)


@needs_pgvector
def test_a_calibration_of_another_process_is_seen_within_a_minute(
    conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, queries = low_fidelity(500)
    table = pybq.Table.create(conn, "items", 16, transform=1, codes=True)
    table.ingest(range(500), base)
    first = table.calibrate(0.9).rerank
    keep = "SELECT bq_keep_calibration('items', 'code', 0.9, 10, %s, NULL, 500)"
    conn.execute(keep, [50 * first])
    expected = table.search(queries, rerank=50 * first)
    assert table.search(queries, recall=0.9) == table.search(queries, rerank=first) != expected
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 61)
    assert table.search(queries, recall=0.9) == expected


@needs_pgvector
def test_only_the_owner_calibrates_for_others(conn: Conn) -> None:
    base, queries = low_fidelity(500)
    table = pybq.Table.create(conn, "items", 16, transform=1, codes=True)
    table.ingest(range(500), base)
    conn.execute("CREATE ROLE regress_bq_reader")
    conn.execute("GRANT SELECT ON items TO regress_bq_reader")
    try:
        with conn.transaction(force_rollback=True):
            conn.execute("SET LOCAL ROLE regress_bq_reader")
            reader = pybq.Table(conn, "items")
            with pytest.warns(UserWarning, match="holds for this object only: must be owner of"):
                rerank, _ = reader.calibrate(0.9)
            assert reader.search(queries, recall=0.9) == reader.search(queries, rerank=rerank)
            assert reader.status().calibrations == []
        table.calibrate(0.9)
        with conn.transaction(force_rollback=True):
            conn.execute("SET LOCAL ROLE regress_bq_reader")
            assert len(pybq.Table(conn, "items").search(queries[0], recall=0.9)) == 10
        conn.commit()
        with conn.transaction():  # as on a standby
            conn.execute("SET TRANSACTION READ ONLY")
            with pytest.warns(UserWarning, match="read-only transaction"):
                assert pybq.Table(conn, "items").calibrate(0.5).rerank >= 1
    finally:
        conn.rollback()
        conn.execute("DROP OWNED BY regress_bq_reader")
        conn.execute("DROP ROLE regress_bq_reader")
        conn.commit()


@needs_pgvector
def test_calibration_does_not_outlive_the_codes(conn: Conn) -> None:
    base, queries = low_fidelity(500)
    table = pybq.Table.create(conn, "items", 16, transform=1, codes=True)
    table.ingest(range(500), base)
    table.calibrate(0.9)
    conn.commit()
    with psycopg.connect(conn.info.dsn, password=conn.info.password) as other:
        same = pybq.Table(other, "items")
        same.reencode(9)
        assert same.status().calibrations == []
        with pytest.raises(TableError, match="not calibrated"):
            table.search(queries[0], recall=0.9)
        same.calibrate(0.9)
        other.commit()
        assert table.search(queries, recall=0.9) == same.search(queries, recall=0.9)


@needs_pgvector
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recall": 1.5}, "expected recall between 0 and 1, got 1.5"),
        ({"k": 0}, "expected k >= 1 and sample >= 2, got 0 and 200"),
        ({"sample": 1}, "expected k >= 1 and sample >= 2, got 10 and 1"),
        ({"queries": np.ones((1, 16))}, "expected at least 2 queries, got 1"),
        ({"queries": np.ones((5, 17))}, r"expected a query of shape .*, got \(5, 17\)"),
    ],
)
def test_bad_calibrations_say_what_is_wrong(
    conn: Conn, options: dict[str, Any], message: str
) -> None:
    table = pybq.Table.create(conn, "items", 16, codes=True)
    table.ingest(range(100), low_fidelity(100)[0])
    with pytest.raises(ValueError, match=message):
        table.calibrate(**options)


@needs_pgvector
def test_calibration_leaves_settings_as_they_were(conn: Conn) -> None:
    base, _ = low_fidelity(3000)
    table = pybq.Table.create(conn, "items", 16, codes=True)
    table.ingest(range(len(base)), base)
    table.create_index()
    with conn.transaction():
        conn.execute("SET LOCAL bq.probes = 3")
        table.calibrate(0.9)
        table.search(base[0], probes=7)
        assert conn.execute("SHOW bq.probes").fetchone() == ("3",)
        for setting in ("strict_order", "relaxed_order", "off"):
            conn.execute(sql.SQL("SET LOCAL bq.iterative_scan = {}").format(setting))
            table.search(base[0], where="id < 100")
            assert conn.execute("SHOW bq.iterative_scan").fetchone() == (setting,)
    assert conn.execute("SHOW bq.iterative_scan").fetchone() == ("strict_order",)


@needs_pgvector
@pytest.mark.parametrize("measure_table", [measure_recall, bench_table])
def test_measuring_leaves_settings_as_they_were(conn: Conn, measure_table: Any) -> None:
    table = pybq.Table.create(conn, "items", 16, codes=True)
    table.ingest(range(100), low_fidelity(100)[0])
    for setting in ("off", "on"):
        with conn.transaction():
            conn.execute(f"SET LOCAL enable_indexscan = {setting}".encode())
            measure_table(table, sample=2)
            assert conn.execute("SHOW enable_indexscan").fetchone() == (setting,)
    assert conn.execute("SHOW enable_indexscan").fetchone() == ("on",)


@needs_pgvector
@pytest.mark.parametrize("index", [False, True])
def test_rows_without_vectors_are_passed_over(conn: Conn, index: bool) -> None:
    base, queries = low_fidelity(500)
    table = pybq.Table.create(conn, "items", 16, transform=1, codes=True)
    table.ingest(range(500), base)
    conn.execute("ALTER TABLE items ALTER embedding DROP NOT NULL, ALTER code DROP NOT NULL")
    conn.execute("UPDATE items SET embedding = NULL, code = NULL WHERE id % 5 = 0")
    conn.commit()
    if index:
        table.create_index()
        conn.execute("SET enable_seqscan = off")
        conn.commit()
    for rerank in (None, 4):
        hits = table.search(queries[0], k=500, rerank=rerank)
        assert sorted(hit.id for hit in hits) == [i for i in range(500) if i % 5]
        assert all(np.isfinite(hit.distance) for hit in hits)
    assert table.calibrate(0.9).rerank > 1
    for measured in (measure_recall(table, reranks=[500]), bench_table(table).measured):
        assert measured[-1].recall == 1
    assert table.reencode() == 0


# -- codes that were made anew --------------------------------------------------------


def test_a_table_follows_another_transform(
    conn: Conn, table: pybq.Table, vectors: np.ndarray
) -> None:
    """As after `reencode` by another process, or a first ingest that was rolled back."""
    assert table.search(vectors[5], k=1)[0].id == 5
    with psycopg.connect(conn.info.dsn, password=conn.info.password) as other:
        codes = pybq.Quantizer(DIM, 9).encode(vectors)
        pybq.psycopg.register_bq(other)
        other.cursor().executemany(
            "UPDATE items SET code = %s WHERE id = %s",
            [(pybq.Code(code), i) for i, code in enumerate(codes)],
        )
        other.execute("UPDATE bq_columns SET transform = 9")
    assert table.search(vectors[6], k=1)[0].id == 6
    with conn.transaction():
        assert table.search(vectors[7], k=1)[0].id == 7
