"""Operations that write: rows, indexes, triggers, other codes; methods of both kinds of table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike, NDArray
from psycopg import sql

from pybq._catalog import fulltext, schema
from pybq._catalog.fulltext import check_text_column
from pybq._catalog.opening import find_table
from pybq._catalog.registry import forget_table
from pybq._loading.ingest import OnConflict
from pybq._loading.ingest import ingest as ingest_rows
from pybq._loading.load import LoadOptions
from pybq._loading.load import load as load_source
from pybq._tables.base import BaseTable
from pybq._tables.reencode import reencode as encode_anew
from pybq.errors import TableError

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack


async def ingest(
    table: BaseTable,
    ids: Sequence[object] | NDArray[Any] | None,
    vectors: ArrayLike,
    columns: Mapping[str, Sequence[object] | NDArray[Any]] | None = None,
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
    options = (columns, on_conflict, progress)
    return await ingest_rows(table._db, table._layout, ids, vectors, *options)


async def load(table: BaseTable, source: object, **options: Unpack[LoadOptions]) -> int:
    """Write a file, a frame or an iterable of any size, in batches.

    Each batch is a transaction of its own: what was written stays, whatever happens
    later, and a load that was interrupted, even by a crash, goes on where it was.

    Parameters
    ----------
    source : path, array, frame or iterable
        A file: .npy of shape (n, dim); .npz, .h5 or .hdf5 of arrays by name; .parquet with a list
        column of numbers; .fvecs or .bvecs. An ndarray of shape (n, dim), or a mapping of arrays
        by name. A pandas or polars DataFrame, a pyarrow Table or RecordBatchReader. An iterable of
        batches: each an array of shape (n, dim), a tuple (ids, vectors) or (ids, vectors,
        columns), or a mapping of arrays. Memory stays constant for what need not be read whole.
    columns : sequence of str, optional
        Further columns to carry along; by default all that the table has, too. Their values
        are written as `ingest` writes them, by the types of the table's columns.
    vector_column, id_column : str, optional
        Columns of the vectors and of the keys. Left out, the one called "embedding" or "vector",
        else the only one that could be; and "id".
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
    return await load_source(table._db, table._layout, source, **options)


async def create_index(
    table: BaseTable, filters: Sequence[str] = (), *, recall: float | None = None
) -> None:
    """Build the index `USING bq` over the vectors, or over the column of codes.

    If there is one, with these filters, none is built: another `recall` is set. Writers
    wait meanwhile: for a table in use there is `pybq.adopt`. Without an index searches compare
    all rows.

    Parameters
    ----------
    filters : sequence of str
        Columns that searches filter by, to be kept in the index: rows that do not meet a
        condition on them are not fetched.
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
    await schema.create_index(table._db, table._layout, filters, recall)


async def create_text_index(
    table: BaseTable,
    text_column: str | Sequence[str],
    *,
    language: str | None = None,
    method: fulltext.Method = "gin",
) -> None:
    """Build an index on the words of a column, for searches with `text`.

    If there is one, none is built. Writers wait meanwhile; CREATE INDEX CONCURRENTLY with the same
    expression, `to_tsvector('english', body)`, is found by searches as well.

    Parameters
    ----------
    text_column : str or sequence of str
        Column of type text, varchar, json, jsonb or tsvector; or several of text, which are read
        one after the other.
    language : str, optional
        Configuration of full text search; "english" if left out. Of a column of tsvector it is what
        its values were made by.
    method : {"gin", "bm25"}
        How rows that have the words are found and ranked: by PostgreSQL's full text search and
        `ts_rank`; or by BM25, of the extension pg_textsearch.

    Raises
    ------
    ValueError
        If there is no such column, or it has no words.
    TableError
        If the database does not have the extension that bm25 is of.
    psycopg.errors.UndefinedObject
        If there is no such configuration.

    Examples
    --------
    >>> import numpy as np, psycopg, pybq
    >>> vectors = np.random.default_rng(7).standard_normal((2, 64), dtype=np.float32)
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     table = pybq.Table(conn, "items", dim=64, columns={"body": "text"})
    ...     rows = table.ingest(range(2), vectors, {"body": ["apples", "pears"]})
    ...     table.create_text_index("body")
    ...     [hit.id for hit in table.search(None, text="pear")]
    [1]
    """
    columns = check_text_column(text_column)
    await fulltext.create_text_index(table._db, table._layout, columns, language, method)


async def delete(table: BaseTable, ids: Sequence[object] | NDArray[Any]) -> int:
    """Delete rows by their keys.

    It needs DELETE and SELECT on the table. The statistics go on counting what was ingested.

    Parameters
    ----------
    ids : sequence or ndarray, shape (n,)
        Values of the primary key, tuples if it has several columns.

    Returns
    -------
    int
        Number of rows that there were.

    Raises
    ------
    TypeError
        If ids are no keys, as a text, numbers with a fraction, or an array of two dimensions.
    TableError
        If the table has no primary key.

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
    table._layout.need_key()
    condition, keys = table._layout.with_keys(ids)
    statement = sql.SQL("DELETE FROM {} WHERE {}").format(table.identifier, condition)
    async with table._db.transaction():
        return await table._db.execute(statement, keys)


async def create_trigger(table: BaseTable) -> None:
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
    await schema.create_trigger(table._db, table._layout)


async def reencode(
    table: BaseTable, transform: int | None = None, *, progress: bool | None = None
) -> int:
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
    table._forget()
    return await encode_anew(table._db, table._layout, transform, progress)


async def drop(table: BaseTable) -> None:
    """Drop the table, and what `bq_columns` knows of it; for its owner.

    Of `bq_loads`, what the current role has loaded; rows of other roles stay there.

    Raises
    ------
    TableError
        If another table has its name by now.
    psycopg.Error
        As the server says, e.g. DependentObjectsStillExist if there are views of it; then nothing
        has changed.

    Examples
    --------
    >>> import psycopg, pybq
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     table = pybq.Table(conn, "items", dim=64)
    ...     table.drop()
    ...     pybq.Table(conn, "items", dim=32).dim
    32
    """
    db, layout = table._db, table._layout
    async with db.transaction():
        # What is forgotten goes by its oid, what is dropped by its name: they must be one table.
        lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(layout.identifier)
        await db.execute(lock)
        there = await find_table(db, layout.name, layout.schema)
        if there is None or there.oid != layout.oid:
            raise TableError(
                f"table {layout.name!r} is not the one that was opened, which was renamed or "
                "dropped; open it again"
            )
        await forget_table(db, layout)
        await db.execute(sql.SQL("DROP TABLE {}").format(layout.identifier))
