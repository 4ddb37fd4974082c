"""From `pip install` to the first hit, page by page (make newcomer).

    python -m newcomer ../dist/pybq-*.whl               (in tests/)
    python -m newcomer ../dist/pybq-*.whl quickstart django

For each page an environment with nothing in it, and then what the page says, in order: what it
installs, its servers, its Python, SQL and commands (reader.py). The only thing that differs from
what a newcomer types is the wheel in place of `pybq`, which no index of packages has yet. Once with
caches that are empty, of pip and of compiled extensions, and once more, in another environment,
with what the first time has left in them; if the index forbids pip to keep files, they are fetched
once more, and found in a folder. Exits with 1 if a page fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import ROOT
from rich import box
from rich.console import Console
from rich.table import Table as Grid

from newcomer.reader import wanted

READER = Path(__file__).with_name("reader.py")

# Name -> page, and a heading's anchor if it is about one section.
PAGES: dict[str, tuple[str, ...]] = {
    "readme-python": ("README.md", "in-python"),
    "readme-sql": ("README.md", "in-sql"),
    **{
        name: (f"docs/{name}.md",)
        for name in (
            "quickstart",
            "tables",
            "cli",
            "from-pgvector",
            "settings",
            "filters",
            "operating",
            "troubleshooting",
            "codes",
            "hybrid",
            "pools",
            "sqlalchemy",
            "django",
            "langchain",
            "llama-index",
            "haystack",
        )
    },
    "search.ipynb": ("docs/notebooks/search.ipynb",),
    "axes.ipynb": ("docs/notebooks/axes.ipynb",),
    "encoding": ("docs/encoding.md",),
}
DEMO = "demo"
# Programs that pip does not install, beside make and a C compiler
NEEDS = {"encoding": "java"}
# What pip and the server of a newcomer would find of ours.
OURS = ("PYTHON", "PYBQ_", "PG", "VIRTUAL_ENV", "MAKE", "MFLAGS", "DJANGO_")


def environment(folder: Path, caches: Path) -> dict[str, str]:
    """Of who has this machine's programs and certificates, and no files."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return found | {
        "HOME": str(folder),
        "PATH": os.pathsep.join([str(folder / "venv" / "bin"), os.environ["PATH"]]),
        "PIP_CACHE_DIR": str(caches / "pip"),
        "PIP_FIND_LINKS": str(caches / "wheels"),
        "PYBQ_CACHE_DIR": str(caches / "bq"),
        "PYBQ_DATA_DIR": str(folder / "data"),
    }


def read(name: str, wheel: Path, folder: Path, caches: Path) -> dict[str, Any]:
    """What one page took, in one new environment."""
    # not of an environment: what that has is not to be seen
    python = Path(sys.base_prefix) / "bin" / "python3"
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    page, *section = PAGES[name]
    work = folder / "work"
    work.mkdir()
    if page.endswith(".ipynb"):  # who reads a notebook has cloned the tree that it lies in
        clone(folder / "bq")
        work = (folder / "bq" / page).parent
    done = subprocess.run(
        [folder / "venv" / "bin" / "python", READER, wheel, page, *section],
        cwd=work, env=environment(folder, caches), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def keep(lines: list[str], wheel: Path, folder: Path, caches: Path) -> None:
    """Fetch what pip could not keep in its cache."""
    pip = [folder / "venv" / "bin" / "python", "-m", "pip", "download", "--quiet", "--dest"]
    for line in lines:
        command = [*pip, caches / "wheels", *wanted(line, str(wheel))]
        subprocess.run(command, cwd=folder, env=environment(folder, caches), check=True)


def clone(target: Path) -> None:
    subprocess.run(["git", "clone", "--quiet", ROOT, target], check=True)


def demo(folder: Path, caches: Path) -> dict[str, Any]:
    """What `make demo` took in a clone, until its first answer."""
    clone(folder / "bq")
    env = {**environment(folder, caches), "PYTHONUNBUFFERED": "1"}
    start = time.monotonic()
    made = subprocess.run(
        ["make", "build"], cwd=folder / "bq", env=env, capture_output=True, text=True
    )
    pip = time.monotonic() - start
    with subprocess.Popen(
        ["make", "demo"], cwd=folder / "bq", env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        said, hit = made.stdout + made.stderr, None
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if hit is None and re.match(r" +0\.\d\d ", line):  # similarity, text
                hit = time.monotonic() - start - pip
    first = None if hit is None else {"pip": pip, "hit": hit, "downloads": 0.0}
    failed = said if process.returncode or hit is None else None
    return {"first": first, "failed": failed, "pip": ["make demo"]}


def go(name: str, wheel: Path) -> Iterator[dict[str, Any]]:
    """With empty caches, and with filled ones."""
    with tempfile.TemporaryDirectory(prefix="newcomer-", dir="/tmp") as kept:
        os.chmod(kept, 0o755)  # PostgreSQL does not run as root
        caches = Path(kept) / "caches"
        for time_of in ("cold", "warm"):
            folder = Path(kept) / time_of
            folder.mkdir()
            taken = demo(folder, caches) if name == DEMO else read(name, wheel, folder, caches)
            yield taken
            if time_of == "cold" and name != DEMO and not (caches / "pip").exists():
                keep(taken["pip"], wheel, folder, caches)
            shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("pages", nargs="*", help=f"of {', '.join([*PAGES, DEMO])}; all by default")
    options = parser.parse_args()
    unknown = set(options.pages) - {*PAGES, DEMO}
    if unknown:
        parser.error(f"no such page: {', '.join(sorted(unknown))}")
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(
        f"pybq is {options.wheel.name}, as no index of packages has it yet.\n"
        "Caches of pip and of compiled extensions: empty, and then as the first time left them."
    )
    grid = Grid("page", "installs", box=box.SIMPLE_HEAD)
    grid.add_column("MB", justify="right")
    for caches in ("empty", "filled"):
        for heading in ("pip, s", "then to\na hit, s", "both, s"):
            grid.add_column(f"{caches}\n{heading}", justify="right")
    failures = 0
    for name in options.pages or [*PAGES, DEMO]:
        if name in NEEDS and shutil.which(NEEDS[name]) is None:
            grid.add_row(name, f"not run: there is no {NEEDS[name]} here", *["-"] * 7)
            continue
        cells = []
        for taken in go(name, options.wheel.resolve()):
            first = taken["first"]
            if taken["failed"] is not None:
                failures += 1
                console.print(f"{name}: {taken['failed']}", style="red", markup=False)
            if first is None:
                cells = ["-"] * 7
                break
            if not cells:  # the second time, less is fetched
                cells = [f"{first['downloads']:.0f}" if first["downloads"] else "?"]
            seconds = (first["pip"], first["hit"], first["pip"] + first["hit"])
            cells += [f"{each:.1f}" for each in seconds]
        installs = ", ".join(line.removeprefix("pip install ") for line in taken["pip"])
        grid.add_row(name, installs.replace("[", r"\["), *cells)
        console.print(f"{name} {' '.join(cells)}")
    console.print(grid)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
