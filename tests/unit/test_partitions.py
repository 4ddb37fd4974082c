"""Partitions of frames, without a database: codes, statistics, checksums, ends that are none."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pybq
from pybq._loading.arrow import find_dim, read_vectors
from pybq._loading.partitions import (
    Checksum,
    choose_by_rows,
    choose_vectors,
    encode_batches,
    summarise,
    take_first,
)
from pybq.spark import _until_the_end

pa = pytest.importorskip("pyarrow")

DIM = 12
MAKERS: dict[str, Callable[[NDArray[np.float32]], Any]] = {
    "list": lambda v: pa.array(list(v), pa.list_(pa.float32())),
    "large list": lambda v: pa.array(list(v), pa.large_list(pa.float32())),
    "fixed list": lambda v: pa.array(list(v), pa.list_(pa.float32(), v.shape[1])),
    "double": lambda v: pa.array(v.astype(np.float64).tolist(), pa.list_(pa.float64())),
    "binary": lambda v: pa.array([row.tobytes() for row in v], pa.binary()),
    "large binary": lambda v: pa.array([row.tobytes() for row in v], pa.large_binary()),
    "fixed binary": lambda v: pa.array([row.tobytes() for row in v], pa.binary(4 * v.shape[1])),
}


@pytest.fixture
def vectors(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.standard_normal((600, DIM)).astype(np.float32) + 0.1


def batches(vectors: NDArray[np.float32], sizes: list[int]) -> list[Any]:
    """Batches of such sizes, with keys that say where a vector is."""
    cut = np.cumsum([0, *sizes])
    assert cut[-1] == len(vectors)
    return [
        pa.record_batch({"id": np.arange(a, b), "embedding": MAKERS["list"](vectors[a:b])})
        for a, b in zip(cut, cut[1:], strict=False)
    ]


@pytest.mark.parametrize("kind", MAKERS)
def test_vectors_are_read_wherever_a_batch_begins(kind: str, vectors: NDArray[np.float32]) -> None:
    column = MAKERS[kind](vectors)
    assert find_dim(column) == DIM
    for first, n in ((0, 600), (7, 100), (599, 1), (5, 0)):
        found = read_vectors("partition", column.slice(first, n), DIM, 0)
        assert found.shape == (n, DIM)
        np.testing.assert_array_equal(found, vectors[first : first + n])


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "double"])
def test_vectors_are_not_copied(kind: str, vectors: NDArray[np.float32]) -> None:
    column = MAKERS[kind](vectors)
    found = read_vectors("partition", column.slice(3), DIM, 0)
    begin = column.buffers()[-1].address
    assert begin <= found.ctypes.data < begin + column.buffers()[-1].size


def test_a_vector_that_is_none_is_named() -> None:
    short = pa.array([b"\0" * 16, b"\0" * 12], pa.binary())
    with pytest.raises(ValueError, match="partition: row 41: expected 16 bytes, got 12"):
        read_vectors("partition", short, 4, 40)
    missing = pa.array([b"\0" * 16, None], pa.binary())
    with pytest.raises(ValueError, match="partition: row 1: expected 16 bytes, got 0"):
        read_vectors("partition", missing, 4, 0)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("transform", [0, 5])
def test_codes_are_those_of_the_quantizer(
    kind: str, transform: int, vectors: NDArray[np.float32]
) -> None:
    batch = pa.record_batch(
        {"id": np.arange(600), "embedding": MAKERS[kind](vectors), "title": ["t"] * 600}
    )
    parts = [batch.slice(0, 250), batch.slice(250, 0), batch.slice(250)]
    made = list(encode_batches(parts, DIM, transform, "rms", "embedding", ["id"], "code"))
    assert [part.schema.names for part in made] == [["id", "code"]] * 3
    for part in made:
        part.validate(full=True)
    table = pa.Table.from_batches(made)
    assert table["id"].to_pylist() == list(range(600))
    expected = pybq.Quantizer(DIM, transform).encode(vectors)
    assert table["code"].to_pylist() == [code.tobytes() for code in expected]


def test_a_vector_that_cannot_be_encoded_is_named(vectors: NDArray[np.float32]) -> None:
    vectors[417, 3] = np.nan
    parts = batches(vectors, [300, 300])
    with pytest.raises(pybq.RowError, match="row 417 .*NaN and infinite") as caught:
        list(encode_batches(parts, DIM, 1, "rms", "embedding", [], "code"))
    assert caught.value.row == 417


def test_statistics_of_partitions_are_those_of_one_pass(vectors: NDArray[np.float32]) -> None:
    whole = pybq.Statistics(DIM, normalize=True)
    whole.update(vectors)
    merged = pybq.Statistics(DIM, normalize=True)
    for part in (vectors[:200], vectors[200:201], vectors[201:]):
        found = summarise(batches(part, [len(part) // 2, -(-len(part) // 2)]), "embedding", True)
        assert found is not None
        merged.merge(pybq.Statistics.from_row(found.to_row(), True))
    assert merged.count == whole.count == 600
    for name in ("mean", "m2", "code_mean", "code_m2", "comoment", "positive"):
        left, right = getattr(merged, name), getattr(whole, name)
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12, err_msg=name)
    assert summarise([], "embedding", True) is None


def test_the_first_rows_are_taken_and_no_more(vectors: NDArray[np.float32]) -> None:
    vectors[5, 0] = np.inf
    parts = batches(vectors, [0, 100, 500])
    read: list[int] = []

    def watched() -> Iterator[Any]:
        for part in parts:
            read.append(len(part))
            yield part

    found = take_first(watched(), "embedding", None, 30)
    np.testing.assert_array_equal(found, np.delete(vectors[:30], 5, axis=0))
    assert len(take_first(parts, "embedding", DIM, 400)) == 399
    assert take_first([], "embedding", DIM, 5).shape == (0, DIM)
    take_first(watched(), "embedding", None, 50)
    assert 500 not in read[:2]


def test_a_decision_needs_rows(vectors: NDArray[np.float32]) -> None:
    assert choose_by_rows(vectors, "cosine").count == 600
    with pytest.raises(ValueError, match="got no rows"):
        choose_by_rows(vectors[:0], "cosine")


def test_vectors_are_found_by_name_or_kind() -> None:
    assert choose_vectors({"id": False, "x": True}, None) == "x"
    assert choose_vectors({"photo": True, "embedding": True}, None) == "embedding"
    assert choose_vectors({"photo": True, "x": True}, "x") == "x"
    with pytest.raises(ValueError, match="one column of vectors, got photo, x; say which"):
        choose_vectors({"photo": True, "x": True}, None)


# -- checksums ---------------------------------------------------------------------------


def checksum(ids: Any, vectors: NDArray[Any], sizes: tuple[int, ...] = ()) -> str:
    made, start = Checksum(), 0
    for n in (*sizes, len(vectors) - sum(sizes)):
        made.add(None if ids is None else ids[start : start + n], vectors[start : start + n])
        start += n
    assert made.rows == len(vectors)
    return str(made)


@pytest.mark.parametrize("dim", [1, 7, 12])
@pytest.mark.parametrize("keys", ["numbers", "texts", "none"])
def test_a_checksum_is_that_of_the_rows_in_any_order(
    dim: int, keys: str, rng: np.random.Generator
) -> None:
    rows = rng.standard_normal((40, dim)).astype(np.float32)
    numbers = list(range(-3, 37))
    texts = [f"/{i}" for i in numbers]
    ids = {"numbers": numbers, "texts": texts, "none": None}[keys]
    expected = checksum(ids, rows)
    assert checksum(ids, rows, (3, 0, 20)) == expected
    order = rng.permutation(40)
    assert checksum(None if ids is None else [ids[i] for i in order], rows[order]) == expected
    assert checksum(ids, rows.astype(np.float64)) == expected

    changed = rows.copy()
    changed[17, dim - 1] = np.nextafter(changed[17, dim - 1], np.float32(9))
    doubled = rows.copy()
    doubled[3] = rows[4]
    found = {expected, checksum(ids, changed), checksum(ids, doubled), checksum(ids, rows[:-1])}
    assert len(found) == 4
    if ids is not None:
        swapped = [ids[1], ids[0], *ids[2:]]
        found |= {checksum(swapped, rows), checksum(None, rows), checksum([*ids[:-1], 99], rows)}
        assert len(found) == 7


def test_a_checksum_of_the_same_rows_stays_the_same() -> None:
    """Those in bq_loads must be found again by other processes and versions."""
    rows = np.arange(24, dtype=np.float32).reshape(2, 12)
    found = [checksum(ids, rows) for ids in ([1, 2], ["a", "b"], None)]
    assert found == ["22302d5d64ab292f", "9777f94291da8a32", "b6cdaaa6bbcd2044"]
    assert checksum([1, 2], rows[:, :5]) == "3cb09a209120e74d"


# -- the end of a partition --------------------------------------------------------------


def main(data: bytes) -> int:
    """Read a stream of Arrow as PySpark's worker does, in a function and by names as there."""
    infile = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
    return sum(len(batch) for batch in _until_the_end(pa.ipc.open_stream(infile)))


def test_a_stream_that_breaks_off_between_batches_is_no_partition(
    vectors: NDArray[np.float32],
) -> None:
    first, second = batches(vectors, [300, 300])
    sink = io.BytesIO()
    writer = pa.ipc.new_stream(sink, first.schema)
    writer.write_batch(first)
    broken = sink.tell()
    writer.write_batch(second)
    writer.close()
    data = sink.getvalue()
    # what made this necessary: Arrow takes it for the end
    assert len(pa.ipc.open_stream(data[:broken]).read_all()) == 300
    for wrong in (data[:broken], data):
        with pytest.raises(pybq.Error, match="the partition ended before its end"):
            main(wrong)
    assert main(data + b"\xff\xff\xff\xfc") == 600
