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
