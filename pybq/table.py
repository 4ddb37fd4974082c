"""Table and AsyncTable: vectors with their codes in PostgreSQL; create, ingest, search, status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from numpy.typing import ArrayLike, NDArray
from psycopg import AsyncConnection, Connection, sql

from pybq.database import AsyncDatabase, BlockingDatabase, Database, run
from pybq.ingest import ingest
from pybq.quantizer import Quantizer
from pybq.schema import Layout, Store, create_index, create_table, name_table, open_table
from pybq.search import Hit, Search, register_vectors
from pybq.statistics import Statistics
from pybq.status import Status, read_statistics, read_status
from pybq.strategy import Metric

__all__ = ["AsyncTable", "Hit", "Metric", "Status", "Store", "Table"]

_D = TypeVar("_D", bound=Database)


class _Table(Generic[_D]):
    """What both kinds of table are."""

    def __init__(self, db: _D, layout: Layout) -> None:
        self._db = db
        self._layout = layout
        self._quantizer: Quantizer | None = None  # what made the codes; None: not known yet
        if layout.source is not None:
            register_vectors(db.connection, layout.source)

    @property
    def name(self) -> str:
        """Name of the table."""
        return self._layout.name

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self._layout.dim

    @property
    def metric(self) -> str:
        """Which rows are nearest: "cosine", "l2" or "inner_product"."""
        return self._layout.metric

    @property
    def store(self) -> str | None:
        """Type of the stored vectors; None: codes only."""
        return self._layout.store

    @property
    def identifier(self) -> sql.Identifier:
        """The table's name, with its schema if one was given, to compose SQL with."""
        return self._layout.identifier

    @property
    def id_column(self) -> str:
        """Name of the primary key."""
        return self._layout.id.name

    @property
    def code_column(self) -> str:
        """Name of the column of codes."""
        return self._layout.code.name

    @property
    def source_column(self) -> str | None:
        """Name of the column of vectors; None: codes only."""
        return None if self._layout.source is None else self._layout.source.name

    @property
    def columns(self) -> Mapping[str, str]:
        """Further columns: name to SQL type, as in pg_type."""
        return MappingProxyType({n: c.type_name for n, c in self._layout.columns.items()})

    async def _search(self, search: Search) -> Any:
        return await search.run(self._db, await self._current_quantizer())

    async def _current_quantizer(self) -> Quantizer | None:
        """Return what made the codes, None before the first ingest.

        The database is asked once: the transform stays, and codes of another one would be an
        error of the server, never a wrong answer.
        """
        if self._quantizer is None:
            transform = (await read_status(self._db, self._layout)).transform
            if transform is not None:
                self._quantizer = Quantizer(self.dim, transform)
        return self._quantizer


class Table(_Table[BlockingDatabase]):
    """A table of vectors that is searched by 2-bit codes.

    Opens the table; creates it first if there is none and `dim` is given.

    Parameters
    ----------
    conn : psycopg.Connection
        In a database with the extension `bq`, and `vector` if vectors are stored.
    name : str
        Name of the table, as it is: no quotes, no schema in it.
    dim : int, optional
        Number of dimensions. Needed to create; if the table exists, it must agree.
    metric : {"cosine", "l2", "inner_product"}, optional
        Which rows are nearest. "cosine" for a new table unless told; if the table exists and it
        is given, it must agree.
    schema : str, optional
        Schema of the table; else the search path decides.
    **options
        Further options of `create`, used only if the table is created.

    Raises
    ------
    TableError
        If there is no such table and no `dim`, if it is not one made by `create`, or if it
        does not agree with what was asked.
    ExtensionMissingError
        If the database lacks `bq`, or `vector` and vectors are to be stored.

    Notes
    -----
    The table has a primary key `id`, the vectors in `embedding` unless it keeps codes only, the
    codes in `code`, and what else was asked for; other clients may read and write it as any table.
    What pybq has learned of it is in the extension's table `bq_columns`.

    All methods join the transaction that is open on `conn`, or make one of their own.

    Examples
    --------
    >>> import numpy as np
    >>> import psycopg
    >>> import pybq
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     table = pybq.Table(conn, "items", dim=64, metric="cosine")
    ...     rows = table.ingest(range(1000), vectors)
    ...     hits = table.search(vectors[42], k=10)
    >>> rows, hits[0].id, round(hits[0].distance, 3)
    (1000, 42, 0.0)
    """

    def __init__(
        self,
        conn: Connection[Any],
        name: str,
        dim: int | None = None,
        metric: Metric | None = None,
        *,
        schema: str | None = None,
        **options: Any,
    ) -> None:
        db = BlockingDatabase(conn)
        super().__init__(db, run(open_table(db, name, dim, metric, schema, options)))

    @property
    def connection(self) -> Connection[Any]:
        """What it was opened with."""
        return self._db.connection

    @classmethod
    def create(
        cls,
        conn: Connection[Any],
        name: str,
        dim: int,
        metric: Metric = "cosine",
        *,
        store: Store | None = "halfvec",
        columns: Mapping[str, str] | None = None,
        id_type: str = "bigint",
        transform: int | None = None,
        schema: str | None = None,
    ) -> Table:
        """Create a table, and open it.

        Parameters
        ----------
        conn, name, dim, metric, schema
            As for `Table`.
        store : {"halfvec", "vector"} or None
            pgvector's type to keep the vectors in, for exact order after the codes have found
            the candidates: two or four bytes per dimension beside the code's quarter. With None
            only codes are kept.
        columns : mapping of str to str, optional
            Further columns: name to SQL type, e.g. ``{"title": "text"}``.
        id_type : str
            SQL type of the primary key `id`.
        transform : int, optional
            0 to encode on the original axes, another number for that rotation. Left out, the
            first ingest decides from the data.

        Returns
        -------
        Table

        Raises
        ------
        psycopg.errors.DuplicateTable
            If there is one of that name.
        ValueError
            If dim, metric, store or transform is out of range, or a column or type is not usable.
        ExtensionMissingError
            As for `Table`.
        """
        db, identifier = BlockingDatabase(conn), name_table(name, schema)
        run(create_table(db, identifier, dim, metric, store, columns, id_type, transform))
        return cls(conn, name, schema=schema)

    # -- writing ---------------------------------------------------------------------

    def ingest(
        self,
        ids: Sequence[Any] | NDArray[Any],
        vectors: ArrayLike,
        columns: Mapping[str, Sequence[Any] | NDArray[Any]] | None = None,
        *,
        progress: bool | None = None,
    ) -> int:
        """Encode vectors and write them with their codes, all rows or none.

        The first ingest decides between the original axes and rotation, from up to 20,000 rows
        spread evenly over it; the decision is kept in `bq_columns` and holds for all later rows.
        Statistics of every row are added there, so that several writers at once lose nothing.

        Parameters
        ----------
        ids : sequence or ndarray, shape (n,)
            Values of the primary key.
        vectors : array_like of float32, float16 or float64, shape (n, dim)
            Finite values. A memory-mapped array is read chunk by chunk, so memory stays constant.
        columns : mapping of str to sequence, optional
            Values of further columns, n of each; None is NULL.
        progress : bool, optional
            Show a progress bar on stderr; left out, if it is a terminal.

        Returns
        -------
        int
            Number of rows written.

        Raises
        ------
        RowError
            If a vector holds NaN or infinity or is too long; has the row and its id.
        ValueError, TypeError
            If shapes or columns do not match the table.
        psycopg.Error
            As the server says, e.g. UniqueViolation with the id that is there already.

        Notes
        -----
        Nothing is written unless all rows are: it is one transaction, or a savepoint of the one
        that is open. To keep what came before a mistake, ingest in several calls. The statistics
        are added last, so others wait for each other only at the end; the first ingest of a
        table makes others wait until it has finished.
        """
        return run(ingest(self._db, self._layout, ids, vectors, columns or {}, progress))

    def create_index(self) -> None:
        """Build the index `USING bq` over the codes: faster searches in large tables.

        Raises
        ------
        psycopg.errors.UndefinedObject
            If the installed extension has no access method `bq`; searches work all the same.
        """
        run(create_index(self._db, self._layout))

    # -- reading ---------------------------------------------------------------------

    def search(
        self,
        query: ArrayLike,
        k: int = 10,
        rerank: float | None = 4,
        columns: Sequence[str] = (),
    ) -> Any:
        """Find the nearest rows: candidates by code, then in exact order by the stored vector.

        Parameters
        ----------
        query : array_like of float, shape (dim,) or (q, dim)
            One query, or several.
        k : int
            Number of rows wanted.
        rerank : float or None
            Candidates that the codes find, as a multiple of k, to be put in exact order. More
            cost time and find more: 4 finds at least 98 of the true 100 on text embeddings
            (`make demo`). With None, and in tables that keep codes only, the order is that
            of the codes.
        columns : sequence of str
            Further columns to return.

        Returns
        -------
        list of Hit, or list of list of Hit
            At most k per query, nearest first; a list of them for several queries.

        Raises
        ------
        ValueError
            If the shape does not match, a value is not finite, k < 1 or rerank < 1, or there is
            no such column.
        """
        return run(self._search(Search(self._layout, query, k, rerank, columns)))

    def status(self) -> Status:
        """What the database knows about the table: see `Status`."""
        return run(read_status(self._db, self._layout))

    def statistics(self) -> Statistics:
        """Statistics of all vectors that were ingested, of norm 1 if the metric is cosine."""
        return run(read_statistics(self._db, self._layout))


class AsyncTable(_Table[AsyncDatabase]):
    """A `Table` for asyncio: the same methods with the same arguments, to be awaited.

    Made by `open` and `create`, over a `psycopg.AsyncConnection`.

    Notes
    -----
    Vectors are encoded in other threads, so the event loop stays free.

    Tasks may share a table, or several on one connection: what they ask for is done one after
    another, as a connection can do one thing at a time. Searches at once need a connection and a
    table each, for example from a `psycopg_pool.AsyncConnectionPool`; opening a table costs a few
    small queries, so keep it with its connection.

    Examples
    --------
    >>> import asyncio
    >>> import numpy as np
    >>> import psycopg
    >>> import pybq
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
    >>> async def main(dsn):
    ...     async with await psycopg.AsyncConnection.connect(dsn) as conn:
    ...         table = await pybq.AsyncTable.open(conn, "items", dim=64, metric="cosine")
    ...         rows = await table.ingest(range(1000), vectors)
    ...         hits = await table.search(vectors[42], k=10)
    ...     return rows, hits[0].id
    >>> with pybq.serve() as server:
    ...     asyncio.run(main(server.dsn))
    (1000, 42)
    """

    @classmethod
    async def open(
        cls,
        conn: AsyncConnection[Any],
        name: str,
        dim: int | None = None,
        metric: Metric | None = None,
        *,
        schema: str | None = None,
        **options: Any,
    ) -> AsyncTable:
        """Open a table; create it first if there is none and `dim` is given. See `Table`."""
        db = AsyncDatabase(conn)
        return cls(db, await db.run(open_table(db, name, dim, metric, schema, options)))

    @classmethod
    async def create(
        cls,
        conn: AsyncConnection[Any],
        name: str,
        dim: int,
        metric: Metric = "cosine",
        *,
        store: Store | None = "halfvec",
        columns: Mapping[str, str] | None = None,
        id_type: str = "bigint",
        transform: int | None = None,
        schema: str | None = None,
    ) -> AsyncTable:
        """Create a table, and open it. See `Table.create`."""
        db, identifier = AsyncDatabase(conn), name_table(name, schema)
        await db.run(create_table(db, identifier, dim, metric, store, columns, id_type, transform))
        return await cls.open(conn, name, schema=schema)

    @property
    def connection(self) -> AsyncConnection[Any]:
        """What it was opened with."""
        return self._db.connection

    async def ingest(
        self,
        ids: Sequence[Any] | NDArray[Any],
        vectors: ArrayLike,
        columns: Mapping[str, Sequence[Any] | NDArray[Any]] | None = None,
        *,
        progress: bool | None = None,
    ) -> int:
        """Encode vectors and write them with their codes. See `Table.ingest`."""
        return await self._db.run(
            ingest(self._db, self._layout, ids, vectors, columns or {}, progress)
        )

    async def create_index(self) -> None:
        """Build the index `USING bq` over the codes. See `Table.create_index`."""
        await self._db.run(create_index(self._db, self._layout))

    async def search(
        self,
        query: ArrayLike,
        k: int = 10,
        rerank: float | None = 4,
        columns: Sequence[str] = (),
    ) -> Any:
        """Find the nearest rows. See `Table.search`."""
        search = Search(self._layout, query, k, rerank, columns)
        return await self._db.run(self._search(search))

    async def status(self) -> Status:
        """What the database knows about the table: see `Status`."""
        return await self._db.run(read_status(self._db, self._layout))

    async def statistics(self) -> Statistics:
        """Statistics of all vectors that were ingested. See `Table.statistics`."""
        return await self._db.run(read_statistics(self._db, self._layout))
