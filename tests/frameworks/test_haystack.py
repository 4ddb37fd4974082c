"""pybq.haystack passes Haystack's own tests of document stores, and finds what is near."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from pages import DOCS, read_blocks
from shared import SEED, Conn, exact_distances

pytest.importorskip("haystack", reason="needs Haystack: make test-frameworks")

import haystack  # noqa: E402
from haystack import Document, Pipeline  # noqa: E402
from haystack.dataclasses import ByteStream, SparseEmbedding  # noqa: E402
from haystack.document_stores.errors import DuplicateDocumentError  # noqa: E402
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy  # noqa: E402
from haystack.errors import FilterError  # noqa: E402
from haystack.testing.document_store import (  # noqa: E402
    CountDocumentsByFilterTest,
    DocumentStoreBaseExtendedTests,
)
from haystack.testing.document_store_async import (  # noqa: E402
    CountDocumentsAsyncTest,
    CountDocumentsByFilterAsyncTest,
    DeleteAllAsyncTest,
    DeleteByFilterAsyncTest,
    DeleteDocumentsAsyncTest,
    FilterDocumentsAsyncTest,
    UpdateByFilterAsyncTest,
    WriteDocumentsAsyncTest,
)
from haystack.utils import Secret  # noqa: E402

import pybq  # noqa: E402
from pybq._documents.comparisons import to_filter  # noqa: E402
from pybq.errors import TableError  # noqa: E402
from pybq.haystack import (  # noqa: E402
    BQDocumentStore,
    BQEmbeddingRetriever,
    BQHybridRetriever,
    BQKeywordRetriever,
)

DIM = 16


def make_store(conn: Conn, **options: Any) -> BQDocumentStore:
    return BQDocumentStore(connection_string=Secret.from_token(conn.info.dsn), **options)


@pytest.fixture
def document_store(conn: Conn) -> Iterator[BQDocumentStore]:
    store = make_store(conn, dim=768)
    yield store
    store.close()


@pytest.fixture
def vectors() -> Any:
    return np.random.default_rng((SEED, 8)).standard_normal((200, DIM)).astype(np.float32)


@pytest.fixture
def filled(conn: Conn, vectors: Any) -> Iterator[BQDocumentStore]:
    """Documents of three tenants, one of them without an embedding."""
    store = make_store(conn, dim=DIM, index_fields=["tenant"])
    documents = [
        Document(id=str(i), content=f"text {i}", meta={"tenant": "abc"[i % 3], "n": i},
                 embedding=vector.tolist())
        for i, vector in enumerate(vectors)
    ]  # fmt: skip
    store.write_documents([*documents, Document(id="none", content="no embedding")])
    yield store
    store.close()


class Equal:
    """Order is that of the ids, and embeddings have the precision of the database."""

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        def known(document: Document) -> dict[str, Any]:
            return {**document.to_dict(flatten=False), "embedding": None}

        expected = sorted(expected, key=lambda document: document.id)
        assert [known(document) for document in received] == [known(each) for each in expected]
        for one, other in zip(received, expected, strict=True):
            assert (one.embedding is None) == (other.embedding is None)
            if one.embedding is not None:
                np.testing.assert_array_equal(
                    np.float32(one.embedding), np.float32(other.embedding)
                )


class TestStore(Equal, DocumentStoreBaseExtendedTests, CountDocumentsByFilterTest):
    @pytest.fixture
    def document_store(self, document_store: BQDocumentStore) -> BQDocumentStore:
        return document_store

    def test_write_documents(self, document_store: BQDocumentStore) -> None:
        """No policy is that of failing."""
        document = Document(content="test doc")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError, match="already exists"):
            document_store.write_documents([Document(content="other"), document])
        self.assert_documents_are_equal(document_store.filter_documents(), [document])


class TestAsyncStore(
    Equal,
    CountDocumentsAsyncTest,
    CountDocumentsByFilterAsyncTest,
    DeleteAllAsyncTest,
    DeleteByFilterAsyncTest,
    DeleteDocumentsAsyncTest,
    FilterDocumentsAsyncTest,
    UpdateByFilterAsyncTest,
    WriteDocumentsAsyncTest,
):
    @pytest.fixture
    def document_store(self, document_store: BQDocumentStore) -> BQDocumentStore:
        return document_store

    @pytest.mark.asyncio
    async def test_write_documents_async(self, document_store: BQDocumentStore) -> None:
        documents = [Document(content=f"{i}") for i in range(3)]
        assert await document_store.write_documents_async(documents) == 3
        self.assert_documents_are_equal(await document_store.filter_documents_async(), documents)


def test_the_page_runs(
    conn: Conn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYBQ_DSN", conn.info.dsn)
    names: dict[str, Any] = {}
    for block in read_blocks(DOCS / "haystack.md"):
        if block.language == "python":
            exec(compile(block.text, "docs/haystack.md", "exec", dont_inherit=True), names)
    assert capsys.readouterr().out.splitlines() == [
        "green apples 0.71",
        "red pears 0.0",
        "['red pears']",
        "red pears 0.05",
        "green apples 0.02",
        "en",
    ]
    names["store"].close()


# -- documents --------------------------------------------------------------------------------


def test_documents_come_back_as_they_were(document_store: BQDocumentStore) -> None:
    embedding = np.linspace(-1, 1, 768, dtype=np.float32).tolist()
    documents = [
        Document(
            id="a",
            content="100 % 'quoted' {braces}",
            blob=ByteStream(b"\0\1\xff", meta={"page": 1}, mime_type="image/png"),
            meta={"nested": {"list": [1, None, "x"]}, "100 %": True},
            embedding=embedding,
            sparse_embedding=SparseEmbedding(indices=[1, 5], values=[0.5, 0.25]),
        ),
        Document(id="b", content=None, blob=ByteStream(b"")),
    ]
    document_store.write_documents(documents)
    assert document_store.filter_documents() == documents
    other = Document(id="a", content="other")
    assert document_store.write_documents([other], DuplicatePolicy.OVERWRITE) == 1
    assert document_store.filter_documents()[0] == other


def test_stores_may_begin_at_once(conn: Conn) -> None:
    from indexlib import run_threads

    # in a database without any extension, on several tables
    conn.execute("DROP EXTENSION bq CASCADE; DROP EXTENSION vector")
    conn.commit()
    tables = [make_store(conn, dim=4, table=name) for name in ("one", "one", "two", "three")]
    run_threads(*(store.count_documents for store in tables))
    for store in tables:
        store.close()
    stores = [make_store(conn, dim=4) for _ in range(4)]
    run_threads(*(store.count_documents for store in stores))
    stores[0].write_documents([Document(content="x")])
    assert [store.count_documents() for store in stores] == [1] * 4
    # a connection that was lost, or closed, is made anew
    conn.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    stores[1].close()
    assert stores[1].count_documents() == 1
    with pytest.raises(psycopg.OperationalError):
        stores[2].count_documents()
    assert stores[2].count_documents() == 1
    for store in stores:
        store.close()


# -- filters ----------------------------------------------------------------------------------


def is_met(store: BQDocumentStore, field: str, operator: str, value: Any) -> bool:
    return bool(store.filter_documents({"field": field, "operator": operator, "value": value}))


@pytest.mark.parametrize(
    ("meta", "field", "operator", "value", "expected"),
    [
        # a number is no text, in the same column
        ({"n": 2}, "meta.n", "==", 2, True),
        ({"n": 2}, "meta.n", "==", 2.0, True),
        ({"n": 2}, "meta.n", "==", "2", False),
        ({"n": "2"}, "meta.n", "==", "2", True),
        ({"n": "2"}, "meta.n", ">", 1, False),
        ({"n": True}, "meta.n", "==", True, True),
        ({"n": 12345678901234567890}, "meta.n", ">", 12345678901234567889, True),
        ({"n": [1, 2]}, "meta.n", "==", [1, 2], True),
        ({"n": [1, 2]}, "meta.n", "in", [[1, 2]], True),
        ({"n": "x"}, "meta.n", "in", [1, "x", None], True),
        ({}, "meta.n", "in", [1, None], True),
        ({}, "meta.n", "in", [], False),
        ({}, "meta.n", "not in", [], True),
        ({}, "meta.n", "not in", [1], True),
        ({}, "meta.n", "!=", 1, True),
        ({"n": None}, "meta.n", "==", None, True),
        # names are names
        ({"a": {"b": 1}}, "meta.a.b", "==", 1, True),
        ({"a": {"b": "x"}}, "meta.a.b", "==", "x", True),
        ({"n": 1}, "n", "==", 1, True),
        ({"100 %": "x"}, "meta.100 %", "==", "x", True),
        ({"it's": "x"}, "meta.it's", "==", "x", True),
        ({"{0}": "x"}, "meta.{0}", "==", "x", True),
        ({}, "content", "==", "it's 100 % {0}", True),
        ({}, "id", "in", ["one", "two"], True),
        # dates: zones, and what is none
        ({"d": "2024-05-01T12:00:00"}, "meta.d", "==", "2024-05-01T12:00:00", True),
        ({"d": "2024-05-01T12:00:00"}, "meta.d", "<", "2024-05-01T12:00:01Z", True),
        ({"d": "2024-05-01T12:00:00+02:00"}, "meta.d", "<", "2024-05-01T11:00:00+00:00", True),
        ({"d": "2024-05-01T12:00:00.500Z"}, "meta.d", ">", "2024-05-01T12:00:00", True),
        ({"d": "2024-05-01"}, "meta.d", ">=", "2024-05-01T00:00:00Z", True),
        ({"d": "2024-05-01"}, "meta.d", "<=", "2024-05-01", True),
        ({"d": "9999-99-99"}, "meta.d", ">", "2024-05-01", False),
        ({"d": "soon"}, "meta.d", ">", "2024-05-01", False),
        ({"d": 20240501}, "meta.d", ">", "2024-05-01", False),
        ({}, "meta.d", "<", "2024-05-01", False),
    ],
)  # fmt: skip
def test_filters_mean_what_haystack_means(
    document_store: BQDocumentStore,
    meta: dict[str, Any],
    field: str,
    operator: str,
    value: Any,
    expected: bool,
) -> None:
    document = Document(id="one", content="it's 100 % {0}", meta=meta)
    document_store.write_documents([document])
    assert is_met(document_store, field, operator, value) is expected
    inner = {"field": field, "operator": operator, "value": value}
    opposite = document_store.filter_documents({"operator": "NOT", "conditions": [inner]})
    assert bool(opposite) is not expected


def test_the_answer_does_not_depend_on_the_session(
    document_store: BQDocumentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A date without a zone is UTC, wherever the server is."""
    monkeypatch.setenv("PGTZ", "America/Los_Angeles")
    document_store.write_documents([Document(content="x", meta={"d": "2024-05-01T12:00:00"})])
    assert document_store.count_documents() == 1
    assert document_store.table.connection.execute("SHOW timezone").fetchone() == (
        "America/Los_Angeles",
    )
    assert is_met(document_store, "meta.d", ">=", "2024-05-01T12:00:00+00:00")
    assert not is_met(document_store, "meta.d", ">", "2024-05-01T12:00:00+00:00")


@pytest.mark.parametrize(
    "filters",
    [
        {"field": "meta.n", "operator": "~", "value": 1},
        {"field": "embedding", "operator": "==", "value": [1]},
        {"field": "meta.n", "operator": "<", "value": "soon"},
        {"field": "meta.n", "operator": "in", "value": "abc"},
        {"operator": "XOR", "conditions": [{"field": "n", "operator": "==", "value": 1}]},
        {"operator": "AND", "conditions": []},
        {"operator": "AND", "conditions": ["meta.n"]},
    ],
)
def test_what_is_no_filter_is_refused(
    document_store: BQDocumentStore, filters: dict[str, Any]
) -> None:
    with pytest.raises(FilterError, match="expected"):
        document_store.filter_documents(filters)


# -- retrieval --------------------------------------------------------------------------------


def test_the_nearest_are_found(filled: BQDocumentStore, vectors: Any) -> None:
    distances = exact_distances("cosine", vectors, vectors[3])
    found = filled.search(vectors[3].tolist(), top_k=5)
    assert [int(document.id) for document in found] == distances.argsort()[:5].tolist()
    scores = [document.score for document in found]
    np.testing.assert_allclose(scores, 1 - np.sort(distances)[:5], atol=1e-5)
    assert found[0].content == "text 3" and found[0].meta == {"tenant": "a", "n": 3}
    np.testing.assert_array_equal(np.float32(found[0].embedding), vectors[3])
    # without an embedding it is near to nothing
    assert len(filled.search(vectors[3].tolist(), top_k=500, recall=1)) == len(vectors)


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize("store", ["vector", "halfvec"])
def test_scores_are_larger_of_nearer_documents(
    conn: Conn, vectors: Any, metric: Any, store: Any
) -> None:
    documents = make_store(conn, dim=DIM, metric=metric, store=store, table='odd "name"')
    documents.write_documents(
        [Document(id=str(i), embedding=v.tolist()) for i, v in enumerate(vectors)]
    )
    found = documents.search(vectors[3].tolist(), top_k=5, recall=1)
    expected = -np.sort(exact_distances(metric, vectors, vectors[3]))[:5]
    np.testing.assert_allclose([document.score for document in found], expected, atol=2e-2)
    documents.close()


def test_indexed_fields_are_answered_by_the_index(
    filled: BQDocumentStore, conn: Conn, vectors: Any
) -> None:
    filters = {
        "operator": "AND",
        "conditions": [
            {"field": "meta.tenant", "operator": "==", "value": "b"},
            {"field": "meta.n", "operator": "<", "value": 100},
        ],
    }
    found = filled.search(vectors[3].tolist(), filters=filters, top_k=5)
    some = np.arange(1, 100, 3)
    order = exact_distances("cosine", vectors[some], vectors[3]).argsort()
    assert [int(document.id) for document in found] == some[order[:5]].tolist()

    documents = filled._open()
    condition, parameters = documents.columns.write_condition(to_filter(filters, documents.columns))
    where = condition.as_string(conn)
    statement = f"""
        EXPLAIN SELECT id FROM haystack_documents WHERE embedding IS NOT NULL AND {where}
        ORDER BY embedding <=> %(q)s::vector LIMIT 5
    """
    conn.execute("SET enable_seqscan = off; SET enable_sort = off; SET enable_bitmapscan = off")
    rows = conn.execute(statement, {**parameters, "q": str(vectors[3].tolist())}).fetchall()
    plan = "\n".join(row[0] for row in rows)
    (condition_line,) = re.findall("Index Cond: .*", plan)
    assert "(meta ->> 'tenant'::text) = 'b'::text" in condition_line


def test_a_retriever_goes_through_pipelines(filled: BQDocumentStore, vectors: Any) -> None:
    tenant = {"field": "meta.tenant", "operator": "==", "value": "a"}
    small = {"field": "meta.n", "operator": "<", "value": 60}
    retriever = BQEmbeddingRetriever(
        document_store=filled, filters=tenant, top_k=4, filter_policy=FilterPolicy.MERGE
    )
    pipeline = Pipeline()
    pipeline.add_component("retriever", retriever)
    query = {"query_embedding": vectors[3].tolist(), "filters": small}
    documents = pipeline.run({"retriever": query})["retriever"]["documents"]
    assert len(documents) == 4 and documents[0].id == "3"
    assert all(d.meta["tenant"] == "a" and d.meta["n"] < 60 for d in documents)
    replacing = BQEmbeddingRetriever(document_store=filled, filters=tenant, top_k=60)
    found = replacing.run(vectors[3].tolist(), filters=small, recall=1)["documents"]
    assert {int(document.id) for document in found} == set(range(60))
    assert len(replacing.run(vectors[3].tolist(), top_k=2)["documents"]) == 2


@pytest.mark.asyncio
async def test_retrievers_go_through_asynchronous_pipelines(
    filled: BQDocumentStore, vectors: Any
) -> None:
    # one class in Haystack 3
    pipeline = getattr(haystack, "AsyncPipeline", Pipeline)()
    pipeline.add_component("near", BQEmbeddingRetriever(document_store=filled, top_k=3))
    pipeline.add_component("said", BQKeywordRetriever(document_store=filled, top_k=3))
    pipeline.add_component("both", BQHybridRetriever(document_store=filled, top_k=3))
    near, said = {"query_embedding": vectors[3].tolist()}, {"query": "17"}
    result = await pipeline.run_async({"near": near, "said": said, "both": {**near, **said}})
    found = {name: [each.id for each in result[name]["documents"]] for name in result}
    assert len(found["near"]) == 3 and found["near"][0] == "3"
    assert found["said"] == ["17"]
    assert set(found["both"][:2]) == {"3", "17"}


# -- words ------------------------------------------------------------------------------------


def test_words_are_found_with_and_without_an_index(filled: BQDocumentStore) -> None:
    retriever = BQKeywordRetriever(document_store=filled, top_k=4)
    expected = retriever.run("text 17")["documents"]
    assert [(each.id, each.score) for each in expected] == [("17", pytest.approx(1 / 61))]
    assert expected[0].embedding is not None and expected[0].meta == {"tenant": "c", "n": 17}
    filled.table.create_text_index("content")
    assert retriever.run("text 17")["documents"] == expected
    # also what has no embedding
    (none,) = retriever.run("embeddings")["documents"]
    assert (none.id, none.embedding) == ("none", None)
    tenant = {"field": "meta.tenant", "operator": "==", "value": "b"}
    found = retriever.run("text", filters=tenant, top_k=3)["documents"]
    assert len(found) == 3 and all(each.meta["tenant"] == "b" for each in found)
    simple = BQKeywordRetriever(document_store=filled, language="simple")
    assert simple.run("embeddings")["documents"] == []
    with pytest.raises(ValueError, match="expected words in text, got an empty text"):
        retriever.run(" ")


def test_both_lists_are_fused_as_the_table_does(filled: BQDocumentStore, vectors: Any) -> None:
    filled.table.create_text_index("content")
    tenant = {"field": "meta.tenant", "operator": "==", "value": "c"}
    options: dict[str, Any] = {"weights": (1, 2), "rrf": 10, "depth": 20, "recall": 0.99}
    retriever = BQHybridRetriever(document_store=filled, filters=tenant, top_k=5, **options)
    found = retriever.run(vectors[5].tolist(), "17 or 20")["documents"]
    hits = filled.table.search(
        vectors[5], 5, text="17 or 20", where="meta ->> 'tenant' = 'c'", **options
    )
    assert [(each.id, each.score) for each in found] == [(hit.id, hit.score) for hit in hits]
    assert {found[0].id, found[1].id} == {"17", "20"} and "5" in [each.id for each in found]
    assert all(each.meta["tenant"] == "c" for each in found)
    alone = retriever.run(vectors[5].tolist(), "17", filters={}, top_k=1, recall=1)["documents"]
    assert [each.id for each in alone] == ["17"]


# -- tables of one's own ----------------------------------------------------------------------


@pytest.mark.autocommit
def test_a_table_of_ones_own(conn: Conn, vectors: Any) -> None:
    """With columns for metadata, which the index filters by, keys that are numbers, and no JSON."""
    conn.execute("CREATE SCHEMA shop")
    conn.execute(
        f"CREATE TABLE shop.notes (nr int PRIMARY KEY, body text, price numeric, lang text,"
        f" day date, embedding halfvec({DIM}), other vector(3))".encode()
    )
    store = make_store(
        conn, table="notes", schema="shop", dim=DIM, embedding_column="embedding",
        content_column="body", metadata_columns=["lang", "day"],
    )  # fmt: skip
    documents = [
        Document(id=str(i), content=f"text {i}", embedding=vector.tolist(),
                 meta={"lang": ("en", "de")[i % 2], "day": f"2024-05-{i % 28 + 1:02}"})
        for i, vector in enumerate(vectors)
    ]  # fmt: skip
    assert store.write_documents(documents) == len(documents)
    store.table.create_index(filters=["lang"])
    german = {"field": "meta.lang", "operator": "==", "value": "de"}
    late = {"field": "meta.day", "operator": ">", "value": "2024-05-20T12:00:00"}
    filters = {"operator": "AND", "conditions": [german, late]}
    found = store.search(vectors[27].tolist(), filters=filters, top_k=100, recall=1)
    expected = [i for i in range(len(vectors)) if i % 2 and i % 28 >= 20]
    assert {int(each.id) for each in found} == set(expected) and found[0].id == "27"
    assert found[0].meta["lang"] == "de" and str(found[0].meta["day"]) == "2024-05-28"
    assert store.update_by_filter(filters, {"lang": "fr"}) == len(expected)
    assert store.count_documents_by_filter({**german, "value": "fr"}) == len(expected)
    again = Document(id="27", content="other", meta={"lang": "en"})
    assert store.write_documents([again], DuplicatePolicy.SKIP) == 0
    assert store.write_documents([again], DuplicatePolicy.OVERWRITE) == 1
    assert store.filter_documents({"field": "id", "operator": "==", "value": "27"}) == [again]
    with pytest.raises(FilterError, match="expected a field of 'nr', 'body', 'lang', 'day', got"):
        store.filter_documents({"field": "meta.price", "operator": "==", "value": 1})
    with pytest.raises(FilterError, match="expected ids of type int4"):
        store.filter_documents({"field": "id", "operator": "==", "value": "x"})
    with pytest.raises(ValueError, match="no column for metadata 'page'"):
        store.write_documents([Document(id="1000", meta={"page": 1})])
    with pytest.raises(ValueError, match="no column 'blob' in table 'notes'"):
        store.write_documents([Document(id="1000", blob=ByteStream(b"x"))])
    store.close()
    other = make_store(conn, table="notes", schema="shop", embedding_column="embedding")
    with pytest.raises(TableError, match="has dim 16, expected 768"):
        other.count_documents()
    none = make_store(conn, table="none", metadata_columns=["lang"])
    with pytest.raises(TableError, match="no table 'none'; create it, with columns lang"):
        none.count_documents()


@pytest.mark.autocommit
def test_metadata_are_added_in_columns_and_in_json(conn: Conn) -> None:
    columns = {"text": "text", "lang": "text", "more": "jsonb"}
    pybq.Table.create(conn, "notes", 2, id_type="text", columns=columns)
    store = make_store(conn, table="notes", dim=2, content_column="text", metadata_column="more")
    one = Document(id="one", content="x", embedding=[1, 2], meta={"lang": "en", "a": {"b": 1}})
    assert store.write_documents([one]) == 1
    nested = {"field": "meta.a.b", "operator": "==", "value": 1}
    assert store.update_by_filter(nested, {"lang": "de", "c": None}) == 1
    (found,) = store.filter_documents(nested)
    assert found.meta == {"lang": "de", "a": {"b": 1}, "c": None}
    row = conn.execute("SELECT lang, more FROM notes").fetchone()
    assert row == ("de", {"a": {"b": 1}, "c": None})
    store.close()


def test_stores_and_retrievers_are_serialized(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYBQ_DSN", conn.info.dsn)
    store = BQDocumentStore(table="kept", dim=3, metric="l2", index_fields=["tenant"])
    options: dict[str, Any] = {
        "document_store": store, "top_k": 3, "filter_policy": "merge",
        "filters": {"field": "meta.n", "operator": "==", "value": 1},
    }  # fmt: skip
    fused: dict[str, Any] = {"weights": (1, 2), "rrf": 20, "depth": 30, "language": "simple"}
    pipeline = Pipeline()
    pipeline.add_component("near", BQEmbeddingRetriever(**options, recall=0.9))
    pipeline.add_component("said", BQKeywordRetriever(**options, language="german"))
    pipeline.add_component("both", BQHybridRetriever(**options, **fused, recall=0.9))
    text = pipeline.dumps()
    assert conn.info.dsn not in text
    assert set(re.findall(r"pybq[.].*", text)) == {
        f"pybq.haystack.BQ{name}"
        for name in ("DocumentStore", "EmbeddingRetriever", "HybridRetriever", "KeywordRetriever")
    }
    # what Haystack 3 asks for
    trust = {"allowed_modules": ["pybq.haystack"]} if haystack.version.__version__ >= "3" else {}
    copies = Pipeline.loads(text, **trust)
    for name in ("near", "said", "both"):
        copy = copies.get_component(name)
        assert copy.to_dict() == pipeline.get_component(name).to_dict()
        assert copy.document_store.count_documents() == 0
        copy.document_store.close()
    with pytest.raises(ValueError, match="token"):
        make_store(conn).to_dict()
    with pytest.raises(ValueError, match="BQDocumentStore"):
        BQEmbeddingRetriever(document_store=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metric"):
        make_store(conn, metric="hamming")
    with pytest.raises(ValueError, match="expected a metadata_column with index_fields"):
        make_store(conn, index_fields=["lang"], metadata_column=None)
