"""Names and versions that are written in more than one place."""

import re
from importlib.metadata import version
from pathlib import Path

import pybq

ROOT = Path(__file__).parents[2]


def test_versions_are_equal():
    control = (ROOT / "extension" / "bq.control").read_text()
    extension = re.search(r"^default_version = '(.*)'$", control, re.MULTILINE).group(1)
    project = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project.group(1) == extension
    assert pybq.__version__ == version("pybq") == extension


def test_core_knows_nothing_of_postgres():
    sources = list((ROOT / "extension" / "core").glob("*.[ch]"))
    assert sources
    for path in sources:
        assert "postgres.h" not in path.read_text(), path
