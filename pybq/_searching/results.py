"""What searches give back: hits, arrays, frames."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pybq._catalog.database import Row
from pybq._catalog.layout import Layout

Output = Literal["hits", "numpy", "arrow", "pandas", "polars"]

# The package that makes a form.
PACKAGES = {"arrow": "pyarrow", "pandas": "pandas", "polars": "polars"}
INTEGERS = ("int2", "int4", "int8")
# What a row ends with that words were searched for.
FUSED = ("score", "vector_rank", "text_rank")
# What columns of a frame are, whatever rows were found: names of types in polars and Arrow.
# Others are inferred. Polars has no type for uuid.
FRAME_TYPES = {
    **dict.fromkeys(INTEGERS, ("Int64", "int64")),
    **dict.fromkeys(("float4", "float8"), ("Float64", "float64")),
    **dict.fromkeys(("text", "varchar", "bpchar", "name", "uuid"), ("String", "string")),
    "bool": ("Boolean", "bool"),
    "bytea": ("Binary", "binary"),
    "date": ("Date", "date32"),
    "timestamp": ("Datetime", "timestamp[us]"),
}


@dataclass(slots=True)
class Hit:
    """One found row. Further columns are read as `hit["name"]`.

    Attributes
    ----------
    id : Any
        Value of the primary key, a tuple if it has several columns.
    distance : float
        What the operator of the table's metric gives: cosine distance, Euclidean distance, or the
        negative inner product. Exact if the table stores vectors, unless `rerank=None` asked for
        that of the code. NaN if words found a row that has no vector, or if there was no query
        but words.
    columns : dict
        The further columns that were asked for.
    score : float or None
        Of a search with `text`: by what hits are ordered, the largest first.
    vector_rank, text_rank : int or None
        Its place among the nearest rows, and among those with the words, from 1; None: it is not
        among those that were fused, or there was no `text`.

    Examples
    --------
    >>> hit = Hit(42, 0.25, {"title": "a title"})
    >>> hit.id, hit.distance, hit["title"]
    (42, 0.25, 'a title')
    """

    id: Any
    distance: float
    columns: Mapping[str, Any] = field(default_factory=dict)
    score: float | None = None
    vector_rank: int | None = None
    text_rank: int | None = None

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]


class Arrays(NamedTuple):
    """Found rows as arrays: ``ids, distances = table.search(..., output="numpy")``.

    Attributes
    ----------
    ids : ndarray, shape (k,) or (q, k)
        Values of the primary key, nearest first: int64 for keys of integers, else object. Where
        fewer than k rows were found, -1 or None.
    distances : ndarray of float64, shape (k,) or (q, k)
        As in `Hit`. Where fewer than k rows were found, infinity, which no row has.

    Examples
    --------
    >>> ids, distances = Arrays(np.array([7, 3, -1]), np.array([0.25, 0.5, np.inf]))
    >>> ids[np.isfinite(distances)]
    array([7, 3])
    """

    ids: NDArray[Any]
    distances: NDArray[np.float64]


class Results:
    """Turns the rows of a search into what was asked for.

    Raises at once, before anything is searched, if that cannot be.
    """

    def __init__(
        self,
        output: Output,
        layout: Layout,
        k: int,
        columns: tuple[str, ...],
        single: bool,
        fused: bool = False,
    ) -> None:
        forms = ("hits", "numpy", *PACKAGES)
        if output not in forms:
            raise ValueError(f"expected output of {', '.join(forms)}, got {output!r}")
        if output == "numpy" and columns:
            raise ValueError(
                "numpy gives ids and distances only; for columns choose hits or a frame"
            )
        if output == "numpy" and fused:
            raise ValueError(
                "numpy gives ids and distances only; for scores choose hits or a frame"
            )
        if output in PACKAGES:
            for name in columns:
                if name in ("query", "id", "distance", *(FUSED if fused else ())):
                    raise ValueError(f"column {name!r} of a frame is its own; choose hits")
        if output != "hits" and len(layout.key) > 1:
            raise ValueError(f"table {layout.name!r} has a key of several columns; choose hits")
        self._module = _load(output)
        self._output = output
        self._integers = layout.key[0].type_name in INTEGERS
        self._types = {"id": layout.key[0].type_name}
        self._types |= {name: layout.columns[name].type_name for name in columns}
        self._k = k
        self._columns = columns
        self._single = single  # one query, not a batch of one
        self._fused = fused  # rows end with their score and both ranks
        if fused:
            self._types |= dict(zip(FUSED, ("float8", "int8", "int8"), strict=True))

    def make(self, found: Sequence[Sequence[Row]]) -> Any:
        """Convert the rows of each query: id, distance, further columns."""
        if self._output == "hits":
            hits = [[self._make_hit(row) for row in rows] for rows in found]
            return hits[0] if self._single else hits
        if self._output == "numpy":
            return self._make_arrays(found)
        columns = self._make_columns(found)
        if self._output == "pandas":
            return self._module.DataFrame(columns)
        return self._make_typed_frame(columns)

    def _make_hit(self, row: Row) -> Hit:
        end = 2 + len(self._columns)
        distance = math.nan if row[1] is None else row[1]
        columns = dict(zip(self._columns, row[2:end], strict=True))
        return Hit(row[0], distance, columns, *row[end:])

    def _make_typed_frame(self, columns: dict[str, Any]) -> Any:
        """Of polars or Arrow: nothing found, or only nulls, gives the types that rows give."""
        module, types = self._module, {}
        for name, type_name in self._types.items():
            if type_name == "uuid":
                columns[name] = [None if uuid is None else str(uuid) for uuid in columns[name]]
            if type_name in FRAME_TYPES:
                polars, arrow = FRAME_TYPES[type_name]
                types[name] = arrow if self._output == "arrow" else getattr(module, polars)
        if self._output == "polars":
            return module.DataFrame(columns, schema_overrides=types)
        return module.table(
            {name: module.array(values, types.get(name)) for name, values in columns.items()}
        )

    def _make_arrays(self, found: Sequence[Sequence[Row]]) -> Arrays:
        shape = (len(found), self._k)
        distances = np.full(shape, np.inf)
        ids = np.full(shape, -1, np.int64) if self._integers else np.full(shape, None, object)
        for i, rows in enumerate(found):
            if rows:
                ids[i, : len(rows)] = [row[0] for row in rows]
                distances[i, : len(rows)] = [row[1] for row in rows]
        return Arrays(ids[0], distances[0]) if self._single else Arrays(ids, distances)

    def _make_columns(self, found: Sequence[Sequence[Row]]) -> dict[str, Any]:
        rows = [row for rows in found for row in rows]
        # typed, even if nothing was found
        columns: dict[str, Any] = {}
        if not self._single:
            columns["query"] = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
        ids = [row[0] for row in rows]
        columns["id"] = np.array(ids, np.int64) if self._integers else ids
        columns["distance"] = np.array([row[1] for row in rows], np.float64)
        for i, name in enumerate((*self._columns, *(FUSED if self._fused else ())), 2):
            columns[name] = [row[i] for row in rows]
        return columns


def _load(output: str) -> Any:
    package = PACKAGES.get(output)
    if package is None:
        return None
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'output="{output}" needs {package}; run pip install {package}'
        ) from error
