"""Search by words and a vector: what is found is what fusing two lists in Python gives."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa
from pgvector.sqlalchemy import VECTOR
from psycopg import sql
from shared import Conn, exact_distances
from sqlalchemy.dialects.postgresql import psycopg as psycopg_dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

import pybq
from pybq import Hit, TableError
from pybq._catalog.database import BlockingDatabase
from pybq._catalog.database import run as run_now
from pybq._catalog.fulltext import find_document
from pybq._searching.search import Writer, make_search
from pybq.hybrid import hybrid

pytestmark = [pytest.mark.usefixtures("bq_pgvector"), pytest.mark.autocommit]

N, DIM = 600, 16
WORDS = "quick brown fox jumps over lazy dogs while seven wizards box quietly near rivers".split()
TEXTS = ["fox", "quick or wizard", '"lazy dogs" -fox', "rivers boxes", "the"]


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((N, DIM), dtype=np.float32)


@pytest.fixture
def query(rng: np.random.Generator) -> np.ndarray:
    return np.random.default_rng(rng.integers(2**32)).standard_normal(DIM, dtype=np.float32)


@pytest.fixture
def bodies() -> list[str]:
    """Short texts: many that ts_rank cannot tell apart, some of none of the words."""
    rng = np.random.default_rng(20261122)
    return [" ".join(rng.choice(WORDS, rng.integers(0, 7))) for _ in range(N)]


@pytest.fixture
def table(conn: Conn, vectors: np.ndarray, bodies: list[str]) -> pybq.Table:
    columns = {"body": "text", "price": "int"}
    table = pybq.Table.create(conn, "items", DIM, "l2", store="vector", columns=columns)
    table.ingest(range(N), vectors, {"body": bodies, "price": np.arange(N) % 10})
    return table


def said(conn: Conn, text: str, where: str = "true", body: str = "body") -> dict[int, float]:
    """Rows that have the words, and what they are worth, by no index."""
    where = where.replace("%", "%%")
    return dict(
        conn.execute(
            f"SELECT id, ts_rank(to_tsvector('english', {body}), q)"
            f" FROM items, websearch_to_tsquery('english', %s) AS q"
            f" WHERE to_tsvector('english', {body}) @@ q AND {where}".encode(),
            [text],
        ).fetchall()
    )


def fuse(
    near: dict[int, float],
    worth: dict[int, float],
    k: int,
    weights: tuple[float, float] = (1, 1),
    rrf: float = 60,
    depth: int | None = None,
) -> list[tuple[int, float, int | None, int | None]]:
    """The judge: distances of all rows, worth of those that have the words -> the best k."""
    depth = max(50, 4 * k) if depth is None else depth
    lists = (
        sorted(near, key=lambda i: (near[i], i))[:depth],
        sorted(worth, key=lambda i: (-worth[i], near.get(i, math.inf), i))[:depth],
    )
    ranks = [{i: place for place, i in enumerate(each, 1)} for each in lists]
    scores: dict[int, float] = {}
    for weight, places in zip(weights, ranks, strict=True):
        for i, place in places.items():
            scores[i] = scores.get(i, 0) + weight / (rrf + place)
    best = sorted(scores, key=lambda i: (-scores[i], near.get(i, math.inf), i))[:k]
    return [(i, scores[i], ranks[0].get(i), ranks[1].get(i)) for i in best]


def assert_fused(
    hits: list[Hit], expected: list[tuple[int, float, int | None, int | None]]
) -> None:
    assert [(hit.id, hit.vector_rank, hit.text_rank) for hit in hits] == [
        (i, *ranks) for i, _, *ranks in expected
    ]
    scores = np.array([hit.score for hit in hits], np.float64)
    np.testing.assert_allclose(scores, [score for _, score, *_ in expected], 1e-12)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({}, None),
        ({"weights": (0.3, 2), "rrf": 1}, None),
        ({"depth": 7, "rrf": 0}, None),
        ({"weights": (1, 0)}, "price < 3"),
        ({"weights": [0, 1], "depth": 200}, "price <> 3"),
        ({"depth": 1}, "body LIKE '%x%'"),
    ],
)
def test_fused_as_in_python(
    conn: Conn,
    table: pybq.Table,
    vectors: np.ndarray,
    query: np.ndarray,
    options: Any,
    where: str | None,
) -> None:
    table.create_index(recall=1)
    table.create_text_index("body")
    among = {i for (i,) in conn.execute(f"SELECT id FROM items WHERE {where or 'true'}".encode())}
    distances = exact_distances("l2", vectors, query)
    near = {i: distance for i, distance in enumerate(distances.tolist()) if i in among}
    for text in TEXTS:
        worth = said(conn, text, where or "true")
        assert bool(worth) == (text != "the")
        hits = table.search(query, 20, text=text, where=where, columns=["body"], **options)
        assert_fused(hits, fuse(near, worth, 20, **options))
        np.testing.assert_allclose(
            [hit.distance for hit in hits], [distances[hit.id] for hit in hits], 1e-5
        )
        bodies = {row.id: row["body"] for row in table.get([hit.id for hit in hits]) if row}
        assert [hit["body"] for hit in hits] == [bodies[hit.id] for hit in hits]


def test_words_alone(conn: Conn, table: pybq.Table) -> None:
    table.create_text_index("body")
    worth = said(conn, "quick fox")
    hits = table.search(None, 10, text="quick fox")
    assert_fused(hits, fuse({}, worth, 10))
    assert all(math.isnan(hit.distance) and hit.vector_rank is None for hit in hits)
    assert table.search(None, text="the") == []
    one, other = table.search(None, 3, text=["fox", "dog"])
    assert one == table.search(None, 3, text="fox") and other == table.search(None, 3, text="dog")


def test_several_queries_have_each_their_words(table: pybq.Table, vectors: np.ndarray) -> None:
    table.create_text_index("body")
    texts = ["fox", "dogs", "rivers"] * 4  # so many that one statement would answer them
    found = table.search(vectors[:12], 5, text=texts)
    assert found == [
        table.search(vector, 5, text=text) for vector, text in zip(vectors, texts, strict=False)
    ]
    with pytest.raises(ValueError, match="a text for each of 3 queries, got 2"):
        table.search(vectors[:3], text=["a", "b"])
    with pytest.raises(ValueError, match="a text for each of 3 queries, got one"):
        table.search(vectors[:3], text="fox")


def test_both_indexes_are_used(conn: Conn, table: pybq.Table, query: np.ndarray) -> None:
    table.create_index()
    table.create_text_index("body")
    table.create_text_index(["body"], language="english")  # is there
    names = conn.execute(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'items'::regclass"
    ).fetchall()
    assert sorted(names) == [("items_embedding_idx",), ("items_pkey",), ("items_to_tsvector_idx",)]
    document = run_now(find_document(BlockingDatabase(conn), table._layout, (), None))
    assert document.columns == ("body",)
    conn.execute("SET enable_seqscan = off")
    for where in (None, "price < 5"):
        search = make_search(table._layout, conn, query, 5, text="fox", where=where)
        fusion = replace(search.shape.fusion, document=document)  # type: ignore[type-var]
        search = replace(search, shape=replace(search.shape, fusion=fusion))
        statement = Writer(table._layout, conn).write(search, None)
        (parameters,) = statement.parameters
        conn.execute("SET plan_cache_mode = force_generic_plan")
        plan = str(conn.execute(f"EXPLAIN {statement.text}".encode(), parameters).fetchall())
        assert "items_embedding_idx" in plan and "items_to_tsvector_idx" in plan


def test_order_is_by_distance_where_the_index_is_relaxed(
    conn: Conn, vectors: np.ndarray, bodies: list[str], query: np.ndarray
) -> None:
    """Conditions make a scan come with rows that are late; ranks are those of the distance."""
    table = pybq.Table.create(conn, "items", DIM, "l2", store="vector", columns={"body": "text"})
    table.ingest(range(N), vectors, {"body": bodies})
    conn.execute(
        "CREATE INDEX ON items USING bq (embedding vector_l2_ops) WITH (lists = 20, probes = 1)"
    )
    conn.execute("SET enable_seqscan = off")
    conn.execute("SET bq.iterative_scan = relaxed_order")
    nearest = sql.SQL("SELECT embedding <-> {0} FROM items ORDER BY embedding <-> {0} LIMIT 400")
    found = conn.execute(nearest.format(str(query.tolist()))).fetchall()
    assert found != sorted(found)  # there is something to put right
    hits = table.search(query, 400, text="the", text_column="body", where="body <> '-'", depth=400)
    assert len(hits) > 100
    assert [hit.vector_rank for hit in hits] == list(range(1, len(hits) + 1))
    assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)


@pytest.mark.parametrize("store", ["halfvec", None])
def test_tables_of_codes(
    conn: Conn, vectors: np.ndarray, bodies: list[str], query: np.ndarray, store: Any
) -> None:
    """Distances as a search gives them, whichever list a row is from."""
    table = pybq.Table.create(
        conn, "items", DIM, store=store, codes=True, columns={"body": "text"}, transform=1
    )
    assert table.search(query, text="fox", text_column="body") == []
    table.ingest(range(N), vectors, {"body": bodies})
    table.create_text_index("body")
    near = {hit.id: hit.distance for hit in table.search(query, N, rerank=4)}
    assert len(near) == N
    depth = N if store else 80  # of candidates by code not all are among the nearest
    hits = table.search(query, 20, text="fox", depth=depth)
    assert_fused(hits, fuse(near, said(conn, "fox"), 20, depth=depth))
    assert all(hit.distance == pytest.approx(near[hit.id]) for hit in hits)


def test_rows_without_a_vector_are_found_by_words(conn: Conn, query: np.ndarray) -> None:
    conn.execute(f"CREATE TABLE items (id int PRIMARY KEY, v vector({DIM}), body text)".encode())
    zero = str([0.0] * DIM)  # which has no cosine distance
    conn.execute(
        "INSERT INTO items VALUES (1, NULL, 'fox'), (2, %s, 'a fox'), (3, %s, 'a bird')",
        [zero, str(query.tolist())],
    )
    hits = pybq.Table(conn, "items").search(query, text="fox", text_column="body")
    assert [(hit.id, hit.vector_rank) for hit in hits] == [(3, 1), (2, None), (1, None)]
    assert math.isnan(hits[1].distance) and math.isnan(hits[2].distance)


@pytest.mark.parametrize("key", ["PRIMARY KEY (a, b)", "CHECK (true)"])
def test_keys_of_any_kind(conn: Conn, query: np.ndarray, key: str) -> None:
    """Of several columns, or none: then a row is known by its place."""
    conn.execute(f"CREATE TABLE t (a int, b text, v vector({DIM}), body text, {key})".encode())
    for i in range(4):
        vector = str((query + i).tolist())
        conn.execute("INSERT INTO t VALUES (%s, %s, %s, %s)", [i, f"b{i}", vector, f"fox {i}"])
    table = pybq.Table(conn, "t")
    hits = table.search(query, 2, text="3 fox", text_column="body", columns=["body"], rrf=1)
    assert [hit["body"] for hit in hits] == ["fox 3", "fox 0"]
    if "PRIMARY" in key:
        assert [hit.id for hit in hits] == [(3, "b3"), (0, "b0")]


def test_names_of_any_kind(conn: Conn, query: np.ndarray) -> None:
    """Columns named as ours are, with signs that mean something to SQL and psycopg."""
    odd = 'bo%dy "x" %s {0} \'; --'
    columns = {odd: "text", "rank": "text", "distance": "text", "place": "text", "bq_key_0": "text",
               "bq_distance": "text", "said": "text", "near": "text", "found": "text"}  # fmt: skip
    table = pybq.Table.create(conn, 'it"e%sms', DIM, columns=columns)
    values = {name: [f"fox {name}", "bird"] for name in columns}
    table.ingest([1, 2], [query, query + 1], values)
    before = table.search(query, text="fox", text_column=odd, columns=list(columns))
    table.create_text_index(odd)
    hits = table.search(query, text="fox", columns=list(columns), where="id < %(n)s",
                        parameters={"n": 9})  # fmt: skip
    assert hits == before
    assert hits[0].columns == {name: f"fox {name}" for name in columns}
    assert [(hit.id, hit.text_rank) for hit in hits] == [(1, 1), (2, None)]


def test_partitions_are_searched_as_one_table(
    conn: Conn, vectors: np.ndarray, bodies: list[str], query: np.ndarray
) -> None:
    conn.execute(
        f"CREATE TABLE items (id int PRIMARY KEY, body text, embedding vector({DIM}) NOT NULL)"
        " PARTITION BY RANGE (id); CREATE TABLE items_1 PARTITION OF items FOR VALUES FROM (0) TO"
        " (300); CREATE TABLE items_2 PARTITION OF items DEFAULT".encode()
    )
    table = pybq.Table(conn, "items", metric="l2")
    table.ingest(range(N), vectors, {"body": bodies})
    table.create_index(recall=1)
    table.create_text_index("body")
    near = dict(enumerate(exact_distances("l2", vectors, query).tolist()))
    hits = table.search(query, 20, text="fox")
    assert_fused(hits, fuse(near, said(conn, "fox"), 20))


# -- which text ---------------------------------------------------------------------------


def test_the_index_says_which_text(conn: Conn, table: pybq.Table, query: np.ndarray) -> None:
    with pytest.raises(TableError, match="'items' has no index on text; name a text_column, or"):
        table.search(query, text="fox")
    conn.execute("CREATE INDEX ON items USING gin (to_tsvector('simple', lower(body) || ' cat'))")
    with pytest.raises(TableError, match="'items' has no index on text in english"):
        table.search(query, text="fox", language="english")
    assert len(table.search(None, 50, text="cat")) == 50
    assert table.search(None, text="the") == []
    conn.execute("ALTER TABLE items ADD words tsvector")
    conn.execute("UPDATE items SET words = to_tsvector('german', 'und ' || body)")
    table = pybq.Table(conn, "items")
    table.create_text_index("words")
    table.create_text_index("words")
    assert conn.execute("SELECT count(*) FROM pg_indexes WHERE tablename = 'items'").fetchone() == (
        3,
    )
    with pytest.raises(TableError, match="indexes on text of body and words; say which one with"):
        table.search(query, text="fox")
    assert len(table.search(None, text="cat", text_column="body")) == 10
    with pytest.raises(TableError, match="'words' of table 'items' is not generated by one config"):
        table.search(None, text="fox", text_column="words")
    assert len(table.search(None, text="fox", text_column="words", language="german")) == 10


def test_a_generated_column_says_its_language(conn: Conn, table: pybq.Table) -> None:
    conn.execute(
        "ALTER TABLE items ADD words tsvector"
        " GENERATED ALWAYS AS (setweight(to_tsvector('german', coalesce(body, '')), 'A')) STORED"
    )
    conn.execute("INSERT INTO items SELECT 9999, embedding, 'Die Häuser' FROM items WHERE id = 1")
    table = pybq.Table(conn, "items")
    assert [hit.id for hit in table.search(None, text="Haus", text_column="words")] == [9999]
    table.create_text_index("words")
    assert [hit.id for hit in table.search(None, text="Haus")] == [9999]
    assert table.search(None, text="Häuser", language="simple") == []


def test_several_columns_are_one_text(conn: Conn, table: pybq.Table) -> None:
    conn.execute("ALTER TABLE items ADD title varchar(20)")
    conn.execute("UPDATE items SET title = 'apple', body = NULL WHERE id = 7")
    table = pybq.Table(conn, "items")
    both = ["title", "body"]
    assert [hit.id for hit in table.search(None, text="apples", text_column=both)] == [7]
    table.create_text_index(both)
    assert [hit.id for hit in table.search(None, text="apples")] == [7]
    assert table.search(None, text="fox") == table.search(None, text="fox", text_column="body")


def test_functions_of_others_are_not_run(conn: Conn, table: pybq.Table) -> None:
    """Whoever searches would run them with all that they may do."""
    conn.execute(
        "CREATE FUNCTION mine(text) RETURNS tsvector IMMUTABLE LANGUAGE sql"
        " AS $$ SELECT to_tsvector('english', $1) $$"
    )
    conn.execute("CREATE INDEX ON items USING gin (mine(body))")
    with pytest.raises(TableError, match="has no index on text"):
        table.search(None, text="fox")
    assert len(table.search(None, text="fox", text_column="body")) == 10


def test_indexes_that_do_not_hold_all_rows_are_passed_over(conn: Conn, table: pybq.Table) -> None:
    conn.execute("CREATE INDEX ON items USING gin (to_tsvector('english', body)) WHERE price < 5")
    with pytest.raises(TableError, match="has no index on text"):
        table.search(None, text="fox")


def test_texts_are_data(conn: Conn, table: pybq.Table) -> None:
    table.create_text_index("body")
    for text in ["'; DROP TABLE items; --", "%s %(x)s {}", "!!&|():*", '"', "\\", "é" * 10_000]:
        assert table.search(None, text=text) == []
    assert table.count() == N


# -- forms, and what is wrong -------------------------------------------------------------


def test_frames_have_scores(table: pybq.Table, query: np.ndarray) -> None:
    polars = pytest.importorskip("polars")
    table.create_text_index("body")
    hits = table.search(query, 5, text="fox", columns=["price"])
    frame = table.search(query, 5, text="fox", columns=["price"], output="polars")
    assert frame.columns == ["id", "distance", "price", "score", "vector_rank", "text_rank"]
    assert frame.rows() == [
        (h.id, h.distance, h["price"], h.score, h.vector_rank, h.text_rank) for h in hits
    ]
    empty = table.search(query, 5, text="fox", columns=["price"], output="polars", where="false")
    assert empty.schema == frame.schema and isinstance(frame["score"].dtype, polars.Float64)
    arrow = table.search(None, 5, text="fox", output="arrow")
    assert arrow.to_pydict()["vector_rank"] == [None] * 5


def test_both_kinds_of_table_do_the_same(table: pybq.Table, query: np.ndarray) -> None:
    async def main() -> Any:
        dsn = table.connection.info.dsn
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            same = await pybq.AsyncTable.open(conn, "items")
            await same.create_text_index("body")
            return await same.search(query, 5, text="fox", weights=(1, 2))

    hits = asyncio.run(main())
    assert hits == table.search(query, 5, text="fox", weights=(1, 2)) and len(hits) == 5


def test_settings_and_transactions_are_as_they_were(
    conn: Conn, table: pybq.Table, query: np.ndarray
) -> None:
    table.create_index()
    table.create_text_index("body")
    conn.autocommit = False
    hits = table.search(query, text="fox", where="price < 5", recall=0.9)
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert len(hits) == 10 and all(hit.score for hit in hits)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"text": " "}, ValueError, "expected words in text, got an empty text"),
        ({"text": "a\0b"}, ValueError, "text: expected text without NUL"),
        ({"text": 7}, TypeError, "expected text of words, got int"),
        ({"text": [7]}, TypeError, "expected text of words, got int"),
        ({"text_column": "body"}, ValueError, "expected text with what says how"),
        ({"depth": 0}, ValueError, "expected text with what says how"),
        ({"text": "a", "text_column": "embedding"}, ValueError, "no column 'embedding' in table"),
        ({"text": "a", "text_column": "no"}, ValueError, "no column 'no' in table 'items' to"),
        ({"text": "a", "text_column": "price"}, ValueError, "got 'price' of type int4"),
        ({"text": "a", "text_column": 3}, TypeError, "expected text_column as a name, or several"),
        ({"text": "a", "weights": (1,)}, ValueError, "expected weights as those of vectors and"),
        ({"text": "a", "weights": (0, 0)}, ValueError, "expected weights as those of vectors and"),
        ({"text": "a", "weights": (1, -1)}, ValueError, "not negative"),
        ({"text": "a", "weights": (1, math.nan)}, ValueError, "not negative"),
        ({"text": "a", "rrf": -1}, ValueError, "expected rrf as a finite number of at least 0"),
        ({"text": "a", "depth": 0}, ValueError, "expected depth of at least 1, got 0"),
        ({"text": "a", "output": "numpy"}, ValueError, "for scores choose hits or a frame"),
    ],
)
def test_what_is_wrong_with_arguments(
    table: pybq.Table, query: np.ndarray, options: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        table.search(query, **options)


def test_what_else_is_wrong(conn: Conn, table: pybq.Table, query: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a query, or text, got neither"):
        table.search(None)
    with pytest.raises(psycopg.errors.UndefinedObject, match='"klingon" does not exist'):
        table.search(query, text="fox", text_column="body", language="klingon")
    with pytest.raises(psycopg.errors.UndefinedObject, match='"klingon" does not exist'):
        table.create_text_index("body", language="klingon")
    with pytest.raises(ValueError, match="no column 'no' in table 'items' to search for words"):
        table.create_text_index("no")
    with pytest.raises(ValueError, match="expected the name of a text column, got none"):
        table.create_text_index([])
    named = pybq.Table.create(conn, "named", DIM, columns={"score": "text"})
    with pytest.raises(ValueError, match="column 'score' of a frame is its own; choose hits"):
        named.search(query, text="a", text_column="score", columns=["score"], output="pandas")


def test_rows_on_other_servers_are_refused(conn: Conn, query: np.ndarray) -> None:
    """By its layout: foreign tables need no server to be looked at."""
    table = pybq.Table.create(conn, "items", DIM, columns={"body": "text"})
    for where in ("sharded", "distributed"):
        layout = replace(table._layout, **{where: True})  # type: ignore[arg-type]
        with pytest.raises(TableError, match="has rows on other servers, where words are not"):
            make_search(layout, conn, query, text="fox")


def test_an_index_may_be_in_any_schema(conn: Conn, query: np.ndarray) -> None:
    conn.execute("CREATE SCHEMA shop")
    conn.execute("CREATE TEXT SEARCH CONFIGURATION shop.mine (COPY = german)")
    table = pybq.Table.create(conn, "items", DIM, schema="shop", columns={"body": "text"})
    table.ingest([1], [query], {"body": ["Häuser"]})
    table.create_text_index("body", language="shop.mine")
    assert [hit.id for hit in table.search(None, text="Haus")] == [1]
    conn.execute(sql.SQL("SET search_path = shop, public"))
    assert [hit.id for hit in table.search(None, text="Haus", language="mine")] == [1]


# -- SQLAlchemy, and the page -------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    number: Mapped[int] = mapped_column("id", primary_key=True)
    body: Mapped[str]
    price: Mapped[int]
    embedding: Mapped[Any] = mapped_column(VECTOR(DIM))


@pytest.fixture
def session(conn: Conn) -> Iterator[Session]:
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: conn.__class__.connect(
        conn.info.dsn, password=conn.info.password))  # fmt: skip
    with Session(engine) as session:
        yield session
    engine.dispose()


@pytest.mark.parametrize("metric", ["l2", "cosine", "inner_product"])
def test_sqlalchemy_selects_the_same(
    table: pybq.Table, session: Session, query: np.ndarray, vectors: np.ndarray, metric: Any
) -> None:
    near = dict(enumerate(exact_distances(metric, vectors, query).tolist()))
    for text, options in zip(
        TEXTS, [{}, {"weights": (0.3, 2), "rrf": 1}, {"depth": 7}], strict=False
    ):
        worth = said(table.connection, text)
        statement = hybrid(Item, vector=Item.embedding, query=query, text=Item.body, words=text,
                           k=20, metric=metric, **options)  # fmt: skip
        rows = session.execute(statement).all()
        expected = fuse(near, worth, 20, **options)
        assert [(r[0].number, *r[2:]) for r in rows] == [(i, *ranks) for i, _, *ranks in expected]
        np.testing.assert_allclose([r.score for r in rows], [e[1] for e in expected], 1e-12)
        assert [item.number for item in session.scalars(statement)] == [e[0] for e in expected]


def test_sqlalchemy_takes_conditions_tables_and_parameters(
    conn: Conn, table: pybq.Table, session: Session, query: np.ndarray, vectors: np.ndarray
) -> None:
    among = {
        i: d for i, d in enumerate(exact_distances("l2", vectors, query).tolist()) if i % 10 < 3
    }
    expected = fuse(among, said(conn, "fox", "price < 3"), 10)
    items = Item.__table__
    assert isinstance(items, sa.Table)
    statement = hybrid(
        items,
        vector=items.c.embedding,
        query=sa.bindparam("query"),
        text=sa.func.to_tsvector("english", items.c.body),
        words=sa.bindparam("words"),
        metric="l2",
        where=items.c.price < 3,
    )
    rows = session.execute(statement, {"query": query, "words": "fox"}).all()
    assert [(r.id, r.vector_rank, r.text_rank) for r in rows] == [(i, *r) for i, _, *r in expected]
    other = aliased(Item)
    table = pybq.Table(conn, "items", metric="l2")
    hits = table.search(query, text="fox", text_column="body", where=other.price < 3)
    assert_fused(hits, expected)
    statement = hybrid(other, vector=other.embedding, query=query, text=other.body, words="fox",
                       metric="l2", where=other.price < 3)  # fmt: skip
    assert [item.number for item in session.scalars(statement)] == [e[0] for e in expected]


def test_sqlalchemy_uses_both_indexes(conn: Conn, table: pybq.Table, query: np.ndarray) -> None:
    table.create_index()
    table.create_text_index("body")
    statement = hybrid(Item, vector=Item.embedding, query=query, text=Item.body, words="fox",
                       metric="l2", where=Item.price < 5)  # fmt: skip
    compiled = statement.compile(
        dialect=psycopg_dialect.dialect(),  # type: ignore[no-untyped-call]
        compile_kwargs={"render_postcompile": True},
    )
    parameters = {
        name: str(value.tolist()) if isinstance(value, np.ndarray) else value
        for name, value in compiled.params.items()
    }
    conn.execute("SET enable_seqscan = off")
    conn.execute("SET plan_cache_mode = force_generic_plan")
    plan = str(conn.execute(f"EXPLAIN {compiled}".encode(), parameters).fetchall())
    assert "items_embedding_idx" in plan and "items_to_tsvector_idx" in plan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": " "}, "expected words in text, got an empty text"),
        ({"k": 0}, "expected k of at least 1, got 0"),
        ({"depth": 0}, "expected depth of at least 1, got 0"),
        ({"weights": (1, -1)}, "expected weights as those of vectors and words, not negative"),
        ({"weights": (0, 0)}, "expected weights as those of vectors and words"),
        ({"rrf": math.inf}, "expected rrf as a finite number"),
        ({"metric": "hamming"}, "hamming"),
        ({"entity": sa.Table("keyless", sa.MetaData(), sa.Column("a", sa.Integer))}, "primary key"),
    ],
)
def test_sqlalchemy_checks_arguments(options: Any, message: str) -> None:
    arguments = {"entity": Item, "vector": Item.embedding, "query": [1.0] * DIM, "text": Item.body,
                 "words": "fox", **options}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        hybrid(arguments.pop("entity"), **arguments)
