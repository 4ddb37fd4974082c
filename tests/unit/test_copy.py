"""The encoder of binary COPY: bytes by hand, and beside a slow, obvious one.

That PostgreSQL reads them is shown in server/test_copy.py.
"""

import struct
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybq import Quantizer
from pybq._loading import copy as _copy


def encode(*columns, **options):
    return b"".join(_copy.encode_rows(columns, **options))


def field(content):
    return struct.pack("!i", len(content)) + content


def test_bytes_by_hand():
    identifier = uuid.UUID(int=5)
    data = encode(
        ("int2", np.array([-2])),
        ("int4", [70_000]),
        ("int8", np.array([2**40], "u8")),
        ("float4", [1.5]),
        ("float8", np.array([2], "f2")),
        ("bool", [True]),
        ("bqvec", np.array([[1, 2, 3]], "u1")),
        ("vector", [[1.0, -2.0]]),
        ("halfvec", [[1.0, -2.0, 0.5]]),
        ("float4[]", [[1.0, -2.0]]),
        ("text", ["grün"]),
        ("bytea", [b"\0\xff"]),
        ("uuid", [identifier]),
        ("text", [None]),
        ("int4", [7], [True]),
    )
    assert data == struct.pack("!h", 15) + b"".join(
        [
            field(struct.pack("!h", -2)),
            field(struct.pack("!i", 70_000)),
            field(struct.pack("!q", 2**40)),
            field(struct.pack("!f", 1.5)),
            field(struct.pack("!d", 2)),
            field(b"\1"),
            field(b"\1\2\3"),
            field(struct.pack("!hhff", 2, 0, 1, -2)),
            field(struct.pack("!hheee", 3, 0, 1, -2, 0.5)),
            field(struct.pack("!iiiii if if", 1, 0, 700, 2, 1, 4, 1, 4, -2)),
            field("grün".encode()),
            field(b"\0\xff"),
            field(identifier.bytes),
            b"\xff\xff\xff\xff",
            b"\xff\xff\xff\xff",
        ]
    )


def test_no_rows():
    assert encode(("int8", np.empty(0, int)), ("text", [])) == b""


def test_what_encloses_rows():
    """PostgreSQL's manual, COPY, "Binary Format": no flags, no extension; no fields."""
    assert _copy.HEADER == b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
    assert _copy.TRAILER == struct.pack("!h", -1)


@pytest.mark.parametrize("chunk_nbytes", [1, 100, 1000, 10**6])
def test_chunks_hold_whole_rows(rng, chunk_nbytes):
    n = 500
    columns = [
        ("int8", np.arange(n)),
        ("bqvec", Quantizer(40).encode(rng.standard_normal((n, 40)))),
        ("text", ["x" * (i % 150) for i in range(n)]),
    ]
    chunks = list(_copy.encode_rows(columns, chunk_nbytes))
    whole = encode(*columns)
    assert b"".join(chunks) == whole
    starts = [struct.unpack("!hiq", chunk[:14]) for chunk in chunks]
    assert all(start[:2] == (3, 8) for start in starts)
    longest_row = 2 + 12 + (4 + 8 + 10) + 4 + 149
    assert all(len(chunk) <= max(chunk_nbytes, longest_row) for chunk in chunks)
    if chunk_nbytes > longest_row:
        assert len(chunks) < 2 * len(whole) / chunk_nbytes + 1


def test_null_masks(rng):
    n = 1000
    nulls = rng.random(n) < 0.3
    values = np.arange(n)
    data = encode(("int4", values, nulls), ("text", ["a"] * n, ~nulls), chunk_nbytes=500)
    expected = b""
    for value, null in zip(values, nulls, strict=True):
        expected += struct.pack("!h", 2)
        expected += b"\xff\xff\xff\xff" if null else struct.pack("!ii", 4, value)
        expected += field(b"a") if null else b"\xff\xff\xff\xff"
    assert data == expected


def test_strides_and_types_do_not_matter(rng):
    base = rng.standard_normal((60, 40))
    for view in (base[::-2, ::3], base.astype(">f8")[:, :5], base.T, np.asfortranarray(base)):
        for kind in ("vector", "halfvec", "float4[]"):
            assert encode((kind, view)) == encode((kind, np.array(view, "f4", order="C")))
    codes = Quantizer(20).encode(base[:, :20])
    assert encode(("bqvec", codes[::-3])) == encode(("bqvec", codes[::-3].copy()))
    ids = np.arange(60)
    assert encode(("int8", ids[::-7])) == encode(("int8", ids[::-7].astype(">i4")))


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ([], ValueError, "expected 1 to 1600 columns, got 0"),
        ([("int8", [1])] * 1601, ValueError, "expected 1 to 1600 columns, got 1601"),
        ([("int8",)], TypeError, "column 0: expected (kind, values)"),
        ([("json", ["1"])], ValueError, "column 0: expected a kind of bool, int2"),
        ([("int8", [1]), ("int8", [1, 2])], ValueError, "column 1: expected 1 rows as in column 0"),
        ([("int8", [[1]])], ValueError, "column 0: expected shape (n,) for int8, got (1, 1)"),
        ([("vector", [1.0])], ValueError, "column 0: expected shape (n, m) for vector, got (1,)"),
        ([("vector", np.zeros((2, 0)))], ValueError, "column 0: expected at least one value"),
        ([("vector", np.zeros((1, 16001)))], ValueError, "at most 16000 dimensions for vector"),
        ([("int8", [1.5])], TypeError, "column 0: expected integers for int8, got dtype float64"),
        ([("float8", ["1"])], TypeError, "column 0: expected numbers for float8"),
        ([("bqvec", [[1, 2]])], TypeError, "column 0: expected dtype uint8 for bqvec"),
        ([("bool", [1])], TypeError, "column 0: expected dtype bool, got int64"),
        ([("int2", [1, 40000])], ValueError, "column 0, row 1: 40000 is out of range for int2"),
        ([("int4", [-(2**31) - 1])], ValueError, "column 0, row 0: -2147483649 is out of range"),
        ([("int8", np.array([2**63], "u8"))], ValueError, "is out of range for int8"),
        ([("int8", [1], [True, False])], ValueError, "expected nulls of dtype bool, shape (1,)"),
        ([("int8", [1], [1])], ValueError, "expected nulls of dtype bool, shape (1,), got int64"),
        ([("text", [b"a"])], TypeError, "column 0, row 0: expected str or None, got bytes"),
        ([("text", ["a", 5])], TypeError, "column 0, row 1: expected str or None, got int"),
        ([("bytea", ["a"])], TypeError, "column 0, row 0: expected bytes or None, got str"),
        ([("uuid", ["a"])], TypeError, "column 0, row 0: expected uuid.UUID or None, got str"),
        ([("uuid", [b"a"])], ValueError, "column 0, row 0: expected 16 bytes, got 1"),
    ],
)
def test_wrong_columns(columns, error, message):
    with pytest.raises(error) as raised:
        encode(*columns)
    assert message in str(raised.value)


def test_arguments_are_checked_at_the_call():
    with pytest.raises(ValueError, match="column 0"):
        _copy.encode_rows([("int2", [40000])])
    with pytest.raises(ValueError, match="expected chunk_nbytes of at least 1, got 0"):
        _copy.encode_rows([("int2", [4])], 0)


def test_field_over_one_gigabyte_is_refused():
    width = 2**28
    huge = np.broadcast_to(np.zeros(1, np.float32), (1, width))
    with pytest.raises(ValueError, match="more than PostgreSQL's 1 GB"):
        _copy.encode_rows([("float4[]", huge)])


def reference(kind, value):
    """The wire form of one value, by struct."""
    if value is None:
        return b"\xff\xff\xff\xff"
    if kind == "text":
        return field(value.encode())
    if kind in ("bytea", "uuid"):
        return field(getattr(value, "bytes", value))
    if kind == "bqvec":
        return field(value.tobytes())
    numbers = value.tolist()
    if kind in ("vector", "halfvec"):
        letter = "f" if kind == "vector" else "e"
        return field(struct.pack(f"!hh{len(numbers)}{letter}", len(numbers), 0, *numbers))
    if kind == "float4[]":
        items = b"".join(field(struct.pack("!f", number)) for number in numbers)
        return field(struct.pack("!iiiii", 1, 0, 700, len(numbers), 1) + items)
    letters = {"int2": "h", "int4": "i", "int8": "q", "float4": "f", "float8": "d", "bool": "?"}
    return field(struct.pack(f"!{letters[kind]}", numbers))


@given(st.integers(0, 30), st.integers(1, 40), st.integers(0, 2**32), st.integers(1, 300))
def test_bytes_equal_reference(n, dim, seed, chunk_nbytes):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    columns = {
        "int2": rng.integers(-(2**15), 2**15, n, dtype="i2"),
        "int4": rng.integers(-(2**31), 2**31, n, dtype="i4"),
        "int8": rng.integers(-(2**63), 2**63, n, dtype="i8"),
        "float4": rng.standard_normal(n).astype("f4"),
        "float8": rng.standard_normal(n),
        "bool": rng.random(n) < 0.5,
        "bqvec": Quantizer(dim).encode(vectors),
        "vector": vectors,
        "halfvec": vectors.astype("f2"),
        "float4[]": vectors,
        "text": [None if i % 5 == 4 else "ä" * i for i in range(n)],
        "bytea": [None if i % 5 == 3 else bytes(i) for i in range(n)],
        "uuid": [None if i % 5 == 2 else uuid.UUID(int=i) for i in range(n)],
    }
    count = struct.pack("!h", len(columns))
    rows = [
        count + b"".join(reference(kind, values[i]) for kind, values in columns.items())
        for i in range(n)
    ]
    assert encode(*columns.items(), chunk_nbytes=chunk_nbytes) == b"".join(rows)
