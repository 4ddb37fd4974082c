/* bqkernel_portable.c: the kernels in plain C: the truth for all others. */
#include <math.h>

#include "bqkernel.h"

static inline uint64_t
load_word(const uint8_t *p, size_t nbytes)
{
	uint64_t	word = 0;

	memcpy(&word, p, nbytes < 8 ? nbytes : 8);
	return word;
}

/* Bits set in a word, without asking for a popcount instruction. */
static inline uint32_t
count_bits(uint64_t x)
{
	x = x - ((x >> 1) & UINT64_C(0x5555555555555555));
	x = (x & UINT64_C(0x3333333333333333)) + ((x >> 2) & UINT64_C(0x3333333333333333));
	x = (x + (x >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
	return (uint32_t) ((x * UINT64_C(0x0101010101010101)) >> 56);
}

/*
 * The sum of level differences.  In binary, a difference of 0 to 3 has the low bit
 * sa ^ ma ^ sb ^ mb (level & 1 is ~(s ^ m), see bqcode.h) and the high bit
 * (sa ^ sb) & (ma | mb): signs differ, and not both are weak.
 */
static uint32_t
bq_hamming_portable(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	uint32_t	distance = 0;

	for (size_t i = 0; i < nbytes; i += 8)
	{
		uint64_t	differ = load_word(a + i, nbytes - i) ^ load_word(b + i, nbytes - i);
		uint64_t	ma = load_word(a + nbytes + i, nbytes - i);
		uint64_t	mb = load_word(b + nbytes + i, nbytes - i);

		distance += count_bits(differ ^ ma ^ mb) + 2 * count_bits(differ & (ma | mb));
	}
	return distance;
}

static uint32_t
bq_hamming_sign_portable(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	uint32_t	distance = 0;

	for (size_t i = 0; i < nbytes; i += 8)
		distance += count_bits(load_word(a + i, nbytes - i) ^ load_word(b + i, nbytes - i));
	return distance;
}

static uint32_t
bq_hamming_quiver_portable(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	uint32_t	distance = 0;

	for (size_t i = 0; i < nbytes; i += 8)
	{
		uint64_t	differ = load_word(a + i, nbytes - i) ^ load_word(b + i, nbytes - i);
		uint64_t	ma = load_word(a + nbytes + i, nbytes - i);
		uint64_t	mb = load_word(b + nbytes + i, nbytes - i);

		/* (1 + m)(1 + m') = 1 + m + m' + m m' */
		distance += count_bits(differ) + count_bits(differ & ma) +
			count_bits(differ & mb) + count_bits(differ & ma & mb);
	}
	return distance;
}

static uint32_t
bq_popcount_portable(const uint8_t *a, size_t nbytes)
{
	uint32_t	count = 0;

	for (size_t i = 0; i < nbytes; i += 8)
		count += count_bits(load_word(a + i, nbytes - i));
	return count;
}

static void
bq_dot_portable(const float *q, const uint8_t *planes, int dim, float *all, float *strong)
{
	/* exact products instead of branches that no CPU can predict */
	static const float sign[2] = {-1, 1};
	static const float weight[2] = {0, 1};
	const uint8_t *magnitude = planes + bq_plane_nbytes(dim);
	float		lanes[2][BQ_LANES] = {{0}};

	for (int i = 0; i < dim; i++)
	{
		float		term = q[i] * sign[(planes[i / 8] >> (i % 8)) & 1];

		lanes[0][i % BQ_LANES] += term;
		lanes[1][i % BQ_LANES] += term * weight[(magnitude[i / 8] >> (i % 8)) & 1];
	}
	for (int width = BQ_LANES / 2; width > 0; width /= 2)
	{
		for (int l = 0; l < width; l++)
		{
			lanes[0][l] += lanes[0][l + width];
			lanes[1][l] += lanes[1][l + width];
		}
	}
	*all = lanes[0][0];
	*strong = lanes[1][0];
}

static double
add_lanes(double lanes[BQ_LANES])
{
	for (int width = BQ_LANES / 2; width > 0; width /= 2)
		for (int l = 0; l < width; l++)
			lanes[l] += lanes[l + width];
	return lanes[0];
}

static double
bq_sum_squares_portable(const float *x, int dim)
{
	double		lanes[BQ_LANES] = {0};

	/* A product of two floats is exact in double: fused or not, the same sum. */
	for (int i = 0; i < dim; i++)
		lanes[i % BQ_LANES] += (double) x[i] * (double) x[i];
	return add_lanes(lanes);
}

static double
bq_sum_absolute_portable(const float *x, int dim)
{
	double		lanes[BQ_LANES] = {0};

	for (int i = 0; i < dim; i++)
		lanes[i % BQ_LANES] += fabs((double) x[i]);
	return add_lanes(lanes);
}

static void
bq_pack_portable(const float *x, int dim, float threshold, uint8_t *planes)
{
	size_t		nbytes = bq_plane_nbytes(dim);

	memset(planes, 0, 2 * nbytes);
	for (int i = 0; i < dim; i++)
	{
		planes[i / 8] |= (uint8_t) ((x[i] > 0) << (i % 8));
		planes[nbytes + i / 8] |= (uint8_t) ((fabsf(x[i]) > threshold) << (i % 8));
	}
}

static void
bq_unpack_portable(const uint8_t *planes, int dim, float weak, float strong, float *x)
{
	const uint8_t *magnitude = planes + bq_plane_nbytes(dim);
	const float value[4] = {-weak, weak, -strong, strong};

	for (int i = 0; i < dim; i++)
	{
		int			s = (planes[i / 8] >> (i % 8)) & 1;
		int			m = (magnitude[i / 8] >> (i % 8)) & 1;

		x[i] = value[s + 2 * m];
	}
}

static void
bq_scale_portable(float *y, const float *x, int n, float factor)
{
	for (int i = 0; i < n; i++)
		y[i] = x[i] * factor;
}

static void
bq_flip_portable(float *y, const float *x, int n, const uint64_t *flips, int first)
{
	for (int i = 0; i < n; i++)
		y[i] = (flips[(first + i) / 64] >> ((first + i) % 64)) & 1 ? -x[i] : x[i];
}

static void
bq_hadamard_portable(float *y, const float *x, int n, const uint64_t *flips, int first,
					 float factor)
{
	if (flips != NULL)
		bq_flip_portable(y, x, n, flips, first);
	else
		memmove(y, x, (size_t) n * sizeof(float));
	for (int h = 1; h < n; h *= 2)
	{
		for (int i = 0; i < n; i += 2 * h)
		{
			for (int j = i; j < i + h; j++)
			{
				float		a = y[j];
				float		b = y[j + h];

				y[j] = a + b;
				y[j + h] = a - b;
			}
		}
	}
	bq_scale_portable(y, y, n, factor);
}

static void
bq_mix_portable(float *a, float *b, int n)
{
	for (int i = 0; i < n; i++)
	{
		float		sum = a[i] + b[i];
		float		difference = a[i] - b[i];

		a[i] = sum * BQ_SQRT_HALF;
		b[i] = difference * BQ_SQRT_HALF;
	}
}

static void
bq_lut_block_portable(const uint8_t *table, const uint8_t *block, int nrows, uint16_t out[BQ_BLOCK])
{
	memset(out, 0, BQ_BLOCK * sizeof(uint16_t));
	for (int j = 0; j < nrows; j++)
	{
		for (int b = 0; b < 16; b++)
		{
			out[b] += table[16 * j + (block[16 * j + b] & 15)];
			out[b + 16] += table[16 * j + (block[16 * j + b] >> 4)];
		}
	}
}

void
bq_scale_sums_portable(const uint16_t sums[BQ_BLOCK], float scale, float bias,
					   const uint16_t factor[BQ_BLOCK], float out[BQ_BLOCK])
{
	for (int c = 0; c < BQ_BLOCK; c++)
		out[c] = (scale * sums[c] - bias) * factor[c];
}

uint32_t
bq_find_sums_portable(const uint16_t sums[BQ_BLOCK], float scale, float bias,
					  const uint16_t factor[BQ_BLOCK], float limit)
{
	uint32_t	found = 0;

	for (int c = 0; c < BQ_BLOCK; c++)
		found |= (uint32_t) ((scale * sums[c] - bias) * factor[c] <= limit) << c;
	return found;
}

static inline uint8_t
nibble_of(const uint8_t *staged, int n)
{
	return (uint8_t) (staged[n / 2] >> (n % 2 * 4) & 15);
}

static void
bq_unstage_portable(const uint8_t *staged, int nrows, uint8_t *rows)
{
	for (int j = 0; j < nrows; j++)
		for (int b = 0; b < 16; b++)
			rows[16 * j + b] = (uint8_t) (nibble_of(staged, b * nrows + j) |
										  nibble_of(staged, (b + 16) * nrows + j) << 4);
}

const BqKernel bq_kernel_portable = {
	.name = "portable",
	.hamming = bq_hamming_portable,
	.hamming_sign = bq_hamming_sign_portable,
	.hamming_quiver = bq_hamming_quiver_portable,
	.popcount = bq_popcount_portable,
	.dot = bq_dot_portable,
	.sum_squares = bq_sum_squares_portable,
	.sum_absolute = bq_sum_absolute_portable,
	.pack = bq_pack_portable,
	.unpack = bq_unpack_portable,
	.scale = bq_scale_portable,
	.flip = bq_flip_portable,
	.hadamard = bq_hadamard_portable,
	.mix = bq_mix_portable,
	.lut_block = bq_lut_block_portable,
	.scale_sums = bq_scale_sums_portable,
	.find_sums = bq_find_sums_portable,
	.unstage = bq_unstage_portable,
};
