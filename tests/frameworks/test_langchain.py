"""LangChain: upstream's suite for vector stores; filters, columns of one's own, words, MMR."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from shared import Conn

import pybq

from .conftest import DIM, embed

pytest.importorskip("langchain_core", reason="needs LangChain: make test-frameworks")
pytest.importorskip("langchain_tests")
pytest_asyncio = pytest.importorskip("pytest_asyncio")
from langchain_core.documents import Document  # noqa: E402
from langchain_core.embeddings import Embeddings  # noqa: E402
from langchain_tests.integration_tests.vectorstores import (  # noqa: E402
    EMBEDDING_SIZE,
    VectorStoreIntegrationTests,
)

from pybq.langchain import BQVectorStore  # noqa: E402

pytestmark = pytest.mark.autocommit


class WordEmbeddings(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [embed(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return embed(text)


# -- upstream's suite ---------------------------------------------------------------------


class TestUpstream(VectorStoreIntegrationTests):
    """On a new table; asynchronous methods in a thread."""

    @pytest.fixture
    def vectorstore(self, conn: Conn) -> BQVectorStore:
        store = BQVectorStore.open(conn, "documents", self.get_embeddings())
        store.table.create_index()
        return store


class TestUpstreamOwnTable(VectorStoreIntegrationTests):
    """On a table of one's own, without JSON."""

    @pytest.fixture
    def vectorstore(self, conn: Conn) -> BQVectorStore:
        conn.execute(
            "CREATE TABLE own (key varchar PRIMARY KEY, id int, body text NOT NULL,"
            f" v vector({EMBEDDING_SIZE}) NOT NULL, some_other_field text)".encode()
        )
        return BQVectorStore(pybq.Table(conn, "own"), self.get_embeddings(), content_column="body")


class TestUpstreamAsync(VectorStoreIntegrationTests):
    """On an asynchronous connection, and nothing else."""

    @property
    def has_sync(self) -> bool:
        return False

    @pytest_asyncio.fixture
    async def vectorstore(self, conn: Conn) -> AsyncIterator[BQVectorStore]:
        async with await psycopg.AsyncConnection.connect(conn.info.dsn, autocommit=True) as mine:
            columns = {"content": "text", "metadata": "jsonb"}
            table = await pybq.AsyncTable.create(
                mine, "documents", EMBEDDING_SIZE, id_type="text", columns=columns
            )
            yield BQVectorStore(table, self.get_embeddings())


# -- ours ---------------------------------------------------------------------------------

TEXTS = ["green apples", "red apples", "green pears", "how to cook pears"]
METADATAS = [
    {"id": 1, "lang": "en", "tags": ["a", "b"], "score": 0.5},
    {"id": 2, "lang": "de", "score": 1.5},
    {"id": 3, "lang": "fr", "score": 2, "gone": None},
    {"id": 4},
]


@pytest.fixture
def store(conn: Conn) -> BQVectorStore:
    store = BQVectorStore.from_texts(
        TEXTS, WordEmbeddings(), METADATAS, ids=["1", "2", "3", "4"], connection=conn, name="docs"
    )
    store.table.create_text_index("content")
    return store


FILTERS: list[tuple[Any, set[str]]] = [
    ({}, {"1", "2", "3", "4"}),
    ({"lang": "en"}, {"1"}),
    ({"lang": {"$eq": "en"}}, {"1"}),
    ({"lang": {"$ne": "en"}}, {"2", "3", "4"}),
    ({"id": {"$lt": 3}}, {"1", "2"}),
    ({"score": {"$lte": 1.5}}, {"1", "2"}),
    ({"score": {"$gt": 0.5, "$lt": 2}}, {"2"}),
    ({"id": {"$gte": 3}}, {"3", "4"}),
    ({"lang": {"$in": ["en", "fr"]}}, {"1", "3"}),
    ({"lang": {"$nin": ["en", "fr"]}}, {"2", "4"}),
    ({"id": {"$between": [2, 3]}}, {"2", "3"}),
    ({"lang": {"$exists": False}}, {"4"}),
    ({"lang": {"$exists": True}}, {"1", "2", "3"}),
    ({"lang": {"$like": "%e%"}}, {"1", "2"}),
    ({"lang": {"$ilike": "E%"}}, {"1"}),
    ({"tags": {"$contains": "b"}}, {"1"}),
    ({"gone": None}, {"1", "2", "3", "4"}),
    ({"lang": "de", "id": 2}, {"2"}),
    ({"$and": [{"id": {"$gt": 1}}, {"lang": {"$like": "%"}}]}, {"2", "3"}),
    ({"$or": [{"lang": "en"}, {"id": 4}]}, {"1", "4"}),
    ({"$not": {"lang": "en"}}, {"2", "3", "4"}),
    ({"$not": [{"lang": "en"}, {"id": 1}]}, {"2", "3", "4"}),
    ({"$or": [{"$and": [{"id": 1}, {"lang": "en"}]}, {"$not": {"id": {"$lt": 4}}}]}, {"1", "4"}),
    ({"lang": "x' OR true; --"}, set()),
    ({"x' OR true; --": 1}, set()),
]


@pytest.mark.parametrize(("given", "expected"), FILTERS)
def test_filters(store: BQVectorStore, given: Any, expected: set[str]) -> None:
    found = store.similarity_search("apples", 10, filter=given)
    assert {each.id for each in found} == expected
    assert {
        e.id for e in store.similarity_search("apples", 10, filter=given, hybrid=True)
    } == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lang = 'en'", "expected filter as a dict, got str"),
        ({"$nor": []}, "expected a field, \\$and, \\$or or \\$not in a filter, got '\\$nor'"),
        ({3: 1}, "expected a field, .* got 3"),
        ({"$and": {"a": 1}}, "expected a list of filters after '\\$and'"),
        ({"$or": [None]}, "expected a list of filters after '\\$or'"),
        ({"a": {"$regex": "x"}}, "expected an operator of \\$eq, .*, got '\\$regex'"),
        ({"a": {"$between": [1]}}, "expected two values after '\\$between'"),
        ({"a": {"$in": "abc"}}, "expected a list of values for field 'a'"),
    ],
)
def test_what_is_wrong_with_filters(store: BQVectorStore, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store.similarity_search("apples", filter=given)


def test_scores_are_distances(store: BQVectorStore) -> None:
    (document, distance), *_ = store.similarity_search_with_score("green apples")
    assert document == Document(id="1", page_content="green apples", metadata=METADATAS[0])
    assert distance == pytest.approx(0, abs=1e-3)
    (_, relevance), *_ = store.similarity_search_with_relevance_scores("green apples", k=1)
    assert relevance == pytest.approx(1, abs=1e-3)
    retriever = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99}
    )
    assert [each.id for each in retriever.invoke("green apples")] == ["1"]


@pytest.mark.parametrize(("metric", "best"), [("cosine", 1.0), ("l2", 1.0), ("inner_product", 1.0)])
def test_relevance_of_each_metric(conn: Conn, metric: Any, best: float) -> None:
    store = BQVectorStore.from_texts(
        TEXTS, WordEmbeddings(), connection=conn, name="of_metric", metric=metric
    )
    found = store.similarity_search_with_relevance_scores("green apples", k=2)
    assert [document.page_content for document, _ in found][0] == "green apples"
    assert found[0][1] == pytest.approx(best, abs=0.03) and found[1][1] < 0.9


def test_words_find_what_vectors_miss(store: BQVectorStore) -> None:
    store.add_texts(["completely unrelated E4711"], [{}], ids=["5"])
    plain = store.similarity_search("red apples E4711", k=1)
    assert plain[0].id == "2"
    (found, score), *_ = store.similarity_search_with_score(
        "red apples E4711", k=5, hybrid=True, text="E4711", weights=(0.1, 1)
    )
    assert found.id == "5" and 1 / 61 < score < 1.1 / 61 + 1e-9
    hybrid = BQVectorStore(store.table, WordEmbeddings(), hybrid=True, weights=(0, 1))
    assert hybrid.similarity_search("cook", k=1)[0].id == "4"
    assert hybrid.similarity_search_by_vector(embed("green apples"), k=1)[0].id == "1"
    assert hybrid.max_marginal_relevance_search("green apples", k=1)[0].id == "1"
    with pytest.raises(ValueError, match="expected words for hybrid=True: search by a text"):
        store.similarity_search_by_vector(embed("cook"), hybrid=True)
    with pytest.raises(ValueError, match="relevance .* hybrid"):
        hybrid.similarity_search_with_relevance_scores("cook")


def test_mmr_leaves_out_what_is_alike(conn: Conn) -> None:
    texts = ["green apples", "green apples", "green pears", "nothing alike"]
    store = BQVectorStore.from_texts(texts, WordEmbeddings(), connection=conn, name="mmr")
    assert [e.page_content for e in store.similarity_search("green apples", k=2)] == texts[:2]
    found = store.max_marginal_relevance_search("green apples", k=2, lambda_mult=0.3)
    assert found[0].page_content == "green apples" and found[1].page_content != "green apples"
    retriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 2, "lambda_mult": 1})
    assert [each.page_content for each in retriever.invoke("green apples")] == texts[:2]
    assert store.max_marginal_relevance_search("x", filter={"a": 1}) == []


async def test_asynchronous_methods_do_the_same(conn: Conn, store: BQVectorStore) -> None:
    embedding = WordEmbeddings()
    async with await psycopg.AsyncConnection.connect(conn.info.dsn, autocommit=True) as mine:
        table = await pybq.AsyncTable.open(mine, "docs")
        for each in (store, BQVectorStore(store.table, embedding, async_table=table)):
            for options in ({}, {"filter": {"id": {"$gt": 1}}}, {"hybrid": True}):
                expected = store.similarity_search_with_score("red apples", 3, **options)
                assert (
                    await each.asimilarity_search_with_score("red apples", 3, **options) == expected
                )
                documents = [document for document, _ in expected]
                assert await each.asimilarity_search("red apples", 3, **options) == documents
            assert await each.amax_marginal_relevance_search(
                "red apples", 2
            ) == store.max_marginal_relevance_search("red apples", 2)
            assert await each.asimilarity_search_by_vector(
                embed("cook"), 1
            ) == store.similarity_search_by_vector(embed("cook"), 1)
            assert await each.aadd_texts(["new"], ids=["9"]) == ["9"]
            assert [e.page_content for e in await each.aget_by_ids(["9"])] == ["new"]
            assert await each.adelete(filter={"id": 99}) and await each.adelete(["9"])
            assert await each.aget_by_ids(["9"]) == []
    made = await BQVectorStore.afrom_texts(["a"], embedding, connection=conn, name="other")
    assert len(made.similarity_search("a")) == 1


def test_a_table_of_ones_own(conn: Conn) -> None:
    """Keys of integers, columns with names that have to be quoted, values that are no JSON."""
    conn.execute(
        sql.SQL(
            "CREATE TABLE own (nr bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, body text,"
            " v vector({}), {} text, day date)"
        ).format(DIM, sql.Identifier('odd "%s name'))
    )
    table = pybq.Table(conn, "own")
    store = BQVectorStore(
        table, WordEmbeddings(), content_column="body", metadata_columns=["day", 'odd "%s name']
    )
    documents = [
        Document(page_content="one", metadata={"day": "2026-11-22", 'odd "%s name': "x"}),
        Document(page_content="two", metadata={"day": "2026-11-23"}),
    ]
    first, second = store.add_documents(documents)
    assert (first, second) == ("1", "2")
    found = store.similarity_search("one", filter={"day": {"$gt": "2026-11-22"}})
    assert [each.id for each in found] == [second]
    found = store.similarity_search("one", filter={'odd "%s name': {"$like": "x"}})
    assert [each.id for each in found] == [first]
    assert found[0].metadata["day"].isoformat() == "2026-11-22"
    assert [
        e.id for e in store.similarity_search("one", where="nr = %(n)s", parameters={"n": 2})
    ] == ["2"]
    with pytest.raises(ValueError, match="expected a field of 'nr', 'body', 'day', 'odd"):
        store.similarity_search("one", filter={"nr; DROP TABLE own": 1})
    with pytest.raises(ValueError, match="no column for metadata 'other': expected day, odd"):
        store.add_texts(["x"], [{"other": 1}])
    assert store.delete(["1", "7"]) and table.count() == 1


def test_transactions_of_others_are_not_ended(conn: Conn, store: BQVectorStore) -> None:
    with contextlib.suppress(psycopg.Rollback), conn.transaction():
        store.add_texts(["not to stay"], ids=["9"])
        assert len(store.get_by_ids(["9"])) == 1
        raise psycopg.Rollback
    assert store.get_by_ids(["9"]) == []


def test_what_is_wrong_with_stores(conn: Conn, store: BQVectorStore) -> None:
    embedding = WordEmbeddings()
    with pytest.raises(TypeError, match="expected a table, or a connection to open it on"):
        BQVectorStore.from_texts(["a"], embedding)
    for none in (None, {}):
        with pytest.raises(ValueError, match="expected ids or a filter to delete by"):
            store.delete(filter=none)
    with pytest.raises(ValueError, match="expected 1 metadatas"):
        store.add_texts(["a"], [{}, {}])
    with pytest.raises(TypeError, match="expected options of .*'no_such'"):
        store.similarity_search("a", no_such=1)
    with pytest.raises(pybq.TableError, match="table 'docs' has dim 64, expected 17"):
        BQVectorStore.open(conn, "docs", embedding, dim=17)
