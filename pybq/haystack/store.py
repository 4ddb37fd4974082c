"""`BQDocumentStore`: documents in rows of a table, one's own or a new one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from haystack import Document, default_from_dict, default_to_dict
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.utils import Secret, deserialize_secrets_inplace

from pybq._catalog.layout import Store, name_table
from pybq._codes.metric import Metric, check_metric
from pybq._documents.comparisons import to_filter
from pybq._documents.documents import Documents, change, count, find, read, remove, write
from pybq._documents.opening import name_columns, open_indexed
from pybq._loading.ingest import OnConflict
from pybq._tables.table import Table
from pybq.haystack.rows import OTHERS, to_document, to_rows

if TYPE_CHECKING:
    from typing import Concatenate

    from typing_extensions import ParamSpec

    _P = ParamSpec("_P")

_Self = TypeVar("_Self")
_T = TypeVar("_T")

Filters = dict[str, Any]

# Pipelines write where a class is from: files may change, the public name does not.
PUBLIC = "pybq.haystack"

ON_CONFLICT: dict[DuplicatePolicy, OnConflict] = {
    DuplicatePolicy.SKIP: "skip",
    DuplicatePolicy.OVERWRITE: "update",
}
_ENVIRONMENT = Secret.from_env_var("PYBQ_DSN")


def in_thread(
    method: Callable[Concatenate[_Self, _P], _T],
) -> Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _T]]:
    """Make the asynchronous method of one that waits."""

    @wraps(method)
    async def waiting(self: _Self, /, *given: _P.args, **options: _P.kwargs) -> _T:
        return await asyncio.to_thread(method, self, *given, **options)

    waiting.__name__ = f"{method.__name__}_async"
    return waiting


class BQDocumentStore:
    """Documents in a table of PostgreSQL, which may have columns of its own for their metadata.

    Parameters
    ----------
    connection_string : Secret
        How to connect; by default what the environment has in PYBQ_DSN. To create a table, the
        database needs the extension bq_pgvector, or a role that may create it.
    table, schema : str
        Where the documents are. If there is no such table, it is created with an index on the
        embeddings when the store is first used.
    dim : int
        Number of dimensions of the embeddings.
    metric : {"cosine", "l2", "inner_product"}
        Which documents are nearest. The score of a document is its cosine, its inner product, or
        its Euclidean distance with a minus: larger is nearer.
    store : {"vector", "halfvec"}
        pgvector's type to keep embeddings in, in a new table: four or two bytes per dimension.
    index_fields : sequence of str
        Metadata in JSON, of text, that the index of a new table keeps: documents that do not meet
        ``==`` on them are not fetched.
    embedding_column : str, optional
        Column of the embeddings, of a table that has several of vectors.
    content_column : str
        Column of the text.
    metadata_column : str or None
        Column of type jsonb for metadata without a column of their own; "meta" may be missing.
    metadata_columns : sequence of str, optional
        Columns of metadata, by which an index can filter; left out, all further ones of the table.
        `blob` and `rest`, if they are there, are for binary data and sparse embeddings.

    Notes
    -----
    A store has one connection, opened when it is first used, which threads share; asynchronous
    methods wait for it in a thread.
    """

    __module__ = PUBLIC

    def __init__(
        self,
        *,
        connection_string: Secret = _ENVIRONMENT,
        table: str = "haystack_documents",
        schema: str | None = None,
        dim: int = 768,
        metric: Metric = "cosine",
        store: Store = "vector",
        index_fields: Sequence[str] = (),
        embedding_column: str | None = None,
        content_column: str = "content",
        metadata_column: str | None = "meta",
        metadata_columns: Sequence[str] | None = None,
    ) -> None:
        check_metric(metric)
        name_table(table, schema)  # checks both
        if index_fields and metadata_column is None:
            raise ValueError("expected a metadata_column with index_fields, which are in it")
        self._parameters: dict[str, Any] = {
            "table": table,
            "schema": schema,
            "dim": dim,
            "metric": metric,
            "store": store,
            "index_fields": list(index_fields),
            "embedding_column": embedding_column,
            "content_column": content_column,
            "metadata_column": metadata_column,
            "metadata_columns": None if metadata_columns is None else list(metadata_columns),
        }
        self._connection_string = connection_string
        self._conn: psycopg.Connection[Any] | None = None
        self._documents: Documents | None = None
        self._lock = threading.RLock()

    def to_dict(self) -> dict[str, Any]:
        """Serialize the store."""
        secret = self._connection_string.to_dict()
        return default_to_dict(self, connection_string=secret, **self._parameters)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BQDocumentStore:
        """Make a store of what `to_dict` gave."""
        deserialize_secrets_inplace(data["init_parameters"], ["connection_string"])
        return default_from_dict(cls, data)

    @property
    def table(self) -> Table:
        """For what a table can besides: indexes, status, SQL; connects if need be."""
        with self._lock:
            table = self._open().table
            assert isinstance(table, Table)
            return table

    def close(self) -> None:
        """Close the connection; the next call opens another one."""
        with self._lock:
            if self._conn is not None:
                self._conn.close()

    # -- documents ------------------------------------------------------------------------

    def count_documents(self) -> int:
        """How many documents there are."""
        return self._do(count)

    def count_documents_by_filter(self, filters: Filters) -> int:
        """How many documents meet the filters."""
        return self._do(count, filters=filters)

    def filter_documents(self, filters: Filters | None = None) -> list[Document]:
        """Documents that meet the filters, in the order of their ids."""
        return [to_document(each) for each in self._do(read, filters=filters, vectors=True)]

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write documents, all or none; returns how many.

        Parameters
        ----------
        documents : list of Document
            Those without an embedding are found by filters and words only.
        policy : DuplicatePolicy
            What happens to ids that are there; NONE is FAIL.

        Raises
        ------
        DuplicateDocumentError
            If one is there, and the policy is to fail.
        """
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise ValueError("expected a list of haystack.Document")
        try:
            return self._do(write, *to_rows(documents), ON_CONFLICT.get(policy, "error"))
        except psycopg.errors.UniqueViolation as error:
            raise DuplicateDocumentError(str(error)) from error

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete the documents with these ids, those that there are."""
        self._do(remove, document_ids)

    def delete_all_documents(self) -> None:
        """Delete all documents."""
        self._do(remove)

    def delete_by_filter(self, filters: Filters) -> int:
        """Delete the documents that meet the filters; returns how many."""
        return self._do(remove, filters=filters)

    def update_by_filter(self, filters: Filters, meta: dict[str, Any]) -> int:
        """Add to the metadata of the documents that meet the filters; returns how many."""
        return self._do(change, meta, filters=filters)

    def search(
        self,
        query_embedding: list[float] | None,
        *,
        query: str | None = None,
        filters: Filters | None = None,
        top_k: int = 10,
        **options: Any,
    ) -> list[Document]:
        """Of the documents that meet the filters the nearest, or those that have the words.

        Both are fused by reciprocal rank: the score is then that of the ranks, not of a metric.

        Parameters
        ----------
        query_embedding : list of float or None
            None: by words alone.
        query : str, optional
            Words, as people type them; an index makes them fast:
            ``store.table.create_text_index("content")``.
        **options
            Of `Table.search`: recall, language, weights, rrf, depth, ...
        """
        options |= {"text": query, "vectors": True}
        found = self._do(find, query_embedding, top_k, filters=filters, **options)
        metric = self._parameters["metric"]
        offset = 1.0 if metric == "cosine" else 0.0
        return [
            to_document(each, offset - each.distance if each.score is None else each.score)
            for each in found
        ]

    # -- the same without blocking an event loop ------------------------------------------

    count_documents_async = in_thread(count_documents)
    count_documents_by_filter_async = in_thread(count_documents_by_filter)
    filter_documents_async = in_thread(filter_documents)
    write_documents_async = in_thread(write_documents)
    delete_documents_async = in_thread(delete_documents)
    delete_all_documents_async = in_thread(delete_all_documents)
    delete_by_filter_async = in_thread(delete_by_filter)
    update_by_filter_async = in_thread(update_by_filter)

    # -- the connection -------------------------------------------------------------------

    def _do(
        self,
        operation: Callable[..., Coroutine[Any, Any, _T]],
        *arguments: Any,
        filters: Filters | None = None,
        **options: Any,
    ) -> _T:
        """Run an operation on documents, of one store one at a time."""
        with self._lock:
            documents = self._open()
            if filters:
                try:
                    options["filter"] = to_filter(filters, documents.columns)
                    documents.columns.write_condition(options["filter"])
                except ValueError as error:
                    raise FilterError(str(error)) from error
            return documents.do(operation, *arguments, **options)

    def _open(self) -> Documents:
        """The table on a connection that is alive; created if there is none."""
        if self._documents is None or self._conn is None or self._conn.closed:
            given = self._parameters
            content, json = given["content_column"], given["metadata_column"]
            indexed, fields = given["index_fields"], given["metadata_columns"]
            conn = psycopg.connect(self._connection_string.resolve_value(), autocommit=True)
            try:
                table = open_indexed(
                    conn,
                    given["table"],
                    given["schema"],
                    given["dim"],
                    given["metric"],
                    given["store"],
                    {**name_columns(content, json), **OTHERS},
                    json,
                    indexed,
                    given["embedding_column"],
                    fields,
                )
                self._documents = Documents(
                    table,
                    content=content,
                    json=json,
                    fields=fields,
                    others=tuple(OTHERS),
                    indexed=indexed,
                    default_json="meta",
                )
            except BaseException:
                conn.close()
                raise
            self._conn = conn
        return self._documents
