"""The data of the demo: WordNet glosses, their embeddings, and held-out queries."""

import dataclasses
import gzip
import pathlib

import numpy as np

DATA = pathlib.Path(__file__).parent / "data"


@dataclasses.dataclass(frozen=True)
class Glosses:
    """Texts and unit vectors in the same order; `truth` is what an exact search would return."""

    texts: list[str]
    vectors: np.ndarray  # float32, (10000, 384)
    query_texts: list[str]
    queries: np.ndarray  # float32, (200, 384)

    def exact(self, k: int) -> np.ndarray:
        """Return the rows of the k nearest texts of each query, by brute force: int64, (200, k)."""
        return np.argsort(-(self.queries @ self.vectors.T), axis=1, kind="stable")[:, :k]


def unpack(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return unit float32 vectors from int8 rows and the float32 scale of each."""
    vectors = values.astype(np.float32) * scale[:, None]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def load() -> Glosses:
    """Read the glosses that ship with the project (demo/data/README.md)."""
    with gzip.open(DATA / "glosses.txt.gz", "rt", encoding="utf-8") as file:
        texts = file.read().splitlines()
    with np.load(DATA / "glosses.npz") as packed:
        vectors = unpack(packed["base"], packed["base_scale"])
        queries = unpack(packed["queries"], packed["queries_scale"])
    return Glosses(texts[: len(vectors)], vectors, texts[len(vectors) :], queries)
