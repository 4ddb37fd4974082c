"""Every example of README.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from shared import Conn

import pybq

README = Path(__file__).parents[2] / "README.md"


# What tests/frameworks runs, where frameworks are installed.
FRAMEWORKS = "<!-- run by tests/frameworks -->\n\n"


def examples(language: str) -> list[str]:
    block = rf"(?<!{FRAMEWORKS})^```{language}\n(.*?)^```$"
    found = re.findall(block, README.read_text(), re.S | re.M)
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
    by_vector, of_tenant, many, by_query, by_code, exact = results
    assert [row[0] for row in by_vector] == [1, 3]
    assert [row[0] for row in of_tenant] == [1, 2]
    assert [row[:2] for row in many] == [(1, 1), (1, 3), (1, 2), (2, 2), (2, 1), (2, 3)]
    assert [row[0] for row in by_query] == [1, 3]
    assert [row[0] for row in by_code] == [1, 3]
    assert [(row[0], round(row[1], 3)) for row in exact] == [(1, 0.0), (3, 0.064), (2, 0.733)]


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
    made = 'CREATE INDEX CONCURRENTLY ON "public"."articles" USING bq ("v" vector_cosine_ops)'
    assert lines[-6:] == ["/7", made, "42", "42 0.0", "42", "note 42 1 1"]
    assert any(line.startswith("why: ") for line in lines)
