"""LlamaIndex: a vector store over a table, one's own or a new one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pybq._documents.columns import Found
from pybq._documents.documents import Documents, find, find_with_vectors, put, read, remove
from pybq._documents.filters import Compare, Every, Filter, Not, Operator, Some
from pybq._documents.opening import open_table
from pybq._tables.table import AsyncTable, Table
from pybq.errors import needed_by

with needed_by("pybq.llama_index"):
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
    from llama_index.core.schema import BaseNode, MetadataMode, TextNode
    from llama_index.core.vector_stores.types import (
        BasePydanticVectorStore,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

if TYPE_CHECKING:
    from psycopg import Connection

    from pybq._codes.metric import Metric

__all__ = ["BQVectorStore"]

OPERATORS: dict[str, Operator] = {
    "==": "eq", "!=": "ne", "<": "lt", "<=": "lte", ">": "gt", ">=": "gte", "in": "in",
    "nin": "nin", "contains": "contains", "is_empty": "empty", "text_match": "has_text",
    "text_match_insensitive": "has_text_any_case",
}  # fmt: skip

# Of mode MMR: nodes to choose among, for each one wanted.
PREFETCH = 4


class BQVectorStore(BasePydanticVectorStore):  # type: ignore[misc]
    """Nodes in rows of a table, which may have columns of its own for their metadata.

    Parameters
    ----------
    table : Table or AsyncTable
        Its key is the id of a node. With an AsyncTable only the asynchronous methods work.
    async_table : AsyncTable, optional
        The same table, for the asynchronous methods; without, they wait in a thread.
    content_column : str
        Column of the text.
    metadata_column : str or None
        Column of type jsonb: metadata without a column of their own, and what a node is beside its
        text. In a table without one, rows are read as nodes of text.
    metadata_columns : sequence of str, optional
        Columns of metadata, by which an index can filter; left out, all further ones of the table.
    **search
        Options of `Table.search` for every query, as ``recall=0.99``.

    Notes
    -----
    Modes of a query: DEFAULT, MMR, HYBRID and TEXT_SEARCH (or SPARSE). `alpha` of HYBRID is what
    the vector counts, 1 - alpha the words; `sparse_top_k` the depth of both lists. The words need
    an index: ``store.table.create_text_index("content")``. Similarities are 1 - distance by
    cosine, the inner product, exp(-distance) by L2; of words, their scores.

    Examples
    --------
    >>> import psycopg, pybq
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     store = BQVectorStore.open(conn, "nodes", dim=2)
    ...     ids = store.add([
    ...         TextNode(text="green apples", embedding=[1, 0], metadata={"n": 1}),
    ...         TextNode(text="red pears", embedding=[0, 1], metadata={"n": 2})])
    ...     found = store.query(VectorStoreQuery(query_embedding=[1, 0.1], similarity_top_k=1))
    >>> found.nodes[0].text, found.nodes[0].metadata, found.ids == ids[:1]
    ('green apples', {'n': 1}, True)
    """

    stores_text: bool = True
    flat_metadata: bool = False

    _documents: Documents = PrivateAttr()
    _search: dict[str, Any] = PrivateAttr()

    def __init__(
        self,
        table: Table | AsyncTable,
        *,
        async_table: AsyncTable | None = None,
        content_column: str = "content",
        metadata_column: str | None = "metadata",
        metadata_columns: Sequence[str] | None = None,
        **search: Any,
    ) -> None:
        super().__init__()
        self._documents = Documents(
            table, async_table, content_column, metadata_column, metadata_columns
        )
        self._search = search

    @classmethod
    def open(
        cls,
        conn: Connection[Any],
        name: str,
        dim: int,
        *,
        metric: Metric | None = None,
        **options: Any,
    ) -> BQVectorStore:
        """Open a table; create it if there is none, with keys of text and metadata in JSON."""
        return cls(open_table(conn, name, dim, metric, **options), **options)

    @classmethod
    def class_name(cls) -> str:
        return "BQVectorStore"

    @property
    def client(self) -> Any:
        """The connection."""
        return self.table.connection

    @property
    def table(self) -> Table | AsyncTable:
        """The table, for its indexes, its status, and SQL."""
        return self._documents.table

    # -- nodes ----------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Write nodes, over those of the same ids."""
        return self._documents.do(put, *self._take_nodes(nodes))

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        return await self._documents.ado(put, *self._take_nodes(nodes))

    def delete(self, ref_doc_id: str, **kwargs: Any) -> None:
        """Delete the nodes of a document."""
        self._documents.do(remove, None, Compare("ref_doc_id", "eq", ref_doc_id))

    async def adelete(self, ref_doc_id: str, **kwargs: Any) -> None:
        await self._documents.ado(remove, None, Compare("ref_doc_id", "eq", ref_doc_id))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> None:
        """Delete nodes by ids, by filters, or by both; without either, none."""
        if node_ids is not None or filters is not None:
            self._documents.do(remove, node_ids, to_filter(filters))

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> None:
        if node_ids is not None or filters is not None:
            await self._documents.ado(remove, node_ids, to_filter(filters))

    def clear(self) -> None:
        """Delete all nodes."""
        self._documents.do(remove)

    async def aclear(self) -> None:
        await self._documents.ado(remove)

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Nodes by ids, in that order, and by filters; without either, all."""
        found = self._documents.do(read, node_ids, to_filter(filters))
        return [self._to_node(each) for each in found]

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        found = await self._documents.ado(read, node_ids, to_filter(filters))
        return [self._to_node(each) for each in found]

    def _take_nodes(self, nodes: Sequence[BaseNode]) -> tuple[Any, ...]:
        """Ids, texts, metadata and vectors."""
        contents, metadatas = [], []
        for node in nodes:
            contents.append(node.get_content(metadata_mode=MetadataMode.NONE))
            if self._documents.columns.json is None:
                has_source = "ref_doc_id" in self._documents.columns.fields
                source = {"ref_doc_id": node.ref_doc_id} if has_source else {}
                metadatas.append({**node.metadata, **source})
            else:
                metadatas.append(node_to_metadata_dict(node, remove_text=True))
        vectors = [node.get_embedding() for node in nodes]
        return [node.node_id for node in nodes], contents, metadatas, vectors

    def _to_node(self, found: Found) -> BaseNode:
        text = found.content or ""
        if "_node_content" in found.metadata:
            return metadata_dict_to_node(found.metadata, text=text)
        # of a row that another program has written
        return TextNode(id_=found.id, text=text, metadata=found.metadata)

    # -- queries --------------------------------------------------------------------------

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find nodes; further arguments are options of `Table.search`."""
        if query.mode == VectorStoreQueryMode.MMR:
            found, vectors = self._documents.do(find_with_vectors, **self._take_mmr(query, kwargs))
            return self._choose(query, found, vectors)
        return self._to_result(self._documents.do(find, **self._take_query(query, kwargs)))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        if query.mode == VectorStoreQueryMode.MMR:
            options = self._take_mmr(query, kwargs)
            found, vectors = await self._documents.ado(find_with_vectors, **options)
            return self._choose(query, found, vectors)
        return self._to_result(await self._documents.ado(find, **self._take_query(query, kwargs)))

    def _take_query(self, query: VectorStoreQuery, search: Mapping[str, Any]) -> dict[str, Any]:
        """What `find` takes of a query."""
        vector, k, mode = query.query_embedding, query.similarity_top_k, query.mode
        options = {**self._search, **search}
        if mode in (VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.SPARSE):
            vector, k = None, query.sparse_top_k or k
            options["text"] = query.query_str or ""
        elif mode == VectorStoreQueryMode.HYBRID:
            options["text"] = query.query_str or ""
            k = query.hybrid_top_k or k
            if query.alpha is not None:
                options["weights"] = (query.alpha, 1 - query.alpha)
            if query.sparse_top_k is not None:
                options["depth"] = max(query.sparse_top_k, query.similarity_top_k)
        elif mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
            raise ValueError(f"expected a mode of default, mmr, hybrid or text_search, got {mode}")
        parts = [to_filter(query.filters)] if query.filters is not None else []
        if query.doc_ids:
            parts.append(Compare("ref_doc_id", "in", query.doc_ids))
        filter = Every([part for part in parts if part is not None]) if parts else None
        # an empty list, as the index of a store that keeps texts gives, is none
        ids = query.node_ids or None
        return {"query": vector, "k": k, "filter": filter, "ids": ids, **options}

    def _take_mmr(self, query: VectorStoreQuery, search: Mapping[str, Any]) -> dict[str, Any]:
        rest = dict(search)
        k = math.ceil(query.similarity_top_k * rest.pop("mmr_prefetch_factor", PREFETCH))
        k = rest.pop("mmr_prefetch_k", k)
        return {**self._take_query(query, rest), "k": k}

    def _choose(
        self, query: VectorStoreQuery, found: Sequence[Found], vectors: Any
    ) -> VectorStoreQueryResult:
        k, threshold = query.similarity_top_k, query.mmr_threshold
        similarities, places = get_top_k_mmr_embeddings(
            query.query_embedding, list(vectors), None, k, list(range(len(found))), threshold
        )
        result = self._to_result([found[place] for place in places])
        result.similarities = similarities
        return result

    def _to_result(self, found: Sequence[Found]) -> VectorStoreQueryResult:
        nodes = [self._to_node(each) for each in found]
        similarities = [
            self._to_similarity(each.distance) if each.score is None else each.score
            for each in found
        ]
        return VectorStoreQueryResult(nodes, similarities, [each.id for each in found])

    def _to_similarity(self, distance: float) -> float:
        if self._documents.metric == "l2":
            return math.exp(-distance)
        return 1 - distance if self._documents.metric == "cosine" else -distance


def to_filter(given: MetadataFilters | None) -> Filter | None:
    """LlamaIndex's filters as a tree."""
    if given is None:
        return None
    parts = [_to_part(each) for each in given.filters]
    condition = getattr(given.condition, "value", given.condition) or "and"
    if condition == "not":
        return Not(Some(parts))
    if condition not in ("and", "or"):
        raise ValueError(f"expected a condition of and, or or not, got {condition!r}")
    return Every(parts) if condition == "and" else Some(parts)


def _to_part(given: Any) -> Filter:
    if isinstance(given, MetadataFilters):
        part = to_filter(given)
        assert part is not None
        return part
    operator = given.operator.value
    if operator in ("any", "all"):
        values = given.value if isinstance(given.value, list) else [given.value]
        parts: list[Filter] = [Compare(given.key, "contains", value) for value in values]
        return Some(parts) if operator == "any" else Every(parts)
    if operator not in OPERATORS:
        raise ValueError(f"expected an operator of {', '.join(OPERATORS)}, got {operator!r}")
    return Compare(given.key, OPERATORS[operator], given.value)
