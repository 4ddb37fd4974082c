"""Speed of the core on one thread, beside a loop that only reads the same bytes.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --quick --json kernels.json

What is compared runs in turn, round by round, and ratios are taken within a round, because
machines drift. Each line shows the median and, for ratios, the quartiles.

    encode          float32 vectors to payloads. ratio: time to read the vectors / time to encode
                    them. Targets: 1/3 on the original axes, 1/8 rotated.
    hamming, dot    one code, or one float query, against codes one by one
    lut             a lookup table against blocks of 32 codes
    DRAM, cache     codes from far more memory than a core's own caches hold, or from half its L2.
                    read: ns to merely read the bytes of a code
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from ctypes import POINTER, c_float, c_int, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import corelib  # noqa: E402
from corelib import Kernel, address  # noqa: E402

DIMS = (384, 768, 1536)
SEED = 20261121
CACHE_NBYTES = 1 << 20
Array = NDArray[Any]


def load_loops() -> ctypes.CDLL:
    loops = ctypes.CDLL(str(corelib.compile_core([ROOT / "benchmarks" / "kernels.c"])))
    kernel = POINTER(Kernel)
    prototypes: dict[str, tuple[Any, list[Any]]] = {
        "bench_read": (c_uint64, [c_void_p, c_size_t]),
        "bench_hamming": (c_uint64, [kernel, c_void_p, c_void_p, c_size_t, c_size_t]),
        "bench_dot": (c_float, [kernel, c_void_p, c_void_p, c_size_t, c_int]),
        "bench_lut": (c_uint64, [kernel, c_void_p, c_void_p, c_size_t, c_int]),
    }
    for name, (result, arguments) in prototypes.items():
        function = getattr(loops, name)
        function.restype, function.argtypes = result, arguments
    return loops


def time_in_turn(contenders: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, Array]:
    """CPU seconds of each contender in each round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, run in contenders.items():
            start = time.thread_time()  # of this thread alone: others may be at work
            run(i)
            if i > 0:
                times[name].append(time.thread_time() - start)
    return {name: np.array(seconds) for name, seconds in times.items()}


def quartiles(values: Array) -> list[float]:
    return [float(q) for q in np.percentile(values, [25, 50, 75])]


def show_ratio(values: Array) -> str:
    low, middle, high = quartiles(values)
    return f"{middle:6.3f} ({low:.3f} to {high:.3f})"


def measure_encode(loops: ctypes.CDLL, x: Array, dim: int, slices: int, rounds: int) -> list[dict]:
    """Each pass takes another slice of x, which the passes before have pushed out of the caches."""
    library = corelib.load()
    n = x.size // dim // slices
    payloads = np.zeros((n, 8 + 2 * ((dim + 7) // 8)), np.uint8)
    scratch = np.empty(dim + 16, np.float32)
    scratch = scratch[-(scratch.ctypes.data // 4) % 16 :][:dim]  # as malloc aligns large blocks
    start = [address(x) + 4 * dim * n * i for i in range(slices)]
    bad = c_size_t()
    turn = iter(range(1 << 30))

    def read(_: int) -> None:
        loops.bench_read(start[next(turn) % slices], 4 * n * dim)

    def encode_with(name: str, transform: int) -> Callable[[int], None]:
        rotation = corelib.rotation(dim, transform)

        def run(_: int) -> None:
            with corelib.use_kernel(name):
                status = library.bq_encode_rows(
                    start[next(turn) % slices], n, dim, dim, 0, rotation,
                    address(scratch), address(payloads), bad,
                )  # fmt: skip
            assert status == 0

        return run

    contenders = {"read": read}
    for name in corelib.available_kernels():
        contenders[f"axis {name}"] = encode_with(name, 0)
        contenders[f"rotated {name}"] = encode_with(name, 1)
    times = time_in_turn(contenders, rounds)
    bandwidth = quartiles(4 * n * dim / times["read"] / 1e9)
    print(f"\nencode {dim}-d, from DRAM; read: {bandwidth[1]:.1f} GB/s")
    results = []
    for label, seconds in times.items():
        if label == "read":
            continue
        axes, name = label.split()
        ratio = times["read"] / seconds
        target = {"axis": 1 / 3, "rotated": 1 / 8}[axes]
        rate = float(np.median(n / seconds))
        verdict = "" if name != corelib.available_kernels()[0] else f"target {target:.3f}"
        print(f"  {axes:8}{name:10}{rate:12,.0f} rows/s   ratio {show_ratio(ratio)}  {verdict}")
        results.append(
            {
                "what": "encode", "axes": axes, "kernel": name, "dim": dim, "rows_per_s": rate,
                "ratio_to_read": quartiles(ratio), "target": target, "read_GB_per_s": bandwidth,
            }
        )  # fmt: skip
    return results


def measure_scan(
    loops: ctypes.CDLL, memory: Array, what: str, dim: int, place: str, rounds: int
) -> list[dict]:
    """ns per code of one loop for all kernels and for reading."""
    nbytes = (dim + 7) // 8
    unit = 2 * nbytes * (32 if what == "lut" else 1)  # of a code, or of a block of 32
    total = memory.size if place == "DRAM" else CACHE_NBYTES
    n = total // unit
    ncodes = n * (32 if what == "lut" else 1)
    repeats = 1 if place == "DRAM" else 20
    generator = np.random.default_rng(SEED)
    code = generator.integers(0, 256, 2 * nbytes, dtype=np.uint8)
    q = generator.standard_normal(dim).astype(np.float32)
    table = np.zeros(8 * dim, np.uint8)
    corelib.load().bq_lut_query(address(q), dim, address(table), c_float(), c_float())
    start = address(memory)

    def scan(name: str) -> Callable[[int], None]:
        kernel = corelib.kernel(name)
        call = {
            "hamming": lambda: loops.bench_hamming(kernel, address(code), start, n, nbytes),
            "dot": lambda: loops.bench_dot(kernel, address(q), start, n, dim),
            "lut": lambda: loops.bench_lut(kernel, address(table), start, n, dim // 2),
        }[what]

        def run(_: int) -> None:
            for _ in range(repeats):
                call()

        return run

    def read(_: int) -> None:
        for _ in range(repeats):
            loops.bench_read(start, n * unit)

    contenders = {"read": read, **{name: scan(name) for name in corelib.available_kernels()}}
    times = time_in_turn(contenders, rounds)
    results = []
    line = f"  {what:8}{place:6}"
    for name, seconds in times.items():
        ns = float(np.median(seconds)) / ncodes / repeats * 1e9
        ratio = quartiles(times["portable"] / seconds)
        line += f"{name:>10}{ns:7.2f}"
        results.append(
            {
                "what": what, "place": place, "dim": dim, "kernel": name, "ns_per_code": ns,
                "times_portable": ratio, "ratio_to_read": quartiles(times["read"] / seconds),
            }
        )  # fmt: skip
    print(f"{line}   best / portable {times_best(times):5.1f}x")
    return results


def times_best(times: dict[str, Array]) -> float:
    best = corelib.available_kernels()[0]
    return float(np.median(times["portable"] / times[best]))


def run_command(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip().split("\n")[0]


def describe() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "compiler": run_command(*os.environ.get("CC", "cc").split(), "--version"),
        "flags": " ".join(corelib.CFLAGS),
        "kernels": corelib.available_kernels(),
        "commit": run_command("git", "describe", "--always", "--dirty"),
        "numpy": np.__version__,
        "seed": SEED,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1024, help="of vectors [1024]")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="256 MB, 5 rounds")
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS)
    parser.add_argument("--json", type=Path, help="write machine and results here")
    arguments = parser.parse_args()
    megabytes = 256 if arguments.quick else arguments.megabytes
    rounds = 5 if arguments.quick else arguments.rounds

    machine = describe()
    for key, value in machine.items():
        print(f"{key:10}{value}")
    loops = load_loops()
    generator = np.random.default_rng(SEED)
    # 16 MB of Gaussian numbers over and over: what they are matters to no loop here
    x = np.tile(generator.standard_normal(1 << 22).astype(np.float32), megabytes // 16)
    results = []
    for dim in arguments.dims:
        results += measure_encode(loops, x, dim, slices=8, rounds=rounds)
    memory = x.view(np.uint8)[: megabytes << 18]  # a quarter
    for dim in arguments.dims:
        print(f"\nns per code, {dim}-d ({dim // 4} bytes)")
        for what in ("hamming", "dot", "lut"):
            for place in ("DRAM", "cache"):
                results += measure_scan(loops, memory, what, dim, place, rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
