"""SQL and Python are one: the same bytes, texts and distances, whatever kernel each runs."""

import itertools

import numpy as np
import psycopg
import pytest

from pybq import Code, Quantizer, Query, kernels, set_kernel
from pybq._codes import core

DIMS = [*range(1, 131), 384, 512, 768, 1000, 1024, 1536, 3072, 16000]
TRANSFORMS = [0, 1, 65535]


def hard_vectors(rng, dim):
    """Float32 values of every size, and the shapes of vector that are rare."""
    normal = rng.standard_normal((8, dim)).astype(np.float32)
    normal[1] *= np.float32(1e-40)  # denormals
    normal[2] *= np.float32(1e34)
    normal[3] *= np.exp2(rng.integers(-140, 60, dim)).astype(np.float32)
    normal[4] = 0
    normal[5] = -0.75  # constant
    normal[6, ::2] = 0
    normal[7] = np.where(rng.random(dim) < 0.9, 0, 2.0**-149)  # one or none smallest denormal
    return normal


def available_in_sql(conn, names):
    conn.execute("SELECT bq_simd()")  # loads the library, which then checks the setting
    available = []
    for name in names:
        with conn.cursor() as cursor:
            try:
                with conn.transaction():
                    cursor.execute("SELECT set_config('bq.kernel', %s, false)", [name])
                available.append(name)
            except psycopg.errors.InvalidParameterValue as error:
                assert "bq.kernel" in str(error)
    return available


@pytest.mark.once
def test_bytes_are_the_same_for_every_kernel(conn, rng, restore_kernel):
    python_kernels = kernels()
    sql_kernels = available_in_sql(conn, ["portable", "avx2", "avx512", "neon"])
    assert set(sql_kernels) == set(python_kernels) and "portable" in sql_kernels

    for dim in DIMS:
        vectors = hard_vectors(rng, dim)
        texts = ["{" + ",".join(map(repr, map(float, row))) + "}" for row in vectors]
        for transform in TRANSFORMS:
            quantizer = Quantizer(dim, transform)
            quiver = Quantizer(dim, transform, cut="mean")
            expected = {}
            for name in python_kernels:
                set_kernel(name)
                expected[name] = (
                    quantizer.encode(vectors).tobytes(),
                    quiver.encode(vectors).tobytes(),
                    b"".join(quantizer.query(row).to_binary() for row in vectors),
                    quantizer.decode(quantizer.encode(vectors)).astype(">f4").tobytes(),
                )
            for name in sql_kernels:
                conn.execute("SELECT set_config('bq.kernel', %s, false)", [name])
                assert conn.execute("SELECT bq_simd()").fetchone() == (name,)
                found = conn.execute(
                    """
                    WITH x AS MATERIALIZED (
                        SELECT i, t::real[] AS v FROM unnest(%s::text[]) WITH ORDINALITY x(t, i)
                    )
                    SELECT string_agg(bqvec_send(bq_encode(v, %s)), '' ORDER BY i),
                           string_agg(bqvec_send(quiver_encode(v, %s)), '' ORDER BY i),
                           string_agg(bqquery_send(bq_query(v, %s)), '' ORDER BY i),
                           array_agg(bq_decode(bq_encode(v, %s)) ORDER BY i)
                    FROM x
                    """,
                    [texts, transform, transform, transform, transform],
                    binary=True,
                ).fetchone()
                decoded = np.array(found[3]).astype(">f4").tobytes()
                for python_name, values in expected.items():
                    where = f"dim {dim}, transform {transform}: SQL {name}, Python {python_name}"
                    assert found[0] == values[0], where
                    assert found[1] == values[1], where
                    assert found[2] == values[2], where
                    assert decoded == values[3], where


@pytest.mark.parametrize("dim", [1, 7, 64, 384, 1000])
@pytest.mark.parametrize("transform", [0, 9])
def test_distances_are_the_same_for_every_kernel(conn, rng, restore_kernel, dim, transform):
    quantizer = Quantizer(dim, transform)
    codes = quantizer.encode(hard_vectors(rng, dim))
    query = quantizer.query(rng.standard_normal(dim))
    values = [Code.from_numpy(code) for code in codes]
    code = values[0]
    for sql_kernel, python_kernel in itertools.product(kernels(), kernels()):
        conn.execute("SELECT set_config('bq.kernel', %s, false)", [sql_kernel])
        set_kernel(python_kernel)
        rows = conn.execute(
            """
            SELECT c <~> %(code)s, hamming_distance(c, %(code)s), sign_distance(c, %(code)s),
                   quiver_distance(c, %(code)s), c <=> %(query)s, cosine_distance(c, %(query)s),
                   c <#> %(query)s, inner_product(c, %(query)s), c <-> %(query)s,
                   l2_distance(c, %(query)s)
            FROM unnest(%(codes)s::bqvec[]) WITH ORDINALITY x(c, i) ORDER BY i
            """,
            {"code": code, "query": query, "codes": values},
            binary=True,
        ).fetchall()
        columns = list(map(list, zip(*rows, strict=True)))
        hamming = core.hamming_distances(codes, code.to_numpy()).tolist()
        cosine = core.cosine_distances(codes, query.values).tolist()
        product = core.inner_products(codes, query.values).tolist()
        l2 = core.l2_distances(codes, query.values).tolist()
        assert columns == [
            hamming,
            hamming,
            core.sign_distances(codes, code.to_numpy()).tolist(),
            core.quiver_distances(codes, code.to_numpy()).tolist(),
            cosine,
            cosine,
            [-value for value in product],
            product,
            l2,
            l2,
        ]


def test_texts_of_one_are_read_by_the_other(conn, rng):
    scales = np.exp2(rng.uniform(-149, 118, 3000)).astype(np.float32)
    rows = Quantizer(3, 7).encode(scales[:, None] * rng.standard_normal((3000, 3)))
    codes = [Code.from_numpy(row) for row in rows]
    signed = (scales * rng.choice([-1, 0, 1], 3000)).reshape(300, 10)
    queries = [Query(row, 7) for row in signed]
    for name, values in {"bqvec": codes, "bqquery": queries}.items():
        texts = [value.to_text() for value in values]
        found = conn.execute(
            f"""
            SELECT t::{name}, v::text
            FROM unnest(%s::{name}[], %s::text[]) WITH ORDINALITY x(v, t, i) ORDER BY i
            """,
            [values, texts],
        ).fetchall()
        assert [row[0] for row in found] == values
        assert [type(values[0]).from_text(row[1]) for row in found] == values


def test_python_reads_texts_of_sql(conn, rng):
    for transform in TRANSFORMS:
        vector = rng.standard_normal(77).astype("f4").tolist()
        code, query = conn.execute(
            "SELECT bq_encode(%s::real[], %s)::text, bq_query(%s::real[], %s)::text",
            [vector, transform, vector, transform],
        ).fetchone()
        quantizer = Quantizer(77, transform)
        assert Code.from_text(code) == Code.from_numpy(quantizer.encode(vector))
        assert Query.from_text(query) == quantizer.query(vector)


@pytest.mark.parametrize("values", [[float("nan"), 1.0], [1.0, float("-inf")], [3e38, 3e38]])
def test_both_refuse_the_same_vectors_in_the_same_words(conn, values):
    with pytest.raises(ValueError) as python:
        Quantizer(2).encode(np.array(values, "f4"))
    with pytest.raises(Exception) as sql:
        conn.execute("SELECT bq_encode(%s::real[], 0)", [values])
    assert sql.value.sqlstate.startswith("22")
    assert sql.value.diag.message_primary == str(python.value)
