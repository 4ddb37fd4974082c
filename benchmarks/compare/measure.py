"""The parts of a run.  Whatever is compared is asked in turn: A B A B, not A A B B."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import SETTINGS

import pybq

from .data import FILTERS, Data, Truth
from .peers import INSERTED, Missing, Peer, Setting, Sql
from .worker import Failed, Worker, watch_memory

# all times are divided by those of this peer of the embedded server
REFERENCE = "bq, halfvec"
WANTED = (0.95, 0.99)
MEASURED_AT = 0.95  # clients, filters and cold starts
FOUND_ALL = 0.9995  # no need to try what finds still more
COLD_QUERIES = 20
CLIENT_SECONDS = 1.0

Result = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rows: int
    passes: int  # over all settings
    rounds: int  # in turn, at the settings of a wanted recall
    seconds: float  # of one peer in a round, about
    every: int  # of how many settings one is tried
    filter_queries: int
    client_rounds: int
    cold_rounds: int
    inserted: int


DEFAULT = Effort(60_000, 3, 7, 0.4, 1, 100, 5, 3, 1000)
QUICK = Effort(20_000, 1, 3, 0.2, 2, 40, 1, 1, 300)


class Database:
    """The embedded server, which can be stopped and started with nothing cached."""

    def __init__(self, folder: Path, postgres: int) -> None:
        self.folder = folder
        self.server = pybq.serve(folder, postgres=postgres, settings=SETTINGS)

    def restart_cold(self) -> bool:
        """Stop, put the files out of the page cache, start; whether that could be done.

        Asked for file by file, which needs no root and leaves the rest of the machine alone.
        What the host of a virtual machine keeps is out of reach.
        """
        self.server.stop()
        dropped = hasattr(os, "posix_fadvise")
        if dropped:
            os.sync()  # pages that are not written yet would stay
            for path in self.folder.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.server.start()
        return dropped


class Run:
    """Peers, the processes that ask them, and the results as they come."""

    def __init__(
        self,
        data: Data,
        peers: list[Peer],
        effort: Effort,
        folder: Path,
        database: Database | None,
        results: Result,
        save: Callable[[], None],
    ) -> None:
        self.data = data
        self.truth = Truth(data)
        self.peers = {peer.name: peer for peer in peers}
        self.effort = effort
        self.folder = folder
        self.database = database
        self.results = results
        self.save = save
        self.clients = [Worker(folder, f"client {i}") for i in (1, 2)]
        self.workers: dict[str, Worker] = {}
        self.settings: dict[tuple[str, str | None], list[Setting]] = {}

    def stop(self) -> None:
        for worker in {*self.clients, *self.workers.values()}:
            worker.stop()

    # -- peers, of which some may be missing or fail

    def of(self, name: str) -> Result:
        result: Result = self.results["peers"].setdefault(name, {})
        return result

    def active(self, kind: type[Peer] = Peer) -> list[str]:
        """Those that nothing has happened to."""
        return [n for n in self.workers if isinstance(self.peers[n], kind)]

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """What goes wrong is noted, and ends this peer only."""
        try:
            yield
        except (Missing, Failed) as error:
            what = "missing" if isinstance(error, Missing) else "failed"
            self.of(name)[what] = str(error)
            print(f"  {name}: {what}: {error}", flush=True)
            worker = self.workers.pop(name, None)
            if worker is not None and worker not in self.clients:
                worker.stop()

    def call(self, name: str, method: str, *arguments: Any) -> Any:
        return self.workers[name].call("call", name, method, *arguments)

    def ask(
        self, name: str, column: str | None, setting: Setting, queries: range, warm: int = 0
    ) -> tuple[list[list[int]], list[float]]:
        answer: tuple[list[list[int]], list[float]] = self.workers[name].call(
            "ask", name, column, setting, queries, warm
        )
        return answer

    # -- parts, in the order in which they run

    def build(self) -> None:
        """Fill a table and make the index of each peer; open it for the second client, too."""
        for name, peer in self.peers.items():
            with self.attempt(name):
                self.of(name).update(kind=peer.kind, server=getattr(peer, "server", ""))
                in_server = isinstance(peer, Sql)
                worker = self.clients[0] if in_server else Worker(self.folder, name)
                self.workers[name] = worker
                worker.call("open", peer)
                self.of(name)["about"] = self.call(name, "about")
                self.call(name, "fill")
                if in_server:
                    # a backend as new: what COPY has needed would count as memory that is there
                    worker.call("open", peer)
                with watch_memory(self.call(name, "pid")) as memory:
                    seconds = self.call(name, "build")
                size = self.call(name, "size")
                self.of(name)["build"] = {"seconds": seconds, "peak": memory["peak"], **size}
                self.say(name, f"{seconds:7.1f} s, index {size['index'] / 1e6:7.1f} MB")
                if in_server:
                    self.clients[1].call("open", peer)
                    floors = self.results.setdefault("floor", {})
                    if peer.server not in floors:
                        floors[peer.server] = self.call(name, "floor")
                self.save()

    def curves(self) -> None:
        """Recall and time of all settings; then all peers at those of a wanted recall."""
        self.sweep(None, len(self.data.queries))
        for wanted in WANTED:
            self.compare(None, wanted)

    def two_clients(self) -> None:
        """Queries per second of one client and of two, in turn."""
        rates: dict[str, list[tuple[float, float]]] = {}
        for _ in range(self.effort.client_rounds):
            for name in self.active(Sql):
                setting = self.chosen(name, None, MEASURED_AT)
                if setting is None:
                    continue
                with self.attempt(name):
                    rates.setdefault(name, []).append(
                        (self.rate(name, setting, 1), self.rate(name, setting, 2))
                    )
        for name, pairs in rates.items():
            one, two = (statistics.median(rate) for rate in zip(*pairs, strict=True))
            gain = statistics.median(two / one for one, two in pairs)
            self.of(name)["clients"] = {"one": one, "two": two, "gain": gain, "rounds": pairs}
            self.say(name, f"{one:8.0f} queries/s, two clients {two:8.0f}")
        self.save()

    def filters(self) -> None:
        """The same queries with a condition that keeps one row in ten, one in a hundred."""
        for name in self.active(Sql):
            with self.attempt(name):
                seconds = self.call(name, "build_filtered")
                self.of(name)["build filtered"] = {"seconds": seconds, **self.call(name, "size")}
        for column in FILTERS:
            print(f"  -- {column}: one row in {FILTERS[column]}", flush=True)
            self.sweep(column, min(self.effort.filter_queries, len(self.data.queries)))
            self.compare(column, MEASURED_AT)
        for name in self.active(Sql):
            with self.attempt(name):
                self.call(name, "drop_filtered")

    def cold(self) -> None:
        """The first queries after a restart, with connections and libraries ready."""
        database = self.database
        if database is None:
            return
        names = [n for n in self.active(Sql) if not self.of(n)["server"]]
        for name in names:
            for client in self.clients:
                client.call("close", name)
        for round_ in range(self.effort.cold_rounds):
            for name in names:
                setting = self.chosen(name, None, MEASURED_AT)
                if setting is None or name not in self.workers:
                    continue
                dropped = database.restart_cold()
                with self.attempt(name):
                    self.reopen(name)
                    self.call(name, "load")
                    first = round_ * COLD_QUERIES % len(self.data.queries)
                    _, times = self.ask(
                        name,
                        None,
                        setting,
                        range(first, min(first + COLD_QUERIES, len(self.data.queries))),
                    )
                    cold = self.of(name).setdefault("cold", {"dropped": dropped, "rounds": []})
                    cold["rounds"].append({"first": times[0], "mean": statistics.mean(times)})
                    self.workers[name].call("close", name)
        for name in names:
            if name in self.workers:
                with self.attempt(name):
                    self.reopen(name)
            cold = self.of(name).get("cold")
            if cold:
                for what in ("first", "mean"):
                    cold[what] = statistics.median(r[what] for r in cold["rounds"])
                self.say(
                    name, f"{cold['mean'] * 1e3:8.2f} ms, the very first {cold['first'] * 1e3:8.2f}"
                )
        self.save()

    def insertion(self) -> None:
        """Batches of rows into each table and its index, in turn."""
        seconds: dict[str, list[float]] = {}
        for first in range(
            0, min(self.effort.inserted, len(self.data.new)) - INSERTED + 1, INSERTED
        ):
            for name in self.active():
                with self.attempt(name):
                    seconds.setdefault(name, []).append(self.call(name, "insert", first))
        for name, batches in seconds.items():
            rate = INSERTED * len(batches) / sum(batches)
            self.of(name)["insertion"] = {"rows per second": rate, "batches": batches}
            self.say(name, f"{rate:8.0f} rows/s")
        self.save()

    # -- what they are made of

    def say(self, name: str, text: str) -> None:
        print(f"  {name:<38} {text}", flush=True)

    def reopen(self, name: str) -> None:
        """Connect again to the embedded server, which has been restarted."""
        assert self.database is not None
        peer = self.peers[name]
        assert isinstance(peer, Sql)
        peer.dsn = self.database.server.dsn
        self.workers[name].call("open", peer)

    def place(self, name: str, column: str | None) -> Result:
        """Where results of queries stand."""
        result = self.of(name)
        return result if column is None else result.setdefault("filters", {}).setdefault(column, {})

    def chosen(self, name: str, column: str | None, wanted: float) -> Setting | None:
        """The fastest setting that reaches a recall."""
        point = fastest(self.place(name, column).get("curve", []), wanted)
        return None if point is None else point["setting"]

    def rate(self, name: str, setting: Setting, clients: int) -> float:
        """Queries per second of so many clients at once."""
        workers = self.clients[:clients]
        for i, worker in enumerate(workers):
            first = i * len(self.data.queries) // clients
            worker.begin("ask_for", name, setting, CLIENT_SECONDS, first)
        answers, errors = [], []
        for worker in workers:
            try:
                answers.append(worker.end())
            except Failed as error:  # the other's answer must not be taken for a later one
                errors.append(error)
        if errors:
            raise errors[0]
        return sum(n / seconds for n, seconds in answers)

    def sweep(self, column: str | None, queries: int) -> None:
        """Recall and time of each setting; in each pass all peers take turns."""
        curves: dict[str, list[Result | None]] = {}
        settings: dict[str, list[Setting]] = {}
        for name in self.active():
            with self.attempt(name):
                known = self.call(name, "settings", column)
                settings[name] = thin(known, self.effort.every)
                curves[name] = [None] * len(settings[name])
        for pass_ in range(self.effort.passes):
            for i in range(max(map(len, settings.values()), default=0)):
                for name in self.active():
                    if i >= len(settings.get(name, [])):
                        continue
                    with self.attempt(name):
                        self._try(name, column, settings[name], curves[name], i, pass_, queries)
        for name, points in curves.items():
            curve = [point for point in points if point is not None]
            for point in curve:
                for what in ("p50", "qps"):
                    point[what] = statistics.median(p[what] for p in point["passes"])
            if curve:
                self.place(name, column)["curve"] = curve
        self.save()

    def _try(
        self,
        name: str,
        column: str | None,
        settings: list[Setting],
        points: list[Result | None],
        i: int,
        pass_: int,
        queries: int,
    ) -> None:
        """One setting in one pass: the first finds the recall, all measure the time."""
        if pass_ == 0:
            if i and one_step(settings[i - 1], settings[i]):
                before = points[i - 1]
                if before is None or before["recall"] >= FOUND_ALL:
                    return
            found, seconds = self.ask(name, column, settings[i], range(queries), queries // 10)
            recall = self.truth.recall(column, found)
            points[i] = {"setting": settings[i], "recall": recall, "passes": [summary(seconds)]}
            return
        point = points[i]
        if point is not None:
            n = self.repeats(point["passes"][0]["p50"], queries)
            _, seconds = self.ask(name, column, settings[i], range(n), n // 10)
            point["passes"].append(summary(seconds))

    def repeats(self, seconds: float, queries: int) -> int:
        """So many queries that they take about the time of a peer in a round."""
        return min(queries, max(10, int(self.effort.seconds / seconds)))

    def compare(self, column: str | None, wanted: float) -> None:
        """All peers, each at its fastest setting of the wanted recall, in turn, round by round."""
        best = {}
        for name in self.active():
            curve = self.place(name, column).get("curve")
            point = fastest(curve or [], wanted)
            if point is not None:
                best[name] = point
            elif curve:
                most = max(p["recall"] for p in curve)
                self.place(name, column).setdefault("at", {})[str(wanted)] = {"at most": most}
                self.say(name, f"finds {most:.3f} at most")
        queries = self.effort.filter_queries if column else len(self.data.queries)
        queries = min(queries, len(self.data.queries))
        times: dict[str, list[list[float]]] = {name: [] for name in best}
        for _ in range(self.effort.rounds):
            for name, point in best.items():
                if name in self.workers:
                    with self.attempt(name):
                        n = self.repeats(point["p50"], queries)
                        times[name].append(
                            self.ask(name, column, point["setting"], range(n), max(2, n // 10))[1]
                        )
        medians = {name: [statistics.median(t) for t in rounds] for name, rounds in times.items()}
        reference = medians.get(REFERENCE)
        if reference is not None and len(reference) < self.effort.rounds:
            reference = None  # it failed
        for name, point in best.items():
            if len(times[name]) < self.effort.rounds:
                continue
            result: Result = {
                "setting": point["setting"],
                "recall": point["recall"],
                **summary([t for times_ in times[name] for t in times_]),
                "rounds": medians[name],
                "ratio": None if reference is None else paired_ratio(medians[name], reference),
            }
            self.place(name, column).setdefault("at", {})[str(wanted)] = result
            ratio = "" if result["ratio"] is None else f", {result['ratio']:6.2f} x {REFERENCE}"
            self.say(
                name,
                f"recall {point['recall']:.3f} >= {wanted}: {result['p50'] * 1e3:8.3f} ms{ratio}",
            )
        self.save()


def summary(seconds: list[float]) -> Result:
    """Percentiles of latencies, in seconds, and queries per second of one client."""
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99]).tolist()
    rate = len(seconds) / sum(seconds)
    return {"p50": p50, "p95": p95, "p99": p99, "qps": rate, "n": len(seconds)}


def fastest(curve: list[Result], wanted: float) -> Result | None:
    """The point of least time among those that reach a recall."""
    return min((p for p in curve if p["recall"] >= wanted), key=lambda p: p["p50"], default=None)


def thin(settings: list[Setting], every: int) -> list[Setting]:
    """One of every so many, and the last, which finds most."""
    return settings if len(settings) <= 4 else [*settings[:-1:every], settings[-1]]


def one_step(a: Setting, b: Setting) -> bool:
    """Whether just one knob is turned between two settings."""
    return a.keys() == b.keys() and sum(a[name] != b[name] for name in a) == 1


def paired_ratio(own: list[float], reference: list[float]) -> float:
    """Median of the ratios within rounds."""
    return statistics.median(a / b for a, b in zip(own, reference, strict=True))


# name -> part, in the order in which they run: rows that are inserted have no true neighbours
PARTS: dict[str, Callable[[Run], None]] = {
    "build": Run.build,
    "curves": Run.curves,
    "clients": Run.two_clients,
    "filters": Run.filters,
    "cold": Run.cold,
    "insertion": Run.insertion,
}


def run_parts(run: Run, parts: list[str]) -> None:
    """Those that were asked for; what each took is noted."""
    for name, part in PARTS.items():
        if name in parts or name == "build":
            print(f"{name}: {(part.__doc__ or '').rstrip('.')}", flush=True)
            start = time.perf_counter()
            part(run)
            seconds = time.perf_counter() - start
            run.results["parts"][name] = seconds
            run.save()
            print(f"  -- {seconds:.0f} s", flush=True)
