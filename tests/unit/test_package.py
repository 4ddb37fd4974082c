"""Names and versions that are written in more than one place."""

import importlib.util
import json
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

import pybq

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    """A script of release/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "release" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = load("version")


def default_version(extension):
    control = (ROOT / "extension" / f"{extension}.control").read_text()
    return re.search(r"^default_version = '(.*)'$", control, re.MULTILINE).group(1)


def test_versions_are_equal():
    assert release.complaints() == []
    assert pybq.__version__ == version("pybq") == default_version("bq")


@pytest.fixture
def copied(tmp_path):
    """All files that have the version."""
    for name in (*release.WRITTEN, *release.CHANGELOGS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", [*release.WRITTEN, *release.CHANGELOGS])
def test_another_version_is_noticed(copied, name):
    path = copied / name
    text = path.read_text()
    for old in re.findall(r"\b\d+\.\d+\.\d+\b", text):
        if old == release.read():
            text = text.replace(old, "77.0.1", 1)  # one place of several is enough
            break
    path.write_text(text)
    complaints = "\n".join(release.complaints(copied))
    assert name in complaints or name == release.HOME
    assert "77.0.1" in complaints


def test_a_new_version_is_written_where_it_can_be(copied):
    release.write("77.0.1", copied)
    assert release.read(copied) == "77.0.1"
    complaints = "\n".join(release.complaints(copied))
    for name in release.WRITTEN:
        assert name not in complaints
    for name in release.CHANGELOGS:  # people say what is new
        assert f"first entry of {name} to be of version 77.0.1" in complaints
    with pytest.raises(ValueError, match="expected a version such as 0.2.0, got 'v1'"):
        release.write("v1", copied)


@pytest.fixture
def check(monkeypatch):
    monkeypatch.setitem(sys.modules, "version", release)
    return load("check")


def test_meta_json_is_what_pgxn_wants(check):
    meta = json.loads((ROOT / "META.json").read_text())
    assert check.meta_complaints(meta) == []
    provides = meta["provides"]
    for wrong, complaint in (
        ({"provides": {"bq": provides["bq"]}}, "provides ['bq'], expected ['bq', 'bq_pgvector']"),
        ({"provides": provides | {"bq": provides["bq"] | {"file": "bq.sql"}}}, "bq.sql of bq does"),
        ({"license": "gpl"}, "license 'gpl'"),
        ({"version": "0.1"}, "'0.1' is no version"),
        ({"meta-spec": {"version": "2.0.0"}}, "meta-spec version 1.0.0"),
    ):
        assert complaint in "\n".join(check.meta_complaints(meta | wrong))
    del meta["maintainer"]
    assert check.meta_complaints(meta) == ["META.json: no maintainer"]


def test_workflow_runs_every_job():
    """Those of `.ci/run`: on a machine each, but for what is run once a week."""
    jobs = re.findall(r"^job_(\w+)\(\)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    matrix = re.search(r"^ +job: \[(.*)\]$", workflow, re.MULTILINE)
    weekly = re.findall(r"run: \.ci/run (\w+)$", workflow, re.MULTILINE)
    assert len(jobs) > 5
    assert sorted([*matrix.group(1).split(", "), *weekly]) == sorted(jobs)


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
