"""The version, and every place that repeats it.

    python release/version.py             which places differ; status 1 if any does
    python release/version.py 0.2.0       write it where it can be written

extension/bq.control is the one home: Makefiles and setup.py read it there.  Files that PostgreSQL,
PGXN and Docker want to be complete repeat it, and changelogs say what is new in it: people write
those.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = "extension/bq.control"

# The version in each file, between what stands before it and what ends it.
DEFAULT_VERSION = r"^(default_version = ')([^']*)(')"
WRITTEN = {
    HOME: DEFAULT_VERSION,
    "extension/bq_pgvector.control": DEFAULT_VERSION,
    # an image of a release, from PGXN
    "benchmarks/ann_benchmarks/Dockerfile": r"^(ARG VERSION=)(\S*)()",
    "META.json": r'^(\s+"version": ")([^"]*)(")',  # of the distribution, and of what it provides
}
# The first entry counts.
CHANGELOGS = {
    "CHANGELOG.md": r"^(## )(\S+)",
    "release/debian/changelog": r"^(bq \()([^)]*)-\d+\)",
}


def read(root: Path = ROOT) -> str:
    """The version, where it lives."""
    found = re.search(DEFAULT_VERSION, (root / HOME).read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"expected a line default_version = '...' in {HOME}")
    return found[2]


def complaints(root: Path = ROOT) -> list[str]:
    """Places that have another version than its home, and what to do."""
    version = read(root)
    found = []
    for name, pattern in WRITTEN.items():
        text = (root / name).read_text()
        versions = [match[1] for match in re.findall(pattern, text, re.MULTILINE)]
        if set(versions) != {version}:
            found.append(
                f"expected version {version} in {name}, got {', '.join(versions) or 'none'}; "
                f"run python release/version.py {version}"
            )
    for name, pattern in CHANGELOGS.items():
        first = re.search(pattern, (root / name).read_text(), re.MULTILINE)
        if first is None or first[2] != version:
            found.append(
                f"expected the first entry of {name} to be of version {version}, "
                f"got {first[2] if first else 'none'}; write one"
            )
    return found


def write(version: str, root: Path = ROOT) -> None:
    """Put a version where it can be put without saying what is new in it."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"expected a version such as 0.2.0, got {version!r}")
    for name, pattern in WRITTEN.items():
        path = root / name
        text = re.sub(pattern, rf"\g<1>{version}\g<3>", path.read_text(), flags=re.MULTILINE)
        path.write_text(text)


def main(arguments: list[str]) -> int:
    if arguments:
        write(*arguments)
    found = complaints()
    print("\n".join(found) or f"version {read()} everywhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
