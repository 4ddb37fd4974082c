"""Fidelity: how well codes will tell rows apart, predicted from single coordinates.

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

import numpy as np
from numpy.typing import NDArray

from pybq._choice.statistics import Statistics
from pybq._choice.theory import CodeMoments, gaussian_code

# Nodes and weights for the average over z ~ N(0, 1): an even grid. Where the mean is many times
# the spread, the code is nearly a step function of z: 128 Gauss-Hermite nodes miss it by 0.01 at
# ten times, this grid by less than 1e-9.
_NODES = np.linspace(-8, 8, 2001)
_WEIGHTS = np.exp(-0.5 * _NODES**2)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()

_Array = NDArray[np.float64]


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
