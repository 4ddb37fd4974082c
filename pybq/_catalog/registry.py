"""The registry: all that the driver asks and tells bq_columns and bq_loads, and nothing else.

What they are is said in sql/bq.sql. Only functions of the extension write them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import sql

from pybq._catalog.database import Database, Row
from pybq._catalog.layout import Layout
from pybq._choice.statistics import Statistics
from pybq._choice.strategy import Decision
from pybq._codes.metric import Metric
from pybq.errors import TableError

# One row of bq_columns, by table and column.
_THIS = "table_name = %s AND code_column = %s"


class Entry(NamedTuple):
    """What bq_columns says of a column of codes, or of vectors that pybq made the table for."""

    column: str
    source: str | None  # the column of vectors; of a column of vectors itself
    dim: int
    metric: Metric
    next_column: str | None  # of a reencode that has begun


async def find_entries(db: Database, table: int) -> dict[str, Entry]:
    """Find what is known of the columns of a table, by their names."""
    rows = await db.fetch(
        "SELECT code_column, source_column, dim, metric, next_column"
        " FROM bq_columns WHERE table_name = %s ORDER BY code_column",
        [table],
    )
    return {row[0]: Entry(*row) for row in rows}


async def find_codes(db: Database, table: int, source: str) -> list[tuple[str, Metric]]:
    """Find the columns of codes of a column, and their metrics, where bq may not be installed.

    A column's own name stands for an index to be.
    """
    if await db.fetch_one("SELECT to_regclass('bq_columns')") == (None,):
        return []
    rows = await db.fetch(
        "SELECT code_column, metric FROM bq_columns WHERE table_name::oid = %s"
        " AND source_column = %s ORDER BY 1",
        [table, source],
    )
    return [(code, metric) for code, metric in rows]


@dataclass(frozen=True, slots=True)
class Known:
    """One row of bq_columns; see `find_all`."""

    oid: int  # of the table, which may be gone
    table: str  # its name, as SQL has it
    column: str
    source: str | None
    metric: Metric
    transform: int | None  # None: not decided yet
    next_column: str | None
    next_transform: int | None
    count: int  # of vectors that were ingested

    @property
    def is_codes(self) -> bool:
        """Whether it is a column of codes, and not of vectors."""
        return self.column != self.source


async def find_all(db: Database) -> list[Known]:
    """Find all that is known in the database, by the names of the tables."""
    rows = await db.fetch(
        "SELECT table_name::oid, table_name::text, code_column::text, source_column::text, metric,"
        " CASE WHEN decided_at IS NOT NULL THEN transform END, next_column::text, next_transform,"
        " coalesce((statistics).count, 0) FROM bq_columns ORDER BY 2, 3"
    )
    return [Known(*row) for row in rows]


async def enter_column(
    db: Database,
    table: str,
    column: str,
    source: str | None,
    dim: int,
    metric: str,
    transform: int | None,
) -> None:
    """Enter a column of a table, a regclass, that was made just now."""
    reason = None if transform is None else "set when the table was created"
    await db.execute(
        "SELECT bq_register_column(%s::regclass, %s, %s, %s, %s, %s, %s)",
        [table, column, source, dim, metric, transform, reason],
    )


def write_forget(table: str, column: str) -> sql.Composed:
    """Return the statement that takes a column off the registry; the table is a regclass."""
    return sql.SQL("SELECT bq_forget_column({}, {})").format(table, column)


async def forget_table(db: Database, layout: Layout) -> None:
    """Take a table off the registry: its columns, and what the current role has loaded into it."""
    await db.fetch(
        "SELECT bq_forget_column(%s::oid, code_column) FROM bq_columns WHERE table_name = %s",
        [layout.oid, layout.oid],
    )
    await db.fetch(
        "SELECT bq_forget_load(%s::oid, source) FROM (SELECT DISTINCT source FROM bq_loads"
        " WHERE table_name = %s AND loader = quote_ident(current_user)::regrole) AS loaded",
        [layout.oid, layout.oid],
    )


# -- the decision, and the statistics it is made from ------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """What bq_columns says of the codes in a column."""

    statistics: Statistics
    decided_statistics: Statistics | None
    transform: int | None  # None: not decided yet
    f_axis: float | None
    f_rotate: float | None
    reason: str | None
    decided_count: int | None
    decided_at: datetime | None
    next_transform: int | None


async def read_record(db: Database, layout: Layout) -> Record:
    """Ask for what is known of the codes of a table."""
    row = await db.fetch_one(
        f"""
        SELECT CASE WHEN decided_at IS NOT NULL THEN transform END, f_axis, f_rotate, reason,
               decided_count, decided_at, next_transform, (statistics).*, (decided_statistics).*
        FROM bq_columns WHERE {_THIS}
        """,
        _this(layout),
    )
    if row is None:
        raise gone(layout)
    now, then = make_statistics(layout, row[7:18]), make_statistics(layout, row[18:])
    return Record(now, then if then.count else None, *row[:7])


async def read_transform(db: Database, layout: Layout) -> int | None:
    """Ask for the transform of the codes; None before the first ingest.

    Of a table without a column of codes: what was asked for when it was made, if anything.
    """
    row = await db.fetch_one(
        f"SELECT CASE WHEN decided_at IS NOT NULL THEN transform END FROM bq_columns WHERE {_THIS}",
        _this(layout),
    )
    if row is None and layout.has_codes:
        raise gone(layout)
    return None if row is None or row[0] is None else int(row[0])


async def read_statistics(db: Database, layout: Layout) -> Statistics:
    """Ask for the statistics of all vectors that were ingested."""
    row = await db.fetch_one(f"SELECT (statistics).* FROM bq_columns WHERE {_THIS}", _this(layout))
    if row is None:
        raise gone(layout)
    return make_statistics(layout, row)


async def recompute_statistics(db: Database, layout: Layout) -> Statistics:
    """Have the server make statistics from a sample of the stored vectors."""
    row = await db.fetch_one("SELECT (bq_sample_statistics(%s::oid, %s)).*", _this(layout))
    return make_statistics(layout, row)


async def add_statistics(db: Database, layout: Layout, statistics: Statistics) -> None:
    """Merge in the database, under the row's lock: what others added meanwhile stays.

    Without codes there is nothing to decide from them: the index looks at the rows themselves.
    """
    if layout.has_codes:
        row, fields = _statistics(statistics)
        await db.execute(f"SELECT bq_add_statistics(%s::oid, %s, {fields})", [*_this(layout), *row])


async def decide(db: Database, layout: Layout, decision: Decision, statistics: Statistics) -> int:
    """Enter a decision; return the transform, which is another if others were faster."""
    row, fields = _statistics(statistics)
    decided = await db.fetch_one(
        f"SELECT bq_decide(%s::oid, %s, %s, {fields}, %s, %s, %s)",
        [*_this(layout), decision.transform, *row, *_fidelities(decision), decision.reason],
    )
    assert decided is not None
    return int(decided[0])


async def decide_again(
    db: Database,
    layout: Layout,
    transform: int,
    decision: Decision,
    statistics: Statistics,
    reason: str,
) -> None:
    """Enter another decision; nothing is under way any longer.

    Statistics that speak against the transform were not what it was decided from, unless a
    measurement overruled them.
    """
    row, fields = _statistics(statistics)
    known = statistics.count > 0 and decision.rotate == (transform != 0)
    await db.execute(
        f"SELECT bq_decide_again(%s::oid, %s, %s, CASE WHEN %s THEN {fields} END, %s, %s, %s)",
        [*_this(layout), transform, known, *row, *_fidelities(decision), reason],
    )


def no_statistics(layout: Layout) -> Statistics:
    """The statistics of no vectors, of the kind that the table's metric calls for."""
    # Cosine distance does not see the lengths of vectors, so neither must the statistics.
    return Statistics(layout.dim, normalize=layout.metric == "cosine")


def make_statistics(layout: Layout, row: Sequence[Any] | None) -> Statistics:
    """Make statistics of a row of type bq_statistics, which may be null."""
    statistics = no_statistics(layout)
    if row is None or row[0] is None:
        return statistics
    return Statistics.from_row(row, statistics.normalize)


def _statistics(statistics: Statistics) -> tuple[Row, str]:
    """Fields of a value of type bq_statistics, and SQL that makes one of them."""
    row = statistics.to_row()
    return row, f"ROW({', '.join(['%b'] * len(row))})::bq_statistics"


def _fidelities(decision: Decision) -> list[float | None]:
    """What the database keeps of them: it has null where there is none."""
    return [f if math.isfinite(f) else None for f in (decision.f_axis, decision.f_rotate)]


# -- reencode ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Encoding:
    """What bq_columns and the catalog say of a column of codes that is to be made anew."""

    transform: int
    next_column: str | None
    next_transform: int | None
    schema: str  # of the table, wherever it was found
    filled: bool  # neither vectors nor codes may be null
    undecided: bool
    generated: bool
    partitioned: bool  # or inherited
    owned: bool  # by the current role


async def read_encoding(db: Database, layout: Layout) -> Encoding:
    """Ask for what a reencode needs to know."""
    row = await db.fetch_one(
        """
        SELECT b.transform, b.next_column, b.next_transform, n.nspname,
               s.attnotnull AND a.attnotnull, b.decided_at IS NULL, a.attgenerated <> '',
               c.relkind <> 'r' OR c.relhassubclass OR c.relispartition,
               pg_has_role(c.relowner, 'USAGE')
        FROM bq_columns b JOIN pg_class c ON c.oid = b.table_name::oid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = b.code_column
        JOIN pg_attribute s ON s.attrelid = c.oid AND s.attname = b.source_column
        WHERE b.table_name = %s AND b.code_column = %s
        """,
        _this(layout),
    )
    if row is None:
        raise gone(layout)
    return Encoding(*row)


async def set_next(db: Database, layout: Layout, column: str | None, transform: int | None) -> None:
    """Say which column a reencode fills, with which transform; None: none does."""
    await db.execute(
        "SELECT bq_set_next_column(%s::oid, %s, %s, %s)", [*_this(layout), column, transform]
    )


# -- calibrations ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calibration:
    """What searches need for a recall, as `Table.calibrate` measured it.

    Attributes
    ----------
    recall : float
    k : int
        Share of the true k nearest rows that is found.
    rerank : float
    probes : int or None
        As given to `Table.search`.
    rows : int or None
        Rows of the table then.
    measured_at : datetime
    """

    recall: float
    k: int
    rerank: float
    probes: int | None
    rows: int | None
    measured_at: datetime

    def __str__(self) -> str:
        probes = "" if self.probes is None else f" and probes {self.probes}"
        rows = "" if self.rows is None else f", measured at {self.rows:,} rows"
        return f"{self.recall:g} of the {self.k} nearest by rerank {self.rerank:g}{probes}{rows}"


async def read_calibrations(
    db: Database, layout: Layout, transform: int | None
) -> list[Calibration]:
    """Ask for what was measured of codes of this transform."""
    rows = await db.fetch(
        f"""
        SELECT c.recall, c.k, c.rerank, c.probes, c.rows, c.measured_at
        FROM bq_columns, jsonb_to_recordset(calibrations) AS c(
            recall float8, k int, rerank float8, probes int, rows bigint, transform int,
            measured_at timestamptz)
        WHERE {_THIS} AND c.transform = %s ORDER BY c.k, c.recall
        """,
        [*_this(layout), transform],
    )
    return [Calibration(*row) for row in rows]


async def keep_calibration(
    db: Database,
    layout: Layout,
    recall: float,
    k: int,
    rerank: float,
    probes: int | None,
    rows: int | None,
) -> None:
    """Enter what was measured, in the place of what was for the same k and recall."""
    await db.execute(
        "SELECT bq_keep_calibration(%s::oid, %s, %s, %s, %s, %s, %s)",
        [*_this(layout), recall, k, rerank, probes, rows],
    )


# -- bq_loads ----------------------------------------------------------------------------


class LoadedBatch(NamedTuple):
    """A batch of a source that was written."""

    number: int
    rows: int  # in each but the last
    fingerprint: str  # of the source


async def find_batches(db: Database, layout: Layout, source: str) -> list[LoadedBatch]:
    """Find the batches of a source that this role has loaded into a table."""
    rows = await db.fetch(
        "SELECT batch, batch_rows, fingerprint FROM bq_loads WHERE table_name = %s AND source = %s"
        " AND loader = quote_ident(current_user)::regrole",  # others' say is not taken
        [layout.oid, source],
    )
    return [LoadedBatch(*row) for row in rows]


async def find_batch(db: Database, layout: Layout, source: str, number: int) -> LoadedBatch | None:
    """Find one batch of a source that this role has loaded into a table."""
    row = await db.fetch_one(
        "SELECT batch, batch_rows, fingerprint FROM bq_loads WHERE table_name = %s AND source = %s"
        " AND batch = %s AND loader = quote_ident(current_user)::regrole",
        [layout.oid, source, number],
    )
    return None if row is None else LoadedBatch(*row)


async def lock_batch(db: Database, layout: Layout, source: str, number: int) -> None:
    """Wait until no other transaction has this lock on a batch, and take it until the end."""
    await db.fetch(
        "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
        [f"bq_loads {layout.oid} {number} {source}"],
    )


async def forget_batches(db: Database, layout: Layout, source: str) -> None:
    """Forget that batches of a source were loaded."""
    await db.execute("SELECT bq_forget_load(%s::oid, %s)", [layout.oid, source])


async def record_batch(
    db: Database, layout: Layout, source: str, batch: LoadedBatch, written: int
) -> None:
    """Enter a batch, of which so many rows were written."""
    await db.execute(
        "SELECT bq_record_load(%s::oid, %s, %s, %s, %s, %s)",
        [layout.oid, source, *batch, written],
    )


def gone(layout: Layout) -> TableError:
    return TableError(f"table {layout.name!r} is gone from bq_columns")


def _this(layout: Layout) -> list[Any]:
    return [layout.oid, layout.searched.name]
