"""Progress bars on stderr."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pybq.errors import needed_by


def check_progress(wanted: bool | None) -> None:
    """Say what to install, before anything is written, if a bar is wanted but cannot be shown."""
    if wanted:
        with needed_by("progress"):
            import rich  # noqa: F401


@contextmanager
def show_progress(
    total: int | None, label: str, wanted: bool | None
) -> Iterator[Callable[[int], None]]:
    """Give a function to be told of rows done; a bar on stderr if wanted, or on a terminal."""
    check_progress(wanted)
    if wanted is None:
        wanted = sys.stderr.isatty() and importlib.util.find_spec("rich") is not None
    if not wanted:
        yield lambda rows: None
        return
    from rich import progress
    from rich.console import Console

    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda rows: bar.advance(task, rows)
