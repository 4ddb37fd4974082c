"""ALTER EXTENSION ... UPDATE: tables and indexes stay, catalogs become those of a new installation.

Earlier versions are the scripts in data/upgrade, kept as they were released.  There is none yet:
the first release is 0.1.0.  So that the path is proven before it is needed, a next version is made
here, from today's scripts and `STEPS`.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from databases import Databases
from dumplib import dump
from indexlib import connect, damage
from shared import Conn

import pybq
from pybq._server import build

EXTENSIONS = ("bq", "bq_pgvector")
RELEASES = Path(__file__).parents[1] / "data" / "upgrade"
RELEASED = sorted({script.stem.split("--")[1] for script in RELEASES.glob("bq--*.sql")})
NEXT = "9.9.9"

# What a next version might bring: added to the script in full, and the step from today's.
STEPS = {
    "bq": """
CREATE FUNCTION bq_next(bqvec, integer DEFAULT 1) RETURNS integer
	AS 'MODULE_PATHNAME', 'bqvec_dims' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_next(bqvec, integer) IS 'something new';
ALTER TABLE bq_column_data ADD COLUMN remark text;
COMMENT ON FUNCTION bq_simd() IS 'other words';
ALTER FUNCTION bq_simd() COST 7;
CREATE TABLE bq_more (n integer PRIMARY KEY);
COMMENT ON TABLE bq_more IS 'more';
GRANT SELECT ON bq_more TO PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('bq_more', '');
""",
    "bq_pgvector": """
COMMENT ON OPERATOR CLASS vector_cosine_ops USING bq IS 'other words';
""",
}

FILL = """
CREATE TABLE items (id int PRIMARY KEY, tenant int, v vector(40), code bqvec(40, 7), q bqquery);
INSERT INTO items SELECT i, i % 3, x, bq_encode(x, 7), bq_query(x, 7)
FROM generate_series(1, 300) AS i, LATERAL (
    SELECT array_agg(sin(i * j)::real) AS x FROM generate_series(1, 40) AS j) AS made;
CREATE INDEX of_codes ON items USING bq (code);
CREATE INDEX of_vectors ON items USING bq (v vector_cosine_ops, tenant) WITH (lists = 4);
CREATE TRIGGER encode BEFORE INSERT ON items FOR EACH ROW
    EXECUTE FUNCTION bq_encode_trigger('code', 'v');
SELECT bq_register_column('items', 'code', 'v', 40, 'cosine', 7, 'known');
SELECT bq_add_statistics('items', 'code', bq_sample_statistics('items'));
SELECT bq_record_load('items', 'a', 0, 100, 'print', 100);
"""

QUESTIONS = {
    "contents": "SELECT id, v, code, q FROM items ORDER BY id",
    "columns": "SELECT * FROM bq_columns",
    "loads": "SELECT * FROM bq_loads",
    "of_codes": "SELECT id FROM items"
    " ORDER BY code <=> (SELECT q FROM items WHERE id = 9) LIMIT 50",
    "of_vectors": "SELECT id FROM items WHERE tenant = 1"
    " ORDER BY v <=> (SELECT v FROM items WHERE id = 9) LIMIT 50",
}

# All that leads to or from the objects of an extension.
DEPENDENCIES = """
WITH members AS (
    SELECT d.classid, d.objid FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = %s
)
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid),
    pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid), d.deptype::text
FROM pg_depend AS d JOIN members AS m
    ON (d.classid, d.objid) = (m.classid, m.objid)
        OR (d.refclassid, d.refobjid) = (m.classid, m.objid)
"""


# Of objects and transactions, and a list that is in no order
NUMBERS = re.compile(
    r"'\{[\d,]*\}'|oid = '\d+'|frozenxid = '\d+'|minmxid = '\d+'|ARRAY\['\w+','\w+'\]"
)


@pytest.fixture(scope="module")
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A server that has a next version, too, as `make install` puts it there; today's version."""
    if request.config.getoption("dsn") or request.config.getoption("bin"):
        pytest.skip("needs an embedded server")
    postgres = request.config.getoption("postgres")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        bin_dir = build.installed(postgres)
        build._clone(bin_dir.parents[2], folder / "server")
        bin_dir = folder / "server" / bin_dir.relative_to(bin_dir.parents[2])
        today = install_next(folder / "source", bin_dir / "pg_config")
        with pytest.MonkeyPatch.context() as patch:  # for this server alone
            patch.setattr(build, "installed", lambda postgres: bin_dir)
            started = pybq.serve(postgres=postgres)
        with started:
            yield started.dsn, today


def install_next(source: Path, pg_config: Path) -> str:
    """Make the sources of a next version, and install what is not compiled; today's version."""
    for file in build.source_files(build.source_dir()):
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(build.source_dir() / file, source / file)
    today = ""
    for extension in EXTENSIONS:
        control = source / "extension" / f"{extension}.control"
        text = control.read_text()
        found = re.search(r"default_version = '(.*)'", text)
        assert found is not None
        today = found[1]
        control.write_text(text.replace(f"'{today}'", f"'{NEXT}'"))
    output = subprocess.run([pg_config, "--sharedir"], capture_output=True, text=True, check=True)
    installed = Path(output.stdout.strip(), "extension")
    for script in installed.glob("bq*"):
        script.unlink()  # a link to that of the servers in use
    for script in [*RELEASES.glob("*.sql"), *(source / "sql").glob("*.sql")]:
        name = script.name if "--" in script.name else f"{script.stem}--{today}.sql"
        shutil.copyfile(script, installed / name)
    for extension, step in STEPS.items():
        script = source / "sql" / f"{extension}.sql"
        script.write_text(script.read_text() + step)
        (source / "sql" / f"{extension}--{today}--{NEXT}.sql").write_text(step)
    objects = source.parent / "objects"
    objects.mkdir()
    # without the library, which is as it was
    command = ["make", "-f", source / "extension" / "Makefile", f"PG_CONFIG={pg_config}"]
    subprocess.run([*command, "MODULE_big=", "install"], cwd=objects, check=True)
    return today


def describe(conn: Conn) -> list[str]:
    """All that catalogs have of the extensions: as pg_upgrade would make it, and dependencies."""
    conn.commit()
    script = dump(conn, conn.info.dbname, conn.info.user, "--binary-upgrade", "--schema-only")
    lines = [
        NUMBERS.sub("number", line)
        for line in script.decode().splitlines()
        if "pg_catalog.binary_upgrade_set" not in line and not line.startswith(("\\", "--"))
    ]
    for extension in EXTENSIONS:
        rows = conn.execute(DEPENDENCIES, [extension]).fetchall()
        assert len(rows) > 10
        lines += sorted(re.sub(r"pg_toast_\d+", "pg_toast", " | ".join(row)) for row in rows)
    return lines


def run(conn: Conn, statements: str) -> None:
    conn.execute(cast(Any, statements))


def create_extensions(conn: Conn, version: str) -> None:
    run(conn, "CREATE EXTENSION vector")
    for extension in EXTENSIONS:
        run(conn, f"CREATE EXTENSION {extension} VERSION '{version}'")


def ask(conn: Conn) -> dict[str, Any]:
    run(conn, "SET enable_seqscan = off; SET enable_sort = off; SET bq.recall = 1")
    for index in ("of_codes", "of_vectors"):
        plan = conn.execute(cast(Any, "EXPLAIN " + QUESTIONS[index])).fetchall()
        assert f"Index Scan using {index}" in str(plan)
        conn.execute("SELECT bq_index_check(%s, true)", [index])
    run(conn, "RESET ALL")
    return {
        name: conn.execute(cast(Any, question)).fetchall() for name, question in QUESTIONS.items()
    }


@pytest.mark.once
@pytest.mark.parametrize("first", ["today", *RELEASED])
def test_update_makes_what_a_new_installation_has(servers: tuple[str, str], first: str) -> None:
    """Updated in one go, by as many steps as there are; what was written before is read after."""
    dsn, today = servers
    first = today if first == "today" else first
    databases = Databases(dsn, lambda conn: None)
    try:
        with psycopg.connect(databases.provide(), autocommit=True) as conn:
            create_extensions(conn, first)
            run(conn, FILL)
            before = ask(conn)
            for extension in EXTENSIONS:
                run(conn, f"ALTER EXTENSION {extension} UPDATE")
            assert ask(conn) == before
            assert len(before["contents"]) == 300 and len(before["columns"]) == 1
            run(conn, "INSERT INTO items (id, v) SELECT 1000, v FROM items WHERE id = 9")
            run(conn, "REINDEX TABLE items; DROP TABLE items")
            updated = describe(conn)
        with databases.provide_filled(lambda conn: create_extensions(conn, NEXT)) as fresh:
            with psycopg.connect(fresh) as conn:
                expected = describe(conn)
        assert len(expected) > 1000
        assert updated == expected
    finally:
        databases.close()


FORGOTTEN = {
    "bq_simd()": "COMMENT ON FUNCTION bq_simd() IS NULL",
    "ON TABLE public.bq_more FROM PUBLIC": "REVOKE SELECT ON bq_more FROM PUBLIC",
    "FUNCTION public.bq_decode(": "ALTER FUNCTION bq_decode(bqvec) RENAME TO bq_decoded",
    "bq_loads_written_check": "ALTER TABLE bq_loads DROP CONSTRAINT bq_loads_written_check",
    "ADD FUNCTION public.bq_next(": "ALTER EXTENSION bq DROP FUNCTION bq_next(bqvec, integer)",
    "    remark text": "ALTER TABLE bq_column_data DROP COLUMN remark",
}


@pytest.mark.once
def test_what_a_step_forgets_is_seen(servers: tuple[str, str]) -> None:
    """The comparison above would not pass whatever it compares."""
    databases = Databases(servers[0], lambda conn: None)
    try:
        with psycopg.connect(databases.provide(), autocommit=True) as conn:
            create_extensions(conn, NEXT)
            expected = describe(conn)
            assert describe(conn) == expected
            for change in FORGOTTEN.values():
                run(conn, change)
            different = set(expected) ^ set(describe(conn))
        for mark in FORGOTTEN:
            assert any(mark in line for line in different), mark
    finally:
        databases.close()


def test_an_index_of_an_older_format_asks_for_reindex(own_server: pybq.Server) -> None:
    """Whatever reads it says so, rows of the table stay, and REINDEX is all that is needed."""
    nearest = "SELECT id FROM items ORDER BY code <=> (SELECT q FROM items WHERE id = 9) LIMIT 5"
    with connect(own_server.dsn) as conn:
        run(conn, FILL)
        before = conn.execute(nearest).fetchall()
        (version,) = conn.execute(
            "SELECT format_version FROM bq_index_info('of_codes')"
        ).fetchone() or (0,)
    damage(own_server, ("of_codes", 0, 28, struct.pack("<I", version - 1)))
    with connect(own_server.dsn) as conn:
        run(conn, "SET enable_seqscan = off; SET enable_sort = off")
        for statement in (
            nearest,
            "INSERT INTO items (id, v) SELECT 1000, v FROM items WHERE id = 9",
            "VACUUM items",
            "SELECT bq_index_check('of_codes')",
            "SELECT bq_index_info('of_codes')",
            "SELECT bq_recall('of_codes')",
        ):
            with pytest.raises(psycopg.errors.IndexCorrupted) as error:
                run(conn, statement)
            assert error.value.diag.message_primary == (
                f'index "of_codes" has format version {version - 1}, expected {version}'
            )
            assert error.value.diag.message_hint == "Rebuild the index with REINDEX."
        run(conn, "REINDEX INDEX of_codes")
        assert conn.execute(nearest).fetchall() == before
        conn.execute("SELECT bq_index_check('of_codes', true)")
        run(conn, "VACUUM items")


@pytest.mark.once
def test_each_step_begins_at_a_release_that_is_kept() -> None:
    """A step without the script of its first version would never be tested."""
    for step in (build.source_dir() / "sql").glob("*--*--*.sql"):
        extension, first, _ = step.stem.split("--")
        assert (RELEASES / f"{extension}--{first}.sql").exists(), step.name
