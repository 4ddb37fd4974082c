"""Opening sources: files, arrays, frames and iterables of batches."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from pybq._codes.arrays import by_place, fill_mask, holds_numbers, spread, unmask
from pybq._loading.arrow import open_frame, open_parquet
from pybq._loading.source import Batch, Source, choose_column, choose_id, unlike

# numpy.dtype.kind -> SQL type of a column made for it
_SQL_TYPES = {
    "i": "bigint",
    "u": "bigint",
    "f": "double precision",
    "b": "boolean",
    "U": "text",
    "M": "timestamp",
    "m": "interval",
}
# type of the values in an array of objects -> SQL type
_OBJECT_TYPES = {
    str: "text",
    bool: "boolean",
    int: "bigint",
    float: "double precision",
    bytes: "bytea",
    Decimal: "numeric",
    UUID: "uuid",
    date: "date",
    time: "time",
    timedelta: "interval",
    dict: "jsonb",
}


class _Array(Protocol):
    """What is read of an array, be it NumPy's or a dataset of a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ndim(self) -> int: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: Any) -> Any: ...


def open_source(
    source: Any, vector_column: str | None = None, id_column: str | None = None
) -> Source:
    """Find out what a file, a frame or an iterable of vectors holds.

    Parameters
    ----------
    source : path, array, frame or iterable
        - ``.npy``: an array of shape (n, dim), mapped into memory.
        - ``.npz``: arrays by name, read whole: vectors, ids, and further columns of length n.
        - ``.parquet``: a list column of numbers, and others; read in batches. Needs pyarrow.
        - ``.fvecs``, ``.bvecs``: rows of float32 or uint8, each after its dim as int32, mapped.
        - ``.h5``, ``.hdf5``: datasets by name, as in an ``.npz``. Needs h5py.
        - ndarray of shape (n, dim), or a mapping of arrays by name, as in an ``.npz``.
        - pandas or polars DataFrame, pyarrow Table or RecordBatchReader, and any other frame
          with ``__arrow_c_stream__``, as of DuckDB. Needs pyarrow.
        - an iterable of batches: each an array of shape (n, dim), a tuple (ids, vectors) or
          (ids, vectors, columns), or a mapping of arrays by name.
    vector_column, id_column : str, optional
        Which array or column holds the vectors and the primary keys. By default, the one
        called "embedding" or "vector", else the only one that could be; and "id".

    Returns
    -------
    Source

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the kind of file is not known, or what it holds is not what was expected.
    ModuleNotFoundError
        If a package that reads it is not installed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/a.npz", vectors=np.eye(3), title=np.array(["a", "b", "c"]))
    ...     source = open_source(f"{folder}/a.npz")
    ...     (batch,) = source.batches(["title"])
    >>> source.rows, source.dim, dict(source.column_types), batch.columns["title"][1]
    (3, 3, {'title': 'text'}, 'b')
    >>> open_source((np.eye(4)[i : i + 1] for i in range(4))).dim
    4
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _open_file(Path(source), vector_column, id_column)
    package = type(source).__module__.partition(".")[0]
    if package == "pyarrow" and type(source).__name__ == "RecordBatchReader":  # is read once
        batches = (open_frame(batch, vector_column, id_column) for batch in source if len(batch))
        return _open_iterable(batches, vector_column, id_column)
    if package in ("pandas", "pyarrow") or hasattr(source, "__arrow_c_stream__"):
        return open_frame(source, vector_column, id_column)
    if isinstance(source, np.ndarray):
        return _open_arrays("array", {"vectors": source}, vector_column, id_column)
    if isinstance(source, Mapping):
        arrays = {name: _as_array(values) for name, values in source.items()}
        return _open_arrays("mapping", arrays, vector_column, id_column)
    if isinstance(source, Iterable):
        return _open_iterable(source, vector_column, id_column)
    raise TypeError(
        f"expected a file, an array, a frame or an iterable of batches, got {type(source).__name__}"
    )


def _open_file(path: Path, vector_column: str | None, id_column: str | None) -> Source:
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    name, stat = str(path), path.stat()
    stamp = f"{stat.st_size} bytes of {stat.st_mtime_ns}"
    if path.suffix == ".npz":
        return _open_arrays(name, load_numpy(path), vector_column, id_column, stamp)
    if path.suffix == ".parquet":
        return open_parquet(path, vector_column, id_column, stamp)
    if path.suffix in (".h5", ".hdf5"):
        return _open_arrays(name, _map_hdf5(path), vector_column, id_column, stamp)
    for option, value in (("vector_column", vector_column), ("id_column", id_column)):
        if value is not None:
            raise ValueError(f"{path}: has no columns, so {option} {value!r} means nothing")
    if path.suffix == ".npy":
        return _open_arrays(name, {"vectors": load_numpy(path)}, None, None, stamp)
    if path.suffix in (".fvecs", ".bvecs"):
        return _open_arrays(name, {"vectors": _map_vecs(path)}, None, None, stamp)
    raise ValueError(f"{path}: expected a file .npy, .npz, .parquet, .fvecs, .bvecs or .h5")


def load_numpy(path: Path) -> Any:
    """Read the arrays of an .npz by name, or map the array of another file into memory."""
    archive = path.suffix == ".npz"
    try:
        with path.open("rb") as file:
            loaded = np.load(file) if archive else np.load(path, mmap_mode="r")
            if isinstance(loaded, np.ndarray) == archive:
                raise ValueError(f"it holds {'one array' if archive else 'an archive'}")
            return dict(loaded) if archive else loaded
    except (EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected arrays of numbers as {path.suffix}: {error}") from error


def _open_arrays(
    name: str,
    arrays: Mapping[str, _Array],
    vector_column: str | None,
    id_column: str | None,
    stamp: str = "",
    keys: bool = True,
) -> Source:
    arrays = dict(arrays)
    # a single one need not be guessed, and is checked below
    candidates = [n for n, array in arrays.items() if array.ndim == 2 or len(arrays) == 1]
    vector_name = choose_column(name, arrays, candidates, vector_column, "vectors")
    vectors = arrays.pop(vector_name)
    if isinstance(vectors, np.ma.MaskedArray):
        vectors = fill_mask(vectors)
    if vectors.ndim != 2 or not holds_numbers(vectors.dtype):
        raise ValueError(
            f"{name}: expected vectors of shape (n, dim), got {vectors.shape} of {vectors.dtype}"
        )
    n, dim = vectors.shape
    id_name = choose_id(name, arrays, id_column) if keys else None
    ids = arrays.pop(id_name) if id_name else None
    if ids is not None and ids.shape != (n,):
        raise ValueError(f"{name}: {id_name}: expected shape ({n},), got {ids.shape}")
    columns = [column for column, array in arrays.items() if array.shape[:1] == (n,)]
    types = {column: _array_type(arrays[column]) for column in columns}

    def read(columns: frozenset[str], rows: int | None) -> Iterator[Batch]:
        step = max(1, n if rows is None else rows)
        for start in range(0, max(n, 1), step):
            part = slice(start, start + step)
            yield Batch(
                None if ids is None else _as_values(ids[part]),
                vectors[part],
                {c: _as_values(arrays[c][part]) for c in arrays if c in columns},
            )

    return Source(
        name,
        n,
        dim,
        ids is not None,
        "bigint" if ids is None else _array_type(ids) or "text",
        tuple(columns),
        {column: kind for column, kind in types.items() if kind is not None},
        tuple(column for column in arrays if column not in types),
        f"{n} x {dim}, {vector_name} by {id_name}, {stamp}",
        read,
        lambda rows: vectors[spread(n, rows)],
    )


def _array_type(array: _Array) -> str | None:
    """The SQL type for the values of an array; of objects, None is NULL, and the first tells."""
    if array.ndim != 1:
        return None  # large as it may be, only a table that has a column for it gets it
    if not isinstance(array, np.ndarray) or array.dtype != object:
        return "date" if array.dtype == "datetime64[D]" else _SQL_TYPES.get(array.dtype.kind)
    return _object_type(next((value for value in array if value is not None), ""))


def _object_type(value: Any) -> str | None:
    """The SQL type for values like this one."""
    if isinstance(value, datetime):
        return "timestamptz" if value.tzinfo else "timestamp"
    if isinstance(value, list):
        item = _object_type(next((item for item in value if item is not None), ""))
        return None if item is None or item.endswith("[]") else f"{item}[]"
    return _OBJECT_TYPES.get(type(value))


def _as_values(array: NDArray[Any]) -> NDArray[Any] | list[Any]:
    """What the encoder of COPY takes: numbers as they are, lists of others; None for NULL."""
    if isinstance(array, np.ma.MaskedArray):
        return array.tolist() if array.ndim > 1 else unmask(array)
    return array.tolist() if array.ndim > 1 or array.dtype.kind in "US" else array


def _as_array(values: Any) -> NDArray[Any]:
    """Make an array, in which values that are no numbers stay as they are.

    NumPy would make a matrix of lists of equal length, and cut off zeros at the end of bytes.
    """
    if not isinstance(values, np.ma.MaskedArray):
        values = by_place(values)
    if not isinstance(values, (list, tuple)):
        return np.asanyarray(values)
    try:
        array = np.asanyarray(values)
    except ValueError:  # lists of different lengths
        array = None
    if array is not None and array.dtype.kind not in "USO":
        return array
    objects = np.empty(len(values), object)
    for i, value in enumerate(values):
        objects[i] = value
    return objects


def _open_iterable(
    source: Iterable[Any], vector_column: str | None, id_column: str | None
) -> Source:
    """Batches one after another; the first ones are looked at, and kept until they are read."""

    def open_each() -> Iterator[Source]:
        dim = 0
        for number, item in enumerate(source):
            part = _as_source(item, vector_column, id_column)
            dim = dim or part.dim
            if part.dim != dim:
                raise ValueError(f"batch {number}: expected {dim} dimensions, got {part.dim}")
            yield part

    rest = open_each()
    seen: list[Source] = []
    failed: list[Exception] = []  # raised where reading comes to it: what is before can be stored

    def look(rows: int) -> None:
        while not failed and sum(part.rows or 0 for part in seen) < rows:
            try:
                part = next(rest, None)
            except Exception as error:
                failed.append(error)
                break
            if part is None:
                break
            seen.append(part)

    look(1)
    if failed and not seen:
        raise failed[0]
    if not seen:
        raise ValueError("expected at least one batch of vectors, got none")
    first = seen[0]

    def parts() -> Iterator[Source]:
        while seen:
            yield seen.pop(0)
        if failed:
            raise failed[0]
        yield from rest

    def read(columns: frozenset[str], rows: int | None) -> Iterator[Batch]:
        keys: bool | None = None  # whether there are some
        for part in parts():
            for batch in part.batches(sorted(columns), rows):
                keys = batch.ids is not None if keys is None else keys
                if set(batch.columns) != columns or (batch.ids is not None) != keys:
                    raise ValueError(
                        "expected the same columns in all batches, and keys in all or none"
                    )
                yield batch

    def sample(rows: int) -> NDArray[Any]:
        look(rows)
        total = sum(part.rows or 0 for part in seen)
        vectors = [batch.vectors for part in seen for batch in part.batches()]
        every: NDArray[Any] = np.concatenate(vectors)[spread(total, rows)]
        return every

    rows = None if failed or seen[-1].rows else 0  # it was read to its end if it has none
    return Source(
        "iterable", rows, first.dim, first.has_ids, first.id_type, first.columns,
        first.column_types, first.skipped, f"x {first.dim}", read, sample,
    )  # fmt: skip


def _as_source(item: Any, vector_column: str | None, id_column: str | None) -> Source:
    """A batch of an iterable; what it may be is said in `open_source`."""
    if isinstance(item, Source):
        return item
    if isinstance(item, Batch):
        item = (item.ids, item.vectors, item.columns)
    if isinstance(item, tuple) and len(item) in (2, 3):
        ids, vectors, *columns = item
        arrays = {n: _as_array(v) for n, v in (columns[0] if columns else {}).items()}
        # Names of their own, as further columns may have any.
        vector_name, id_name = (unlike(name, arrays) for name in ("vectors", "id"))
        arrays[vector_name] = _as_array(vectors)
        if ids is None:
            return _open_arrays("batch", arrays, vector_name, None, keys=False)
        arrays[id_name] = _as_array(ids)
        return _open_arrays("batch", arrays, vector_name, id_name)
    return open_source(
        item if isinstance(item, Mapping) else _as_array(item), vector_column, id_column
    )


def _map_hdf5(path: Path) -> dict[str, _Array]:
    try:
        import h5py  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reading HDF5 needs h5py; run pip install h5py") from error
    file = h5py.File(path, "r")  # open as long as one of its datasets is in use
    return {name: value for name, value in file.items() if isinstance(value, h5py.Dataset)}


def _map_vecs(path: Path) -> NDArray[Any]:
    """Map a file of rows that each begin with their dim as int32."""
    nbytes = path.stat().st_size
    if nbytes < 4:
        raise ValueError(f"{path}: expected at least one vector, got {nbytes} bytes")
    dim = int(np.fromfile(path, "<i4", 1)[0])
    row = np.dtype([("dim", "<i4"), ("x", "<f4" if path.suffix == ".fvecs" else "u1", (dim,))])
    if dim < 1 or nbytes % row.itemsize:
        raise ValueError(f"{path}: {nbytes} bytes are not rows of {dim} dimensions")
    rows = np.memmap(path, row, mode="r")
    if not (rows["dim"] == dim).all():
        raise ValueError(f"{path}: expected {dim} dimensions in every row")
    vectors: NDArray[Any] = rows["x"]
    return vectors
