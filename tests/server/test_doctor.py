"""What `pybq doctor` finds, and what it says to do."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from shared import Conn

import pybq

pytest.importorskip("typer")
pytest.importorskip("rich")

from pybq._cli.doctor import examine

pytestmark = pytest.mark.usefixtures("vector")


def test_doctor_finds_what_is_wrong(ask: Callable[..., Any], conn: Conn) -> None:
    hints = {}

    def states(expected: int = 0) -> dict[str, str]:
        answer = ask("doctor", "--check-indexes", expected=expected)
        assert answer["healthy"] == (expected == 0)
        hints.update({finding["name"]: finding["hint"] for finding in answer["findings"]})
        return {finding["name"]: finding["state"] for finding in answer["findings"]}

    ask("create", "items", "--dim", 4, "--codes")
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    conn.commit()
    assert states() == {
        name: "ok"
        for name in ("server", "bq", "vector", "codes", "table items", "index items_code")
    } | {"bq_pgvector": "warning", "kernel": "warning" if pybq.simd() == "portable" else "ok"}
    conn.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'items_code'::regclass")
    conn.commit()
    assert states(1)["index items_code"] == "error"
    conn.execute("DROP TABLE items")
    conn.execute("DROP EXTENSION vector")
    conn.commit()
    found = states()
    assert found["vector"] == "warning" and "bq_pgvector" not in found
    conn.execute("DROP EXTENSION bq")
    conn.commit()
    assert states(1)["bq"] == "error"
    for name in ("bq", "vector", "bq_pgvector"):
        assert hints[name] == f"run CREATE EXTENSION {name}"


def test_doctor_asks_no_more_than_it_may(ask: Callable[..., Any], conn: Conn) -> None:
    ask("create", "items", "--dim", 4, "--codes")
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    conn.execute("CREATE ROLE bq_doctors_visitor")
    try:
        conn.execute("GRANT SELECT ON items TO bq_doctors_visitor")
        conn.execute("SET ROLE bq_doctors_visitor")
        found = {finding.name: finding for finding in examine(conn, check_indexes=True)}
        index = found["index items_code"]
        assert index.state == "warning" and "must be owner" in index.text
        assert "REINDEX" not in index.hint
    finally:
        conn.rollback()


def test_doctor_does_not_take_an_index_that_is_in_use_for_a_damaged_one(
    ask: Callable[..., Any], run: Callable[..., tuple[int, str]], conn: Conn
) -> None:
    ask("create", "items", "--dim", 4, "--codes")
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")
    conn.commit()
    with psycopg.connect(conn.info.dsn, password=conn.info.password, autocommit=True) as other:
        other.execute("SET lock_timeout = '100ms'")
        conn.execute("LOCK TABLE items IN ROW EXCLUSIVE MODE")  # as a writer
        found = {each.name: each for each in examine(other, check_indexes=True)}["index items_code"]
        conn.rollback()
        assert found.state == "warning" and "lock timeout" in found.text
        assert "REINDEX" not in found.hint and "again" in found.hint
        found = {each.name: each for each in examine(other, check_indexes=True)}["index items_code"]
        assert (found.state, found.hint) == ("ok", "")


def test_doctor_tells_of_an_unfinished_reencode(ask: Callable[..., Any], conn: Conn) -> None:
    ask("create", "items", "--dim", 4, "--codes")
    conn.execute("UPDATE bq_columns SET next_column = 'code_next', next_transform = 5")
    conn.commit()
    (finding,) = [one for one in ask("doctor")["findings"] if "anew" in one["text"]]
    assert finding["state"] == "warning" and finding["hint"].endswith("pybq reencode items")
    # of another schema, and with an index that is being built
    conn.execute("ALTER TABLE items ADD code_next bqvec(4)")
    conn.execute("CREATE INDEX building ON items USING bq (code_next)")
    conn.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'building'::regclass")
    conn.execute("CREATE SCHEMA shop")
    conn.execute("ALTER TABLE items SET SCHEMA shop")
    conn.execute('ALTER TABLE shop.items RENAME TO "My items"')
    conn.commit()
    found = ask("doctor")
    (finding,) = [one for one in found["findings"] if "anew" in one["text"]]
    assert finding["hint"].endswith("pybq reencode 'My items' --schema shop")
    assert found["healthy"]


@pytest.mark.usefixtures("bq_pgvector")
def test_doctor_looks_at_indexes_on_vectors(ask: Callable[..., Any], conn: Conn) -> None:
    def findings(expected: int = 0) -> dict[str, Any]:
        found = ask("doctor", "--check-indexes", expected=expected)["findings"]
        names = [finding["name"] for finding in found]
        assert len(names) == len({*names})
        return {finding["name"]: finding for finding in found}

    ask("create", "items", "--dim", 4, "--codes")
    conn.execute("CREATE TABLE notes (embedding vector(4))")
    conn.execute("INSERT INTO notes VALUES ('[1, 2, 3, 4]')")
    for table, kind in (("notes", "vector"), ("items", "halfvec")):
        conn.execute(
            f"CREATE INDEX {table}_near ON {table} USING bq (embedding {kind}_l2_ops)".encode()
        )
    conn.commit()
    found = findings()
    assert found["bq_pgvector"]["state"] == "ok"
    assert found["bq_pgvector"]["text"] == f"{pybq.__version__}, the same as pybq"
    assert found["index notes_near"]["text"] == "1 rows in 1 list, checked"
    assert found["index items_near"]["state"] == "ok"
    conn.execute("UPDATE pg_extension SET extversion = '0' WHERE extname = 'bq_pgvector'")
    conn.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid::regclass::text ~ 'near'")
    conn.commit()
    found = findings(1)
    assert found["bq_pgvector"]["hint"] == "run ALTER EXTENSION bq_pgvector UPDATE"
    for name in ("items_near", "notes_near"):
        finding = found[f"index {name}"]
        assert (finding["state"], finding["hint"]) == ("error", f"run REINDEX INDEX {name}")
