# Types of core.pyx. Arrays of vectors are float32, of codes uint8, as in extension/core.
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

MAX_DIM: int
MAX_TRANSFORM: int

# bqcode.h: where levels are cut and what they are worth, in units of rms(x)
THRESHOLD: float
WEAK: float
STRONG: float

def simd() -> str:
    """Name of the kernel in use: portable, avx2, avx512 or neon."""

def kernels() -> list[str]:
    """Names of the kernels that this CPU runs, best first."""

def set_kernel(name: str) -> None:
    """Use one kernel in this process, or "auto" for the best one."""

def nbytes(dim: int) -> int:
    """Bytes of a whole payload."""

class Rotation:
    """The seeded rotation of one transform and dim, ready for use by many threads at once."""

    dim: int
    transform: int
    def __init__(self, dim: int, transform: int) -> None: ...

def encode(
    x: NDArray[np.float32],
    out: NDArray[np.uint8],
    rotation: Rotation | None = None,
    cut_mean: bool = False,
    first_row: int | None = None,
) -> None:
    """Rows of x into payloads `out`; errors count rows from first_row, None names no row."""

def prepare(
    x: NDArray[np.float32],
    out: NDArray[np.float32],
    rotation: Rotation | None = None,
    first_row: int | None = None,
) -> None:
    """Check rows of x as float queries and rotate them into `out`."""

def narrow(x: NDArray[np.float32], half: NDArray[np.uint16], rounded: NDArray[np.float32]) -> None:
    """Rows of x rounded to float16, as bits in `half`, and what they then are in `rounded`."""

def check_codes(codes: NDArray[np.uint8], first_row: int | None = 0) -> tuple[int, int]:
    """Check payloads from outside; (dim, transform), which must be the same in all rows."""

def decode(
    codes: NDArray[np.uint8],
    out: NDArray[np.float32],
    rotation: Rotation | None = None,
    first_row: int | None = 0,
) -> None:
    """Check payloads and decode them into `out`, on the original axes."""

def check_payload(payload: Buffer) -> tuple[int, int, float]:
    """Check one payload from outside; (dim, transform, norm)."""

def levels(payload: Buffer) -> NDArray[np.uint8]:
    """Level 0 to 3 of each dimension of one payload."""

def from_levels(transform: int, norm: float, levels: NDArray[np.uint8]) -> bytes:
    """The payload with these levels; norm is rounded to float32."""

def hamming_distances(codes: NDArray[np.uint8], code: Any) -> NDArray[np.int32]:
    """Distance <~> of each payload (n, nbytes) from one payload (nbytes,)."""

def sign_distances(codes: NDArray[np.uint8], code: Any) -> NDArray[np.int32]:
    """Number of differing signs, likewise."""

def quiver_distances(codes: NDArray[np.uint8], code: Any) -> NDArray[np.int32]:
    """QuIVer's weighted distance, likewise."""

def inner_products(codes: NDArray[np.uint8], values: Any) -> NDArray[np.float64]:
    """Inner product of each payload with one prepared query (dim,)."""

def cosine_distances(codes: NDArray[np.uint8], values: Any) -> NDArray[np.float64]:
    """Distance <=> of each payload from one prepared query (dim,)."""

def l2_distances(codes: NDArray[np.uint8], values: Any) -> NDArray[np.float64]:
    """Distance <-> of each payload from one prepared query (dim,)."""

# bqmoments.h: rows of `values` below
MEAN: int
M2: int
CODE_MEAN: int
CODE_M2: int
COMOMENT: int
POSITIVE: int
MOMENTS: int

def moments_add(
    count: int,
    values: NDArray[np.float64],
    x: NDArray[np.float32],
    first_row: int | None = 0,
    scaled: NDArray[np.float32] | None = None,
) -> int:
    """Add rows of x to `values`, in place, in the rows of bqmoments.h; the new count.

    With `scaled`, of the shape of x, they are scaled to norm 1 first, and put there.
    On an error the rows before the bad one have been added: work on a copy, or give up.
    """

def moments_merge(
    count: int,
    values: NDArray[np.float64],
    other_count: int,
    other: NDArray[np.float64],
) -> int:
    """Add the moments of other rows to `values`, in place; the new count."""

SEARCH_ORDERS: int
SEARCH_NEIGHBOURS: int
WINDOW_MIN_ROWS: int

def window_rows(dim: int) -> int:
    """Rows of a window."""

def window_start(row: int, dim: int) -> int:
    """First row of the window that a row of a stream lies in, or of the next one."""

def search_window(x: NDArray[np.float32], searches: NDArray[np.int64]) -> None:
    """Search a window of finite rows, scaling them in place; adds to BqSearches of bqsearch.h."""
