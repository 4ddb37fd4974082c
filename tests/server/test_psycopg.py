"""psycopg adapters: values go in and come back, in text and binary, sync and async."""

import asyncio

import numpy as np
import psycopg
import pytest
from psycopg.types import TypeInfo
from shared import as_array

from pybq import Code, ExtensionMissingError, Quantizer, Query
from pybq.psycopg import register_bq, register_bq_async

VECTOR = [0.5, -2.0, 0.25, 1e-3]


@pytest.fixture
def code():
    return Code.from_numpy(Quantizer(4, 3).encode(VECTOR))


@pytest.fixture
def query():
    return Quantizer(4, 3).query(VECTOR)


@pytest.mark.parametrize("result_binary", [False, True])
@pytest.mark.parametrize("placeholder", ["%s", "%t", "%b"])
def test_values_come_back(conn, code, query, placeholder, result_binary):
    with conn.cursor(binary=result_binary) as cursor:
        for value, name in ((code, "bqvec"), (query, "bqquery")):
            row = cursor.execute(
                f"SELECT {placeholder}, {placeholder}::text, pg_typeof({placeholder})::text",
                [value] * 3,
            ).fetchone()
            assert row == (value, value.to_text(), name)
            assert type(row[0]) is type(value)


def test_values_equal_those_made_in_sql(conn, code, query):
    row = conn.execute(
        "SELECT bq_encode(%(v)s::real[], 3), bq_query(%(v)s::real[], 3)", {"v": VECTOR}
    ).fetchone()
    assert row == (code, query)


def test_operators_take_parameters(conn, code, query):
    distances = conn.execute(
        "SELECT %(c)s <~> %(c)s, %(c)s <=> %(q)s, %(c)s <#> %(q)s, %(c)s <-> %(q)s",
        {"c": code, "q": query},
    ).fetchone()
    decoded = Quantizer(4, 3).decode(code).astype(float)
    product = decoded @ VECTOR
    assert distances[0] == 0
    assert distances[1] == pytest.approx(1 - product / np.linalg.norm(VECTOR) ** 2, abs=1e-6)
    assert distances[2] == pytest.approx(-product, rel=1e-5)
    assert distances[3] == pytest.approx(np.linalg.norm(decoded - VECTOR), rel=1e-5)


def test_null_and_arrays(conn, code):
    other = Code.from_text("3:1:0123")
    assert conn.execute("SELECT NULL::bqvec").fetchone() == (None,)
    assert conn.execute("SELECT %s::bqvec[]", [[code, None, other]]).fetchone() == (
        [code, None, other],
    )


@pytest.mark.parametrize("form", ["text", "binary"])
def test_copy_with_set_types(conn, rng, form):
    quantizer = Quantizer(20, 1)
    vectors = rng.standard_normal((30, 20))
    codes = quantizer.encode(vectors)
    conn.execute("CREATE TABLE t (id int8, code bqvec(20), query bqquery)")
    with conn.cursor().copy(f"COPY t FROM STDIN (FORMAT {form})") as copy:
        if form == "binary":
            copy.set_types(["int8", "bqvec", "bqquery"])
        for i, row in enumerate(codes):
            # arrays are taken as well, where set_types() says which type they are
            value = row if i % 2 and form == "binary" else Code.from_numpy(row)
            copy.write_row((i, value, quantizer.query(vectors[i])))
    expected = [(i, Code.from_numpy(codes[i]), quantizer.query(vectors[i])) for i in range(30)]
    assert conn.execute("SELECT * FROM t ORDER BY id").fetchall() == expected
    with conn.cursor().copy(
        f"COPY (SELECT * FROM t ORDER BY id) TO STDOUT (FORMAT {form})"
    ) as copy:
        copy.set_types(["int8", "bqvec", "bqquery"])
        assert list(copy.rows()) == expected


def test_copy_refuses_other_values(conn):
    conn.execute("CREATE TABLE t (code bqvec)")
    with pytest.raises(TypeError, match="expected Code or ndarray, got str"):
        with conn.cursor().copy("COPY t FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["bqvec"])
            copy.write_row(("0:1:1",))


@pytest.mark.parametrize("bq_first", [False, True])
def test_together_with_pgvector(conn, vector, code, bq_first):
    from pgvector.psycopg import register_vector

    with psycopg.connect(conn.info.dsn) as other:
        for register in [register_bq, register_vector][:: 1 if bq_first else -1]:
            register(other)
        array = np.array(VECTOR, np.float32)
        row = other.execute("SELECT %s, %s, pg_typeof(%s)::text", [array, code, array]).fetchone()
        assert np.array_equal(as_array(row[0]), array)
        assert row[1:] == (code, "vector")
        assert other.execute("SELECT bq_encode(%s::vector::real[], 3)", [array]).fetchone() == (
            code,
        )


def test_registration_is_of_one_connection(conn, code):
    with psycopg.connect(conn.info.dsn) as other:
        assert other.execute("SELECT bq_encode(%s::real[], 3)", [VECTOR]).fetchone() == (
            code.to_text(),
        )


def test_async(conn, code, query):
    async def run():
        async with await psycopg.AsyncConnection.connect(conn.info.dsn) as other:
            await register_bq_async(other)
            cursor = await other.execute("SELECT %s, %s, %s::text", [code, query, code])
            return await cursor.fetchone()

    assert asyncio.run(run()) == (code, query, code.to_text())


def test_missing_extension_says_what_to_run(conn):
    conn.execute("DROP EXTENSION bq CASCADE")
    assert TypeInfo.fetch(conn, "bqvec") is None
    message = '^type "bqvec" not found; run CREATE EXTENSION bq$'
    with pytest.raises(ExtensionMissingError, match=message):
        register_bq(conn)
    conn.commit()

    async def run():
        async with await psycopg.AsyncConnection.connect(conn.info.dsn) as other:
            await register_bq_async(other)

    with pytest.raises(ExtensionMissingError, match=message):
        asyncio.run(run())


def test_query_class_is_not_mixed_up_with_code(conn, code):
    row = conn.execute("SELECT %s::text", [Query(VECTOR, 3)]).fetchone()
    assert row == (Query(VECTOR, 3).to_text(),) != (code.to_text(),)
