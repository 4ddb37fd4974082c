"""Drift: are the vectors still those that axes or rotation was decided from?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pybq._choice.probe import Probe, searched, searched_since
from pybq._choice.statistics import Statistics
from pybq._choice.strategy import MIN_ROWS, choose
from pybq._codes.metric import Metric


@dataclass(frozen=True, slots=True)
class Drift:
    """How the vectors of a table differ from those that its transform was decided from.

    They are all that were ingested, also those that were deleted since; SQL has statistics of what
    is there now: ``bq_coordinates(bq_sample_statistics('items'))``.

    Attributes
    ----------
    count : int
        Rows that the statistics have seen, those of the decision among them.
    f_axis, f_rotate : float
        Fidelity as predicted now, as in `Decision`.
    mean_shift, spread_shift : float or None
        How far means and standard deviations of the coordinates have moved: root mean square
        over the coordinates, in units of the root mean square of the standard deviations then.
        None if the transform was not decided from statistics.
    better : bool
        Whether the statistics now speak for the other choice, so that `Table.reencode` would
        help.
    text : str
        All this in words.
    """

    count: int
    f_axis: float
    f_rotate: float
    mean_shift: float | None
    spread_shift: float | None
    better: bool
    text: str


def compare(
    transform: int, then: Statistics | None, now: Statistics, metric: Metric = "cosine"
) -> Drift | None:
    """Compare current statistics with those that a transform was decided from.

    Parameters
    ----------
    transform : int
        Of the codes.
    then : Statistics or None
        What it was decided from; None if it was given.
    now : Statistics
        Of all rows.
    metric : {"cosine", "l2", "inner_product"}
        What is searched by.

    Returns
    -------
    Drift or None
        None if there are too few rows to learn from, or all are alike.

    Notes
    -----
    Only a change of what the statistics say counts. Where a measurement on raw vectors (`probe`)
    overruled them at the decision, they never agreed with it, and that is not drift.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(7)
    >>> then, now = Statistics(128), Statistics(128)
    >>> then.update(np.tanh(2 * rng.standard_normal((2000, 128))))  # flat: choose() keeps the axes
    >>> now.merge(then)
    >>> compare(0, then, now).better
    False
    >>> now.update(rng.standard_normal((20_000, 128)) * np.linspace(0.1, 3, 128))
    >>> drift = compare(0, then, now)
    >>> drift.better, drift.spread_shift > 0.5
    (True, True)
    """
    decision = choose(now, metric=metric)
    if now.count < MIN_ROWS or math.isnan(decision.f_axis):
        return None
    rotated = transform != 0
    differs = decision.rotate != rotated
    kept = "rotation" if rotated else "the original axes"
    if then is None:
        better, mean_shift, spread_shift, moved = differs, None, None, ""
    else:
        overruled = choose(then, metric=metric).rotate != rotated
        better = differs and not overruled
        found = _weigh(then, now, metric)
        if found is not None:
            gain = found.recall_rotate - found.recall_axis
            against = (gain > 0) != rotated
            if found.decisive:
                better = against
                decision = choose(now, found, metric=metric)
            elif abs(gain) > found.error and not against:
                better = False
        mean_shift, spread_shift = _shifts(then, now)
        moved = (
            f"since the decision, means have moved by {mean_shift:.2f} and spreads by "
            f"{spread_shift:.2f} standard deviations; "
        )
    if better:
        text = f"{moved}another choice would now be better: {decision.reason}"
    elif differs:
        text = f"{moved}{kept} was measured to be better than predicted, and nothing speaks against"
    else:
        text = f"{moved}{kept} would be chosen again"
    return Drift(
        now.count,
        decision.f_axis,
        decision.f_rotate,
        mean_shift,
        spread_shift,
        better,
        text,
    )


def _weigh(then: Statistics, now: Statistics, metric: Metric) -> Probe | None:
    """What searches find in all rows: those of the decision and those since, by their numbers."""
    before, since = searched(then, metric), searched_since(now, then, metric)
    if before is None or since is None:
        return None
    share = then.count / now.count
    return Probe(
        share * before.recall_axis + (1 - share) * since.recall_axis,
        share * before.recall_rotate + (1 - share) * since.recall_rotate,
        math.hypot(share * before.error, (1 - share) * since.error),
        rows=since.rows,
        queries=since.queries,
        k=since.k,
    )


def _shifts(then: Statistics, now: Statistics) -> tuple[float, float]:
    before, after = np.sqrt(then.variance), np.sqrt(now.variance)
    unit = math.sqrt(float(np.mean(then.variance))) or 1.0

    def rms(difference: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        return math.sqrt(float(np.mean(difference**2))) / unit

    return rms(now.mean - then.mean), rms(after - before)
