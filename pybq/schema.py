"""A table of pybq in the catalog: creating one, and finding out what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypedDict

from psycopg import DataError, ProgrammingError, sql
from psycopg.errors import DuplicateTable

from pybq._core import nbytes
from pybq.database import Database
from pybq.errors import ExtensionMissingError, TableError
from pybq.quantizer import Quantizer
from pybq.strategy import Metric

Store = Literal["halfvec", "vector"]

# The same sign means the same distance on codes and on pgvector's types.
OPERATORS = {"cosine": "<=>", "l2": "<->", "inner_product": "<#>"}
ITEM_NBYTES = {"halfvec": 2, "vector": 4}

# Bytes of a row that fit a page of 8 kB: PostgreSQL, heaptoast.h, TOAST_TUPLE_TARGET_MAIN.
MAX_ROW_NBYTES = 8160
# Rows above this many bytes are moved out of line unless told otherwise: TOAST_TUPLE_TARGET.
TOAST_NBYTES = 2032
# What the other columns of a row need at least: tuple header, id, vector headers.
ROW_OVERHEAD_NBYTES = 64
# A further column, large as it may be: a TOAST pointer, or a short value.
EXTRA_COLUMN_NBYTES = 24


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: its name, and its type as PostgreSQL has it."""

    name: str
    declared: str  # pg_type.typname of its type, which may be a domain
    type_name: str  # that of its values: the type below all domains
    type_oid: int
    is_enum: bool

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.name)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the catalog and bq_columns say of a table that does not change with its rows."""

    name: str
    schema: str | None  # None: found on the search path
    oid: int
    dim: int
    metric: Metric
    id: Column  # the primary key
    code: Column
    source: Column | None  # the vectors; None: codes only
    columns: Mapping[str, Column]  # all others

    @property
    def identifier(self) -> sql.Identifier:
        return name_table(self.name, self.schema)

    @property
    def store(self) -> str | None:
        """Type of the stored vectors."""
        return None if self.source is None else self.source.type_name


def name_table(name: str, schema: str | None) -> sql.Identifier:
    for what, text in (("table", name), ("schema", schema)):
        check_text(f"{what} {text!r}", text or "")
    return sql.Identifier(schema, name) if schema else sql.Identifier(name)


def check_text(what: str, text: str) -> None:
    """Refuse text for a statement that the client library would cut off, and send the rest."""
    if "\0" in text:
        raise ValueError(f"{what}: expected text without NUL characters")


class TableOptions(TypedDict, total=False):
    """What a table is created with beside its dimensions and metric; see `Table.create`."""

    store: Store | None
    columns: Mapping[str, str] | None
    id_type: str
    transform: int | None


async def open_table(
    db: Database,
    name: str,
    dim: int | None,
    metric: Metric | None,
    schema: str | None,
    code_column: str | None,
    options: TableOptions,
) -> Layout:
    """Open a table, as the constructor of `Table` promises; create it if there is none."""
    known = TableOptions.__annotations__
    for option in options:
        if option not in known:
            raise TypeError(f"expected options of {', '.join(known)}, got {option!r}")
    await db.register()
    identifier = name_table(name, schema)
    found = await db.fetch_one("SELECT to_regclass(%s)", [identifier.as_string(db.connection)])
    if found == (None,):
        if dim is None:
            raise TableError(f"no table {name!r}; give dim to create it")
        # If another connection is faster, what it has made is opened.
        with suppress(DuplicateTable):
            await create_table(db, name, schema, dim, metric or "cosine", **options)
    layout = await _read_layout(db, name, schema, code_column)
    for what, there, asked in (("dim", layout.dim, dim), ("metric", layout.metric, metric)):
        if asked is not None and asked != there:
            raise _disagrees(layout, what, there, asked)
    await _check_options(db, layout, options)
    return layout


def _disagrees(layout: Layout, what: str, there: object, asked: object) -> TableError:
    return TableError(f"table {layout.name!r} has {what} {there}, expected {asked}")


async def _check_options(db: Database, layout: Layout, options: TableOptions) -> None:
    """Refuse options that an existing table does not have."""
    if "store" in options and options["store"] != layout.store:
        raise _disagrees(layout, "store", layout.store, options["store"])
    transform = options.get("transform")
    if transform is not None:
        there = await db.fetch_one(
            "SELECT CASE WHEN decided_at IS NOT NULL THEN transform END FROM bq_columns"
            " WHERE table_name = %s AND code_column = %s",
            [layout.oid, layout.code.name],
        )
        if there is None or there[0] != transform:
            raise _disagrees(layout, "transform", there and there[0], transform)
    wanted = dict(options.get("columns") or {})
    for name in wanted:
        if name not in layout.columns:
            raise TableError(f"table {layout.name!r} has no column {name!r}, which was asked for")
    if "id_type" in options:
        wanted[layout.id.name] = options["id_type"]
    if not wanted:
        return
    try:
        async with db.transaction():
            different = await db.fetch(
                """
                SELECT a.attname, format_type(a.atttypid, NULL), w.type
                FROM unnest(%s::text[], %s::text[]) AS w(name, type)
                JOIN pg_attribute a ON a.attrelid = %s AND a.attname = w.name
                WHERE a.atttypid IS DISTINCT FROM to_regtype(w.type)
                """,
                [list(wanted), list(wanted.values()), layout.oid],
            )
    except (ProgrammingError, DataError):  # one is not even like the name of a type
        for name, asked in wanted.items():
            await _check_type(db, name, asked)
        raise
    for name, there, asked in different:
        await _check_type(db, name, asked)
        raise _disagrees(layout, f"column {name!r} of type", there, asked)


async def _read_layout(
    db: Database, name: str, schema: str | None, code_column: str | None
) -> Layout:
    regclass = name_table(name, schema).as_string(db.connection)
    managed = await db.fetch(
        "SELECT table_name::oid, code_column, source_column, dim, metric, next_column"
        " FROM bq_columns WHERE table_name = %s::regclass ORDER BY code_column",
        [regclass],
    )
    if not managed:
        raise TableError(f"table {name!r} has no codes that pybq made; use Table.create")
    codes = [row[1] for row in managed]
    if code_column is None and len(codes) > 1:
        raise TableError(
            f"table {name!r} has code columns {', '.join(codes)}; say which one with code_column"
        )
    if code_column is not None and code_column not in codes:
        raise TableError(
            f"table {name!r} has code column {', '.join(codes)}, expected {code_column}"
        )
    row = managed[0 if code_column is None else codes.index(code_column)]
    oid, code, source, dim, metric, unfinished = row
    attributes = await db.fetch(
        """
        SELECT a.attname, t.typname, b.typname, b.oid, b.typtype = 'e',
               coalesce(a.attnum = i.indkey[0], false)
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        CROSS JOIN LATERAL (
            WITH RECURSIVE base AS (
                SELECT t.oid, t.typname, t.typtype, t.typbasetype
                UNION ALL
                SELECT d.oid, d.typname, d.typtype, d.typbasetype
                FROM base JOIN pg_type d ON d.oid = base.typbasetype
            )
            SELECT * FROM base WHERE typtype <> 'd'
        ) b
        LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary AND i.indnkeyatts = 1
        WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
        """,
        [oid],
    )
    columns = {name: Column(name, *kind) for name, *kind, _ in attributes}
    for column in (code, source):
        if column is not None and column not in columns:
            raise TableError(
                f"table {name!r} has no column {column!r}, which bq_columns names; if it was "
                "renamed, call bq_rename_column, too"
            )
    keys = [name for name, *_, primary in attributes if primary]
    if len(keys) != 1:
        raise TableError(f"table {name!r} has no primary key of one column")
    key, coded = columns.pop(keys[0]), columns.pop(code)
    vectors = None if source is None else columns.pop(source)
    if vectors is not None and vectors.type_name not in ITEM_NBYTES:
        raise TableError(
            f"column {source!r} of table {name!r} is of type {vectors.declared}, expected"
            f" {' or '.join(ITEM_NBYTES)}; change its type, for example to halfvec({dim})"
        )
    columns.pop(unfinished, None)  # of Table.reencode
    return Layout(name, schema, oid, dim, metric, key, coded, vectors, columns)


async def create_table(
    db: Database,
    name: str,
    schema: str | None,
    dim: int,
    metric: str = "cosine",
    store: str | None = "halfvec",
    columns: Mapping[str, str] | None = None,
    id_type: str = "bigint",
    transform: int | None = None,
) -> None:
    """Create the table, and its row in bq_columns."""
    Quantizer(dim, transform or 0)  # checks both
    if metric not in OPERATORS:
        raise ValueError(f"expected metric of {', '.join(OPERATORS)}, got {metric!r}")
    if store is not None and store not in ITEM_NBYTES:
        raise ValueError(f"expected store of {', '.join(ITEM_NBYTES)} or None, got {store!r}")
    columns = columns or {}
    for column in columns:
        check_text(f"column {column!r}", column)
        if column in ("id", "embedding", "code"):
            raise ValueError(f"column {column!r} is the table's own; choose another name")
    identifier = name_table(name, schema)
    types = {"id": id_type, **columns}
    await db.register()  # says what is missing
    async with db.transaction():
        for column, type_name in types.items():
            await _check_type(db, column, type_name)
        if store is not None and await db.find_type(store) is None:
            raise ExtensionMissingError(
                f'type "{store}" not found; run CREATE EXTENSION vector, or keep codes only '
                "with store=None"
            )
        lines = [sql.SQL("id {} PRIMARY KEY").format(sql.SQL(id_type))]
        # The code first: what a scan reads of a row then lies together.
        lines.append(sql.SQL("code bqvec({}) NOT NULL").format(dim))
        if store is not None:
            lines.append(sql.SQL("embedding {}({}) NOT NULL").format(sql.SQL(store), dim))
        lines += [
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(type_name))
            for column, type_name in columns.items()
        ]
        # Of several at once, one creates it, and the others learn that it exists: without
        # the lock they would fail in the catalog, by a unique index of pg_type.
        await db.execute(
            "SELECT pg_advisory_xact_lock(hashtext('pybq.create'),"
            " hashtext(coalesce(%s, current_schema()) || '.' || %s))",
            [schema, name],
        )
        # A type ends with its line, whatever comment it may hold.
        await db.execute(
            sql.SQL("CREATE TABLE {} (\n{}\n)").format(identifier, sql.SQL("\n,").join(lines))
        )
        if store is not None:
            await _keep_inline(db, identifier, dim, store, len(columns))
        await db.execute(
            "SELECT bq_register_column(%s::regclass, 'code', %s, %s, %s, %s, %s)",
            [
                identifier.as_string(db.connection),
                None if store is None else "embedding",
                dim,
                metric,
                transform,
                None if transform is None else "set when the table was created",
            ],
        )


async def create_index(db: Database, layout: Layout) -> None:
    """Build the index `USING bq` over the codes, unless there is one."""
    if await find_indexes(db, layout):
        return
    async with db.transaction():
        # Writers have to wait anyway; now another connection that builds one does, too.
        await db.execute(
            sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(layout.identifier)
        )
        if not await find_indexes(db, layout):
            await db.execute(
                sql.SQL("CREATE INDEX ON {} USING bq ({})").format(
                    layout.identifier, layout.code.identifier
                )
            )


async def find_indexes(
    db: Database, layout: Layout
) -> list[tuple[int, str, Sequence[str] | None, str | None]]:
    """Return oid, name, options and tablespace of each index of all codes."""
    found = await db.fetch(
        """
        SELECT x.oid, x.relname, x.reloptions, t.spcname
        FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        LEFT JOIN pg_tablespace t ON t.oid = x.reltablespace
        WHERE i.indrelid = %s AND m.amname = 'bq' AND a.attname = %s AND i.indisvalid
        AND i.indpred IS NULL ORDER BY 1
        """,
        [layout.oid, layout.code.name],
    )
    return [(oid, name, options, tablespace) for oid, name, options, tablespace in found]


async def create_trigger(db: Database, layout: Layout) -> None:
    """Have the server make codes for writers that give none."""
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


async def _check_type(db: Database, name: str, type_name: str) -> None:
    """Refuse what is not the name of a type: it goes into CREATE TABLE as it is."""
    try:
        async with db.transaction():
            found = await db.fetch_one("SELECT to_regtype(%s)", [type_name])
    except (ProgrammingError, DataError):
        found = None
    if found is None or found[0] is None:
        raise ValueError(f"column {name!r}: no type {type_name!r} in the database")


async def _keep_inline(
    db: Database, identifier: sql.Identifier, dim: int, store: str, extra: int
) -> None:
    """Keep the vector in its row if the row fits a page.

    Re-ranking reads a few vectors per query: 0.2 to 0.8 us each from the row, 3 to 7 us out of
    line (TOAST), where pgvector's types go by default once a row has more than 2 kB.
    """
    row_nbytes = (
        ROW_OVERHEAD_NBYTES + ITEM_NBYTES[store] * dim + nbytes(dim) + EXTRA_COLUMN_NBYTES * extra
    )
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
