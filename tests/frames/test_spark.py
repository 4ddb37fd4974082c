"""pybq.spark in a cluster of processes: what it encodes and writes, whoever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shared import Conn

import pybq
import pybq.spark

from .conftest import DIM, FILES, ROWS, assert_statistics, assert_written

pytestmark = [pytest.mark.autocommit, pytest.mark.filterwarnings("ignore")]
TIMEOUT = 300


@pytest.fixture
def frame(spark: Any, files: str) -> Any:
    return spark.read.parquet(files)


def create(conn: Conn, **options: Any) -> pybq.Table:
    columns = {"title": "text"}
    return pybq.Table.create(conn, "items", DIM, store=None, columns=columns, **options)


def fetch(conn: Conn, query: str) -> Any:
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_codes_are_those_of_sql(frame: Any, vectors: NDArray[np.float32], conn: Conn) -> None:
    quantizer = pybq.Quantizer(DIM, transform=3)
    encoded = pybq.spark.encode(frame, quantizer)
    assert encoded.columns == ["id", "title", "code"]
    rows = encoded.collect()
    assert len(rows) == ROWS
    made = {row.id: bytes(row.code) for row in rows}
    expected = quantizer.encode(vectors)
    assert made == {i: code.tobytes() for i, code in enumerate(expected)}
    for i in range(0, ROWS, 400):
        (code,) = (
            conn.execute("SELECT bq_encode(%s::real[], 3)", [vectors[i].tolist()]).fetchone() or ()
        )
        assert code.to_binary() == made[i]


@pytest.mark.parametrize("kind", ["array<double>", "binary"])
def test_vectors_of_other_types(
    spark: Any, frame: Any, vectors: NDArray[np.float32], kind: str
) -> None:
    if kind == "binary":
        rows = [(i, bytearray(vectors[i].tobytes())) for i in range(50)]
        other = spark.createDataFrame(rows, "id int, embedding binary")
    else:
        other = frame.where("id < 50").selectExpr("id", f"CAST(embedding AS {kind}) AS vectors")
    quantizer = pybq.Quantizer(DIM)
    encoded = pybq.spark.encode(other, quantizer, columns=["id"], code_column="packed")
    found = {row.id: bytes(row.packed) for row in encoded.collect()}
    assert found == {i: c.tobytes() for i, c in enumerate(quantizer.encode(vectors[:50]))}


def test_statistics_are_those_of_one_pass(frame: Any, vectors: NDArray[np.float32]) -> None:
    for normalize in (False, True):
        expected = pybq.Statistics(DIM, normalize)
        expected.update(vectors)
        assert_statistics(pybq.spark.statistics(frame, normalize=normalize), expected)
    assert pybq.spark.choose(frame).count == ROWS


def test_what_is_wrong_is_said(frame: Any, spark: Any, conn: Conn) -> None:
    create(conn)
    with pytest.raises(ValueError, match="no column 'x' among id, embedding, title"):
        pybq.spark.encode(frame, pybq.Quantizer(DIM), "x")
    with pytest.raises(ValueError, match="got no rows"):
        pybq.spark.statistics(frame.where("id < 0"))
    with pytest.raises(ValueError, match="got no rows"):
        pybq.spark.write(frame.where("id < 0"), conn.info.dsn, "items", "first")
    with pytest.raises(pybq.TableError, match="no table 'other'"):
        pybq.spark.write(frame, conn.info.dsn, "other", "first")
    bad = frame.selectExpr(
        "id", "title", "CASE WHEN id = 17 THEN array(float('nan')) ELSE embedding END AS embedding"
    )
    with pytest.raises(Exception, match="row 17: expected 32 dimensions, got 1"):
        pybq.spark.write(bad, conn.info.dsn, "items", "first", columns=[])


def test_a_frame_is_written_once(frame: Any, vectors: NDArray[np.float32], conn: Conn) -> None:
    create(conn)
    assert frame.rdd.getNumPartitions() == FILES
    assert pybq.spark.write(frame, conn.info.dsn, "items", "first") == ROWS
    assert pybq.spark.write(frame, conn.info.dsn, "items", "first") == 0
    assert_written(conn, vectors)
    assert fetch(conn, "SELECT count(*) FROM items WHERE title = 'title ' || id") == ROWS
    with pytest.raises(pybq.TableError, match="begun with 8 partitions, and now there are 3"):
        pybq.spark.write(frame.coalesce(3), conn.info.dsn, "items", "first")


def test_a_job_goes_on_where_it_was_left(
    frame: Any, vectors: NDArray[np.float32], conn: Conn
) -> None:
    """Of one that failed for want of a column's value, what was written stays."""
    create(conn)
    conn.execute("ALTER TABLE items ADD CHECK (id <> 4000 - 1)")
    with pytest.raises(Exception, match="violates check constraint"):
        pybq.spark.write(frame, conn.info.dsn, "items", "first")
    there = fetch(conn, "SELECT count(*) FROM items")
    assert 0 <= there < ROWS
    conn.execute("ALTER TABLE items DROP CONSTRAINT items_id_check")
    assert pybq.spark.write(frame, conn.info.dsn, "items", "first") == ROWS - there
    assert_written(conn, vectors)


def test_a_shuffle_by_key_may_be_repeated(
    spark: Any, frame: Any, vectors: NDArray[np.float32], conn: Conn
) -> None:
    create(conn)
    for expected in (ROWS, 0):
        shuffled = frame.repartition(5, "id")
        assert pybq.spark.write(shuffled, conn.info.dsn, "items", "first") == expected
    assert_written(conn, vectors)
    by_title = frame.repartition(5, "title")
    with pytest.raises(Exception, match="of first is not what was written"):
        pybq.spark.write(by_title, conn.info.dsn, "items", "first")
    assert_written(conn, vectors)


# -- processes killed midway -------------------------------------------------------------


def children() -> dict[int, list[int]]:
    """Processes by their parents."""
    found: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        parent = int(text.rpartition(")")[2].split()[1])
        found.setdefault(parent, []).append(int(path.parent.name))
    return found


def descendants(word: str) -> list[int]:
    """Processes below this one that have a word in their command line, the oldest first."""
    by_parent = children()
    below, found = [os.getpid()], []
    while below:
        pid = below.pop()
        below += by_parent.get(pid, [])
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in command:
            found.append(pid)
    return sorted(found)


def kill_workers() -> int:
    """Kill the Python workers, not the daemons that they are forked from."""
    daemons = descendants("pyspark.daemon")
    by_parent = children()
    workers = [pid for daemon in daemons for pid in by_parent.get(daemon, []) if pid in daemons]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    return len(workers)


def kill_executor() -> int:
    executors = descendants("CoarseGrainedExecutorBackend")
    for pid in executors[:1]:
        os.kill(pid, signal.SIGKILL)
    return len(executors[:1])


def wait_for(condition: Callable[[], Any], running: Any) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end and not running.done(), running
        time.sleep(0.02)


@pytest.mark.parametrize("victims", ["workers", "executor", "both"])
def test_every_row_once_whoever_is_killed(
    frame: Any, vectors: NDArray[np.float32], conn: Conn, victims: str
) -> None:
    """Each time between two commits: the table is slow, by a trigger, until all are dead."""
    create(conn, transform=1)
    conn.execute("CREATE TABLE slow ()")
    conn.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.id % 100 = 50 AND EXISTS (SELECT FROM slow) THEN PERFORM pg_sleep(0.1); END IF;"
        " RETURN NEW; END $$"
    )
    conn.execute("CREATE TRIGGER wait BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION wait()")
    conn.execute("INSERT INTO slow DEFAULT VALUES")
    copying = "SELECT count(*) FROM pg_stat_progress_copy WHERE tuples_processed > 0"
    rounds = {"workers": [kill_workers, kill_workers], "executor": [kill_executor]}
    killed = 0
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(pybq.spark.write, frame, conn.info.dsn, "items", "first")
        try:
            for kill in rounds.get(victims) or [kill_workers, kill_executor]:
                before = fetch(conn, "SELECT count(*) FROM bq_loads")
                wait_for(lambda: fetch(conn, copying), running)
                killed += kill()
                # the next ones die after another partition was written
                wait_for(lambda n=before: fetch(conn, "SELECT count(*) FROM bq_loads") > n, running)
        finally:
            conn.execute("TRUNCATE slow")
        running.result(TIMEOUT)
    assert killed >= len(rounds.get(victims, [1, 2]))
    assert fetch(conn, "SELECT count(*) FROM bq_loads") == FILES
    assert_written(conn, vectors)


def test_what_a_failure_leaves_behind_is_no_partition(
    frame: Any, vectors: NDArray[np.float32], conn: Conn
) -> None:
    """What reads the rows fails between two batches: those before it are no partition."""
    create(conn, transform=1)

    def fail(batches: Any) -> Any:
        from pyspark import TaskContext

        attempt = TaskContext.get().attemptNumber()
        for number, batch in enumerate(batches):
            if number == 8 + 4 * attempt and attempt < 3:
                raise OSError("the file is gone")
            yield batch

    failing = frame.coalesce(2).mapInArrow(fail, frame.schema)
    assert pybq.spark.write(failing, conn.info.dsn, "items", "first") == ROWS
    assert_written(conn, vectors)


def test_what_an_executor_leaves_behind_is_no_partition(
    frame: Any, vectors: NDArray[np.float32], conn: Conn, tmp_path: Path
) -> None:
    """Killed between two batches: to Arrow the stream has ended, and half would be committed."""
    create(conn, transform=1)
    gate = tmp_path / "gate"
    gate.touch()

    def hold(batches: Any) -> Any:
        """Give as many as fill all buffers on their way, and then wait."""
        for number, batch in enumerate(batches):
            while number == 17 and gate.exists():
                time.sleep(0.05)
            yield batch

    held = frame.coalesce(2).mapInArrow(hold, frame.schema)
    copied = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND pid IN"
    copied += " (SELECT pid FROM pg_locks WHERE locktype = 'advisory')"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(pybq.spark.write, held, conn.info.dsn, "items", "first")
        try:
            wait_for(lambda: fetch(conn, copied) == 2, running)
            assert kill_executor() == 1
        finally:
            gate.unlink()
        assert running.result(TIMEOUT) == ROWS
    assert_written(conn, vectors)
