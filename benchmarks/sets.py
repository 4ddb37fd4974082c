"""Vector sets for measurements of the index: real ones, and named ones derived from them.

A folder holds NAME.npz: int8 rows with a float32 scale per row (base, base_scale, queries,
queries_scale).  Derived from wordnet with seed 20261121:

- wordnet-768, wordnet-1536: tanh(W x), W Gaussian: real neighbours in more dimensions
- mixed-300k: the real vectors, then sums of two of them at random, weighted 1:3 to 1:1: they lie
  far from queries, which go on finding real vectors
- dense-300k: the real vectors, then points between a vector and one of its ten nearest among
  20,000: they lie where queries look, as more rows of the same kind would
- grown: any number of rows, chunk by chunk (`Stream`)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20261121
K = 10
QUERIES = 300

Array = NDArray[Any]


def load(folder: Path, name: str = "wordnet") -> tuple[Array, Array]:
    """Return a set's unit vectors (n, dim) and held-out queries (QUERIES, dim), float32."""
    base, held_out = load_all(folder, name)
    return base, held_out[:QUERIES]


def load_all(folder: Path, name: str = "wordnet") -> tuple[Array, Array]:
    """Return a set's unit vectors, and all that are held out of it."""
    with np.load(folder / f"{name}.npz") as packed:
        parts = [
            packed[n].astype(np.float32) * packed[f"{n}_scale"][:, None]
            for n in ("base", "queries")
        ]
    return unit(parts[0]), unit(parts[1])


def unit(x: Array) -> Array:
    return np.ascontiguousarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def lifted(folder: Path, dim: int, n: int = 100_000) -> tuple[Array, Array]:
    base, queries = load(folder)
    w = np.random.default_rng(SEED).standard_normal((384, dim)).astype(np.float32)
    return unit(np.tanh(base[:n] @ w)), unit(np.tanh(queries @ w))


def mixed(folder: Path, n: int) -> tuple[Array, Array]:
    base, queries = load(folder)
    rng = np.random.default_rng(SEED)
    more = max(0, n - len(base))
    i, j = rng.integers(0, len(base), (2, more))
    weight = rng.uniform(0.5, 0.75, (more, 1)).astype(np.float32)
    return np.vstack([base[:n], unit(weight * base[i] + (1 - weight) * base[j])]), queries


def dense(folder: Path, n: int) -> tuple[Array, Array]:
    base, queries = load(folder)
    return thicken(base, n), queries


def thicken(base: Array, n: int) -> Array:
    """The first n rows; of fewer, all, then points between a row and one of its ten nearest."""
    if n <= len(base):
        return base[:n]
    rng = np.random.default_rng(SEED)
    others = rng.choice(len(base), min(20_000, len(base)), replace=False)
    # the first of eleven may be the row itself
    nearest = nearest_rows(base, base[others], 11)
    i = rng.integers(0, len(base), n - len(base))
    j = others[nearest[i, rng.integers(0, 11, len(i))]]
    weight = rng.uniform(0.3, 0.7, (len(i), 1)).astype(np.float32)
    return np.vstack([base, unit(weight * base[i] + (1 - weight) * base[j])])


def nearest_rows(rows: Array, others: Array, k: int) -> Array:
    """Positions of the k nearest of others to each row, in no order."""
    return np.concatenate(
        [
            np.argpartition(part @ others.T, -k, axis=1)[:, -k:].copy()
            for part in np.array_split(rows, max(1, len(rows) // 2000))
        ]
    )


class Stream:
    """Rows without end, made chunk by chunk from seeds, and queries of their kind.

    A row is a real one of wordnet and two of the 16 nearest to it among 20,000, weighted at random,
    and .45 of the difference of two other real rows that are near each other.  So dense regions are
    those of the real rows, and 116,033 of them have the spectrum of as many real ones (the first
    8, 32, 128 principal components: .17, .40, .78 of the variance; real .16, .38, .77), and their
    dimension around a query (Levina and Bickel, 20 neighbours: 15; real 17).  Queries are made of
    rows held out.
    """

    CHUNK = 100_000
    DIM = 384
    NEAR = 16
    MIXED = 2
    NOISE = 0.45

    def __init__(self, folder: Path, kept: Path) -> None:
        """Read the real rows; who is near whom takes a minute, and is kept in a file."""
        self.base, held_out = load_all(folder)
        rng = np.random.default_rng(SEED)
        others = rng.choice(len(self.base), 20_000, replace=False)
        if not kept.exists():
            near = nearest_rows(self.base, self.base[others], self.NEAR)
            np.save(kept, others[near].astype(np.int32))
        self.near = np.load(kept)
        near = others[nearest_rows(held_out, self.base[others], self.NEAR)]
        self.queries = self._make(rng, QUERIES, held_out, near)
        self.warming = self._make(rng, 10 * QUERIES, held_out, near)

    def rows(self, chunk: int) -> Array:
        """Rows chunk * CHUNK and on, shape (CHUNK, DIM), float16, of length 1 but for rounding."""
        rng = np.random.default_rng((SEED, chunk))
        return self._make(rng, self.CHUNK, self.base, self.near)

    def _make(self, rng: np.random.Generator, n: int, own: Array, near: Array) -> Array:
        i = rng.integers(0, len(own), n)
        weights = rng.standard_exponential((n, self.MIXED + 1), np.float32)
        weights /= weights.sum(axis=1, keepdims=True)
        made = own[i] * weights[:, :1]
        for k in range(1, self.MIXED + 1):
            made += self.base[near[i, rng.integers(0, self.NEAR, n)]] * weights[:, k : k + 1]
        i = rng.integers(0, len(self.base), n)
        j = self.near[i, rng.integers(0, self.NEAR, n)]
        made += self.NOISE * (self.base[i] - self.base[j])
        return unit(made).astype(np.float16)


def kth_similarity(base: Array, queries: Array, k: int = K) -> Array:
    """Inner product of each query with its true kth neighbour."""
    return np.concatenate(
        [
            np.partition(part @ base.T, -k, axis=1)[:, -k]
            for part in np.array_split(queries, max(1, len(queries) // 50))
        ]
    )
