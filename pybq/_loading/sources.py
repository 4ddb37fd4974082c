"""Files, frames and iterables of vectors -> batches of arrays."""

from __future__ import annotations

import importlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from pybq._codes.arrays import by_place, fill_mask, unmask

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]

# Bytes of vectors that a batch of a file holds which cannot be mapped into memory.
BATCH_NBYTES = 16 << 20
# A Parquet file of so many row groups is sampled by group: it need not be read twice.
_SAMPLE_GROUPS = 16
# Read a Parquet file through a buffer per column. Otherwise pyarrow holds a whole row group,
# which may be all of the file: reading one of 150 MB took 590 MB, and 187 this way.
_PARQUET_OPTIONS = {"pre_buffer": False, "buffer_size": 1 << 20}

# Names under which a file may keep its vectors and its primary keys.
VECTOR_NAMES = ("embedding", "embeddings", "vector", "vectors")
ID_NAMES = ("id", "ids")

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


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a file, as `Table.ingest` takes them.

    Attributes
    ----------
    ids : sequence or ndarray, shape (n,), or None
        Primary keys; None if the file has none.
    vectors : ndarray, shape (n, dim)
        Perhaps mapped from the file, and then any number of them.
    columns : mapping of str to sequence
        Further columns, n values each; None is NULL.
    """

    ids: Sequence[Any] | NDArray[Any] | None
    vectors: NDArray[Any]
    columns: Mapping[str, Sequence[Any] | NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """Vectors to be read in batches, of which nothing has been read but what is said here.

    Attributes
    ----------
    name : str
        The file, or what kind of object it is.
    rows : int or None
        Number of vectors; None if only reading tells.
    dim : int
        Number of dimensions.
    id_type : str
        SQL type that fits the primary keys; bigint if there are none.
    columns : tuple of str
        Further columns. Whether their values can be stored is for the table's columns to say.
    column_types : dict of str to str
        Those of them for which a new table could have a column: name, and the SQL type that fits.
    skipped : tuple of str
        Arrays of another length; not read.
    fingerprint : str
        Changes if the source changes, or what is read of it: its shape, the names of vectors and
        keys and, of a file, its size and time.
    """

    name: str
    rows: int | None
    dim: int
    id_type: str
    columns: tuple[str, ...]
    column_types: Mapping[str, str]
    skipped: tuple[str, ...]
    fingerprint: str
    _read: Callable[[frozenset[str], int | None], Iterator[Batch]]
    _sample: Callable[[int], NDArray[Any]]

    def batches(self, columns: Sequence[str] = (), rows: int | None = None) -> Iterator[Batch]:
        """Read from the beginning, with the further columns named.

        `rows` bounds the batches, which are the same each time; left out, what is mapped into
        memory comes in one.
        """
        return self._read(frozenset(columns), rows)

    def sample(self, rows: int) -> NDArray[np.float32]:
        """Return up to so many vectors spread evenly over all, or over what was looked at.

        What can be read once only is looked at from its beginning. Rows that are not finite are
        passed over.
        """
        with np.errstate(over="ignore"):
            sample = np.asarray(self._sample(rows), np.float32)
        return sample[np.isfinite(sample).all(axis=1)]


class _Array(Protocol):
    """What is read of an array, be it NumPy's or a dataset of a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ndim(self) -> int: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: Any) -> Any: ...


def spread(total: int, rows: int) -> NDArray[np.int64]:
    """Return up to `rows` row numbers, spread evenly over `total`, in order."""
    return np.linspace(0, total - 1, min(total, rows)).astype(np.int64)


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
        - pandas or polars DataFrame, pyarrow Table or RecordBatchReader. Needs pyarrow.
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
    if package in ("pandas", "polars", "pyarrow"):
        return _open_frame(source, package, vector_column, id_column)
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
        return _open_parquet(path, vector_column, id_column, stamp)
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
    vector_name = _choose(name, arrays, candidates, vector_column, "vectors")
    vectors = arrays.pop(vector_name)
    if isinstance(vectors, np.ma.MaskedArray):
        vectors = fill_mask(vectors)
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise ValueError(
            f"{name}: expected vectors of shape (n, dim), got {vectors.shape} of {vectors.dtype}"
        )
    n, dim = vectors.shape
    id_name = _choose_id(name, arrays, id_column) if keys else None
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
    if not isinstance(values, (list, tuple)):
        return np.asanyarray(by_place(values) if hasattr(values, "isna") else values)
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
        "iterable", rows, first.dim, first.id_type, first.columns, first.column_types,
        first.skipped, f"x {first.dim}", read, sample,
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
        vector_name, id_name = (_unlike(name, arrays) for name in ("vectors", "id"))
        arrays[vector_name] = _as_array(vectors)
        if ids is None:
            return _open_arrays("batch", arrays, vector_name, None, keys=False)
        arrays[id_name] = _as_array(ids)
        return _open_arrays("batch", arrays, vector_name, id_name)
    return open_source(
        item if isinstance(item, Mapping) else _as_array(item), vector_column, id_column
    )


def _unlike(name: str, names: Iterable[str]) -> str:
    return name if name not in names else _unlike(f"{name}_", names)


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


def _open_parquet(
    path: Path, vector_column: str | None, id_column: str | None, stamp: str
) -> Source:
    pyarrow = _import_pyarrow("parquet")
    with pyarrow.parquet.ParquetFile(path, **_PARQUET_OPTIONS) as file:
        schema, rows, ngroups = file.schema_arrow, file.metadata.num_rows, file.num_row_groups
        sizes = [file.metadata.row_group(i).num_rows for i in range(ngroups)]

    def read(columns: list[str], batch_rows: int, groups: Sequence[int] | None) -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(path, **_PARQUET_OPTIONS) as file:
            yield from file.iter_batches(batch_rows, columns=columns, row_groups=groups)

    return _open_arrow(str(path), schema, rows, sizes, read, vector_column, id_column, stamp)


def _open_frame(
    frame: Any, package: str, vector_column: str | None, id_column: str | None
) -> Source:
    """A DataFrame, or one of Arrow's tables and readers."""
    pyarrow = _import_pyarrow()
    if package == "pandas":
        frame = pyarrow.Table.from_pandas(frame, preserve_index=False)
    elif package == "polars":
        frame = frame.to_arrow()
    if isinstance(frame, pyarrow.RecordBatchReader):
        tables = (pyarrow.Table.from_batches([batch]) for batch in frame if len(batch))
        return _open_iterable(
            (_open_frame(table, "pyarrow", vector_column, id_column) for table in tables),
            vector_column,
            id_column,
        )
    if isinstance(frame, pyarrow.RecordBatch):
        frame = pyarrow.Table.from_batches([frame])
    if not isinstance(frame, pyarrow.Table):
        raise TypeError(f"expected a frame or a table, got {type(frame).__name__}")

    def read(columns: list[str], batch_rows: int, groups: Sequence[int] | None) -> Iterator[Any]:
        # one chunk per column first, or batches would end where chunks do
        yield from frame.select(columns).combine_chunks().to_batches(batch_rows)

    return _open_arrow(
        "frame", frame.schema, len(frame), [len(frame)], read, vector_column, id_column
    )


def _import_pyarrow(*modules: str) -> Any:
    try:
        import pyarrow  # type: ignore[import-untyped, unused-ignore]

        for module in modules:
            importlib.import_module(f"pyarrow.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'reading parquet and frames needs pyarrow; run pip install "pybq[parquet]"'
        ) from error
    return pyarrow


def _open_arrow(
    source: str,
    schema: Any,
    rows: int,
    groups: Sequence[int],
    read_arrow: Callable[[list[str], int, Sequence[int] | None], Iterator[Any]],
    vector_column: str | None,
    id_column: str | None,
    stamp: str = "",
) -> Source:
    """Columns that `read_arrow` reads: their names, rows in a batch, row groups (None: all)."""
    fields = {field.name: field.type for field in schema}
    candidates = [name for name, kind in fields.items() if _is_vector(kind)]
    name = _choose(source, fields, candidates, vector_column, "vectors")
    if not _is_vector(fields[name]):
        raise ValueError(f"{source}: {name}: expected lists of numbers, got {fields[name]}")
    dim = getattr(fields[name], "list_size", 0)
    if not dim:  # of any length: the first row tells
        first = next(read_arrow([name], 1, None), None)
        dim = len(first.column(0)[0].as_py() or ()) if first is not None else 0
    if not dim:
        raise ValueError(f"{source}: {name}: expected a vector in the first row")
    id_name = _choose_id(source, fields, id_column)
    types = {n: _arrow_type(kind) for n, kind in fields.items() if n not in (name, id_name)}
    default_rows = max(1, BATCH_NBYTES // (4 * dim))

    def read(columns: frozenset[str], batch_rows: int | None) -> Iterator[Batch]:
        wanted = [name, *([id_name] if id_name else []), *sorted(columns & set(types))]
        start = 0
        for batch in read_arrow(wanted, batch_rows or default_rows, None):
            vectors = _arrow_vectors(source, batch.column(name), dim, start)
            ids = batch.column(id_name).to_pylist() if id_name else None
            further = wanted[1 + bool(id_name) :]
            yield Batch(ids, vectors, {n: batch.column(n).to_pylist() for n in further})
            start += len(vectors)

    def sample(n: int) -> NDArray[Any]:
        parts = [np.empty((0, dim), np.float32)]
        if len(groups) >= _SAMPLE_GROUPS:  # the first rows of some groups
            chosen = spread(len(groups), 4 * _SAMPLE_GROUPS).tolist()
            each = -(-n // len(chosen))
            for i in chosen:
                for batch in islice(read_arrow([name], each, [i]), 1):
                    parts.append(_arrow_vectors(source, batch.column(name), dim, 0))
            return np.concatenate(parts)[:n]
        wanted = spread(sum(groups), n)
        start = 0
        for batch in read_arrow([name], default_rows, None):
            here = wanted[(wanted >= start) & (wanted < start + len(batch))] - start
            parts.append(_arrow_vectors(source, batch.column(name), dim, start)[here])
            start += len(batch)
        return np.concatenate(parts)

    return Source(
        source,
        rows,
        dim,
        (_arrow_type(fields[id_name]) or "text") if id_name else "bigint",
        tuple(types),
        {n: kind for n, kind in types.items() if kind is not None},
        (),
        f"{rows} x {dim}, {name} by {id_name}, {stamp}",
        read,
        sample,
    )


def _is_vector(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not listed:
        return False
    return bool(types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


def _arrow_type(kind: pyarrow.DataType) -> str | None:
    """The SQL type for values of an Arrow type."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_integer(kind):
        return "bigint"
    if types.is_floating(kind):
        return "double precision"
    if types.is_boolean(kind):
        return "boolean"
    if types.is_date(kind):
        return "date"
    if types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    if types.is_time(kind):
        return "time"
    if types.is_duration(kind):
        return "interval"
    if types.is_decimal(kind):
        return "numeric"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "bytea"
    if types.is_struct(kind):
        return "jsonb"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = _arrow_type(kind.value_type)
        return None if item is None or item.endswith("[]") else f"{item}[]"
    return None


def _arrow_vectors(source: str, column: pyarrow.Array, dim: int, start: int) -> NDArray[Any]:
    from pyarrow import compute

    lengths = compute.fill_null(compute.list_value_length(column), 0).to_numpy()
    wrong = np.flatnonzero(lengths != dim)
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{source}: row {start + row}: expected {dim} dimensions, got {lengths[row]}"
        )
    values = column.flatten()
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))) // dim
        raise ValueError(f"{source}: row {start + row}: expected numbers, got null")
    vectors: NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(-1, dim)
    return vectors


def _choose(
    source: str, names: Mapping[str, Any], candidates: list[str], wanted: str | None, what: str
) -> str:
    """The column asked for; else one of the usual names; else the only one."""
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"{source}: no column {wanted!r} among {', '.join(names)}")
        return wanted
    usual = [name for name in candidates if name in VECTOR_NAMES]
    for found in (usual, candidates):
        if len(found) == 1:
            return found[0]
    raise ValueError(
        f"{source}: expected one column of {what}, got {', '.join(candidates) or 'none'}"
        "; say which with vector_column"
    )


def _choose_id(source: str, names: Mapping[str, Any], wanted: str | None) -> str | None:
    if wanted is not None and wanted not in names:
        raise ValueError(f"{source}: no column {wanted!r} among {', '.join(names)}")
    return wanted or next((name for name in ID_NAMES if name in names), None)
