"""What is known about a table: its status, and the statistics of its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import sql

from pybq._catalog.database import Database
from pybq._catalog.indexes import VectorIndex, find_indexes, tell_index, write_index
from pybq._catalog.layout import Layout
from pybq._choice.drift import Drift, compare
from pybq._choice.statistics import Statistics
from pybq._codes.metric import name_opclass
from pybq.errors import TableError

# Tables of more bytes are not counted: that would take longer than a second.
MAX_COUNTED_NBYTES = 1 << 30
# Rows from which axes or rotation is decided, spread evenly over the first ingest: enough that
# the fidelities of another sample differ by less than the margin of the choice.
SAMPLE_ROWS = 20_000


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


@dataclass(frozen=True, slots=True)
class Status:
    """What is known about a table; `str()` of it is for people.

    Attributes
    ----------
    name : str
        Name of the table.
    dim : int
        Number of dimensions.
    metric : str
        "cosine", "l2" or "inner_product".
    store : str or None
        Type of the stored vectors; None: codes only.
    column : str
        What is searched: the column of codes; in a table without one, that of the vectors.
    codes : bool
        Whether there is a column of codes. Without, the index decides between axes and rotation
        by itself, and from `count` on only `transform` and `reason` say something: what it chose.
    indexes : list of VectorIndex
        On that column, oldest first.
    advice : str or None
        If there is no index of bq: the statement that makes one, and searches fast; where the
        column does not declare its dimensions, the one that does so first.
    row_count : int or None
        Rows of the table that the current role may see; None if it may not read any.
    row_count_exact : bool
        False if `row_count` is the planner's estimate, as for tables above 1 GB.
    count : int or None
        Vectors ingested through pybq so far, which `statistics` are of: also those of rows that
        were deleted or written over since.
    transform : int or None
        0: codes on the original axes, otherwise the number of the rotation; None before the
        first ingest.
    f_axis, f_rotate : float or None
        Fidelity of codes, predicted when `transform` was decided: the correlation of estimated
        with true inner products on the original axes, and after a rotation.
    reason : str or None
        Why, in words.
    decided_count : int or None
        Rows it was decided from.
    decided_at : datetime or None
    drift : Drift or None
        How the rows differ from those, and whether another choice would now be better; None
        before the first ingest, and while there are too few rows.
    next_transform : int or None
        What `Table.reencode` has begun and not finished, if anything.
    calibrations : list of Calibration
        What `Table.calibrate` has measured of these codes, and `search(recall=...)` uses.
    """

    name: str
    dim: int
    metric: str
    store: str | None
    column: str
    codes: bool
    indexes: list[VectorIndex]
    advice: str | None
    row_count: int | None
    row_count_exact: bool
    count: int | None
    transform: int | None
    f_axis: float | None
    f_rotate: float | None
    reason: str | None
    decided_count: int | None
    decided_at: datetime | None
    drift: Drift | None
    next_transform: int | None
    calibrations: list[Calibration]

    def __str__(self) -> str:
        rows = "unknown" if self.row_count is None else f"{self.row_count:,}"
        about = "" if self.row_count_exact else "about "
        lines = [
            f"{self.name}: {about}{rows} rows x {self.dim} dimensions, metric {self.metric}",
            f"vectors: {self.store or 'not stored, codes only'}"
            + ("" if self.codes else f", column {self.column}"),
        ]
        if self.codes and self.row_count_exact and self.row_count not in (None, self.count):
            lines.append(f"statistics: of {self.count:,} vectors ingested so far")
        if self.codes and self.transform is None:
            lines.append("codes: none yet, the first ingest decides between axes and rotation")
        elif self.codes:
            axes = f"after rotation {self.transform}" if self.transform else "on the original axes"
            lines.append(f"codes: {axes}")
        lines += [f"index {index}" for index in self.indexes]
        if self.reason is not None:
            lines.append(f"why: {self.reason}")
        if self.advice is not None:
            lines.append(f"no index of bq; to have one: {self.advice}")
        if self.drift is not None and self.drift.count != self.decided_count:
            lines.append(f"drift: {self.drift.text}")
            if self.drift.better:
                lines.append("to change it: Table.reencode(), or pybq reencode")
        if self.next_transform is not None:
            lines.append(
                f"being encoded anew, with transform {self.next_transform}; if nobody is at it, "
                "Table.reencode() or pybq reencode continues"
            )
        lines += [f"recall: {calibration}" for calibration in self.calibrations]
        return "\n".join(lines)


async def read_status(db: Database, layout: Layout) -> Status:
    """Ask the database for the status of a table."""
    found = await find_indexes(db, layout.oid, layout.searched.name)
    indexes = [await tell_index(db, index) for index in found]
    advice = None
    if not any(index.method == "bq" and index.answers(layout.metric) for index in indexes):
        row = await db.fetch_one("SELECT relkind = 'p' FROM pg_class WHERE oid = %s", [layout.oid])
        advice = _advise(layout, partitioned=row == (True,)).as_string(db.connection)
    rows, exact = await count_rows(db, layout)
    facts: tuple[Any, ...] = (layout.searched.name, layout.has_codes, indexes, advice, rows, exact)
    if layout.has_codes:
        facts += await _read_codes(db, layout)
    else:
        chosen = next((index for index in indexes if index.transform is not None), None)
        transform, choice = (chosen.transform, chosen.choice) if chosen else (None, None)
        facts += (None, transform, None, None, choice, None, None, None, None, [])
    return Status(layout.name, layout.dim, layout.metric, layout.store, *facts)


def _advise(layout: Layout, partitioned: bool) -> sql.Composed:
    """Write the statement that makes an index, or lets one be made."""
    column = layout.searched
    if not layout.declared:
        return sql.SQL("ALTER TABLE {} ALTER COLUMN {} TYPE {}({})").format(
            layout.identifier, column.identifier, sql.SQL(column.type_name), layout.dim
        )
    opclass = None if layout.has_codes else sql.SQL(name_opclass(column.type_name, layout.metric))
    # PostgreSQL makes no index of a partitioned table beside writers.
    return write_index(layout.identifier, column.name, opclass, concurrently=not partitioned)


async def _read_codes(db: Database, layout: Layout) -> tuple[Any, ...]:
    """What bq_columns says of codes: the attributes of `Status` from `count` on."""
    row = await db.fetch_one(
        """
        SELECT transform, decided_at IS NOT NULL, f_axis, f_rotate, reason, decided_count,
               decided_at, next_transform, (statistics).*, (decided_statistics).*
        FROM bq_columns WHERE table_name = %s AND code_column = %s
        """,
        [layout.oid, layout.code.name],
    )
    if row is None:
        raise _gone(layout)
    transform, decided, f_axis, f_rotate, reason, decided_count, decided_at, following = row[:8]
    now, then = _make_statistics(layout, row[8:19]), _make_statistics(layout, row[19:])
    drift = None
    if decided:
        drift = await db.compute(
            compare, transform, then if then.count else None, now, layout.metric
        )
    known = transform if decided else None
    calibrations = await read_calibrations(db, layout, transform)
    return (
        *(now.count, known, f_axis, f_rotate, reason, decided_count, decided_at, drift, following),
        calibrations,
    )


async def count_rows(db: Database, layout: Layout) -> tuple[int | None, bool]:
    """Return the number of rows, None for who may not read, and whether it was counted."""
    row = await db.fetch_one(
        "SELECT has_any_column_privilege(%s::oid, 'SELECT'), pg_relation_size(%s::oid)",
        [layout.oid, layout.oid],
    )
    if row is None or not row[0]:
        return None, True
    if row[1] > MAX_COUNTED_NBYTES:
        estimated = await estimate_rows(db, layout)
        if estimated is not None:
            return estimated, False
    counted = await db.fetch_one(sql.SQL("SELECT count(*) FROM {}").format(layout.identifier))
    assert counted is not None
    return int(counted[0]), True


async def estimate_rows(db: Database, layout: Layout) -> int | None:
    """Estimate the number of rows as the planner does; None before the first VACUUM or ANALYZE."""
    row = await db.fetch_one(
        "SELECT round(reltuples / relpages"
        " * (pg_relation_size(oid) / current_setting('block_size')::int))::bigint"
        " FROM pg_class WHERE oid = %s AND reltuples >= 0 AND relpages > 0",
        [layout.oid],
    )
    return None if row is None else int(row[0])


async def read_calibrations(
    db: Database, layout: Layout, transform: int | None
) -> list[Calibration]:
    """Ask the database for what was measured of codes of this transform."""
    rows = await db.fetch(
        """
        SELECT c.recall, c.k, c.rerank, c.probes, c.rows, c.measured_at
        FROM bq_columns, jsonb_to_recordset(calibrations) AS c(
            recall float8, k int, rerank float8, probes int, rows bigint, transform int,
            measured_at timestamptz)
        WHERE table_name = %s AND code_column = %s AND c.transform = %s ORDER BY c.k, c.recall
        """,
        [layout.oid, layout.code.name, transform],
    )
    return [Calibration(*row) for row in rows]


async def read_transform(db: Database, layout: Layout) -> int | None:
    """Ask the database for the transform of the codes; None before the first ingest."""
    row = await db.fetch_one(
        "SELECT transform, decided_at IS NOT NULL FROM bq_columns"
        " WHERE table_name = %s AND code_column = %s",
        [layout.oid, layout.code.name],
    )
    if row is None:
        raise _gone(layout)
    transform, decided = row
    return int(transform) if decided else None


async def read_statistics(db: Database, layout: Layout) -> Statistics:
    """Ask for the statistics of all vectors that were ingested; without codes, of a sample."""
    if not layout.has_codes:
        return await _sample_statistics(db, layout)
    row = await db.fetch_one(
        "SELECT (statistics).* FROM bq_columns WHERE table_name = %s AND code_column = %s",
        [layout.oid, layout.code.name],
    )
    return _make_statistics(layout, row or [None])


async def _sample_statistics(db: Database, layout: Layout) -> Statistics:
    """Statistics of about SAMPLE_ROWS vectors, from pages drawn at random, made by the server."""
    rows = await estimate_rows(db, layout)
    percent = 100 if not rows else min(100, 100 * SAMPLE_ROWS / rows)
    row = await db.fetch_one(
        sql.SQL(
            "SELECT (s).* FROM (SELECT bq_statistics({0}::real[], %s) AS s FROM {1}"
            " TABLESAMPLE SYSTEM (%s) REPEATABLE (0) WHERE {0} IS NOT NULL) AS sample"
        ).format(layout.searched.identifier, layout.identifier),
        [no_statistics(layout).normalize, percent],
    )
    return _make_statistics(layout, row or [None])


def no_statistics(layout: Layout) -> Statistics:
    """The statistics of no vectors, of the kind that the table's metric calls for."""
    # Cosine distance does not see the lengths of vectors, so neither must the statistics.
    return Statistics(layout.dim, normalize=layout.metric == "cosine")


def _make_statistics(layout: Layout, row: Sequence[Any]) -> Statistics:
    statistics = no_statistics(layout)
    return statistics if row[0] is None else Statistics.from_row(row, statistics.normalize)


def _gone(layout: Layout) -> TableError:
    return TableError(f"table {layout.name!r} is gone from bq_columns")
