"""The rows, the queries, the columns to filter by, and the true neighbours."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sets import SEED, K, kth_similarity, load_all, thicken, unit

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
import glosses  # noqa: E402

QUERIES = 200
NEW = 1000  # rows that are inserted after all else
# column -> number of its values, which rows have at random: a filter keeps one row in so many
FILTERS = {"tenth": 10, "hundredth": 100}
MIN_ROWS = 200

Array = NDArray[Any]


@dataclass(frozen=True)
class Data:
    """Unit vectors, float32; nothing of `queries` and `new` is in `base`."""

    base: Array  # (n, dim)
    queries: Array  # (q, dim)
    new: Array  # (m, dim), to be inserted
    columns: Array  # int32 (n, number of FILTERS)

    def column(self, name: str) -> Array:
        return self.columns[:, list(FILTERS).index(name)]

    @staticmethod
    def wanted(name: str, query: int) -> int:
        """The value that a query asks for."""
        return query % FILTERS[name]

    def save(self, folder: Path) -> None:
        """For processes that read it by `open`."""
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def open(cls, folder: Path) -> Data:
        """As saved; the base is mapped, not read, so that it counts as nobody's memory."""
        arrays = {f.name: np.load(folder / f"{f.name}.npy", mmap_mode="r") for f in fields(cls)}
        return cls(**arrays | {"queries": np.array(arrays["queries"])})


def load(path: Path | None, rows: int, queries: int = QUERIES) -> tuple[Data, str]:
    """The data, and a line about it.

    Parameters
    ----------
    path : Path or None
        A file .npy of rows; an .npz of the form that sets.py describes, or a folder with
        wordnet.npz.  None: the vectors that ship with the demo, grown to `rows`.
    rows : int
        So many at most.
    queries : int
        So many at most.
    """
    if path is None:
        shipped = glosses.load()
        vectors = thicken(unit(shipped.vectors), rows + NEW)
        about = f"{min(rows, len(shipped.vectors)):,} sentences of the demo"
        if rows > len(shipped.vectors):
            about += f", grown to {rows:,} by points between near ones (sets.thicken, seed {SEED})"
        return _data(vectors[:rows], unit(shipped.queries)[:queries], vectors[rows:], about)
    if path.is_dir():
        path = path / "wordnet.npz"
    if path.suffix == ".npz":
        base, held_out = load_all(path.parent, path.stem)
        new = held_out[queries : queries + NEW]
        return _data(base[:rows], held_out[:queries], new, f"{path.name}, {len(base):,} rows")
    if path.suffix != ".npy":
        raise ValueError(f"expected a folder or a file .npy or .npz, got {path}")
    return _from_rows(np.load(path, mmap_mode="r"), path.name, rows, queries)


def _from_rows(file: Array, name: str, rows: int, queries: int) -> tuple[Data, str]:
    """Queries and rows to insert are drawn from the file, and left out of the base."""
    if file.ndim != 2 or not np.issubdtype(file.dtype, np.floating):
        raise ValueError(f"expected floats of shape (n, dim), got {file.dtype} {file.shape}")
    new = min(NEW, len(file) // 10)
    queries = min(queries, len(file) // 10)
    rows = min(rows, len(file) - queries - new)
    drawn = np.random.default_rng(SEED).permutation(len(file))[: rows + queries + new]
    vectors = np.array(file[np.sort(drawn)], np.float32)
    if not np.isfinite(vectors).all():
        raise ValueError(f"expected finite values, got others in {name}")
    # without a direction there is no cosine
    vectors = vectors[np.linalg.norm(vectors, axis=1) > 0]
    order = np.random.default_rng(SEED).permutation(len(vectors))
    asked, inserted, base = np.split(unit(vectors[order]), [queries, queries + new])
    return _data(base, asked, inserted, f"{name}, {len(file):,} rows, drawn with seed {SEED}")


def _data(base: Array, queries: Array, new: Array, about: str) -> tuple[Data, str]:
    if len(base) < MIN_ROWS or not len(queries):
        raise ValueError(
            f"expected {MIN_ROWS} rows or more, and queries; got {len(base)} and {len(queries)}"
        )
    rng = np.random.default_rng(SEED)
    columns = [rng.integers(0, n, len(base)).astype(np.int32) for n in FILTERS.values()]
    return Data(base, queries, new, np.ascontiguousarray(np.column_stack(columns))), about


class Truth:
    """The true neighbours, by comparing all rows in float32."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._known: dict[str | None, tuple[Array, Array]] = {}

    def recall(self, column: str | None, found: list[list[int]]) -> float:
        """Share of the true neighbours in what the first queries found.

        A row counts if it is as near as the true kth, and if it is what the filter asks for.
        """
        if column not in self._known:
            self._known[column] = self._find(column)
        kth, counts = self._known[column]
        hits = 0
        for i, ids in enumerate(found):
            rows = np.unique(np.array(ids, np.int64))
            if column is not None:
                rows = rows[self._data.column(column)[rows] == self._data.wanted(column, i)]
            near = self._data.base[rows] @ self._data.queries[i] >= kth[i] - 1e-6
            hits += min(int(near.sum()), int(counts[i]))
        return hits / float(counts[: len(found)].sum())

    def _find(self, column: str | None) -> tuple[Array, Array]:
        """Of each query the similarity of the kth row, and k or the number of rows there are."""
        base, queries = self._data.base, self._data.queries
        if column is None:
            return kth_similarity(base, queries), np.full(len(queries), K)
        values = self._data.column(column)
        kth = np.full(len(queries), -np.inf, np.float32)
        counts = np.empty(len(queries), np.int64)
        for value in range(FILTERS[column]):
            asked = np.arange(value, len(queries), FILTERS[column])
            rows = base[values == value]
            counts[asked] = min(K, len(rows))
            if len(asked) and len(rows) >= K:
                kth[asked] = kth_similarity(rows, queries[asked])
        return kth, counts
