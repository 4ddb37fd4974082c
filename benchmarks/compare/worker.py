"""Processes that ask: each holds peers, and answers a process that directs them all.

Two for the servers, so that there can be two clients; one for each library, so that its memory is
its own and its crash nobody else's.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .data import Data
from .peers import Missing, Peer, Setting


class Failed(Exception):
    """A peer's error, in words."""


class Worker:
    """A process, as seen from the one that directs."""

    def __init__(self, folder: Path, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, folder), name=name, daemon=True
        )
        # read when libraries of linear algebra are loaded, in the process that starts
        before = dict(os.environ)
        os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        theirs.close()

    def begin(self, method: str, *arguments: Any) -> None:
        """Have something done, without waiting for it."""
        with contextlib.suppress(ConnectionError):  # `end` says what became of the process
            self._pipe.send((method, arguments))

    def end(self) -> Any:
        """What the last thing begun has given; Missing or Failed if it has not."""
        try:
            error, result = self._pipe.recv()
        except (EOFError, ConnectionError) as gone:
            self._process.join()
            raise Failed(f"its process ended with status {self._process.exitcode}") from gone
        if error is not None:
            raise error
        return result

    def call(self, method: str, *arguments: Any) -> Any:
        self.begin(method, *arguments)
        return self.end()

    def stop(self) -> None:
        self._process.terminate()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, folder: Path) -> None:
    # an interrupt is for the process that directs; it stops this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks = Tasks(Data.open(folder))
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((None, getattr(tasks, method)(*arguments)))
        except Missing as error:
            pipe.send((error, None))
        except Exception as error:
            text = "".join(traceback.format_exception_only(error)).strip()
            pipe.send((Failed(f"{text} ({_where(error)})"), None))


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).parent == Path(__file__).parent]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}"


class Tasks:
    """What a worker does; a peer is named by its name."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.peers: dict[str, Peer] = {}

    def open(self, peer: Peer) -> None:
        """Open a peer, or open it again."""
        self.close(peer.name)
        peer.open(self.data)
        self.peers[peer.name] = peer

    def close(self, name: str) -> None:
        if name in self.peers:
            self.peers.pop(name).close()

    def call(self, name: str, method: str, *arguments: Any) -> Any:
        return getattr(self.peers[name], method)(*arguments)

    def ask(
        self, name: str, column: str | None, setting: Setting, queries: range, warm: int = 0
    ) -> tuple[list[list[int]], list[float]]:
        """Rows that queries found and seconds that they took, after `warm` that do not count."""
        peer = self.peers[name]
        peer.set(column, setting)
        for query in queries[:warm]:
            peer.ask(query)
        found, seconds = [], []
        for query in queries:
            start = time.perf_counter()
            ids = peer.ask(query)
            seconds.append(time.perf_counter() - start)
            found.append(list(ids))
        return found, seconds

    def ask_for(self, name: str, setting: Setting, seconds: float, first: int) -> tuple[int, float]:
        """Ask one after the other, from the query `first` on: how many in how many seconds."""
        peer = self.peers[name]
        peer.set(None, setting)
        count = len(self.data.queries)
        n = 0
        start = time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            peer.ask((first + n) % count)
            n += 1
        return n, passed


# -- memory of a process ------------------------------------------------------------------------


@contextlib.contextmanager
def watch_memory(pid: int | None) -> Iterator[dict[str, int | None]]:
    """The most memory of its own (RssAnon) that a process gains meanwhile, as "peak", bytes.

    None where that cannot be seen.  Asked for every hundredth of a second.
    """
    result: dict[str, int | None] = {"peak": None}
    before = _anonymous(pid)
    if before is None:
        yield result
        return
    ended = threading.Event()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, _anonymous(pid) or 0)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield result
    finally:
        ended.set()
        thread.join()
        result["peak"] = max(peak, _anonymous(pid) or 0) - before


def _anonymous(pid: int | None) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return None
