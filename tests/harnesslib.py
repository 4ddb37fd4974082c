"""What tests of the harnesses in tests/harness share: where they are, and how they are run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "harness"  # `make test-harness` makes it
PYTHON = BUILD / "bin" / "python"
K = 10


def run(*command: object, cwd: Path, env: dict[str, str]) -> str:
    """Run a program of a harness; what it said, which is shown if it fails."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:]
    return result.stdout
