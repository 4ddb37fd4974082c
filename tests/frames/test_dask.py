"""pybq.dask: the same promises as of pybq.spark, in threads and in processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shared import Conn

import pybq
import pybq.dask

from .conftest import DIM, FILES, ROWS, assert_statistics, assert_written

dd = pytest.importorskip("dask.dataframe", reason="needs Dask: make test-spark")
pytestmark = [pytest.mark.autocommit, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def frame(files: str) -> Any:
    return dd.read_parquet(files, split_row_groups=False)


def test_codes_and_statistics(frame: Any, vectors: NDArray[np.float32]) -> None:
    quantizer = pybq.Quantizer(DIM, transform=3)
    encoded = pybq.dask.encode(frame, quantizer)
    assert list(encoded.columns) == ["id", "title", "code"]
    rows = encoded.compute()
    expected = {i: code.tobytes() for i, code in enumerate(quantizer.encode(vectors))}
    assert dict(zip(rows["id"], rows["code"], strict=True)) == expected
    whole = pybq.Statistics(DIM)
    whole.update(vectors)
    assert_statistics(pybq.dask.statistics(frame), whole)
    assert pybq.dask.choose(frame).count == ROWS


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_a_frame_is_written_once(
    frame: Any, vectors: NDArray[np.float32], conn: Conn, scheduler: str
) -> None:
    import dask

    pybq.Table.create(conn, "items", DIM, store=None, columns={"title": "text"})
    assert frame.npartitions == FILES
    with dask.config.set(scheduler=scheduler, num_workers=2):
        for expected in (ROWS, 0):
            assert pybq.dask.write(frame, conn.info.dsn, "items", "first") == expected
    assert_written(conn, vectors)
    with pytest.raises(pybq.TableError, match="begun with 8 partitions, and now there are 2"):
        pybq.dask.write(frame.repartition(npartitions=2), conn.info.dsn, "items", "first")
    other = frame.assign(id=frame["id"] + 1)
    with pytest.raises(pybq.TableError, match="of first is not what was written"):
        pybq.dask.write(other, conn.info.dsn, "items", "first")
    assert_written(conn, vectors)
