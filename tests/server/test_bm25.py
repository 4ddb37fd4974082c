"""Words ranked by BM25, where the extension pg_textsearch is: found and fused as in plain Python.

`make test-bm25 PG_CONFIG=...` runs this on a server that has it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from databases import need_library
from shared import SEED, Conn

import pybq
from pybq import TableError

N, DIM = 3000, 16
WORDS = "quick brown fox jumps over lazy dogs while seven wizards box quietly near rivers".split()
DEPTH = 50
ODD = 'The "50%" Body\'s'


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[pybq.Server]:
    need_library(request.config, "pg_textsearch", "test-bm25")
    settings = {"shared_preload_libraries": "pg_textsearch"}
    with pybq.serve(postgres=request.config.getoption("postgres"), settings=settings) as server:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute('CREATE SCHEMA "Words"')
            conn.execute('CREATE EXTENSION pg_textsearch SCHEMA "Words"')
        yield server


@pytest.fixture
def conn(server: pybq.Server) -> Iterator[Conn]:
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        yield conn
        conn.execute("DROP TABLE IF EXISTS items")


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal((N, DIM), dtype=np.float32)


@pytest.fixture
def table(conn: Conn, vectors: np.ndarray) -> pybq.Table:
    """Texts of words that are more and less rare."""
    rng = np.random.default_rng(SEED)
    rare = 1 / np.arange(1, len(WORDS) + 1)
    bodies = [
        " ".join(rng.choice(WORDS, rng.integers(1, 9), p=rare / rare.sum())) for _ in range(N)
    ]
    columns = {ODD: "text", "price": "int"}
    table = pybq.Table.create(conn, "items", DIM, "l2", store="vector", columns=columns)
    table.ingest(range(N), vectors, {ODD: bodies, "price": np.arange(N) % 10})
    return table


def score(conn: Conn, words: str, where: str = "true") -> dict[int, float]:
    """What each row with one of the words is worth, by the formula.

    S. Robertson, H. Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009;
    k1 = 1.2, b = 0.75, and the inverse document frequency of Lucene, which is never negative.
    """
    rows = conn.execute(
        f"SELECT id, array(SELECT lexeme || '' FROM unnest(to_tsvector('english', {{0}}))),"
        f" array(SELECT cardinality(positions) FROM unnest(to_tsvector('english', {{0}}))), {where}"
        " FROM items".format('"' + ODD.replace('"', '""') + '"').encode()
    ).fetchall()
    lexemes = conn.execute("SELECT tsvector_to_array(to_tsvector('english', %s))", [words])
    asked = lexemes.fetchone()[0]  # type: ignore[index]
    texts = {key: dict(zip(names, counts, strict=True)) for key, names, counts, _ in rows}
    mean = sum(sum(text.values()) for text in texts.values()) / len(texts)
    scores = dict.fromkeys(texts, 0.0)
    for lexeme in asked:
        n = sum(lexeme in text for text in texts.values())
        idf = np.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
        for key, text in texts.items():
            count = text.get(lexeme, 0)
            length = 1 - 0.75 + 0.75 * sum(text.values()) / mean
            scores[key] += idf * count * 2.2 / (count + 1.2 * length)
    return {key: scores[key] for key, *_, kept in rows if kept and scores[key] > 0}


@pytest.mark.parametrize("words", ["fox", "rivers or seven wizards", "quietly near the box"])
@pytest.mark.parametrize("where", ["true", "price = 3"])
def test_words_come_in_the_order_of_bm25(
    conn: Conn, table: pybq.Table, words: str, where: str
) -> None:
    table.create_text_index(ODD, method="bm25")
    hits = table.search(None, k=DEPTH, text=words, where=where)
    scores = score(conn, words, where)
    best = sorted(scores.values(), reverse=True)[:DEPTH]
    np.testing.assert_allclose([scores[hit.id] for hit in hits], best, rtol=1e-5)
    assert [hit.text_rank for hit in hits] == list(range(1, len(best) + 1))


def test_fused_as_in_python(conn: Conn, table: pybq.Table, vectors: np.ndarray) -> None:
    """Rows whose words are worth the same come in the order of their distance."""
    table.create_text_index(ODD, method="bm25")
    query = vectors[42] + np.float32(0.1)
    distances = dict(
        conn.execute(
            "SELECT id, embedding <-> %s::vector FROM items", [str(query.tolist())]
        ).fetchall()
    )
    said = score_by_index(conn, "seven wizards")
    near = sorted(distances, key=lambda key: distances[key])
    by_words = sorted(said, key=lambda key: (-said[key], distances[key]))
    scores = dict.fromkeys(distances, 0.0)
    for ranked in (near, by_words):
        for place, key in enumerate(ranked, 1):
            scores[key] += 1 / (60 + place)
    best = sorted(scores, key=lambda key: (-scores[key], distances[key]))[:20]
    hits = table.search(query, k=20, text="seven wizards", depth=N)
    assert [hit.id for hit in hits] == best
    assert [hit.score for hit in hits] == pytest.approx([scores[key] for key in best])


def score_by_index(conn: Conn, words: str) -> dict[int, float]:
    (index,) = conn.execute(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " JOIN pg_am m ON m.oid = c.relam"
        " WHERE i.indrelid = 'items'::regclass AND m.amname = 'bm25'"
    ).fetchone()  # type: ignore[misc]
    column = '"' + ODD.replace('"', '""').replace("%", "%%") + '"'
    found = conn.execute(
        f'SELECT id, -({column} OPERATOR("Words".<@>) "Words".to_bm25query(%s, %s))'
        " FROM items".encode(),
        [words, index],
    ).fetchall()
    return {key: score for key, score in found if score > 0}


def test_indexes_answer(table: pybq.Table, conn: Conn, vectors: np.ndarray) -> None:
    table.create_index()
    table.create_text_index(ODD, method="bm25")
    names = [
        name
        for (name,) in conn.execute(
            "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " JOIN pg_am m ON m.oid = c.relam"
            " WHERE i.indrelid = 'items'::regclass AND m.amname IN ('bm25', 'bq')"
        ).fetchall()
    ]
    assert len(names) == 2
    before = scans(conn, names)
    table.search(vectors[42], k=10, text="wizards")
    after = scans(conn, names)
    assert {name: after[name] - before[name] for name in names} == dict.fromkeys(names, 1)


def scans(conn: Conn, names: list[str]) -> dict[str, int]:
    conn.execute("SELECT pg_stat_force_next_flush()")
    found = conn.execute(
        "SELECT indexrelname, idx_scan FROM pg_stat_user_indexes WHERE indexrelname = ANY (%s)",
        [names],
    ).fetchall()
    return dict(found)


def test_bm25_comes_before_gin_unless_the_language_is_another(
    conn: Conn, table: pybq.Table
) -> None:
    table.create_text_index(ODD, method="bm25", language="simple")
    table.create_text_index(ODD, method="bm25", language="simple")  # is there
    table.create_text_index(ODD, language="english")
    indexes = "SELECT count(*) FROM pg_index WHERE indrelid = 'items'::regclass"
    assert conn.execute(indexes).fetchone() == (3,)  # with the key's
    # "jumped" is a word of no text; in English it is what "jumps" is
    assert table.search(None, text="jumped", text_column=ODD) == []
    assert len(table.search(None, text="jumped", text_column=ODD, language="english")) == 10
    # any word will do for BM25, all are wanted by websearch_to_tsquery
    assert len(table.search(None, text="jumps nonsense", text_column=ODD)) == 10
    both = table.search(None, text="jumps nonsense", text_column=ODD, language="english")
    assert both == []


def test_several_columns_and_words_that_no_row_has(conn: Conn, table: pybq.Table) -> None:
    conn.execute("ALTER TABLE items ADD title text")
    conn.execute("UPDATE items SET title = 'unicorn' WHERE id = 7")
    again = pybq.Table(conn, "items")
    again.create_text_index([ODD, "title"], method="bm25")
    assert [hit.id for hit in again.search(None, text="unicorn")] == [7]
    assert again.search(None, text="the") == again.search(None, text="dragon") == []
    with pytest.raises(ValueError, match="expected columns of type text or varchar for bm25"):
        conn.execute("ALTER TABLE items ADD words tsvector")
        pybq.Table(conn, "items").create_text_index("words", method="bm25")


def test_without_the_extension(conn: Conn, server: pybq.Server) -> None:
    conn.execute("DROP DATABASE IF EXISTS other")
    conn.execute("CREATE DATABASE other")
    dsn = psycopg.conninfo.make_conninfo(server.dsn, dbname="other")
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("CREATE EXTENSION bq_pgvector CASCADE")
        table = pybq.Table.create(other, "items", DIM, columns={"body": "text"})
        with pytest.raises(TableError, match="run CREATE EXTENSION pg_textsearch"):
            table.create_text_index("body", method="bm25")
