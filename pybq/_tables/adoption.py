"""An index of bq for a table of pgvector's that is in use, beside the one it has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg import Connection, sql
from psycopg.errors import DuplicateTable, LockNotAvailable
from psycopg.pq import TransactionStatus

from pybq._catalog import registry
from pybq._catalog.citus import is_distributed
from pybq._catalog.database import BlockingDatabase, run
from pybq._catalog.indexes import (
    VectorIndex,
    find_indexes,
    find_opclass,
    set_recall,
    tell_index,
    write_index,
)
from pybq._catalog.layout import ITEM_NBYTES, PLACE, Layout
from pybq._catalog.opening import find_table, read_columns
from pybq._codes.metric import Metric, check_metric
from pybq._tables.comparison import Comparison, check_comparable, compare_indexes
from pybq.errors import TableError

# PostgreSQL, src/include/pg_config_manual.h: NAMEDATALEN - 1
MAX_NAME_NBYTES = 63


@dataclass(frozen=True, slots=True)
class Adoption:
    """What `adopt` made and measured.

    Attributes
    ----------
    table, column : str
    metric : str
        "cosine", "l2" or "inner_product".
    index : str
        Name of the index.
    statement : str or None
        What made it, of a partitioned table several; None if it was there already.
    seconds : float or None
        How long that took.
    nbytes : int
        Its size.
    others : list of str
        HNSW and IVFFlat indexes that answer the same queries.
    comparison : Comparison or None
        If it was asked for.
    drop : list of str
        Statements that would drop the others. Nothing is dropped without you.
    drop_codes : list of str
        Statements that would drop the codes of this column that pybq or a trigger keeps in another
        one: the index has its own, and `Table` then searches by it.
    """

    table: str
    column: str
    metric: Metric
    index: str
    statement: str | None
    seconds: float | None
    nbytes: int
    others: list[str]
    comparison: Comparison | None
    drop: list[str]
    drop_codes: list[str]


def adopt(
    conn: Connection[Any],
    table: str,
    *,
    column: str | None = None,
    metric: Metric | None = None,
    filters: Sequence[str] = (),
    recall: float | None = None,
    schema: str | None = None,
    compare: bool = False,
    k: int = 10,
    sample: int = 50,
) -> Adoption:
    """Make an index of bq on a column of pgvector's, while the table is in use.

    Parameters
    ----------
    conn : psycopg.Connection
        Of the table's owner, with no transaction open.
    table : str
        Any table with a column of type ``vector(dim)`` or ``halfvec(dim)``.
    column : str, optional
        Which one, if there are several.
    metric : {"cosine", "l2", "inner_product"}, optional
        Left out, that of the HNSW or IVFFlat index on the column, or of the index of bq that it
        has, or of the codes that pybq keeps of it, or cosine.
    filters : sequence of str
        Columns that queries filter by, to be kept in the index.
    recall : float, optional
        Option of the index: share of the nearest rows that queries should find.
    schema : str, optional
        Schema of the table; left out, the search path finds it.
    compare : bool
        Measure the index beside those of pgvector on the column, see Notes.
    k, sample : int
        For that: rows wanted per query, and number of queries.

    Returns
    -------
    Adoption

    Raises
    ------
    ExtensionMissingError
        If the extension bq_pgvector is neither there nor may be created.
    TableError
        If there is no such table or column, if it has no dimensions, or if a transaction is open.

    Notes
    -----
    The index is made by ``CREATE INDEX CONCURRENTLY``: readers and writers go on. If that fails
    or is interrupted (also by `statement_timeout`), what it leaves is dropped, at once or by the
    next call. If there is such an
    index already, none is made; another `recall` is set.

    Of a partitioned table the index is made partition by partition, and each is attached to one
    of the whole, which makes nothing itself: writers wait for no more than that. What is there
    already, also from a call that was interrupted, is attached and not made again.

    To compare, queries are read only, take no lock but that of a SELECT, and change no setting
    for others: see `compare_indexes`. The exact order is known by reading the whole
    table, once for each query.

    Once the index is there, the planner chooses between it and the old one by its own estimate.

    Examples
    --------
    >>> import numpy as np, psycopg, pybq
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
    >>> with pybq.serve() as server, psycopg.connect(server.dsn, autocommit=True) as conn:
    ...     done = conn.execute("CREATE TABLE items (id bigint, embedding vector(64))")
    ...     with conn.cursor().copy("COPY items FROM STDIN") as copy:
    ...         for i, vector in enumerate(vectors):
    ...             copy.write_row([i, str(vector.tolist())])
    ...     done = conn.execute("CREATE INDEX ON items USING hnsw (embedding vector_l2_ops)")
    ...     adopted = pybq.adopt(conn, "items")
    >>> adopted.index, adopted.metric, adopted.drop
    ('items_embedding_bq', 'l2', ['DROP INDEX CONCURRENTLY "public"."items_embedding_idx"'])
    """
    if not isinstance(conn, Connection):
        raise TypeError(f"expected a psycopg.Connection, got {type(conn).__name__}")
    if metric is not None:
        check_metric(metric)
    if recall is not None and not 0 < recall <= 1:
        raise ValueError(f"expected recall above 0 and at most 1, got {recall}")
    if isinstance(filters, str):
        raise TypeError("expected filters as a sequence of names, got str")
    if k < 1 or sample < 1:
        raise ValueError(f"expected k and sample of at least 1, got {k} and {sample}")
    if conn.info.transaction_status != TransactionStatus.IDLE:
        raise TableError("an index is made concurrently outside of transactions; commit this one")
    before = conn.autocommit
    conn.autocommit = True
    try:
        db = BlockingDatabase(conn)
        found = find_column(db, table, column, schema)
        _check_column(db, found, filters)
        if compare:
            check_comparable(found)
        there = _find_indexes(db, found)
        vectors = found.searched
        codes = run(registry.find_codes(db, found.oid, vectors.name))
        metric = metric or _find_metric(vectors.name, there, codes)
        found = replace(found, metric=metric)
        opclass = run(find_opclass(db, vectors.type_name, metric))
        options = {} if recall is None else {"recall": float(recall)}
        start = time.perf_counter()
        statements: list[str] = []
        name = _make(db, found, opclass, tuple(filters), options, statements)
        statement = ";\n".join(statements) or None
        seconds = time.perf_counter() - start if statements else None
        indexes = {index.name: index for index in _find_indexes(db, found)}
        made = indexes[name]
        if statement is None:
            run(set_recall(db, made, recall))
            made = {index.name: index for index in _find_indexes(db, found)}[name]
        others = [
            index
            for index in indexes.values()
            if index.method != "bq" and index.metric == metric and index.valid and not index.partial
        ]
        return Adoption(
            found.name,
            vectors.name,
            metric,
            name,
            statement,
            seconds,
            run(tell_index(db, made, found.distributed)).nbytes,
            [index.name for index in others],
            compare_indexes(conn, found, [made, *others], k, sample) if compare else None,
            [_write_drop(index).as_string(conn) for index in others],
            [statement for code, _ in codes for statement in _write_drop_codes(db, found, code)],
        )
    finally:
        if not conn.closed:
            conn.autocommit = before


def find_column(
    db: BlockingDatabase, table: str, column: str | None = None, schema: str | None = None
) -> Layout:
    """Find the column of vectors in a table, which need not be named if there is only one.

    Also where bq is not installed. Rows are known by their place; the metric is yet to be found.
    """
    there = run(find_table(db, table, schema))
    if there is None:
        raise TableError(f"no table {table!r}")
    attributes = run(read_columns(db, there.oid))
    dims = {each.name: dim for each, dim, _ in attributes if each.type_name in ITEM_NBYTES}
    names = ", ".join(dims)
    if column is not None and column not in dims:
        raise TableError(
            f"table {table!r} has no column {column!r} of type vector or halfvec; it has "
            f"{names or 'none'}"
        )
    if not dims:
        raise TableError(f"table {table!r} has no column of pgvector's types vector or halfvec")
    if column is None and len(dims) > 1:
        raise TableError(f"table {table!r} has vectors in {names}; say which with column")
    columns = {each.name: each for each, _, _ in attributes}
    name = column or next(iter(dims))
    vectors, dim = columns.pop(name), dims[name]
    return Layout(
        *(there.name, there.schema, there.oid, dim or 0, "cosine"),
        key=(PLACE,),
        searched=vectors,
        source=vectors,
        columns=columns,
        declared=dim is not None,
        distributed=run(is_distributed(db, there.oid)),
    )


def _make(
    db: BlockingDatabase,
    layout: Layout,
    opclass: sql.Identifier,
    filters: tuple[str, ...],
    options: dict[str, float],
    statements: list[str],
) -> str:
    """Make the index of a table, or find it, and return its name; adds what was run for it."""
    there, column = _find_indexes(db, layout), layout.searched.name
    name = _find_same(there, layout.metric, (column, *filters))
    if name is not None:
        return name
    parts = _find_partitions(db, layout)
    if parts is None:
        name = _choose_name(db, layout, there)
        statement = write_index(
            layout.identifier, column, opclass, filters, options, name, concurrently=True
        ).as_string(db.connection)
        _build(db, layout, name, statement)
        statements.append(statement)
        return name
    # that of an earlier call, which is not valid before it has one of each partition
    name = _find_same(there, layout.metric, (column, *filters), valid=False)
    if name is None:
        name = _choose_name(db, layout, there)
        statement = write_index(
            layout.identifier, column, opclass, filters, options, name, only=True
        ).as_string(db.connection)
        run(db.execute(statement))
        statements.append(statement)
    whole = sql.Identifier(layout.schema, name)
    attached = {oid for (oid,) in run(db.fetch(_ATTACHED, [whole.as_string(db.connection)]))}
    for part in parts:
        made = _make(db, part, opclass, filters, options, statements)
        (oid,) = (index.oid for index in _find_indexes(db, part) if index.name == made)
        if oid not in attached:
            attach = sql.SQL("ALTER INDEX {} ATTACH PARTITION {}").format(
                whole, sql.Identifier(part.schema, made)
            )
            run(db.execute(attach))
            statements.append(attach.as_string(db.connection))
    return name


_ATTACHED = "SELECT inhrelid FROM pg_inherits WHERE inhparent = %s::regclass"


def _find_partitions(db: BlockingDatabase, layout: Layout) -> list[Layout] | None:
    """The partitions of a table; None if it is none of partitions."""
    rows = run(
        db.fetch(
            "SELECT c.oid, n.nspname, c.relname, c.relkind FROM pg_class w"
            " LEFT JOIN pg_inherits i ON i.inhparent = w.oid LEFT JOIN pg_class c"
            " ON c.oid = i.inhrelid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE w.oid = %s AND w.relkind = 'p' ORDER BY c.oid",
            [layout.oid],
        )
    )
    foreign = next((name for _, _, name, kind in rows if kind == "f"), None)
    if foreign is not None:
        raise TableError(
            f"partition {foreign!r} of table {layout.name!r} is on another server; adopt it there, "
            "and the partitions that are here one by one"
        )
    if not rows:
        return None
    return [
        replace(layout, oid=oid, schema=schema, name=name)
        for oid, schema, name, _ in rows
        if oid is not None
    ]


def _find_indexes(db: BlockingDatabase, layout: Layout) -> list[VectorIndex]:
    """Find the indexes that begin with the column of vectors, oldest first."""
    return run(find_indexes(db, layout.oid, layout.searched.name))


def _check_column(db: BlockingDatabase, layout: Layout, filters: Sequence[str]) -> None:
    kind = run(db.fetch_one("SELECT relkind FROM pg_class WHERE oid = %s", [layout.oid]))
    if kind not in (("r",), ("m",), ("p",)):
        raise TableError(f"{layout.name!r} is not a table: there is nothing to index")
    vectors = layout.searched
    if not layout.declared:
        change = sql.SQL("ALTER TABLE {} ALTER {} TYPE {}(384)").format(
            layout.identifier, vectors.identifier, sql.SQL(vectors.type_name)
        )
        raise TableError(
            f"column {vectors.name!r} of table {layout.name!r} has no dimensions; declare them, "
            f"which rewrites the table, for example by {change.as_string(db.connection)}"
        )
    for name in filters:
        if name not in layout.columns:
            raise TableError(f"table {layout.name!r} has no column {name!r} to filter by")


def _find_metric(
    column: str, indexes: list[VectorIndex], codes: list[tuple[str, Metric]]
) -> Metric:
    """The metric of pgvector's index on the column, of bq's, or of its codes; else cosine."""
    valid = [index for index in indexes if index.valid and index.metric]
    # those of bq count where they are all that is left
    others = [index for index in valid if index.method != "bq"] or valid
    metrics = sorted({index.metric for index in others if index.metric})
    if len(metrics) > 1:
        raise TableError(
            f"column {column!r} has indexes for {' and '.join(metrics)}; say which with metric"
        )
    return next(iter([*metrics, *(metric for _, metric in codes)]), "cosine")


def _find_same(
    indexes: list[VectorIndex], metric: Metric, columns: tuple[str, ...], valid: bool = True
) -> str | None:
    """Name of an index that is what is wanted."""
    for index in indexes:
        if (index.method, index.metric, index.columns) == ("bq", metric, columns) and (
            index.valid == valid and not index.partial
        ):
            return index.name
    return None


def _choose_name(db: BlockingDatabase, layout: Layout, indexes: list[VectorIndex]) -> str:
    """A name that is free, once what an earlier attempt has left under it is dropped."""
    base = f"{layout.name}_{layout.searched.name}_bq"
    unfinished = {
        index.name: index
        for index in indexes
        if index.method == "bq" and not index.valid and not index.partitioned
    }
    number = 0
    while True:
        suffix = str(number or "")
        room = MAX_NAME_NBYTES - len(suffix)
        name = base.encode()[:room].decode(errors="ignore") + suffix
        if name in unfinished:
            _drop_leftover(db, layout, unfinished[name])
            return name
        taken = "SELECT 1 FROM pg_class c WHERE relname = %s AND relnamespace = %s::regnamespace"
        schema = sql.Identifier(layout.schema).as_string(db.connection)
        if not run(db.fetch_one(taken, [name, schema])):
            return name
        number += 1


def _drop_leftover(db: BlockingDatabase, layout: Layout, index: VectorIndex) -> None:
    """Drop an index that is not valid, unless another session is about to make it so."""
    lock = sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE NOWAIT").format(layout.identifier)
    try:
        with db.connection.transaction():
            run(db.execute(lock))  # which every session holds that builds one
    except LockNotAvailable as error:
        raise TableError(
            f"index {index.name!r} is not valid, and table {layout.name!r} is being indexed or "
            "vacuumed by another session; try again when that has ended"
        ) from error
    run(db.execute(_write_drop(index)))


def _build(db: BlockingDatabase, layout: Layout, name: str, statement: str) -> None:
    """Make the index; drop what is left of it if that fails or is interrupted."""
    try:
        run(db.execute(statement))
    except DuplicateTable:  # another session was faster: that index is not ours to drop
        raise
    except BaseException as error:
        if db.connection.closed:
            raise
        left = [i for i in _find_indexes(db, layout) if i.name == name and not i.valid]
        for index in left:
            drop = _write_drop(index).as_string(db.connection)
            try:
                run(db.execute(drop))
            except Exception:
                raise TableError(
                    f"index {name!r} was not made, and what is left of it costs writers time; "
                    f"run {drop}"
                ) from error
        raise


def _write_drop_codes(db: BlockingDatabase, layout: Layout, code: str) -> list[str]:
    """Statements that drop a column of codes, what fills it, and what bq_columns knows of it."""
    if code == layout.searched.name:
        return []
    triggers = run(
        db.fetch(
            "SELECT t.tgname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid"
            " WHERE t.tgrelid = %s AND NOT t.tgisinternal AND p.proname = 'bq_encode_trigger'"
            " AND position(%s::bytea IN t.tgargs) = 1 ORDER BY 1",
            [layout.oid, code.encode() + b"\0"],
        )
    )
    table = layout.identifier
    return [
        statement.as_string(db.connection)
        for statement in (
            *(
                sql.SQL("DROP TRIGGER {} ON {}").format(sql.Identifier(name), table)
                for (name,) in triggers
            ),
            sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(table, sql.Identifier(code)),
            registry.write_forget(table.as_string(db.connection), code),
        )
    ]


def _write_drop(index: VectorIndex) -> sql.Composed:
    # PostgreSQL drops no index that has partitions beside writers.
    how = sql.SQL("" if index.partitioned else "CONCURRENTLY ")
    return sql.SQL("DROP INDEX {}{}").format(how, index.identifier)
