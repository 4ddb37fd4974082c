# cython: language_level=3, boundscheck=False, wraparound=False
# copy.pyx: whole arrays -> the bytes of COPY ... FROM STDIN WITH (FORMAT binary).
#
# Format: the PostgreSQL manual, COPY, "Binary Format". A field is an int32 length and
# what the type's recv function reads; everything is big endian.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

import uuid

import numpy as np

from pybq._codes.arrays import holds_numbers

cdef extern from *:
    """
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define BE16(v) (v)
    #define BE32(v) (v)
    #define BE64(v) (v)
    #else
    #define BE16(v) __builtin_bswap16(v)
    #define BE32(v) __builtin_bswap32(v)
    #define BE64(v) __builtin_bswap64(v)
    #endif

    #define SWAP_ITEMS(name, type, big_endian) \\
    static void name(char *restrict out, const char *restrict in, Py_ssize_t n) \\
    { \\
        for (Py_ssize_t i = 0; i < n; i++) \\
        { \\
            type value; \\
            memcpy(&value, in + i * sizeof(type), sizeof(type)); \\
            value = big_endian(value); \\
            memcpy(out + i * sizeof(type), &value, sizeof(type)); \\
        } \\
    }
    SWAP_ITEMS(swap2, uint16_t, BE16)
    SWAP_ITEMS(swap4, uint32_t, BE32)
    SWAP_ITEMS(swap8, uint64_t, BE64)
    """
    uint16_t BE16(uint16_t value) nogil
    uint32_t BE32(uint32_t value) nogil
    void swap2(char *out, const char *values, Py_ssize_t n) nogil
    void swap4(char *out, const char *values, Py_ssize_t n) nogil
    void swap8(char *out, const char *values, Py_ssize_t n) nogil

cdef enum Layout:
    SCALAR                      # one number
    RAW                         # bytes as they are, the same number in each row
    VECTOR                      # pgvector: int16 dim, int16 zero, numbers
    ARRAY                       # float4[]: header, then length and number of each
    OBJECTS                     # bytes objects of any length

# kind -> layout, dtype of the numbers
KINDS = {
    "bool": (RAW, "u1"),
    "int2": (SCALAR, "i2"),
    "int4": (SCALAR, "i4"),
    "int8": (SCALAR, "i8"),
    "float4": (SCALAR, "f4"),
    "float8": (SCALAR, "f8"),
    "bqvec": (RAW, "u1"),
    "vector": (VECTOR, "f4"),
    "halfvec": (VECTOR, "f2"),
    "float4[]": (ARRAY, "f4"),
    "text": (OBJECTS, None),
    "bytea": (OBJECTS, None),
    "uuid": (OBJECTS, None),
}

CHUNK_NBYTES = 256 << 10          # stays in the cache between encoding and sending
MAX_COLUMNS = 1600              # PostgreSQL: MaxHeapAttributeNumber
cdef Py_ssize_t MAX_FIELD_NBYTES = 0x3fffffff   # PostgreSQL: MaxAllocSize
cdef Py_ssize_t MAX_BLOCK_ROWS = 65536

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)   # no flags, no header extension
TRAILER = b"\xff\xff"

cdef int FLOAT4_OID = 700       # PostgreSQL: pg_type.dat
cdef int VECTOR_HEADER = 4
cdef int ARRAY_HEADER = 20      # ndim, has nulls, element type, length, lower bound


cdef inline void put2(char *out, int16_t value) noexcept nogil:
    cdef uint16_t big = BE16(<uint16_t> value)
    memcpy(out, &big, 2)


cdef inline void put4(char *out, int32_t value) noexcept nogil:
    cdef uint32_t big = BE32(<uint32_t> value)
    memcpy(out, &big, 4)


cdef inline void swap_items(char *out, const char *values, Py_ssize_t n,
                            int item) noexcept nogil:
    if item == 8:
        swap8(out, values, n)
    elif item == 4:
        swap4(out, values, n)
    elif item == 2:
        swap2(out, values, n)
    else:
        memcpy(out, values, n)


# -- arrays to bytes ----------------------------------------------------------------

def _as_bytes(kind, value, where):
    """Wire form of one object; None stays None."""
    if value is None or isinstance(value, bytes) and kind != "text":
        encoded = value
    elif kind == "text" and isinstance(value, str):
        encoded = value.encode()
    elif kind == "uuid" and isinstance(value, uuid.UUID):
        encoded = value.bytes
    elif kind == "bytea" and isinstance(value, (bytearray, memoryview)):
        encoded = bytes(value)
    else:
        expected = {"text": "str", "bytea": "bytes", "uuid": "uuid.UUID"}[kind]
        raise TypeError(f"{where}: expected {expected} or None, got {type(value).__name__}")
    if encoded is not None:
        if kind == "uuid" and len(encoded) != 16:
            raise ValueError(f"{where}: expected 16 bytes, got {len(encoded)}")
        if len(encoded) > MAX_FIELD_NBYTES:
            raise ValueError(f"{where}: {len(encoded)} bytes are more than PostgreSQL's 1 GB")
    return encoded


def _as_array(kind, layout, dtype, values, where):
    """The values as an array of the wanted dtype, one row per row, checked; a view if possible."""
    array = np.asarray(values)
    dtype = np.dtype(dtype)
    ndim = 1 if layout == SCALAR or kind == "bool" else 2
    if array.ndim != ndim:
        shape = "(n,)" if ndim == 1 else "(n, m)"
        raise ValueError(f"{where}: expected shape {shape} for {kind}, got {array.shape}")
    if kind == "bool":
        if array.dtype != np.bool_:
            raise TypeError(f"{where}: expected dtype bool, got {array.dtype}")
        return array.view(np.uint8)[:, None]
    if dtype.kind == "f":
        if not holds_numbers(array.dtype):
            raise TypeError(f"{where}: expected numbers for {kind}, got dtype {array.dtype}")
    elif kind == "bqvec":
        if array.dtype != np.uint8:
            raise TypeError(f"{where}: expected dtype uint8 for {kind}, got {array.dtype}")
    else:
        if array.dtype.kind not in "iu":
            raise TypeError(f"{where}: expected integers for {kind}, got dtype {array.dtype}")
        if not np.can_cast(array.dtype, dtype) and array.size:
            bounds = np.iinfo(dtype)
            bad = (array < bounds.min) | (array > bounds.max)
            if bad.any():
                row = int(np.argmax(bad))
                raise ValueError(f"{where}, row {row}: {array[row]} is out of range for {kind}")
    if ndim == 2 and array.size == 0 and len(array) > 0:
        raise ValueError(f"{where}: expected at least one value per row, got {array.shape}")
    return array


cdef class Column:
    """One column while it is written: what it is, and where the rows of a block are."""

    cdef object kind
    cdef object where
    cdef int layout
    cdef int item
    cdef Py_ssize_t nrows
    cdef Py_ssize_t dim
    cdef Py_ssize_t width       # bytes of a field that is not NULL; of objects: unknown, 0
    cdef object dtype
    cdef object values
    cdef const uint8_t[::1] nulls
    cdef bint has_nulls
    # the rows of the block
    cdef object block
    cdef const char *data
    cdef Py_ssize_t stride

    def __init__(self, position, spec):
        if not isinstance(spec, tuple) or len(spec) not in (2, 3):
            raise TypeError(
                f"column {position}: expected (kind, values) or (kind, values, nulls), got {spec!r}"
            )
        self.kind = spec[0]
        self.where = f"column {position}"
        if self.kind not in KINDS:
            raise ValueError(
                f"{self.where}: expected a kind of {', '.join(KINDS)}, got {self.kind!r}"
            )
        self.layout, self.dtype = KINDS[self.kind]
        self.width = 0
        if self.layout == OBJECTS:
            self.values = spec[1].tolist() if isinstance(spec[1], np.ndarray) else spec[1]
        else:
            self.values = _as_array(self.kind, self.layout, self.dtype, spec[1], self.where)
            self.item = np.dtype(self.dtype).itemsize
            self.dim = 1 if self.layout == SCALAR else self.values.shape[1]
            if self.layout == VECTOR:
                if self.dim > 16000:
                    raise ValueError(f"{self.where}: expected at most 16000 dimensions for "
                                     f"{self.kind}, got {self.dim}")
                self.width = VECTOR_HEADER + self.dim * self.item
            elif self.layout == ARRAY:
                self.width = ARRAY_HEADER + self.dim * (4 + self.item)
            else:
                self.width = self.dim * self.item
            if self.width > MAX_FIELD_NBYTES:
                raise ValueError(f"{self.where}: {self.width} bytes per row are more than "
                                 "PostgreSQL's 1 GB")
        self.nrows = len(self.values)
        nulls = spec[2] if len(spec) == 3 else None
        self.has_nulls = nulls is not None
        if self.has_nulls:
            nulls = np.asarray(nulls)
            if nulls.dtype != np.bool_ or nulls.shape != (self.nrows,):
                raise ValueError(f"{self.where}: expected nulls of dtype bool, shape "
                                 f"({self.nrows},), got {nulls.dtype}, {nulls.shape}")
            self.nulls = np.ascontiguousarray(nulls).view(np.uint8)

    cdef load(self, Py_ssize_t start, Py_ssize_t stop):
        """Make rows start .. stop ready to be written."""
        cdef Py_ssize_t i
        cdef const uint8_t[::1] flat
        if self.layout == OBJECTS:
            block = []
            for i in range(start, stop):
                block.append(None if self.has_nulls and self.nulls[i] else
                             _as_bytes(self.kind, self.values[i], f"{self.where}, row {i}"))
            self.block = block
        else:
            # a copy of one block at most, whatever the strides and the dtype of the input
            with np.errstate(over="ignore"):
                self.block = np.ascontiguousarray(self.values[start:stop], self.dtype)
            flat = self.block.reshape(-1).view(np.uint8)
            self.data = <const char *> &flat[0]
            self.stride = self.dim * self.item

    cdef add_sizes(self, Py_ssize_t start, int64_t[::1] sizes):
        """Add to sizes[i] the bytes of this field in row start + i."""
        cdef Py_ssize_t i
        cdef Py_ssize_t n = sizes.shape[0]
        for i in range(n):
            sizes[i] += 4
            if self.layout == OBJECTS:
                if self.block[i] is not None:
                    sizes[i] += PyBytes_GET_SIZE(self.block[i])
            elif not (self.has_nulls and self.nulls[start + i]):
                sizes[i] += self.width

    cdef write(self, Py_ssize_t start, char *out, int64_t[::1] at):
        """Write the field of row start + i to out + at[i], and move at[i] behind it."""
        cdef Py_ssize_t i, size
        cdef Py_ssize_t n = at.shape[0]
        cdef const char *source
        if self.layout == OBJECTS:
            for i in range(n):
                value = self.block[i]
                if value is None:
                    put4(out + at[i], -1)
                    at[i] += 4
                else:
                    source = PyBytes_AS_STRING(value)
                    size = PyBytes_GET_SIZE(value)
                    put4(out + at[i], <int32_t> size)
                    memcpy(out + at[i] + 4, source, size)
                    at[i] += 4 + size
            return
        with nogil:
            for i in range(n):
                if self.has_nulls and self.nulls[start + i]:
                    put4(out + at[i], -1)
                    at[i] += 4
                else:
                    put4(out + at[i], <int32_t> self.width)
                    self.write_value(out + at[i] + 4, self.data + i * self.stride)
                    at[i] += 4 + self.width

    cdef void write_value(self, char *out, const char *value) noexcept nogil:
        cdef Py_ssize_t j
        if self.layout == VECTOR:
            put2(out, <int16_t> self.dim)
            put2(out + 2, 0)
            swap_items(out + VECTOR_HEADER, value, self.dim, self.item)
        elif self.layout == ARRAY:
            put4(out, 1)
            put4(out + 4, 0)
            put4(out + 8, FLOAT4_OID)
            put4(out + 12, <int32_t> self.dim)
            put4(out + 16, 1)
            for j in range(self.dim):
                put4(out + ARRAY_HEADER + 8 * j, 4)
                swap4(out + ARRAY_HEADER + 8 * j + 4, value + 4 * j, 1)
        else:
            swap_items(out, value, self.dim, self.item)


cdef write_block(list columns, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t chunk_nbytes):
    """Bytes of rows from `start` on, as many as fit, at least one; and the next row."""
    cdef Column column
    cdef Py_ssize_t n = stop - start
    cdef Py_ssize_t i
    cdef int64_t total = 0
    cdef int16_t ncolumns = <int16_t> len(columns)
    cdef char *out
    cdef int64_t size

    sizes = np.full(n, 2, np.int64)
    cdef int64_t[::1] at = sizes
    for column in columns:
        column.load(start, stop)
        column.add_sizes(start, at)
    for i in range(n):
        if i > 0 and total + at[i] > chunk_nbytes:
            n = i
            break
        size = at[i]
        at[i] = total
        total += size
    chunk = PyBytes_FromStringAndSize(NULL, total)
    out = PyBytes_AS_STRING(chunk)
    at = at[:n]
    for i in range(n):
        put2(out + at[i], ncolumns)
        at[i] += 2
    for column in columns:
        column.write(start, out, at)
    return chunk, start + n


def encode_rows(columns, chunk_nbytes=CHUNK_NBYTES):
    # not a generator itself: mistakes in the arguments are found at the call
    cdef Column column
    cdef Py_ssize_t nrows
    if not 1 <= len(columns) <= MAX_COLUMNS:
        raise ValueError(f"expected 1 to {MAX_COLUMNS} columns, got {len(columns)}")
    if chunk_nbytes < 1:
        raise ValueError(f"expected chunk_nbytes of at least 1, got {chunk_nbytes}")
    checked = [Column(position, spec) for position, spec in enumerate(columns)]
    column = checked[0]
    nrows = column.nrows
    for column in checked[1:]:
        if column.nrows != nrows:
            raise ValueError(
                f"{column.where}: expected {nrows} rows as in column 0, got {column.nrows}"
            )
    return _chunks(checked, nrows, chunk_nbytes)


def _chunks(list columns, Py_ssize_t nrows, Py_ssize_t chunk_nbytes):
    cdef Column column
    cdef Py_ssize_t row_nbytes = 2
    cdef Py_ssize_t start = 0
    cdef Py_ssize_t rows
    for column in columns:
        row_nbytes += 4 + column.width
    rows = max(1, min(MAX_BLOCK_ROWS, chunk_nbytes // row_nbytes))
    while start < nrows:
        chunk, start = write_block(columns, start, min(start + rows, nrows), chunk_nbytes)
        yield chunk
