"""Databases for tests: each test gets one as new, and few have to be made.

CREATE DATABASE and DROP take a quarter of a second, several times what most tests take.  So the
database of a test is tidied for the next one: what was made since is dropped.  Whether it then is
as it was is not assumed: catalogs are compared with those of the template, and a database that
differs is made anew.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from shared import Conn

import pybq

# of each process, where several test one server
DATABASE = "bq_test" + os.environ.get("PYTEST_XDIST_WORKER", "")
TEMPLATE = DATABASE + "_template"

# Of what a test may make or change in a database; columns, constraints and the like follow.
CATALOGS = """
    pg_extension pg_namespace pg_class pg_proc pg_type pg_operator pg_opclass pg_opfamily pg_amop
    pg_amproc pg_am pg_cast pg_collation pg_conversion pg_event_trigger pg_publication
    pg_foreign_data_wrapper pg_foreign_server pg_language pg_default_acl pg_statistic_ext
    pg_attribute pg_attrdef pg_constraint pg_trigger pg_rewrite pg_policy pg_enum pg_init_privs
    pg_depend pg_description pg_seclabel pg_largeobject_metadata
""".split()

DESCRIPTION = "SELECT {}, {}".format(
    ", ".join(f"(SELECT ARRAY[count(*), sum(xmin::text::bigint)] FROM {c})" for c in CATALOGS),
    """
    (SELECT count(*) FROM pg_db_role_setting),
    (SELECT ARRAY[datacl::text, datconnlimit::text, datallowconn::text, datdba::text]
        FROM pg_database WHERE datname = current_database())
    """,
)

# Of which objects are dropped, in this order: the first ones take most of the others along.
DROPPED = """
    pg_extension pg_namespace pg_event_trigger pg_publication pg_class pg_type
    pg_proc pg_operator pg_opfamily pg_statistic_ext
""".split()

OBJECTS = " UNION ALL ".join(f"SELECT '{c}'::regclass AS class, oid FROM {c}" for c in DROPPED)

NEW_OBJECTS = f"""
    SELECT o.type, o.identity FROM ({OBJECTS}) AS made, pg_identify_object(class, oid, 0) AS o
    WHERE oid > %s AND o.type NOT IN ('index', 'toast table', 'composite type')
        AND NOT (o.type = 'type' AND o.identity LIKE '%%[]')
"""


class Original:
    """What a database was like, to be made so again."""

    def __init__(self, conn: Conn) -> None:
        # numbers of objects only grow
        row = conn.execute(sql.SQL(cast(Any, f"SELECT max(oid) FROM ({OBJECTS}) AS o"))).fetchone()
        assert row is not None
        self._newest = row[0]
        self._description = _describe(conn)

    def restore(self, conn: Conn) -> bool:
        """Drop what was made since; False if the database is not as it was."""
        try:
            conn.execute("SET client_min_messages = error")
            # Sessions that just ended may still be dropping their temporary tables.
            conn.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            for kind, identity in conn.execute(NEW_OBJECTS, (self._newest,)).fetchall():
                conn.execute(sql.SQL(cast(Any, f"DROP {kind} IF EXISTS {identity} CASCADE")))
            conn.execute("DELETE FROM bq_column_data")
            conn.execute("DELETE FROM bq_loads")
            return _describe(conn) == self._description
        except psycopg.Error:
            return False  # without the extension, of another name, ...


def _describe(conn: Conn) -> object:
    """What every change of the catalogs changes: number of rows, who wrote them; settings."""
    return conn.execute(sql.SQL(cast(Any, DESCRIPTION))).fetchone()


class Databases:
    """The databases of one server that tests use, one after the other.

    Beside them, those of tables that several tests use: `provide_filled`.
    """

    def __init__(self, dsn: str, fill: Callable[[Conn], None]) -> None:
        self.dsn = make_conninfo(dsn, dbname=DATABASE)
        self._admin = psycopg.connect(dsn, autocommit=True)
        self._conn: Conn | None = None  # to the tests' database
        self._original: Original | None = None
        self._numbers = itertools.count()
        self._drop(TEMPLATE, DATABASE)
        self._create(TEMPLATE, "template1")
        with psycopg.connect(dsn, dbname=TEMPLATE) as conn:
            fill(conn)

    def provide(self) -> str:
        """Make sure that the database is as new; returns how to connect to it."""
        if self._conn is None or self._original is None or not self._original.restore(self._conn):
            self._drop(DATABASE)
            self._create(DATABASE, TEMPLATE)
            self._conn = psycopg.connect(self.dsn, autocommit=True)
            self._original = Original(self._conn)
        return self.dsn

    @contextlib.contextmanager
    def provide_filled(self, fill: Callable[[Conn], None]) -> Iterator[str]:
        """A database that is filled once; how to connect to it."""
        name = f"{DATABASE}_filled_{next(self._numbers)}"
        self._drop(name)
        self._create(name, TEMPLATE)
        dsn = make_conninfo(self.dsn, dbname=name)
        try:
            with contextlib.closing(psycopg.connect(dsn, autocommit=True)) as conn:
                fill(conn)
            yield dsn
        finally:
            self._drop(name)

    def close(self) -> None:
        self._drop(DATABASE, TEMPLATE)
        self._admin.close()

    def _create(self, name: str, template: str) -> None:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self._admin.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))

    def _drop(self, *names: str) -> None:
        if self._conn is not None and DATABASE in names:
            self._conn.close()
        for name in names:
            statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            self._admin.execute(statement.format(sql.Identifier(name)))


class OwnServers:
    """Servers that tests may crash: one after the other, or the same one if it is as it was."""

    def __init__(self, start: Callable[[], pybq.Server]) -> None:
        self._start = start
        self._server: pybq.Server | None = None

    def provide(self) -> pybq.Server:
        if self._server is None or not self._restore(self._server.dsn):
            self.close()
            self._server = self._start()
            with psycopg.connect(self._server.dsn, autocommit=True) as conn:
                self._original = Original(conn)
                self._settings = _settings(conn)
        return self._server

    def _restore(self, dsn: str) -> bool:
        try:
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute("ALTER SYSTEM RESET ALL")
                conn.execute("SELECT pg_reload_conf()")
                same = self._original.restore(conn) and _settings(conn) == self._settings
                # so that this test's changes are replayed after a crash, and not all before
                conn.execute("CHECKPOINT")
                return same
        except psycopg.OperationalError:
            return False

    def close(self) -> None:
        if self._server is not None:
            self._server.stop("immediate")
        self._server = None


def _settings(conn: Conn) -> object:
    """Those of the server's command line, which tests restart with others."""
    return conn.execute(
        "SELECT name, setting FROM pg_settings WHERE source = 'command line' ORDER BY name"
    ).fetchall()


def need_library(config: pytest.Config, name: str, target: str) -> None:
    """Skip a test unless the installation of --bin has a library; `target` of make names one."""
    folder = config.getoption("bin")
    if not folder:
        pytest.skip(f"needs a server with {name}: make {target} PG_CONFIG=...")
    program = Path(folder, "pg_config")
    libraries = subprocess.run([program, "--pkglibdir"], capture_output=True, check=True).stdout
    if not Path(libraries.decode().strip(), f"{name}.so").exists():
        pytest.skip(f"the server of {folder} has no {name}")
