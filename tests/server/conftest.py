"""Fixtures: the command `pybq`."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from shared import Conn


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
