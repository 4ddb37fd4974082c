"""Codes and loads by Spark: each partition encoded, or written exactly once, where it is.

A DataFrame's vectors are arrays of float or double, or binary: float32, the least byte first.
docs/encoding.md shows all of this at work.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    check_partitions,
    choose_by_rows,
    choose_vectors,
    encode_batches,
    prepare,
    summarise,
    take_first,
    write_partition,
)
from pybq.errors import Error, needed_by

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]
    from pyspark.sql import DataFrame

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

__all__ = ["choose", "encode", "statistics", "write"]

# Local property of a job: of how many partitions it is, which a task is not told otherwise.
_PARTITIONS = "pybq.partitions"

_Batches = Iterable["pyarrow.RecordBatch"]


def encode(
    frame: DataFrame,
    quantizer: Quantizer,
    vector_column: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    code_column: str = "code",
) -> DataFrame:
    """Make a DataFrame of codes; as all of Spark's transformations it does nothing yet.

    Parameters
    ----------
    frame : pyspark.sql.DataFrame
    quantizer : Quantizer
        Its dim is that of the vectors. The transform must be known beforehand: that of the table,
        or what `choose` says.
    vector_column : str, optional
        Column of the vectors; else the one with a usual name (embedding, vector), or the only one.
    columns : sequence of str, optional
        Columns to keep beside the codes; left out, all but the vectors.
    code_column : str
        Name of the column of codes.

    Returns
    -------
    pyspark.sql.DataFrame
        The columns that are kept, then the codes as binary: `quantizer.nbytes` bytes each, which
        `bqvec` has on the wire, the same as those of `bq_encode` in SQL.

    Raises
    ------
    ValueError
        If there are no such columns. When the codes are asked for, as Spark's PythonException: if
        a vector is null, has another dim or cannot be encoded; it names the row of the partition.
    """
    from pyspark.sql.types import BinaryType, StructField, StructType

    vectors = choose_vectors(_columns(frame), vector_column)
    kept = [n for n in frame.columns if n != vectors] if columns is None else list(columns)
    for name in kept:
        if name not in frame.columns:
            raise ValueError(f"the frame: no column {name!r} among {', '.join(frame.columns)}")
    fields = [*(frame.schema[name] for name in kept), StructField(code_column, BinaryType())]
    if code_column in kept:
        raise ValueError(f"the frame has a column {code_column!r}; name another by code_column")
    function = partial(
        encode_batches,
        dim=quantizer.dim,
        transform=quantizer.transform,
        cut=quantizer.cut,
        vector_column=vectors,
        columns=kept,
        code_column=code_column,
    )
    needed = frame.select([*kept, *([] if vectors in kept else [vectors])])
    return needed.mapInArrow(function, StructType(fields))


def statistics(
    frame: DataFrame, vector_column: str | None = None, *, normalize: bool = False
) -> Statistics:
    """Collect the statistics of all vectors: of each partition where it is, merged here.

    Parameters
    ----------
    frame : pyspark.sql.DataFrame
    vector_column : str, optional
        As for `encode`.
    normalize : bool
        Scale vectors to norm 1 first, as is done for tables by cosine distance.

    Returns
    -------
    Statistics
        What is known of coordinates is what one pass over all rows would find, up to rounding.
        Searches are of runs of rows that lie together, and so depend on how rows are divided.

    Raises
    ------
    ValueError
        If there is no row, or no such column, or vectors differ in dim.
    """
    vectors = choose_vectors(_columns(frame), vector_column)
    rows = _collect(
        frame.select([vectors]),
        partial(_summarise, vector_column=vectors, normalize=normalize),
    )
    whole: Statistics | None = None
    for row in rows:
        part = Statistics.from_row(pickle.loads(row), normalize)
        if whole is None:
            whole = part
        else:
            whole.merge(part)
    if whole is None:
        raise ValueError("expected vectors, got no rows")
    return whole


def choose(
    frame: DataFrame, vector_column: str | None = None, *, metric: Metric = "cosine"
) -> Decision:
    """Decide between original axes and rotation, from the first rows of every partition.

    Parameters
    ----------
    frame : pyspark.sql.DataFrame
    vector_column : str, optional
        As for `encode`.
    metric : {"cosine", "l2", "inner_product"}
        Which rows are nearest.

    Returns
    -------
    Decision
        Its `transform` is for `Quantizer`, and for `Table.create`.

    Raises
    ------
    ValueError
        If there is no row to decide from.
    """
    check_metric(metric)
    vectors = choose_vectors(_columns(frame), vector_column)
    return choose_by_rows(_sample(frame, vectors, None), metric)


def write(
    frame: DataFrame, dsn: str, table: str, job: str, **options: Unpack[TargetOptions]
) -> int:
    """Write a DataFrame to a table, each partition in a transaction, exactly once.

    Rows go by binary COPY from where Spark has them, with their codes if the table has a column
    of them. Who encodes first decides between axes and rotation, here from the first rows of
    every partition; statistics are added with each partition.

    Parameters
    ----------
    frame : pyspark.sql.DataFrame
        Each partition must have the same rows whenever it is read: of files it has, and of a
        shuffle by keys; not where rows are drawn at random or come from a query that changes.
    dsn : str
        How to connect to the server, from each executor.
    table : str
        Name of the table, as of `Table`; it must exist.
    job : str
        Under this name `bq_loads` has the partitions. Who runs the same job again goes on with it:
        what is there is read and compared, and not written again.
    vector_column, id_column : str, optional
        Columns of vectors and of primary keys; else those with the usual names.
    columns : sequence of str, optional
        Further columns to write; left out, all that both frame and table have.
    schema, column : str, optional
        Schema of the table, and its column of vectors or codes, if there are several.

    Returns
    -------
    int
        Number of rows written; not those that were there.

    Raises
    ------
    TableError
        If there is no such table, or the job was begun with another number of partitions.
    ValueError, TypeError
        If the frame does not fit the table.
    pyspark.errors.PythonException
        If a partition could not be written in as many attempts as Spark makes. It ends with the
        reason: a `RowError`, what the server says, or a `TableError` if a partition has other
        rows than those that were written for it. Partitions that were written stay.

    Notes
    -----
    Attempts at one partition wait for each other, so that speculation gains nothing. The
    transaction of a partition lasts as long as reading it does: vectors that have yet to be made
    are better written to files first. It needs a session of its own cluster, not Spark Connect.
    """
    target = prepare(dsn, table, job, _columns(frame), partial(_sample, frame), options)
    names = [target.vector_column, *([target.id_column] if target.id_column else [])]
    results = _collect(
        frame.select([*names, *target.columns]),
        partial(_write, target=target),
        partial(check_partitions, target),
    )
    written = [pickle.loads(result) for result in results]
    return sum(part.rows for part in written if part.written)


def _columns(frame: DataFrame) -> dict[str, bool]:
    """Names of the columns of a frame, and if there may be vectors in each."""
    with needed_by("pybq.spark"):
        from pyspark.sql.types import ArrayType, BinaryType, NumericType

    return {
        field.name: isinstance(field.dataType, BinaryType)
        or (
            isinstance(field.dataType, ArrayType)
            and isinstance(field.dataType.elementType, NumericType)
        )
        for field in frame.schema.fields
    }


def _sample(frame: DataFrame, vectors: str, dim: int | None) -> NDArray[np.float32]:
    """Return the first rows of each partition, SAMPLE_ROWS of all."""
    function = partial(_take_first, vector_column=vectors, dim=dim)
    parts: list[NDArray[np.float32]] = [
        pickle.loads(row) for row in _collect(frame.select([vectors]), function)
    ]
    if not parts:
        raise ValueError("expected vectors to decide from, got no rows")
    return np.concatenate(parts)[:SAMPLE_ROWS]


def _collect(
    frame: DataFrame,
    function: Callable[..., Iterator[Any]],
    before: Callable[[int], None] = lambda partitions: None,
) -> list[bytes]:
    """Call a function on each partition; return what they yield, pickled.

    `before` is called with the number of partitions, which is known when those shuffles are done
    that they come from.
    """
    if type(frame).__module__.startswith("pyspark.sql.connect"):
        raise TypeError(
            "expected a DataFrame of a session in the cluster, got one of Spark Connect"
        )
    context = frame.sparkSession.sparkContext
    mapped = frame.mapInArrow(partial(_pickled, function=function), "result binary").rdd
    partitions = mapped.getNumPartitions()
    before(partitions)
    context.setLocalProperty(_PARTITIONS, str(partitions))
    try:
        return [bytes(row.result) for row in mapped.collect()]
    finally:
        context.setLocalProperty(_PARTITIONS, None)


# -- in the tasks ------------------------------------------------------------------------


def _pickled(
    batches: _Batches, function: Callable[..., Iterator[Any]]
) -> Iterator[pyarrow.RecordBatch]:
    """Yield a batch of each result."""
    import pyarrow
    from pyspark import TaskContext

    task = TaskContext.get()
    for result in function(
        batches, number=task.partitionId(), of=int(task.getLocalProperty(_PARTITIONS))
    ):
        column = pyarrow.array([pickle.dumps(result)], pyarrow.binary())
        yield pyarrow.RecordBatch.from_arrays([column], names=["result"])


def _summarise(
    batches: _Batches, vector_column: str, normalize: bool, number: int, of: int
) -> Iterator[Any]:
    found = summarise(batches, vector_column, normalize)
    if found is not None:
        yield found.to_row()


def _take_first(
    batches: _Batches, vector_column: str, dim: int | None, number: int, of: int
) -> Iterator[Any]:
    found = take_first(batches, vector_column, dim, -(-SAMPLE_ROWS // of))
    if len(found):
        yield found


def _write(batches: _Batches, target: Target, number: int, of: int) -> Iterator[Any]:
    yield write_partition(target, number, of, _until_the_end(batches))


def _until_the_end(batches: _Batches) -> Iterator[pyarrow.RecordBatch]:
    """Yield the batches, and raise if there would have been more.

    Where the JVM is gone, or what it reads from has failed, the stream of batches just ends, and
    Arrow takes that for its end: half a partition would be committed. But behind what is complete
    the JVM sends a word that nothing follows.
    """
    yield from batches
    stream = _find_stream()
    if stream is not None and not stream.peek(1):
        raise Error("the partition ended before its end: its executor, or what it reads, failed")


def _find_stream() -> Any:
    """Find what this process of PySpark reads from; None if it is no longer called so.

    Then the checksum tells the next attempt that half a partition was written.
    """
    frame = sys._getframe()
    while frame is not None:
        stream = frame.f_locals.get("infile")
        if frame.f_code.co_name == "main" and hasattr(stream, "peek"):
            return stream
        frame = frame.f_back  # type: ignore[assignment]
    return None
