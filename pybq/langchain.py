"""LangChain: a vector store over a table, one's own or a new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pybq._documents.columns import Found
from pybq._documents.dicts import to_filter
from pybq._documents.documents import Documents, find, find_with_vectors, put, read, remove
from pybq._documents.filters import Filter
from pybq._documents.opening import open_table
from pybq._tables.table import AsyncTable, Table
from pybq.errors import needed_by

with needed_by("pybq.langchain"):
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from psycopg import Connection

    from pybq._codes.metric import Metric

    Scored: TypeAlias = list[tuple[Document, float]]

__all__ = ["BQVectorStore"]


class BQVectorStore(VectorStore):  # type: ignore[misc]
    """Documents in rows of a table, which may have columns of its own for their metadata.

    Parameters
    ----------
    table : Table or AsyncTable
        Its key is the id of a document. With an AsyncTable only the asynchronous methods work.
    embedding : Embeddings
    async_table : AsyncTable, optional
        The same table, for the asynchronous methods; without, they wait in a thread.
    content_column : str
        Column of the text.
    metadata_column : str or None
        Column of type jsonb for metadata without a column of their own; "metadata" may be missing.
    metadata_columns : sequence of str, optional
        Columns of metadata, by which an index can filter; left out, all further ones of the table.
    **search
        Options of `Table.search` for every search, as ``recall=0.99``; those of a call come first.

    Notes
    -----
    Searches take `filter` with LangChain's operators ($eq $ne $lt $lte $gt $gte $in $nin $between
    $exists $like $ilike $contains $and $or $not), in which a missing field is null; or `where`,
    SQL or an expression of SQLAlchemy, as `Table.search` does. With ``hybrid=True`` the words of
    the query are searched, too: make an index with ``store.table.create_text_index(...)``.

    All methods may be called from several threads, and are done one after the other, as one
    connection does.

    Examples
    --------
    >>> import psycopg, pybq
    >>> from langchain_core.embeddings import DeterministicFakeEmbedding
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     store = BQVectorStore.open(conn, "documents", DeterministicFakeEmbedding(size=8))
    ...     ids = store.add_texts(["green apples", "red pears"], [{"n": 1}, {"n": 2}])
    ...     found = store.similarity_search("green apples", k=1, filter={"n": {"$lt": 3}})
    >>> found[0].page_content, found[0].metadata, found[0].id == ids[0]
    ('green apples', {'n': 1}, True)
    """

    def __init__(
        self,
        table: Table | AsyncTable,
        embedding: Embeddings,
        *,
        async_table: AsyncTable | None = None,
        content_column: str = "content",
        metadata_column: str | None = "metadata",
        metadata_columns: Sequence[str] | None = None,
        **search: Any,
    ) -> None:
        self._documents = Documents(
            table, async_table, content_column, metadata_column, metadata_columns
        )
        self._embedding = embedding
        self._search = search

    @classmethod
    def open(
        cls,
        conn: Connection[Any],
        name: str,
        embedding: Embeddings,
        *,
        dim: int | None = None,
        metric: Metric | None = None,
        **options: Any,
    ) -> BQVectorStore:
        """Open a table; create it if there is none, with keys of text and metadata in JSON.

        Parameters
        ----------
        dim : int, optional
            Left out, the embedding is asked for a vector.
        options
            Of the constructor.
        """
        dim = len(embedding.embed_query("dimensions")) if dim is None else dim
        return cls(open_table(conn, name, dim, metric, **options), embedding, **options)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> BQVectorStore:
        """Add texts to a `table`, or to that of a `name` on a `connection`, as `open` makes it."""
        store = cls._take(embedding, **options)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> BQVectorStore:
        store = cls._take(embedding, **options)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    def _take(
        cls,
        embedding: Embeddings,
        table: Table | AsyncTable | None = None,
        connection: Connection[Any] | None = None,
        name: str = "documents",
        **options: Any,
    ) -> BQVectorStore:
        if table is not None and connection is None:
            return cls(table, embedding, **options)
        if connection is None or table is not None:
            raise TypeError("expected a table, or a connection to open it on")
        return cls.open(connection, name, embedding, **options)

    @property
    def table(self) -> Table | AsyncTable:
        """The table, for its indexes, its status, and SQL."""
        return self._documents.table

    @property
    def embeddings(self) -> Embeddings:
        return self._embedding

    # -- documents ------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Write texts, over those of the same ids; returns the ids, made where there are none."""
        texts = list(texts)
        vectors = self._embedding.embed_documents(texts)
        return self._documents.do(put, ids, texts, metadatas, vectors)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        texts = list(texts)
        vectors = await self._embedding.aembed_documents(texts)
        return await self._documents.ado(put, ids, texts, metadatas, vectors)

    def delete(
        self, ids: Sequence[str] | None = None, *, filter: Any = None, **kwargs: Any
    ) -> bool:
        """Delete by ids, by a filter, or by both; one of them must be given."""
        self._documents.do(remove, *_take_removed(ids, filter))
        return True

    async def adelete(
        self, ids: Sequence[str] | None = None, *, filter: Any = None, **kwargs: Any
    ) -> bool:
        await self._documents.ado(remove, *_take_removed(ids, filter))
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return [_to_document(each) for each in self._documents.do(read, ids)]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return [_to_document(each) for each in await self._documents.ado(read, ids)]

    # -- searches -------------------------------------------------------------------------

    def similarity_search(self, query: str, k: int = 4, **search: Any) -> list[Document]:
        return [each for each, _ in self.similarity_search_with_score(query, k, **search)]

    async def asimilarity_search(self, query: str, k: int = 4, **search: Any) -> list[Document]:
        return [each for each, _ in await self.asimilarity_search_with_score(query, k, **search)]

    def similarity_search_with_score(self, query: str, k: int = 4, **search: Any) -> Scored:
        """Documents with their distance, the nearest first; if hybrid, the highest score first."""
        options = self._take_options(query, search)
        vector = self._embedding.embed_query(query)
        return _to_scored(self._documents.do(find, vector, k, **options))

    async def asimilarity_search_with_score(self, query: str, k: int = 4, **search: Any) -> Scored:
        options = self._take_options(query, search)
        vector = await self._embedding.aembed_query(query)
        return _to_scored(await self._documents.ado(find, vector, k, **options))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **search: Any
    ) -> list[Document]:
        options = self._take_options(None, search)
        return [_to_document(e) for e in self._documents.do(find, embedding, k, **options)]

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **search: Any
    ) -> list[Document]:
        options = self._take_options(None, search)
        return [_to_document(e) for e in await self._documents.ado(find, embedding, k, **options)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **search: Any
    ) -> list[Document]:
        vector = self._embedding.embed_query(query)
        mmr = self.max_marginal_relevance_search_by_vector
        return mmr(vector, k, fetch_k, lambda_mult, **search)

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **search: Any
    ) -> list[Document]:
        vector = await self._embedding.aembed_query(query)
        mmr = self.amax_marginal_relevance_search_by_vector
        return await mmr(vector, k, fetch_k, lambda_mult, **search)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **search: Any,
    ) -> list[Document]:
        """Documents that are near, and not near each other, among the `fetch_k` nearest."""
        query = (embedding, max(k, fetch_k))
        found = self._documents.do(find_with_vectors, *query, **self._take_options(None, search))
        return _choose(embedding, *found, k, lambda_mult)

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **search: Any,
    ) -> list[Document]:
        query, options = (embedding, max(k, fetch_k)), self._take_options(None, search)
        found = await self._documents.ado(find_with_vectors, *query, **options)
        return _choose(embedding, *found, k, lambda_mult)

    def _take_options(self, query: str | None, search: Mapping[str, Any]) -> dict[str, Any]:
        """What `find` takes of the options of a search."""
        options = {**self._search, **search}
        if "filter" in options:
            options["filter"] = to_filter(options["filter"])
        hybrid = options.pop("hybrid", False)
        if query is None and search.get("hybrid"):
            raise ValueError("expected words for hybrid=True: search by a text")
        if query is not None and hybrid:
            options.setdefault("text", query)
        return options

    def similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **search: Any
    ) -> Scored:
        self._need_distances(search)
        return cast("Scored", super().similarity_search_with_relevance_scores(query, k, **search))

    async def asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **search: Any
    ) -> Scored:
        self._need_distances(search)
        found = await super().asimilarity_search_with_relevance_scores(query, k, **search)
        return cast("Scored", found)

    def _need_distances(self, search: Mapping[str, Any]) -> None:
        """Refuse relevance of fused ranks, which are no distances."""
        if {**self._search, **search}.get("hybrid"):
            raise ValueError("expected no relevance scores of hybrid=True: its scores are of ranks")

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        functions = {
            "cosine": self._cosine_relevance_score_fn,
            "l2": self._euclidean_relevance_score_fn,
            "inner_product": self._max_inner_product_relevance_score_fn,
        }
        return cast("Callable[[float], float]", functions[self._documents.metric])


def _take_removed(ids: Sequence[str] | None, given: Any) -> tuple[Any, Filter | None]:
    if ids is None and not given:  # an empty filter is true of all documents
        raise ValueError("expected ids or a filter to delete by; store.table has all rows")
    return ids, to_filter(given)


def _to_document(found: Found) -> Document:
    return Document(id=found.id, page_content=found.content or "", metadata=found.metadata)


def _to_scored(found: Sequence[Found]) -> Scored:
    return [(_to_document(e), e.distance if e.score is None else e.score) for e in found]


def _choose(
    query: Sequence[float], found: Sequence[Found], vectors: Any, k: int, lambda_mult: float
) -> list[Document]:
    if not found:
        return []
    chosen = maximal_marginal_relevance(np.array(query, np.float32), vectors, lambda_mult, k)
    return [_to_document(found[i]) for i in chosen]
