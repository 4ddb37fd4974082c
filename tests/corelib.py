"""The C core behind ctypes: kernels and functions, without PostgreSQL or Cython.

The library is compiled once for each state of the sources and kept under build/core.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from ctypes import POINTER, c_bool, c_char_p, c_double, c_float, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "extension" / "core"
CFLAGS = ["-std=gnu11", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]

MAX_DIM = 16000
ROUNDS = 4
FLIP_WORDS = (MAX_DIM + 63) // 64 + 1
STATUS = [
    "ok",
    "bad_dim",
    "bad_length",
    "bad_norm",
    "bad_padding",
    "bad_zero",
    "not_finite",
    "norm_range",
    "mixed_dim",
    "mixed_transform",
]
CUT = {"rms": 0, "mean": 1}

_codes = [c_void_p, c_void_p, c_size_t]
_KERNEL_FIELDS: dict[str, Any] = {
    "hamming": ctypes.CFUNCTYPE(ctypes.c_uint32, *_codes),
    "hamming_sign": ctypes.CFUNCTYPE(ctypes.c_uint32, *_codes),
    "hamming_quiver": ctypes.CFUNCTYPE(ctypes.c_uint32, *_codes),
    "popcount": ctypes.CFUNCTYPE(ctypes.c_uint32, c_void_p, c_size_t),
    "dot": ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int, POINTER(c_float), POINTER(c_float)),
    "sum_squares": ctypes.CFUNCTYPE(c_double, c_void_p, c_int),
    "sum_absolute": ctypes.CFUNCTYPE(c_double, c_void_p, c_int),
    "pack": ctypes.CFUNCTYPE(None, c_void_p, c_int, c_float, c_void_p),
    "unpack": ctypes.CFUNCTYPE(None, c_void_p, c_int, c_float, c_float, c_void_p),
    "scale": ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int, c_float),
    "flip": ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int, c_void_p, c_int),
    "hadamard": ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int, c_void_p, c_int, c_float),
    "mix": ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int),
    "lut_block": ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int, c_void_p),
    "scale_sums": ctypes.CFUNCTYPE(None, c_void_p, c_float, c_float, c_void_p, c_void_p),
    "find_sums": ctypes.CFUNCTYPE(ctypes.c_uint32, c_void_p, c_float, c_float, c_void_p, c_float),
    "unstage": ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p),
}


class Kernel(ctypes.Structure):
    """struct BqKernel; arrays are passed as addresses, see `address`."""

    _fields_ = [("name", c_char_p), *_KERNEL_FIELDS.items()]


class Rotation(ctypes.Structure):
    """struct BqRotation."""

    _fields_ = [
        ("dim", c_int),
        ("transform", c_int),
        ("flips", (ctypes.c_uint64 * FLIP_WORDS) * ROUNDS),
    ]


class Header(ctypes.Structure):
    """struct BqHeader."""

    _fields_ = [("dim", ctypes.c_uint16), ("transform", ctypes.c_uint16), ("norm", c_float)]


_ROTATION = POINTER(Rotation)
_HEADER = POINTER(Header)
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "bq_kernel_select": (c_bool, [c_char_p]),
    "bq_kernel_name": (c_char_p, [c_int]),
    "bq_kernel_available": (c_bool, [c_char_p]),
    "bq_status_message": (c_char_p, [c_int]),
    "bq_check_payload": (c_int, [c_void_p, c_size_t, _HEADER]),
    "bq_write_header": (None, [c_void_p, _HEADER]),
    "bq_read_header": (None, [c_void_p, _HEADER]),
    "bq_encode": (
        c_int,
        [c_void_p, c_int, c_int, _ROTATION, c_void_p, c_void_p, POINTER(c_float)],
    ),
    "bq_encode_rows": (
        c_int,
        [c_void_p, c_size_t, c_size_t, c_int, c_int, _ROTATION, c_void_p, c_void_p]
        + [POINTER(c_size_t)],
    ),
    "bq_decode": (None, [c_void_p, c_int, c_float, _ROTATION, c_void_p]),
    "bq_decoded_norm": (c_double, [c_void_p, c_int]),
    "bq_prepare_query": (c_int, [c_void_p, c_int, _ROTATION, c_void_p, POINTER(c_float)]),
    "bq_inner_product": (c_double, [c_void_p, c_void_p, c_int, c_float]),
    "bq_cosine_distance": (c_double, [c_void_p, c_float, c_void_p, c_int, c_float]),
    "bq_l2_distance": (c_double, [c_void_p, c_float, c_void_p, c_int, c_float]),
    "bq_rotation_init": (None, [_ROTATION, c_int, c_int]),
    "bq_rotate": (None, [_ROTATION, c_void_p, c_void_p]),
    "bq_unrotate": (None, [_ROTATION, c_void_p]),
    "bq_block_put": (None, [c_void_p, c_int, c_int, c_void_p]),
    "bq_block_get": (None, [c_void_p, c_int, c_int, c_void_p]),
    "bq_block_put_rows": (None, [c_void_p, c_int, c_int, c_int, c_int, c_void_p]),
    "bq_block_get_rows": (None, [c_void_p, c_int, c_int, c_int, c_int, c_void_p]),
    "bq_stage": (None, [c_void_p, c_int, c_void_p]),
    "bq_stage_put": (None, [c_void_p, c_int, c_int, c_int, c_int, c_void_p]),
    "bq_stage_get": (None, [c_void_p, c_int, c_int, c_int, c_int, c_void_p]),
    "bq_lut_bias": (c_float, [c_void_p, c_int, c_int, c_int, c_float]),
    "bq_lut_query": (None, [c_void_p, c_int, c_void_p, POINTER(c_float), POINTER(c_float)]),
    "bq_lut_hamming": (None, [c_void_p, c_int, c_void_p]),
    "bq_widen_half": (None, [c_void_p, c_void_p, c_size_t]),
    "bq_narrow_half": (None, [c_void_p, c_void_p, c_size_t]),
}


def compile_core(extra_sources: Iterable[Path] = ()) -> Path:
    """Compile the core, and further sources if given, into a shared library."""
    sources = [*sorted(CORE.glob("*.c")), *extra_sources]
    compiler = os.environ.get("CC", "cc").split()
    digest = hashlib.sha256(" ".join([*compiler, *CFLAGS]).encode())
    for source in [*sorted(CORE.glob("*.h")), *sources]:
        digest.update(source.read_bytes())
    library = ROOT / "build" / "core" / f"bqcore-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "core.so"
            arguments = ["-shared", f"-I{CORE}", "-o", str(output), *map(str, sources), "-lm"]
            subprocess.run([*compiler, *CFLAGS, *arguments], check=True)
            # first beside its final place: several processes may compile at once
            partial = library.with_suffix(f".{os.getpid()}")
            shutil.copy(output, partial)
            partial.replace(library)
    return library


@cache
def load() -> ctypes.CDLL:
    """The library with its prototypes set."""
    library = ctypes.CDLL(str(compile_core()))
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def available_kernels() -> list[str]:
    """Names of the kernels that this CPU can run, best first."""
    names: list[bytes] = []
    while name := load().bq_kernel_name(len(names)):
        names.append(name)
    return [name.decode() for name in names if load().bq_kernel_available(name)]


def kernel(name: str) -> Kernel:
    """The functions of one kernel, whichever is in use."""
    return Kernel.in_dll(load(), f"bq_kernel_{name}")


@contextlib.contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """Force a kernel for the functions of the library."""
    before = POINTER(Kernel).in_dll(load(), "bq_kernel").contents.name
    assert load().bq_kernel_select(name.encode()), name
    try:
        yield
    finally:
        assert load().bq_kernel_select(before)


def address(array: Array) -> int:
    """Address of an array's data; the caller keeps the array alive."""
    assert array.flags.c_contiguous
    return int(array.ctypes.data)


@cache
def rotation(dim: int, transform: int) -> Rotation | None:
    """None for transform 0."""
    if transform == 0:
        return None
    result = Rotation()
    load().bq_rotation_init(result, dim, transform)
    return result


def rotate(x: Array, transform: int) -> Array:
    y = np.empty_like(x)
    load().bq_rotate(rotation(x.size, transform), address(x), address(y))
    return y


def unrotate(x: Array, transform: int) -> Array:
    y: Array = x.copy()
    load().bq_unrotate(rotation(x.size, transform), address(y))
    return y


def encode(x: Array, transform: int = 0, cut: str = "rms") -> tuple[str, Array, np.float32]:
    """Status, planes and norm of one float32 vector."""
    dim = x.size
    planes = np.full(2 * ((dim + 7) // 8), 0xA5, np.uint8)
    scratch = np.empty(dim, np.float32)
    norm = c_float()
    status = load().bq_encode(
        address(x), dim, CUT[cut], rotation(dim, transform), address(scratch), address(planes), norm
    )
    return STATUS[status], planes, np.float32(norm.value)


def decode(planes: Array, dim: int, norm: float, transform: int = 0) -> Array:
    x = np.empty(dim, np.float32)
    load().bq_decode(address(planes), dim, norm, rotation(dim, transform), address(x))
    return x


class Guarded:
    """Memory with an unmapped page after (or before) it: a stray access kills the process."""

    def __init__(self, nbytes: int) -> None:
        page = mmap.PAGESIZE
        self._size = -(-nbytes // page) * page
        self._map = mmap.mmap(-1, self._size + 2 * page)
        self._base = ctypes.addressof(c_bool.from_buffer(self._map)) + page
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = [c_void_p, c_size_t, c_int]
        for guard in (self._base - page, self._base + self._size):
            if libc.mprotect(guard, page, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")

    def _view(self, start: int, array: Array) -> Array:
        # as bytes: NumPy would copy floats that are not aligned
        view: Array = np.frombuffer(self._map, np.uint8, array.nbytes, start + mmap.PAGESIZE)
        view[:] = np.frombuffer(array.tobytes(), np.uint8)
        return view

    def at_end(self, array: Array, offset: int = 0) -> Array:
        """Copy of array, as uint8, that ends `offset` bytes before the unmapped page."""
        return self._view(self._size - array.nbytes - offset, array)

    def at_start(self, array: Array) -> Array:
        """Copy of array, as uint8, that starts where the unmapped page before it ends."""
        return self._view(0, array)
