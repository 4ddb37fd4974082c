"""Table: what it creates, what it finds, whose transaction it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.pq import TransactionStatus
from shared import Conn, exact_distances, needs_pgvector

import pybq
from pybq import TableError
from pybq._tables.recall import measure_recall

N, DIM = 300, 24


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((N, DIM), dtype=np.float32) * rng.uniform(0.5, 2, (N, 1))


@pytest.fixture
def store(conn: Conn) -> Any:
    """What the table keeps beside the codes: vectors, if the server has pgvector."""
    found = conn.execute("SELECT to_regtype('halfvec')::text").fetchone()
    conn.commit()
    return None if found is None else found[0]


@pytest.fixture(params=[False, True], ids=["no codes", "codes"])
def table(
    conn: Conn, vectors: np.ndarray, store: Any, request: pytest.FixtureRequest
) -> pybq.Table:
    """One that is searched by its vectors, and one by a column of codes."""
    columns = {"title": "text", "year": "int"}
    codes = request.param or store is None
    table = pybq.Table.create(conn, "items", DIM, store=store, codes=codes, columns=columns)
    table.ingest(range(N), vectors, {"title": [f"title {i}" for i in range(N)]})
    return table


# -- searching ------------------------------------------------------------------------


@needs_pgvector
@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
@pytest.mark.parametrize(("store", "tolerance"), [("vector", 1e-5), ("halfvec", 1e-2)])
def test_reranking_every_row_gives_the_exact_order(
    conn: Conn, vectors: np.ndarray, metric: Any, store: Any, tolerance: float
) -> None:
    table = pybq.Table.create(conn, "items", DIM, metric, store=store, codes=True)
    table.ingest(np.arange(N), vectors)
    query = vectors[7] + 0.1
    distances = exact_distances(metric, vectors, query)

    hits = table.search(query, k=10, rerank=N / 10)

    np.testing.assert_allclose([hit.distance for hit in hits], np.sort(distances)[:10], tolerance)
    np.testing.assert_allclose(
        [hit.distance for hit in hits], [distances[hit.id] for hit in hits], tolerance
    )


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
def test_codes_alone_give_the_order_of_the_codes(
    conn: Conn, vectors: np.ndarray, metric: Any
) -> None:
    table = pybq.Table.create(conn, "items", DIM, metric, store=None, transform=3)
    table.ingest(np.arange(N), vectors)
    query = vectors[7] + 0.1
    quantizer = pybq.Quantizer(DIM, 3)
    decoded = quantizer.decode(quantizer.encode(vectors))
    expected = np.sort(exact_distances(metric, decoded, query))[:10]

    for rerank in (None, 4):  # there is nothing to re-rank with
        hits = table.search(query, k=10, rerank=rerank)
        np.testing.assert_allclose([hit.distance for hit in hits], expected, 1e-5, 1e-5)


@pytest.mark.parametrize("table", [True], indirect=True, ids=["codes"])
def test_rerank_none_gives_the_order_of_the_codes(table: pybq.Table, vectors: np.ndarray) -> None:
    by_code = table.search(vectors[0], k=20, rerank=None)
    exact = exact_distances("cosine", vectors, vectors[0])
    assert [hit.distance for hit in by_code] == sorted(hit.distance for hit in by_code)
    # distances of the codes, not the exact ones
    assert max(abs(hit.distance - exact[hit.id]) for hit in by_code) > 0.01


def test_many_queries_give_what_each_alone_gives(table: pybq.Table, vectors: np.ndarray) -> None:
    alone = [table.search(vector, k=5) for vector in vectors[:20]]
    assert table.search(vectors[:20], k=5) == alone
    assert table.search(vectors[:1], k=5) == alone[:1]
    assert table.search(vectors[:0], k=5) == []


def test_further_columns_come_back(table: pybq.Table, vectors: np.ndarray) -> None:
    hit = table.search(vectors[42], k=1, columns=["year", "title"])[0]
    assert (hit.id, hit["title"], hit["year"]) == (42, "title 42", None)
    assert list(hit.columns) == ["year", "title"]
    assert table.search(vectors[42], k=1)[0].columns == {}


def test_empty_table_has_no_hits(conn: Conn, vectors: np.ndarray, store: Any) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=store)
    assert table.ingest([], vectors[:0]) == 0
    assert table.search(vectors[0]) == []
    assert table.search(vectors[:3]) == [[], [], []]
    table.ingest([5], vectors[:1])
    assert [hit.id for hit in table.search(vectors[0])] == [5]


def test_index_answers_searches(conn: Conn, table: pybq.Table, vectors: np.ndarray) -> None:
    before = table.search(vectors[:20], k=1)
    table.create_index()
    (method,) = conn.execute(
        "SELECT am.amname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " JOIN pg_am am ON am.oid = c.relam WHERE indrelid = 'items'::regclass"
        " AND NOT indisprimary"
    ).fetchone()
    assert method == "bq"
    conn.execute("SET enable_seqscan = off")
    assert table.search(vectors[:20], k=1) == before
    (index,) = table.status().indexes
    assert (index.method, index.live_rows) == ("bq", N) and str(index) in str(table.status())


def test_an_index_is_built_once(conn: Conn, other: Conn, table: pybq.Table) -> None:
    def count_indexes() -> int:
        (found,) = conn.execute(
            "SELECT count(*) FROM pg_index WHERE indrelid = 'items'::regclass AND NOT indisprimary"
        ).fetchone()
        conn.commit()
        return found

    same = pybq.Table(other, "items")
    with ThreadPoolExecutor(1) as pool:
        with conn.transaction():
            table.create_index()
            second = pool.submit(same.create_index)
            with pytest.raises(FutureTimeout):
                second.result(0.5)
        second.result(20)
    table.create_index()
    assert count_indexes() == 1
    # an index of a part of the rows, or an invalid one, is none of all
    column, opclass = table.code_column or table.source_column, ""
    if table.code_column is None:
        opclass = f"{table.store}_cosine_ops"
    conn.execute(f"DROP INDEX items_{column}_idx".encode())
    conn.execute(f"CREATE INDEX ON items USING bq ({column} {opclass}) WHERE id < 10".encode())
    conn.commit()
    table.create_index()
    assert count_indexes() == 2


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (np.zeros(DIM + 1), {}, r"expected a query of shape \(24,\) or \(q, 24\), got \(25,\)"),
        (np.zeros((2, 2, DIM)), {}, r"got \(2, 2, 24\)"),
        (np.full(DIM, np.nan), {}, "NaN|finite"),
        (np.ones(DIM), {"k": 0}, "expected k of at least 1, got 0"),
        (np.ones(DIM), {"rerank": 0.5}, "expected a finite rerank of at least 1, got 0.5"),
        (np.ones(DIM), {"columns": ["nope"]}, "no column 'nope' in table 'items'"),
    ],
)
def test_bad_searches_say_what_is_wrong(
    table: pybq.Table, query: np.ndarray, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        table.search(query, **options)


# -- creating and opening -------------------------------------------------------------


def test_constructor_creates_then_opens(conn: Conn, vectors: np.ndarray, store: Any) -> None:
    table = pybq.Table(conn, "items", dim=DIM, metric="l2", store=store)
    table.ingest(range(N), vectors)
    again = pybq.Table(conn, "items")
    assert (again.dim, again.metric, again.store) == (DIM, "l2", store)
    assert again.search(vectors[3], k=1)[0].id == 3
    assert pybq.Table(conn, "items", dim=DIM).metric == "l2"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nope", {}, "no table 'nope'; give dim to create it"),
        ("items", {"dim": 25}, "table 'items' has dim 24, expected 25"),
        ("items", {"metric": "l2"}, "table 'items' has metric cosine, expected l2"),
        ("plain", {}, "table 'plain' has no codes that pybq made, and no vectors of type halfvec"),
        ("items", {"store": "bit"}, r"has store (halfvec|None), expected bit"),
        ("items", {"id_type": "text"}, "has column 'id' of type bigint, expected text"),
        ("items", {"columns": {"year": "int", "nope": "int"}}, "has no column 'nope', which was"),
        ("items", {"columns": {"year": "text"}}, "column 'year' of type integer, expected text"),
        ("items", {"transform": 9}, "table 'items' has transform ([01]|None), expected 9"),
        ("items", {"column": "nope"}, "has columns (code|embedding)(, embedding)?, expected nope"),
        ("items", {"codes": None, "store": None}, "has store halfvec, expected None"),
    ],
)
def test_opening_checks_what_is_there(
    conn: Conn, table: pybq.Table, name: str, options: dict[str, Any], message: str
) -> None:
    if "codes" in options and table.store is None:
        pytest.skip("a server without pgvector stores nothing")
    conn.execute("CREATE TABLE plain (id int)")
    with pytest.raises(TableError, match=message):
        pybq.Table(conn, name, **options)


def test_options_that_agree_open_and_typos_are_refused(
    conn: Conn, table: pybq.Table, store: Any
) -> None:
    columns = {"title": "text", "year": "integer"}
    transform = table.status().transform
    options: dict[str, Any] = {"store": store, "columns": columns, "id_type": "int8"}
    options["codes"] = table.code_column is not None
    column = table.code_column or table.source_column
    same = pybq.Table(conn, "items", DIM, transform=transform, column=column, **options)
    with pytest.raises(TableError, match="has codes (True|False), expected (False|True)"):
        pybq.Table(conn, "items", codes=not options["codes"])
    assert same.columns == table.columns
    for name in ("items", "new"):
        with pytest.raises(TypeError, match="options of store, codes, .*, got 'colums'"):
            pybq.Table(conn, name, DIM, colums={"title": "text"})
    with pytest.raises(ValueError, match="column 'year': no type 'in t' in the database"):
        pybq.Table(conn, "items", columns={"year": "in t"})
    assert conn.execute("SELECT to_regclass('new')").fetchone() == (None,)


def test_of_several_code_columns_one_is_named(conn: Conn, vectors: np.ndarray) -> None:
    pybq.Table.create(conn, "items", DIM, store=None, transform=0)
    conn.execute(f"ALTER TABLE items ADD other bqvec({DIM})")
    conn.execute("SELECT bq_register_column('items', 'other', NULL, %s, 'l2', 3)", [DIM])
    with pytest.raises(TableError, match="has code, other; say which one with column"):
        pybq.Table(conn, "items")
    for name, metric, transform in (("code", "cosine", 0), ("other", "l2", 3)):
        table = pybq.Table(conn, "items", column=name, metric=metric, transform=transform)
        assert (table.code_column, table.metric) == (name, metric)


def test_vectors_of_another_type_are_refused_when_opened(conn: Conn) -> None:
    conn.execute(f"CREATE TABLE items (id int PRIMARY KEY, v real[], code bqvec({DIM}))")
    conn.execute("SELECT bq_register_column('items', 'code', 'v', %s, 'l2')", [DIM])
    message = r"column 'v' of table 'items' is of type _float4, expected halfvec or vector; change"
    with pytest.raises(TableError, match=message):
        pybq.Table(conn, "items")


def test_of_connections_that_create_at_once_one_does(conn: Conn, other: Conn) -> None:
    """The others wait for it, and open what it has made, or learn that it is there."""

    def create(call: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            with conn.transaction():
                pybq.Table.create(conn, "items", DIM, "l2", store=None)
                second = pool.submit(call)
                with pytest.raises(FutureTimeout):
                    second.result(0.5)
            try:
                return second.result(20)
            finally:
                conn.execute("DROP TABLE items")
                conn.commit()

    assert create(lambda: pybq.Table(other, "items", DIM, store=None)).metric == "l2"
    with pytest.raises(TableError, match="has metric l2, expected cosine"):
        create(lambda: pybq.Table(other, "items", DIM, "cosine", store=None))
    with pytest.raises(psycopg.errors.DuplicateTable):
        create(lambda: pybq.Table.create(other, "items", DIM, store=None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim"),
        ({"dim": 16001}, "dim"),
        ({"transform": 65536}, "transform"),
        ({"metric": "hamming"}, "expected metric of cosine, l2, inner_product, got 'hamming'"),
        ({"store": "bit"}, "expected store of halfvec, vector or None, got 'bit'"),
        ({"columns": {"code": "text"}}, "column 'code' is the table's own"),
        ({"columns": {"a": "nope"}}, "column 'a': no type 'nope' in the database"),
        ({"columns": {"a": "text); DROP TABLE precious; --"}}, "column 'a': no type"),
        ({"columns": {"a": ""}}, "column 'a': no type"),
        ({"id_type": "int PRIMARY KEY, b int"}, "column 'id': no type"),
    ],
)
def test_bad_options_say_what_is_wrong_and_create_nothing(
    conn: Conn, options: dict[str, Any], message: str
) -> None:
    conn.execute("CREATE TABLE precious (id int)")
    with pytest.raises(ValueError, match=message):
        pybq.Table.create(conn, "items", **({"dim": DIM, "store": None} | options))
    assert conn.execute("SELECT to_regclass('items'), to_regclass('precious')").fetchone() == (
        None,
        "precious",
    )


def test_a_comment_in_a_type_ends_with_its_line(conn: Conn) -> None:
    columns = {"a": "varchar(7) -- short", "b": "int"}
    pybq.Table.create(conn, "items", DIM, store=None, columns=columns)
    types = conn.execute(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = 'items'::regclass AND attname IN ('a', 'b') ORDER BY attnum"
    ).fetchall()
    assert types == [("character varying(7)",), ("integer",)]


def test_create_refuses_an_existing_table(conn: Conn, table: pybq.Table) -> None:
    with pytest.raises(psycopg.errors.DuplicateTable, match='"items" already exists'):
        pybq.Table.create(conn, "items", DIM, store=None)


def test_names_are_quoted(conn: Conn, vectors: np.ndarray, store: Any) -> None:
    name, column = 'Odd "items" %s; DROP TABLE x; --', 'My "column" %s {}'
    conn.execute('CREATE SCHEMA "My schema"')
    for schema in (None, "My schema"):
        table = pybq.Table.create(
            conn, name, DIM, store=store, codes=True, columns={column: "text"}, schema=schema
        )
        table.ingest(range(N), vectors, {column: ["a"] * N})
        hits = table.search(vectors[3], k=1, columns=[column])
        assert (hits[0].id, hits[0][column]) == (3, "a")
        assert pybq.Table(conn, name, schema=schema).status().count == N
        if store is not None:
            assert table.calibrate(0.5, k=1, sample=5).rerank >= 1
            assert measure_recall(table, sample=2, reranks=[N])[0].recall == 1
            conn.commit()
            assert table.reencode(transform=77) == N
    assert conn.execute("SELECT count(*) FROM bq_columns").fetchone() == (2,)


def test_text_after_nul_is_not_cut_off(conn: Conn, table: pybq.Table, vectors: np.ndarray) -> None:
    for where in ("id < 5\0 AND id < 2", sql.SQL("id < 5\0 AND id < 2")):
        with pytest.raises(ValueError, match="^where: expected text without NUL"):
            table.search(vectors[0], where=where)
    for arguments, options in (
        (("items\0x",), {}),
        (("items",), {"schema": "public\0x"}),
        (("new\0x", DIM), {"store": None}),
        (("new", DIM), {"store": None, "columns": {"a\0x": "text"}}),
    ):
        with pytest.raises(ValueError, match="expected text without NUL characters"):
            pybq.Table(conn, *arguments, **options)
    assert conn.execute("SELECT to_regclass('new')").fetchone() == (None,)


@pytest.mark.parametrize("table", [True], indirect=True, ids=["codes"])
def test_a_renamed_column_is_named(conn: Conn, table: pybq.Table) -> None:
    conn.execute("ALTER TABLE items RENAME code TO codes")
    with pytest.raises(TableError, match="'items' has no column 'code', which bq_columns names"):
        pybq.Table(conn, "items")


@pytest.mark.parametrize("id_type", ["smallint", "int", "bigint", "text", "uuid"])
def test_keys_of_any_type(conn: Conn, vectors: np.ndarray, id_type: str) -> None:
    from uuid import UUID

    make = {"text": "key {}".format, "uuid": lambda i: UUID(int=i)}.get(id_type, int)
    table = pybq.Table.create(conn, "items", DIM, store=None, id_type=id_type)
    table.ingest([make(i) for i in range(N)], vectors)
    assert table.search(vectors[17], k=1)[0].id == make(17)


# -- storage --------------------------------------------------------------------------


def storage(conn: Conn) -> str:
    (found,) = conn.execute(
        "SELECT attstorage FROM pg_attribute WHERE attrelid = 'items'::regclass"
        " AND attname = 'embedding'"
    ).fetchone()
    return found


@needs_pgvector
@pytest.mark.parametrize(("store", "dim"), [("halfvec", 1536), ("halfvec", 3072), ("vector", 1536)])
def test_vectors_stay_in_their_rows(
    conn: Conn, rng: np.random.Generator, store: Any, dim: int
) -> None:
    table = pybq.Table.create(conn, "items", dim, store=store, columns={"text": "text"})
    text = "".join(map(chr, rng.integers(33, 127, 200)))
    table.ingest(range(50), rng.standard_normal((50, dim), dtype=np.float32), {"text": [text] * 50})
    out_of_line = conn.execute(
        "SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'items'::regclass"
    ).fetchone()
    assert (storage(conn), out_of_line) == ("p", (0,))


@needs_pgvector
def test_long_values_beside_them_are_moved_out(conn: Conn, rng: np.random.Generator) -> None:
    table = pybq.Table.create(conn, "items", 3072, columns={"text": "text"})
    text = "".join(map(chr, rng.integers(33, 127, 50_000)))
    table.ingest([1], rng.standard_normal((1, 3072)), {"text": [text]})
    assert conn.execute("SELECT text = %s FROM items", [text]).fetchone() == (True,)


@needs_pgvector
@pytest.mark.parametrize(("store", "dim"), [("halfvec", 4096), ("vector", 2048)])
def test_vectors_larger_than_a_page_are_stored_all_the_same(
    conn: Conn, rng: np.random.Generator, store: Any, dim: int
) -> None:
    vectors = rng.standard_normal((20, dim), dtype=np.float32)
    table = pybq.Table.create(conn, "items", dim, store=store)
    table.ingest(range(20), vectors)
    assert storage(conn) != "p"
    assert table.search(vectors[11], k=1)[0].id == 11


# -- status ---------------------------------------------------------------------------


def test_status_before_and_after_the_first_ingest(conn: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None)
    before = table.status()
    assert (before.count, before.transform, before.decided_at) == (0, None, None)
    assert "the first ingest decides" in str(before)

    table.ingest(range(N), vectors)
    status = table.status()
    assert (status.count, status.decided_count, status.dim) == (N, N, DIM)
    assert status.transform is not None and status.decided_at is not None
    assert status.f_axis is not None and 0.5 < status.f_axis <= 1
    assert status.reason is not None and status.reason in str(status)


# -- transactions ---------------------------------------------------------------------


@pytest.fixture
def other(conn: Conn) -> Iterator[Conn]:
    """A second connection to the same database."""
    with psycopg.connect(conn.info.dsn, password=conn.info.password, autocommit=True) as other:
        yield other


def count(conn: Conn) -> int:
    (rows,) = conn.execute("SELECT count(*) FROM items").fetchone()
    return rows


def test_idle_connections_are_left_idle_and_work_is_committed(
    conn: Conn, other: Conn, vectors: np.ndarray, store: Any
) -> None:
    table = pybq.Table(conn, "items", dim=DIM, store=store)
    assert conn.info.transaction_status == TransactionStatus.IDLE
    table.search(vectors[0])
    table.status()
    assert conn.info.transaction_status == TransactionStatus.IDLE
    table.ingest(range(N), vectors)
    table.search(vectors[:3])
    assert conn.info.transaction_status == TransactionStatus.IDLE
    assert count(other) == N


def test_an_open_transaction_is_joined(conn: Conn, other: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table(conn, "items", dim=DIM, store=None)
    with conn.transaction(force_rollback=True):
        table.ingest(range(N), vectors)
        assert len(table.search(vectors[0])) == 10
        assert count(other) == 0
    assert count(other) == 0
    assert pybq.Table(conn, "items").status().count == 0


def test_autocommit_works(other: Conn, vectors: np.ndarray) -> None:
    table = pybq.Table(other, "items", dim=DIM, store=None)
    table.ingest(range(N), vectors)
    assert table.search(vectors[:2], k=1)[1][0].id == 1


# -- what a database may lack ---------------------------------------------------------


@pytest.mark.parametrize(
    ("extensions", "store", "message"),
    [
        ([], None, 'type "bqvec" not found; run CREATE EXTENSION bq'),
        (["bq"], "halfvec", 'type "halfvec" not found; run CREATE EXTENSION vector'),
    ],
)
def test_missing_extensions_are_named(
    conn: Conn, other: Conn, extensions: list[str], store: Any, message: str
) -> None:
    other.execute("CREATE DATABASE bare TEMPLATE template0")
    try:
        with psycopg.connect(
            conn.info.dsn, dbname="bare", password=conn.info.password, autocommit=True
        ) as bare:
            for name in extensions:
                bare.execute(f"CREATE EXTENSION {name}".encode())
            with pytest.raises(pybq.ExtensionMissingError, match=message):
                pybq.Table.create(bare, "items", DIM, store=store)
            if extensions:
                assert pybq.Table.create(bare, "items", DIM, store=None).store is None
    finally:
        other.execute("DROP DATABASE bare WITH (FORCE)")


def test_readers_search_but_do_not_ingest(
    conn: Conn, table: pybq.Table, vectors: np.ndarray
) -> None:
    conn.execute("CREATE ROLE regress_pybq_reader")
    try:
        conn.execute("GRANT SELECT ON items TO regress_pybq_reader")
        conn.execute("SET ROLE regress_pybq_reader")
        conn.commit()
        reader = pybq.Table(conn, "items")
        assert reader.search(vectors[9], k=1)[0].id == 9
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="table items"):
            reader.ingest([N], vectors[:1])
        conn.execute("RESET ROLE")
        assert count(conn) == N
    finally:
        conn.rollback()
        conn.execute("RESET ROLE")
        conn.execute("REVOKE ALL ON items FROM regress_pybq_reader")
        conn.execute("DROP ROLE regress_pybq_reader")
        conn.commit()
