"""Every kind of file gives the vectors, keys and columns that were written to it."""

from datetime import time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pybq._loading.sources import open_source


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((50, 12)).astype(np.float32)


def read_all(path: Path, columns: Any = (), **options: Any) -> tuple[Any, Any, dict[str, Any]]:
    batches = list(open_source(path, **options).batches(columns))
    ids = None if batches[0].ids is None else [i for batch in batches for i in batch.ids]
    further = {name: [v for b in batches for v in b.columns[name]] for name in batches[0].columns}
    return ids, np.concatenate([batch.vectors for batch in batches]), further


def write_vecs(path: Path, vectors: np.ndarray) -> None:
    kind = "<f4" if path.suffix == ".fvecs" else "u1"
    rows = np.empty(len(vectors), [("dim", "<i4"), ("x", kind, vectors.shape[1:])])
    rows["dim"], rows["x"] = vectors.shape[1], vectors
    rows.tofile(path)


def test_npy_is_mapped(tmp_path: Path, vectors: np.ndarray) -> None:
    np.save(tmp_path / "v.npy", vectors)
    source = open_source(tmp_path / "v.npy")
    (batch,) = source.batches()
    assert (source.rows, source.dim, source.id_type, batch.ids) == (50, 12, "bigint", None)
    assert isinstance(batch.vectors, np.memmap)
    np.testing.assert_array_equal(batch.vectors, vectors)


def test_vecs_are_mapped(tmp_path: Path, vectors: np.ndarray) -> None:
    small = (vectors * 40 + 100).astype(np.uint8)
    for name, expected in (("v.fvecs", vectors), ("v.bvecs", small)):
        write_vecs(tmp_path / name, expected)
        source = open_source(tmp_path / name)
        assert (source.rows, source.dim) == (50, 12)
        (batch,) = source.batches()
        assert batch.vectors.dtype == expected.dtype
        np.testing.assert_array_equal(batch.vectors, expected)


def test_npz_has_keys_and_columns(tmp_path: Path, vectors: np.ndarray) -> None:
    titles = np.array([f"title {i}" for i in range(50)])
    arrays = {"v": vectors, "price": np.arange(50.0), "when": titles.astype("S"), "x": titles[:9]}
    np.savez(tmp_path / "v.npz", **arrays, id=titles[:9])
    with pytest.raises(ValueError, match=r"id: expected shape \(50,\), got \(9,\)"):
        open_source(tmp_path / "v.npz")
    np.savez(tmp_path / "v.npz", **arrays, key=titles)
    source = open_source(tmp_path / "v.npz", id_column="key")
    assert (source.id_type, dict(source.column_types)) == ("text", {"price": "double precision"})
    assert (source.columns, source.skipped) == (("price", "when"), ("x",))
    ids, found, columns = read_all(tmp_path / "v.npz", ["price"], id_column="key")
    assert ids == titles.tolist()
    assert columns["price"] == list(range(50))
    np.testing.assert_array_equal(found, vectors)


@pytest.mark.parametrize("kind", ["list", "fixed_size_list", "large_list"])
def test_parquet_comes_in_batches(
    tmp_path: Path, vectors: np.ndarray, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    types = {
        "list": pa.list_(pa.float32()),
        "large_list": pa.large_list(pa.float64()),
        "fixed_size_list": pa.list_(pa.float32(), 12),
    }
    table = pa.table(
        {
            "id": range(100, 150),
            "embedding": pa.array(vectors.tolist(), types[kind]),
            "title": [None if i == 7 else f"title {i}" for i in range(50)],
            "tags": [["a"]] * 50,
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "v.parquet", row_group_size=20)
    monkeypatch.setattr("pybq._loading.arrow.BATCH_NBYTES", 4 * 12 * 8)
    source = open_source(tmp_path / "v.parquet")
    assert (source.rows, source.dim, source.skipped) == (50, 12, ())
    assert dict(source.column_types) == {"title": "text", "tags": "text[]"}
    assert max(len(batch.vectors) for batch in source.batches()) == 8
    ids, found, columns = read_all(tmp_path / "v.parquet", ["title"])
    assert ids == list(range(100, 150))
    assert columns["title"][6:9] == ["title 6", None, "title 8"]
    np.testing.assert_array_equal(found, vectors)


def test_columns_of_a_new_table_fit_the_values(vectors: np.ndarray) -> None:
    pa = pytest.importorskip("pyarrow")
    columns = {
        "price": pa.array([Decimal("1.5")]),
        "doc": pa.array([{"a": 1}]),
        "tags": pa.array([["a"]]),
        "counts": pa.array([[1]], pa.large_list(pa.int64())),
        "at": pa.array([time(12)]),
        "span": pa.array([timedelta(1)]),
        "deep": pa.array([[["a"]]]),
        "nothing": pa.nulls(1),
    }
    expected = {
        "price": "numeric",
        "doc": "jsonb",
        "tags": "text[]",
        "counts": "bigint[]",
        "at": "time",
        "span": "interval",
    }
    source = open_source(pa.table({"v": vectors[:1].tolist()} | columns), vector_column="v")
    assert dict(source.column_types) == expected
    assert source.columns == tuple(columns)
    arrays: dict[str, Any] = {name: np.empty(1, object) for name in expected}
    for name, array in arrays.items():
        array[0] = columns[name][0].as_py()
    arrays["when"] = np.array(["2026-11-21T12:30"], "datetime64[m]")
    arrays["day"] = np.array(["2026-11-21"], "datetime64[D]")
    arrays["wait"] = np.array([5], "timedelta64[s]")
    expected |= {"when": "timestamp", "day": "date", "wait": "interval"}
    assert dict(open_source({"v": vectors[:1]} | arrays, "v").column_types) == expected


def test_columns_of_a_batch_may_have_any_name(vectors: np.ndarray) -> None:
    names = ("vectors", "id", "vectors_")
    further = {name: [f"{name} {i}" for i in range(50)] for name in names}
    for keys, expected in ((range(100, 150), list(range(100, 150))), (None, None)):
        (batch,) = open_source([(keys, vectors, further)]).batches(names)
        assert (None if batch.ids is None else list(batch.ids)) == expected
        np.testing.assert_array_equal(batch.vectors, vectors)
        assert {name: list(values) for name, values in batch.columns.items()} == further


def test_lists_stay_as_they_are() -> None:
    columns: dict[str, Any] = {
        "tags": [["a", "b"], ["c", "d"]],
        "ragged": [["a"], None],
        "doc": [{"a": 1}, {"b": 2}],
        "raw": [b"a\0", b"bc\0\0"],
        "counts": [[1, 2], [3, 4]],
        "title": ["a", None],
        "n": [1, 2],
    }
    vectors = [[1.0, 2.0], [3.0, 4.0]]
    for source, name in (({"v": vectors} | columns, "v"), ([(None, vectors, columns)], None)):
        opened = open_source(source, name)
        (batch,) = opened.batches(columns)
        assert np.asarray(batch.vectors).tolist() == vectors
        assert {name: list(values) for name, values in batch.columns.items()} == columns
        types = {"tags": "text[]", "ragged": "text[]", "doc": "jsonb", "raw": "bytea"}
        assert dict(opened.column_types) == types | {"title": "text", "n": "bigint"}
        assert opened.skipped == ()
    with pytest.raises(
        ValueError, match=r"expected vectors of shape \(n, dim\), got \(2,\) of obj"
    ):
        open_source({"v": [[1.0], [1.0, 2.0]]})


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_what_a_series_misses_is_none(vectors: np.ndarray, library: str) -> None:
    package = pytest.importorskip(library)
    titles, numbers = ["a", None] * 25, [2**60 + 1, None] * 25
    if library == "pandas":
        index = range(50, 100)
        columns = {
            "title": package.Series(titles, index=index),
            "n": package.Series(numbers, dtype="Int64", index=index),
        }
    else:
        make = package.array if library == "pyarrow" else package.Series
        columns = {"title": make(titles), "n": make(numbers)}
    (batch,) = open_source([(None, vectors, columns)]).batches(["title", "n"])
    assert list(batch.columns["title"]) == titles
    assert list(batch.columns["n"]) == numbers


def test_what_is_masked_is_missing(vectors: np.ndarray) -> None:
    hidden = np.zeros(vectors.shape, bool)
    hidden[3, 2] = True
    titles = np.ma.array([f"title {i}" for i in range(50)], mask=hidden[:, 2])
    prices = np.ma.array(np.arange(50), mask=hidden[:, 2])
    masked = np.ma.array(vectors, mask=hidden)
    columns = {"title": titles, "price": prices}
    for source in ({"v": masked} | columns, [(None, masked, columns)]):
        opened = open_source(source, "v" if isinstance(source, dict) else None)
        assert len(opened.sample(100)) == 49
        (batch,) = opened.batches(["title", "price"])
        assert np.argwhere(np.isnan(batch.vectors)).tolist() == [[3, 2]]
        assert list(batch.columns["title"])[2:5] == ["title 2", None, "title 4"]
        assert list(batch.columns["price"])[2:5] == [2, None, 4]


def test_parquet_names_the_wrong_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    monkeypatch.setattr("pybq._loading.arrow.BATCH_NBYTES", 16)
    for wrong, message in (
        ([1.0], "row 3: expected 2 dimensions, got 1"),
        (None, "row 3: expected 2 dimensions, got 0"),
        ([1.0, None], "row 3: expected numbers, got null"),
    ):
        rows = [[1.0, 2.0]] * 3 + [wrong]
        pyarrow.parquet.write_table(pa.table({"v": rows}), tmp_path / "v.parquet")
        with pytest.raises(ValueError, match=message):
            read_all(tmp_path / "v.parquet")


def test_errors_say_what_was_expected(tmp_path: Path, vectors: np.ndarray) -> None:
    def write(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    np.savez(tmp_path / "two.npz", a=vectors, b=vectors)
    np.save(tmp_path / "flat.npy", vectors[0])
    write_vecs(tmp_path / "v.fvecs", vectors)
    whole = (tmp_path / "v.fvecs").read_bytes()
    packed = (tmp_path / "two.npz").read_bytes()
    single = (tmp_path / "flat.npy").read_bytes()
    for path, options, error, message in (
        (tmp_path / "none.npy", {}, FileNotFoundError, "no file"),
        (write("v.csv", b""), {}, ValueError, "expected a file .npy, .npz, .parquet"),
        (tmp_path / "two.npz", {}, ValueError, "one column of vectors, got a, b; say which"),
        (tmp_path / "two.npz", {"vector_column": "c"}, ValueError, "no column 'c' among a, b"),
        (
            tmp_path / "flat.npy",
            {},
            ValueError,
            r"expected vectors of shape \(n, dim\), got \(12,\)",
        ),
        (write("empty.npy", b""), {}, ValueError, "empty.npy: expected arrays of numbers"),
        (write("cut.npy", single[:-1]), {}, ValueError, "cut.npy: expected arrays of numbers"),
        (write("packed.npy", packed), {}, ValueError, "as .npy: it holds an archive"),
        (write("empty.npz", b""), {}, ValueError, "empty.npz: expected arrays of numbers"),
        (write("cut.npz", b"PK\x03\x04"), {}, ValueError, "cut.npz: expected arrays of numbers"),
        (write("single.npz", single), {}, ValueError, "as .npz: it holds one array"),
        (tmp_path / "v.fvecs", {"id_column": "id"}, ValueError, "id_column 'id' means nothing"),
        (write("short.fvecs", whole[:-1]), {}, ValueError, "are not rows of 12 dimensions"),
        (write("empty.fvecs", b""), {}, ValueError, "at least one vector, got 0 bytes"),
        (
            write("mixed.fvecs", whole[:52] + b"\x0b" + whole[53:]),
            {},
            ValueError,
            "expected 12 dimensions in every row",
        ),
    ):
        with pytest.raises(error, match=message):
            open_source(path, **options)


def test_a_first_row_without_a_vector_is_refused() -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"v": pa.array([None, [1.0, 2.0]], pa.list_(pa.float32()))})
    with pytest.raises(ValueError, match="v: expected a vector in the first row"):
        open_source(table)


class Stream:
    """A frame of any library, known by Arrow's protocol alone."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._data.__arrow_c_stream__(requested_schema)


def test_any_arrow_stream_is_a_frame(vectors: np.ndarray) -> None:
    pa = pytest.importorskip("pyarrow")
    names = pa.array([f"n{i}" for i in range(len(vectors))], pa.string_view())  # as of DataFusion
    table = pa.table({"id": range(len(vectors)), "v": vectors.tolist(), "name": names})
    source = open_source(Stream(table))
    (batch,) = source.batches(["name"])
    assert source.column_types == {"name": "text"} and batch.columns["name"][1] == "n1"
    assert (source.rows, source.dim) == vectors.shape
    assert batch.ids == list(range(len(vectors)))
    np.testing.assert_allclose(batch.vectors, vectors)
    np.testing.assert_allclose(source.sample(len(vectors)), vectors)


@pytest.mark.parametrize("library", ["pyarrow", "pandas", "polars"])
def test_one_column_is_no_frame(library: str) -> None:
    module = pytest.importorskip(library)
    column = module.chunked_array([[1, 2]]) if library == "pyarrow" else module.Series([1, 2])
    with pytest.raises(TypeError, match="expected a frame or a table, got (ChunkedArray|Series)"):
        open_source(column)
