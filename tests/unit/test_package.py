"""Names and versions that are written in more than one place."""

import re
from importlib.metadata import version
from pathlib import Path

import pybq

ROOT = Path(__file__).parents[2]


def default_version(extension):
    control = (ROOT / "extension" / f"{extension}.control").read_text()
    return re.search(r"^default_version = '(.*)'$", control, re.MULTILINE).group(1)


def test_versions_are_equal():
    extension = default_version("bq")
    project = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project.group(1) == extension
    assert pybq.__version__ == version("pybq") == extension


def test_every_extension_has_that_version():
    """One library serves them all."""
    names = sorted(path.stem for path in (ROOT / "extension").glob("*.control"))
    assert names == ["bq", "bq_pgvector"]
    assert {default_version(name) for name in names} == {pybq.__version__}
    for name in names:
        control = (ROOT / "extension" / f"{name}.control").read_text()
        assert "module_pathname = '$libdir/bq'" in control, name
        assert (ROOT / "sql" / f"{name}.sql").exists()


def test_core_knows_nothing_of_postgres():
    sources = list((ROOT / "extension" / "core").glob("*.[ch]"))
    assert sources
    for path in sources:
        assert "postgres.h" not in path.read_text(), path
