# cython: language_level=3, boundscheck=False, wraparound=False
# core.pyx: extension/core for Python. Arrays in, arrays out; the arithmetic and the
# loops over rows are in C, so that a code is the same bytes here and in the server.

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t
from libc.stdlib cimport free, malloc

import numpy as np

cdef extern from "bqcode.h" nogil:
    int BQ_MAX_DIM
    int BQ_MAX_TRANSFORM
    int BQ_HEADER_NBYTES
    double BQ_THRESHOLD
    double BQ_WEAK
    double BQ_STRONG

    ctypedef enum BqStatus:
        BQ_OK

    ctypedef struct BqHeader:
        uint16_t dim
        uint16_t transform
        float norm

    size_t bq_nbytes(int dim)
    size_t bq_planes_nbytes(int dim)
    int bq_get_level(const uint8_t *planes, int dim, int i)
    void bq_set_level(uint8_t *planes, int dim, int i, int level)
    const char *bq_status_message(BqStatus status)
    void bq_write_header(uint8_t *payload, const BqHeader *header)
    BqStatus bq_check_payload(const uint8_t *payload, size_t nbytes, BqHeader *header)

cdef extern from "bqkernel.h" nogil:
    ctypedef struct BqKernel:
        const char *name

    const BqKernel *bq_kernel
    bint bq_kernel_select(const char *name)
    const char *bq_kernel_name(int i)
    bint bq_kernel_available(const char *name)

cdef extern from "bqrotate.h" nogil:
    ctypedef struct BqRotation:
        int dim
        int transform

    void bq_rotation_init(BqRotation *rotation, int dim, int transform)

cdef extern from "bqencode.h" nogil:
    ctypedef enum BqCut:
        BQ_CUT_RMS
        BQ_CUT_MEAN

    BqStatus bq_encode_rows(const float *x, size_t n, size_t stride, int dim, BqCut cut,
                            const BqRotation *rotation, float *scratch,
                            uint8_t *payloads, size_t *bad_row)
    BqStatus bq_prepare_query(const float *x, int dim, const BqRotation *rotation,
                              float *q, float *norm)

cdef extern from "bqhalf.h" nogil:
    void bq_widen_half(const uint16_t *half, float *x, size_t n)
    void bq_narrow_half(const float *x, uint16_t *half, size_t n)

cdef extern from "bqmoments.h" nogil:
    int BQ_MOMENT_MEAN
    int BQ_MOMENT_M2
    int BQ_MOMENT_CODE_MEAN
    int BQ_MOMENT_CODE_M2
    int BQ_MOMENT_COMOMENT
    int BQ_MOMENT_POSITIVE
    int BQ_MOMENTS

    void bq_moments_merge(int64_t *count, double *values, int dim,
                          int64_t other_count, const double *other)

cdef extern from "bqsearch.h" nogil:
    int BQ_SEARCH_NEIGHBOURS
    int BQ_SEARCH_ORDERS
    int BQ_SEARCH_TRANSFORM
    int BQ_WINDOW_MIN_ROWS

    ctypedef struct BqSearches:
        int64_t count

    int bq_window_rows(int dim)
    int64_t bq_window_start(int64_t row, int dim)
    size_t bq_search_room(size_t n, int dim)
    void bq_search_window(float *x, size_t n, int dim, const BqRotation *rotation, void *room,
                          BqSearches *searches)

cdef extern from "bqrows.h" nogil:
    ctypedef enum BqCodeDistance:
        BQ_HAMMING
        BQ_HAMMING_SIGN
        BQ_HAMMING_QUIVER

    ctypedef enum BqQueryDistance:
        BQ_INNER_PRODUCT
        BQ_COSINE
        BQ_L2

    BqStatus bq_check_rows(const uint8_t *payloads, size_t n, size_t nbytes,
                           BqHeader *first, size_t *bad_row)
    void bq_decode_rows(const uint8_t *payloads, size_t n, int dim,
                        const BqRotation *rotation, float *x)
    BqStatus bq_prepare_query_rows(const float *x, size_t n, size_t stride, int dim,
                                   const BqRotation *rotation, float *q, size_t *bad_row)
    void bq_code_distance_rows(BqCodeDistance distance, const uint8_t *payloads, size_t n,
                               int dim, const uint8_t *planes, int32_t *out)
    void bq_query_distance_rows(BqQueryDistance distance, const uint8_t *payloads, size_t n,
                                int dim, const float *q, float q_norm, double *out)
    BqStatus bq_moments_add_rows(int64_t *count, double *values, int dim,
                                 const float *x, size_t n, size_t stride, float *scaled,
                                 uint8_t *planes, float *decoded, size_t *bad_row)

MAX_DIM = BQ_MAX_DIM
MAX_TRANSFORM = BQ_MAX_TRANSFORM
THRESHOLD = BQ_THRESHOLD
WEAK = BQ_WEAK
STRONG = BQ_STRONG
MEAN = BQ_MOMENT_MEAN
M2 = BQ_MOMENT_M2
CODE_MEAN = BQ_MOMENT_CODE_MEAN
CODE_M2 = BQ_MOMENT_CODE_M2
COMOMENT = BQ_MOMENT_COMOMENT
POSITIVE = BQ_MOMENT_POSITIVE
MOMENTS = BQ_MOMENTS
SEARCH_ORDERS = BQ_SEARCH_ORDERS
SEARCH_NEIGHBOURS = BQ_SEARCH_NEIGHBOURS
WINDOW_MIN_ROWS = BQ_WINDOW_MIN_ROWS

bq_kernel_select("auto")


# -- kernels ------------------------------------------------------------------------

def simd():
    """Name of the kernel in use in this process, as `bq_simd()` in SQL."""
    return bq_kernel.name.decode()


def kernels():
    """Names of the kernels that this CPU runs, best first."""
    names = []
    cdef int i = 0
    while bq_kernel_name(i) != NULL:
        if bq_kernel_available(bq_kernel_name(i)):
            names.append(bq_kernel_name(i).decode())
        i += 1
    return names


def set_kernel(name):
    """Use one kernel in this process; all give the same bits, at different speeds.

    Parameters
    ----------
    name : str
        One of `kernels()`, or "auto" for the best.

    Raises
    ------
    ValueError
        If the name is unknown, or this CPU cannot run it.
    """
    if not bq_kernel_select(name.encode()):
        raise ValueError(
            f"expected a kernel that this CPU runs ({', '.join(kernels())}) or auto, got {name!r}"
        )


# -- arguments ----------------------------------------------------------------------

cdef _raise(BqStatus status, object row):
    """ValueError in the words of the core; `row` is None where there is only one vector."""
    message = bq_status_message(status).decode()
    raise ValueError(message if row is None else f"row {row}: {message}")


cdef object _row(size_t bad_row, object first_row):
    return None if first_row is None else first_row + bad_row


cdef _check_dim(Py_ssize_t dim):
    if not 1 <= dim <= BQ_MAX_DIM:
        raise ValueError(f"expected dim between 1 and {BQ_MAX_DIM}, got {dim}")


cdef _check_transform(int transform, int lowest):
    if not lowest <= transform <= BQ_MAX_TRANSFORM:
        raise ValueError(
            f"expected transform between {lowest} and {BQ_MAX_TRANSFORM}, got {transform}"
        )


cdef _check_shape(Py_ssize_t found, Py_ssize_t expected, what):
    if found != expected:
        raise ValueError(f"expected {expected} {what}, got {found}")


cdef size_t _stride(const float[:, :] x) except? 0:
    """Floats from one row of x to the next; the values of a row must lie side by side."""
    cdef Py_ssize_t size = sizeof(float)
    if x.shape[0] == 0:
        return 0
    if x.shape[1] > 1 and x.strides[1] != size:
        raise ValueError("expected rows without gaps between their values")
    if x.shape[0] > 1 and (x.strides[0] < 0 or x.strides[0] % size != 0):
        raise ValueError("expected rows in order, at multiples of 4 bytes")
    return x.strides[0] // size if x.shape[0] > 1 else x.shape[1]


cdef class Rotation:
    """The seeded rotation of one transform and dim, ready for use by many threads at once."""

    cdef BqRotation rotation
    cdef readonly int dim
    cdef readonly int transform

    def __cinit__(self, int dim, int transform):
        _check_dim(dim)
        _check_transform(transform, 1)
        self.dim = dim
        self.transform = transform
        bq_rotation_init(&self.rotation, dim, transform)


cdef const BqRotation *_rotation(Rotation rotation, Py_ssize_t dim) except? NULL:
    if rotation is None:
        return NULL
    _check_shape(dim, rotation.dim, "dimensions")
    return &rotation.rotation


# -- vectors and codes --------------------------------------------------------------

def nbytes(Py_ssize_t dim):
    _check_dim(dim)
    return bq_nbytes(<int> dim)


def encode(const float[:, :] x, uint8_t[:, ::1] out, Rotation rotation=None,
           bint cut_mean=False, first_row=None):
    cdef size_t n = x.shape[0]
    cdef int dim = x.shape[1]
    cdef size_t stride = _stride(x)
    cdef const BqRotation *c_rotation = _rotation(rotation, dim)
    cdef BqCut cut = BQ_CUT_MEAN if cut_mean else BQ_CUT_RMS
    cdef size_t bad_row = 0
    cdef float *scratch
    cdef BqStatus status

    _check_dim(x.shape[1])
    _check_shape(out.shape[0], n, "rows of output")
    _check_shape(out.shape[1], bq_nbytes(dim), "bytes per row of output")
    if n == 0:
        return
    scratch = <float *> malloc(dim * sizeof(float))
    if scratch == NULL:
        raise MemoryError
    with nogil:
        status = bq_encode_rows(&x[0, 0], n, stride, dim, cut, c_rotation, scratch,
                                &out[0, 0], &bad_row)
    free(scratch)
    if status != BQ_OK:
        _raise(status, _row(bad_row, first_row))


def prepare(const float[:, :] x, float[:, ::1] out, Rotation rotation=None, first_row=None):
    cdef size_t n = x.shape[0]
    cdef int dim = x.shape[1]
    cdef size_t stride = _stride(x)
    cdef const BqRotation *c_rotation = _rotation(rotation, dim)
    cdef size_t bad_row = 0
    cdef BqStatus status

    _check_dim(x.shape[1])
    _check_shape(out.shape[0], n, "rows of output")
    _check_shape(out.shape[1], dim, "columns of output")
    if n == 0:
        return
    with nogil:
        status = bq_prepare_query_rows(&x[0, 0], n, stride, dim, c_rotation, &out[0, 0],
                                       &bad_row)
    if status != BQ_OK:
        _raise(status, _row(bad_row, first_row))


def narrow(const float[:, ::1] x, uint16_t[:, ::1] half, float[:, ::1] rounded):
    cdef size_t n = x.shape[0]
    cdef size_t dim = x.shape[1]
    cdef size_t i

    _check_shape(half.shape[0], n, "rows of float16")
    _check_shape(half.shape[1], dim, "columns of float16")
    _check_shape(rounded.shape[0], n, "rows of float32")
    _check_shape(rounded.shape[1], dim, "columns of float32")
    if n == 0 or dim == 0:
        return
    with nogil:
        for i in range(n):
            bq_narrow_half(&x[i, 0], &half[i, 0], dim)
            bq_widen_half(&half[i, 0], &rounded[i, 0], dim)


def check_codes(const uint8_t[:, ::1] codes, first_row=0):
    cdef size_t n = codes.shape[0]
    cdef size_t length = codes.shape[1]
    cdef size_t bad_row = 0
    cdef BqHeader header
    cdef BqStatus status

    if n == 0 or length == 0:
        raise ValueError(f"expected at least one code, got shape {(n, length)}")
    with nogil:
        status = bq_check_rows(&codes[0, 0], n, length, &header, &bad_row)
    if status != BQ_OK:
        _raise(status, _row(bad_row, first_row))
    return header.dim, header.transform


def decode(const uint8_t[:, ::1] codes, float[:, ::1] out, Rotation rotation=None,
           first_row=0):
    """Check and decode; `codes` of transform 0, or of that of `rotation`."""
    cdef size_t n = codes.shape[0]
    cdef int dim = out.shape[1]
    cdef const BqRotation *c_rotation = _rotation(rotation, dim)
    cdef int wanted = 0 if rotation is None else rotation.transform

    _check_shape(codes.shape[0], out.shape[0], "codes")
    if n == 0:
        return
    found_dim, found_transform = check_codes(codes, first_row)
    where = "" if first_row is None else f"row {first_row}: "
    if found_dim != dim:
        raise ValueError(f"{where}expected a code of {dim} dimensions, got {found_dim}")
    if found_transform != wanted:
        raise ValueError(f"{where}expected a code of transform {wanted}, got {found_transform}")
    with nogil:
        bq_decode_rows(&codes[0, 0], n, dim, c_rotation, &out[0, 0])


def check_payload(const uint8_t[::1] payload):
    cdef BqHeader header
    cdef uint8_t none = 0
    cdef size_t length = payload.shape[0]
    cdef BqStatus status = bq_check_payload(&payload[0] if length else &none, length, &header)

    if status != BQ_OK:
        _raise(status, None)
    return header.dim, header.transform, header.norm


def levels(const uint8_t[::1] payload):
    cdef int dim = check_payload(payload)[0]
    cdef int i
    out = np.empty(dim, np.uint8)
    cdef uint8_t[::1] view = out

    for i in range(dim):
        view[i] = <uint8_t> bq_get_level(&payload[BQ_HEADER_NBYTES], dim, i)
    return out


def from_levels(int transform, float norm, const uint8_t[::1] levels):
    cdef int dim = levels.shape[0]
    cdef BqHeader header
    cdef int i

    _check_dim(levels.shape[0])
    _check_transform(transform, 0)
    header.dim = dim
    header.transform = transform
    header.norm = norm
    out = bytearray(bq_nbytes(dim))
    cdef uint8_t[::1] view = out
    bq_write_header(&view[0], &header)
    for i in range(dim):
        if levels[i] > 3:
            raise ValueError(f"expected levels 0 to 3, got {levels[i]} in dimension {i}")
        bq_set_level(&view[BQ_HEADER_NBYTES], dim, i, levels[i])
    # the zero vector is written as weak minus everywhere, whose sign bits are zero as well
    check_payload(view)
    return bytes(out)


# -- distances ----------------------------------------------------------------------

def _as_codes(codes):
    codes = np.asarray(codes)
    if codes.dtype != np.uint8:
        raise TypeError(f"expected codes of dtype uint8, got {codes.dtype}")
    if codes.ndim != 2:
        raise ValueError(f"expected codes of shape (n, nbytes), got {codes.shape}")
    return np.ascontiguousarray(codes)


cdef _check_alike(codes, int dim, object transform):
    """Check codes, which must be of this dim, and of this transform unless it is None."""
    found_dim, found_transform = check_codes(codes)
    if found_dim != dim:
        raise ValueError(f"different dimensions {found_dim} and {dim}")
    if transform is not None and found_transform != transform:
        raise ValueError(f"different transforms {found_transform} and {transform}")


cdef _code_distances(BqCodeDistance distance, codes, code):
    codes = _as_codes(codes)
    cdef const uint8_t[::1] one = np.ascontiguousarray(code, np.uint8)
    cdef size_t n = codes.shape[0]
    cdef int dim, transform
    dim, transform, _ = check_payload(one)
    out = np.empty(n, np.int32)
    if n == 0:
        return out
    _check_alike(codes, dim, transform)

    cdef const uint8_t[:, ::1] rows = codes
    cdef int32_t[::1] result = out
    with nogil:
        bq_code_distance_rows(distance, &rows[0, 0], n, dim, &one[BQ_HEADER_NBYTES],
                              &result[0])
    return out


def hamming_distances(codes, code):
    return _code_distances(BQ_HAMMING, codes, code)


def sign_distances(codes, code):
    return _code_distances(BQ_HAMMING_SIGN, codes, code)


def quiver_distances(codes, code):
    return _code_distances(BQ_HAMMING_QUIVER, codes, code)


cdef _query_distances(BqQueryDistance distance, codes, values):
    codes = _as_codes(codes)
    cdef const float[::1] query = np.ascontiguousarray(values, np.float32)
    cdef int dim = query.shape[0]
    cdef size_t n = codes.shape[0]
    cdef float norm = 0
    cdef BqStatus status

    _check_dim(query.shape[0])
    # no rotation: a check of the values, and their norm
    checked = np.empty(dim, np.float32)
    cdef float[::1] q = checked
    status = bq_prepare_query(&query[0], dim, NULL, &q[0], &norm)
    if status != BQ_OK:
        _raise(status, None)
    out = np.empty(n, np.float64)
    if n == 0:
        return out
    _check_alike(codes, dim, None)

    cdef const uint8_t[:, ::1] rows = codes
    cdef double[::1] result = out
    with nogil:
        bq_query_distance_rows(distance, &rows[0, 0], n, dim, &q[0], norm, &result[0])
    return out


def inner_products(codes, values):
    return _query_distances(BQ_INNER_PRODUCT, codes, values)


def cosine_distances(codes, values):
    return _query_distances(BQ_COSINE, codes, values)


def l2_distances(codes, values):
    return _query_distances(BQ_L2, codes, values)


# -- statistics ---------------------------------------------------------------------

def moments_add(int64_t count, double[:, ::1] values, const float[:, :] x, first_row=0,
                float[:, ::1] scaled=None):
    cdef size_t n = x.shape[0]
    cdef int dim = x.shape[1]
    cdef size_t stride = _stride(x)
    cdef size_t bad_row = 0
    cdef float *c_scaled = NULL
    cdef uint8_t *planes
    cdef float *decoded
    cdef BqStatus status

    _check_dim(x.shape[1])
    _check_shape(values.shape[0], BQ_MOMENTS, "rows of moments")
    _check_shape(values.shape[1], dim, "dimensions")
    if n == 0:
        return count
    if scaled is not None:
        _check_shape(scaled.shape[0], n, "scaled rows")
        _check_shape(scaled.shape[1], dim, "scaled dimensions")
        c_scaled = &scaled[0, 0]
    planes = <uint8_t *> malloc(bq_planes_nbytes(dim))
    decoded = <float *> malloc(dim * sizeof(float))
    if planes == NULL or decoded == NULL:
        free(planes)
        free(decoded)
        raise MemoryError
    with nogil:
        status = bq_moments_add_rows(&count, &values[0, 0], dim, &x[0, 0], n, stride,
                                     c_scaled, planes, decoded, &bad_row)
    free(planes)
    free(decoded)
    if status != BQ_OK:
        _raise(status, _row(bad_row, first_row))
    return count


def moments_merge(int64_t count, double[:, ::1] values, int64_t other_count,
                  const double[:, ::1] other):
    cdef int dim = values.shape[1]

    _check_dim(values.shape[1])
    _check_shape(values.shape[0], BQ_MOMENTS, "rows of moments")
    _check_shape(other.shape[0], BQ_MOMENTS, "rows of moments")
    _check_shape(other.shape[1], dim, "dimensions")
    if count < 0 or other_count < 0:
        raise ValueError(f"expected counts of at least 0, got {count} and {other_count}")
    with nogil:
        bq_moments_merge(&count, &values[0, 0], dim, other_count, &other[0, 0])
    return count


def window_rows(dim):
    _check_dim(dim)
    return bq_window_rows(dim)


def window_start(int64_t row, dim):
    _check_dim(dim)
    return bq_window_start(row, dim)


def search_window(float[:, ::1] x, int64_t[::1] searches):
    cdef size_t n = x.shape[0]
    cdef int dim = x.shape[1]
    cdef Rotation rotation
    cdef void *room

    _check_dim(x.shape[1])
    _check_shape(searches.shape[0], 1 + 3 * BQ_SEARCH_ORDERS, "sums of searches")
    if n < <size_t> BQ_WINDOW_MIN_ROWS:
        raise ValueError(f"expected a window of at least {BQ_WINDOW_MIN_ROWS} rows, got {n}")
    rotation = Rotation(dim, BQ_SEARCH_TRANSFORM)
    room = malloc(bq_search_room(n, dim))
    if room == NULL:
        raise MemoryError
    with nogil:
        bq_search_window(&x[0, 0], n, dim, &rotation.rotation, room, <BqSearches *> &searches[0])
    free(room)
