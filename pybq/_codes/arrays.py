"""Arrays from outside: what NumPy masks is missing, and np.asarray would forget it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def fill_mask(vectors: ArrayLike) -> NDArray[Any]:
    """Return vectors with NaN where NumPy masks a value: encoding refuses it, and names the row."""
    if not isinstance(vectors, np.ma.MaskedArray):
        return np.asarray(vectors)
    if not np.ma.is_masked(vectors):
        return np.asarray(vectors.data)
    kind = vectors.dtype if vectors.dtype.kind == "f" else np.dtype(np.float64)
    filled: NDArray[Any] = np.ma.filled(vectors.astype(kind), np.nan)
    return filled


def unmask(values: np.ma.MaskedArray[Any, Any]) -> list[Any]:
    """Return the values of an array, None where NumPy masks one."""
    hidden = np.ma.getmaskarray(values).tolist()
    return [None if masked else value for masked, value in zip(hidden, values.data, strict=True)]


def by_place(values: Any) -> Any:
    """Make an array of a Series, whose items are found by label and not by place.

    What is missing from one of pandas is NaN among other values, and meant as NULL; so is what
    an array of NumPy masks.
    """
    if isinstance(values, np.ma.MaskedArray):
        return unmask(values)
    if isinstance(values, np.ndarray) or not hasattr(values, "__array__"):
        return values
    array = np.asarray(values)
    if array.dtype == object and hasattr(values, "isna"):
        array = array.copy()
        array[np.asarray(values.isna(), bool)] = None
    return array


def spread(total: int, rows: int) -> NDArray[np.int64]:
    """Return up to `rows` row numbers, spread evenly over `total`, in order."""
    return np.linspace(0, total - 1, min(total, rows)).astype(np.int64)
