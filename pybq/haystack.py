"""Haystack 2 and 3: a document store, and a retriever by embedding; docs/haystack.md shows both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pybq._catalog.layout import Store, name_table
from pybq._codes.arrays import as_numbers
from pybq._codes.metric import OPERATORS, Metric, check_metric, name_opclass
from pybq._filters.haystack import make_condition
from pybq.errors import needed_by

with needed_by("pybq.haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
    from haystack.document_stores.types.filter_policy import apply_filter_policy
    from haystack.errors import FilterError
    from haystack.utils import Secret, deserialize_secrets_inplace

__all__ = ["BQDocumentStore", "BQEmbeddingRetriever"]

Filters = dict[str, Any]

# What a document has beside the others is in `rest`.
_COLUMNS = ("id", "content", "meta", "embedding", "blob", "rest")
_ALL = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
_OVERWRITE = sql.SQL(", ").join(
    sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in _COLUMNS[1:]
)
_ON_CONFLICT = {
    DuplicatePolicy.SKIP: sql.SQL("ON CONFLICT (id) DO NOTHING"),
    DuplicatePolicy.OVERWRITE: sql.SQL("ON CONFLICT (id) DO UPDATE SET {}").format(_OVERWRITE),
}
_ENVIRONMENT = Secret.from_env_var("PYBQ_DSN")


class BQDocumentStore:
    """Documents in a table of PostgreSQL, with an index of bq on their embeddings.

    Parameters
    ----------
    connection_string : Secret
        How to connect; by default what the environment has in PYBQ_DSN. The database needs the
        extension bq_pgvector, or a role that may create it.
    table, schema : str
        Where the documents are.
    dim : int
        Number of dimensions of the embeddings.
    metric : {"cosine", "l2", "inner_product"}
        Which documents are nearest. The score of a document is its cosine, its inner product, or
        its Euclidean distance with a minus: larger is nearer.
    store : {"vector", "halfvec"}
        pgvector's type to keep embeddings in, four or two bytes per dimension.
    index_fields : sequence of str
        Metadata, of text, that the index of a new table keeps: documents that do not meet ``==``
        on them are not even compared.
    """

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
    ) -> None:
        check_metric(metric)
        self.connection_string = connection_string
        self.table = table
        self.schema = schema
        self.dim = dim
        self.metric = metric
        self.store = store
        self.index_fields = list(index_fields)
        self._name = name_table(table, schema)
        self._conn: psycopg.Connection[Any] | None = None
        self._lock = threading.RLock()

    def to_dict(self) -> dict[str, Any]:
        """Serialize the store."""
        names = ("table", "schema", "dim", "metric", "store", "index_fields")
        parameters = {name: getattr(self, name) for name in names}
        return default_to_dict(
            self, connection_string=self.connection_string.to_dict(), **parameters
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BQDocumentStore:
        """Make a store of what `to_dict` gave."""
        deserialize_secrets_inplace(data["init_parameters"], ["connection_string"])
        return default_from_dict(cls, data)

    def count_documents(self) -> int:
        """How many documents there are."""
        return self.count_documents_by_filter({})

    def count_documents_by_filter(self, filters: Filters) -> int:
        """How many documents meet the filters."""
        with self._run("SELECT count(*) FROM {table} WHERE {condition}", filters) as cursor:
            return cursor.fetchone()["count"]

    def filter_documents(self, filters: Filters | None = None) -> list[Document]:
        """Documents that meet the filters, in the order of their ids."""
        statement = "SELECT {columns} FROM {table} WHERE {condition} ORDER BY id"
        with self._run(statement, filters) as cursor:
            return [_to_document(row) for row in cursor]

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write documents, all or none; returns how many.

        Parameters
        ----------
        documents : list of Document
            Those without an embedding are found by filters only.
        policy : DuplicatePolicy
            What happens to ids that are there; NONE is FAIL.

        Raises
        ------
        DuplicateDocumentError
            If one is there, and the policy is to fail.
        """
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise ValueError("expected a list of haystack.Document")
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) {}").format(
            self._name,
            _ALL,
            sql.SQL(", ").join(map(sql.Placeholder, _COLUMNS)),
            _ON_CONFLICT.get(policy, sql.SQL("")),
        )
        with self._connected() as conn, conn.transaction(), conn.cursor() as cursor:
            try:
                cursor.executemany(statement, [_to_row(document) for document in documents])
            except psycopg.errors.UniqueViolation as error:
                raise DuplicateDocumentError(str(error)) from error
            return max(cursor.rowcount, 0)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete the documents with these ids, those that there are."""
        self.delete_by_filter({"field": "id", "operator": "in", "value": list(document_ids)})

    def delete_all_documents(self) -> None:
        """Delete all documents."""
        self.delete_by_filter({})

    def delete_by_filter(self, filters: Filters) -> int:
        """Delete the documents that meet the filters; returns how many."""
        with self._run("DELETE FROM {table} WHERE {condition}", filters) as cursor:
            return cursor.rowcount

    def update_by_filter(self, filters: Filters, meta: dict[str, Any]) -> int:
        """Add to the metadata of the documents that meet the filters; returns how many."""
        statement = "UPDATE {table} SET meta = meta || %(added)s WHERE {condition}"
        with self._run(statement, filters, added=Jsonb(meta)) as cursor:
            return cursor.rowcount

    def search(
        self,
        query_embedding: list[float],
        *,
        filters: Filters | None = None,
        top_k: int = 10,
        recall: float | None = None,
    ) -> list[Document]:
        """The nearest documents of those that meet the filters, each with its score.

        `recall` is the share of them to be found on average; without, what the index has.
        """
        statement = """
            SELECT {columns}, embedding {operator} %(query)s::{store} AS distance FROM {table}
            WHERE embedding IS NOT NULL AND {condition}
            ORDER BY embedding {operator} %(query)s::{store} LIMIT %(top_k)s
        """
        settings = {"bq.iterative_scan": "relaxed_order"}  # passes over none that it meets late
        if recall is not None:
            settings["bq.recall"] = str(recall)
        query = _write_vector(query_embedding)
        with self._connected() as conn, conn.transaction():
            for name, value in settings.items():
                conn.execute("SELECT set_config(%s, %s, true)", [name, value])
            with self._run(statement, filters, query=query, top_k=top_k) as cursor:
                rows = sorted(cursor, key=lambda row: row["distance"])
        offset = 1.0 if self.metric == "cosine" else 0.0
        return [_to_document(row, offset - row.pop("distance")) for row in rows]

    # The same without blocking an event loop: in a thread, and of one store one at a time.

    async def count_documents_async(self) -> int:
        """As `count_documents`."""
        return await asyncio.to_thread(self.count_documents)

    async def filter_documents_async(self, filters: Filters | None = None) -> list[Document]:
        """As `filter_documents`."""
        return await asyncio.to_thread(self.filter_documents, filters)

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """As `write_documents`."""
        return await asyncio.to_thread(self.write_documents, documents, policy)

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """As `delete_documents`."""
        await asyncio.to_thread(self.delete_documents, document_ids)

    def close(self) -> None:
        """Close the connection; the next call opens another one."""
        with self._lock:
            if self._conn is not None:
                self._conn.close()

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        """The connection, for one thread; the table is there."""
        with self._lock:
            if self._conn is None or self._conn.closed:
                dsn = self.connection_string.resolve_value()
                self._conn = psycopg.connect(dsn, autocommit=True)
                self._create_table(self._conn)
            yield self._conn

    @contextmanager
    def _run(self, statement: str, filters: Filters | None, **more: Any) -> Iterator[Any]:
        condition, parameters = _translate(filters)
        names = {
            "table": self._name,
            "columns": _ALL,
            "condition": condition,
            "operator": sql.SQL(OPERATORS[self.metric]),
            "store": sql.SQL(self.store),
        }
        query = sql.SQL(statement).format(**names)
        with self._connected() as conn, conn.cursor(row_factory=dict_row) as cursor:
            yield cursor.execute(query, {**parameters, **more})

    def _create_table(self, conn: psycopg.Connection[Any]) -> None:
        name = self._name.as_string(conn)
        if conn.execute("SELECT to_regclass(%s)", [name]).fetchone() != (None,):
            return
        fields = [sql.SQL("(meta ->> {})").format(field) for field in self.index_fields]
        keys = [sql.SQL("embedding " + name_opclass(self.store, self.metric)), *fields]
        with conn.transaction():
            # of several at once, one makes it
            lock = "SELECT pg_advisory_xact_lock(hashtext('pybq.create'), hashtext(%s))"
            conn.execute(lock, [name])
            conn.execute("CREATE EXTENSION IF NOT EXISTS bq_pgvector CASCADE")
            conn.execute(
                sql.SQL(
                    "CREATE TABLE IF NOT EXISTS {} (id text PRIMARY KEY, content text,"
                    " meta jsonb NOT NULL, embedding {}({}), blob bytea, rest jsonb)"
                ).format(self._name, sql.SQL(self.store), self.dim)
            )
            conn.execute(
                sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING bq ({})").format(
                    sql.Identifier(f"{self.table[:50]}_embedding"),
                    self._name,
                    sql.SQL(", ").join(keys),
                )
            )


@component
class BQEmbeddingRetriever:
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

    def __init__(
        self,
        *,
        document_store: BQDocumentStore,
        filters: Filters | None = None,
        top_k: int = 10,
        recall: float | None = None,
        filter_policy: FilterPolicy | str = FilterPolicy.REPLACE,
    ) -> None:
        if not isinstance(document_store, BQDocumentStore):
            raise ValueError("expected document_store as BQDocumentStore")
        self.document_store = document_store
        self.filters = filters or {}
        self.top_k = top_k
        self.recall = recall
        self.filter_policy = FilterPolicy(filter_policy)

    def to_dict(self) -> dict[str, Any]:
        """Serialize the retriever, with its store."""
        return default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            recall=self.recall,
            filter_policy=self.filter_policy.value,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BQEmbeddingRetriever:
        """Make a retriever of what `to_dict` gave."""
        parameters = data["init_parameters"]
        parameters["document_store"] = BQDocumentStore.from_dict(parameters["document_store"])
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        filters: Filters | None = None,
        top_k: int | None = None,
        recall: float | None = None,
    ) -> dict[str, list[Document]]:
        """Find documents; arguments that are given take the place of the retriever's."""
        documents = self.document_store.search(
            query_embedding,
            filters=apply_filter_policy(self.filter_policy, self.filters, filters),
            top_k=self.top_k if top_k is None else top_k,
            recall=self.recall if recall is None else recall,
        )
        return {"documents": documents}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query_embedding: list[float],
        filters: Filters | None = None,
        top_k: int | None = None,
        recall: float | None = None,
    ) -> dict[str, list[Document]]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, query_embedding, filters, top_k, recall)


def _translate(filters: Filters | None) -> tuple[sql.Composable, dict[str, Any]]:
    try:
        return make_condition(filters)
    except ValueError as error:
        raise FilterError(str(error)) from error


def _write_vector(values: Any) -> str:
    return str(as_numbers(values, "an embedding").tolist())


def _to_row(document: Document) -> dict[str, Any]:
    rest = document.to_dict(flatten=False)
    row = {name: rest.pop(name) for name in ("id", "content", "meta", "embedding")}
    rest = {name: value for name, value in rest.items() if value is not None and name != "score"}
    if document.blob is not None:
        del rest["blob"]["data"]
    if row["embedding"] is not None:
        row["embedding"] = _write_vector(row["embedding"])
    return {
        **row,
        "meta": Jsonb(row["meta"]),
        "blob": document.blob and document.blob.data,
        "rest": Jsonb(rest) if rest else None,
    }


def _to_document(row: dict[str, Any], score: float | None = None) -> Document:
    rest = row.pop("rest") or {}
    blob = row.pop("blob")
    if blob is not None:
        rest["blob"]["data"] = blob
    embedding = row.pop("embedding")
    if isinstance(embedding, str):
        # as it was written: the text alone would give the shortest number of double precision
        embedding = np.array(embedding[1:-1].split(","), np.float32).tolist()
    return Document.from_dict({**row, **rest, "embedding": embedding, "score": score})
