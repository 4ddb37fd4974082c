"""A table of pybq in the catalog: creating one, and finding out what there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from psycopg import DataError, ProgrammingError, sql

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


async def open_table(
    db: Database,
    name: str,
    dim: int | None,
    metric: Metric | None,
    schema: str | None,
    options: Mapping[str, object],
) -> Layout:
    """Open a table, as the constructor of `Table` promises; create it if there is none."""
    await db.register()
    identifier = name_table(name, schema)
    found = await db.fetch_one("SELECT to_regclass(%s)", [identifier.as_string(db.connection)])
    if found == (None,):
        if dim is None:
            raise TableError(f"no table {name!r}; give dim to create it")
        await create_table(db, identifier, dim, metric or "cosine", **options)  # type: ignore[arg-type]
    layout = await _read_layout(db, name, schema)
    for what, there, asked in (("dim", layout.dim, dim), ("metric", layout.metric, metric)):
        if asked is not None and asked != there:
            raise TableError(f"table {name!r} has {what} {there}, expected {asked}")
    return layout


async def _read_layout(db: Database, name: str, schema: str | None) -> Layout:
    regclass = name_table(name, schema).as_string(db.connection)
    managed = await db.fetch_one(
        "SELECT table_name::oid, code_column, source_column, dim, metric, next_column"
        " FROM bq_columns WHERE table_name = %s::regclass",
        [regclass],
    )
    if managed is None:
        raise TableError(f"table {name!r} has no codes that pybq made; use Table.create")
    oid, code, source, dim, metric, unfinished = managed
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
    key, codes = columns.pop(keys[0]), columns.pop(code)
    vectors = None if source is None else columns.pop(source)
    columns.pop(unfinished, None)  # of Table.reencode
    return Layout(name, schema, oid, dim, metric, key, codes, vectors, columns)


async def create_table(
    db: Database,
    identifier: sql.Identifier,
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
    for name in columns:
        check_text(f"column {name!r}", name)
        if name in ("id", "embedding", "code"):
            raise ValueError(f"column {name!r} is the table's own; choose another name")
    types = {"id": id_type, **columns}
    await db.register()  # says what is missing
    async with db.transaction():
        for name, type_name in types.items():
            await _check_type(db, name, type_name)
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
            sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(type_name))
            for name, type_name in columns.items()
        ]
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
    """Build the index `USING bq` over the codes."""
    async with db.transaction():
        await db.execute(
            sql.SQL("CREATE INDEX ON {} USING bq ({})").format(
                layout.identifier, layout.code.identifier
            )
        )


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
