"""What pybq makes in a database: tables, their indexes, their triggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from psycopg import DataError, ProgrammingError, sql

from pybq._catalog import registry
from pybq._catalog.database import Database
from pybq._catalog.indexes import VectorIndex, find_indexes, find_opclass, set_recall, write_index
from pybq._catalog.layout import (
    ITEM_NBYTES,
    Layout,
    Store,
    check_text,
    name_table,
)
from pybq._codes.core import nbytes
from pybq._codes.metric import Metric, check_metric
from pybq._codes.quantizer import Quantizer
from pybq.errors import ExtensionMissingError, TableError

# Bytes of a row that fit a page of 8 kB: PostgreSQL, heaptoast.h, TOAST_TUPLE_TARGET_MAIN.
MAX_ROW_NBYTES = 8160
# Rows above this many bytes are moved out of line unless told otherwise: TOAST_TUPLE_TARGET.
TOAST_NBYTES = 2032
# What the other columns of a row need at least: tuple header, id, vector headers.
ROW_OVERHEAD_NBYTES = 64
# A further column, large as it may be: a TOAST pointer, or a short value.
EXTRA_COLUMN_NBYTES = 24


class TableOptions(TypedDict, total=False):
    """What a table is created with beside its dimensions and metric; see `Table.create`."""

    store: Store | None
    codes: bool | None
    columns: Mapping[str, str] | None
    id_type: str
    transform: int | None


class CreateOptions(TableOptions, total=False):
    """What `Table.create` takes besides."""

    schema: str | None


class OpenOptions(CreateOptions, total=False):
    """What `Table` takes beside dimensions and metric."""

    column: str | None
    key: str | Sequence[str] | None


def check_options(options: Mapping[str, object], known: type) -> None:
    """Refuse options that a TypedDict does not name."""
    names = known.__annotations__
    for option in options:
        if option not in names:
            raise TypeError(f"expected options of {', '.join(names)}, got {option!r}")


def name_searched(options: TableOptions) -> list[str]:
    """Columns that a table made with these options can be searched by."""
    store, codes = options.get("store", "halfvec"), options.get("codes")
    codes = store is None if codes is None else codes
    return (["code"] if codes else []) + (["embedding"] if store is not None else [])


async def create_table(
    db: Database,
    name: str,
    dim: int,
    metric: Metric,
    options: CreateOptions,
    may_lack_vectors: bool = False,
) -> str | None:
    """Create the table, and its row in bq_columns; return the schema that it is to be opened by.

    Without a column of codes that row says what the index will be: its metric and transform.
    `may_lack_vectors`: the column of vectors takes NULL.
    """
    check_options(options, CreateOptions)
    schema, transform = options.get("schema"), options.get("transform")
    columns, id_type = options.get("columns") or {}, options.get("id_type", "bigint")
    store, codes = options.get("store", "halfvec"), "code" in name_searched(options)
    if not name_searched(options):
        raise ValueError("expected store of halfvec or vector in a table without codes, got None")
    Quantizer(dim, transform or 0)  # checks both
    check_metric(metric)
    if store is not None and store not in ITEM_NBYTES:
        raise ValueError(f"expected store of {', '.join(ITEM_NBYTES)} or None, got {store!r}")
    for column in columns:
        check_text(f"column {column!r}", column)
        if column in ("id", "embedding", *name_searched(options)):
            raise ValueError(f"column {column!r} is the table's own; choose another name")
    name_table(name, schema)  # checks both
    types = {"id": id_type, **columns}
    await db.register()  # says what is missing
    async with db.transaction():
        for column, type_name in types.items():
            await check_type(db, column, type_name)
        if store is not None and await db.find_type(store) is None:
            raise ExtensionMissingError(
                f'type "{store}" not found; run CREATE EXTENSION vector, or keep codes only '
                "with store=None"
            )
        lines = [sql.SQL("id {} PRIMARY KEY").format(sql.SQL(id_type))]
        # The code first: what a scan reads of a row then lies together.
        if codes:
            lines.append(sql.SQL("code bqvec({}) NOT NULL").format(dim))
        if store is not None:
            needed = sql.SQL("" if may_lack_vectors else " NOT NULL")
            lines.append(sql.SQL("embedding {}({}){}").format(sql.SQL(store), dim, needed))
        lines += [
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(type_name))
            for column, type_name in columns.items()
        ]
        found_schema = await lock_name(db, name, schema)
        # By its name alone, a temporary table of the same name would be found first.
        identifier = name_table(name, found_schema)
        # A type ends with its line, whatever comment it may hold.
        await db.execute(
            sql.SQL("CREATE TABLE {} (\n{}\n)").format(identifier, sql.SQL("\n,").join(lines))
        )
        if store is not None:
            code_nbytes = nbytes(dim) if codes else 0
            row_nbytes = ITEM_NBYTES[store] * dim + code_nbytes + EXTRA_COLUMN_NBYTES * len(columns)
            await _keep_inline(db, identifier, ROW_OVERHEAD_NBYTES + row_nbytes)
        await registry.enter_column(
            db,
            identifier.as_string(db.connection),
            "code" if codes else "embedding",
            None if store is None else "embedding",
            dim,
            metric,
            transform,
        )
        hidden = schema is not None or await _is_hidden(db, name, identifier)
        return found_schema if hidden else None


async def lock_name(db: Database, name: str, schema: str | None) -> str | None:
    """Until the end of the transaction, let nobody else create this table; return its schema.

    Of several at once, one creates it, and the others learn that it exists: without the lock they
    would fail in the catalog, by a unique index of pg_type.
    """
    row = await db.fetch_one(
        "SELECT s, pg_advisory_xact_lock(hashtext('pybq.create'), hashtext(s || '.' || %s))"
        " FROM coalesce(%s, current_schema()) AS s",
        [name, schema],
    )
    assert row is not None
    found: str | None = row[0]
    return found


async def _is_hidden(db: Database, name: str, identifier: sql.Identifier) -> bool:
    """Whether the search path finds another table by this name, as a temporary one."""
    names = [each.as_string(db.connection) for each in (name_table(name, None), identifier)]
    return await db.fetch_one("SELECT to_regclass(%s) = to_regclass(%s)", names) != (True,)


async def create_index(
    db: Database, layout: Layout, filters: Sequence[str] = (), recall: float | None = None
) -> None:
    """Build the index `USING bq` over codes or vectors; of one that is there, set the recall."""
    if isinstance(filters, str):
        raise TypeError("expected filters as a sequence of names, got str")
    for name in filters:
        if name not in layout.columns and name not in (each.name for each in layout.key):
            raise ValueError(f"no column {name!r} in table {layout.name!r} to filter by")
    if recall is not None and not 0 < recall <= 1:
        raise ValueError(f"expected recall above 0 and at most 1, got {recall}")
    if layout.sharded:
        raise TableError(
            f"table {layout.name!r} has partitions on other servers, where their indexes are: make "
            "them there"
        )
    same = await _find_same(db, layout, filters)
    if same is not None:
        await set_recall(db, same, recall)
        return
    async with db.transaction():
        # Writers have to wait anyway; now another connection that builds one does, too.
        await db.execute(
            sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(layout.identifier)
        )
        same = await _find_same(db, layout, filters)
        if same is not None:
            await set_recall(db, same, recall)
            return
        opclass = None
        if not layout.has_codes:
            opclass = await find_opclass(db, layout.searched.type_name, layout.metric)
        options = {} if recall is None else {"recall": recall}
        await db.execute(
            write_index(layout.identifier, layout.searched.name, opclass, filters, options)
        )


async def _find_same(
    db: Database, layout: Layout, filters: Sequence[str] = ()
) -> VectorIndex | None:
    """Find an index of bq that answers searches of all rows, with these filters if any."""
    for index in await find_indexes(db, layout.oid, layout.searched.name):
        filtered = not filters or set(filters) <= set(index.columns)
        if index.method == "bq" and index.answers(layout.metric) and filtered:
            return index
    return None


async def create_trigger(db: Database, layout: Layout) -> None:
    """Have the server make codes for writers that give none."""
    layout.need_codes()
    if layout.source is None:
        raise TableError(f"table {layout.name!r} keeps codes only: there are no vectors to encode")
    async with db.transaction():
        await db.execute(
            sql.SQL(
                "CREATE TRIGGER bq_encode BEFORE INSERT OR UPDATE OF {} ON {} FOR EACH ROW"
                " EXECUTE FUNCTION bq_encode_trigger({}, {})"
            ).format(
                layout.source.identifier,
                layout.identifier,
                sql.Literal(layout.code.name),
                sql.Literal(layout.source.name),
            )
        )


async def check_type(db: Database, name: str, type_name: str) -> None:
    """Refuse what is not the name of a type: it goes into CREATE TABLE as it is."""
    try:
        async with db.transaction():
            found = await db.fetch_one("SELECT to_regtype(%s)", [type_name])
    except (ProgrammingError, DataError):
        found = None
    if found is None or found[0] is None:
        raise ValueError(f"column {name!r}: no type {type_name!r} in the database")


async def _keep_inline(db: Database, identifier: sql.Identifier, row_nbytes: int) -> None:
    """Keep the vector in its row if the row fits a page.

    Re-ranking reads a few vectors per query: 0.2 to 0.8 us each from the row, 3 to 7 us out of
    line (TOAST), where pgvector's types go by default once a row has more than 2 kB.
    """
    if row_nbytes > MAX_ROW_NBYTES:
        return
    await db.execute(
        sql.SQL("ALTER TABLE {} ALTER COLUMN embedding SET STORAGE PLAIN").format(identifier)
    )
    if row_nbytes > TOAST_NBYTES:
        # Else all other columns would be moved out of each row in a vain attempt to shorten it.
        await db.execute(
            sql.SQL("ALTER TABLE {} SET (toast_tuple_target = {})").format(
                identifier, MAX_ROW_NBYTES
            )
        )
