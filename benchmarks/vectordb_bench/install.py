"""Put the client of bq into VectorDBBench, which has no other way to add one.

    python install.py                    into the vectordb_bench that this Python imports
    python install.py FOLDER             into a checkout: its folder vectordb_bench

Copies bq/ to backend/clients/ and names it where clients and commands are named.  May be run again.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent

MEMBER = '    Milvus = "Milvus"\n'
BRANCH = "        if self == DB.Milvus:\n"  # the first one of each of three functions
CLASSES = (("bq", "Bq"), ("config", "BqConfig"), ("config", "BqIndexConfig"))
COMMANDS = "from .cli import cli\n"


def install(package: Path) -> None:
    clients = package / "backend" / "clients"
    shutil.copytree(HERE / "bq", clients / "bq", dirs_exist_ok=True)
    add(clients / "__init__.py", with_client)
    add(package / "cli" / "vectordbbench.py", with_command)


def add(path: Path, change: Callable[[str], str]) -> None:
    """Change a file, unless it has been changed before."""
    text = path.read_text()
    if "Bq" not in text:
        path.write_text(change(text))


def with_client(text: str) -> str:
    before, *functions = text.split(BRANCH)
    if MEMBER not in before or len(functions) != len(CLASSES):
        raise ValueError("expected an enumeration of clients that begins with Milvus; got another")
    text = before.replace(MEMBER, f'    Bq = "bq"\n{MEMBER}')
    for (module, name), function in zip(CLASSES, functions, strict=True):
        text += (
            "        if self == DB.Bq:\n"
            f"            from .bq.{module} import {name}\n\n"
            f"            return {name}\n\n{BRANCH}{function}"
        )
    return text


def with_command(text: str) -> str:
    if COMMANDS not in text:
        raise ValueError("expected the commands to be added to .cli.cli; got another file")
    return text.replace(
        COMMANDS,
        f"from ..backend.clients.bq.cli import Bq\n{COMMANDS}\ncli.add_command(Bq)\n",
        1,
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
    else:
        spec = importlib.util.find_spec("vectordb_bench")
        if spec is None or not spec.submodule_search_locations:
            sys.exit("vectordb_bench not found; pip install vectordb-bench, or name its folder")
        folder = Path(spec.submodule_search_locations[0])
    install(folder)
    print(f"the client of bq is in {folder}")
