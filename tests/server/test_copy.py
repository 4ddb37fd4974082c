"""PostgreSQL reads what the COPY encoder writes, and the decoder what PostgreSQL writes."""

import uuid

import numpy as np
import psycopg
import pytest

from pybq import Code, Quantizer
from pybq._loading import copy as _copy


def copy_in(conn, table, columns, **options):
    with conn.cursor().copy(f"COPY {table} FROM STDIN (FORMAT binary)") as copy:
        for chunk in _copy.encode_rows(columns, **options):
            copy.write(chunk)


def copy_out(conn, query, kinds):
    with conn.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT binary)") as copy:
        return _copy.decode_rows(b"".join(copy), kinds)


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
    found = copy_out(conn, "SELECT * FROM t ORDER BY ctid", list(columns))
    for (kind, values), decoded in zip(columns.items(), found, strict=True):
        if isinstance(values, list):
            assert decoded == values, kind
        else:
            assert decoded.dtype == values.dtype and np.array_equal(decoded, values), kind
    row = conn.execute("SELECT c2, c6, c7, c8 FROM t ORDER BY ctid OFFSET 7 LIMIT 1").fetchone()
    assert row[0] == columns["int8"][7]
    assert row[1] == Code.from_numpy(columns["bqvec"][7])
    assert np.array_equal(np.array(row[2], "f4"), vectors[7])
    assert row[3] == "zeile ü 7"


def test_pgvector_types_come_back(conn, vector, rng):
    vectors = rng.standard_normal((50, 24)).astype("f4")
    conn.execute("CREATE TABLE t (v vector(24), h halfvec(24))")
    copy_in(conn, "t", [("vector", vectors), ("halfvec", vectors)])
    v, h = copy_out(conn, "SELECT v, h FROM t ORDER BY ctid", ["vector", "halfvec"])
    assert np.array_equal(v, vectors)
    assert np.array_equal(h, vectors.astype("f2"))
    found = conn.execute("SELECT v FROM t ORDER BY ctid OFFSET 4 LIMIT 1").fetchone()[0]
    assert np.array_equal(np.asarray(found.to_numpy()), vectors[4])


def test_null_masks_become_null(conn, rng):
    nulls = rng.random(300) < 0.5
    conn.execute("CREATE TABLE t (id int, code bqvec)")
    codes = Quantizer(9).encode(rng.standard_normal((300, 9)))
    copy_in(conn, "t", [("int4", np.arange(300)), ("bqvec", codes, nulls)])
    found = conn.execute("SELECT code IS NULL FROM t ORDER BY id").fetchall()
    assert [row[0] for row in found] == nulls.tolist()
    with pytest.raises(ValueError, match=f"row {np.argmax(nulls)}, column 0: NULL"):
        copy_out(conn, "SELECT code FROM t ORDER BY id", ["bqvec"])


def test_server_checks_codes(conn):
    conn.execute("CREATE TABLE t (code bqvec)")
    codes = Quantizer(9).encode(np.ones((1, 9)))
    codes[0, -1] |= 0x80
    with pytest.raises(psycopg.errors.InvalidBinaryRepresentation, match="beyond"):
        copy_in(conn, "t", [("bqvec", codes)])


def test_empty_result(conn):
    ids, codes, names = copy_out(
        conn,
        "SELECT 1::int8, bq_encode(ARRAY[1.0], 0), 'x' WHERE false",
        ["int8", "bqvec", "text"],
    )
    assert ids.shape == (0,) and codes.shape == (0, 0) and names == []
