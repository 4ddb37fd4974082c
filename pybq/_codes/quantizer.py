"""Quantizer: float vectors -> packed 2-bit codes, and back."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pybq._codes import core
from pybq._codes.arrays import as_vectors, fill_mask
from pybq._codes.vector import Code, Query

# Input that one core encodes in about a millisecond: less is not worth a second thread.
_TASK_NBYTES = 4 << 20

# Input of other types is converted in pieces that stay in the cache.
_PIECE_NBYTES = 128 << 10


class Quantizer:
    """Packs vectors of one dim into 2-bit codes, the same bytes as `bq_encode` in SQL.

    Parameters
    ----------
    dim : int
        Number of dimensions, 1 to 16,000.
    transform : int
        Number of the random rotation applied first, 1 to 65,535; 0 keeps the original axes.
        Codes and queries can only be compared if their transforms are equal.
    cut : {"rms", "mean"}
        Where the magnitude bit is cut: "rms" makes bq's own codes, "mean" those of QuIVer
        (arXiv 2605.02171), as `quiver_encode` in SQL.
    threads : int, optional
        Most threads used for one large batch; as many as there are cores unless told.

    Attributes
    ----------
    dim, transform, cut
        As given.
    nbytes : int
        Bytes of one code: 8 for its header, and 2 bits per dimension.

    Examples
    --------
    >>> import numpy as np
    >>> import pybq
    >>> quantizer = pybq.Quantizer(dim=384, transform=1)
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 384), dtype=np.float32)
    >>> codes = quantizer.encode(vectors)
    >>> codes.shape, codes.dtype
    ((1000, 104), dtype('uint8'))
    >>> approximate = quantizer.decode(codes)
    >>> cosine = (vectors * approximate).sum(1) / (
    ...     np.linalg.norm(vectors, axis=1) * np.linalg.norm(approximate, axis=1))
    >>> round(float(cosine.mean()), 2)
    0.94
    """

    def __init__(
        self,
        dim: int,
        transform: int = 0,
        cut: Literal["rms", "mean"] = "rms",
        threads: int | None = None,
    ) -> None:
        self.dim = operator.index(dim)
        self.transform = operator.index(transform)
        self.nbytes = core.nbytes(self.dim)
        if not 0 <= self.transform <= core.MAX_TRANSFORM:
            raise ValueError(
                f"expected transform between 0 and {core.MAX_TRANSFORM}, got {transform}"
            )
        if cut not in ("rms", "mean"):
            raise ValueError(f'expected cut "rms" or "mean", got {cut!r}')
        if threads is not None and threads < 1:
            raise ValueError(f"expected threads of at least 1, got {threads}")
        self.cut = cut
        self._threads = threads
        self._rotation = core.Rotation(self.dim, self.transform) if self.transform else None

    def __repr__(self) -> str:
        return f"Quantizer(dim={self.dim}, transform={self.transform}, cut={self.cut!r})"

    def encode(self, vectors: ArrayLike) -> NDArray[np.uint8]:
        """Pack vectors into 2-bit codes.

        Parameters
        ----------
        vectors : array_like of float32, float16 or float64, shape (n, dim) or (dim,)
            Finite values; any strides. float32 rows without gaps are not copied.

        Returns
        -------
        ndarray of uint8, shape (n, nbytes) or (nbytes,)
            One code per row, the whole payload as `bqvec` has it on the wire. Layout:
            extension/core/bqcode.h.

        Raises
        ------
        TypeError
            If the values are not numbers.
        ValueError
            If the shape does not match `dim`, a value is not finite or a norm is above
            2.65e36; names the first such row.
        """
        rows, single = self._as_rows(vectors)
        out = np.empty((len(rows), self.nbytes), np.uint8)

        def encode(start: int, stop: int) -> None:
            core.encode(
                _as_float32(rows[start:stop]),
                out[start:stop],
                self._rotation,
                self.cut == "mean",
                None if single else start,
            )

        self._run(encode, rows)
        return out[0] if single else out

    def rotate(self, vectors: ArrayLike) -> NDArray[np.float32]:
        """Apply the rotation to float queries, as `bq_query` does in SQL.

        Parameters
        ----------
        vectors : array_like of float32, float16 or float64, shape (n, dim) or (dim,)
            As for `encode`.

        Returns
        -------
        ndarray of float32, shape (n, dim) or (dim,)
            Of the same norms. For transform 0, a checked copy.

        Raises
        ------
        TypeError, ValueError
            As `encode`.
        """
        rows, single = self._as_rows(vectors)
        out = np.empty((len(rows), self.dim), np.float32)

        def rotate(start: int, stop: int) -> None:
            core.prepare(
                _as_float32(rows[start:stop]),
                out[start:stop],
                self._rotation,
                None if single else start,
            )

        self._run(rotate, rows)
        return out[0] if single else out

    def query(self, vector: ArrayLike) -> Query:
        """Make the query value for one vector, to be compared with codes of this quantizer.

        Parameters
        ----------
        vector : array_like of float32, float16 or float64, shape (dim,)

        Returns
        -------
        Query
            What `bq_query(vector, transform)` gives in SQL.
        """
        vector = fill_mask(vector)
        if vector.ndim != 1:
            raise ValueError(f"expected a vector of shape ({self.dim},), got {vector.shape}")
        return Query(self.rotate(vector), self.transform)

    def decode(self, codes: ArrayLike | Code) -> NDArray[np.float32]:
        """The vectors that codes stand for, on the original axes.

        Parameters
        ----------
        codes : ndarray of uint8, shape (n, nbytes) or (nbytes,), or Code
            Codes of this dim and transform. They are checked, and may come from anywhere.

        Returns
        -------
        ndarray of float32, shape (n, dim) or (dim,)
            Vectors of the stored norms.

        Raises
        ------
        TypeError
            If `codes` are not uint8.
        ValueError
            If a row is no valid code of this dim and transform; names the first such row.
        """
        if isinstance(codes, Code):
            codes = codes.to_numpy()
        array = np.asarray(codes)
        if array.dtype != np.uint8:
            raise TypeError(f"expected codes of dtype uint8, got {array.dtype}")
        single = array.ndim == 1
        rows = array[None] if single else array
        if rows.ndim != 2 or rows.shape[1] != self.nbytes:
            raise ValueError(f"expected codes of shape (n, {self.nbytes}), got {array.shape}")
        out = np.empty((len(rows), self.dim), np.float32)

        def decode(start: int, stop: int) -> None:
            core.decode(
                np.ascontiguousarray(rows[start:stop]),
                out[start:stop],
                self._rotation,
                None if single else start,
            )

        self._run(decode, out)
        return out[0] if single else out

    def _as_rows(self, vectors: ArrayLike) -> tuple[NDArray[Any], bool]:
        """Vectors as an array of shape (n, dim) and any float type; whether it was only one."""
        array = as_vectors(vectors, self.dim, single=True)
        return (array[None], True) if array.ndim == 1 else (array, False)

    def _run(self, work: Callable[[int, int], None], rows: NDArray[Any]) -> None:
        """Call work(start, stop) over all rows: in pieces, by several threads if it pays."""
        nbytes = max(1, 4 * self.dim)
        piece = max(1, len(rows) if _is_float32(rows) else _PIECE_NBYTES // nbytes)

        def run_pieces(first: int, last: int) -> None:
            for start in range(first, last, piece):
                work(start, min(start + piece, last))

        threads = min(self._threads or _available_cores(), 1 + len(rows) * nbytes // _TASK_NBYTES)
        if threads == 1:
            run_pieces(0, len(rows))
            return
        # More tasks than threads, so that none waits long for the last one.
        task = -(-len(rows) // (4 * threads))
        with ThreadPoolExecutor(threads) as pool:
            tasks = [
                pool.submit(run_pieces, first, min(first + task, len(rows)))
                for first in range(0, len(rows), task)
            ]
            # In order: the error raised is that of the first bad row.
            for future in tasks:
                future.result()


def _is_float32(rows: NDArray[Any]) -> bool:
    """Whether the core can read the rows where they are."""
    return (
        rows.dtype == np.float32
        and rows.dtype.isnative
        and (rows.shape[1] == 1 or rows.strides[1] == 4)
        and (len(rows) < 2 or (rows.strides[0] >= 0 and rows.strides[0] % 4 == 0))
        and rows.ctypes.data % 4 == 0
    )


def _as_float32(rows: NDArray[Any]) -> NDArray[np.float32]:
    if _is_float32(rows):
        return rows
    # What is too large for float32 becomes infinite, and is reported as not finite.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(rows, np.float32)


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=64)
def share_quantizer(dim: int, transform: int) -> Quantizer:
    """A quantizer that was made before, if there was one."""
    return Quantizer(dim, transform)


def name_type(dim: int | None, transform: int, declare: bool) -> str:
    """SQL type of a column of codes.

    Raises
    ------
    ValueError
        If dim or transform is out of range, or a transform is declared without dim.
    """
    share_quantizer(1 if dim is None else dim, transform)  # checks both
    if declare and dim is None:
        raise ValueError("expected dim with declare=True, as in bqvec(384, 7)")
    if dim is None:
        return "bqvec"
    return f"bqvec({dim}, {transform})" if declare else f"bqvec({dim})"
