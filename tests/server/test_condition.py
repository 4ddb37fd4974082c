"""Conditions choose the rows that are searched, whatever form they have; the forms: tests/unit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from databases import Databases
from indexlib import connect_to_read
from psycopg import sql
from shared import SEED, Conn, needs_pgvector
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

import pybq
from pybq._searching.condition import make_condition

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


def create_table(conn: Conn, vectors: np.ndarray) -> pybq.Table:
    """Codes of N rows; price 0 to 99, day 0 to 9, every third sold, some titles with a %."""
    columns = {"price": "int", "day": "int", "title": "text", "sold": "bool"}
    table = pybq.Table.create(conn, "items", DIM, store=None, columns=columns, transform=1)
    i = np.arange(N)
    titles = [f"{n}% wool" if n % 50 == 0 else f"title {n}" for n in i]
    table.ingest(i, vectors, {"price": i % 100, "day": i % 10, "title": titles, "sold": i % 3 == 0})
    return table


@pytest.fixture(scope="module")
def database(databases_of_tests: Databases) -> Iterator[str]:
    """That of a table with a flat index, whose order is that of the codes, and of orders."""

    def fill(conn: Conn) -> None:
        rng = np.random.default_rng(SEED)
        create_table(conn, rng.standard_normal((N, DIM), dtype=np.float32)).create_index()
        conn.execute("CREATE TABLE orders (id int, item_id int)")
        conn.execute("INSERT INTO orders SELECT i, 7 * i FROM generate_series(1, 20) i")

    with databases_of_tests.provide_filled(fill) as dsn:
        yield dsn


@pytest.fixture
def reader(database: str) -> Iterator[Conn]:
    """A connection to that database; its tables are not to be written to."""
    with connect_to_read(database) as conn:
        yield conn


def by_code(conn: Conn, query: np.ndarray, condition: str, k: int) -> list[Any]:
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
    reader: Conn, queries: np.ndarray, name: str, index: bool
) -> None:
    where, parameters, condition = CONDITIONS[name]
    reader.execute(f"SET {'enable_seqscan' if index else 'enable_indexscan'} = off")
    table = pybq.Table.open(reader, "items")
    hits = table.search(queries[0], k=15, where=where, parameters=parameters)
    expected = by_code(reader, queries[0], condition, 15)
    assert_same(hits, expected)
    assert len(hits) == (0 if name == "empty list" else 15)


def test_reflected_tables_will_do(reader: Conn, queries: np.ndarray) -> None:
    url = sa.URL.create(
        "postgresql+psycopg",
        username=reader.info.user,
        password=reader.info.password or None,
        database=reader.info.dbname,
        query={"host": reader.info.host, "port": str(reader.info.port)},
    )
    engine = sa.create_engine(url)
    # without pybq.sqlalchemy, which may be loaded or not, SQLAlchemy does not know the codes
    with warnings.catch_warnings(action="ignore", category=sa.exc.SAWarning):
        reflected = sa.Table("items", sa.MetaData(), autoload_with=engine)
    engine.dispose()
    hits = pybq.Table.open(reader, "items").search(queries[0], where=reflected.c.price < 3)
    assert_same(hits, by_code(reader, queries[0], "price < 3", 10))


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
        queries[3],
        20,
        rerank=N,
        columns=["price", "distance"],
        where=Item.cost < 2,
        parameters=None,
    )
    assert alone == found[3]


def test_a_selective_condition_gets_its_rows_from_an_index_of_lists(
    conn: Conn, vectors: np.ndarray, queries: np.ndarray
) -> None:
    """The scan goes on through further lists; with all lists read at once, order is exact."""
    table = create_table(conn, vectors)
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
        expected = by_code(conn, query, "price = 7", 10)
        assert_same(hits, expected)


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
