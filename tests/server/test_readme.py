"""Every example of README.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from shared import Conn

import pybq

README = Path(__file__).parents[2] / "README.md"


def examples(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.S | re.M)
    assert found, f"no {language} in README.md"
    return found


@pytest.mark.usefixtures("vector")
def test_sql_runs(conn: Conn) -> None:
    results = []
    for example in examples("sql"):
        for statement in re.sub(r"--.*", "", example).split(";"):
            if statement.strip():
                cursor = conn.execute(statement.encode())
                results += [cursor.fetchall()] if cursor.description else []
    by_vector, of_tenant, many = results
    assert [row[0] for row in by_vector] == [1, 3]
    assert [row[0] for row in of_tenant] == [1, 2]
    assert [row[:2] for row in many] == [(1, 1), (1, 3), (1, 2), (2, 2), (2, 1), (2, 3)]


def test_python_runs(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    if request.config.getoption("dsn"):
        pytest.skip("the examples start their own server")
    postgres = request.config.getoption("postgres")
    serve = pybq.serve
    monkeypatch.setattr(pybq, "serve", lambda: serve(postgres=postgres))
    # One after the other, as a reader would type them.
    names: dict[str, Any] = {"__name__": "__main__"}
    program = compile("\n".join(examples("python")), str(README), "exec", dont_inherit=True)
    try:
        exec(program, names)
    finally:
        names["conn"].close()
        names["server"].stop()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "42 note 42 0.0"
    assert any(line.startswith("why: ") for line in lines)
