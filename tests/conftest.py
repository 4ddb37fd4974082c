"""Fixtures: a server, a connection to a fresh database with bq, a seeded random generator.

The suite starts one embedded server; another one, which has bq installed, is named by --dsn:

    pytest --postgres 16
    pytest --dsn "host=/var/run/postgresql user=postgres"

Tests that crash servers start more of them.  With --bin they, too, are of another installation:

    pytest --bin /path/to/postgresql/bin

Random queries are 60 for each kind of column, the same in every run; more, and others:

    pytest tests/server/test_index_queries.py --random-queries 5000 --hypothesis-seed 7
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from databases import Databases, OwnServers
from shared import SEED, Conn, Vectors, load_lsa

import pybq
from pybq import embedded
from pybq._server import build
from pybq.psycopg import register_bq


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bq")
    group.addoption(
        "--dsn",
        default=os.environ.get("PYBQ_TEST_DSN"),
        help="server to test, of a superuser [PYBQ_TEST_DSN]; default: an embedded one",
    )
    group.addoption(
        "--postgres",
        type=int,
        default=int(os.environ.get("PYBQ_TEST_POSTGRES", "18")),
        help="version of the embedded server, 18 or 16 [PYBQ_TEST_POSTGRES]",
    )
    group.addoption(
        "--bin",
        help="folder of the programs of a PostgreSQL that has bq installed, for embedded servers",
    )
    group.addoption(
        "--random-queries",
        type=int,
        default=60,
        help="how many to ask of each kind of column (60); --hypothesis-seed says which",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "autocommit: its `conn` commits each statement")
    if config.getoption("bin"):
        _use_installation(config, Path(config.getoption("bin")).absolute())


def _use_installation(config: pytest.Config, folder: Path) -> None:
    """Let embedded servers be of another installation, which may lack pgvector."""
    output = subprocess.run([folder / "postgres", "-V"], capture_output=True, check=True)
    version = re.search(rb"\d+", output.stdout)
    assert version is not None
    config.option.postgres = int(version[0])

    output = subprocess.run([folder / "pg_config", "--sharedir"], capture_output=True, check=True)
    has_vector = Path(os.fsdecode(output.stdout.strip()), "extension", "vector.control").exists()
    names = ("bq", "vector", "bq_pgvector") if has_vector else ("bq",)
    commands = [f"--command=CREATE EXTENSION IF NOT EXISTS {name}" for name in names]

    def create_extensions(server: embedded.Server) -> None:
        server._run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *commands, server.dsn)

    run = embedded.Server._run

    def run_without_set(server: embedded.Server, program: str, *arguments: str, **kw: Any) -> int:
        """Run programs of PostgreSQL 15, whose initdb knows no --set."""
        return run(server, program, *(a for a in arguments if not a.startswith("--set=")), **kw)

    patch = pytest.MonkeyPatch()
    if int(version[0]) < 16:
        patch.setattr(embedded.Server, "_run", run_without_set)
    patch.setitem(build.INSTALLS, int(version[0]), "")
    patch.setattr(build, "installed", lambda postgres: folder)
    patch.setattr(embedded.Server, "_create_extensions", create_extensions)
    config.add_cleanup(patch.undo)


def pytest_report_header(config: pytest.Config) -> str:
    server = config.getoption("dsn") or f"embedded PostgreSQL {config.getoption('postgres')}"
    return f"bq: {server}; kernels: {', '.join(pybq.kernels())}; seed: {SEED}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: no process waits for another one that has a long test left at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def lsa() -> tuple[Vectors, Vectors]:
    """Base and queries; not to be written to."""
    return load_lsa()


@pytest.fixture
def restore_kernel() -> Iterator[None]:
    """For tests that force kernels in this process."""
    before = pybq.simd()
    yield
    pybq.set_kernel(before)


@pytest.fixture(scope="session")
def own_servers(request: pytest.FixtureRequest) -> Iterator[OwnServers]:
    # what a standby has not fetched yet stays, whatever checkpoints there are
    settings: dict[str, embedded.Setting] = {
        "wal_consistency_checking": "all",
        "wal_keep_size": "1GB",
    }
    postgres = request.config.getoption("postgres")
    servers = OwnServers(lambda: pybq.serve(postgres=postgres, settings=settings))
    yield servers
    servers.close()


@pytest.fixture
def own_server(request: pytest.FixtureRequest) -> pybq.Server:
    """A server that a test may crash; replay compares each page with what was logged."""
    if request.config.getoption("dsn"):
        pytest.skip("needs a server of its own")
    servers: OwnServers = request.getfixturevalue("own_servers")
    return servers.provide()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """One server for the whole run: how to connect to it."""
    dsn = request.config.getoption("dsn")
    if dsn:
        yield dsn
        return
    # whose snapshot would keep rows that a test expects to be gone
    settings: dict[str, embedded.Setting] = {"autovacuum": False}
    postgres = request.config.getoption("postgres")
    with pybq.serve(postgres=postgres, settings=settings) as running:
        yield running.dsn


@pytest.fixture(scope="session")
def databases_of_tests(server: str) -> Iterator[Databases]:
    databases = Databases(server, _create_extensions)
    yield databases
    databases.close()


def _create_extensions(conn: Conn) -> None:
    """Fill the template that the tests' databases are copied from."""
    conn.execute("CREATE EXTENSION bq")
    if conn.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone():
        conn.execute("CREATE EXTENSION vector")


@pytest.fixture
def conn(databases_of_tests: Databases, request: pytest.FixtureRequest) -> Iterator[Conn]:
    """A connection to a database as new, with bq, and pgvector if the server has it."""
    with contextlib.closing(psycopg.connect(databases_of_tests.provide())) as conn:
        register_bq(conn)
        conn.commit()
        conn.autocommit = request.node.get_closest_marker("autocommit") is not None
        yield conn


@pytest.fixture
def vector(conn: Conn) -> None:
    """For tests that need pgvector; registers its adapters on `conn`."""
    if conn.execute("SELECT to_regtype('vector')").fetchone() == (None,):
        pytest.skip("the server has no pgvector")
    from pgvector.psycopg import register_vector

    register_vector(conn)
    conn.commit()


@pytest.fixture
def bq_pgvector(conn: Conn, vector: None) -> None:
    """For tests of indexes on pgvector's columns."""
    conn.execute("CREATE EXTENSION bq_pgvector")
    conn.commit()
