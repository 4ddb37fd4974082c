"""Codes and loads by Dask: each partition encoded, or written exactly once, where it is.

The same as `pybq.spark`, of dask.dataframe. Vectors are in a column of Arrow's lists, or of
objects: lists, arrays, or bytes of float32, the least byte first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pybq._catalog.sample import SAMPLE_ROWS
from pybq._choice.statistics import Statistics
from pybq._choice.strategy import Decision
from pybq._codes.metric import Metric, check_metric
from pybq._codes.quantizer import Quantizer
from pybq._loading.partitions import (
    Target,
    TargetOptions,
    Written,
    check_partitions,
    choose_by_rows,
    choose_vectors,
    encode_batches,
    prepare,
    summarise,
    take_first,
    write_partition,
)
from pybq.errors import needed_by

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped, unused-ignore]
    import pyarrow  # type: ignore[import-untyped, unused-ignore]
    from dask.dataframe import DataFrame

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

__all__ = ["choose", "encode", "statistics", "write"]


def encode(
    frame: DataFrame,
    quantizer: Quantizer,
    vector_column: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    code_column: str = "code",
) -> DataFrame:
    """Make a DataFrame of codes, lazily; parameters and errors are those of `pybq.spark.encode`.

    Returns
    -------
    dask.dataframe.DataFrame
        The columns that are kept, then the codes as bytes, in a column of objects.
    """
    vectors = choose_vectors(_columns(frame), vector_column)
    kept = [n for n in frame.columns if n != vectors] if columns is None else list(columns)
    for name in kept:
        if name not in frame.columns:
            raise ValueError(f"the frame: no column {name!r} among {', '.join(frame.columns)}")
    if code_column in kept:
        raise ValueError(f"the frame has a column {code_column!r}; name another by code_column")
    function = partial(
        encode_batches,
        dim=quantizer.dim,
        transform=quantizer.transform,
        cut=quantizer.cut,
        vector_column=vectors,
        columns=[],
        code_column=code_column,
    )
    meta = frame._meta[kept].assign(**{code_column: np.array([], object)})
    return frame.map_partitions(_encode, function, vectors, kept, code_column, meta=meta)


def statistics(
    frame: DataFrame, vector_column: str | None = None, *, normalize: bool = False
) -> Statistics:
    """Collect the statistics of all vectors, as `pybq.spark.statistics` does."""
    vectors = choose_vectors(_columns(frame), vector_column)
    whole: Statistics | None = None
    for part in _compute(frame[[vectors]], partial(_summarise, vectors, normalize)):
        if whole is None:
            whole = part
        elif part is not None:
            whole.merge(part)
    if whole is None:
        raise ValueError("expected vectors, got no rows")
    return whole


def choose(
    frame: DataFrame, vector_column: str | None = None, *, metric: Metric = "cosine"
) -> Decision:
    """Decide between original axes and rotation, as `pybq.spark.choose` does."""
    check_metric(metric)
    vectors = choose_vectors(_columns(frame), vector_column)
    return choose_by_rows(_sample(frame, vectors, None), metric)


def write(
    frame: DataFrame, dsn: str, table: str, job: str, **options: Unpack[TargetOptions]
) -> int:
    """Write a DataFrame to a table, each partition in a transaction, exactly once.

    All is as with `pybq.spark.write`, but errors, which come as they are.
    """
    target = prepare(dsn, table, job, _columns(frame), partial(_sample, frame), options)
    check_partitions(target, frame.npartitions)
    names = [target.vector_column, *([target.id_column] if target.id_column else [])]
    needed = frame[[*names, *target.columns]]
    results: list[Written] = _compute(needed, partial(_write, target, frame.npartitions))
    return sum(part.rows for part in results if part.written)


def _columns(frame: DataFrame) -> dict[str, bool]:
    """Names of the columns of a frame, and if there may be vectors in each."""
    kinds = {name: str(kind) for name, kind in frame.dtypes.items()}
    return {name: kind == "object" or "list" in kind for name, kind in kinds.items()}


def _sample(frame: DataFrame, vectors: str, dim: int | None) -> NDArray[np.float32]:
    """Return the first rows of each partition, SAMPLE_ROWS of all."""
    rows = -(-SAMPLE_ROWS // frame.npartitions)
    parts = _compute(frame[[vectors]], partial(_take_first, vectors, dim, rows))
    parts = [part for part in parts if len(part)]
    if not parts:
        raise ValueError("expected vectors to decide from, got no rows")
    return np.concatenate(parts)[:SAMPLE_ROWS]


def _compute(frame: DataFrame, function: Any) -> list[Any]:
    """Call a function with the number and the rows of each partition; return the results."""
    with needed_by("pybq.dask"):
        import dask

    parts = frame.to_delayed()
    return list(dask.compute(*(dask.delayed(function)(i, part) for i, part in enumerate(parts))))


# -- in the tasks ------------------------------------------------------------------------


def _batches(rows: pandas.DataFrame) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    yield from pyarrow.Table.from_pandas(rows, preserve_index=False).to_batches()


def _encode(
    rows: pandas.DataFrame, function: Any, vectors: str, kept: Sequence[str], code_column: str
) -> pandas.DataFrame:
    encoded = function(_batches(rows[[vectors]]))
    codes = np.empty(len(rows), object)
    codes[:] = [code for batch in encoded for code in batch.column(0).to_pylist()]
    return rows[list(kept)].assign(**{code_column: codes})


def _summarise(
    vectors: str, normalize: bool, number: int, rows: pandas.DataFrame
) -> Statistics | None:
    return summarise(_batches(rows), vectors, normalize)


def _take_first(
    vectors: str, dim: int | None, n: int, number: int, rows: pandas.DataFrame
) -> NDArray[np.float32]:
    return take_first(_batches(rows), vectors, dim, n)


def _write(target: Target, partitions: int, number: int, rows: pandas.DataFrame) -> Written:
    return write_partition(target, number, partitions, _batches(rows))
