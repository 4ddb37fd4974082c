"""What tests share, whatever they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

SEED = 20261121

Conn = psycopg.Connection[Any]
Vectors = NDArray[np.float32]

needs_pgvector = pytest.mark.usefixtures("vector")


def load_vectors(path: Path) -> tuple[Vectors, Vectors]:
    """Real vectors (n, dim), of different norms, and queries; README.md beside them."""
    with np.load(path) as file:
        base, queries = (
            file[part] * file[f"{part}_scale"][:, None].astype(np.float32)
            for part in ("base", "queries")
        )
    return base, queries


def load_lsa() -> tuple[Vectors, Vectors]:
    """Shapes (2000, 256) and (100, 256)."""
    return load_vectors(Path(__file__).parent / "data" / "lsa.npz")


def as_array(vector: Any) -> NDArray[Any]:
    """What pgvector's adapters give: its own type, or before 0.5 an array."""
    return np.asarray(vector if isinstance(vector, np.ndarray) else vector.to_numpy())


def exact_distances(metric: str, vectors: NDArray[Any], query: NDArray[Any]) -> NDArray[Any]:
    """Of each row from the query, shape (n,), in double precision."""
    x, q = vectors.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.asarray(np.linalg.norm(x - q, axis=1))
    if metric == "inner_product":
        return -(x @ q)
    return np.asarray(1 - (x @ q) / np.linalg.norm(x, axis=1) / np.linalg.norm(q))
