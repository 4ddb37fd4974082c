"""The payload: header round trip, and every bad one rejected with the right status."""

import corelib
import numpy as np
import pytest
import reference

NAN_BITS = 0x7FC00000


def check(payload):
    header = corelib.Header()
    buffer = np.frombuffer(payload, np.uint8).copy()
    status = corelib.load().bq_check_payload(corelib.address(buffer), len(payload), header)
    return corelib.STATUS[status], header


def make(dim, transform=0, norm=1.0, level=2):
    planes = reference.planes_of_levels(np.full(dim, level))
    return reference.payload(planes, dim, transform, norm)


def patch(payload, offset, replacement):
    return payload[:offset] + replacement + payload[offset + len(replacement) :]


@pytest.mark.parametrize("dim", [1, 8, 9, 255, 256, 384, 16000])
@pytest.mark.parametrize("transform", [0, 1, 258, 65535])
@pytest.mark.parametrize("norm", [1e-45, 1.0, 0.1, np.float32(reference.MAX_NORM)])
def test_header_round_trip(dim, transform, norm):
    payload = make(dim, transform, norm)
    status, header = check(payload)
    assert status == "ok"
    assert (header.dim, header.transform) == (dim, transform)
    assert np.float32(header.norm) == np.float32(norm)
    written = np.zeros(8, np.uint8)
    corelib.load().bq_write_header(corelib.address(written), header)
    assert written.tobytes() == payload[:8]


@pytest.mark.parametrize("dim", [0, 16001, 65535])
def test_bad_dim(dim):
    assert check(patch(make(8), 0, dim.to_bytes(2, "big")))[0] == "bad_dim"


@pytest.mark.parametrize("dim", [1, 8, 9, 384])
def test_bad_length(dim):
    payload = make(dim)
    assert check(payload + b"\0")[0] == "bad_length"
    for length in range(len(payload)):
        assert check(payload[:length])[0] == "bad_length"


@pytest.mark.parametrize(
    "bits",
    [
        NAN_BITS,
        0xFFC00000,  # -NaN
        0x7F800000,  # infinity
        0xFF800000,
        0xBF800000,  # -1
        0x80000000,  # -0
        0x80000001,
        int(np.float32(reference.MAX_NORM).view(np.uint32)) + 1,
    ],
)
def test_bad_norm(bits):
    assert check(patch(make(8), 4, bits.to_bytes(4, "big")))[0] == "bad_norm"


@pytest.mark.parametrize("dim", [d for d in range(1, 24) if d % 8])
def test_bad_padding(dim):
    payload = make(dim)
    nbytes = reference.plane_nbytes(dim)
    for last in (8 + nbytes - 1, 8 + 2 * nbytes - 1):
        for bit in range(dim % 8, 8):
            broken = bytes([payload[last] | 1 << bit])
            assert check(patch(payload, last, broken))[0] == "bad_padding"


@pytest.mark.parametrize("dim", [1, 8, 384])
def test_bad_zero(dim):
    nbytes = 2 * reference.plane_nbytes(dim)
    zero = np.array([dim, 0], ">u2").tobytes() + bytes(4 + nbytes)
    assert check(zero)[0] == "ok"
    for offset in range(8, 8 + nbytes):
        assert check(patch(zero, offset, b"\1"))[0] == "bad_zero"


def test_all_bits_zero_with_a_norm_is_a_code():
    """Every level weak minus: not to be mistaken for the zero vector."""
    status, header = check(make(384, level=1))
    assert status == "ok"
    assert header.norm == 1


def test_every_status_has_its_words():
    messages = [corelib.load().bq_status_message(i).decode() for i in range(len(corelib.STATUS))]
    assert len(set(messages)) == len(messages)
    assert "unknown error" not in messages
    assert corelib.load().bq_status_message(len(messages)) == b"unknown error"
