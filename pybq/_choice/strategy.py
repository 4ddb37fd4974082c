"""Axis or rotation: the fidelity formulas, the probe, the decision and its reasons.

Fidelity F is the correlation, within one query, of the estimated with the true inner product.
Let x = mu + g be a vector with C = Cov x, f its decoded code, q another vector of the same kind.
Up to a constant, the estimate is

    <q, f> = <q - mu, f> + <mu, f>

The two terms are uncorrelated over q. From means, variances and covariances of single coordinates
alone, with kappa_j = Cov(x_j, f_j) / C_jj and quantization noise taken as uncorrelated,

    <q - mu, .>   Var of truth      sum_ij C_ij^2
                  Cov               sum_ij C_ij^2 kappa_j
                  Var of estimate   sum_ij C_ij^2 kappa_i kappa_j
                                    + sum_j C_jj (Var f_j - kappa_j^2 C_jj)

On the axes, C is taken as diagonal. After a random rotation every coordinate is like
N(m z, v) with v = tr C / d, m^2 = |mu|^2 / d, z ~ N(0, 1); sum_ij C_ij^2 is what it was, so there
is now an off-diagonal part, sum_j C_jj^2 - d v^2, of which kappa is the average over z.

The term <mu, .> needs care, because |f| = |x| and a code only knows the direction of x: vectors
of norm 1 cannot vary along mu as independent coordinates could. With lambda = |mu|^2 / E|x|^2,

    <mu, x> = (1 - lambda) <mu, g> - lambda |g|^2 / 2 + const

to first order in 1/d, and the same for f and its mean a = E f, whose direction need not be that
of mu: with mu = beta a + p, only p is exposed to the full noise of single coordinates. The simpler
form with M = C + mu mu^T for both terms predicts that rotation raises F by 0.03 for coordinates
N(mu_j, 1), mu_j ~ N(0, 1), where 0.00 is measured, and by -0.003 for N(1, 1), where it is -0.018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pybq._choice.statistics import Statistics
from pybq._choice.theory import CodeMoments, gaussian_code
from pybq._codes import core
from pybq._codes.quantizer import Quantizer

Metric = Literal["cosine", "l2", "inner_product"]

# Rotation is chosen unless the axes are ahead, because their mistakes cost differently: what
# statistics of single coordinates cannot see (correlation) makes the axes worse by up to 0.3
# recall@10 and rotation by nothing, and where the two are alike rotation costs nothing but time.
#
# The shape of the values (flat, two-sided) must put the axes ahead by this much. Normalised
# vectors of few effective dimensions have flat coordinates too, and keep them when rotated:
# there the lead is not real, and it is below 0.02 (benchmarks/choice.py: smooth, block-correlated).
MARGIN = 0.02
# The means must put them ahead by this much; less is within 0.01 recall@10 either way.
MEAN_MARGIN = 0.003

# Fewer rows say too little about hundreds of coordinates.
MIN_ROWS = 100

# The probe: rows searched, and queries taken from the other rows.
PROBE_ROWS = 2000
PROBE_QUERIES = 400

# Nodes and weights for the average over z ~ N(0, 1): an even grid. Where the mean is many times
# the spread, the code is nearly a step function of z: 128 Gauss-Hermite nodes miss it by 0.01 at
# ten times, this grid by less than 1e-9.
_NODES = np.linspace(-8, 8, 2001)
_WEIGHTS = np.exp(-0.5 * _NODES**2)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()

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


@dataclass(frozen=True)
class Decision:
    """Whether to rotate vectors before they are packed, and why.

    Attributes
    ----------
    rotate : bool
        Rotate, or keep the original axes.
    transform : int
        What to give to `Quantizer` and `bq_encode`: 0 for the original axes.
    f_axis, f_rotate : float
        Predicted fidelity on the original axes and rotated, 0 to 1; NaN if there is nothing
        to predict from (fewer than two rows, or every coordinate constant).
    f_gaussian : float
        As `f_axis`, if the coordinates were Gaussian with the same means and variances: the rest
        is due to the shape of their distribution.
    cv_sigma, sign_entropy : float
        The descriptors of arXiv 2605.17524, as in `Statistics`.
    count : int
        Rows that the statistics have seen.
    reason : str
        Why, in words.
    probe : Probe or None
        Recall measured on a sample, where there was one.
    """

    rotate: bool
    transform: int
    f_axis: float
    f_rotate: float
    f_gaussian: float
    cv_sigma: float
    sign_entropy: float
    count: int
    reason: str
    probe: Probe | None = None


def choose(
    statistics: Statistics,
    probe: Probe | None = None,
    transform: int = 1,
    metric: Metric = "cosine",
) -> Decision:
    """Decide between the original axes and rotation.

    Parameters
    ----------
    statistics : Statistics
        Of the vectors; collected with ``normalize=True`` for cosine distance if their norms
        differ.
    probe : Probe, optional
        What `probe` measured on a sample. It decides if it is clear (`Probe.decisive`);
        otherwise the statistics do.
    transform : int
        Number of the rotation, 1 to 65,535, to use if one is wanted.
    metric : {"cosine", "l2", "inner_product"}
        What is searched by.

    Returns
    -------
    Decision

    Raises
    ------
    ValueError
        If `transform` is outside its range.

    Notes
    -----
    If searches among the vectors (`searched`) found more one way, by more than half the standard
    error of the difference, that way is chosen: they see how coordinates depend on each other. On
    the sets of benchmarks/choice.py half of it loses less than none, one or two. What is left open
    is chosen from single coordinates, with lead = f_axis - f_rotate: keep the
    axes

    - if means put them ahead, f_gaussian - f_rotate > 0.003, lead > 0, and coordinates are
      near enough to Gaussian to believe it, abs(f_axis - f_gaussian) <= 0.02; or
    - if their shape does, lead > 0.02, f_axis - f_gaussian > 0.02, and more than means do.

    and in all other cases rotate. What was tried, and where the rule fails: benchmarks/choice.py.

    Examples
    --------
    >>> import numpy as np
    >>> from pybq._choice.statistics import Statistics
    >>> vectors = np.random.default_rng(7).standard_normal((2000, 128))
    >>> uneven = Statistics(128)
    >>> uneven.update(vectors * np.linspace(0.1, 3, 128))
    >>> decision = choose(uneven)
    >>> decision.rotate, decision.transform
    (True, 1)
    >>> print(decision.reason)
    rotate: predicted fidelity 0.964 rotated, 0.924 on the original axes. The coordinates vary
    very differently (CV 0.54), so one threshold does not fit them all; rotation evens them out.
    In windows of at most 1,024 rows, recall@10 was 0.745 rotated and 0.631 on the original axes.
    >>> flat = Statistics(128)
    >>> flat.update(np.tanh(2 * vectors))
    >>> choose(flat).rotate
    False
    """
    _check_metric(metric)
    if not 1 <= transform <= core.MAX_TRANSFORM:
        raise ValueError(f"expected transform between 1 and {core.MAX_TRANSFORM}, got {transform}")
    f_axis, f_gaussian, f_rotate = fidelities(statistics)
    if statistics.count < MIN_ROWS or math.isnan(f_axis):
        rotate, reason = True, _reason_unknown(statistics)
    else:
        rotate, reason = _rule(f_axis, f_gaussian, f_rotate, statistics)
    measured = []
    for evidence, where in (
        (searched(statistics, metric), "In windows of at most"),
        (probe, "On a sample of"),
    ):
        if evidence is None:
            continue
        found = (
            f"{where} {evidence.rows:,} rows, recall@{evidence.k} was "
            f"{evidence.recall_rotate:.3f} rotated and {evidence.recall_axis:.3f} on the original "
            "axes."
        )
        difference = evidence.recall_rotate - evidence.recall_axis
        clear = evidence.decisive if evidence is probe else abs(difference) > evidence.error / 2
        if clear and (difference > 0) != rotate:
            rotate = difference > 0
            reason = f"{'rotate' if rotate else 'original axes'}: measured. {found}"
            if not math.isnan(f_axis):
                reason = (
                    f"{reason[:-1]}, although fidelities of {f_rotate:.3f} and {f_axis:.3f} were "
                    "predicted from the coordinates one by one."
                )
        else:
            measured.append(found)
    reason = " ".join([reason, *measured])
    return Decision(
        rotate=rotate,
        transform=transform if rotate else 0,
        f_axis=f_axis,
        f_rotate=f_rotate,
        f_gaussian=f_gaussian,
        cv_sigma=statistics.cv_sigma,
        sign_entropy=statistics.sign_entropy,
        count=statistics.count,
        reason=reason,
        probe=probe,
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
    >>> from pybq._choice.statistics import Statistics
    >>> statistics = Statistics(64)
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 64))
    >>> statistics.update(vectors * np.linspace(0.1, 3, 64))
    >>> found = searched(statistics)
    >>> found.queries, found.recall_rotate > found.recall_axis + 0.05
    (64, True)
    """
    _check_metric(metric)
    order = 1 if metric == "inner_product" else 0
    found = statistics.found_axes[order], statistics.found_rotated[order]
    return _as_probe(statistics, statistics.searches, *found, statistics.squares[order])


def searched_since(now: Statistics, then: Statistics, metric: Metric = "cosine") -> Probe | None:
    """What searches found in the vectors that were added to `then`; None if there were none."""
    _check_metric(metric)
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


def fidelities(statistics: Statistics) -> tuple[float, float, float]:
    """Predicted fidelity on the axes, on the axes if Gaussian, and rotated.

    Parameters
    ----------
    statistics : Statistics

    Returns
    -------
    f_axis, f_gaussian, f_rotate : float
        See the head of this file. NaN if every coordinate is constant.

    References
    ----------
    .. [1] Xiao, "Coordinate heterogeneity governs binary quantization", arXiv 2605.17524:
       fidelity as a function of the variances, and what rotation does to them.
    .. [2] Max, "Quantizing for minimum distortion", IRE Trans. Inf. Theory 6, 1960.
    """
    dim = statistics.dim
    # squares of the variances must neither overflow nor vanish
    energy = float(np.mean(statistics.variance + statistics.mean**2))
    if not statistics.variance.max() > 1e-14 * energy:
        return math.nan, math.nan, math.nan
    scale = 1 / math.sqrt(energy)
    mean = statistics.mean * scale
    variance = statistics.variance * scale**2
    code = CodeMoments(
        statistics.code_mean * scale,
        statistics.code_variance * scale**2,
        statistics.covariance * scale**2,
    )
    ones = np.ones(dim)
    f_axis = _fidelity(mean, variance, code, ones)
    f_gaussian = _fidelity(mean, variance, _gaussian_code(mean, variance, ones), ones)

    even = float(variance.mean())
    rotated_mean = math.sqrt(float(np.mean(mean**2))) * _NODES
    rotated_variance = np.full_like(_NODES, even)
    weights = dim * _WEIGHTS
    f_rotate = _fidelity(
        rotated_mean,
        rotated_variance,
        _gaussian_code(rotated_mean, rotated_variance, weights),
        weights,
        # at least 0 but for rounding
        off_diagonal=max(float(np.sum(variance**2)) - dim * even**2, 0),
    )
    return f_axis, f_gaussian, f_rotate


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
    _check_metric(metric)
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


def _check_metric(metric: str) -> None:
    if metric not in ("cosine", "l2", "inner_product"):
        raise ValueError(f'expected metric "cosine", "l2" or "inner_product", got {metric!r}')


# -- fidelity -----------------------------------------------------------------------------


def _fidelity(
    mean: _Array,
    variance: _Array,
    code: CodeMoments,
    weights: _Array,
    off_diagonal: float = 0,
) -> float:
    """F of coordinates that occur `weights` times each; see the head of this file.

    `off_diagonal` is the sum of C_ij^2 over i != j. The norm of the vectors must be fixed.
    """

    def total(values: _Array) -> float:
        return float(weights @ values)

    # <q - mu, .>: variance of the truth, covariance, variance of the estimate
    kappa = code.covariance / np.where(variance > 0, variance, 1)
    off_kappa = total(kappa) / float(weights.sum())
    truth = total(variance**2) + off_diagonal
    both = total(variance * code.covariance) + off_kappa * off_diagonal
    estimate = total(variance * code.variance) + off_kappa**2 * off_diagonal

    # <mu, .>: mu = beta a + p, where a is the mean of the code; lambda of x and of its code
    energy = total(variance + mean**2)
    code_energy = total(code.mean**2)
    beta = total(mean * code.mean) / code_energy if code_energy > 0 else 0.0
    share = total(mean**2) / energy
    code_share = code_energy / energy
    axis = (1 - share) * mean
    code_axis = beta * (1 - code_share) * code.mean + (mean - beta * code.mean)
    # half the variance of |g|^2 and of its like for the code, and half their covariance
    square = truth
    square_both = total(code.covariance**2) + off_kappa**2 * off_diagonal
    square_code = total(code.variance**2) + off_kappa**4 * off_diagonal

    truth += total(axis**2 * variance) + share**2 * square / 2
    both += total(axis * code_axis * code.covariance) + share * beta * code_share * square_both / 2
    estimate += total(code_axis**2 * code.variance) + (beta * code_share) ** 2 * square_code / 2
    return float(both / math.sqrt(truth * estimate)) if estimate > 0 else 0.0


def _gaussian_code(mean: _Array, variance: _Array, weights: _Array) -> CodeMoments:
    """Moments of the code of Gaussian coordinates of mean square 1, scaled as decoding does."""
    code = gaussian_code(mean, variance, rms=1.0)
    # a decoded code has the norm of its vector, whatever the levels add up to
    square = float(weights @ (code.variance + code.mean**2) / weights.sum())
    return CodeMoments(
        code.mean / math.sqrt(square), code.variance / square, code.covariance / math.sqrt(square)
    )


# -- decision -----------------------------------------------------------------------------


def _rule(
    f_axis: float, f_gaussian: float, f_rotate: float, statistics: Statistics
) -> tuple[bool, str]:
    """Whether to rotate, and the reason; the rule is explained in `choose`."""
    lead = f_axis - f_rotate
    by_mean = f_gaussian - f_rotate
    by_shape = f_axis - f_gaussian
    predicted = f"predicted fidelity {f_rotate:.3f} rotated, {f_axis:.3f} on the original axes."
    if lead > 0 and by_mean > MEAN_MARGIN and abs(by_shape) <= MARGIN:
        return False, (
            f"original axes: {predicted} All vectors share an offset from zero, which the "
            "original axes spread evenly over the coordinates and rotation would not."
        )
    if lead > MARGIN and by_shape > MARGIN and by_shape > by_mean:
        return False, (
            f"original axes: {predicted} Each coordinate takes values that four levels "
            "describe well (flat, or in clear groups); rotation would blur them."
        )
    if lead > -MARGIN:
        return True, (
            f"rotate: {predicted} That is about the same on these coordinates one by one; "
            "rotation is safe where they depend on each other, which the prediction cannot see."
        )
    # what costs the axes most
    if -by_shape > -by_mean:
        cause = (
            "The values are sparse, skewed or heavy-tailed, which four levels describe badly; "
            "rotation blends them into a bell curve."
        )
    elif statistics.cv_sigma > 0.15:
        cause = (
            f"The coordinates vary very differently (CV {statistics.cv_sigma:.2f}), so one "
            "threshold does not fit them all; rotation evens them out."
        )
    else:
        cause = (
            "Some coordinates are far from zero, so that their bits hardly ever change; "
            "rotation spreads what they know over all bits."
        )
    return True, f"rotate: {predicted} {cause}"


def _reason_unknown(statistics: Statistics) -> str:
    if statistics.count < MIN_ROWS:
        return (
            f"rotate: {statistics.count:,} rows are too few to learn from (at least {MIN_ROWS}), "
            "and rotation is the choice that cannot go far wrong."
        )
    return (
        f"rotate: all coordinates are constant in the {statistics.count:,} rows seen, so there is "
        "nothing to learn from them, and rotation is the choice that cannot go far wrong."
    )


# -- probe --------------------------------------------------------------------------------


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
