"""Files of vectors -> batches of arrays: .npy, .npz, .parquet, .fvecs, .bvecs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]

# Bytes of vectors that a batch of a file holds which cannot be mapped into memory.
BATCH_NBYTES = 16 << 20
# Read a Parquet file through a buffer per column. Otherwise pyarrow holds a whole row group,
# which may be all of the file: reading one of 150 MB took 590 MB, and 187 this way.
_PARQUET_OPTIONS = {"pre_buffer": False, "buffer_size": 1 << 20}

# Names under which a file may keep its vectors and its primary keys.
VECTOR_NAMES = ("embedding", "embeddings", "vector", "vectors")
ID_NAMES = ("id", "ids")

# numpy.dtype.kind -> SQL type of a column made for it
_SQL_TYPES = {"i": "bigint", "u": "bigint", "f": "double precision", "b": "boolean", "U": "text"}


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
    """A file of vectors, of which nothing has been read but what is said here.

    Attributes
    ----------
    path : Path
    rows, dim : int
        Shape of the vectors.
    id_type : str
        SQL type that fits the primary keys; bigint if there are none.
    column_types : dict of str to str
        Further columns of the file: name, and the SQL type that fits.
    skipped : tuple of str
        Columns of types that fit no simple SQL type, and arrays of another length; not read.
    """

    path: Path
    rows: int
    dim: int
    id_type: str
    column_types: Mapping[str, str]
    skipped: tuple[str, ...]
    _read: Callable[[frozenset[str]], Iterator[Batch]]

    def batches(self, columns: Sequence[str] = ()) -> Iterator[Batch]:
        """Read the file from its beginning, with the further columns named."""
        return self._read(frozenset(columns))


def open_source(
    path: str | os.PathLike[str], vector_column: str | None = None, id_column: str | None = None
) -> Source:
    """Find out what a file of vectors holds.

    Parameters
    ----------
    path : path
        - ``.npy``: an array of shape (n, dim), mapped into memory.
        - ``.npz``: arrays by name, read whole: vectors, ids, and further columns of length n.
        - ``.parquet``: a list column of numbers, and others; read in batches. Needs pyarrow.
        - ``.fvecs``, ``.bvecs``: rows of float32 or uint8, each after its dim as int32, mapped.
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

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/a.npz", vectors=np.eye(3), title=np.array(["a", "b", "c"]))
    ...     source = open_source(f"{folder}/a.npz")
    ...     (batch,) = source.batches(["title"])
    >>> source.rows, source.dim, dict(source.column_types), batch.columns["title"][1]
    (3, 3, {'title': 'text'}, 'b')
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".npz":
        with np.load(path) as archive:
            arrays = dict(archive)
        return _open_arrays(path, arrays, vector_column, id_column)
    if path.suffix == ".parquet":
        return _open_parquet(path, vector_column, id_column)
    for option, value in (("vector_column", vector_column), ("id_column", id_column)):
        if value is not None:
            raise ValueError(f"{path}: has no columns, so {option} {value!r} means nothing")
    if path.suffix == ".npy":
        return _open_arrays(path, {"vectors": np.load(path, mmap_mode="r")}, None, None)
    if path.suffix in (".fvecs", ".bvecs"):
        return _open_arrays(path, {"vectors": _map_vecs(path)}, None, None)
    raise ValueError(f"{path}: expected a file .npy, .npz, .parquet, .fvecs or .bvecs")


def _open_arrays(
    path: Path, arrays: dict[str, NDArray[Any]], vector_column: str | None, id_column: str | None
) -> Source:
    # a single one need not be guessed, and is checked below
    candidates = [n for n, array in arrays.items() if array.ndim == 2 or len(arrays) == 1]
    vectors = arrays.pop(_choose(path, arrays, candidates, vector_column, "vectors"))
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: expected vectors of shape (n, dim), got {vectors.shape} of {vectors.dtype}"
        )
    id_name = _choose_id(path, arrays, id_column)
    ids = arrays.pop(id_name) if id_name else None
    if ids is not None and ids.shape != vectors.shape[:1]:
        raise ValueError(f"{path}: {id_name}: expected shape ({len(vectors)},), got {ids.shape}")
    types = {
        name: _SQL_TYPES.get(array.dtype.kind) if array.shape == vectors.shape[:1] else None
        for name, array in arrays.items()
    }

    def read(columns: frozenset[str]) -> Iterator[Batch]:
        # lists of str: what the encoder of COPY takes
        kept = {name: array for name, array in arrays.items() if name in columns}
        yield Batch(
            ids.tolist() if ids is not None and ids.dtype.kind == "U" else ids,
            vectors,
            {n: a.tolist() if a.dtype.kind == "U" else a for n, a in kept.items()},
        )

    rows, dim = vectors.shape
    return Source(
        path,
        rows,
        dim,
        "bigint" if ids is None else _SQL_TYPES.get(ids.dtype.kind, "text"),
        {name: kind for name, kind in types.items() if kind is not None},
        tuple(name for name, kind in types.items() if kind is None),
        read,
    )


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


def _open_parquet(path: Path, vector_column: str | None, id_column: str | None) -> Source:
    try:
        import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'reading parquet needs pyarrow; run pip install "pybq[parquet]"'
        ) from error
    with pyarrow.parquet.ParquetFile(path, **_PARQUET_OPTIONS) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        fields = {field.name: field.type for field in schema}
        candidates = [name for name, kind in fields.items() if _is_vector(kind)]
        name = _choose(path, fields, candidates, vector_column, "vectors")
        if not _is_vector(fields[name]):
            raise ValueError(f"{path}: {name}: expected lists of numbers, got {fields[name]}")
        dim = getattr(fields[name], "list_size", 0)
        if not dim:  # of any length: the first row tells
            first = next(file.iter_batches(1, columns=[name]), None)
            dim = len(first.column(0)[0] or ()) if first is not None else 0
    if not dim:
        raise ValueError(f"{path}: {name}: expected at least one vector")
    id_name = _choose_id(path, fields, id_column)
    types = {n: _arrow_type(kind) for n, kind in fields.items() if n not in (name, id_name)}

    def read(columns: frozenset[str]) -> Iterator[Batch]:
        wanted = [name, *([id_name] if id_name else []), *sorted(columns & set(types))]
        batch_rows = max(1, BATCH_NBYTES // (4 * dim))
        start = 0
        with pyarrow.parquet.ParquetFile(path, **_PARQUET_OPTIONS) as file:
            for batch in file.iter_batches(batch_rows, columns=wanted):
                vectors = _arrow_vectors(path, batch.column(name), dim, start)
                ids = batch.column(id_name).to_pylist() if id_name else None
                further = wanted[1 + bool(id_name) :]
                yield Batch(ids, vectors, {n: batch.column(n).to_pylist() for n in further})
                start += len(vectors)

    return Source(
        path,
        rows,
        dim,
        (_arrow_type(fields[id_name]) or "text") if id_name else "bigint",
        {n: kind for n, kind in types.items() if kind is not None},
        tuple(n for n, kind in types.items() if kind is None),
        read,
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
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "bytea"
    return None


def _arrow_vectors(path: Path, column: pyarrow.Array, dim: int, start: int) -> NDArray[Any]:
    from pyarrow import compute

    lengths = compute.fill_null(compute.list_value_length(column), 0).to_numpy()
    wrong = np.flatnonzero(lengths != dim)
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{path}: row {start + row}: expected {dim} dimensions, got {lengths[row]}"
        )
    values = column.flatten()
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))) // dim
        raise ValueError(f"{path}: row {start + row}: expected numbers, got null")
    vectors: NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(-1, dim)
    return vectors


def _choose(
    path: Path, names: Mapping[str, Any], candidates: list[str], wanted: str | None, what: str
) -> str:
    """The column asked for; else one of the usual names; else the only one."""
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"{path}: no column {wanted!r} among {', '.join(names)}")
        return wanted
    usual = [name for name in candidates if name in VECTOR_NAMES]
    for found in (usual, candidates):
        if len(found) == 1:
            return found[0]
    raise ValueError(
        f"{path}: expected one column of {what}, got {', '.join(candidates) or 'none'}"
        "; say which with vector_column"
    )


def _choose_id(path: Path, names: Mapping[str, Any], wanted: str | None) -> str | None:
    if wanted is not None and wanted not in names:
        raise ValueError(f"{path}: no column {wanted!r} among {', '.join(names)}")
    return wanted or next((name for name in ID_NAMES if name in names), None)
