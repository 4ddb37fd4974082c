"""Parquet files and frames, by way of Arrow."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pybq._codes.arrays import spread
from pybq._loading.source import BATCH_NBYTES, Batch, Source, choose_column, choose_id

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]

# A Parquet file of so many row groups is sampled by group: it need not be read twice.
_SAMPLE_GROUPS = 16
# Read a Parquet file through a buffer per column. Otherwise pyarrow holds a whole row group,
# which may be all of the file: reading one of 150 MB took 590 MB, and 187 this way.
_PARQUET_OPTIONS = {"pre_buffer": False, "buffer_size": 1 << 20}

# kind of an Arrow type, as pyarrow.types asks for it -> SQL type of a column made for it
_SQL_TYPES = {
    "string": "text",
    "large_string": "text",
    "string_view": "text",
    "integer": "bigint",
    "floating": "double precision",
    "boolean": "boolean",
    "date": "date",
    "time": "time",
    "duration": "interval",
    "decimal": "numeric",
    "binary": "bytea",
    "large_binary": "bytea",
    "binary_view": "bytea",
    "struct": "jsonb",
}


def open_parquet(
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


def open_frame(frame: Any, vector_column: str | None, id_column: str | None) -> Source:
    """A DataFrame, or anything else that Arrow can read as a table."""
    pyarrow = _import_pyarrow()
    kind = type(frame).__name__
    try:
        if type(frame).__module__.startswith("pandas."):  # before 2.2 it has no stream
            frame = pyarrow.Table.from_pandas(frame, preserve_index=False)
        elif hasattr(frame, "to_arrow"):  # the stream of polars has types for the latest pyarrow
            frame = frame.to_arrow()
        frame = pyarrow.table(frame)
    except (AttributeError, TypeError, pyarrow.ArrowInvalid) as error:
        raise TypeError(f"expected a frame or a table, got {kind}: {error}") from error

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
    name = choose_column(source, fields, candidates, vector_column, "vectors")
    if not _is_vector(fields[name]):
        raise ValueError(f"{source}: {name}: expected lists of numbers, got {fields[name]}")
    dim = getattr(fields[name], "list_size", 0)
    if not dim:  # of any length: the first row tells
        first = next(read_arrow([name], 1, None), None)
        dim = len(first.column(0)[0].as_py() or ()) if first is not None else 0
    if not dim:
        raise ValueError(f"{source}: {name}: expected a vector in the first row")
    id_name = choose_id(source, fields, id_column)
    types = {n: _arrow_type(kind) for n, kind in fields.items() if n not in (name, id_name)}
    default_rows = max(1, BATCH_NBYTES // (4 * dim))

    def read(columns: frozenset[str], batch_rows: int | None) -> Iterator[Batch]:
        further = sorted(columns & set(types))
        wanted = [name, *([id_name] if id_name else []), *further]
        start = 0
        for batch in read_arrow(wanted, batch_rows or default_rows, None):
            yield make_batch(source, batch, name, id_name, further, dim, start)
            start += len(batch)

    def sample(n: int) -> NDArray[Any]:
        parts = [np.empty((0, dim), np.float32)]
        if len(groups) >= _SAMPLE_GROUPS:  # the first rows of some groups
            chosen = spread(len(groups), 4 * _SAMPLE_GROUPS).tolist()
            each = -(-n // len(chosen))
            for i in chosen:
                for batch in islice(read_arrow([name], each, [i]), 1):
                    parts.append(read_vectors(source, batch.column(name), dim, 0))
            return np.concatenate(parts)[:n]
        wanted = spread(sum(groups), n)
        start = 0
        for batch in read_arrow([name], default_rows, None):
            here = wanted[(wanted >= start) & (wanted < start + len(batch))] - start
            parts.append(read_vectors(source, batch.column(name), dim, start)[here])
            start += len(batch)
        return np.concatenate(parts)

    return Source(
        source,
        rows,
        dim,
        id_name is not None,
        (_arrow_type(fields[id_name]) or "text") if id_name else "bigint",
        tuple(types),
        {n: kind for n, kind in types.items() if kind is not None},
        (),
        f"{rows} x {dim}, {name} by {id_name}, {stamp}",
        read,
        sample,
    )


def _is_list(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_vector(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return _is_list(kind) and bool(
        types.is_floating(kind.value_type) or types.is_integer(kind.value_type)
    )


def _arrow_type(kind: pyarrow.DataType) -> str | None:
    """The SQL type for values of an Arrow type."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if _is_list(kind):
        item = _arrow_type(kind.value_type)
        return None if item is None or item.endswith("[]") else f"{item}[]"
    if types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    for name, sql_type in _SQL_TYPES.items():
        is_kind = getattr(types, f"is_{name}", None)  # not all are known to every pyarrow
        if is_kind is not None and is_kind(kind):
            return sql_type
    return None


def make_batch(
    source: str,
    batch: pyarrow.RecordBatch,
    vector_column: str,
    id_column: str | None,
    columns: Sequence[str],
    dim: int,
    start: int,
) -> Batch:
    """Make a batch of one of Arrow, whose first row is row `start` of the source."""
    return Batch(
        batch.column(id_column).to_pylist() if id_column else None,
        read_vectors(source, batch.column(vector_column), dim, start),
        {name: batch.column(name).to_pylist() for name in columns},
    )


def read_vectors(source: str, column: pyarrow.Array, dim: int, start: int) -> NDArray[Any]:
    """Return the vectors of a column, shape (n, dim): where Arrow has them, if none is missing.

    Of lists of numbers, or of binary: float32, the least byte first.
    """
    from pyarrow import compute

    binary = _is_binary(column.type)
    find_lengths = compute.binary_length if binary else compute.list_value_length
    lengths = compute.fill_null(find_lengths(column), 0).to_numpy(zero_copy_only=False)
    wanted, unit = (4 * dim, "bytes") if binary else (dim, "dimensions")
    wrong = np.flatnonzero(lengths != wanted)
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{source}: row {start + row}: expected {wanted} {unit}, got {lengths[row]}"
        )
    if binary:
        return _read_binary(column, dim)
    values = column.flatten()
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))) // dim
        raise ValueError(f"{source}: row {start + row}: expected numbers, got null")
    vectors: NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(-1, dim)
    return vectors


def find_dim(column: pyarrow.Array) -> int:
    """Return the number of dimensions of the first vector of a column that has some."""
    first = column[0].as_py() or ()
    return len(first) // 4 if _is_binary(column.type) else len(first)


def _is_binary(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    )


def _read_binary(column: pyarrow.Array, dim: int) -> NDArray[Any]:
    """Return the vectors of values that are all there, and of one length."""
    from pyarrow import types

    if len(column) == 0:
        return np.empty((0, dim), np.float32)
    *_, offsets, data = column.buffers()
    if types.is_fixed_size_binary(column.type):
        first = 4 * dim * column.offset
    else:
        kind = np.int64 if types.is_large_binary(column.type) else np.int32
        first = int(np.frombuffer(offsets, kind)[column.offset])
    vectors: NDArray[Any] = np.frombuffer(data, "<f4", len(column) * dim, first)
    return vectors.reshape(-1, dim)
