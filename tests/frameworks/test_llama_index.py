"""LlamaIndex: nodes, modes of a query, filters; what upstream tests its store for PostgreSQL for.

Upstream has no suite for stores of others.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest
from shared import Conn

import pybq

from .conftest import DIM, embed

pytest.importorskip("llama_index.core", reason="needs LlamaIndex: make test-frameworks")
pytest_asyncio = pytest.importorskip("pytest_asyncio")
from llama_index.core import Document, StorageContext, VectorStoreIndex  # noqa: E402
from llama_index.core.embeddings import BaseEmbedding  # noqa: E402
from llama_index.core.schema import (  # noqa: E402
    IndexNode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (  # noqa: E402
    ExactMatchFilter,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from pybq.llama_index import BQVectorStore  # noqa: E402

pytestmark = pytest.mark.autocommit

Mode = VectorStoreQueryMode
Op = FilterOperator


class WordEmbedding(BaseEmbedding):  # type: ignore[misc]
    def _get_query_embedding(self, query: str) -> list[float]:
        return embed(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return embed(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return embed(text)


def node(id_: str, text: str, source: str | None = None, **metadata: Any) -> TextNode:
    relationships = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=source)} if source else {}
    return TextNode(
        id_=id_, text=text, metadata=metadata, relationships=relationships, embedding=embed(text)
    )


def nodes() -> list[TextNode]:
    return [
        node("aaa", "green apples", "doc1", theme="fruit", year=1999, tags=["x", "y"]),
        node("bbb", "red apples", "doc1", theme="Fruit bowl", year=2005, tags=["y"]),
        node("ccc", "the quick brown fox jumped", "doc2", theme="animals", year=2010.5, tags=[]),
        node("ddd", "the fox and the hound", theme=None),
    ]


class Either:
    """A store, called one way or the other: every test is of both."""

    def __init__(self, store: BQVectorStore, is_async: bool) -> None:
        self.store, self.is_async = store, is_async

    async def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        if not self.is_async:
            return getattr(self.store, name)(*arguments, **options)
        name = "async_add" if name == "add" else f"a{name}"
        method: Callable[..., Awaitable[Any]] = getattr(self.store, name)
        return await method(*arguments, **options)

    async def query(self, text: str, k: int = 2, mode: Mode = Mode.DEFAULT, **options: Any) -> Any:
        mine = {name: options.pop(name) for name in ("recall", "mmr_prefetch_k") if name in options}
        query = VectorStoreQuery(
            query_embedding=embed(text), query_str=text, similarity_top_k=k, mode=mode, **options
        )
        return await self("query", query, **mine)

    async def ids(self, *filters: Any, condition: Any = FilterCondition.AND) -> list[str]:
        """Nodes that meet filters: what a query finds is what get_nodes reads."""
        given = MetadataFilters(filters=list(filters), condition=condition)
        found = await self.query("apples", 10, filters=given)
        read = await self("get_nodes", filters=given)
        assert {each.node_id for each in read} == set(found.ids)
        return sorted(found.ids)


@pytest_asyncio.fixture(params=["sync", "async", "thread"])
async def store(conn: Conn, request: pytest.FixtureRequest) -> AsyncIterator[Either]:
    made = BQVectorStore.open(conn, "nodes", DIM)
    made.table.create_text_index("content")
    if request.param != "async":
        yield Either(made, request.param == "thread")
        return
    async with await psycopg.AsyncConnection.connect(conn.info.dsn, autocommit=True) as mine:
        yield Either(BQVectorStore(await pybq.AsyncTable.open(mine, "nodes")), True)


async def test_nodes_come_back_as_they_were(store: Either) -> None:
    assert await store("add", nodes()) == ["aaa", "bbb", "ccc", "ddd"]
    result = await store.query("green apples")
    assert result.ids[0] == "aaa" and result.similarities[0] == pytest.approx(1, abs=1e-3)
    assert result.similarities == sorted(result.similarities, reverse=True)
    (found, expected) = (result.nodes[0], nodes()[0])
    assert (found.text, found.metadata) == (expected.text, expected.metadata)
    assert found.ref_doc_id == "doc1" and found.node_id == "aaa"
    other = IndexNode(id_="ref", text="an index", index_id="aaa", embedding=embed("an index"))
    await store("add", [other])
    (again,) = await store("get_nodes", ["ref"])
    assert isinstance(again, IndexNode) and again.index_id == "aaa" and again.text == "an index"
    with pytest.raises(ValueError, match="embedding not set"):
        await store("add", [TextNode(text="no vector")])


async def test_nodes_are_written_over(store: Either) -> None:
    await store("add", nodes())
    await store("add", [node("aaa", "blue cheese", "doc9", year=1)])
    (found,) = await store("get_nodes", ["aaa"])
    assert (found.text, found.metadata, found.ref_doc_id) == ("blue cheese", {"year": 1}, "doc9")
    assert len(await store("get_nodes")) == 4
    assert await store("add", []) == []


async def test_nodes_are_deleted(store: Either) -> None:
    await store("add", nodes())
    await store("delete", "doc1")
    assert [each.node_id for each in await store("get_nodes")] == ["ccc", "ddd"]
    await store("delete", "no such document")
    await store("delete_nodes")
    assert len(await store("get_nodes")) == 2
    await store("add", nodes())
    of_1999 = MetadataFilters(filters=[MetadataFilter(key="year", value=1999)])
    await store("delete_nodes", ["bbb"], of_1999)
    assert len(await store("get_nodes")) == 4
    await store("delete_nodes", ["bbb", "missing"])
    await store("delete_nodes", filters=of_1999)
    assert [each.node_id for each in await store("get_nodes")] == ["ccc", "ddd"]
    await store("clear")
    assert await store("get_nodes") == []
    assert (await store.query("apples")).ids == []


def meets(key: str, operator: Op, value: Any = None) -> MetadataFilter:
    return MetadataFilter(key=key, operator=operator, value=value)


HOSTILE = "x' OR true; --\"%s"
FILTERS: list[tuple[Any, list[str]]] = [
    (ExactMatchFilter(key="theme", value="fruit"), ["aaa"]),
    (meets("theme", Op.EQ, "animals"), ["ccc"]),
    (meets("theme", Op.NE, "animals"), ["aaa", "bbb", "ddd"]),
    (meets("year", Op.GT, 1999), ["bbb", "ccc"]),
    (meets("year", Op.GTE, 1999), ["aaa", "bbb", "ccc"]),
    (meets("year", Op.LT, 2010.5), ["aaa", "bbb"]),
    (meets("year", Op.LTE, 2010.5), ["aaa", "bbb", "ccc"]),
    (meets("year", Op.GT, "1999"), []),
    (meets("theme", Op.GT, "b"), ["aaa"]),
    (meets("theme", Op.IN, ["fruit", "animals"]), ["aaa", "ccc"]),
    (meets("theme", Op.IN, ["fruit"]), ["aaa"]),
    (meets("year", Op.IN, [2005, 7]), ["bbb"]),
    (meets("theme", Op.NIN, ["fruit", "animals"]), ["bbb", "ddd"]),
    (meets("tags", Op.CONTAINS, "y"), ["aaa", "bbb"]),
    (meets("tags", Op.ANY, ["x", "z"]), ["aaa"]),
    (meets("tags", Op.ALL, ["x", "y"]), ["aaa"]),
    (meets("tags", Op.ALL, ["x", "z"]), []),
    (meets("theme", Op.TEXT_MATCH, "ruit"), ["aaa", "bbb"]),
    (meets("theme", Op.TEXT_MATCH, "FRUIT"), []),
    (meets("tags", Op.IS_EMPTY), ["ccc", "ddd"]),
    (meets("theme", Op.IS_EMPTY), ["ddd"]),
    (meets(HOSTILE, Op.EQ, 1), []),
    (meets("theme", Op.EQ, HOSTILE), []),
]


@pytest.mark.parametrize(("given", "expected"), FILTERS)
async def test_filters(store: Either, given: Any, expected: list[str]) -> None:
    await store("add", nodes())
    assert await store.ids(given) == expected


async def test_filters_in_filters(store: Either) -> None:
    await store("add", nodes())
    fruit, late = meets("theme", Op.EQ, "fruit"), meets("year", Op.GT, 2000)
    assert await store.ids() == ["aaa", "bbb", "ccc", "ddd"]
    assert await store.ids(fruit, late) == []
    assert await store.ids(fruit, late, condition=FilterCondition.OR) == ["aaa", "bbb", "ccc"]
    either = MetadataFilters(filters=[fruit, late], condition=FilterCondition.OR)
    assert await store.ids(either, meets("tags", Op.CONTAINS, "y")) == ["aaa", "bbb"]
    neither = MetadataFilters(filters=[fruit], condition=FilterCondition.NOT)
    assert await store.ids(neither) == ["bbb", "ccc", "ddd"]
    assert await store.ids(neither, late) == ["bbb", "ccc"]
    any_case = meets("theme", Op.TEXT_MATCH_INSENSITIVE, "FRUIT")
    assert await store.ids(any_case) == ["aaa", "bbb"]


async def test_queries_among_some_nodes(store: Either) -> None:
    await store("add", nodes())
    assert (await store.query("apples", 4, node_ids=["bbb", "ddd"])).ids == ["bbb", "ddd"]
    assert (await store.query("fox", 4, doc_ids=["doc1"])).ids
    assert set((await store.query("fox", 4, doc_ids=["doc1"])).ids) == {"aaa", "bbb"}
    both = await store.query("apples", 4, node_ids=["aaa", "ccc"], doc_ids=["doc2"], recall=0.9)
    assert both.ids == ["ccc"]


async def test_words(store: Either) -> None:
    await store("add", nodes())
    for mode in (Mode.TEXT_SEARCH, Mode.SPARSE):
        result = await store.query("fox", 1, mode, sparse_top_k=2)
        assert set(result.ids) == {"ccc", "ddd"}
        assert result.similarities == pytest.approx([1 / 61, 1 / 62])
        assert (await store.query("fox -hound", 5, mode)).ids == ["ccc"]
        assert (await store.query("zebra", 5, mode)).ids == []
        with pytest.raises(ValueError, match="expected words in text, got an empty text"):
            await store.query("", 5, mode)


async def test_words_and_vectors(store: Either) -> None:
    await store("add", nodes())
    query = {"query_embedding": embed("green apples"), "query_str": "hound"}
    for alpha, first in ((0.0, "ddd"), (1.0, "aaa")):
        asked = VectorStoreQuery(similarity_top_k=2, mode=Mode.HYBRID, alpha=alpha, **query)
        assert (await store("query", asked)).ids[0] == first
    asked = VectorStoreQuery(
        similarity_top_k=1, sparse_top_k=1, hybrid_top_k=4, mode=Mode.HYBRID, **query
    )
    result = await store("query", asked)
    assert set(result.ids) == {"aaa", "ddd"}
    assert result.similarities == pytest.approx([1 / 61, 1 / 61])
    some = MetadataFilters(filters=[meets("theme", Op.EQ, "animals")])
    asked = VectorStoreQuery(similarity_top_k=4, mode=Mode.HYBRID, filters=some, **query)
    assert (await store("query", asked)).ids == ["ccc"]
    simple = Either(BQVectorStore(store.store.table, language="simple", rrf=1), store.is_async)
    assert (await simple.query("green apples", 1)).ids == ["aaa"]
    assert (await simple.query("hounds", 5, Mode.TEXT_SEARCH)).ids == []
    assert (await simple.query("hound", 5, Mode.TEXT_SEARCH)).similarities == [0.5]


async def test_mmr_leaves_out_what_is_alike(store: Either) -> None:
    await store("add", [*nodes(), node("twin", "green apples", theme="fruit")])
    assert set((await store.query("green apples")).ids) == {"aaa", "twin"}
    result = await store.query("green apples", 2, Mode.MMR, mmr_threshold=0.3)
    assert result.ids[0] in ("aaa", "twin") and result.ids[1] not in ("aaa", "twin")
    assert len(result.similarities) == len(result.nodes) == 2
    narrow = await store.query("green apples", 2, Mode.MMR, mmr_threshold=0.3, mmr_prefetch_k=2)
    assert set(narrow.ids) == {"aaa", "twin"}
    none = MetadataFilters(filters=[meets("theme", Op.EQ, "no")])
    assert (await store.query("green apples", 2, Mode.MMR, filters=none)).ids == []
    with pytest.raises(ValueError, match="expected a mode of default, mmr, hybrid or text_search"):
        await store.query("green apples", 2, Mode.SVM)


async def test_a_table_of_ones_own(conn: Conn) -> None:
    """Rows that others write are nodes of text; metadata have columns."""
    conn.execute(
        f"CREATE TABLE own (nr uuid PRIMARY KEY, body text, v vector({DIM}), lang text,"
        " ref_doc_id text)".encode()
    )
    store = BQVectorStore(pybq.Table(conn, "own", metric="l2"), content_column="body")
    id_ = "00000000-0000-0000-0000-000000000005"
    assert store.add([node(id_, "green apples", "doc1", lang="en")]) == [id_]
    conn.execute("INSERT INTO own SELECT gen_random_uuid(), 'from SQL', v, 'fr' FROM own")
    english = MetadataFilters(filters=[ExactMatchFilter(key="lang", value="en")])
    query = VectorStoreQuery(
        query_embedding=embed("red apples"), similarity_top_k=5, filters=english
    )
    result = store.query(query)
    assert result.ids == [id_] and result.nodes[0].text == "green apples"
    distance = math.dist(embed("red apples"), embed("green apples"))
    assert result.similarities == pytest.approx([math.exp(-distance)])
    assert sorted(each.metadata["lang"] for each in store.get_nodes()) == ["en", "fr"]
    store.delete("doc1")
    (left,) = store.get_nodes()
    assert (left.text, left.metadata) == ("from SQL", {"lang": "fr"})
    with pytest.raises(ValueError, match="no column for metadata 'other'"):
        store.add([node(id_, "x", other=1)])
    assert store.client is conn and store.class_name() == "BQVectorStore"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_index_of_llama_index(conn: Conn) -> None:
    """Documents in, a retriever out; a document taken away."""
    store = BQVectorStore.open(conn, "nodes", DIM)
    store.table.create_text_index("content")
    documents = [
        Document(text="green apples", doc_id="1", metadata={"lang": "en"}),
        Document(text="red pears", doc_id="2", metadata={"lang": "de"}),
    ]
    model = WordEmbedding()
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex.from_documents(documents, context, embed_model=model)
    (hit,) = index.as_retriever(similarity_top_k=1).retrieve("pears")
    assert hit.text == "red pears" and hit.metadata == {"lang": "de"}
    english = MetadataFilters(filters=[ExactMatchFilter(key="lang", value="en")])
    (hit,) = index.as_retriever(similarity_top_k=5, filters=english).retrieve("pears")
    assert hit.text == "green apples"
    retriever = index.as_retriever(similarity_top_k=2, vector_store_query_mode="hybrid", alpha=0.2)
    assert retriever.retrieve("pears")[0].text == "red pears"
    index.delete_ref_doc("2")
    again = VectorStoreIndex.from_vector_store(store, embed_model=model)
    assert [hit.text for hit in again.as_retriever().retrieve("pears")] == ["green apples"]
