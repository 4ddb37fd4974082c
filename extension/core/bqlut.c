/* bqlut.c: queries and codes -> lookup tables; codes -> packed blocks. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bqlut.h"

/* Pairs of bits 2k, 2k + 1 of a byte brought to the low ends of four bytes k. */
static inline uint32_t
spread_pairs(uint32_t bits)
{
	return (bits & 0x03) | (bits & 0x0c) << 6 | (bits & 0x30) << 12 | (bits & 0xc0) << 18;
}

/* The other way: bits 0 and 1 of four bytes side by side in one. */
static inline uint8_t
join_pairs(uint32_t pairs)
{
	pairs &= UINT32_C(0x03030303);
	return (uint8_t) (pairs | pairs >> 6 | pairs >> 12 | pairs >> 18);
}

/* Row j of two planes: the nibble of dimensions 2j and 2j + 1. */
static inline uint8_t
nibble_at(const uint8_t *planes, const uint8_t *magnitude, int j)
{
	int			shift = j % 4 * 2;

	return (uint8_t) (((planes[j / 4] >> shift) & 3) | ((magnitude[j / 4] >> shift) & 3) << 2);
}

/* A byte of each plane covers four rows: go by those where rows `first` to `end` allow. */
void
bq_block_put_rows(uint8_t *rows, int first, int end, int dim, int c, const uint8_t *planes)
{
	const uint8_t *magnitude = planes + bq_plane_nbytes(dim);
	int			shift = c < 16 ? 0 : 4;
	uint8_t		keep = (uint8_t) (0xf0 >> shift);
	uint8_t    *byte = rows + c % 16;

	for (int j = first; j < end;)
	{
		if (j % 4 == 0 && j + 4 <= end)
		{
			uint32_t	nibbles = spread_pairs(planes[j / 4]) | spread_pairs(magnitude[j / 4]) << 2;

			for (int k = 0; k < 4; k++, byte += 16)
				*byte = (uint8_t) ((*byte & keep) | ((nibbles >> (8 * k)) & 15) << shift);
			j += 4;
		}
		else
		{
			*byte = (uint8_t) ((*byte & keep) | nibble_at(planes, magnitude, j) << shift);
			byte += 16;
			j++;
		}
	}
}

void
bq_block_get_rows(const uint8_t *rows, int first, int end, int dim, int c, uint8_t *planes)
{
	uint8_t    *magnitude = planes + bq_plane_nbytes(dim);
	int			shift = c < 16 ? 0 : 4;
	const uint8_t *byte = rows + c % 16;

	for (int j = first; j < end;)
	{
		if (j % 4 == 0 && j + 4 <= end)
		{
			uint32_t	nibbles = (byte[0] | (uint32_t) byte[16] << 8 | (uint32_t) byte[32] << 16 |
								   (uint32_t) byte[48] << 24) >> shift;

			planes[j / 4] = join_pairs(nibbles);
			magnitude[j / 4] = join_pairs(nibbles >> 2);
			byte += 64;
			j += 4;
		}
		else
		{
			int			nibble = *byte >> shift;

			planes[j / 4] |= (uint8_t) ((nibble & 3) << (j % 4 * 2));
			magnitude[j / 4] |= (uint8_t) (((nibble >> 2) & 3) << (j % 4 * 2));
			byte += 16;
			j++;
		}
	}
}

void
bq_block_put(uint8_t *block, int dim, int c, const uint8_t *planes)
{
	bq_block_put_rows(block, 0, bq_block_nrows(dim), dim, c, planes);
}

void
bq_block_get(const uint8_t *block, int dim, int c, uint8_t *planes)
{
	memset(planes, 0, bq_planes_nbytes(dim));
	bq_block_get_rows(block, 0, bq_block_nrows(dim), dim, c, planes);
}

static inline uint8_t
get_nibble(const uint8_t *bytes, int n)
{
	return (uint8_t) (bytes[n / 2] >> (n % 2 * 4) & 15);
}

static inline void
set_nibble(uint8_t *bytes, int n, uint8_t nibble)
{
	int			shift = n % 2 * 4;

	bytes[n / 2] = (uint8_t) ((bytes[n / 2] & 0xf0 >> shift) | nibble << shift);
}

void
bq_stage(const uint8_t *rows, int nrows, uint8_t *staged)
{
	for (int c = 0; c < BQ_BLOCK; c++)
		for (int j = 0; j < nrows; j++)
			set_nibble(staged, c * nrows + j,
					   (uint8_t) (rows[16 * j + c % 16] >> (c < 16 ? 0 : 4) & 15));
}

/* Four rows are a byte of each plane, and two of the run. */
void
bq_stage_put(uint8_t *run, int half, int first, int end, int dim, const uint8_t *planes)
{
	const uint8_t *magnitude = planes + bq_plane_nbytes(dim);
	int			j = first;

	for (; half == 0 && j + 4 <= end; j += 4)
	{
		uint32_t	nibbles = spread_pairs(planes[j / 4]) | spread_pairs(magnitude[j / 4]) << 2;
		uint8_t    *bytes = run + (j - first) / 2;

		bytes[0] = (uint8_t) (nibbles | nibbles >> 4);
		bytes[1] = (uint8_t) (nibbles >> 16 | nibbles >> 20);
	}
	for (; j < end; j++)
		set_nibble(run, half + j - first, nibble_at(planes, magnitude, j));
}

void
bq_stage_get(const uint8_t *run, int half, int first, int end, int dim, uint8_t *planes)
{
	uint8_t    *magnitude = planes + bq_plane_nbytes(dim);
	int			j = first;

	for (; half == 0 && j + 4 <= end; j += 4)
	{
		const uint8_t *bytes = run + (j - first) / 2;
		uint32_t	nibbles = bytes[0] | (uint32_t) bytes[0] << 4 | (uint32_t) bytes[1] << 16 |
			(uint32_t) bytes[1] << 20;

		planes[j / 4] = join_pairs(nibbles);
		magnitude[j / 4] = join_pairs(nibbles >> 2);
	}
	for (; j < end; j++)
	{
		int			nibble = get_nibble(run, half + j - first);

		planes[j / 4] |= (uint8_t) ((nibble & 3) << (j % 4 * 2));
		magnitude[j / 4] |= (uint8_t) (((nibble >> 2) & 3) << (j % 4 * 2));
	}
}

/* Level of a nibble's first (0) or second (1) dimension. */
static inline int
nibble_level(int nibble, int which)
{
	return bq_level((nibble >> which) & 1, (nibble >> (2 + which)) & 1);
}

/* The largest |q[2j]| + |q[2j + 1]|. */
static float
widest_pair(const float *q, int dim)
{
	float		widest[4] = {0};	/* four chains: one would wait for its own latency */
	int			i = 0;

	for (; i + 8 <= dim; i += 8)
	{
		for (int k = 0; k < 4; k++)
		{
			float		width = fabsf(q[i + 2 * k]) + fabsf(q[i + 2 * k + 1]);

			widest[k] = width > widest[k] ? width : widest[k];
		}
	}
	for (; i < dim; i += 2)
		widest[0] = fmaxf(widest[0], fabsf(q[i]) + (i + 1 < dim ? fabsf(q[i + 1]) : 0));
	return fmaxf(fmaxf(widest[0], widest[1]), fmaxf(widest[2], widest[3]));
}

/*
 * A row's entries are rounded down after adding this, the same for every query; between
 * 0 and 1, but for room that errors of float arithmetic need.  (A hash of 32 bits to 10.)
 *
 * Adding 1/2 everywhere would round as well, but would make the same error in every row
 * where a query repeats the same values: the errors of a sum would add up instead of
 * cancelling.  This way they are independent whatever the query is (subtractive dither;
 * Schuchman, "Dither signals and their effect on quantization noise", IEEE Trans. Commun.
 * Technol. 12, 1964).
 */
static inline float
dither(int j)
{
	uint32_t	hash = (uint32_t) j * UINT32_C(0x9E3779B1);

	hash = (hash ^ hash >> 15) * UINT32_C(0x85EBCA77);
	return ((float) (hash >> 22) + 0.5f) / 1024;
}

/* The bias of rows whose largest shares add up to `total`, and what was added to them. */
static inline float
make_bias(double total, double step, float added, int nrows)
{
	return (float) fmin(total + step * (added - 0.5 * nrows), FLT_MAX);
}

float
bq_lut_bias(const float *q, int dim, int first, int end, float scale)
{
	int			last = 2 * end < dim ? 2 * end : dim;
	float		added = 0;

	for (int j = first; j < end; j++)
		added += dither(j);
	return make_bias(BQ_STRONG * bq_kernel->sum_absolute(q + 2 * first, last - 2 * first), scale,
					 added, end - first);
}

/*
 * An entry is (top - value) / step, rounded, where value is the nibble's share of
 * the inner product and top the largest share in its row.  The loop over nibbles
 * makes one word of four entries at a time, which compilers turn into vectors.
 */
void
bq_lut_query(const float *q, int dim, uint8_t *table, float *scale, float *bias)
{
	int			nrows = bq_block_nrows(dim);
	double		total = BQ_STRONG * bq_kernel->sum_absolute(q, dim);
	double		widest = BQ_STRONG * widest_pair(q, dim);
	double		inverse;
	double		step;
	float		added = 0;
	float		value[2][4][4];	/* of nibble 4k + r at [r][k], by the row's dimension */

	/* One entry must fit 8 bits, and any sum of entries, each rounded, 16. */
	step = fmax(2 * widest / UINT8_MAX, 2 * total / (UINT16_MAX - nrows));
	*scale = (float) step;
	if (step == 0)
	{
		*bias = 0;
		memset(table, 0, bq_block_nbytes(dim));
		return;
	}

	for (int nibble = 0; nibble < 16; nibble++)
		for (int which = 0; which < 2; which++)
			value[which][nibble % 4][nibble / 4] =
				(float) bq_level_value(nibble_level(nibble, which));
	inverse = 1 / step;
	for (int j = 0; j < nrows; j++)
	{
		/* the products are small, whatever the size of q */
		float		a = (float) (q[2 * j] * inverse);
		float		b = 2 * j + 1 < dim ? (float) (q[2 * j + 1] * inverse) : 0;
		float		added_here = dither(j);
		float		top = (fabsf(a) + fabsf(b)) * (float) BQ_STRONG + added_here;
		uint32_t	words[4];

#define ENTRY(r) ((uint32_t) (int) (top - (a * value[0][r][k] + b * value[1][r][k])))
		for (int k = 0; k < 4; k++)
			words[k] = ENTRY(0) | ENTRY(1) << 8 | ENTRY(2) << 16 | ENTRY(3) << 24;
#undef ENTRY
		memcpy(table + 16 * j, words, 16);
		added += added_here;
	}
	*bias = make_bias(total, step, added, nrows);
}

/* Eight entries of at most 6 in a word: they add up without a carry. */
void
bq_lut_hamming(const uint8_t *planes, int dim, uint8_t *table)
{
	const uint8_t *magnitude = planes + bq_plane_nbytes(dim);
	int			nrows = bq_block_nrows(dim);
	uint64_t	entries[2][4][2];	/* of the row's dimension, by its level in the code */

	for (int which = 0; which < 2; which++)
	{
		for (int level = 0; level < BQ_LEVELS; level++)
		{
			uint8_t		row[16];

			for (int nibble = 0; nibble < 16; nibble++)
				row[nibble] = (uint8_t) abs(level - nibble_level(nibble, which));
			memcpy(entries[which][level], row, 16);
		}
	}
	for (int j = 0; j < nrows; j++)
	{
		int			s = planes[j / 4] >> (j % 4 * 2);
		int			m = magnitude[j / 4] >> (j % 4 * 2);
		const uint64_t *first = entries[0][bq_level(s & 1, m & 1)];
		const uint64_t *second = entries[1][bq_level((s >> 1) & 1, (m >> 1) & 1)];
		uint64_t	row[2] = {first[0], first[1]};

		/* beyond an odd dim there is only padding, which counts nothing */
		if (2 * j + 1 < dim)
		{
			row[0] += second[0];
			row[1] += second[1];
		}
		memcpy(table + 16 * j, row, 16);
	}
}
