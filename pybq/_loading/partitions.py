"""Partitions of a data frame that many processes write: each exactly once, whoever tries again.

A partition is a batch of `bq_loads`: its source is the job, its number the partition's, whichever
attempt of whichever process writes it. Its rows, its statistics and its record are one transaction.
Attempts at one partition take turns, by an advisory lock; the later ones find the record, and
read their rows only to see that they are the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import psycopg
from numpy.typing import NDArray

from pybq._catalog import registry
from pybq._catalog.database import BlockingDatabase, Database, run
from pybq._catalog.layout import Layout
from pybq._catalog.opening import open_table
from pybq._catalog.schema import OpenOptions
from pybq._choice.statistics import Statistics
from pybq._choice.strategy import Decision, choose_by_sample
from pybq._codes.arrays import as_vectors
from pybq._codes.metric import Metric
from pybq._codes.quantizer import Quantizer
from pybq._loading.arrow import find_dim, make_batch, read_vectors
from pybq._loading.ingest import check_columns, check_keys, decide, write_rows
from pybq._loading.source import choose_column, choose_id
from pybq.errors import RowError, TableError

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]

# A machine that went away without a word is found out after a minute and a half, and not after two
# hours: until then other attempts at its partition wait.  In seconds, and the number of tries.
KEEPALIVES = {"tcp_keepalives_idle": 60, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}


class TargetOptions(TypedDict, total=False):
    """What is written from a frame, and where it goes; see `pybq.spark.write`."""

    vector_column: str | None
    id_column: str | None
    columns: Sequence[str] | None
    schema: str | None
    column: str | None


@dataclass(frozen=True, slots=True)
class Target:
    """What all partitions of a job have in common; can be pickled."""

    dsn: str
    table: str
    schema: str  # that of the table, wherever it was found
    column: str  # which is searched
    job: str
    dim: int
    vector_column: str
    id_column: str | None
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a partition: its rows, and whether this attempt wrote them."""

    number: int
    rows: int
    written: bool


class Checksum:
    """Of rows in any order: a partition that came by a shuffle has its rows in another each time.

    Each row has a hash of 64 bits of its key and of its vector in float32, and the sum of these is
    that of the rows. It tells what changed by accident; who wants to can make another one like it.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0
        self._weights: NDArray[np.uint64] | None = None

    def __str__(self) -> str:
        return f"{self._sum:016x}"

    def add(self, ids: Sequence[Any] | NDArray[Any] | None, vectors: NDArray[Any]) -> None:
        """Add rows: vectors of shape (n, dim), as many keys."""
        n, dim = vectors.shape
        if self._weights is None:
            # splitmix64 again: the streams of NumPy's generators may differ between versions
            steps = np.arange(1, dim + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            self._weights = _mix(steps) | np.uint64(1)
        with np.errstate(over="ignore"):
            exact = np.ascontiguousarray(vectors, np.float32)
        words = exact.view(np.uint64 if dim % 2 == 0 else np.uint32)
        hashes = np.einsum("ij,j->i", words, self._weights[: words.shape[1]], casting="unsafe")
        if ids is not None:
            hashes = _mix(hashes) + _hash_keys(ids)
        self._sum = (self._sum + int(_mix(hashes).sum(dtype=np.uint64))) % (1 << 64)
        self.rows += n


def _mix(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread each hash over all its bits: the end of splitmix64 (Steele et al., OOPSLA 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    mixed: NDArray[np.uint64] = hashes ^ (hashes >> np.uint64(31))
    return mixed


def _hash_keys(ids: Sequence[Any] | NDArray[Any]) -> NDArray[np.uint64]:
    """Return a hash of each key, the same in every process, which Python's own are not."""
    if all(type(key) is int and -(1 << 63) <= key < 1 << 63 for key in ids):
        return _mix(np.array(ids, np.int64).view(np.uint64))
    texts = (repr(key).encode(errors="surrogatepass") for key in ids)
    hashes = [int.from_bytes(blake2b(text, digest_size=8).digest(), "little") for text in texts]
    return np.array(hashes, np.uint64)


# -- before any partition ----------------------------------------------------------------


def choose_vectors(frame: Mapping[str, bool], wanted: str | None) -> str:
    """Which column of a frame has the vectors; it says of each whether it could be that one.

    The one asked for; else one of a usual name; else the only one.
    """
    fitting = [name for name, fits in frame.items() if fits]
    return choose_column("the frame", frame, fitting, wanted, "vectors")


def prepare(
    dsn: str,
    table: str,
    job: str,
    frame: Mapping[str, bool],
    sample: Callable[[str, int], NDArray[np.float32]],
    options: TargetOptions,
) -> Target:
    """Check what is to be written, and decide on axes or rotation if nobody has.

    `frame` has the names of the frame's columns, and whether each could be the vectors. `sample`
    is called only for a decision, with the name and the number of dimensions.
    """
    if not job:
        raise ValueError("expected a name of the job that it has again when it is resumed")
    unknown = sorted(set(options) - set(TargetOptions.__annotations__))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}")
    with psycopg.connect(dsn, autocommit=True) as conn:
        db = BlockingDatabase(conn)
        return run(_prepare(db, dsn, table, job, frame, sample, options))


async def _prepare(
    db: Database,
    dsn: str,
    table: str,
    job: str,
    frame: Mapping[str, bool],
    sample: Callable[[str, int], NDArray[np.float32]],
    options: TargetOptions,
) -> Target:
    layout = await _open(db, table, options.get("schema"), options.get("column"))
    vectors = choose_vectors(frame, options.get("vector_column"))
    wanted = options.get("id_column")
    key = choose_id("the frame", frame, wanted) if layout.has_key or wanted else None
    check_keys(layout, key is not None, "error")
    if len(layout.key) > 1:
        raise TableError(
            f"table {table!r} has a primary key of several columns, expected one; use Table.load"
        )
    rest = [name for name in frame if name not in (vectors, key)]
    columns = options.get("columns")
    if columns is None:
        columns = [name for name in rest if name in layout.columns]
    for name in columns:
        if name not in rest:
            known = ", ".join(rest) or "none but its vectors"
            raise ValueError(f"the frame: no column {name!r} to carry along; it has {known}")
    check_columns(layout, 0, None, dict.fromkeys(columns, ()))
    async with db.transaction():
        await decide(db, layout, partial(sample, vectors, layout.dim))
    return Target(
        *(dsn, layout.name, layout.schema, layout.searched.name, job, layout.dim),
        *(vectors, key, tuple(columns)),
    )


def check_partitions(target: Target, partitions: int) -> None:
    """Refuse to go on with a job whose rows were divided into another number of partitions."""
    with psycopg.connect(target.dsn, autocommit=True) as conn:
        run(_check_partitions(BlockingDatabase(conn), target, partitions))


async def _check_partitions(db: Database, target: Target, partitions: int) -> None:
    layout = await _open(db, target.table, target.schema, target.column)
    for done in await registry.find_batches(db, layout, target.job):
        there = done.fingerprint.partition(" ")[0]
        if there != str(partitions):
            raise TableError(
                f"{target.job} was begun with {there} partitions, and now there are {partitions}, "
                "of other rows; read the frame as it was read then, or, for other rows, give the "
                "job another name"
            )


async def _open(db: Database, table: str, schema: str | None, column: str | None) -> Layout:
    options: OpenOptions = {}
    if schema is not None:
        options["schema"] = schema
    if column is not None:
        options["column"] = column
    return await open_table(db, table, None, None, options)


# -- each partition, where it is ---------------------------------------------------------


def write_partition(
    target: Target, number: int, partitions: int, batches: Iterable[pyarrow.RecordBatch]
) -> Written:
    """Write the rows of a partition if nobody has, with their statistics and their record.

    Nothing is written if `batches` raises, nor if it ends with no row.

    Raises
    ------
    RowError
        If a vector cannot be encoded; the row is that of the partition.
    TableError
        If other rows were written for this partition.
    """
    with psycopg.connect(target.dsn, autocommit=True) as conn:
        # each statement sees what was committed while it waited
        conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        return run(_write(BlockingDatabase(conn), target, number, partitions, batches))


async def _write(
    db: Database,
    target: Target,
    number: int,
    partitions: int,
    batches: Iterable[pyarrow.RecordBatch],
) -> Written:
    layout = await _open(db, target.table, target.schema, target.column)
    name = f"partition {number} of {target.job}"
    statistics = registry.no_statistics(layout)
    checksum = Checksum()
    async with db.transaction():
        for setting, value in KEEPALIVES.items():
            await db.execute(f"SET LOCAL {setting} = {value}")
        await registry.lock_batch(db, layout, target.job, number)
        done = await registry.find_batch(db, layout, target.job, number)
        quantizer = await decide(db, layout, _undecided)
        for arrow in batches:
            columns = target.vector_column, target.id_column, target.columns
            batch = make_batch(name, arrow, *columns, layout.dim, checksum.rows)
            vectors = as_vectors(batch.vectors, layout.dim)
            if done is None:
                try:
                    _, more = await write_rows(
                        db, layout, quantizer, batch.ids, vectors, batch.columns
                    )
                except RowError as error:
                    row, reason = checksum.rows + error.row, f"{error.reason} ({name})"
                    raise RowError(row, error.id, reason) from None
                statistics.merge(more)
            checksum.add(batch.ids, vectors)
        rows = checksum.rows
        fingerprint = f"{partitions} partitions, {rows} rows in this one, checksum {checksum}"
        if done is not None and done.fingerprint != fingerprint:
            raise TableError(
                f"{name} is not what was written: it was {done.fingerprint}, it is {fingerprint}; "
                "write the frame to files first and read these, so that each partition has the "
                "same rows every time, or, for other rows, give the job another name"
            )
        if done is None and rows:
            record = registry.LoadedBatch(number, rows, fingerprint)
            await registry.record_batch(db, layout, target.job, record, rows)
            # Last, as others wait for its row.
            await registry.add_statistics(db, layout, statistics)
    return Written(number, rows, done is None)


def _undecided() -> NDArray[np.float32]:
    raise TableError("nothing says any longer whether to rotate; run the job again")


# -- without a database ------------------------------------------------------------------


def encode_batches(
    batches: Iterable[pyarrow.RecordBatch],
    dim: int,
    transform: int,
    cut: Literal["rms", "mean"],
    vector_column: str,
    columns: Sequence[str],
    code_column: str,
) -> Iterator[pyarrow.RecordBatch]:
    """Yield some of the columns, and behind them the codes of the vectors, as binary."""
    import pyarrow

    quantizer = Quantizer(dim, transform, cut, threads=1)  # others have the other cores
    start = 0
    for batch in batches:
        vectors = read_vectors("partition", batch.column(vector_column), dim, start)
        codes = _encode(quantizer, vectors, start)
        start += len(vectors)
        # as Arrow has binary: where each value begins, and all the bytes
        places = np.arange(len(codes) + 1, dtype=np.int32) * quantizer.nbytes
        buffers = [None, pyarrow.py_buffer(places), pyarrow.py_buffer(codes)]
        column = pyarrow.Array.from_buffers(pyarrow.binary(), len(codes), buffers)
        arrays = [*(batch.column(name) for name in columns), column]
        yield pyarrow.RecordBatch.from_arrays(arrays, names=[*columns, code_column])


def _encode(quantizer: Quantizer, vectors: NDArray[Any], start: int) -> NDArray[np.uint8]:
    try:
        return quantizer.encode(vectors)
    except ValueError:
        for i, vector in enumerate(vectors):
            try:
                quantizer.encode(vector)
            except ValueError as error:
                raise RowError(start + i, None, str(error)) from None
        raise


def summarise(
    batches: Iterable[pyarrow.RecordBatch], vector_column: str, normalize: bool
) -> Statistics | None:
    """Return the statistics of a partition; None if it has no rows."""
    statistics = None
    for batch in batches:
        if len(batch) == 0:
            continue
        column = batch.column(vector_column)
        if statistics is None:
            statistics = Statistics(find_dim(column), normalize)
        statistics.update(read_vectors("partition", column, statistics.dim, statistics.count))
    return statistics


def take_first(
    batches: Iterable[pyarrow.RecordBatch], vector_column: str, dim: int | None, rows: int
) -> NDArray[np.float32]:
    """Return up to so many vectors from the beginning; those that are not finite are left out."""
    parts: list[NDArray[np.float32]] = []
    for batch in batches:
        if rows <= 0:
            break
        if len(batch):
            column = batch.column(vector_column).slice(0, rows)
            dim = dim or find_dim(column)
            with np.errstate(over="ignore"):
                part = read_vectors("partition", column, dim, 0).astype(np.float32)
            parts.append(part[np.isfinite(part).all(axis=1)])
            rows -= len(part)
    return np.concatenate(parts) if parts else np.empty((0, dim or 0), np.float32)


def choose_by_rows(rows: NDArray[np.float32], metric: Metric) -> Decision:
    """Decide on axes or rotation from a sample, as the first ingest does."""
    if len(rows) == 0:
        raise ValueError("expected vectors to decide from, got no rows")
    statistics = Statistics(rows.shape[1], normalize=metric == "cosine")
    statistics.update(rows)
    return choose_by_sample(statistics, rows, metric)
