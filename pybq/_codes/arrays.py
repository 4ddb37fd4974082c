"""Arrays from outside: what NumPy masks is missing, and np.asarray would forget it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pybq._codes import core


def fill_mask(vectors: ArrayLike) -> NDArray[Any]:
    """Return vectors with NaN where NumPy masks a value: encoding refuses it, and names the row."""
    if not isinstance(vectors, np.ma.MaskedArray):
        return np.asarray(vectors)
    if not np.ma.is_masked(vectors):
        return np.asarray(vectors.data)
    kind = vectors.dtype if vectors.dtype.kind == "f" else np.dtype(np.float64)
    filled: NDArray[Any] = np.ma.filled(vectors.astype(kind), np.nan)
    return filled


def holds_numbers(dtype: np.dtype[Any]) -> bool:
    """Whether values of this dtype can be coordinates; booleans and complex numbers cannot."""
    return dtype.kind in "fiu"


def as_numbers(values: ArrayLike, what: str) -> NDArray[Any]:
    """Make an array of numbers, of any type and shape."""
    array = fill_mask(values)
    if not holds_numbers(array.dtype):
        raise TypeError(f"expected {what} of float32, got dtype {array.dtype}")
    return array


def as_vectors(vectors: ArrayLike, dim: int, single: bool = False) -> NDArray[Any]:
    """Make an array of numbers of shape (n, dim), or (dim,) if `single` is allowed."""
    array = as_numbers(vectors, "vectors")
    if array.ndim not in ((1, 2) if single else (2,)) or array.shape[-1] != dim:
        raise ValueError(f"expected vectors of shape (n, {dim}), got {array.shape}")
    return array


def unmask(values: np.ma.MaskedArray[Any, Any]) -> list[Any]:
    """Return the values of an array, None where NumPy masks one."""
    hidden = np.ma.getmaskarray(values).tolist()
    return [None if masked else value for masked, value in zip(hidden, values.data, strict=True)]


def by_place(values: Any) -> Any:
    """Make an array of a Series, whose items are found by label and not by place.

    What is missing from one of pandas, polars or Arrow is meant as NULL, and so is what an array of
    NumPy masks; but numbers become floats, with NaN among them, where only NumPy is asked.
    """
    if isinstance(values, np.ma.MaskedArray):
        return unmask(values)
    if isinstance(values, np.ndarray) or not hasattr(values, "__array__"):
        return values
    if not hasattr(values, "isna"):
        return _list_nulls(values)
    array = np.asarray(values)
    missing = np.asarray(values.isna(), bool)
    own = not isinstance(getattr(values, "dtype", None), np.dtype)  # one that knows NA
    if array.dtype == object or (own and missing.any()):
        array = np.asarray(values.astype(object)).copy()
        array[missing] = None
    return array


def _list_nulls(values: Any) -> Any:
    """Make a list of an array of Arrow or a Series of polars with nulls, of others an array."""
    to_list = getattr(values, "to_pylist", None) or getattr(values, "to_list", None)
    count = getattr(values, "null_count", 0)
    return to_list() if to_list and (count() if callable(count) else count) else np.asarray(values)


def spread(total: int, rows: int) -> NDArray[np.int64]:
    """Return up to `rows` row numbers, spread evenly over `total`, in order."""
    return np.linspace(0, total - 1, min(total, rows)).astype(np.int64)


def to_half(vectors: NDArray[Any]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Round vectors (n, dim) to float16; return them, and what they then are in float32.

    As NumPy does, and several times as fast. What is too large becomes infinite.
    """
    with np.errstate(over="ignore"):
        if vectors.dtype != np.float32:  # not by way of float32: that would round twice
            half = np.ascontiguousarray(vectors, np.float16)
            return half, half.astype(np.float32)
    half, rounded = np.empty(vectors.shape, np.float16), np.empty(vectors.shape, np.float32)
    core.narrow(np.ascontiguousarray(vectors), half.view(np.uint16), rounded)
    return half, rounded
