"""What searches find by codes, on the original axes and rotated: in a sample, or in passing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pybq._choice.statistics import Statistics
from pybq._codes import core
from pybq._codes.metric import Metric, check_metric
from pybq._codes.quantizer import Quantizer

# The probe: rows searched, and queries taken from the other rows.
PROBE_ROWS = 2000
PROBE_QUERIES = 400

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Probe:
    """Recall measured inside a sample, on the original axes and rotated.

    Attributes
    ----------
    recall_axis, recall_rotate : float
        Share of the true k nearest rows of the sample among the k nearest by code.
    error : float
        Standard error of the difference of the two.
    rows, queries, k : int
        Size of the sample that was searched, number of queries, neighbours per query.
    """

    recall_axis: float
    recall_rotate: float
    error: float
    rows: int
    queries: int
    k: int

    @property
    def decisive(self) -> bool:
        """Whether the difference is more than chance and more than 0.01."""
        difference = abs(self.recall_rotate - self.recall_axis)
        return difference > max(0.01, 3 * self.error)


def probe(
    vectors: ArrayLike,
    queries: ArrayLike | None = None,
    metric: Metric = "cosine",
    k: int = 10,
    transform: int = 1,
    seed: int = 0,
) -> Probe:
    """Measure recall of codes alone inside a sample, on the original axes and rotated.

    Parameters
    ----------
    vectors : array_like of float32, shape (n, dim)
        At most 2,000 rows, drawn at random, are searched.
    queries : array_like of float32, shape (m, dim), optional
        At most 400, drawn at random, are used. By default, rows that are not searched: a fifth
        of `vectors` at most.
    metric : {"cosine", "l2", "inner_product"}
        What is searched by.
    k : int
        Neighbours per query; fewer if the sample is smaller.
    transform : int
        Number of the rotation.
    seed : int
        Of the random draw.

    Returns
    -------
    Probe
        A row counts as found if its exact distance is at most that of the true k-th neighbour,
        so equal rows cost nothing.

    Raises
    ------
    ValueError
        If there are fewer than two vectors, or one is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 64)) * np.linspace(0.1, 3, 64)
    >>> found = probe(vectors)
    >>> found.recall_rotate > found.recall_axis + 0.05, found.decisive
    (True, True)
    """
    check_metric(metric)
    if k < 1:
        raise ValueError(f"expected k of at least 1, got {k}")
    rng = np.random.default_rng(seed)
    rows = np.asarray(vectors)
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"expected at least 2 vectors of shape (n, dim), got {rows.shape}")
    if queries is None:
        held_out = min(PROBE_QUERIES, max(1, len(rows) // 5))
        drawn = _draw(rng, rows, PROBE_ROWS + held_out)
        asked, base = drawn[:held_out], drawn[held_out:]
    else:
        base = _draw(rng, rows, PROBE_ROWS)
        asked = _draw(rng, np.asarray(queries), PROBE_QUERIES)
        if asked.ndim != 2 or len(asked) < 1:
            raise ValueError(f"expected queries of shape (m, dim), got {asked.shape}")
    k = min(k, len(base))

    exact = _similarities(base, asked, metric)
    reach = np.partition(exact, -k, axis=1)[:, -k] - 1e-9 * np.abs(exact).max()
    recalls = []
    for number in (0, transform):
        quantizer = Quantizer(base.shape[1], number)
        nearest = _search(quantizer, base, asked, metric, k, rng)
        found = np.take_along_axis(exact, nearest, axis=1) >= reach[:, None]
        recalls.append(found.mean(axis=1))
    difference = recalls[1] - recalls[0]
    return Probe(
        recall_axis=float(recalls[0].mean()),
        recall_rotate=float(recalls[1].mean()),
        error=float(difference.std() / math.sqrt(len(difference))),
        rows=len(base),
        queries=len(asked),
        k=k,
    )


def searched(statistics: Statistics, metric: Metric = "cosine") -> Probe | None:
    """What searches among the vectors found while the statistics were collected.

    Parameters
    ----------
    statistics : Statistics
    metric : {"cosine", "l2", "inner_product"}
        What is searched by.

    Returns
    -------
    Probe or None
        None if the statistics are of too few vectors for a search.

    Examples
    --------
    >>> import numpy as np
    >>> from pybq import Statistics
    >>> statistics = Statistics(64)
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 64))
    >>> statistics.update(vectors * np.linspace(0.1, 3, 64))
    >>> found = searched(statistics)
    >>> found.queries, found.recall_rotate > found.recall_axis + 0.05
    (64, True)
    """
    check_metric(metric)
    order = 1 if metric == "inner_product" else 0
    found = statistics.found_axes[order], statistics.found_rotated[order]
    return _as_probe(statistics, statistics.searches, *found, statistics.squares[order])


def searched_since(now: Statistics, then: Statistics, metric: Metric = "cosine") -> Probe | None:
    """What searches found in the vectors that were added to `then`; None if there were none."""
    check_metric(metric)
    order = 1 if metric == "inner_product" else 0
    sums = (
        now.searches - then.searches,
        now.found_axes[order] - then.found_axes[order],
        now.found_rotated[order] - then.found_rotated[order],
        now.squares[order] - then.squares[order],
    )
    # statistics may have been made up, or then may not be part of now
    return _as_probe(now, *sums) if min(sums) >= 0 else None


def _as_probe(
    statistics: Statistics, n: int, found_axes: int, found_rotated: int, squares: int
) -> Probe | None:
    if n == 0:
        return None
    k = core.SEARCH_NEIGHBOURS
    axis, rotate = int(found_axes) / (n * k), int(found_rotated) / (n * k)
    error = math.sqrt(max(int(squares) / (n * k**2) - (rotate - axis) ** 2, 0) / n)
    rows = min(statistics.count, core.window_rows(statistics.dim))
    return Probe(axis, rotate, error, rows=rows, queries=n, k=k)


def _draw(rng: np.random.Generator, rows: NDArray[np.generic], most: int) -> NDArray[np.float32]:
    """At most `most` rows at random, in random order, as float32."""
    return np.ascontiguousarray(rows[rng.permutation(len(rows))[:most]], np.float32)


def _similarities(base: NDArray[np.float32], asked: NDArray[np.float32], metric: Metric) -> _Array:
    """Exact similarity, shape (queries, rows): larger is nearer; order as that of the metric."""
    rows, queries = base.astype(np.float64), asked.astype(np.float64)
    squares = np.einsum("ij,ij->i", rows, rows)
    if metric == "cosine":
        rows /= np.sqrt(np.where(squares > 0, squares, 1))[:, None]
    products: _Array = queries @ rows.T
    return 2 * products - squares if metric == "l2" else products


def _search(
    quantizer: Quantizer,
    base: NDArray[np.float32],
    asked: NDArray[np.float32],
    metric: Metric,
    k: int,
    rng: np.random.Generator,
) -> NDArray[np.intp]:
    """The k rows nearest to each query by code alone, shape (queries, k)."""
    codes = quantizer.encode(base)
    values = quantizer.rotate(asked)
    nearest = np.empty((len(asked), k), np.intp)
    # equal distances are common between codes; which of them comes first must not matter
    order = rng.permutation(len(base))
    for i, query in enumerate(values):
        if metric == "cosine":
            distances = core.cosine_distances(codes, query)
        elif metric == "l2":
            distances = core.l2_distances(codes, query)
        else:
            distances = -core.inner_products(codes, query)
        nearest[i] = order[np.argpartition(distances[order], k - 1)[:k]]
    return nearest
