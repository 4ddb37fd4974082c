"""Peers in process: no server, no transactions, nothing on disk; one thread.

What they do in the time of a query is the limit of what a server could do.  They do not filter
here: their ways to do it (callbacks, bitmaps made beforehand) are not those of a WHERE.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import EF_SEARCH
from sets import K

from .data import Array, Data
from .peers import INSERTED, Missing, Peer, Setting


class Library(Peer):
    kind = "in process"
    module: str
    distribution: str
    options: str

    def open(self, data: Data) -> None:
        try:
            self.library = importlib.import_module(self.module)
        except ImportError as error:
            raise Missing(f'{error}; run pip install "pybq[bench]"') from error
        self.data = data
        self.dim = data.base.shape[1]
        self.index: Any = None

    def build(self) -> float:
        self._prepare()
        start = time.perf_counter()
        self._train(self.data.base)
        self._add(self.data.base, 0)
        return time.perf_counter() - start

    def _prepare(self) -> None:
        """An empty index."""
        raise NotImplementedError

    def _train(self, rows: Array) -> None:
        """What comes before rows can be added."""

    def _add(self, rows: Array, first: int) -> None:
        raise NotImplementedError

    def _save(self, path: str) -> None:
        raise NotImplementedError

    def insert(self, first: int) -> float:
        rows = np.array(self.data.new[first : first + INSERTED])
        start = time.perf_counter()
        self._add(rows, len(self.data.base) + first)
        return time.perf_counter() - start

    def settings(self, column: str | None) -> list[Setting]:
        return [] if column else self._knobs()

    def _knobs(self) -> list[Setting]:
        raise NotImplementedError

    def set(self, column: str | None, setting: Setting) -> None:
        self.current = setting

    def size(self) -> dict[str, int]:
        """Bytes of the file that the index makes; where it holds the vectors, with them."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index"
            self._save(str(path))
            return {"index": path.stat().st_size}

    def pid(self) -> int | None:
        return os.getpid()

    def about(self) -> dict[str, Any]:
        version = importlib.metadata.version(self.distribution)
        return {"library": f"{self.distribution} {version}", "index": self.options, "threads": 1}


class HnswLib(Library):
    name = "hnswlib"
    module = distribution = "hnswlib"
    options = "HNSW, M 16, ef_construction 64, float32"

    def _prepare(self) -> None:
        self.index = self.library.Index(space="ip", dim=self.dim)
        room = len(self.data.base) + len(self.data.new)
        self.index.init_index(room, M=16, ef_construction=64, random_seed=1)
        self.index.set_num_threads(1)

    def _add(self, rows: Array, first: int) -> None:
        self.index.add_items(rows, np.arange(first, first + len(rows)))

    def _save(self, path: str) -> None:
        self.index.save_index(path)

    def _knobs(self) -> list[Setting]:
        return [{"ef": ef} for ef in EF_SEARCH]

    def set(self, column: str | None, setting: Setting) -> None:
        self.index.set_ef(setting["ef"])

    def ask(self, query: int) -> list[int]:
        found: list[int] = self.index.knn_query(self.data.queries[query], K)[0][0].tolist()
        return found


class USearch(Library):
    name = "USearch"
    module = "usearch.index"
    distribution = "usearch"
    options = "HNSW, connectivity 16, expansion_add 64, float16"

    def _prepare(self) -> None:
        self.index = self.library.Index(
            ndim=self.dim, metric="ip", dtype="f16", connectivity=16, expansion_add=64
        )

    def _add(self, rows: Array, first: int) -> None:
        self.index.add(np.arange(first, first + len(rows)), np.asarray(rows), threads=1)

    def _save(self, path: str) -> None:
        self.index.save(path)

    def _knobs(self) -> list[Setting]:
        return [{"expansion_search": ef} for ef in EF_SEARCH]

    def set(self, column: str | None, setting: Setting) -> None:
        self.index.expansion_search = setting["expansion_search"]

    def ask(self, query: int) -> list[int]:
        found: list[int] = self.index.search(self.data.queries[query], K, threads=1).keys.tolist()
        return found


class Faiss(Library):
    """Lists of codes, and the best of those in order by the float32 vectors."""

    module = "faiss"
    distribution = "faiss-cpu"
    codes: str

    def open(self, data: Data) -> None:
        super().open(data)
        self.library.omp_set_num_threads(1)
        self.lists = max(1, round(4 * math.sqrt(len(data.base))))
        self.options = f"IVF{self.lists},{self.codes.format(half=self.dim // 2)},RFlat"

    def _prepare(self) -> None:
        self.index = self.library.index_factory(
            self.dim, self.options, self.library.METRIC_INNER_PRODUCT
        )
        self.lists_of = self.library.extract_index_ivf(self.index.base_index)

    def _train(self, rows: Array) -> None:
        self.index.train(np.asarray(rows))

    def _add(self, rows: Array, first: int) -> None:
        self.index.add(np.asarray(rows))

    def _save(self, path: str) -> None:
        self.library.write_index(self.index, path)

    def _knobs(self) -> list[Setting]:
        probes = sorted({max(1, round(self.lists * 2 ** (-i / 1.5))) for i in range(2, 14)})
        pairs = itertools.product((2, 4, 10), probes)
        return [{"nprobe": n, "k_factor": factor} for factor, n in pairs]

    def set(self, column: str | None, setting: Setting) -> None:
        self.lists_of.nprobe = setting["nprobe"]
        self.index.k_factor = setting["k_factor"]

    def ask(self, query: int) -> list[int]:
        found: list[int] = self.index.search(self.data.queries[query : query + 1], K)[1][0].tolist()
        return [row for row in found if row >= 0]


class FaissRaBitQ(Faiss):
    name = "Faiss IVF, RaBitQ, re-ranked"
    codes = "RaBitQ"


class FaissPq(Faiss):
    name = "Faiss IVF, PQ fast scan, re-ranked"
    codes = "PQ{half}x4fs"


LIBRARIES: tuple[type[Library], ...] = (FaissRaBitQ, FaissPq, HnswLib, USearch)
