"""Sizes and numbers at each limit, and one beyond: what fits works, what does not is refused.

Beyond means an error for the user, never a number that wrapped around.  SECURITY.md lists limits.
"""

from __future__ import annotations

import struct
from typing import Any, cast

import psycopg
import pytest
from shared import Conn

INT_MAX = 2**31 - 1
LARGEST_NORM = float.fromhex("0x1.fffffep+120")  # BQ_MAX_NORM
ABOVE_NORM = float.fromhex("0x1p+121")

# What holds at a limit, and what is said beyond it.
LIMITS = [
    # dimensions: of values made, read, received, declared and indexed
    (
        "vector_dims(bq_encode(array_fill(1::real, ARRAY[{}])))",
        (16000, 16000),
        (16001, "dimensions must be between 1 and 16000"),
    ),
    (
        "vector_dims(bq_query(array_fill(1::real, ARRAY[{}]), 1))",
        (16000, 16000),
        (16001, "dimensions must be between 1 and 16000"),
    ),
    (
        "vector_dims(('0:1:' || repeat('3', {}))::bqvec)",
        (16000, 16000),
        (16001, "dimensions must be between 1 and 16000"),
    ),
    (
        "vector_dims(('0:[' || repeat('1,', {} - 1) || '1]')::bqquery)",
        (16000, 16000),
        (16001, "dimensions must be between 1 and 16000"),
    ),
    (
        "(bq_statistics(array_fill(1::real, ARRAY[{}]))).count",
        (16000, 1),
        (16001, "dimensions must be between 1 and 16000"),
    ),
    # texts much longer than any code
    (
        "vector_dims(('0:1:' || repeat('3', {}))::bqvec)",
        (1, 1),
        (20_000_000, "dimensions must be between 1 and 16000"),
    ),
    ("NULL::bqvec({})", (16000, None), (16001, "dimensions must be between 1 and 16000")),
    ("NULL::bqvec(3, {})", (65535, None), (65536, "65535")),
    ("NULL::bqvec({})", (1, None), (0, "dimensions must be between 1 and 16000")),
    ("NULL::bqvec(3, {})", (0, None), (-1, "0")),
    ("NULL::bqvec({})", (1, None), (2**31, "out of range")),
    # transforms
    ("transform(bq_encode('{{1,2}}', {}))", (65535, 65535), (65536, "65535")),
    ("transform(bq_encode('{{1,2}}', {}))", (0, 0), (-1, "-1")),
    ("transform('{}:1:03'::bqvec)", (65535, 65535), (65536, "65535")),
    ("transform('{}:[1,2]'::bqquery)", (65535, 65535), (65536, "65535")),
    # norms, of which sums and products must stay finite
    (
        "vector_norm(bq_encode(ARRAY[{}::real, 0]))",
        (LARGEST_NORM, LARGEST_NORM),
        (ABOVE_NORM, "norm"),
    ),
    (
        "vector_norm(bq_query(ARRAY[{}::real, 0]))",
        (LARGEST_NORM, LARGEST_NORM),
        (ABOVE_NORM, "norm"),
    ),
    ("vector_norm('0:{}:03'::bqvec)", (LARGEST_NORM, LARGEST_NORM), (ABOVE_NORM, "norm")),
    # statistics
    (
        "(bq_merge(ROW({}, '{{0}}', '{{0}}', '{{0}}', '{{0}}', '{{0}}', '{{0}}', 0, '{{0,0}}',"
        " '{{0,0}}', '{{0,0}}')::bq_statistics, NULL)).count",
        (2**53, 2**53),
        (2**53 + 1, "9007199254740992"),
    ),
    # settings
    ("set_config('bq.probes', '{}', true)", (65536, "65536"), (65537, "outside the valid range")),
    (
        "set_config('bq.max_scan_tuples', '{}', true)",
        (INT_MAX, str(INT_MAX)),
        (INT_MAX + 1, "invalid value"),
    ),
    ("set_config('bq.recall', '{}', true)", (1, "1"), (1.0000001, "outside the valid range")),
]


@pytest.mark.parametrize(("expression", "at", "beyond"), LIMITS)
def test_values_at_their_limit(
    conn: Conn, expression: str, at: tuple[Any, Any], beyond: tuple[Any, str]
) -> None:
    conn.execute("SELECT bq_simd()")  # the library, which knows its settings, is loaded
    query = f"SELECT {expression}"
    assert conn.execute(cast(Any, query.format(at[0]))).fetchone() == (at[1],)
    with pytest.raises(psycopg.DataError, match=beyond[1]):
        conn.execute(cast(Any, query.format(beyond[0])))


@pytest.mark.parametrize("type_name", ["bqvec", "bqquery"])
def test_received_lengths_are_those_of_the_dimensions(conn: Conn, type_name: str) -> None:
    """One byte less, one more, and what a header says of values that are not there."""

    def receive(value: bytes) -> tuple[Any, ...] | None:
        with conn.transaction(force_rollback=True):
            conn.execute(cast(Any, f"CREATE TEMP TABLE received (v {type_name})"))
            with conn.cursor().copy("COPY received FROM STDIN (FORMAT binary)") as copy:
                start = b"PGCOPY\n\xff\r\n\0" + struct.pack(">iihi", 0, 0, 1, len(value))
                copy.write(start + value + b"\xff\xff")
            return conn.execute("SELECT vector_dims(v) FROM received").fetchone()

    def make(dim: int, said: int) -> bytes:
        """A value of `dim` dimensions that says that it has `said`."""
        if type_name == "bqquery":
            return struct.pack(">HH", said, 0) + dim * struct.pack(">f", 1)
        planes = bytearray(2 * -(-dim // 8))
        planes[0] = 1
        return struct.pack(">HHf", said, 0, 1) + bytes(planes)

    for dim in (1, 8, 9, 16000):
        assert receive(make(dim, dim)) == (dim,)
        for wrong in (make(dim, dim)[:-1], make(dim, dim) + b"\0"):
            with pytest.raises(psycopg.errors.InvalidBinaryRepresentation):
                receive(wrong)
    for dim, said in ((16001, 16001), (65535, 65535), (16000, 65535), (1, 0), (1, 16000)):
        with pytest.raises(psycopg.errors.InvalidBinaryRepresentation):
            receive(make(dim, said))


@pytest.mark.usefixtures("bq_pgvector")
def test_indexes_at_their_limits(conn: Conn) -> None:
    """Dimensions, keys, options; one beyond is refused, and leaves nothing behind."""
    keys = ", ".join(f"k{i}" for i in range(9))
    columns = ", ".join(f"k{i} int" for i in range(9))
    conn.execute(
        cast(
            Any,
            f"CREATE TABLE items (c bqvec(8000), d bqvec(8001), h halfvec(8000), {columns},"
            " v vector(3), w halfvec(8001))",
        )
    )
    conn.execute(
        "INSERT INTO items (c, h, v) SELECT bq_encode(array_fill(i::real, ARRAY[8000])),"
        " array_fill(1::real, ARRAY[8000])::halfvec, ARRAY[i, 1, 1]::vector"
        " FROM generate_series(1, 3) AS i"
    )
    eight = keys.rpartition(", ")[0]
    for at, beyond, error in (
        ("(c)", "(d)", "more than 8000 dimensions"),
        ("(h halfvec_l2_ops)", "(w halfvec_l2_ops)", "more than 8000 dimensions"),
        (f"(v vector_l2_ops, {eight})", f"(v vector_l2_ops, {keys})", "8"),
        *(
            (
                f"(v vector_l2_ops) WITH ({name} = {largest})",
                f"(v vector_l2_ops) WITH ({name} = {above})",
                f'value {above} out of bounds for option "{name}"',
            )
            for name, largest, above in (
                ("lists", 65536, 65537),
                ("probes", 65536, 65537),
                ("transform", 65535, 65536),
                ("transform", -1, -2),
                ("recall", 1, 1.1),
            )
        ),
    ):
        conn.execute(cast(Any, f"CREATE INDEX made ON items USING bq {at}"))
        conn.execute("SELECT bq_index_check('made', true), bq_index_info('made')")
        conn.execute("INSERT INTO items (v) VALUES ('[1,2,3]')")
        conn.execute("DROP INDEX made")
        with pytest.raises(psycopg.Error, match=error), conn.transaction():
            conn.execute(cast(Any, f"CREATE INDEX made ON items USING bq {beyond}"))


@pytest.mark.parametrize("order", ["strict_order", "relaxed_order", "off"])
@pytest.mark.usefixtures("bq_pgvector")
def test_limits_of_queries(conn: Conn, order: str) -> None:
    """LIMIT and OFFSET as large as they get, with the largest settings."""
    conn.execute("CREATE TABLE items (id int, v vector(3), code bqvec(3))")
    conn.execute(
        "INSERT INTO items SELECT i, ARRAY[i, 1, i % 5]::vector, bq_encode(ARRAY[i, 1, i % 5])"
        " FROM generate_series(1, 500) AS i"
    )
    conn.execute("CREATE INDEX of_vectors ON items USING bq (v vector_l2_ops) WITH (lists = 5)")
    conn.execute("CREATE INDEX of_codes ON items USING bq (code) WITH (lists = 5)")
    conn.execute("SET enable_seqscan = off")
    conn.execute("SET enable_sort = off")
    conn.execute("SET bq.probes = 65536")
    conn.execute("SET bq.recall = 1")
    conn.execute(f"SET bq.max_scan_tuples = {INT_MAX}")  # type: ignore[arg-type]
    conn.execute(f"SET bq.iterative_scan = {order}")  # type: ignore[arg-type]
    for column, operand, index in (
        ("v <->", "'[9,9,9]'", "of_vectors"),
        ("code <->", "bq_query('{{9,9,9}}')", "of_codes"),
    ):
        query = f"SELECT id FROM items ORDER BY {column} {operand} LIMIT {{}} OFFSET {{}}"
        for limit, offset, found in (
            (INT_MAX, 0, 500),
            (INT_MAX + 1, 0, 500),
            (2**63 - 1, 0, 500),
            (2**63 - 1, 2**63 - 1, 0),
            (1, 2**63 - 1, 0),
            (1, 499, 1),
        ):
            text = cast(Any, query.format(limit, offset))
            assert index in str(conn.execute("EXPLAIN " + text).fetchall())
            assert len(conn.execute(text).fetchall()) == found


@pytest.mark.usefixtures("bq_pgvector")
def test_arguments_of_functions(conn: Conn) -> None:
    """No more is taken, or asked of memory, than there are rows."""
    conn.execute("CREATE TABLE items (id int, v vector(3), code bqvec(3))")
    conn.execute(
        "INSERT INTO items SELECT i, ARRAY[i, 1, i % 5]::vector, bq_encode(ARRAY[i, 1, i % 5])"
        " FROM generate_series(1, 100) AS i"
    )
    conn.execute("CREATE INDEX of_vectors ON items USING bq (v vector_l2_ops)")
    conn.execute("CREATE INDEX of_codes ON items USING bq (code)")
    conn.execute("SELECT bq_register_column('items', 'code', 'v', 3, 'l2', 0)")
    for index in ("of_vectors", "of_codes"):
        recall = "SELECT bq_recall(%s, 2, %s)"
        assert conn.execute(recall, [index, INT_MAX]).fetchone() == (1,)
        for sample, k in ((0, 1), (1, 0), (-INT_MAX - 1, 1), (1, -INT_MAX - 1)):
            with pytest.raises(psycopg.DataError, match="must be positive"), conn.transaction():
                conn.execute("SELECT bq_recall(%s, %s, %s)", [index, sample, k])
    sampled = "SELECT (bq_sample_statistics('items', 'code', %s)).count"
    assert conn.execute(sampled, [INT_MAX]).fetchone() == (100,)
    with pytest.raises(psycopg.DataError, match="at least 1 row"), conn.transaction():
        conn.execute(sampled, [0])
    loaded = "SELECT bq_record_load('items', 'a', %s, %s, 'a', %s)"
    conn.execute(loaded, [INT_MAX, INT_MAX, 2**63 - 1])
    for numbers in ((-1, 1, 1), (0, 0, 1), (0, 1, -1)):
        with pytest.raises(psycopg.errors.CheckViolation), conn.transaction():
            conn.execute(loaded, numbers)


@pytest.mark.parametrize("modifier", [-(2**31), -2, 0, 16383, 16384, 2**30, 2**30 + 3, INT_MAX])
def test_modifiers_that_no_type_has(conn: Conn, modifier: int) -> None:
    """Functions of casts and of input can be called with any number: they refuse it, or adjust."""
    for call in (
        "bqvec_in('0:1:03', 0, %s)",
        "bqvec('0:1:03'::bqvec, %s, true)",
        "array_to_bqvec('{1,2}', %s, true)",
        "bqvec_typmod_out(%s)",
    ):
        try:
            with conn.transaction():
                row = conn.execute(cast(Any, f"SELECT {call}::text"), [modifier]).fetchone()
            assert row is not None and row[0] is not None
        except psycopg.DataError as error:
            assert "bqvec" in str(error) or "dimensions" in str(error) or "transform" in str(error)
