"""Rows of searches -> hits, arrays, frames: what is found, and what is missing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from datetime import date, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import pytest

import pybq
from pybq._searching.results import Results

# values as psycopg gives them
VALUES: dict[str, tuple[str, Any]] = {
    "title": ("text", "a title"),
    "letter": ("varchar", "abc"),
    "price": ("int4", 3),
    "weight": ("float4", 0.5),
    "sold": ("bool", True),
    "picture": ("bytea", b"\0\1"),
    "day": ("date", date(2026, 11, 21)),
    "made": ("timestamp", datetime(2026, 11, 21, 12, 30)),
    "owner": ("uuid", UUID(int=5)),
}

FRAMES: dict[str, Callable[[Any], dict[str, list[Any]]]] = {
    "arrow": lambda frame: frame.to_pydict(),
    "pandas": lambda frame: frame.to_dict("list"),
    "polars": lambda frame: frame.to_dict(as_series=False),
}
PACKAGES = {"arrow": "pyarrow", "pandas": "pandas", "polars": "polars"}


def layout(*key: str) -> Any:
    """A table with a key of columns of these types, as far as results ask for it."""
    columns = {name: SimpleNamespace(type_name=type) for name, (type, _) in VALUES.items()}
    keys = tuple(SimpleNamespace(type_name=type) for type in key)
    return SimpleNamespace(name="items", key=keys, columns=columns)


def make(output: Any, rows: Any, *, k: int = 3, key: str = "int8", columns: Any = ()) -> Any:
    """The result of one query, or of several if rows is a list of lists."""
    single = not (rows and isinstance(rows[0], list))
    results = Results(output, layout(key), k, tuple(columns), single)
    return results.make([rows] if single else rows)


ROWS = [[(7, 0.25), (3, 0.5), (9, 1.0)], [(3, -2.0)], []]


def test_hits_are_lists_of_what_was_found() -> None:
    hits = make("hits", ROWS)
    assert [[(hit.id, hit.distance) for hit in some] for some in hits] == ROWS
    (hit,) = make("hits", [(7, 0.25, "a title")], columns=["title"])
    assert hit == pybq.Hit(7, 0.25, {"title": "a title"}) and hit["title"] == "a title"
    assert make("hits", []) == []


def test_arrays_are_filled_where_rows_are_missing() -> None:
    ids, distances = make("numpy", ROWS)
    assert (ids.dtype, distances.dtype) == (np.int64, np.float64)
    assert ids.tolist() == [[7, 3, 9], [3, -1, -1], [-1, -1, -1]]
    inf = np.inf
    assert distances.tolist() == [[0.25, 0.5, 1], [-2, inf, inf], [inf, inf, inf]]
    one = make("numpy", ROWS[1])
    assert (one.ids.tolist(), one.distances.tolist()) == ([3, -1, -1], [-2, inf, inf])


def test_arrays_of_other_keys_are_of_objects() -> None:
    ids, distances = make("numpy", [[("a", 1.0), ("b", 2.0)], []], key="text")
    assert ids.tolist() == [["a", "b", None], [None] * 3] and np.isinf(distances[1]).all()


@pytest.mark.parametrize("output", FRAMES)
def test_frames_have_a_row_for_each_hit(output: str) -> None:
    pytest.importorskip(PACKAGES[output])
    rows = [[(7, 0.25, "x", 1), (3, 0.5, "z", 2)], [], [(3, 1.0, "y", 2)]]
    frame = FRAMES[output](make(output, rows, columns=["title", "price"]))
    assert frame == {
        "query": [0, 0, 2],
        "id": [7, 3, 3],
        "distance": [0.25, 0.5, 1.0],
        "title": ["x", "z", "y"],
        "price": [1, 2, 2],
    }
    one = FRAMES[output](make(output, ROWS[0]))
    assert one == {"id": [7, 3, 9], "distance": [0.25, 0.5, 1.0]}
    assert FRAMES[output](make(output, [[], []])) == {"query": [], "id": [], "distance": []}


@pytest.mark.parametrize("output", ["arrow", "polars"])
def test_frames_have_the_same_types_whatever_was_found(output: str) -> None:
    module = pytest.importorskip(PACKAGES[output])
    some = [(UUID(int=i), float(i), *(value for _, value in VALUES.values())) for i in range(2)]
    nulls = [(UUID(int=i), float(i), *(None for _ in VALUES)) for i in range(2)]
    frames = [
        make(output, rows, key="uuid", columns=VALUES) for rows in (some + nulls, [], nulls[:1])
    ]
    assert [len(frame) for frame in frames] == [4, 0, 1]
    assert frames[0].schema == frames[1].schema == frames[2].schema
    found = FRAMES[output](frames[0])
    expected = {name: value for name, (_, value) in VALUES.items()}
    expected |= {"id": str(UUID(int=1)), "owner": str(UUID(int=5))}
    assert {name: found[name][1] for name in expected} == expected
    join = getattr(module, "concat_tables", None) or module.concat
    assert len(join(frames)) == 5


@pytest.mark.parametrize(("output", "package"), [("arrow", "pyarrow"), ("polars", "polars")])
def test_a_missing_package_is_named_before_the_search(
    monkeypatch: pytest.MonkeyPatch, output: Any, package: str
) -> None:
    def refuse(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ModuleNotFoundError, match=f"run pip install {package}"):
        Results(output, layout("int8"), 3, (), True)


@pytest.mark.parametrize(
    ("output", "key", "columns", "message"),
    [
        ("list", ["int8"], (), "expected output of hits, numpy, arrow, pandas, polars, got 'list'"),
        ("numpy", ["int8"], ("price",), "ids and distances only; for columns choose hits"),
        ("pandas", ["int8"], ("distance",), "column 'distance' of a frame is its own"),
        ("numpy", ["int8", "text"], (), "'items' has a key of several columns; choose hits"),
    ],
)
def test_what_cannot_be_is_refused_before_the_search(
    output: Any, key: list[str], columns: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Results(output, layout(*key), 3, columns, True)
