"""Build bq with fault points (bqfault.c) into a copy of an embedded server's installation."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What may fail of what bq calls: memory, pages, WAL, locks, catalogs, tables, sorts, parallel
# workers, functions of types, waiting.  Not: what sets things free, or only looks at them.
FAILING = re.compile(
    r"palloc\w*|repalloc\w*|MemoryContextAlloc\w*|AllocSetContextCreateInternal|pstrdup|psprintf"
    r"|\w*StringInfo\w*|construct_array|deconstruct_array|hash_create|hash_search"
    r"|ReadBuffer\w*|PrefetchBuffer|RelationGetNumberOfBlocksInFork|smgropen|log_newpage_range"
    r"|XLogInsert|LockPage|LockRelationForExtension|\w+_open|RangeVarGetRelidExtended"
    r"|index_(beginscan|rescan|getnext_slot|getprocinfo)|systable_(beginscan|getnext)"
    r"|SearchSysCache\w*|SPI_(connect|execute\w*)|table_slot_create|FormIndexDatum|BuildIndexInfo"
    r"|tuplesort_(begin_heap|puttupleslot|performsort|gettupleslot)|heap_(form|modify)_tuple\w*"
    r"|CreateExecutorState|MakeSingleTupleTableSlot|CreateTemplateTupleDesc|lookup_rowtype_tupdesc"
    r"|CreateParallelContext|InitializeParallelDSM|LaunchParallelWorkers"
    r"|WaitForParallelWorkersToFinish|ConditionVariableSleep|RegisterSnapshot|GetLatestSnapshot"
    r"|FunctionCall\w+|DirectFunctionCall\w+|fmgr_info\w*|pg_detoast_datum\w*|vacuum_delay_point"
    r"|ResourceOwnerCreate"
)


def build(bin: Path, root: Path, folder: Path) -> tuple[Path, list[str]]:
    """Copy a server to `folder`, with fault points in bq; returns bin and the functions.

    `root` is what is copied: the programs, and the libraries beside them.
    """
    if not folder.exists():
        shutil.copytree(root, folder, symlinks=True)
    pg_config = folder / bin.relative_to(root) / "pg_config"
    objects = folder / "objects"
    objects.mkdir(exist_ok=True)
    make = ("make", "--silent", f"--file={ROOT}/extension/Makefile", f"PG_CONFIG={pg_config}")
    _run(*make, "bq.so", cwd=objects)

    output = _run("nm", "--dynamic", "--undefined-only", "bq.so", cwd=objects)
    names = sorted(n for n in output.split()[1::2] if FAILING.fullmatch(n))
    (objects / "points.h").write_text("".join(f"POINT({name})\n" for name in names))
    include = _run(str(pg_config), "--includedir-server", cwd=objects).strip()
    source = Path(__file__).with_name("bqfault.c")
    _run("gcc", "-O2", "-fPIC", "-I.", "-isystem", include, "-c", str(source), cwd=objects)

    # made again, for its flags changed
    (objects / "bq.so").unlink()
    wraps = " ".join(f"-Wl,--wrap={name}" for name in names)
    _run(*make, f"SHLIB_LINK=bqfault.o {wraps}", "install", cwd=objects)
    return pg_config.parent, names


def _run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:4])} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
