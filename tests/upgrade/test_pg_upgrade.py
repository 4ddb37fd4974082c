"""pg_upgrade from PostgreSQL 16 to 18, both embedded: all goes over as it is.

Takes a minute, so it is no part of `make test`: `make test-upgrade`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from shared import SEED, Conn
from torture import cluster
from torture.cluster import Cluster

import pybq
from pybq._server import build
from pybq.psycopg import register_bq

DIM = 40

FILL = f"""
CREATE DOMAIN coded_domain AS bqvec({DIM}, 7);
CREATE TABLE items (id int PRIMARY KEY, tenant int, lang text, v vector({DIM}), h halfvec({DIM}),
    code bqvec({DIM}, 7), given coded_domain, free bqvec, q bqquery,
    made bqvec({DIM}) GENERATED ALWAYS AS (bq_encode(h::real[], 3)) STORED);
INSERT INTO items
SELECT i, i % 7, CASE i % 3 WHEN 0 THEN 'de' WHEN 1 THEN 'en' END, x, x, bq_encode(x, 7),
    bq_encode(x, 7), bq_encode(x[1 : i % {DIM} + 1]), bq_query(x, 7)
FROM generate_series(1, 3000) AS i, LATERAL (
    SELECT array_agg(sin(i * j)::real) AS x FROM generate_series(1, {DIM}) AS j) AS y;
CREATE INDEX of_codes ON items USING bq (code) WITH (lists = 8);
CREATE INDEX of_domain ON items USING bq (given, tenant, lang);
CREATE INDEX of_vectors ON items USING bq (v vector_cosine_ops, tenant, lang) WITH (lists = 5);
CREATE INDEX of_some ON items USING bq (h halfvec_l2_ops) WITH (recall = 0.9) WHERE id > 100;
CREATE INDEX of_expression ON items USING bq ((v::halfvec({DIM})) halfvec_ip_ops);
CREATE INDEX of_made ON items USING bq (made);
CREATE INDEX in_order ON items (free);
DELETE FROM items WHERE id % 11 = 0;
VACUUM items;
INSERT INTO items
SELECT id + 20000, tenant, lang, v, h, code, given, free, q FROM items WHERE id < 50;
CREATE TABLE parts (id int, code bqvec({DIM}, 7)) PARTITION BY RANGE (id);
CREATE TABLE part1 PARTITION OF parts FOR VALUES FROM (0) TO (150);
CREATE TABLE part2 PARTITION OF parts DEFAULT;
INSERT INTO parts SELECT id, code FROM items WHERE id < 300;
CREATE INDEX of_parts ON parts USING bq (code);
CREATE UNLOGGED TABLE passing AS SELECT id, v FROM items WHERE id < 100;
CREATE INDEX of_passing ON passing USING bq (v vector_l2_ops);
"""

# Each by its index, all rows or the nearest
QUESTIONS = {
    "of_codes": "FROM items ORDER BY code <=> (SELECT q FROM items WHERE id = 9) LIMIT 100",
    "of_domain": "FROM items WHERE tenant = 3 AND lang = 'en'"
    " ORDER BY given <-> (SELECT q FROM items WHERE id = 9) LIMIT 100",
    "of_vectors": "FROM items WHERE tenant = 3 AND lang IS NULL"
    " ORDER BY v <=> (SELECT v FROM items WHERE id = 9) LIMIT 100",
    "of_some": "FROM items WHERE id > 100"
    " ORDER BY h <-> (SELECT h FROM items WHERE id = 9) LIMIT 100",
    "of_expression": f"FROM items ORDER BY v::halfvec({DIM}) <#>"
    f" (SELECT v::halfvec({DIM}) FROM items WHERE id = 9) LIMIT 100",
    "of_made": "FROM items ORDER BY made <~> (SELECT made FROM items WHERE id = 9) LIMIT 100",
    "part1_code_idx": "FROM part1 ORDER BY code <=> (SELECT q FROM items WHERE id = 9) LIMIT 100",
    "of_passing": "FROM passing ORDER BY v <-> (SELECT v FROM passing WHERE id = 9) LIMIT 50",
    "docs_embedding_idx": "FROM docs"
    " ORDER BY embedding <=> (SELECT v FROM items WHERE id = 9) LIMIT 50",
    "coded_code_idx": "FROM coded ORDER BY code <=>"
    " (SELECT bq_query(v::real[], (SELECT transform FROM bq_columns WHERE code_column = 'code'))"
    " FROM items WHERE id = 9) LIMIT 50",
}

CONTENTS = [
    "SELECT string_agg(concat_ws(' ', t, vector_norm(t.q)), ',' ORDER BY id) FROM items AS t",
    "SELECT string_agg(t::text, ',' ORDER BY id) FROM parts AS t",
    "SELECT string_agg(b::text, ',' ORDER BY b::text) FROM bq_columns AS b",
    "SELECT string_agg(b::text, ',' ORDER BY b::text) FROM bq_loads AS b",
    "SELECT string_agg(concat_ws(' ', extname, extversion), ',' ORDER BY 1) FROM pg_extension"
    " WHERE extname LIKE 'bq%'",
]

# where codes of bits are equal, their order is not; relations keep their numbers
INDEXES = """
SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class AS c ON c.oid = indexrelid
JOIN pg_am AS a ON a.oid = c.relam
WHERE a.amname = 'bq' AND c.relkind = 'i' AND indisvalid ORDER BY 1
"""


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, Cluster]]:
    monkeypatch.setattr(cluster, "PATIENCE", 600)
    with tempfile.TemporaryDirectory(prefix="bq-") as name, contextlib.ExitStack() as stack:
        Path(name).chmod(0o755)
        old, new = (
            Cluster(build.installed(postgres), Path(name, str(postgres)), shared_buffers="128MB")
            for postgres in (16, 18)
        )
        for each in (old, new):
            stack.callback(each.remove)
        old.create()
        # as those of 16 are made; pg_upgrade asks for the same
        new.run(
            "initdb", "--pgdata", new.data, "--username=postgres", "--auth=trust", "--no-sync",
            "--locale=C", "--encoding=UTF8", "--no-data-checksums",
        )  # fmt: skip
        yield old, new


def run(conn: Conn, statements: str) -> None:
    conn.execute(cast(Any, statements))


def fill(conn: Conn) -> None:
    for extension in ("vector", "bq", "bq_pgvector"):
        run(conn, f"CREATE EXTENSION {extension}")
    for statement in FILL.split(";\n"):
        if statement.strip():
            run(conn, statement)
    register_bq(conn)
    vectors = np.random.default_rng(SEED).standard_normal((500, DIM), dtype=np.float32)
    docs = pybq.Table.create(conn, "docs", DIM, store="vector")
    docs.ingest(range(500), vectors)
    docs.create_index()
    coded = pybq.Table.create(conn, "coded", DIM, store="vector", codes=True)
    coded.ingest(range(400), vectors[:400])
    coded.load(vectors[400:], name="rest", first_id=400)
    coded.create_index()
    coded.create_trigger()


def ask(conn: Conn) -> tuple[list[Any], dict[str, Any]]:
    run(conn, "SET enable_seqscan = off; SET enable_sort = off; SET extra_float_digits = 3")
    found = {}
    for index, question in QUESTIONS.items():
        query = f"SELECT id {question}"
        plan = str(conn.execute(cast(Any, "EXPLAIN " + query)).fetchall())
        assert f"Index Scan using {index} " in plan, plan
        found[index] = conn.execute(cast(Any, query)).fetchall()
        assert len(found[index]) >= 50, index
    contents = [conn.execute(cast(Any, query)).fetchone() for query in CONTENTS]
    indexes = conn.execute(cast(Any, INDEXES)).fetchall()
    for (index,) in indexes:
        conn.execute("SELECT bq_index_check(%s, true)", [index])
    return [*contents, indexes], found


def test_everything_goes_over(clusters: tuple[Cluster, Cluster]) -> None:
    old, new = clusters
    old.start()
    with contextlib.closing(old.connect()) as conn:
        fill(conn)
        before = ask(conn)
        assert len(before[0][-1]) == 11 and all(row != (None,) for row in before[0])
    old.stop("fast")
    new.run(
        "pg_upgrade", "--old-bindir", old.bin, "--new-bindir", new.bin, "--old-datadir", old.data,
        "--new-datadir", new.data, "--username=postgres", "--socketdir", new.folder, "--no-sync",
    )  # fmt: skip
    new.start()
    with contextlib.closing(new.connect()) as conn:
        assert conn.info.server_version >= 180000
        # of unlogged tables nothing is lost at a clean shutdown, either
        assert ask(conn) == before
        # and all goes on: by triggers, functions, and statements of pybq
        run(conn, "INSERT INTO items SELECT id + 30000, tenant, lang, v, h, code, given, free, q"
                  " FROM items WHERE id BETWEEN 500 AND 600")  # fmt: skip
        run(conn, "DELETE FROM items WHERE id < 500")
        run(conn, "VACUUM items")
        run(conn, "INSERT INTO coded (id, embedding) SELECT 1000, v FROM items WHERE id = 700")
        register_bq(conn)
        table = pybq.Table(conn, "coded")
        table.ingest([1001], np.ones((1, DIM), np.float32))
        status = table.status()
        assert (status.count, status.row_count) == (501, 502)
        assert table.search(np.ones(DIM, np.float32), k=1)[0].id == 1001
        for (index,) in before[0][-1]:
            conn.execute("SELECT bq_index_check(%s, true)", [index])
    new.stop("fast")
