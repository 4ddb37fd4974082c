"""pybq/README.md, the map of the package: it names every file, and arrows go as it says."""

from __future__ import annotations

import re
from pathlib import Path

import grimp
import pytest

PACKAGE = Path(__file__).parents[2] / "pybq"
MAP = (PACKAGE / "README.md").read_text()

Arrows = set[tuple[str, str]]  # from one module of the package to another


def room(module: str) -> str:
    """The room of a module, or its own name if it stands in none."""
    return (module + ".__init__").split(".")[1]


def read_rules(text: str) -> dict[str, set[str]]:
    """What each room may import, by the table of rooms, from below to above."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", allowed)) for name, allowed in rows}


def read_files(text: str) -> list[str]:
    """Files of which the map has a line, as `room/file.py`."""
    named = []
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        found = re.match(r"`(\w+)`", section)
        folder = f"{found[1]}/" if found else ""
        lines = section.partition("\n## ")[0]
        named += [folder + name for name in re.findall(r"^- `(\S+)`: ", lines, re.MULTILINE)]
    return named


def find_files() -> list[str]:
    """Sources of the package; `__init__.py` of a room says what its heading does."""
    paths = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py*")]
    return [
        str(path)
        for path in paths
        if path.suffix in (".py", ".pyx")
        and (len(path.parts) == 1 or path.name != "__init__.py")
        and path.parts[0] != "_source"  # of an installed package
    ]


def read_imports(text: str) -> list[str]:
    """Modules of the package that a .pyx imports, or their rooms."""
    return re.findall(r"^\s*(?:from|c?import) (pybq\S*)", text, re.MULTILINE)


def find_arrows() -> Arrows:
    graph = grimp.build_graph("pybq", cache_dir=None)
    arrows = {
        (module, other)
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
    }
    for path in PACKAGE.rglob("*.pyx"):  # which grimp does not read
        module = ".".join(["pybq", *path.relative_to(PACKAGE).with_suffix("").parts])
        arrows |= {(module, other) for other in read_imports(path.read_text())}
    return arrows


def complaints(text: str, files: list[str], arrows: Arrows) -> list[str]:
    """What differs between the map and the package, and how to put it right."""
    rules, named = read_rules(text), read_files(text)
    found = [
        f"pybq/README.md has no line for {name}; add one to its room: - `{Path(name).name}`: ..."
        for name in sorted(set(files) - set(named))
    ]
    found += [
        f"pybq/README.md names {name}, which does not exist; remove or rename its line"
        for name in sorted(set(named) - set(files))
    ]
    found += [f"pybq/README.md names {name} twice" for name in {*named} if named.count(name) > 1]
    for module, other in sorted(arrows):
        if room(module) == room(other):
            continue
        if room(module) not in rules:
            found.append(f"pybq/README.md has no row for {room(module)} in the table of rooms")
        elif room(other) not in rules[room(module)]:
            found.append(
                f"{module} imports {other}, but {room(module)} may import "
                f"{', '.join(sorted(rules[room(module)])) or 'nothing'} only: move what is needed "
                "to a room below, or, if the arrow is right, name it in the table of rooms"
            )
    below: set[str] = set()
    for name, allowed in rules.items():
        found += [
            f"the row of {name} allows {other}, which does not stand above it in the table"
            for other in sorted(allowed - below)
        ]
        below.add(name)
    return found


def test_package_is_as_its_map_says() -> None:
    arrows = find_arrows()
    assert len(arrows) > 50
    assert complaints(MAP, find_files(), arrows) == []


def test_other_paths_in_the_map_exist() -> None:
    paths = re.findall(r"`((?:pybq|sql|extension|tests)/[\w/.]+)`", MAP)
    assert paths and [path for path in paths if not (PACKAGE.parent / path).exists()] == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (r"^- `arrays.py`: .*\n", "", "has no line for _codes/arrays.py"),
        (r"^- `arrays.py`:", "- `array.py`:", "names _codes/array.py, which does not exist"),
        (r"^(- `arrays.py`: .*\n)", r"\1\1", "names _codes/arrays.py twice"),
        (r"^(\| `_loading` \|.*)`_codes`, ", r"\1", "pybq._loading.ingest imports pybq._codes"),
        (r"^\| `_loading` \|.*\n", "", "no row for _loading"),
        (r"^(\| `_codes` \|) [^|]*", r"\1 `_tables` ", "row of _codes allows _tables"),
    ],
)
def test_a_map_that_is_not_true_is_noticed(old: str, new: str, complaint: str) -> None:
    text, replaced = re.subn(old, new, MAP, flags=re.MULTILINE)
    assert replaced == 1
    assert complaint in "\n".join(complaints(text, find_files(), find_arrows()))


def test_imports_of_cython_count() -> None:
    text = "from pybq._codes import core\n    import pybq.errors\ncimport pybq.a\nimport numpy"
    assert read_imports(text) == ["pybq._codes", "pybq.errors", "pybq.a"]


def test_an_arrow_that_goes_up_is_noticed() -> None:
    arrows = find_arrows() | {("pybq._codes.vector", "pybq._tables.table")}
    (complaint,) = complaints(MAP, find_files(), arrows)
    assert "pybq._codes.vector imports pybq._tables.table, but _codes may import" in complaint
