"""Table and AsyncTable: vectors, or codes of them, in PostgreSQL; ingest, index, search, status."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from numpy.typing import ArrayLike, NDArray
from psycopg import AsyncConnection, Connection, DataError, sql

from pybq._catalog.database import AsyncDatabase, BlockingDatabase, Database, run
from pybq._catalog.layout import Layout, Store
from pybq._catalog.opening import open_table
from pybq._catalog.registry import read_transform
from pybq._catalog.schema import (
    TableOptions,
    create_index,
    create_table,
    create_trigger,
)
from pybq._catalog.status import Status, read_statistics, read_status
from pybq._choice.statistics import Statistics
from pybq._codes.metric import Metric
from pybq._codes.quantizer import Quantizer
from pybq._loading.ingest import OnConflict, delete_rows, ingest
from pybq._loading.load import load
from pybq._searching.calibrate import SAMPLE, calibrate, find_effort, keep_effort, not_calibrated
from pybq._searching.condition import Where
from pybq._searching.results import Arrays, Hit, Output
from pybq._searching.search import Effort, Search, register_queries, write_statement
from pybq._tables.reencode import reencode
from pybq.errors import TableError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pybq._loading.load import LoadOptions

# For so long a calibration that was read is used.
KEEP_SECONDS = 60

__all__ = ["Arrays", "AsyncTable", "Effort", "Hit", "Metric", "Status", "Store", "Table"]

_D = TypeVar("_D", bound=Database)


class _Table(Generic[_D]):
    """What both kinds of table are."""

    def __init__(self, db: _D, layout: Layout) -> None:
        self._db = db
        self._layout = layout
        self._quantizer: Quantizer | None = None  # what made the codes; None: not known yet
        # (recall, k) -> what was calibrated, and when it was read: others may measure anew
        self._efforts: dict[tuple[float, int], tuple[Effort, float]] = {}
        # Bounded, because conditions may be written anew for each search.
        self._write = lru_cache(100)(partial(write_statement, layout, db.connection))
        register_queries(db.connection, layout)

    @property
    def name(self) -> str:
        """Name of the table."""
        return self._layout.name

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self._layout.dim

    @property
    def metric(self) -> Metric:
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
    def key(self) -> tuple[str, ...]:
        """Names of the columns of the primary key; ctid, the place of a row, if there is none."""
        return tuple(column.name for column in self._layout.key)

    @property
    def code_column(self) -> str | None:
        """Name of the column of codes; None: searches use an index on the vectors."""
        return self._layout.searched.name if self._layout.has_codes else None

    @property
    def source_column(self) -> str | None:
        """Name of the column of vectors; None: codes only."""
        return None if self._layout.source is None else self._layout.source.name

    @property
    def columns(self) -> Mapping[str, str]:
        """Further columns: name to SQL type, as in pg_type."""
        return MappingProxyType({n: c.declared for n, c in self._layout.columns.items()})

    async def _search(self, *arguments: Any) -> Any:
        search = Search(self._layout, self._db.connection, *arguments)
        try:
            return await self._search_once(search)
        except DataError as error:
            # Encoded anew since this table was opened, or the first ingest was rolled back.
            if "different transforms" not in str(error):
                raise
            self._quantizer = None
            self._efforts.clear()
            if self._db.in_transaction:  # which has failed
                raise
        return await self._search_once(search)

    async def _search_once(self, search: Search) -> Any:
        quantizer = await self._current_quantizer()
        if search.recall is not None and quantizer is not None:
            search.rerank, search.probes = await self._find_effort(
                quantizer, search.recall, search.k
            )
        return await search.run(self._db, quantizer, self._write)

    async def _find_effort(self, quantizer: Quantizer, recall: float, k: int) -> Effort:
        """Return what was calibrated, as the database has had it within the last minute."""
        known, read_at = self._efforts.get((recall, k), (None, -math.inf))
        now = time.monotonic()
        if known is None or now - read_at > KEEP_SECONDS:
            found = await find_effort(self._db, self._layout, quantizer.transform, recall, k)
            known = found or known  # which could not be kept in the database
            if known is None:
                raise not_calibrated(self._layout, recall, k)
            self._efforts[recall, k] = known, now
        return known

    async def _calibrate(
        self, recall: float, k: int, queries: ArrayLike | None = None, sample: int = SAMPLE
    ) -> Effort:
        self._layout.need_codes()
        quantizer = await self._current_quantizer()
        if quantizer is None:
            raise TableError(f"table {self.name!r} has no rows to measure recall on")
        effort = await calibrate(
            self._db, self._layout, quantizer, self._write, recall, k, queries, sample
        )
        await keep_effort(self._db, self._layout, recall, k, effort)
        self._efforts[recall, k] = effort, time.monotonic()
        return effort

    async def _reencode(self, transform: int | None, progress: bool | None) -> int:
        self._quantizer = None
        self._efforts.clear()
        return await reencode(self._db, self._layout, transform, progress)

    async def _current_quantizer(self) -> Quantizer | None:
        """Return what made the codes, None before the first ingest, and if there are none.

        The database is asked once. A query for codes of another transform is an error of the
        server, never a wrong answer.
        """
        if self._quantizer is None and self._layout.has_codes:
            transform = await read_transform(self._db, self._layout)
            if transform is not None:
                self._quantizer = Quantizer(self.dim, transform)
        return self._quantizer


class Table(_Table[BlockingDatabase]):
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

    def __init__(
        self,
        conn: Connection[Any],
        name: str,
        dim: int | None = None,
        metric: Metric | None = None,
        *,
        schema: str | None = None,
        column: str | None = None,
        **options: Unpack[TableOptions],
    ) -> None:
        db = BlockingDatabase(conn)
        opening = open_table(db, name, dim, metric, schema, column, options)
        super().__init__(db, run(opening))

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
        codes: bool | None = None,
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
        db = BlockingDatabase(conn)
        run(create_table(db, name, schema, dim, metric, store, columns, id_type, transform, codes))
        return cls(conn, name, schema=schema)

    @classmethod
    def open(
        cls,
        conn: Connection[Any],
        name: str,
        dim: int | None = None,
        metric: Metric | None = None,
        *,
        schema: str | None = None,
        column: str | None = None,
        **options: Unpack[TableOptions],
    ) -> Table:
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
        return cls(conn, name, dim, metric, schema=schema, column=column, **options)

    # -- writing ---------------------------------------------------------------------

    def ingest(
        self,
        ids: Sequence[Any] | NDArray[Any] | None,
        vectors: ArrayLike,
        columns: Mapping[str, Sequence[Any] | NDArray[Any]] | None = None,
        *,
        on_conflict: OnConflict = "error",
        progress: bool | None = None,
    ) -> int:
        """Write vectors, and their codes if there is a column of them, all rows or none.

        Of such codes the first ingest decides between the original axes and rotation, from up to
        20,000 rows spread evenly over it; `bq_columns` keeps the decision, which holds for all
        later rows, and statistics of every row, merged so that writers at once lose nothing.

        Parameters
        ----------
        ids : sequence or ndarray, shape (n,), or None
            Values of the primary key, tuples if it has several columns; None leaves them to the
            defaults of the table.
        vectors : array_like of float32, float16 or float64, shape (n, dim)
            Finite values. A memory-mapped array is read chunk by chunk, so memory stays constant.
        columns : mapping of str to sequence, optional
            Values of further columns, n of each; None is NULL, as is what NumPy masks. Of enums
            their labels; of json and jsonb Python values, or JSON as text.
        on_conflict : {"error", "update", "skip"}
            What to do with rows whose key is in the table already, or comes twice: refuse
            them all, write the last over the others, or keep the first. The statistics count
            each vector that was written, also those that were written over since.
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
        that is open. It needs INSERT on the table, and `on_conflict` what INSERT ... ON CONFLICT
        does. To write in batches, or from files and frames, see `load`. Of codes in a column,
        statistics are added last, so others wait for each other only at the end; the first ingest
        of a table makes others wait until it has finished.

        Examples
        --------
        >>> import numpy as np, psycopg, pybq
        >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
        >>> titles = [f"title {i}" for i in range(1000)]
        >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
        ...     table = pybq.Table.create(conn, "items", dim=64, columns={"title": "text"})
        ...     table.ingest(range(1000), vectors, {"title": titles})
        ...     vectors[7, 3] = np.nan
        ...     try:
        ...         table.ingest(range(1000, 2000), vectors)
        ...     except pybq.RowError as error:
        ...         print(error.row, error.id)
        ...     table.status().row_count
        1000
        7 1007
        1000
        """
        return run(ingest(self._db, self._layout, ids, vectors, columns, on_conflict, progress))

    def load(self, source: Any, **options: Unpack[LoadOptions]) -> int:
        """Write a file, a frame or an iterable of any size, in batches.

        Each batch is a transaction of its own: what was written stays, whatever happens
        later, and a load that was interrupted, even by a crash, goes on where it was.

        Parameters
        ----------
        source : path, array, frame or iterable
            .npy, .npz, .parquet, .fvecs, .bvecs, .h5; ndarray, mapping of arrays; pandas or
            polars DataFrame, pyarrow Table or RecordBatchReader; an iterable of batches: see
            `open_source`. Memory stays constant for what need not be read whole.
        columns : sequence of str, optional
            Further columns to carry along; by default all that the table has, too. Their values
            are written as `ingest` writes them, by the types of the table's columns.
        vector_column, id_column : str, optional
            Columns of the vectors and of the keys, if their names do not tell.
        first_id : int or None
            Key of the first row if the source has none; the others follow. None leaves keys to the
            defaults of the table.
        on_conflict : {"error", "update", "skip"}
            As for `ingest`, batch by batch.
        resume : bool
            Leave out the batches that an earlier load of this source has written.
        name : str, optional
            Under which `resume` will know the source; for files their path.
        connections : int
            Batches written at once, on connections of their own with the adapters, the role and
            the settings of this one. Custom settings, such as ``app.tenant``, cannot be known.
        batch_rows : int, optional
            Rows in a batch; by default as many as take 16 MB as float32.
        progress : bool, optional
            As for `ingest`.

        Returns
        -------
        int
            Number of rows written by this call.

        Raises
        ------
        LoadError
            If a batch could not be written, or the source failed before its end; says which rows
            it has, why (`__cause__`), and how many rows of other batches were written. Nothing
            of the batch itself is there.
        TableError
            If the source has changed since the load that is to be resumed, or a transaction
            is open on the connection where `resume` or `connections` need their own.
        ValueError, TypeError
            If the source does not fit the table.

        Notes
        -----
        Of codes in a column, axes or rotation is decided first, if no ingest has done so, from up
        to 20,000 rows spread over the source; of an iterable, from its first rows. Several
        processes may load into one table at once. The table `bq_loads` has the batches of named
        sources. The source is read in another thread than the caller's.

        Inside a transaction that is open, all batches are part of it.

        Examples
        --------
        >>> import numpy as np, psycopg, pybq
        >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
        >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
        ...     table = pybq.Table(conn, "items", dim=64)
        ...     table.load({"id": np.arange(1000), "vectors": vectors}, batch_rows=100)
        ...     more = ((range(i, i + 100), vectors[:100]) for i in range(1000, 3000, 100))
        ...     table.load(more, connections=2)
        ...     table.load([(range(500, 1500), vectors)], on_conflict="skip")
        ...     table.status().row_count
        1000
        2000
        0
        3000
        """
        return run(load(self._db, self._layout, source, **options))

    def create_index(self, filters: Sequence[str] = (), *, recall: float | None = None) -> None:
        """Build the index `USING bq` over the vectors, or over the column of codes.

        If there is one, with these filters, nothing is done. Writers wait meanwhile: for a table
        in use there is `pybq.adopt`. Without an index searches compare all rows.

        Parameters
        ----------
        filters : sequence of str
            Columns that searches filter by, to be kept in the index: rows that do not meet a
            condition on them are not even compared.
        recall : float, optional
            Share of the nearest rows that searches find unless told; 0.98 if left out.

        Raises
        ------
        ExtensionMissingError
            If the extension bq_pgvector is neither there nor may be created.

        Examples
        --------
        >>> import numpy as np, psycopg, pybq
        >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
        >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
        ...     table = pybq.Table(conn, "items", dim=64)
        ...     rows = table.ingest(range(1000), vectors)
        ...     table.create_index()
        ...     table.search(vectors[42])[0].id
        42
        """
        run(create_index(self._db, self._layout, filters, recall))

    def delete(self, ids: Sequence[Any] | NDArray[Any]) -> int:
        """Delete rows by their keys, and return how many there were.

        It needs a primary key, and DELETE and SELECT on the table.

        Examples
        --------
        >>> import numpy as np, psycopg, pybq
        >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
        >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
        ...     table = pybq.Table(conn, "items", dim=64)
        ...     rows = table.ingest(range(1000), vectors)
        ...     table.delete([41, 42, 1042]), table.search(vectors[42])[0].id == 42
        (2, False)
        """
        return run(delete_rows(self._db, self._layout, ids))

    def create_trigger(self) -> None:
        """Have the server make codes for rows that others write: INSERT, UPDATE, COPY.

        Codes that a writer gives, as `ingest` does, are taken if they have the table's transform;
        where there is none, and where an UPDATE changes the vector and not the code, the trigger
        `bq_encode` makes one. Rows written so do not count in `statistics`.

        Raises
        ------
        TableError
            If the table has not both vectors and codes: an index on vectors needs no trigger.
        psycopg.errors.DuplicateObject
            If the table has the trigger.

        Notes
        -----
        The first ingest decides the transform, or `create` is given one: before, others cannot
        write vectors. PostgreSQL's COPY, and with it `ingest`, inserts rows one by one where there
        is such a trigger: no slower at 384 dimensions, a sixth slower at 64.

        Examples
        --------
        >>> import numpy as np, psycopg, pybq
        >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
        >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
        ...     table = pybq.Table(conn, "items", dim=64, codes=True)
        ...     rows = table.ingest(range(1000), vectors)
        ...     table.create_trigger()
        ...     _ = conn.execute("INSERT INTO items (id, embedding)"
        ...                      " SELECT 1000, embedding FROM items WHERE id = 42")
        ...     sorted(hit.id for hit in table.search(vectors[42], k=2))
        [42, 1000]
        """
        run(create_trigger(self._db, self._layout))

    def reencode(self, transform: int | None = None, *, progress: bool | None = None) -> int:
        """Encode all rows with another transform, while the table is searched and written to.

        Parameters
        ----------
        transform : int, optional
            0 for the original axes, else number of the rotation. By default, what `choose` says
            now, from the statistics of all rows (see `Status.drift`) and a sample of the stored
            vectors.
        progress : bool, optional
            Show a bar on stderr; by default, if that is a terminal and `rich` is installed.

        Returns
        -------
        int
            Rows that were encoded; 0 if the table has that transform already. Rows that others
            wrote meanwhile do not count.

        Raises
        ------
        TableError
            If a transaction is open, as this commits as it goes; if the table keeps codes only,
            has no column of codes or none in it, or belongs to somebody else; if a row has a code
            and no vector; if views or the like depend on the column of codes; if another
            connection is at it, or long transactions never let go of the table.

        Notes
        -----
        A second column is filled, in short transactions, from the stored vectors; a trigger fills
        it for other writers. If there is an index, its twin is built `CONCURRENTLY`. At last the
        new column takes the place of the old one, which needs the table for itself for a few
        milliseconds. Searches of other connections find out by themselves; those inside a
        transaction that was begun before may fail once, with "different transforms".

        If it is interrupted, call it again: it continues. Called with another transform, it
        begins anew; with that of the table, it only drops what was begun.

        The column of codes is the last one afterwards, so ``SELECT *`` and INSERT without names
        of columns see another order. A CHECK constraint keeps out codes of other transforms. Each
        row is written anew: triggers on UPDATE run, and the table grows by about a quarter, once.
        Models of SQLAlchemy that name the transform, ``BQVec(dim, transform=...)``, need the new
        one.

        Examples
        --------
        >>> import numpy as np, psycopg, pybq
        >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
        >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
        ...     table = pybq.Table(conn, "items", dim=64, codes=True, transform=0)
        ...     rows = table.ingest(range(1000), vectors)
        ...     rows = table.reencode(transform=7)
        ...     rows, table.status().transform, table.search(vectors[42])[0].id
        (1000, 7, 42)
        """
        return run(self._reencode(transform, progress))

    # -- reading ---------------------------------------------------------------------

    def search(
        self,
        query: ArrayLike,
        k: int = 10,
        rerank: float | None = 4,
        columns: Sequence[str] = (),
        *,
        where: Where | None = None,
        parameters: Mapping[str, Any] | None = None,
        output: Output = "hits",
        recall: float | None = None,
        probes: int | None = None,
    ) -> Any:
        """Find the nearest rows: candidates by code, then in exact order by the stored vector.

        An index on vectors does both by itself.

        Parameters
        ----------
        query : array_like of float, shape (dim,) or (q, dim)
            One query, or several, which are sent in one go.
        k : int
            Number of rows wanted.
        rerank : float or None
            Of tables with a column of codes: candidates that they find, as a multiple of k, to be
            put in exact order. More cost time and find more: 4 finds at least 98 of the true 100
            on text embeddings (`make demo`). With None, and in tables that keep codes only, the
            order is that of the codes. Other tables accept nothing but the default.
        columns : sequence of str
            Further columns to return.
        where : str, psycopg.sql.Composable or SQLAlchemy expression, optional
            Condition on the rows that are searched: k of those that meet it are found, however
            few they are among all, as the index goes on until it has them
            (`bq.max_scan_tuples` limits that). SQL text, with parameters as ``%(name)s``; or an
            expression on the columns of a mapped class or Table, e.g. ``Item.price < 3``.
        parameters : mapping of str to Any, optional
            Values for `where`. Without it, ``%`` in SQL text stands for itself.
        output : {"hits", "numpy", "arrow", "pandas", "polars"}
            Form of the result, see below.
        recall : float, optional
            Share of the true k nearest rows that is wanted on average: `bq.recall` of an index on
            vectors, for this search. With a column of codes, what `calibrate` has found to be
            needed for this k and at least this recall, in place of `rerank` and `probes`; that is
            for searches without a condition.
        probes : int, optional
            Lists of the index that are read first; left out, what was measured when it was
            built, unless its option or `bq.probes` says otherwise.

        Returns
        -------
        list of Hit, or list of list of Hit
            At most k per query, nearest first; a list of them for several queries.
        Arrays
            For "numpy": ids and distances, of shape (k,) or (q, k).
        pyarrow.Table, pandas.DataFrame or polars.DataFrame
            For the others: columns id, distance and further ones, nearest first. For several
            queries, the number of the query in a first column, query. In Arrow and polars a uuid
            is text, and columns have the same types if nothing was found.

        Raises
        ------
        ValueError
            If the shape does not match, a value or rerank is not finite, k, rerank or probes is
            below 1, there is no such column, or the condition is on another table.
        TypeError
            If the query is not of numbers, or `where` is of another kind.
        TableError
            If recall is asked of a table that keeps codes only, or was not calibrated for it; if
            rerank is asked of one without a column of codes.
        ModuleNotFoundError
            If the package for the output is not installed.

        Notes
        -----
        The order is always that of `Hit.distance`, whatever `bq.iterative_scan` says: exact, but
        for codes that are not re-ranked; rows at the same distance come in any order. Which rows
        are found is approximate: the best candidates by code that a scan of the index comes to.
        Without an index all vectors, or all codes, are compared. With `where`, the scan is in
        relaxed order, unless it is off: it passes over none of the rows that it comes to.

        On a connection with ``autocommit=True`` a search is one round trip, else three; `where`,
        `probes`, and `recall` of an index on vectors take up to three more. An expression of
        SQLAlchemy is compiled anew by each search, which takes about 0.3 ms.

        Examples
        --------
        >>> import numpy as np, psycopg, pybq
        >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
        >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
        ...     table = pybq.Table(conn, "items", dim=64, columns={"price": "int"})
        ...     rows = table.ingest(range(1000), vectors, {"price": np.arange(1000) % 10})
        ...     cheap = table.search(
        ...         vectors[42], k=3, columns=["price"],
        ...         where="price < %(most)s", parameters={"most": 3})
        ...     ids, distances = table.search(vectors[:5], k=3, output="numpy")
        >>> [(hit.id, hit["price"]) for hit in cheap][0], len(cheap)
        ((42, 2), 3)
        >>> ids.shape, ids[:, 0].tolist()
        ((5, 3), [0, 1, 2, 3, 4])
        """
        options = (k, rerank, columns, where, parameters, output, recall, probes)
        return run(self._search(query, *options))

    def calibrate(
        self,
        recall: float = 0.98,
        k: int = 10,
        queries: ArrayLike | None = None,
        sample: int = SAMPLE,
    ) -> Effort:
        """Measure what a wanted recall needs: how many candidates, how many lists of the index.

        Of tables with a column of codes; an index on vectors has measured it when it was built.

        Parameters
        ----------
        recall : float
            Share of the true k nearest rows that searches should find on average, below 1.
        k : int
            Rows wanted per query.
        queries : array_like of float, shape (q, dim), optional
            At most `sample` of them, spread evenly, are used. By default, vectors of rows of the
            table; of each, the row itself is then not counted as found. Where queries are of
            another kind than rows (questions and passages, pictures and texts), give some.
        sample : int
            Number of queries. The result is as certain as a mean of so many.

        Returns
        -------
        Effort
            The smallest of the tried settings that meets the recall, with two standard errors
            of the sample to spare: `rerank` of 1, 1.5, 2, 3, 4, 6, 8, 12, ..., and `probes` only
            if the lists that the index reads by itself do not suffice. It is kept in
            `bq_columns`, where `search` finds it for the same k and this recall or less, on any
            connection (on open ones within a minute), until the codes are made anew; `status`
            shows it. Searches warn once the table has twice the rows: measure again then. For
            who does not own the table, only this object keeps it, with a warning.

        Raises
        ------
        TableError
            If the table has not both vectors and a column of codes, or nothing was ingested.
        ValueError
            If recall, k or sample is out of range, or the shape of queries does not match.

        Notes
        -----
        Searches are run as `search` runs them, with the index if there is one. What they find
        is compared with the best of at least eight times as many candidates (at most 50,000)
        from all lists of the index, and not with an exact search of all rows: what even those
        miss goes unnoticed. `pybq recall` compares with all rows. What counts is which rows are
        found, those at the distance of the k-th included; their order is that of `search`.

        With an index it takes about a second for 100,000 rows, without one as long as 600
        searches.

        Examples
        --------
        >>> import numpy as np, psycopg, pybq
        >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
        >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
        ...     table = pybq.Table(conn, "items", dim=64, codes=True)
        ...     rows = table.ingest(range(1000), vectors)
        ...     rerank, probes = table.calibrate(recall=0.95)
        ...     hits = table.search(vectors[42], rerank=rerank, probes=probes)
        ...     same = table.search(vectors[42], recall=0.95)
        >>> 2 <= rerank <= 16, probes, hits == same
        (True, None, True)
        """
        return run(self._calibrate(recall, k, queries, sample))

    def status(self) -> Status:
        """What the database knows about the table.

        Returns
        -------
        Status

        Raises
        ------
        TableError
            If a column of codes is gone from bq_columns.

        Examples
        --------
        >>> import numpy as np, psycopg, pybq
        >>> rng = np.random.default_rng(7)
        >>> vectors = rng.standard_normal((1000, 64)) * np.geomspace(1, 0.01, 64)
        >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
        ...     table = pybq.Table(conn, "items", dim=64)
        ...     rows = table.ingest(range(1000), vectors)
        ...     advice = table.status().advice
        ...     table.create_index()
        ...     status = table.status()
        >>> advice
        'CREATE INDEX CONCURRENTLY ON "items" USING bq ("embedding" halfvec_cosine_ops)'
        >>> status.row_count, status.transform, status.indexes[0].live_rows, status.advice
        (1000, 1, 1000, None)
        """
        return run(read_status(self._db, self._layout))

    def statistics(self) -> Statistics:
        """Statistics of all vectors that were ingested; without codes, of a sample of the rows.

        Returns
        -------
        Statistics
            Of the vectors scaled to norm 1, if the metric is cosine.

        Examples
        --------
        >>> import numpy as np, psycopg, pybq
        >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
        >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
        ...     table = pybq.Table(conn, "items", dim=64, metric="l2", store="vector")
        ...     rows = table.ingest(range(1000), vectors)
        ...     statistics = table.statistics()
        >>> statistics.count, np.allclose(statistics.mean, vectors.mean(axis=0), atol=1e-6)
        (1000, True)
        """
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
        column: str | None = None,
        **options: Unpack[TableOptions],
    ) -> AsyncTable:
        """Open a table; create it first if there is none and `dim` is given. See `Table`."""
        db = AsyncDatabase(conn)
        opening = open_table(db, name, dim, metric, schema, column, options)
        return cls(db, await db.run(opening))

    @classmethod
    async def create(
        cls,
        conn: AsyncConnection[Any],
        name: str,
        dim: int,
        metric: Metric = "cosine",
        *,
        store: Store | None = "halfvec",
        codes: bool | None = None,
        columns: Mapping[str, str] | None = None,
        id_type: str = "bigint",
        transform: int | None = None,
        schema: str | None = None,
    ) -> AsyncTable:
        """Create a table, and open it. See `Table.create`."""
        db = AsyncDatabase(conn)
        options = (dim, metric, store, columns, id_type, transform, codes)
        await db.run(create_table(db, name, schema, *options))
        return await cls.open(conn, name, schema=schema)

    @property
    def connection(self) -> AsyncConnection[Any]:
        """What it was opened with."""
        return self._db.connection

    async def ingest(
        self,
        ids: Sequence[Any] | NDArray[Any] | None,
        vectors: ArrayLike,
        columns: Mapping[str, Sequence[Any] | NDArray[Any]] | None = None,
        *,
        on_conflict: OnConflict = "error",
        progress: bool | None = None,
    ) -> int:
        """Encode vectors and write them with their codes. See `Table.ingest`."""
        options = (columns, on_conflict, progress)
        return await self._db.run(ingest(self._db, self._layout, ids, vectors, *options))

    async def load(self, source: Any, **options: Unpack[LoadOptions]) -> int:
        """Write a file, a frame or an iterable of any size, in batches. See `Table.load`."""
        return await self._db.run(load(self._db, self._layout, source, **options))

    async def create_index(
        self, filters: Sequence[str] = (), *, recall: float | None = None
    ) -> None:
        """Build the index `USING bq` over the vectors or codes. See `Table.create_index`."""
        await self._db.run(create_index(self._db, self._layout, filters, recall))

    async def delete(self, ids: Sequence[Any] | NDArray[Any]) -> int:
        """Delete rows by their keys. See `Table.delete`."""
        return await self._db.run(delete_rows(self._db, self._layout, ids))

    async def create_trigger(self) -> None:
        """Have the server make codes for rows that others write. See `Table.create_trigger`."""
        await self._db.run(create_trigger(self._db, self._layout))

    async def reencode(self, transform: int | None = None, *, progress: bool | None = None) -> int:
        """Encode all rows with another transform. See `Table.reencode`.

        What other tasks ask of the same connection waits until it is done.
        """
        return await self._db.run(self._reencode(transform, progress))

    async def search(
        self,
        query: ArrayLike,
        k: int = 10,
        rerank: float | None = 4,
        columns: Sequence[str] = (),
        *,
        where: Where | None = None,
        parameters: Mapping[str, Any] | None = None,
        output: Output = "hits",
        recall: float | None = None,
        probes: int | None = None,
    ) -> Any:
        """Find the nearest rows. See `Table.search`."""
        options = (k, rerank, columns, where, parameters, output, recall, probes)
        return await self._db.run(self._search(query, *options))

    async def calibrate(
        self,
        recall: float = 0.98,
        k: int = 10,
        queries: ArrayLike | None = None,
        sample: int = SAMPLE,
    ) -> Effort:
        """Measure what a wanted recall needs. See `Table.calibrate`."""
        return await self._db.run(self._calibrate(recall, k, queries, sample))

    async def status(self) -> Status:
        """What the database knows about the table: see `Status`."""
        return await self._db.run(read_status(self._db, self._layout))

    async def statistics(self) -> Statistics:
        """Statistics of all vectors that were ingested. See `Table.statistics`."""
        return await self._db.run(read_statistics(self._db, self._layout))
