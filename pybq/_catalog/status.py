"""What is known about a table: its status, and the statistics of its vectors."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import sql

from pybq._catalog import registry
from pybq._catalog.database import Database
from pybq._catalog.indexes import (
    MAX_INDEXED_DIM,
    VectorIndex,
    find_indexes,
    tell_index,
    write_index,
)
from pybq._catalog.layout import Layout
from pybq._catalog.registry import Calibration
from pybq._catalog.sample import sample_statistics
from pybq._catalog.size import tell_rows
from pybq._choice.drift import Drift, compare
from pybq._choice.statistics import Statistics
from pybq._codes.metric import name_opclass


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
        If there is no index of bq, and there can be one (of a table with partitions on other
        servers it is not known): the statement that makes one, and searches fast; where the
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
    indexes = [await tell_index(db, index, layout.distributed) for index in found]
    advice = None
    # indexes of partitions on other servers are not seen from here
    can_have = layout.dim <= MAX_INDEXED_DIM and not layout.sharded
    if can_have and not any(
        index.method == "bq" and index.answers(layout.metric) for index in indexes
    ):
        row = await db.fetch_one("SELECT relkind = 'p' FROM pg_class WHERE oid = %s", [layout.oid])
        advice = _advise(layout, partitioned=row == (True,)).as_string(db.connection)
    rows, exact = await tell_rows(db, layout)
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
    known = await registry.read_record(db, layout)
    drift = None
    if known.transform is not None:
        drift = await db.compute(
            compare, known.transform, known.decided_statistics, known.statistics, layout.metric
        )
    return (
        known.statistics.count,
        known.transform,
        known.f_axis,
        known.f_rotate,
        known.reason,
        known.decided_count,
        known.decided_at,
        drift,
        known.next_transform,
        await registry.read_calibrations(db, layout, known.transform),
    )


async def read_statistics(db: Database, layout: Layout) -> Statistics:
    """Ask for the statistics of all vectors that were ingested; without codes, of a sample."""
    if layout.has_codes:
        return await registry.read_statistics(db, layout)
    return await sample_statistics(db, layout)
