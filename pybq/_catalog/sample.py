"""Rows of a table drawn at random: their keys and vectors, or statistics of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pybq._catalog.database import Database, Row
from pybq._catalog.layout import Layout
from pybq._catalog.registry import make_statistics, no_statistics
from pybq._catalog.size import count_pages, estimate_rows
from pybq._choice.statistics import Statistics

# Rows from which axes or rotation is decided, spread evenly over the first ingest: enough that
# the fidelities of another sample differ by less than the margin of the choice.
SAMPLE_ROWS = 20_000
# Pages that are read to draw one row from.
PAGES_PER_ROW = 10


async def sample_rows(
    db: Database, layout: Layout, n: int
) -> tuple[list[Any], NDArray[np.float32]]:
    """Return keys and vectors of some rows that have a distance from others, the same each time.

    Up to n of them; keys as `Hit.id` has them.
    """
    assert layout.source is not None
    pages = await count_pages(db, layout)
    rows: list[Row] = []
    # Pages with few rows, as after a large DELETE, give too few; then all are read.
    for percent in (100 * PAGES_PER_ROW * n / max(1, pages), 100.0):
        some = sql.SQL("TABLESAMPLE SYSTEM ({}) REPEATABLE (0)").format(percent)
        rows = await db.fetch(
            sql.SQL(
                "SELECT {keys}, {vector}::real[] FROM {table} {some}"
                " WHERE ({vector} {operator} {vector}) <> 'NaN'"
                " ORDER BY md5(ROW({keys})::text) LIMIT %s"
            ).format(
                keys=layout.keys,
                vector=layout.source.identifier,
                table=layout.identifier,
                some=some if percent < 100 else sql.SQL(""),
                operator=layout.operator(layout.source),
            ),
            [n],
        )
        if len(rows) == n or percent >= 100:
            break
    vectors = np.array([row[-1] for row in rows], np.float32).reshape(-1, layout.dim)
    return [layout.take_key(row) for row in rows], vectors


async def sample_statistics(db: Database, layout: Layout) -> Statistics:
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
    return make_statistics(layout, row)
