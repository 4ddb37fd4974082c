"""PostgreSQL reads what the encoder of COPY writes."""

import uuid

import numpy as np
import psycopg
import pytest

from pybq import Quantizer
from pybq._loading import copy as _copy


def copy_in(conn, table, columns, **options):
    with conn.cursor().copy(f"COPY {table} FROM STDIN (FORMAT binary)") as copy:
        copy.write(_copy.HEADER)
        for chunk in _copy.encode_rows(columns, **options):
            copy.write(chunk)
        copy.write(_copy.TRAILER)


@pytest.mark.parametrize("chunk_nbytes", [300, 1 << 20])
def test_every_kind_comes_back(conn, rng, chunk_nbytes):
    n = 200
    vectors = rng.standard_normal((n, 24)).astype("f4")
    columns = {
        "int2": rng.integers(-(2**15), 2**15, n, dtype="i2"),
        "int4": rng.integers(-(2**31), 2**31, n, dtype="i4"),
        "int8": rng.integers(-(2**63), 2**63, n, dtype="i8"),
        "float4": rng.standard_normal(n).astype("f4"),
        "float8": rng.standard_normal(n),
        "bool": rng.random(n) < 0.5,
        "bqvec": Quantizer(24, 5).encode(vectors),
        "float4[]": vectors,
        "text": [f"zeile ü {i}" if i % 3 else None for i in range(n)],
        "bytea": [rng.bytes(i) if i % 3 else None for i in range(n)],
        "uuid": [uuid.UUID(int=i) if i % 3 else None for i in range(n)],
    }
    types = [kind if kind != "bqvec" else "bqvec(24)" for kind in columns]
    definition = ", ".join(f"c{i} {kind}" for i, kind in enumerate(types))
    conn.execute(f"CREATE TABLE t ({definition})")
    copy_in(conn, "t", list(columns.items()), chunk_nbytes=chunk_nbytes)
    found = zip(*conn.execute("SELECT * FROM t ORDER BY ctid").fetchall(), strict=True)
    for (kind, values), stored in zip(columns.items(), found, strict=True):
        if kind == "bqvec":
            stored = [code.to_numpy() for code in stored]
        if isinstance(values, list):
            assert list(stored) == values, kind
        else:  # float4 goes by way of float8, which keeps it
            assert np.array_equal(np.array(stored).astype(values.dtype), values), kind


def test_pgvector_types_come_back(conn, vector, rng):
    vectors = rng.standard_normal((50, 24)).astype("f4")
    conn.execute("CREATE TABLE t (v vector(24), h halfvec(24))")
    copy_in(conn, "t", [("vector", vectors), ("halfvec", vectors)])
    found = conn.execute("SELECT v::real[], h::real[] FROM t ORDER BY ctid").fetchall()
    v, h = (np.array(column, "f4") for column in zip(*found, strict=True))
    assert np.array_equal(v, vectors)
    assert np.array_equal(h, vectors.astype("f2").astype("f4"))


def test_null_masks_become_null(conn, rng):
    nulls = rng.random(300) < 0.5
    conn.execute("CREATE TABLE t (id int, code bqvec)")
    codes = Quantizer(9).encode(rng.standard_normal((300, 9)))
    copy_in(conn, "t", [("int4", np.arange(300)), ("bqvec", codes, nulls)])
    found = conn.execute("SELECT code IS NULL FROM t ORDER BY id").fetchall()
    assert [row[0] for row in found] == nulls.tolist()


def test_server_checks_codes(conn):
    conn.execute("CREATE TABLE t (code bqvec)")
    codes = Quantizer(9).encode(np.ones((1, 9)))
    codes[0, -1] |= 0x80
    with pytest.raises(psycopg.errors.InvalidBinaryRepresentation, match="beyond"):
        copy_in(conn, "t", [("bqvec", codes)])
