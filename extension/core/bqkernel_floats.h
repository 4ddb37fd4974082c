/*
 * bqkernel_floats.h: scaling, flips and the Walsh-Hadamard transform, written once for all
 * registers.  A file of kernels includes it after it has defined
 *
 * - TARGET: attribute of its instruction set; INLINE: the same, always inlined
 * - Floats: a register of LANES floats, with which the compiler can calculate
 * - REGISTERS: how many of them a pass keeps, 8 or 16
 * - load_floats(x), store_floats(x, v), all_floats(f)
 * - HAVE_MASKS, load_first(x, n), store_first(x, v, n): the first n (1 to LANES - 1) of a
 *   register, where there are instructions for that
 * - transform_register(v): the transform's steps inside a register
 * - Flips, start_flips(flips, first), flip_register(v, flips, i): v, flipped by the bits from i
 *   on, a multiple of LANES
 *
 * and takes scale_floats, flip_floats, hadamard_floats and mix_floats into its BqKernel.
 */

#ifndef HAVE_MASKS
INLINE Floats
load_first(const float *x, int n)
{
	float		lanes[LANES] = {0};

	memcpy(lanes, x, (size_t) n * sizeof(float));
	return load_floats(lanes);
}

INLINE void
store_first(float *x, Floats v, int n)
{
	float		lanes[LANES];

	store_floats(lanes, v);
	memcpy(x, lanes, (size_t) n * sizeof(float));
}
#endif

static TARGET void
scale_floats(float *y, const float *x, int n, float factor)
{
	Floats		f = all_floats(factor);
	int			i = 0;

	for (; i + LANES <= n; i += LANES)
		store_floats(y + i, load_floats(x + i) * f);
	if (i < n)
		store_first(y + i, load_first(x + i, n - i) * f, n - i);
}

static TARGET void
flip_floats(float *y, const float *x, int n, const uint64_t *flips, int first)
{
	Flips		f = start_flips(flips, (unsigned) first);
	int			i = 0;

	for (; i + LANES <= n; i += LANES)
		store_floats(y + i, flip_register(load_floats(x + i), f, (size_t) i));
	if (i < n)
		store_first(y + i, flip_register(load_first(x + i, n - i), f, (size_t) i), n - i);
}

static TARGET void
mix_floats(float *a, float *b, int n)
{
	Floats		sqrt_half = all_floats(BQ_SQRT_HALF);
	int			i = 0;

	for (; i + LANES <= n; i += LANES)
	{
		Floats		u = load_floats(a + i);
		Floats		v = load_floats(b + i);

		store_floats(a + i, (u + v) * sqrt_half);
		store_floats(b + i, (u - v) * sqrt_half);
	}
	if (i < n)
	{
		Floats		u = load_first(a + i, n - i);
		Floats		v = load_first(b + i, n - i);

		store_first(a + i, (u + v) * sqrt_half, n - i);
		store_first(b + i, (u - v) * sqrt_half, n - i);
	}
}

/* Steps between registers, r[k] and r[k + step]; `count` must be a constant. */
INLINE void
transform_across(Floats r[REGISTERS], const int count)
{
	BQ_UNROLL
	for (int step = 1; step < count; step *= 2)
	{
		BQ_UNROLL
		for (int k = 0; k < count; k++)
		{
			if ((k & step) == 0)
			{
				Floats		a = r[k];
				Floats		b = r[k + step];

				r[k] = a + b;
				r[k + step] = a - b;
			}
		}
	}
}

/* All steps of LANES * count elements, kept in registers. */
INLINE void
transform_block(float *y, const float *x, const int count, const uint64_t *flips,
				unsigned first, float factor)
{
	Floats		f = all_floats(factor);
	Floats		r[REGISTERS];

	BQ_UNROLL
	for (int k = 0; k < count; k++)
		r[k] = load_floats(x + LANES * k);
	if (flips != NULL)
	{
		Flips		start = start_flips(flips, first);

		BQ_UNROLL
		for (int k = 0; k < count; k++)
			r[k] = flip_register(r[k], start, (size_t) (LANES * k));
	}
	BQ_UNROLL
	for (int k = 0; k < count; k++)
		r[k] = transform_register(r[k]);
	transform_across(r, count);
	if (factor != 1)
	{
		BQ_UNROLL
		for (int k = 0; k < count; k++)
			r[k] = r[k] * f;
	}
	BQ_UNROLL
	for (int k = 0; k < count; k++)
		store_floats(y + LANES * k, r[k]);
}

/* Not inlined: with one body per function the compiler finds registers for all of r. */
static TARGET __attribute__((noinline)) void
transform_one(float *y, const float *x, const uint64_t *flips, unsigned first, float factor)
{
	transform_block(y, x, 1, flips, first, factor);
}

static TARGET __attribute__((noinline)) void
transform_all(float *y, const float *x, const uint64_t *flips, unsigned first, float factor)
{
	transform_block(y, x, REGISTERS, flips, first, factor);
}

/* The steps h, 2h, ... below h * count, in one pass over memory. */
INLINE void
transform_pass(float *x, int n, int h, const int count, float factor)
{
	Floats		f = all_floats(factor);

	for (int i = 0; i < n; i += count * h)
	{
		for (int j = i; j < i + h; j += LANES)
		{
			Floats		r[REGISTERS];

			BQ_UNROLL
			for (int k = 0; k < count; k++)
				r[k] = load_floats(x + j + k * h);
			transform_across(r, count);
			BQ_UNROLL
			for (int k = 0; k < count; k++)
				store_floats(x + j + k * h, r[k] * f);
		}
	}
}

/* Only the last pass takes the factor: the others have 1, a product with which is exact. */
static TARGET void
hadamard_floats(float *y, const float *x, int n, const uint64_t *flips, int first, float factor)
{
	int			h = n < LANES * REGISTERS ? LANES : LANES * REGISTERS;

	if (n < LANES)
	{
		bq_kernel_portable.hadamard(y, x, n, flips, first, factor);
		return;
	}
	for (int i = 0; i < n; i += h)
	{
		if (h == LANES)
			transform_one(y + i, x + i, flips, (unsigned) (first + i), n == h ? factor : 1);
		else
			transform_all(y + i, x + i, flips, (unsigned) (first + i), n == h ? factor : 1);
	}
	while (h < n)
	{
		/* three steps in one pass if a multiple of three remains, else two, else one */
		int			left = __builtin_ctz((unsigned) (n / h));
		int			steps = left % 3 == 0 ? 3 : left == 1 ? 1 : 2;
		float		f = steps == left ? factor : 1;

		if (steps == 3)
			transform_pass(y, n, h, 8, f);
		else if (steps == 2)
			transform_pass(y, n, h, 4, f);
		else
			transform_pass(y, n, h, 2, f);
		h <<= steps;
	}
}
