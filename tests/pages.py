"""Examples of a page, run one after the other as a reader would type them.

What is imported at the top is Python's own: newcomer/ reads pages before anything is installed.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    import pytest
    from shared import Conn

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Those whose examples are run from here; others have tests of their own, which name them.
PAGES = [
    DOCS / f"{name}.md"
    for name in (
        "api",
        "cli",
        "codes",
        "comparison",
        "filters",
        "frameworks",
        "from-pgvector",
        "hybrid",
        "index",
        "operating",
        "pools",
        "quickstart",
        "science",
        "settings",
        "sql",
        "sqlalchemy",
        "tables",
        "troubleshooting",
    )
]

RUN = ("python", "sql", "sh")

# What stands above a block that is not, or not everywhere, run, and says why.
NOT_RUN = re.compile(r"<!-- not run: (?P<why>.+?) -->")
NEEDS = re.compile(r"<!-- needs: (?P<packages>.+?) -->")

FENCE = re.compile(
    r"(?:^(?P<comment><!-- [^\n]+ -->)\n)?"
    r"^```(?P<language>[^\s`]*)\n(?P<text>.*?)^```$"
    r"(?:\s*^```text\n(?P<output>.*?)^```$)?",
    re.S | re.M,
)
HEADING = re.compile(r"^##+ (.+)$", re.M)

# First line of a block that is to be written to a file, or added to the one that is there.
FILE = re.compile(r"# (\S+\.py)\b")


@dataclass(frozen=True)
class Block:
    """A fenced block, and the block ``text`` that follows at once: what it prints, or returns."""

    language: str
    text: str
    output: str | None
    comment: str
    line: int
    section: str

    @property
    def file(self) -> str | None:
        """Where it belongs, if it says so."""
        found = FILE.match(self.text)
        return found[1] if found else None

    @property
    def needs(self) -> list[str]:
        """Packages that the tests have only where they were asked for."""
        found = NEEDS.match(self.comment)
        return found["packages"].split(", ") if found else []


def read_blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, but for directives and outputs; every cell of a notebook."""
    read = _read_notebook if page.suffix == ".ipynb" else _read_blocks
    return read(page.read_text())


def _read_blocks(text: str) -> list[Block]:
    found = list(FENCE.finditer(text))
    headings = [
        (heading.start(), heading[1])
        for heading in HEADING.finditer(text)
        if not any(block.start() < heading.start() < block.end() for block in found)
    ]
    return [
        Block(
            block["language"],
            block["text"],
            block["output"],
            block["comment"] or "",
            text.count("\n", 0, block.start("text")),
            next((name for at, name in reversed(headings) if at < block.start()), ""),
        )
        for block in found
        if not block["language"].startswith("{")
    ]


def _read_notebook(text: str) -> list[Block]:
    blocks = []
    for number, cell in enumerate(json.loads(text)["cells"], 1):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            blocks.append(Block("python", source, None, "", number, ""))
        else:
            blocks += [replace(block, line=number) for block in _read_blocks(source)]
    return blocks


WITH_EXAMPLES = [page for page in PAGES if any(b.language in RUN for b in read_blocks(page))]


def as_url(conn: Conn) -> str:
    """How to connect, in the form that asyncpg knows, too."""
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(conn.info.dsn)
    names = ("host", "port", "user", "password")
    query = urlencode({name: parts[name] for name in names if name in parts})
    return f"postgresql:///{parts['dbname']}?{query}"


def run_page(
    page: Path,
    conn: Conn,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    languages: Sequence[str],
    more: bool,
) -> None:
    """Run the examples of a page in some languages; with `more`, those that need packages, too."""
    import pybq

    # test_readme.py starts a server; here it is there
    server = SimpleNamespace(dsn=as_url(conn), stop=lambda: None)
    monkeypatch.setattr(pybq, "serve", lambda: server)
    monkeypatch.setenv("PYBQ_DSN", as_url(conn))
    monkeypatch.chdir(folder)
    blocks = [
        block
        for block in read_blocks(page)
        if block.language in languages
        and not NOT_RUN.match(block.comment)
        and (more or not block.needs)
    ]
    assert any(block.output is not None for block in blocks), f"{page.name} shows no output"
    with Reader(page, folder, conn) as reader:
        for block in blocks:
            reader.run(block)


class Reader(contextlib.AbstractContextManager["Reader"]):
    """Who types what a page says, on one connection, in one Python, in one folder."""

    def __init__(self, page: Path, folder: Path, conn: Conn | None = None) -> None:
        self._page = page
        self._folder = folder
        self._conn = conn
        self.printed = ""  # by the last block
        self._names: dict[str, Any] = {"__name__": "__main__"}

    def __exit__(self, *_: object) -> None:
        """Close what the page has left open, as the end of a program would."""
        import psycopg

        for value in self._names.values():
            if isinstance(value, psycopg.Connection):
                value.close()

    def run(self, block: Block) -> None:
        """Run a block; what it prints must be what the page says, where it says something."""
        output = self.printed = getattr(self, f"_run_{block.language}")(block)
        if block.output is None:
            return
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        if not doctest.OutputChecker().check_output(block.output, output, flags):
            where = f"{self._page.name}, line {block.line}"
            raise AssertionError(f"{where}: expected\n{block.output}\ngot\n{output}")

    def _connection(self) -> Conn:
        """Where SQL is typed: what the page's Python calls `conn`, unless one was given."""
        found = self._conn or self._names.get("conn")
        assert found is not None, f"{self._page.name} does not say where SQL is to be typed"
        return found

    def _run_python(self, block: Block) -> str:
        if block.file is not None:
            path = self._folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write("\n" + block.text)
            return ""
        # lines of the page, for tracebacks
        program = compile(
            "\n" * block.line + block.text, str(self._page), "exec", dont_inherit=True
        )
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(program, self._names)
        return printed.getvalue()

    def _run_sql(self, block: Block) -> str:
        import psycopg

        conn = self._connection()
        lines = []
        for statement in re.sub(r"--.*", "", block.text).split(";"):
            if not statement.strip():
                continue
            try:
                cursor = conn.execute(statement.encode())
            except psycopg.Error as error:
                message = f"ERROR:  {error.diag.message_primary}"
                if block.output is None or message not in block.output:
                    raise
                lines.append(message)
                continue
            for row in cursor.fetchall() if cursor.description else []:
                lines.append(" | ".join("" if value is None else str(value) for value in row))
        return "\n".join(lines) + "\n"

    def _run_sh(self, block: Block) -> str:
        # the command of this environment, which may see pybq without having installed it
        commands = self._folder / ".commands"
        commands.mkdir(exist_ok=True)
        command = commands / "pybq"
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pybq "$@"\n')
        command.chmod(0o755)
        python = os.path.dirname(sys.executable)
        path = os.pathsep.join([str(commands), python, os.environ["PATH"]])
        done = subprocess.run(
            ["sh", "-e", "-c", block.text],
            cwd=self._folder,
            env={**os.environ, **self._named(), "PATH": path, "COLUMNS": "120"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{self._page.name}, line {block.line}: {done.stderr}"
        return done.stdout

    def _named(self) -> dict[str, str]:
        """The database, as libpq's variables name it."""
        from psycopg.conninfo import conninfo_to_dict

        if self._conn is None:
            return {}
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
        names["password"] = "PGPASSWORD"
        parts = conninfo_to_dict(self._conn.info.dsn)
        return {names[key]: str(value) for key, value in parts.items() if key in names}
