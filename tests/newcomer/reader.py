"""A newcomer at one page, in an environment where nothing is installed yet.

    python reader.py WHEEL PAGE [SECTION]

Runs in the environment and the folder that the newcomer begins with (__main__.py makes both), by
the runner of the pages' tests, of whose own names a page gets none. Prints what it took, as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # here, and not for what pages import
    sys.path[0] = str(Path(__file__).resolve().parents[1])
from pages import NOT_RUN, ROOT, RUN, Block, Reader, read_blocks  # noqa: E402

# What a page, or a section, says above its first block of where it begins.
CONTINUES = re.compile(
    r"\bcontinues? from\s+\[[^\]]+\]\((?P<page>[^)#]*)(?:#(?P<section>[^)]+))?\)"
)

# What a page installs in the midst of a sentence
INLINE = re.compile(r"`(pip install [^`]+)`")

# The words of the command that stays, in a terminal of its own
SERVE = re.compile(r"pybq serve\b")


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def steps(page: Path, section: str | None) -> Iterator[tuple[Path, Block]]:
    """Blocks of what a page, or a section, continues from, and then its own."""
    text = page.read_text()
    if page.suffix == ".md":
        if section is not None:
            (text,) = (
                part
                for part in re.split(r"^##+ ", text, flags=re.M)[1:]
                if anchor(part.partition("\n")[0]) == section
            )
        before = CONTINUES.search(text.partition("```")[0])
        if before is not None:
            other = (page.parent / before["page"]).resolve() if before["page"] else page
            yield from steps(other, before["section"])
    for block in sorted([*read_blocks(page), *read_inline(page)], key=lambda block: block.line):
        why_not = NOT_RUN.match(block.comment)
        if block.language not in RUN or (why_not and why_not["why"].startswith("needs")):
            continue
        if section is None or anchor(block.section) == section:
            yield page, block


def read_inline(page: Path) -> Iterator[Block]:
    """Lines for pip outside of blocks."""
    section = ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("##"):
            section = line.lstrip("# ")
        for found in INLINE.finditer(line):
            yield Block("sh", found[1] + "\n", None, "", number, section)


class Newcomer(Reader):
    """Installs what a page says, starts the server that it says, and looks at the clock."""

    def __init__(self, wheel: str, folder: Path) -> None:
        super().__init__(Path(), folder)
        self._wheel = wheel
        self._server: subprocess.Popen[str] | None = None
        self._start = time.monotonic()
        self.pip = 0.0  # seconds
        self.downloads = 0.0  # MB
        self.first: dict[str, float] | None = None

    def __exit__(self, *details: object) -> None:
        if "psycopg" in sys.modules:
            super().__exit__(*details)
        if self._conn is not None:
            self._conn.close()
        if self._server is not None:
            self._server.terminate()
            self._server.communicate()

    def take(self, page: Path, block: Block, wanted: bool) -> None:
        """Run a block; `wanted`: the first hit may be in what it prints."""
        self._page = page
        self.run(block)
        # commands say much on the way; what is to be looked at, the page shows
        found = self.printed.strip() and (block.language != "sh" or block.output is not None)
        if self.first is None and wanted and found:
            hit = time.monotonic() - self._start - self.pip
            self.first = {"pip": self.pip, "hit": hit, "downloads": self.downloads}

    def _run_sh(self, block: Block) -> str:
        """Line by line, as some take long and one stays."""
        printed = ""
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.startswith("pip install"):
                self._install(line)
            elif SERVE.match(line):
                self._serve(line)
            elif line:
                printed += super()._run_sh(Block("sh", line, None, "", block.line, ""))
        return printed

    def _install(self, line: str) -> None:
        command = [sys.executable, "-m", "pip", "install", *wanted(line, self._wheel)]
        start = time.monotonic()
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True)
        self.pip += time.monotonic() - start
        assert done.returncode == 0, f"{line}: {done.stderr}"
        self.downloads += sum(downloads(done.stdout))
        importlib.invalidate_caches()

    def _serve(self, line: str) -> None:
        import psycopg

        self._server = subprocess.Popen(
            shlex.split(line, comments=True), cwd=self._folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        said = ""
        assert self._server.stdout is not None
        for text in self._server.stdout:
            said += text
            if "Ctrl-C" in text:
                break
        found = re.search(r"export PYBQ_DSN='(.+)'", said)
        assert found is not None, f"{line}: {said}"
        # of what it prints a newcomer takes the line for psql, and this one
        self._conn = psycopg.connect(found[1], autocommit=True)
        os.environ["PYBQ_DSN"] = found[1]

    def _named(self) -> dict[str, str]:
        return {}  # the command finds the server by itself, or is told by the page

    def _connection(self) -> Any:
        """Where the page was last: in psql, or in its own Python."""
        return self._conn or super()._connection()


def wanted(line: str, wheel: str) -> list[str]:
    """What a line for pip installs, with a wheel for `pybq`."""
    words = shlex.split(line, comments=True)[2:]
    return [
        wheel + word.removeprefix("pybq") if re.match(r"pybq\b", word) else word for word in words
    ]


def downloads(said: str) -> Iterator[float]:
    """Megabytes of each file that pip says to have fetched."""
    units = {"bytes": 1e-6, "kB": 1e-3, "MB": 1.0, "GB": 1e3}
    for size, unit in re.findall(r"Downloading \S+ \(([\d.]+) (\w+)\)", said):
        yield float(size) * units[unit]


def main(wheel: str, page: str, section: str | None = None) -> None:
    sys.path[0] = ""  # as of who types
    failed = None
    lines = []
    with Newcomer(wheel, Path.cwd()) as newcomer:
        try:
            for source, block in steps(ROOT / page, section):
                own = source == ROOT / page and section in (None, anchor(block.section))
                lines += [line for line in block.text.splitlines() if line.startswith("pip ")]
                where = f"{source.relative_to(ROOT)}, line {block.line}"
                newcomer.take(source, block, own)
        except BaseException:
            failed = f"{where}: {traceback.format_exc()}"
    if newcomer.first is None:
        failed = failed or "nothing was printed"
    print(json.dumps({"first": newcomer.first, "failed": failed, "pip": lines}))


if __name__ == "__main__":
    main(*sys.argv[1:])
