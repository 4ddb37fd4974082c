"""Closed forms for the quality of sign and magnitude bits on Gaussian coordinates.

Fidelity is the correlation, within one query, of the estimated with the true inner product:
1 = the order of the codes is the true order. All functions here take a zero mean, except
`gaussian_code`; what a mean does is in `pybq._choice.fidelity`.

The claims are those of arXiv 2605.17524 ("Coordinate heterogeneity governs binary quantization");
the formulas are derived here from Stein's lemma, Cov(x_i, f(x_j)) = Cov(x_i, x_j) E f'(x_j) for
Gaussian x, and hold for the code of extension/core/bqcode.h. tests/unit/test_theory.py compares
each with a simulation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pybq._codes.core import STRONG, THRESHOLD, WEAK

_erf = np.vectorize(math.erf, otypes=[np.float64])


class CodeMoments(NamedTuple):
    """Moments of the decoded code f(x_j) of Gaussian coordinates x_j; arrays of shape (dim,)."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    covariance: NDArray[np.float64]  # Cov(x_j, f_j)


def gaussian_code(mean: ArrayLike, variance: ArrayLike, rms: float) -> CodeMoments:
    """Moments of the 2-bit code of independent coordinates x_j ~ N(mean_j, variance_j).

    Parameters
    ----------
    mean, variance : array_like of float64, shape (dim,)
        A coordinate of variance 0 has a constant code.
    rms : float
        Root mean square of the coordinates of a vector: the unit of thresholds and levels.

    Returns
    -------
    CodeMoments

    Notes
    -----
    f is a step function, so E f' is the sum of its steps times the density at the thresholds,
    and Cov(x, f) = variance * E f' by Stein's lemma.

    References
    ----------
    .. [1] Max, "Quantizing for minimum distortion", IRE Trans. Inf. Theory 6, 1960, table I.

    Examples
    --------
    >>> moments = gaussian_code([0.0], [1.0], rms=1.0)
    >>> round(float(moments.covariance[0] / moments.variance[0] ** 0.5), 4)
    0.9394
    """
    mean = np.asarray(mean, np.float64)
    variance = np.asarray(variance, np.float64)
    values = rms * np.array([-STRONG, -WEAK, WEAK, STRONG])
    thresholds = rms * np.array([-THRESHOLD, 0, THRESHOLD])

    sigma = np.sqrt(variance)
    spread = np.where(sigma > 0, sigma, 1)[:, None]
    z = (thresholds - mean[:, None]) / spread
    below = 0.5 * (1 + _erf(z / math.sqrt(2)))
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) * (sigma[:, None] > 0)
    # a constant coordinate is on one side of each threshold; x = 0 counts as minus
    below = np.where(sigma[:, None] > 0, below, thresholds >= mean[:, None])

    probability = np.diff(below, axis=1, prepend=0, append=1)
    code_mean = probability @ values
    code_variance = np.maximum(probability @ values**2 - code_mean**2, 0)
    return CodeMoments(code_mean, code_variance, sigma * (density @ np.diff(values)))


def sign_fidelity(sigma: ArrayLike, float_query: bool = True) -> float:
    """Fidelity of sign bits for independent coordinates x_j ~ N(0, sigma_j^2).

    Parameters
    ----------
    sigma : array_like of float64, shape (dim,)
        Standard deviations, at least one above 0.
    float_query : bool
        True: the query keeps its values (`<=>`). False: it has been reduced to its signs too,
        and they are compared by Hamming distance.

    Returns
    -------
    float
        sqrt(2/pi) sum sigma^3 / sqrt(sum sigma^4 sum sigma^2) with a float query, at most 0.798;
        (2/pi) sum sigma^2 / sqrt(dim sum sigma^4) for signs alone, at most 0.637. Both are
        largest when all sigma are alike.

    Notes
    -----
    With a float query q, the estimate is sum q_j s_j: E x_j s_j = sqrt(2/pi) sigma_j.
    For signs alone, it is sum s_j t_j: E |q_j| |x_j| = (2/pi) sigma_j^2.

    Examples
    --------
    >>> round(sign_fidelity([1, 1, 1]), 3), round(sign_fidelity([1, 1, 1], float_query=False), 3)
    (0.798, 0.637)
    """
    sigma = _checked(sigma)
    s2, s4 = (sigma**2).sum(), (sigma**4).sum()
    if float_query:
        return float(math.sqrt(2 / math.pi) * (sigma**3).sum() / math.sqrt(s4 * s2))
    return float(2 / math.pi * s2 / math.sqrt(len(sigma) * s4))


def sign_magnitude_fidelity(sigma: ArrayLike, float_query: bool = True) -> float:
    """Fidelity of the 2-bit code for independent coordinates x_j ~ N(0, sigma_j^2).

    Parameters
    ----------
    sigma, float_query
        As for `sign_fidelity`; without a float query, two decoded codes are multiplied.

    Returns
    -------
    float
        At most 0.9394 with a float query, 0.8825 without, where all sigma are alike.

    Notes
    -----
    With c_j = Cov(x_j, f_j) and v_j = Var f_j: sum sigma^2 c / sqrt(sum sigma^4 sum sigma^2 v)
    with a float query, sum c^2 / sqrt(sum sigma^4 sum v^2) without.

    Examples
    --------
    >>> round(sign_magnitude_fidelity([1, 1, 1]), 4)
    0.9394
    >>> round(sign_magnitude_fidelity([1, 1, 1], float_query=False), 4)
    0.8825
    """
    sigma = _checked(sigma)
    variance = sigma**2
    code = gaussian_code(np.zeros_like(sigma), variance, math.sqrt(variance.mean()))
    signal = (variance**2).sum()
    if float_query:
        noise = (variance * code.variance).sum()
        return float((variance * code.covariance).sum() / math.sqrt(signal * noise))
    return float((code.covariance**2).sum() / math.sqrt(signal * (code.variance**2).sum()))


def magnitude_gain(sigma: ArrayLike, float_query: bool = True) -> float:
    """What the magnitude bit adds to the sign bit: the ratio of the two fidelities.

    The threshold is the same for all coordinates of a vector, so a strong bit also says that
    the coordinate is one of large variance; the sign bit cannot say that. On even coordinates
    the ratio is 1.18 with a float query and 1.39 for codes against codes. The latter grows with
    heterogeneity without limit. A float query knows the large coordinates itself, so that the
    former grows little, and falls again where one threshold fits hardly any coordinate
    (log-normal sigma: 1.22 at CV 0.6, 1.18 at CV 1.1).

    Parameters
    ----------
    sigma, float_query
        As for `sign_fidelity`.

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np
    >>> z = np.random.default_rng(7).standard_normal(1000)
    >>> [round(magnitude_gain(np.exp(s * z), float_query=False), 1) for s in (0, 0.3, 0.6)]
    [1.4, 1.5, 1.9]
    """
    return sign_magnitude_fidelity(sigma, float_query) / sign_fidelity(sigma, float_query)


def heterogeneity(sigma: ArrayLike) -> float:
    """CV(sigma) = std(sigma_j) / mean(sigma_j) of standard deviations, shape (dim,).

    Examples
    --------
    >>> heterogeneity([1, 3])
    0.5
    """
    sigma = _checked(sigma)
    return float(sigma.std() / sigma.mean())


def rotated_heterogeneity(sigma: ArrayLike) -> float:
    """CV(sigma) that is left after a random rotation: it goes to 0 as 1 / sqrt(dim).

    Parameters
    ----------
    sigma : array_like of float64, shape (dim,)
        Standard deviations along any orthogonal axes on which coordinates are uncorrelated.

    Returns
    -------
    float
        CV(sigma^2) / sqrt(2 (dim + 2)).

    Notes
    -----
    A rotated variance is sum_k R_jk^2 sigma_k^2. For Haar-random R, E R^4 = 3 / (d (d + 2)) and
    E R^2 R'^2 = 1 / (d (d + 2)) within a row, hence CV of the rotated variances is
    CV(sigma^2) sqrt(2 / (d + 2)); that of their roots is half of it, to first order.

    Examples
    --------
    >>> sigma = [4.0] * 64 + [1.0] * 192
    >>> round(heterogeneity(sigma), 2), round(rotated_heterogeneity(sigma), 2)
    (0.74, 0.06)
    """
    variance = _checked(sigma) ** 2
    cv = variance.std() / variance.mean()
    return float(cv / math.sqrt(2 * (len(variance) + 2)))


def effective_dim(sigma: ArrayLike) -> float:
    """Participation ratio (sum sigma^2)^2 / sum sigma^4: how many directions carry the variance.

    Examples
    --------
    >>> effective_dim([1, 1, 1, 0])
    3.0
    """
    variance = _checked(sigma) ** 2
    return float(variance.sum() ** 2 / (variance**2).sum())


def rotated_fidelity(dim: float, effective_dim: float, bits: int = 2) -> float:
    """Fidelity after rotation: a law of two parameters in the number of dimensions.

    Parameters
    ----------
    dim : float
        Coordinates of the code.
    effective_dim : float
        `effective_dim` of the vectors, at most `dim`.
    bits : {1, 2}
        Sign bit alone, or sign and magnitude; with a float query and the norm of each vector.

    Returns
    -------
    float
        1 / sqrt(1 + eta effective_dim / dim), where eta = 1 / F^2 - 1 is the noise of one even
        coordinate: 0.133 for 2 bits (F = 0.9394), 0.571 for signs (F = 0.798).

    Notes
    -----
    Quantization noise of rotated coordinates is nearly uncorrelated, so it spreads over all
    `dim` directions, while the signal has only `effective_dim` of them: each of these is coded
    dim / effective_dim times over.

    Examples
    --------
    >>> [round(rotated_fidelity(dim, effective_dim=64), 3) for dim in (64, 256, 1024)]
    [0.939, 0.984, 0.996]
    """
    if bits not in (1, 2):
        raise ValueError(f"expected bits of 1 or 2, got {bits}")
    if not 0 < effective_dim <= dim:
        raise ValueError(f"expected 0 < effective_dim <= dim, got {effective_dim} and {dim}")
    even = sign_fidelity([1.0]) if bits == 1 else sign_magnitude_fidelity([1.0])
    eta = 1 / even**2 - 1
    return 1 / math.sqrt(1 + eta * effective_dim / dim)


def _checked(sigma: ArrayLike) -> NDArray[np.float64]:
    """Standard deviations as an array that has something to measure."""
    array = np.asarray(sigma, np.float64)
    if array.ndim != 1 or not np.isfinite(array).all() or (array < 0).any():
        raise ValueError("expected standard deviations of shape (dim,), finite and at least 0")
    if not (array > 0).any():
        raise ValueError("expected a standard deviation above 0")
    return array
