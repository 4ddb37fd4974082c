"""Table and AsyncTable: how they are opened, and what each can do.

Each method is a coroutine function of `reading` or `writing`; so is its documentation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from numpy.typing import ArrayLike, NDArray
from psycopg import AsyncConnection, Connection

from pybq._catalog.database import AsyncDatabase, BlockingDatabase, run
from pybq._catalog.layout import Store
from pybq._catalog.opening import open_table
from pybq._catalog.schema import CreateOptions, OpenOptions, create_table
from pybq._catalog.status import Status
from pybq._codes.metric import Metric
from pybq._searching.results import Arrays, Hit
from pybq._searching.search import Effort
from pybq._tables import reading, writing
from pybq._tables.base import BaseTable, awaited, blocking, overloads_of
from pybq._tables.reading import Row

if sys.version_info >= (3, 11):
    from typing import Self, Unpack
else:
    from typing_extensions import Self, Unpack

if TYPE_CHECKING:
    from typing import TypeAlias

    import pandas  # type: ignore[import-untyped, unused-ignore]
    import polars
    import pyarrow  # type: ignore[import-untyped, unused-ignore]

    from pybq._tables.reading import SearchOptions as Options

    Hits: TypeAlias = Literal["hits"]
    Numpy: TypeAlias = Literal["numpy"]
    Arrow: TypeAlias = Literal["arrow"]
    Pandas: TypeAlias = Literal["pandas"]
    Polars: TypeAlias = Literal["polars"]
    # Of an array, type checkers do not know the number of dimensions.
    # None: words alone
    OneQuery: TypeAlias = Sequence[float] | None
    ManyQueries: TypeAlias = Sequence[Sequence[float]] | Sequence[NDArray[Any]]

__all__ = ["Arrays", "AsyncTable", "Effort", "Hit", "Metric", "Row", "Status", "Store", "Table"]


class Table(BaseTable):
    """A table of vectors that is searched by 2-bit codes, kept by an index or in a column.

    Opens any table with a column of pgvector's types `vector` or `halfvec`, or with codes that
    pybq made; creates it first if there is none and `dim` is given.

    Parameters
    ----------
    conn : psycopg.Connection
        In a database with the extension `bq`, and `vector` if vectors are stored.
    name : str
        Name of the table, as it is: no quotes, no schema in it.
    dim : int, optional
        Number of dimensions. Needed to create; if the table exists, it must agree.
    metric : {"cosine", "l2", "inner_product"}, optional
        Which rows are nearest. If the table exists, that of its index (of bq, else HNSW or
        IVFFlat), else the one it was created with, and what is given must agree. Otherwise what is
        given, or "cosine".
    schema : str, optional
        Schema of the table; else the search path decides.
    column : str, optional
        Which column of vectors or codes, if there are several. Where pybq made codes they are
        searched, unless the vectors are named.
    key : str or sequence of str, optional
        Columns that tell rows apart, of a table that cannot have a primary key, as partitions on
        other servers do not allow one. That they do is not checked.
    **options
        store, codes, columns, id_type and transform as for `create`; if the table exists, it must
        agree with those that are given. It may have more columns.

    Raises
    ------
    TableError
        If there is no such table and no `dim`, if it has neither vectors nor codes, if it
        does not agree with what was asked, or if there are several columns and none was named.
    ExtensionMissingError
        If the database lacks `bq`, or `vector` and vectors are to be stored.

    Notes
    -----
    Tables that pybq makes have a primary key `id`, the vectors in `embedding` unless they keep
    codes only, and what else was asked for. In others, rows are known by the primary key (a tuple
    if it has several columns), without one by their place, `ctid`, which changes with each update.
    Other clients may read and write both as any table.

    To move from a column of codes to an index on the vectors, `pybq.adopt` makes the index, and
    says which statements drop the codes.

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

    _db: BlockingDatabase

    def __init__(
        self,
        conn: Connection[Any],
        name: str,
        dim: int | None = None,
        metric: Metric | None = None,
        **options: Unpack[OpenOptions],
    ) -> None:
        db = BlockingDatabase(conn)
        self._open(db, run(open_table(db, name, dim, metric, options)))

    @classmethod
    def open(
        cls,
        conn: Connection[Any],
        name: str,
        dim: int | None = None,
        metric: Metric | None = None,
        **options: Unpack[OpenOptions],
    ) -> Self:
        """Open a table, as `Table` itself does with the same arguments.

        Examples
        --------
        >>> import psycopg, pybq
        >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
        ...     _ = conn.execute("CREATE TABLE docs (doc text PRIMARY KEY, v vector(3), at date)")
        ...     table = pybq.Table.open(conn, "docs", column="v")
        ...     rows = table.ingest(["a", "b"], [[1, 2, 3], [3, 2, 1]])
        ...     [hit.id for hit in table.search([3, 2, 2])], table.key, table.dim
        (['b', 'a'], ('doc',), 3)
        """
        return cls(conn, name, dim, metric, **options)

    @classmethod
    def create(
        cls,
        conn: Connection[Any],
        name: str,
        dim: int,
        metric: Metric = "cosine",
        **options: Unpack[CreateOptions],
    ) -> Self:
        """Create a table, and open it.

        Parameters
        ----------
        conn, name, dim, metric, schema
            As for `Table`.
        store : {"halfvec", "vector"} or None
            pgvector's type to keep the vectors in: two or four bytes per dimension, beside the
            quarter of a byte of a code. With None only codes are kept.
        codes : bool, optional
            Whether to keep codes in a column that pybq fills and searches. Left out, only if no
            vectors are kept: an index on vectors has codes of its own.
        columns : mapping of str to str, optional
            Further columns: name to SQL type, e.g. ``{"title": "text"}``.
        id_type : str
            SQL type of the primary key `id`.
        transform : int, optional
            0 to encode on the original axes, another number for that rotation. Left out, the
            index decides from the data when it is built; of codes in a column, the first ingest.

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

        Examples
        --------
        >>> import psycopg, pybq
        >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
        ...     table = pybq.Table.create(
        ...         conn, "items", dim=384, metric="l2", store="vector", id_type="text",
        ...         columns={"title": "text", "price": "numeric(9, 2)"})
        >>> table.store, dict(table.columns)
        ('vector', {'title': 'text', 'price': 'numeric'})
        """
        schema = run(create_table(BlockingDatabase(conn), name, dim, metric, options))
        return cls(conn, name, schema=schema)

    @property
    def connection(self) -> Connection[Any]:
        """What it was opened with."""
        return self._db.connection

    ingest = blocking(writing.ingest)
    load = blocking(writing.load)
    delete = blocking(writing.delete)
    create_index = blocking(writing.create_index)
    create_text_index = blocking(writing.create_text_index)
    create_trigger = blocking(writing.create_trigger)
    reencode = blocking(writing.reencode)
    drop = blocking(writing.drop)

    get = blocking(reading.get)
    count = blocking(reading.count)
    calibrate = blocking(reading.calibrate)
    status = blocking(reading.status)
    statistics = blocking(reading.statistics)

    @overload
    def search(
        self, query: OneQuery, k: int = 10, *, output: Hits = "hits", **options: Unpack[Options]
    ) -> list[Hit]: ...

    @overload
    def search(
        self, query: ManyQueries, k: int = 10, *, output: Hits = "hits", **options: Unpack[Options]
    ) -> list[list[Hit]]: ...

    @overload
    def search(
        self,
        query: ArrayLike | None,
        k: int = 10,
        *,
        output: Hits = "hits",
        **options: Unpack[Options],
    ) -> list[Hit] | list[list[Hit]]: ...

    @overload
    def search(
        self, query: ArrayLike | None, k: int = 10, *, output: Numpy, **options: Unpack[Options]
    ) -> Arrays: ...

    @overload
    def search(
        self, query: ArrayLike | None, k: int = 10, *, output: Arrow, **options: Unpack[Options]
    ) -> pyarrow.Table: ...

    @overload
    def search(
        self, query: ArrayLike | None, k: int = 10, *, output: Pandas, **options: Unpack[Options]
    ) -> pandas.DataFrame: ...

    @overload
    def search(
        self, query: ArrayLike | None, k: int = 10, *, output: Polars, **options: Unpack[Options]
    ) -> polars.DataFrame: ...

    @overloads_of(blocking(reading.search))
    def search(self, *arguments: Any, **options: Any) -> Any: ...


class AsyncTable(BaseTable):
    """A `Table` for asyncio: the same methods with the same arguments, to be awaited.

    Made by `open` and `create`, over a `psycopg.AsyncConnection`; the constructor raises a
    TypeError, as it could not wait. What is said of a method is said of both kinds of table, with
    examples of `Table`.

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

    _db: AsyncDatabase

    def __init__(self, *arguments: object, **options: object) -> None:
        raise TypeError(
            "an AsyncTable is opened with await AsyncTable.open(conn, name), or made with await "
            "AsyncTable.create(conn, name, dim): a constructor cannot wait"
        )

    @classmethod
    async def open(
        cls,
        conn: AsyncConnection[Any],
        name: str,
        dim: int | None = None,
        metric: Metric | None = None,
        **options: Unpack[OpenOptions],
    ) -> Self:
        """Open a table; create it first if there is none and `dim` is given. See `Table`."""
        db = AsyncDatabase(conn)
        table = cls.__new__(cls)
        table._open(db, await db.run(open_table(db, name, dim, metric, options)))
        return table

    @classmethod
    async def create(
        cls,
        conn: AsyncConnection[Any],
        name: str,
        dim: int,
        metric: Metric = "cosine",
        **options: Unpack[CreateOptions],
    ) -> Self:
        """Create a table, and open it. See `Table.create`."""
        db = AsyncDatabase(conn)
        schema = await db.run(create_table(db, name, dim, metric, options))
        return await cls.open(conn, name, schema=schema)

    @property
    def connection(self) -> AsyncConnection[Any]:
        """What it was opened with."""
        return self._db.connection

    ingest = awaited(writing.ingest)
    load = awaited(writing.load)
    delete = awaited(writing.delete)
    create_index = awaited(writing.create_index)
    create_text_index = awaited(writing.create_text_index)
    create_trigger = awaited(writing.create_trigger)
    reencode = awaited(writing.reencode)
    drop = awaited(writing.drop)

    get = awaited(reading.get)
    count = awaited(reading.count)
    calibrate = awaited(reading.calibrate)
    status = awaited(reading.status)
    statistics = awaited(reading.statistics)

    @overload
    async def search(
        self, query: OneQuery, k: int = 10, *, output: Hits = "hits", **options: Unpack[Options]
    ) -> list[Hit]: ...

    @overload
    async def search(
        self, query: ManyQueries, k: int = 10, *, output: Hits = "hits", **options: Unpack[Options]
    ) -> list[list[Hit]]: ...

    @overload
    async def search(
        self,
        query: ArrayLike | None,
        k: int = 10,
        *,
        output: Hits = "hits",
        **options: Unpack[Options],
    ) -> list[Hit] | list[list[Hit]]: ...

    @overload
    async def search(
        self, query: ArrayLike | None, k: int = 10, *, output: Numpy, **options: Unpack[Options]
    ) -> Arrays: ...

    @overload
    async def search(
        self, query: ArrayLike | None, k: int = 10, *, output: Arrow, **options: Unpack[Options]
    ) -> pyarrow.Table: ...

    @overload
    async def search(
        self, query: ArrayLike | None, k: int = 10, *, output: Pandas, **options: Unpack[Options]
    ) -> pandas.DataFrame: ...

    @overload
    async def search(
        self, query: ArrayLike | None, k: int = 10, *, output: Polars, **options: Unpack[Options]
    ) -> polars.DataFrame: ...

    @overloads_of(awaited(reading.search))
    async def search(self, *arguments: Any, **options: Any) -> Any: ...
