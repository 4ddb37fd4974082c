"""What is known about a table: its status, and the statistics of its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pybq.database import Database
from pybq.drift import Drift, compare
from pybq.errors import TableError
from pybq.schema import Layout
from pybq.statistics import Statistics


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
    count : int
        Rows ingested through pybq so far.
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
    """

    name: str
    dim: int
    metric: str
    store: str | None
    count: int
    transform: int | None
    f_axis: float | None
    f_rotate: float | None
    reason: str | None
    decided_count: int | None
    decided_at: datetime | None
    drift: Drift | None
    next_transform: int | None

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.count:,} rows x {self.dim} dimensions, metric {self.metric}",
            f"vectors: {self.store or 'not stored, codes only'}",
        ]
        if self.transform is None:
            lines.append("codes: none yet, the first ingest decides between axes and rotation")
        else:
            axes = f"after rotation {self.transform}" if self.transform else "on the original axes"
            lines.append(f"codes: {axes}")
            lines.append(f"why: {self.reason}")
        if self.drift is not None and self.drift.count != self.decided_count:
            lines.append(f"drift: {self.drift.text}")
            if self.drift.better:
                lines.append("to change it: Table.reencode(), or pybq reencode")
        if self.next_transform is not None:
            lines.append(
                f"being encoded anew, with transform {self.next_transform}; if nobody is at it, "
                "Table.reencode() or pybq reencode continues"
            )
        return "\n".join(lines)


async def read_status(db: Database, layout: Layout) -> Status:
    """Ask the database for the status of a table."""
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
    now, then = _make_statistics(layout, row[8:15]), _make_statistics(layout, row[15:])
    drift = None
    if decided:
        drift = await db.compute(compare, transform, then if then.count else None, now)
    return Status(
        layout.name,
        layout.dim,
        layout.metric,
        layout.store,
        now.count,
        transform if decided else None,
        f_axis,
        f_rotate,
        reason,
        decided_count,
        decided_at,
        drift,
        following,
    )


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
    """Ask the database for the statistics of all vectors that were ingested."""
    row = await db.fetch_one(
        "SELECT (statistics).* FROM bq_columns WHERE table_name = %s AND code_column = %s",
        [layout.oid, layout.code.name],
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
