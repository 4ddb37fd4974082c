"""Fixtures: the command `pybq`; a table with an index that many tests read."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from databases import Databases
from indexlib import (
    DIM,
    OPTIONS,
    ROWS,
    clustered_vectors,
    connect_to_read,
    operand,
    provide_items,
    random_vectors,
)
from shared import SEED, Conn

from pybq import Query


@pytest.fixture
def run(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run the command `pybq` on the test's database; exit status, and all that it printed."""
    testing = pytest.importorskip("typer.testing")
    pytest.importorskip("rich")
    from pybq._cli.app import app

    monkeypatch.setenv("PYBQ_DSN", conn.info.dsn)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: Any) -> tuple[int, str]:
        result = testing.CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


@pytest.fixture
def ask(run: Callable[..., tuple[int, str]]) -> Callable[..., Any]:
    """Run the command with --json; what it answered."""

    def ask(*arguments: Any, expected: int = 0) -> Any:
        code, output = run(*arguments, "--json")
        assert code == expected, output
        return json.loads(output)

    return ask


@pytest.fixture(scope="module")
def database(databases_of_tests: Databases) -> Iterator[str]:
    vectors = clustered_vectors(np.random.default_rng((SEED, 1)), ROWS, DIM)
    with provide_items(databases_of_tests, vectors, OPTIONS) as dsn:
        yield dsn


@pytest.fixture
def items(database: str) -> Iterator[Conn]:
    """A table with an index of 40 lists, of which a scan reads one first; not to be written to."""
    with connect_to_read(database) as conn:
        yield conn


@pytest.fixture
def q(rng: np.random.Generator) -> Query:
    query = operand("<=>", random_vectors(rng, 1, DIM)[0])
    assert isinstance(query, Query)
    return query
