"""Code and Query: text, binary and numpy forms, and hostile input to each."""

import math
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pybq import Code, Quantizer, Query

vectors = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True),
)


@given(vectors, st.integers(0, 65535))
def test_code_round_trips(vector, transform):
    code = Code.from_numpy(Quantizer(len(vector), transform).encode(vector))
    assert (code.dim, code.transform) == (len(vector), transform)
    for again in (
        Code.from_text(code.to_text()),
        Code.from_binary(code.to_binary()),
        Code.from_binary(memoryview(code.to_binary())),
        Code.from_numpy(code.to_numpy()),
        pickle.loads(pickle.dumps(code)),
    ):
        assert again == code and hash(again) == hash(code)
        assert again.to_binary() == code.to_binary()


@given(vectors, st.integers(0, 65535))
def test_query_round_trips(vector, transform):
    query = Query(vector, transform)
    for again in (
        Query.from_text(query.to_text()),
        Query.from_binary(query.to_binary()),
        Query.from_numpy(query.to_numpy(), transform),
        pickle.loads(pickle.dumps(query)),
    ):
        assert again == query and hash(again) == hash(query)
        assert again.values.tobytes() == query.values.tobytes() == vector.tobytes()


def test_code_layout():
    """The bytes of extension/core/bqcode.h, by hand."""
    code = Code.from_text("258:1.5:0312 ")
    # levels 0 3 1 2: signs 0 1 0 1, magnitudes 1 1 0 0; dimension 0 is the lowest bit
    assert code.to_binary() == struct.pack("!HHfBB", 4, 258, 1.5, 0b1010, 0b0011)
    assert code.levels.tolist() == [0, 3, 1, 2]
    assert code.norm == 1.5
    assert repr(code) == "Code('258:1.5:0312')"


@pytest.mark.parametrize(
    ("norm", "text"),
    [
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (123456.7, "123456.7"),
        (999999, "999999"),
        (1000000, "1e+06"),
        (1.1, "1.1"),
        (16777216, "1.6777216e+07"),
        (1e-45, "1e-45"),
        (2.6e36, "2.6e+36"),
    ],
)
def test_norm_is_written_as_float4_in_sql(norm, text):
    """Expected: SELECT $1::float4."""
    payload = struct.pack("!HHfBB", 1, 0, norm, 1, 0)
    assert Code.from_binary(payload).to_text() == f"0:{text}:2"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "length of the code does not match its dimensions"),
        (struct.pack("!HHf", 0, 0, 1), "dimensions must be between 1 and 16000"),
        (struct.pack("!HHfBB", 16001, 0, 1, 0, 0), "dimensions must be between 1 and 16000"),
        (struct.pack("!HHfB", 4, 0, 1, 0), "length of the code does not match"),
        (struct.pack("!HHfBBB", 4, 0, 1, 0, 0, 0), "length of the code does not match"),
        (struct.pack("!HHfBB", 4, 0, math.nan, 0, 0), "norm of the code must be finite"),
        (struct.pack("!HHfBB", 4, 0, math.inf, 0, 0), "norm of the code must be finite"),
        (struct.pack("!HHfBB", 4, 0, -1, 0, 0), "norm of the code must be finite"),
        (struct.pack("!HHfBB", 4, 0, 1, 0x10, 0), "bits of the code beyond its dimensions"),
        (struct.pack("!HHfBB", 4, 0, 1, 0, 0x80), "bits of the code beyond its dimensions"),
        (struct.pack("!HHfBB", 4, 0, 0, 1, 0), "code of norm 0 must have all bits zero"),
    ],
)
def test_hostile_code_is_refused(payload, message):
    with pytest.raises(ValueError, match=message):
        Code.from_binary(payload)


@pytest.mark.parametrize(
    "text",
    ["", "0", "0:1", "0:1:", "x:1:0", "0:x:0", "-1:1:0", "65536:1:0", "0:1:4", "0:1:0 1",
     "0:1:٣", "٣:1:0", "0:nan:0", "0:inf:0", "0:1e99:0", "0:-1:0", "0:0:0", "0:1:" + "1" * 16001],
)  # fmt: skip
def test_hostile_code_text_is_refused(text):
    with pytest.raises(ValueError):
        Code.from_text(text)


@pytest.mark.parametrize("head", ["65536", "99999999999", "9" * 5000])
def test_a_transform_of_any_size_is_refused_alike(head):
    for read, rest in ((Code.from_text, "1:0312"), (Query.from_text, "[1,2]")):
        with pytest.raises(ValueError, match="expected transform between 0 and 65535, got [69]"):
            read(f"{head}:{rest}")
    assert Code.from_text("00000065535:1:0312").transform == 65535


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\1\0", "expected a bqquery of at least 4 bytes, got 3"),
        (struct.pack("!HH", 0, 0), "expected dim between 1 and 16000, got 0"),
        (struct.pack("!HHf", 2, 0, 1), "expected 12 bytes for 2 dimensions, got 8"),
        (struct.pack("!HHff", 1, 0, 1, 1), "expected 8 bytes for 1 dimensions, got 12"),
        (struct.pack("!HHf", 1, 0, math.nan), "NaN and infinite values are not allowed"),
        (struct.pack("!HHf", 1, 0, -math.inf), "NaN and infinite values are not allowed"),
        (struct.pack("!HHf", 1, 0, 3e38), "norm of the vector must not exceed 2.65e36"),
        (struct.pack("!HH16001f", 16001, 0, *[0] * 16001), "expected dim between 1 and 16000"),
    ],
)
def test_hostile_query_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Query.from_binary(data)


@pytest.mark.parametrize(
    "text", ["", "0", "0:", "0:[]", "0:[1", "0:1]", "0:[1,]", "0:[x]", "65536:[1]", "0:[nan]"]
)
def test_hostile_query_text_is_refused(text):
    with pytest.raises(ValueError):
        Query.from_text(text)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_a_value_error(data):
    for kind in (Code, Query):
        try:
            assert kind.from_binary(data).to_binary() == data
        except ValueError:
            pass


def test_values_are_read_only():
    query = Query([1, 2])
    with pytest.raises(ValueError, match="read-only"):
        query.values[0] = 5
    with pytest.raises(ValueError, match="read-only"):
        Code.from_text("0:1:1").to_numpy()[0] = 5
    with pytest.raises(AttributeError):
        query.transform = 3


def test_query_does_not_share_memory_with_its_source():
    source = np.ones(3, np.float32)
    query = Query(source)
    source[0] = 9
    assert query.values[0] == 1


def test_wrong_kinds():
    with pytest.raises(TypeError, match="expected values of float32"):
        Query(["a"])
    with pytest.raises(ValueError, match=r"expected values of shape \(dim,\), got \(1, 2\)"):
        Query([[1, 2]])
    with pytest.raises(ValueError, match="expected transform between 0 and 65535, got 65536"):
        Query([1], 65536)
    with pytest.raises(TypeError, match="expected a code of dtype uint8, got int64"):
        Code.from_numpy(np.zeros(10, np.int64))
    with pytest.raises(ValueError, match=r"expected a code of shape \(nbytes,\), got \(1, 10\)"):
        Code.from_numpy(np.zeros((1, 10), np.uint8))
    assert Code.from_text("0:1:1") != Query([1]) and Query([1]) != 1
