"""Drift: what statistics of all rows say against those that axes or rotation was decided from."""

from __future__ import annotations

import numpy as np
import pytest

from pybq._choice.drift import compare
from pybq._choice.statistics import Statistics

DIM = 32


def flat(rng: np.random.Generator, n: int) -> np.ndarray:
    """Coordinates that four levels describe well: the axes are chosen."""
    return np.tanh(4 * rng.standard_normal((n, DIM))).astype(np.float32)


def uneven(rng: np.random.Generator, n: int) -> np.ndarray:
    """Coordinates of very different variances: rotation is chosen."""
    return (rng.standard_normal((n, DIM)) * np.geomspace(0.05, 5, DIM)).astype(np.float32)


def collect(first: np.ndarray, *later: np.ndarray) -> Statistics:
    """Of the rows of a decision, and of those that an ingest adds to them."""
    statistics, now = Statistics(DIM), Statistics(DIM)
    statistics.update(first)
    now.merge(statistics)
    for batch in later:
        now.update(batch)
    return now


def test_the_rows_of_the_decision_are_no_drift(rng: np.random.Generator) -> None:
    for transform, rows in ((0, flat(rng, 1000)), (1, uneven(rng, 1000)), (9, uneven(rng, 1000))):
        drift = compare(transform, collect(rows), collect(rows))
        assert drift is not None and not drift.better
        assert (drift.count, drift.mean_shift, drift.spread_shift) == (1000, 0, 0)


def test_more_rows_of_the_same_kind_are_no_drift(rng: np.random.Generator) -> None:
    first, second = flat(rng, 1000), flat(rng, 1000)
    drift = compare(0, collect(first), collect(first, second))
    assert drift is not None and not drift.better
    assert drift.count == 2000
    assert drift.mean_shift is not None and 0 < drift.mean_shift < 0.1
    assert drift.text.startswith("since the decision, means have moved by 0.0")
    assert drift.text.endswith("the original axes would be chosen again")


@pytest.mark.parametrize("transform", [0, 1])
def test_rows_of_another_kind_call_for_the_other_choice(
    rng: np.random.Generator, transform: int
) -> None:
    kinds = (flat, uneven) if transform == 0 else (uneven, flat)
    first, second = kinds[0](rng, 1000), kinds[1](rng, 19_000)
    drift = compare(transform, collect(first), collect(first, second))
    assert drift is not None and drift.better
    assert drift.spread_shift is not None and drift.spread_shift > 0.5
    assert (drift.f_rotate > drift.f_axis) == (transform == 0)
    better = "rotate" if transform == 0 else "original axes"
    assert f"another choice would now be better: {better}" in drift.text


def test_means_that_move_are_told(rng: np.random.Generator) -> None:
    rows = flat(rng, 2000)
    drift = compare(0, collect(rows), collect(rows, rows + 3))
    assert drift is not None and drift.mean_shift is not None
    # half of the rows by 3, in units of a standard deviation of nearly 1
    np.testing.assert_allclose(drift.mean_shift, 1.5 / np.sqrt(np.mean(rows.var(axis=0))), 1e-3)


def test_a_choice_that_was_given_is_compared_with_none(rng: np.random.Generator) -> None:
    drift = compare(0, None, collect(uneven(rng, 1000)))
    assert drift is not None and drift.better
    assert (drift.mean_shift, drift.spread_shift) == (None, None)
    assert drift.text.startswith("another choice would now be better: rotate")
    drift = compare(7, None, collect(uneven(rng, 1000)))
    assert drift is not None and not drift.better
    assert drift.text == "rotation would be chosen again"


def test_what_a_measurement_overruled_is_no_drift(rng: np.random.Generator) -> None:
    """Rotated in spite of the statistics: they said so then as they do now."""
    rows = flat(rng, 1000)
    drift = compare(1, collect(rows), collect(rows))
    assert drift is not None and not drift.better
    assert drift.text.endswith(
        "rotation was measured to be better than predicted, and nothing speaks against"
    )


def test_rows_that_tell_nothing_have_no_drift(rng: np.random.Generator) -> None:
    assert compare(0, None, collect(uneven(rng, 20))) is None
    assert compare(0, None, collect(np.ones((1000, DIM), np.float32))) is None
