"""What a wanted recall needs: measured on the table itself, kept in bq_columns, found there."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psycopg.errors import InsufficientPrivilege, ReadOnlySqlTransaction

from pybq._catalog.database import Database
from pybq._catalog.layout import Layout
from pybq._catalog.registry import keep_calibration, read_calibrations
from pybq._catalog.sample import sample_rows
from pybq._catalog.size import estimate_rows, tell_rows
from pybq._codes.arrays import as_numbers, spread
from pybq._codes.quantizer import Quantizer
from pybq._searching.search import (
    MAX_PROBES,
    Effort,
    Shape,
    Writer,
    check_recall,
    fetch,
    make_search,
)
from pybq.errors import TableError

# Number of queries, unless told otherwise.
SAMPLE = 200
# The nearest rows are looked for among this many candidates for each wanted row at first, and at
# least among this many times the candidates that turn out to be needed.
AMONG, MARGIN = 32, 8
# Candidates of one search at most: all searches together must not take minutes.
MAX_CANDIDATES = 50_000
# Numbers of lists that are tried where those of the index do not suffice.
PROBES = tuple(2**power for power in range(3, 16))
# A table that has so many times the rows it was measured with calls for another measurement.
GROWTH = 2

_Array = NDArray[np.float64]


async def calibrate(
    db: Database,
    layout: Layout,
    quantizer: Quantizer,
    writer: Writer,
    recall: float,
    k: int = 10,
    queries: ArrayLike | None = None,
    sample: int = SAMPLE,
) -> Effort:
    """Return the least effort that meets a recall, as `Table.calibrate` promises.

    The places that the nearest rows have in the order of the codes tell what any number of
    candidates would find. Searches as they are, whose index does not read all lists, have to
    confirm it: with as many candidates, or with a few more of them, or with more lists.
    """
    check_recall(layout, recall)
    if k < 1 or sample < 2:
        raise ValueError(f"expected k >= 1 and sample >= 2, got {k} and {sample}")
    own: Sequence[Any] | None = None
    if queries is None:
        own, vectors = await sample_rows(db, layout, sample)
    else:
        given = np.atleast_2d(as_numbers(queries, "queries"))
        if len(given) < 2:
            raise ValueError(f"expected at least 2 queries, got {len(given)}")
        vectors = given[spread(len(given), sample)]
    if len(vectors) < 2:  # of one row, all is found
        return Effort(1)
    asked = make_search(layout, db.connection, vectors)
    itself = int(own is not None)  # a row finds itself, and that does not count

    async def search(candidates: int, probes: int | None, ranked: bool = False) -> _Array:
        """Return distances of the k nearest among so many candidates, and perhaps their places.

        Shape (1 or 2, q, k), infinite where there are fewer.
        """
        shape = Shape(k + itself, candidates + itself, ranked=ranked)
        statement = writer.write(replace(asked, shape=shape, probes=probes), quantizer)
        values = np.full((1 + ranked, len(vectors), k), np.inf)
        for i, rows in enumerate(await fetch(db, layout, statement)):
            others = [row[1:] for row in rows if own is None or row[0] != own[i]][:k]
            if others:
                values[:, i, : len(others)] = np.transpose(others)
        return values

    most, among = max(k, MAX_CANDIDATES), AMONG * k
    while True:
        among = min(among, most)
        nearest, places = await search(among, MAX_PROBES, ranked=True)
        places -= itself
        reranks = (step * 2.0**power for power in count() for step in (1, 1.5))
        rerank = next(r for r in reranks if _is_met(places <= r * k, nearest, recall))
        if MARGIN * rerank * k <= among or among == most:
            break
        among *= 4
    reach = np.where(np.isfinite(nearest), nearest, -np.inf).max(axis=1, keepdims=True)
    efforts = [Effort(rerank), Effort(next(reranks)), Effort(rerank := next(reranks))]
    efforts += [Effort(rerank, probes) for probes in PROBES]
    for effort in efforts:
        (distances,) = await search(math.ceil(effort.rerank * k), effort.probes)
        if _is_met(distances <= reach, nearest, recall):
            return effort
    return Effort(rerank, MAX_PROBES)


def _is_met(found: NDArray[np.bool_], nearest: _Array, recall: float) -> bool:
    """Whether the recall is met, with two standard errors of the sample to spare."""
    there = np.isfinite(nearest).sum(axis=1)
    shares = np.where(there > 0, found.sum(axis=1) / np.maximum(there, 1), 1)
    error = shares.std(ddof=1) / math.sqrt(len(shares))
    return bool(shares.mean() - 2 * error >= recall)


async def keep_effort(db: Database, layout: Layout, recall: float, k: int, effort: Effort) -> None:
    """Enter what was measured into bq_columns; warn who may not."""
    rows, _ = await tell_rows(db, layout)
    try:
        async with db.transaction():
            await keep_calibration(db, layout, recall, k, *effort, rows)
    except (InsufficientPrivilege, ReadOnlySqlTransaction) as error:
        warnings.warn(
            f"the calibration of table {layout.name!r} holds for this object only: {error}; let "
            "the table's owner calibrate it",
            stacklevel=2,
        )


async def find_effort(
    db: Database, layout: Layout, transform: int, recall: float, k: int
) -> Effort | None:
    """Return the least effort for at least this recall that was kept; None if none was."""
    kept = await read_calibrations(db, layout, transform)
    enough = [one for one in kept if one.k == k and one.recall >= recall - 1e-9]
    if not enough:
        return None
    best = min(enough, key=lambda one: (one.recall, one.measured_at))
    rows = await estimate_rows(db, layout)
    if rows is not None and best.rows is not None and rows > GROWTH * best.rows:
        warnings.warn(
            f"table {layout.name!r} has grown since it was calibrated at {best.rows:,} rows; "
            f"{_advise(best.recall, k)}",
            stacklevel=2,
        )
    return Effort(best.rerank, best.probes)


def not_calibrated(layout: Layout, recall: float, k: int) -> TableError:
    return TableError(
        f"table {layout.name!r} is not calibrated for recall {recall:g} of the {k} nearest rows; "
        f"{_advise(recall, k)}"
    )


def _advise(recall: float, k: int) -> str:
    return f"call calibrate({recall:g}, k={k}) once, or run pybq calibrate"
