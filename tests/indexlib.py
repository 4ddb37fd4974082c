"""What the tests of the index share: data with traps, tables, the comparison with a sort."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import psycopg
import pytest
from databases import Databases
from shared import Conn, Vectors

import pybq
from pybq import Code, Quantizer, Query, embedded
from pybq.psycopg import register_bq

OPERATORS = ("<~>", "<=>", "<#>", "<->")

# of the fixture `items`
DIM = 16
ROWS = 4000
LISTS = 40
OPTIONS = f"lists = {LISTS}, probes = 1"


@dataclass(frozen=True)
class Column:
    """A kind of indexed column: how it is declared, filled, indexed and asked."""

    name: str
    type: str
    opclass: str
    operators: tuple[str, ...]

    @property
    def key(self) -> str:
        """The column in CREATE INDEX."""
        return f"{self.name} {self.opclass}"

    @property
    def index(self) -> str:
        """The name of the index of table `items`."""
        return f"items_{self.name}"

    def values(self, vectors: Vectors, transform: int = 0) -> list[Any]:
        """What is stored for vectors of shape (n, dim)."""
        if self.type == "bqvec":
            return [Code(code) for code in Quantizer(vectors.shape[1], transform).encode(vectors)]
        return [self._to_pgvector(vector) for vector in vectors]

    def operand(self, operator: str, vector: Vectors, transform: int = 0) -> Any:
        """The right side of an operator for a query vector."""
        if self.type != "bqvec":
            return self._to_pgvector(vector)
        quantizer = Quantizer(len(vector), transform)
        if operator == "<~>":
            return Code(quantizer.encode(vector))
        return Query(quantizer.rotate(vector), transform)

    def _to_pgvector(self, vector: Vectors) -> Any:
        import pgvector

        return pgvector.Vector(vector) if self.type == "vector" else pgvector.HalfVector(vector)


CODES = Column("code", "bqvec", "bqvec_distance_ops", OPERATORS)
METRICS = {"cosine": "<=>", "ip": "<#>", "l2": "<->"}


def vector_column(type: str, metric: str) -> Column:
    """A column of pgvector with the operator class for a metric."""
    return Column("embedding", type, f"{type}_{metric}_ops", (METRICS[metric],))


COSINE, IP, L2 = (vector_column("vector", metric) for metric in METRICS)
HALF_COSINE, HALF_IP, HALF_L2 = (vector_column("halfvec", metric) for metric in METRICS)
VECTOR_COLUMNS = [COSINE, IP, L2, HALF_COSINE, HALF_IP, HALF_L2]


def of_columns(*columns: Column) -> pytest.MarkDecorator:
    """For tests of `column`, by turns each of these."""
    return pytest.mark.parametrize("column", columns, ids=lambda column: column.opclass)


each_column = of_columns(*VECTOR_COLUMNS)
each_metric = of_columns(COSINE, IP, L2)


def connect(dsn: str) -> Conn:
    """Connect, with bq's types registered, and pgvector's if they are there."""
    # Else psycopg prepares what comes often, and drops it at ROLLBACK with what tests prepared.
    conn = psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
    register_bq(conn)
    _register_vector(conn)
    return conn


def _register_vector(conn: Conn) -> bool:
    if conn.execute("SELECT to_regtype('vector')").fetchone() == (None,):
        return False
    from pgvector.psycopg import register_vector

    register_vector(conn)
    return True


def prepare(conn: Conn, column: Column) -> None:
    """Make a database ready for a kind of column; skips the test where there is no pgvector."""
    if column.type == "bqvec":
        return
    if not _register_vector(conn):
        pytest.skip("the server has no pgvector")
    conn.execute("CREATE EXTENSION IF NOT EXISTS bq_pgvector")


def random_vectors(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    """Gaussian vectors with log-normal norms, shape (n, dim)."""
    vectors = rng.standard_normal((n, dim)) * rng.lognormal(0, 1, (n, 1))
    return cast(Vectors, vectors.astype(np.float32))


def clustered_vectors(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    """Clusters of uneven size, and among them duplicates and zero vectors, shape (n, dim)."""
    centres = rng.standard_normal((max(2, n // 100), dim))
    members = (len(centres) * rng.random(n) ** 2).astype(int)
    vectors = (centres[members] + 0.3 * rng.standard_normal((n, dim))).astype(np.float32)
    vectors *= rng.lognormal(0, 1, (n, 1))
    copies = rng.integers(0, n, n // 10)
    vectors[rng.integers(0, n, n // 10)] = vectors[copies]
    vectors[rng.integers(0, n, max(1, n // 50))] = 0
    return cast(Vectors, vectors)


def sparse(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    return random_vectors(rng, n, dim) * (rng.random((n, dim)) < 0.05)


def corners(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    return cast(Vectors, rng.choice([-1, 1], (n, dim)).astype(np.float32))


def some_queries(rng: np.random.Generator, vectors: Vectors) -> Vectors:
    """A new vector, one of the table, and the zero vector."""
    dim = vectors.shape[1]
    zero = np.zeros((1, dim), np.float32)
    return np.vstack([random_vectors(rng, 1, dim), vectors[:1], zero]).astype(np.float32)


def create(
    conn: Conn,
    vectors: Vectors,
    *,
    table: str = "items",
    nulls: int = 3,
    transform: int = 0,
    typmod: int | None = None,
    kind: str = "TABLE",
    column: Column = CODES,
) -> None:
    """Make a table (id, code, other) of encoded vectors, and of rows without a code.

    With another kind of `column` it has that in the place of the code.
    """
    dim = typmod or vectors.shape[1]
    conn.execute(f"CREATE {kind} {table} (id int, {column.name} {column.type}({dim}), other int)")
    insert(conn, vectors, table=table, transform=transform, column=column)
    for i in range(nulls):
        conn.execute(f"INSERT INTO {table} VALUES (%s, NULL, 0)", (-1 - i,))


def insert(
    conn: Conn,
    vectors: Vectors,
    *,
    first: int = 0,
    table: str = "items",
    transform: int = 0,
    column: Column = CODES,
) -> None:
    """COPY encoded vectors; ids count from `first`, `other` is id % 10."""
    values = column.values(vectors, transform)
    with conn.cursor().copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", column.type, "int4"])
        for i, value in enumerate(values, first):
            copy.write_row((i, value, i % 10))


def create_index(
    conn: Conn, column: Column = CODES, options: str = "lists = 1", table: str = "items"
) -> None:
    name = f"{table}_{column.name}"
    conn.execute(f"CREATE INDEX {name} ON {table} USING bq ({column.key}) WITH ({options})")


def operand(operator: str, vector: Vectors, transform: int = 0) -> Code | Query:
    """The right side of an operator on codes for a query vector."""
    return cast("Code | Query", CODES.operand(operator, vector, transform))


def statement(
    operator: str, table: str, where: str, limit: int | None, column: Column = CODES
) -> str:
    distance = f"{column.name} {operator} %(q)s"
    text = f"SELECT id, {distance} AS distance FROM {table} WHERE {where} ORDER BY {distance}"
    if limit is not None:
        text += f" LIMIT {limit}"
    return text


def explain(conn: Conn, query: str, parameters: Any = None, options: str = "COSTS OFF") -> str:
    rows = conn.execute(cast(Any, f"EXPLAIN ({options}) {query}"), parameters).fetchall()
    return "\n".join(row[0] for row in rows)


def measure_scan(conn: Conn, query: str, parameters: Any = None) -> dict[str, Any]:
    """Run a query; what EXPLAIN tells of its scan: Actual Rows, Lists Read, Codes Compared, ..."""
    query = f"EXPLAIN (ANALYZE, FORMAT JSON) {query}"
    row = conn.execute(cast(Any, query), parameters).fetchone()
    assert row is not None
    node = row[0][0]["Plan"]
    while "Plans" in node:
        node = node["Plans"][0]
    return cast("dict[str, Any]", node)


def by_sort(
    conn: Conn,
    operator: str,
    q: Any,
    *,
    table: str = "items",
    where: str = "true",
    limit: int | None = None,
    column: Column = CODES,
) -> list[tuple[int, float]]:
    """Rows (id, distance) in the order of a sequential scan and a sort."""
    query = statement(operator, table, f"{column.name} IS NOT NULL AND {where}", limit, column)
    with conn.transaction(force_rollback=True):
        conn.execute("SET LOCAL enable_indexscan = off; SET LOCAL enable_seqscan = on")
        plan = explain(conn, query, {"q": q})
        assert "Index Scan" not in plan, plan
        return conn.execute(cast(Any, query), {"q": q}).fetchall()


def by_index(
    conn: Conn,
    operator: str,
    q: Any,
    *,
    table: str = "items",
    where: str = "true",
    limit: int | None = None,
    probes: int | None = 65536,
    column: Column = CODES,
) -> list[tuple[int, float]]:
    """Rows (id, distance) in the order of the index; `probes` lists first, None: the default.

    All lists are read for a recall of 1, so vectors are compared as far as need be.
    """
    query = statement(operator, table, where, limit, column)
    with conn.transaction(force_rollback=True):
        conn.execute("SET LOCAL enable_seqscan = off")
        conn.execute("SET LOCAL enable_sort = off")
        if probes is not None:
            conn.execute(f"SET LOCAL bq.probes = {probes}")
        if probes == 65536:
            conn.execute("SET LOCAL bq.recall = 1")
        plan = explain(conn, query, {"q": q})
        assert "Index Scan using" in plan and "Sort" not in plan, plan
        return conn.execute(cast(Any, query), {"q": q}).fetchall()


def assert_same_order(
    found: list[tuple[int, float]], expected: list[tuple[int, float]], context: object = ""
) -> None:
    """The same distances, exactly; the same ids, but for the order of ties and the last ones."""
    ids = [row[0] for row in found]
    assert len(set(ids)) == len(ids), (context, "rows came twice")
    assert [row[1] for row in found] == [row[1] for row in expected], (context, "other distances")
    groups = [
        [(distance, {i for i, _ in rows}) for distance, rows in itertools.groupby(side, _distance)]
        for side in (found, expected)
    ]
    assert groups[0][:-1] == groups[1][:-1], (context, "other rows")


def _distance(row: tuple[int, float]) -> float:
    return row[1]


def assert_index_equals_sort(
    conn: Conn,
    queries: Vectors,
    *,
    transform: int = 0,
    column: Column = CODES,
    limit: int | None = None,
    **options: Any,
) -> None:
    """Each operator and query: all rows by the index are those of a sort, ties apart.

    Zero vectors have no cosine, and are in no index for it (pgvector's README).
    """
    for vector in queries:
        for operator in column.operators:
            q = column.operand(operator, vector, transform)
            expected = by_sort(conn, operator, q, column=column, **options)
            found = by_index(conn, operator, q, column=column, limit=limit, **options)
            if column.type != "bqvec" and operator == "<=>":
                # by another query: all cosines with the zero vector are NaN
                other = column.operand(operator, np.ones_like(vector))
                expected = _with_cosine(
                    expected, by_sort(conn, operator, other, column=column, **options)
                )
                if not np.any(vector):
                    assert len(found) == len(expected[:limit])
                    assert {i for i, _ in found} <= {i for i, _ in expected}
                    continue
            assert_same_order(found, expected[:limit], operator)


def _with_cosine(
    rows: list[tuple[int, float]], others: list[tuple[int, float]]
) -> list[tuple[int, float]]:
    """The rows whose distance is a number among the others."""
    ids = {i for i, distance in others if not np.isnan(distance)}
    return [row for row in rows if row[0] in ids]


def refused(conn: Conn, statement: str, parameters: Any = None) -> str:
    with pytest.raises(psycopg.Error) as error:
        conn.execute(cast(Any, statement), parameters)
    diag = error.value.diag
    assert diag.sqlstate != "XX000", diag.message_primary
    return f"{diag.message_primary} / {diag.message_hint}"


def check(conn: Conn, index: str) -> None:
    conn.execute("SELECT bq_index_check(%s, true)", (index,))


def info(conn: Conn, index: str) -> dict[str, Any]:
    cursor = conn.execute("SELECT * FROM bq_index_info(%s)", (index,))
    assert cursor.description is not None
    return dict(zip((column.name for column in cursor.description), cursor.fetchone(), strict=True))


@contextlib.contextmanager
def provide_items(
    databases: Databases, vectors: Vectors, options: str, column: Column = CODES
) -> Iterator[str]:
    """A table and its index for several tests to read; how to connect to their database."""

    def fill(conn: Conn) -> None:
        register_bq(conn)
        prepare(conn, column)
        create(conn, vectors, column=column)
        create_index(conn, column, options)
        conn.execute("VACUUM ANALYZE items")

    with databases.provide_filled(fill) as dsn:
        yield dsn


@contextlib.contextmanager
def connect_to_read(dsn: str) -> Iterator[Conn]:
    """For tests whose tables are those of others, too: it writes nothing."""
    with contextlib.closing(connect(dsn)) as conn:
        conn.execute("SET default_transaction_read_only = on")
        yield conn


# -- servers ------------------------------------------------------------------------------


def run_threads(*targets: Callable[[], None]) -> None:
    """Run functions at the same time; raise what one of them raised."""
    errors: list[BaseException] = []

    def run(target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    if errors:
        raise errors[0]


@contextlib.contextmanager
def start_standby(primary: pybq.Server, **changes: embedded.Setting) -> Iterator[pybq.Server]:
    """A streaming standby of an embedded server; replay waits for readers, unless told not to."""
    folder = primary._make_folder()
    primary._run(
        "pg_basebackup",
        f"--pgdata={folder / 'standby'}",
        "--write-recovery-conf",
        "--wal-method=stream",
        "--checkpoint=fast",
        f"--dbname={primary.dsn}",
    )
    for lock in (folder / "standby").glob(".s.PGSQL.*"):
        lock.unlink()  # of the primary's socket
    settings: dict[str, embedded.Setting] = {"fsync": False, "max_standby_streaming_delay": -1}
    settings.update(changes)
    standby = pybq.Server(folder / "standby", primary.postgres, settings)
    standby._bin = primary._bin
    standby._start()  # not start(): extensions cannot be created here
    try:
        yield standby
    finally:
        standby.stop("immediate")
        shutil.rmtree(folder)


def wait_for(conn: Conn, query: str, row: tuple[Any, ...], seconds: float = 60) -> None:
    """Ask again and again until the answer is this row."""
    end = time.monotonic() + seconds
    while (found := conn.execute(cast(Any, query)).fetchone()) != row:
        if time.monotonic() > end:
            raise TimeoutError(f"expected {row}, got {found}: {query}")
        time.sleep(0.02)


def wait_for_replay(primary: Conn, standby: Conn) -> None:
    (lsn,) = primary.execute("SELECT pg_current_wal_insert_lsn()").fetchone() or ()
    primary.execute("SELECT pg_log_standby_snapshot()" if _is_16(primary) else "CHECKPOINT")
    wait_for(standby, f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'", (True,))


def _is_16(conn: Conn) -> bool:
    return conn.info.server_version >= 160000


# -- damage ---------------------------------------------------------------------------------


def damage(server: pybq.Server, *changes: tuple[str, int, int, bytes]) -> None:
    """Change bytes of pages behind the server's back: (index, page, offset, bytes) each."""
    assert server.data_dir is not None
    paths = {}
    # the command, -D, the folder; then what the server was started with
    _, _, _, *options = shlex.split(Path(server.data_dir, "postmaster.opts").read_text())
    with connect(server.dsn) as conn:
        conn.execute("ALTER SYSTEM SET ignore_checksum_failure = on")
        conn.execute("CHECKPOINT")
        for index, *_ in changes:
            row = conn.execute("SELECT pg_relation_filepath(%s)", (index,)).fetchone()
            assert row is not None
            paths[index] = row[0]
    server._pg_ctl("--mode", "fast", "stop")
    for index, blkno, offset, data in changes:
        with open(Path(server.data_dir, paths[index]), "r+b") as file:
            file.seek(blkno * 8192 + offset)
            file.write(data)
    server._pg_ctl("--log", str(server.log_path), "--options", shlex.join(options), "start")


class Places:
    """Where (page, offset) things lie in a new index, by the arithmetic of bqindex.h."""

    META = 24
    HEADER: ClassVar = {"list": 0, "epoch": 4, "next": 8, "packed": 18, "live": 20, "tid": 24}
    HEADER |= {"keys": 408, "nulls": 408 + 128}  # of the first filter column
    ENTRY: ClassVar = {"head": 0, "free": 4, "nblocks": 8, "epoch": 12}
    ENTRY |= {"old_head": 16, "old_nblocks": 20, "changed": 32}
    META_FIELDS: ClassVar = {
        "nkeys": 20,
        "data_start": 24,
        "npages": 28,
        "nblocks": 32,
        "free_head": 36,
        "nfree": 40,
    }
    META_FIELDS |= {
        "capacity": 44,
        "segment": 48,
        "nprobes": 184,
        "product_nprobes": 216,
        "later_slack": 280,
        "deviations": 312,
        "choice": 380,
    }

    def __init__(self, dim: int, lists: int, statistics: bool = False, nkeys: int = 0) -> None:
        """With the `statistics` of a sample, as an index on vectors may have them.

        With `nkeys` filter columns, whose keys are `keys` and `nulls` of a header.
        """
        self.header_nbytes = 408 + 132 * nkeys
        self.headers = 8160 // self.header_nbytes  # of a page
        self.data_start = 1 + (-(-6 * 8 * dim // 8160) if statistics else 0)
        self.nrows = (dim + 1) // 2
        self.capacity = -(-(lists + lists // 4) // 32) * 32
        self.entry_rows = -(-self.capacity // 170) * 510
        groups = self.capacity // 32
        self.outer_groups = self.entry_rows + groups * (8 + self.nrows)
        if self.capacity >= 4096:
            groups += -(-groups // 32)
        rows = 509 + self.entry_rows + groups * (8 + self.nrows)
        self.first_block = -(-rows // self.nrows)

    def row(self, row: int) -> tuple[int, int]:
        c = row // 510
        page = self.data_start + c + 1 + ((c + 1) * 510 - 1) // (self.headers * self.nrows)
        return page, 24 + row % 510 * 16

    def meta(self, field: str) -> tuple[int, int]:
        return 0, self.META + self.META_FIELDS[field]

    def entry(self, field: str) -> tuple[int, int]:
        page, offset = self.row(0)
        return page, offset + self.ENTRY[field]

    def factor(self) -> tuple[int, int]:
        return self.row(self.entry_rows)

    def group_factor(self) -> tuple[int, int]:
        return self.row(self.outer_groups)

    def header(self, field: str) -> tuple[int, int]:
        m, place = divmod(self.first_block, self.headers)
        page = self.data_start + m + m * self.headers * self.nrows // 510
        return page, 24 + place * self.header_nbytes + self.HEADER[field]

    def code(self) -> tuple[int, int]:
        return self.row(self.first_block * self.nrows)
