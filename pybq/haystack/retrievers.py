"""Components that find documents of a `BQDocumentStore`: by embedding, by words, by both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.document_stores.types import FilterPolicy
from haystack.document_stores.types.filter_policy import apply_filter_policy

from pybq.haystack.store import PUBLIC, BQDocumentStore, Filters, in_thread


class _Retriever:
    """What retrievers share: a store, filters, a number of documents, options of searches."""

    # not by super(): `component` makes another class of the one that a method was written in
    def _keep(
        self,
        document_store: BQDocumentStore,
        filters: Filters | None,
        top_k: int,
        filter_policy: FilterPolicy | str,
        **options: Any,
    ) -> None:
        if not isinstance(document_store, BQDocumentStore):
            raise ValueError("expected document_store as BQDocumentStore")
        self.document_store = document_store
        self.filters = filters or {}
        self.top_k = top_k
        self.filter_policy = FilterPolicy(filter_policy)
        self._options = options

    def to_dict(self) -> dict[str, Any]:
        """Serialize the retriever, with its store."""
        return default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            filter_policy=self.filter_policy.value,
            **self._options,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """Make a retriever of what `to_dict` gave."""
        parameters = data["init_parameters"]
        parameters["document_store"] = BQDocumentStore.from_dict(parameters["document_store"])
        return default_from_dict(cls, data)

    def _search(
        self,
        query_embedding: list[float] | None,
        query: str | None,
        filters: Filters | None,
        top_k: int | None,
        **options: Any,
    ) -> dict[str, list[Document]]:
        """Arguments that are given take the place of the retriever's."""
        given = {name: value for name, value in options.items() if value is not None}
        documents = self.document_store.search(
            query_embedding,
            query=query,
            filters=apply_filter_policy(self.filter_policy, self.filters, filters),
            top_k=self.top_k if top_k is None else top_k,
            **{**self._options, **given},
        )
        return {"documents": documents}


@component
class BQEmbeddingRetriever(_Retriever):
    """The documents nearest to an embedding.

    Parameters
    ----------
    document_store : BQDocumentStore
        What is searched.
    filters : dict, optional
        Which documents; those of a run replace them, or are merged, by `filter_policy`.
    top_k : int
        How many documents are wanted.
    recall : float, optional
        Share of the nearest documents to be found on average; without, what the index has: .98.
    filter_policy : FilterPolicy or str
        "replace" or "merge".
    """

    __module__ = PUBLIC

    def __init__(
        self,
        *,
        document_store: BQDocumentStore,
        filters: Filters | None = None,
        top_k: int = 10,
        recall: float | None = None,
        filter_policy: FilterPolicy | str = FilterPolicy.REPLACE,
    ) -> None:
        self._keep(document_store, filters, top_k, filter_policy, recall=recall)

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        filters: Filters | None = None,
        top_k: int | None = None,
        recall: float | None = None,
    ) -> dict[str, list[Document]]:
        """Find documents; arguments that are given take the place of the retriever's."""
        return self._search(query_embedding, None, filters, top_k, recall=recall)

    run_async = in_thread(run)


@component
class BQKeywordRetriever(_Retriever):
    """The documents whose content has the words of a query, by PostgreSQL's full text search.

    The score of a document is 1 / (60 + its place): documents come in the order of `ts_rank`, or of
    BM25 if the table has such an index, whose values say nothing across queries. An index makes it
    fast, without one all documents are read: ``store.table.create_text_index("content")``.

    Parameters
    ----------
    document_store, filters, top_k, filter_policy
        As of `BQEmbeddingRetriever`.
    language : str, optional
        Configuration of full text search, as "english" or "simple"; left out, that of the index.
    """

    __module__ = PUBLIC

    def __init__(
        self,
        *,
        document_store: BQDocumentStore,
        filters: Filters | None = None,
        top_k: int = 10,
        language: str | None = None,
        filter_policy: FilterPolicy | str = FilterPolicy.REPLACE,
    ) -> None:
        self._keep(document_store, filters, top_k, filter_policy, language=language)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: Filters | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Find documents that have all words; `or`, -not and "a phrase" are as on the web.

        Raises
        ------
        ValueError
            If there are no words.
        """
        return self._search(None, query, filters, top_k)

    run_async = in_thread(run)


@component
class BQHybridRetriever(_Retriever):
    """The documents nearest to an embedding and those that have words, fused by reciprocal rank.

    Both lists, and their fusion, are one statement: see docs/hybrid.md.

    Parameters
    ----------
    document_store, filters, top_k, recall, filter_policy
        As of `BQEmbeddingRetriever`.
    language : str, optional
        As of `BQKeywordRetriever`.
    weights : (float, float), optional
        What the list by embeddings and the list by words count; (1, 1) if left out.
    rrf : float, optional
        A document at place i of a list scores its weight / (rrf + i); 60 if left out.
    depth : int, optional
        Documents of each list that are fused; the larger of 50 and 4 top_k if left out.
    """

    __module__ = PUBLIC

    def __init__(
        self,
        *,
        document_store: BQDocumentStore,
        filters: Filters | None = None,
        top_k: int = 10,
        recall: float | None = None,
        language: str | None = None,
        weights: Sequence[float] | None = None,
        rrf: float | None = None,
        depth: int | None = None,
        filter_policy: FilterPolicy | str = FilterPolicy.REPLACE,
    ) -> None:
        options = {"recall": recall, "language": language, "rrf": rrf, "depth": depth}
        both = None if weights is None else list(weights)
        self._keep(document_store, filters, top_k, filter_policy, weights=both, **options)

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        query: str,
        filters: Filters | None = None,
        top_k: int | None = None,
        recall: float | None = None,
    ) -> dict[str, list[Document]]:
        """Find documents; arguments that are given take the place of the retriever's.

        Raises
        ------
        ValueError
            If there are no words.
        """
        return self._search(query_embedding, query, filters, top_k, recall=recall)

    run_async = in_thread(run)
