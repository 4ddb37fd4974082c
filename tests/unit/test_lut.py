"""Blocks of interleaved codes and their lookup tables."""

import corelib
import numpy as np
import pytest
import reference
from corelib import address

DIMS = [*range(1, 131), 384, 1000, 1536, 16000]
UINT16_MAX = 65535


def random_codes(rng, dim, n=reference.BLOCK):
    return [reference.planes_of_levels(rng.integers(0, 4, dim)) for _ in range(n)]


def put_codes(codes, dim):
    block = np.zeros(((dim + 1) // 2, 16), np.uint8)
    for c, planes in enumerate(codes):
        corelib.load().bq_block_put(address(block), dim, c, address(planes))
    return block


def query_table(q):
    table = np.full(((q.size + 1) // 2, 16), 0xEE, np.uint8)
    scale, bias = corelib.c_float(), corelib.c_float()
    corelib.load().bq_lut_query(address(q), q.size, address(table), scale, bias)
    return table, scale.value, bias.value


def hamming_table(planes, dim):
    table = np.full(((dim + 1) // 2, 16), 0xEE, np.uint8)
    corelib.load().bq_lut_hamming(address(planes), dim, address(table))
    return table


def test_block_in_two_parts_equals_whole(rng):
    """A page may end between any two rows of a block."""
    for dim in (1, 7, 8, 64, 129):
        codes = random_codes(rng, dim)
        block = put_codes(codes, dim)
        for split in range((dim + 1) // 2 + 1):
            parts = np.full_like(block, 0xFF)
            for c, planes in enumerate(codes):
                found = np.zeros_like(planes)
                for first, end in ((0, split), (split, len(block))):
                    rows = address(parts[first:])
                    corelib.load().bq_block_put_rows(rows, first, end, dim, c, address(planes))
                    corelib.load().bq_block_get_rows(rows, first, end, dim, c, address(found))
                assert np.array_equal(found, planes), (dim, split, c)
            assert np.array_equal(parts, block), (dim, split)


def test_block_layout_equals_reference(rng):
    for dim in DIMS:
        codes = random_codes(rng, dim, n=1 + dim % 32)
        assert np.array_equal(put_codes(codes, dim), reference.make_block(codes, dim)), dim


def test_block_get_returns_what_was_put(rng):
    for dim in DIMS:
        codes = random_codes(rng, dim)
        block = put_codes(codes, dim)
        for c, planes in enumerate(codes):
            found = np.full(planes.size, 0xEE, np.uint8)
            corelib.load().bq_block_get(address(block), dim, c, address(found))
            assert np.array_equal(found, planes), (dim, c)


def stage_codes(codes, dim):
    """One code after the other, as `bq_stage_put` writes them."""
    nrows = (dim + 1) // 2
    staged = np.full(nrows * 16, 0xA5, np.uint8)
    for c in np.random.default_rng(dim).permutation(len(codes)):
        run = staged[c * nrows // 2 :]
        corelib.load().bq_stage_put(address(run), c * nrows % 2, 0, nrows, dim, address(codes[c]))
    return staged


def test_staged_block_equals_reference(rng):
    """Nibble c * nrows + j is that of code c in row j, whatever lay there before."""
    for dim in DIMS:
        codes = random_codes(rng, dim)
        block = reference.make_block(codes, dim)
        nibbles = np.concatenate([block & 15, block >> 4], axis=1).T.reshape(-1, 2)
        assert np.array_equal(stage_codes(codes, dim), nibbles[:, 0] | nibbles[:, 1] << 4), dim
        staged = np.full(block.size, 0xA5, np.uint8)
        corelib.load().bq_stage(address(block), len(block), address(staged))
        assert np.array_equal(staged, stage_codes(codes, dim)), dim


def test_stage_get_returns_what_was_put(rng):
    for dim in DIMS:
        nrows = (dim + 1) // 2
        codes = random_codes(rng, dim)
        staged = stage_codes(codes, dim)
        for c, planes in enumerate(codes):
            found = np.zeros(planes.size, np.uint8)
            run = staged[c * nrows // 2 :]
            corelib.load().bq_stage_get(address(run), c * nrows % 2, 0, nrows, dim, address(found))
            assert np.array_equal(found, planes), (dim, c)


def test_code_staged_in_parts_equals_whole(rng):
    """A large block is staged in several parts."""
    for dim in (9, 64, 130):
        nrows = (dim + 1) // 2
        (planes,) = random_codes(rng, dim, n=1)
        for split in range(0, nrows, 4):
            found = np.zeros_like(planes)
            for first, end in ((0, split), (split, nrows)):
                run = np.full(nrows, 0xA5, np.uint8)
                corelib.load().bq_stage_put(address(run), 1, first, end, dim, address(planes))
                assert run[0] & 15 == 5
                corelib.load().bq_stage_get(address(run), 1, first, end, dim, address(found))
            assert np.array_equal(found, planes), (dim, split)


@pytest.mark.parametrize("name", corelib.available_kernels())
def test_unstaged_block_is_packed(name, rng):
    for dim in DIMS:
        codes = random_codes(rng, dim)
        block = put_codes(codes, dim)
        memory = corelib.Guarded(block.size + 7)
        for offset in (0, 7):
            staged = memory.at_end(stage_codes(codes, dim), offset)
            found = np.full(block.size + 1, 0xEE, np.uint8)
            corelib.kernel(name).unstage(address(staged), len(block), address(found))
            assert np.array_equal(found[:-1], block.ravel()), dim
            assert found[-1] == 0xEE


def test_bias_of_some_rows(rng):
    """Sums over them stand for the inner product of their dimensions."""
    for dim in (7, 130, 1536):
        q = rng.standard_normal(dim).astype(np.float32)
        table, scale, bias = query_table(q)
        levels = rng.integers(0, 4, (32, dim))
        block = put_codes([reference.planes_of_levels(row) for row in levels], dim)
        values = reference.LEVEL_VALUES[levels]
        third = len(block) // 3
        for first, end in ((0, 1), (0, third + 1), (third, len(block)), (0, len(block))):
            sums = reference.block_sums(table[first:end], block[first:end])
            found = corelib.load().bq_lut_bias(address(q), dim, first, end, scale) - scale * sums
            part = slice(2 * first, 2 * end)
            error = scale * (end - first) / 2 + 1e-3
            assert np.allclose(found, values[:, part] @ q[part], atol=error)
        assert corelib.load().bq_lut_bias(address(q), dim, 0, len(block), scale) == bias


def test_hamming_table_equals_reference(rng):
    for dim in DIMS:
        (planes,) = random_codes(rng, dim, n=1)
        assert np.array_equal(hamming_table(planes, dim), reference.hamming_table(planes, dim))


@pytest.mark.parametrize("name", corelib.available_kernels())
def test_hamming_by_table_is_exact(name, rng):
    for dim in DIMS:
        query, *codes = random_codes(rng, dim, n=33)
        table, block = hamming_table(query, dim), put_codes(codes, dim)
        out = np.zeros(32, np.uint16)
        corelib.kernel(name).lut_block(address(table), address(block), len(table), address(out))
        assert out.tolist() == [reference.hamming(query, planes, dim) for planes in codes], dim


def test_hamming_by_table_at_its_maximum():
    """3 * 16000 fits 16 bits."""
    dim = 16000
    lowest, highest = reference.planes_of_levels(np.array([[0] * dim, [3] * dim]))
    table, block = hamming_table(lowest, dim), put_codes([highest] * 32, dim)
    assert (reference.block_sums(table, block) == 3 * dim).all()


def awkward_queries(dim, rng):
    one_hot = np.zeros(dim)
    one_hot[dim // 2] = -1
    gaussian = rng.standard_normal(dim)
    return {
        "gaussian": gaussian,
        "lognormal": rng.lognormal(0, 2, dim),
        "constant": np.ones(dim),
        "alternating": np.tile([1, -1], dim)[:dim],
        "one-hot": one_hot,
        "one-hot over constant": one_hot * dim + 1,
        "huge": gaussian / np.linalg.norm(gaussian) * 0.999 * reference.MAX_NORM,
        "huge constant": np.full(dim, 0.999 * reference.MAX_NORM / np.sqrt(dim)),
        "denormal": rng.integers(-9, 10, dim) * 1e-44,
    }


def test_query_table_is_within_its_error_bound(rng):
    """bias - scale * sum differs from the inner product by half a step a row at most."""
    for dim in DIMS:
        codes = random_codes(rng, dim)
        block = put_codes(codes, dim)
        values = np.array([reference.LEVEL_VALUES[reference.levels(p, dim)] for p in codes])
        for kind, query in awkward_queries(dim, rng).items():
            q = query.astype(np.float32)
            table, scale, bias = query_table(q)
            if bias == np.finfo(np.float32).max:
                assert kind.startswith("huge") and dim == 16000
                continue
            estimate = bias - scale * reference.block_sums(table, block)
            exact = values @ q.astype(np.float64)
            # the scale of a denormal query has few bits itself
            rounding = 1e-6 * np.abs(q.astype(np.float64)).sum() + 1e-45 * UINT16_MAX
            assert np.abs(estimate - exact).max() <= scale * len(table) / 2 + rounding, (dim, kind)


@pytest.mark.parametrize("value", [1.0, 0.37, 0.01])
def test_errors_of_rows_cancel_where_a_query_repeats_itself(value, rng):
    """As independent errors of +-1/2 do: within 6 standard deviations of sqrt(rows / 12)."""
    dim = 1536
    q = np.full(dim, value, np.float32)
    q[0] = 1
    codes = random_codes(rng, dim)
    table, scale, bias = query_table(q)
    values = np.array([reference.LEVEL_VALUES[reference.levels(p, dim)] for p in codes])
    estimate = bias - scale * reference.block_sums(table, put_codes(codes, dim))
    error = (estimate - values @ q.astype(np.float64)) / scale
    assert np.abs(error).max() < 6 * np.sqrt(len(table) / 12)


def test_query_table_steps_are_as_fine_as_possible(rng):
    """The widest row uses the whole of 8 bits, or the rows together the whole of 16."""
    for dim in (1, 2, 100, 384, 1536, 16000):
        for kind, query in awkward_queries(dim, rng).items():
            q = query.astype(np.float32)
            _, scale, _ = query_table(q)
            pairs = np.append(q, np.zeros(dim % 2)).astype(np.float64).reshape(-1, 2)
            widths = 2 * reference.STRONG * np.abs(pairs).sum(axis=1)
            step = max(widths.max() / 255, widths.sum() / (UINT16_MAX - len(widths)))
            assert scale == pytest.approx(step, rel=1e-6, abs=1e-45), (dim, kind)


def test_sums_never_overflow(rng):
    for dim in DIMS:
        for kind, query in awkward_queries(dim, rng).items():
            table, _, _ = query_table(query.astype(np.float32))
            assert table.max(axis=1).astype(int).sum() <= UINT16_MAX, (dim, kind)


def test_smaller_sum_is_nearer(rng):
    """The best code has sum 0, the worst the largest, and both are mirror images."""
    q = rng.standard_normal(100).astype(np.float32)
    best = reference.planes_of_levels(np.where(q > 0, 3, 0))
    worst = reference.planes_of_levels(np.where(q > 0, 0, 3))
    table, _, _ = query_table(q)
    sums = reference.block_sums(table, put_codes([best, worst], 100))[:2]
    assert sums[0] == 0
    assert sums[1] == table.max(axis=1).sum()


def test_zero_query():
    table, scale, bias = query_table(np.zeros(10, np.float32))
    assert not table.any()
    assert (scale, bias) == (0, 0)


def test_tables_are_the_same_on_every_kernel(rng):
    for dim in DIMS:
        q = rng.standard_normal(dim).astype(np.float32)
        found = set()
        for name in corelib.available_kernels():
            with corelib.use_kernel(name):
                table, scale, bias = query_table(q)
            found.add((table.tobytes(), scale, bias))
        assert len(found) == 1, dim
