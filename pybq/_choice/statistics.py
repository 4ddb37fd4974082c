"""Statistics: what is known of each coordinate of a column of vectors, and of its codes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pybq._codes import core
from pybq._codes.arrays import as_vectors

# Rows that are summed on their own before they are merged. Short sums keep rounding errors down:
# for a mean of 1e6 and a spread of 0.07, M2 is right to 3e-10 with 256 rows, 1e-9 with 4,096. A
# chunk in the cache is normalised and summed without a second load.
_CHUNK_ROWS = 256
_CHUNK_NBYTES = 256 << 10  # of float32

# The struct BqSearches of extension/core/bqsearch.h, as one array: how many, then two values each,
# by distance and by inner product.
_FOUND_AXES, _FOUND_ROTATED, _SQUARES = (
    slice(1 + i * core.SEARCH_ORDERS, 1 + (i + 1) * core.SEARCH_ORDERS) for i in range(3)
)

Row = tuple[
    int,
    list[float],
    list[float],
    list[float],
    list[float],
    list[float],
    list[int],
    int,
    list[int],
    list[int],
    list[int],
]  # fields of the SQL type bq_statistics, in its order


class Statistics:
    """Count, means, variances and signs of the coordinates of vectors and of their codes.

    And what searches find: of a stream of vectors some runs of 512 are searched with some of
    their own, by codes on the original axes and rotated. That shows how coordinates depend on
    each other, which single ones cannot; only the sums are kept.

    Statistics of parts are merged into those of the whole, in any order, so they can be
    collected by many processes, or in SQL by the aggregate `bq_statistics`. They are what
    `pybq.choose` decides from. What is known of coordinates is the same however the vectors were
    divided, up to rounding; of searches there are more the more parts there were.

    "Code" means the decoded code on the original axes: ``f = q.decode(q.encode(x))`` with
    ``q = Quantizer(dim, transform=0)``, whatever transform a table uses.

    Parameters
    ----------
    dim : int
        Number of dimensions, 1 to 16,000.
    normalize : bool
        Scale each vector to norm 1 first (zero vectors stay), which is what matters for cosine
        distance. Not needed where vectors have norm 1 already.
    search : bool
        Whether to search. Without, updates take less time; what others found is merged all the
        same.

    Attributes
    ----------
    dim, normalize, search
        As given.

    Notes
    -----
    Values are taken as float32, as the database has them, and summed in float64: short runs of
    rows by Welford's update, then merged by the formulas of Chan et al. Only means and
    squared deviations from them are kept, so that a mean far from zero costs no digits, and
    counts are exact for more rows than a table can have.

    References
    ----------
    .. [1] Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing
       sample variances", Stanford STAN-CS-79-773, 1979, eq. (2.1).

    Examples
    --------
    >>> import numpy as np
    >>> from pybq import Statistics
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 64))
    >>> whole = Statistics(64)
    >>> whole.update(vectors)
    >>> left, right = Statistics(64), Statistics(64)
    >>> left.update(vectors[:300])
    >>> right.update(vectors[300:])
    >>> left.merge(right)
    >>> left.count, np.allclose(left.variance, whole.variance, rtol=1e-9)
    (1000, True)
    """

    def __init__(self, dim: int, normalize: bool = False, search: bool = True) -> None:
        self.dim = operator.index(dim)
        core.nbytes(self.dim)  # checks dim
        self.normalize = normalize
        self.search = search
        self._count = 0
        self._values = np.zeros((core.MOMENTS, self.dim))
        self._searches = np.zeros(_SQUARES.stop, np.int64)
        self._row = 0  # of the stream that `update` sees
        self._window: list[NDArray[np.float32]] = []  # rows of the one that is not full

    def __repr__(self) -> str:
        return (
            f"Statistics(dim={self.dim}, count={self.count}, "
            f"cv_sigma={self.cv_sigma:.3f}, sign_entropy={self.sign_entropy:.3f})"
        )

    # -- collecting ---------------------------------------------------------------------

    def update(self, vectors: ArrayLike) -> None:
        """Add vectors.

        Parameters
        ----------
        vectors : array_like of float32, float16 or float64, shape (n, dim) or (dim,)
            Finite values; any strides. n may be 0.

        Raises
        ------
        TypeError
            If the values are not numbers.
        ValueError
            If the shape does not match `dim`, a value is not finite or a norm is above
            2.65e36; names the first such row. Nothing has been added then.
        """
        rows = np.atleast_2d(as_vectors(vectors, self.dim, single=True))
        chunk_rows = max(1, min(_CHUNK_ROWS, _CHUNK_NBYTES // (4 * self.dim)))
        room = np.empty((min(chunk_rows, len(rows)), self.dim), np.float32)
        count = 0
        values = np.zeros_like(self._values)
        searches, window = self._searches.copy(), self._window.copy()
        for start in range(0, len(rows), chunk_rows):
            # What is too large for float32 becomes infinite, and is reported as not finite.
            with np.errstate(over="ignore"):
                chunk = np.ascontiguousarray(rows[start : start + chunk_rows], np.float32)
            scaled = room[: len(chunk)] if self.normalize else None
            chunk_values = np.zeros_like(values)
            chunk_count = core.moments_add(0, chunk_values, chunk, start, scaled)
            count = core.moments_merge(count, values, chunk_count, chunk_values)
            if self.search:
                seen = chunk if scaled is None else scaled
                self._collect(self._row + start, seen, window, searches)
        self._searches, self._window = searches, window
        self._row += len(rows)
        self._count = core.moments_merge(self._count, self._values, count, values)

    def merge(self, other: Statistics) -> None:
        """Add the rows that `other` has seen; `other` is unchanged.

        Raises
        ------
        ValueError
            If dims differ, or only one of the two normalises.
        """
        if other.dim != self.dim:
            raise ValueError(f"expected statistics of {self.dim} dimensions, got {other.dim}")
        if other.normalize != self.normalize:
            raise ValueError(
                f"expected statistics with normalize={self.normalize}, got {other.normalize}"
            )
        # a copy, so that statistics can be merged with themselves
        self._count = core.moments_merge(
            self._count, self._values, other._count, other._values.copy()
        )
        self._searches = self._searches + other._searched()

    @staticmethod
    def _collect(
        row: int,
        chunk: NDArray[np.float32],
        window: list[NDArray[np.float32]],
        searches: NDArray[np.int64],
    ) -> None:
        """Take what belongs to windows out of a chunk that begins at a row of the stream."""
        end = row + len(chunk)
        dim = chunk.shape[1]
        first = core.window_start(row, dim)
        while first < end:
            last = first + core.window_rows(dim)
            window.append(chunk[max(first - row, 0) : last - row].copy())
            if last > end:
                return
            core.search_window(np.concatenate(window), searches)
            window.clear()
            first = core.window_start(last, dim)

    def _searched(self) -> NDArray[np.int64]:
        """Sums of all searches, also in a window that is not full if it has rows enough."""
        searches: NDArray[np.int64] = self._searches.copy()
        if sum(map(len, self._window)) >= core.WINDOW_MIN_ROWS:
            core.search_window(np.concatenate(self._window), searches)
        return searches

    # -- the database row ---------------------------------------------------------------

    def to_row(self) -> Row:
        """The fields of the SQL type `bq_statistics`, in its order, as plain Python values."""
        mean, m2, code_mean, code_m2, comoment, _ = self._values.tolist()
        searches = self._searched()
        return (
            *(self._count, mean, m2, code_mean, code_m2, comoment, self.positive.tolist()),
            int(searches[0]),
            *(searches[part].tolist() for part in (_FOUND_AXES, _FOUND_ROTATED, _SQUARES)),
        )

    @classmethod
    def from_row(cls, row: Sequence[Any], normalize: bool = False) -> Statistics:
        """Make statistics from what `to_row` or the database gives.

        Parameters
        ----------
        row : sequence of 11
            Fields of the SQL type `bq_statistics`: count, mean, m2, code_mean, code_m2,
            comoment, positive, searches, found_axes, found_rotated, squares.
        normalize : bool
            Whether they are statistics of vectors scaled to norm 1.

        Raises
        ------
        ValueError
            If the fields do not belong together, or cannot be statistics of any vectors.
        """
        if len(row) != 11:
            raise ValueError(f"expected the 11 fields of bq_statistics, got {len(row)}")
        count = operator.index(row[0])
        arrays = [np.asarray(field, np.float64) for field in row[1:7]]
        shapes = {array.shape for array in arrays}
        if len(shapes) != 1 or arrays[0].ndim != 1:
            raise ValueError(f"expected 6 arrays of shape (dim,), got {sorted(shapes)}")
        statistics = cls(len(arrays[0]), normalize)
        values = np.stack(arrays)
        positive = values[core.POSITIVE]
        if not np.isfinite(values).all():
            raise ValueError("expected finite statistics, got NaN or infinity")
        if count < 0 or (positive < 0).any() or (positive > count).any():
            raise ValueError(f"expected 0 <= positive <= count, got count {count}")
        if (values[core.M2] < 0).any() or (values[core.CODE_M2] < 0).any():
            raise ValueError("expected m2 and code_m2 of at least 0")
        sums = [np.asarray(field) for field in row[8:]]
        if any(part.shape != (2,) or part.dtype.kind not in "iu" for part in sums):
            raise ValueError("expected 2 integers each of found_axes, found_rotated and squares")
        searches = np.concatenate([[operator.index(row[7])], *sums])
        wanted = searches[0] * core.SEARCH_NEIGHBOURS
        if not 0 <= searches[0] <= count or (searches < 0).any() or (searches[1:5] > wanted).any():
            raise ValueError(f"expected 0 <= searches <= count, got {searches[0]} and {count}")
        if (searches[_SQUARES] > wanted * core.SEARCH_NEIGHBOURS).any():
            raise ValueError("expected squares of at most 100 a search")
        statistics._count = count
        statistics._values = values
        statistics._searches = searches.astype(np.int64)
        return statistics

    # -- what was collected -------------------------------------------------------------

    @property
    def count(self) -> int:
        """Number of vectors."""
        return self._count

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of x_j, shape (dim,)."""
        return self._read_only(core.MEAN)

    @property
    def m2(self) -> NDArray[np.float64]:
        """Sum of (x_j - mean)^2, shape (dim,)."""
        return self._read_only(core.M2)

    @property
    def code_mean(self) -> NDArray[np.float64]:
        """Mean of f_j, the decoded code, shape (dim,)."""
        return self._read_only(core.CODE_MEAN)

    @property
    def code_m2(self) -> NDArray[np.float64]:
        """Sum of (f_j - code_mean)^2, shape (dim,)."""
        return self._read_only(core.CODE_M2)

    @property
    def comoment(self) -> NDArray[np.float64]:
        """Sum of (x_j - mean) (f_j - code_mean), shape (dim,)."""
        return self._read_only(core.COMOMENT)

    @property
    def positive(self) -> NDArray[np.int64]:
        """Number of vectors with x_j > 0, shape (dim,)."""
        positive: NDArray[np.int64] = self._values[core.POSITIVE].astype(np.int64)
        return positive

    @property
    def searches(self) -> int:
        """Number of vectors searched with, for 10 neighbours each."""
        return int(self._searched()[0])

    @property
    def found_axes(self) -> NDArray[np.int64]:
        """Neighbours found by codes on the axes, by distance and by inner product, shape (2,)."""
        return self._sums(_FOUND_AXES)

    @property
    def found_rotated(self) -> NDArray[np.int64]:
        """The same of codes after rotation, shape (2,)."""
        return self._sums(_FOUND_ROTATED)

    @property
    def squares(self) -> NDArray[np.int64]:
        """Sum over searches of (found rotated - found on the axes)^2, shape (2,)."""
        return self._sums(_SQUARES)

    # -- what follows from it -----------------------------------------------------------

    @property
    def variance(self) -> NDArray[np.float64]:
        """Var x_j, shape (dim,), over the count, not one less, so 0 for a single vector."""
        return self._average(core.M2)

    @property
    def code_variance(self) -> NDArray[np.float64]:
        """Var f_j, shape (dim,)."""
        return self._average(core.CODE_M2)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Cov(x_j, f_j) of coordinate and decoded code, shape (dim,)."""
        return self._average(core.COMOMENT)

    @property
    def cv_sigma(self) -> float:
        """Spread of the standard deviations sigma_j over their mean, CV(sigma); 0 = all alike.

        Also 0 if every coordinate is constant. Called coordinate heterogeneity in
        arXiv 2605.17524.
        """
        sigma = np.sqrt(self.variance)
        mean = sigma.mean()
        return float(sigma.std() / mean) if mean > 0 else 0.0

    @property
    def sign_entropy(self) -> float:
        """Mean entropy of the sign bits in bits; 1 = signs even, 0 = every sign constant."""
        p = self._values[core.POSITIVE] / max(self._count, 1)
        inside = p[(p > 0) & (p < 1)]
        entropy = -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside))
        return float(entropy.sum() / self.dim)

    def _read_only(self, row: int) -> NDArray[np.float64]:
        view: NDArray[np.float64] = self._values[row]
        view.flags.writeable = False
        return view

    def _sums(self, part: slice) -> NDArray[np.int64]:
        sums: NDArray[np.int64] = self._searched()[part]
        return sums

    def _average(self, row: int) -> NDArray[np.float64]:
        average: NDArray[np.float64] = self._values[row] / max(self._count, 1)
        return average
