"""Where builds and the database of `pybq serve` are kept, and the lock on both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pybq.errors import BuildError, needed_by

if TYPE_CHECKING:
    from filelock import BaseFileLock


def cache_dir() -> Path:
    """Where builds are kept: PYBQ_CACHE_DIR, or the system's place for such things."""
    if "PYBQ_CACHE_DIR" in os.environ:
        folder = Path(os.environ["PYBQ_CACHE_DIR"]).absolute()
    elif os.geteuid() == 0:
        folder = Path("/var/cache/pybq")  # the server's user cannot look into root's home
    else:
        with needed_by("pybq.serve()"):
            import platformdirs

        folder = platformdirs.user_cache_path("pybq", appauthor=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(
            f"cannot keep builds in {folder} ({error.strerror}); set PYBQ_CACHE_DIR to a folder "
            "of yours"
        ) from error
    return folder


def default_data_dir() -> Path:
    """Where `pybq serve` keeps its database: PYBQ_DATA_DIR, or the system's place for data."""
    if "PYBQ_DATA_DIR" in os.environ:
        return Path(os.environ["PYBQ_DATA_DIR"]).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/pybq/data")  # as above
    with needed_by("the database of pybq serve"):
        import platformdirs

    return platformdirs.user_data_path("pybq", appauthor=False) / "data"


def lock() -> BaseFileLock:
    """Keeps other processes of this user from building and starting; ends with the process."""
    with needed_by("pybq.serve()"):
        from filelock import FileLock

    return FileLock(cache_dir() / "lock")
