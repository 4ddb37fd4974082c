/* bqlut.c: queries and codes -> lookup tables; codes -> packed blocks. */
#include <math.h>

#include "bqlut.h"

/* The two bits at dimensions 2j and 2j + 1 of a plane (bit 2j + 1 is padding if dim is odd). */
static inline int
bit_pair(const uint8_t *plane, int j)
{
	return (plane[j / 4] >> (j % 4 * 2)) & 3;
}

void
bq_block_put(uint8_t *block, int dim, int c, const uint8_t *planes)
{
	const uint8_t *magnitude = planes + bq_plane_nbytes(dim);
	int			nrows = bq_block_nrows(dim);
	int			shift = c < 16 ? 0 : 4;

	for (int j = 0; j < nrows; j++)
	{
		int			nibble = bit_pair(planes, j) | bit_pair(magnitude, j) << 2;

		block[16 * j + c % 16] |= (uint8_t) (nibble << shift);
	}
}

void
bq_block_get(const uint8_t *block, int dim, int c, uint8_t *planes)
{
	uint8_t    *magnitude = planes + bq_plane_nbytes(dim);
	int			nrows = bq_block_nrows(dim);
	int			shift = c < 16 ? 0 : 4;

	memset(planes, 0, bq_planes_nbytes(dim));
	for (int j = 0; j < nrows; j++)
	{
		int			nibble = (block[16 * j + c % 16] >> shift) & 15;

		planes[j / 4] |= (uint8_t) ((nibble & 3) << (j % 4 * 2));
		magnitude[j / 4] |= (uint8_t) ((nibble >> 2) << (j % 4 * 2));
	}
}

/* Value of a nibble's first (0) or second (1) dimension. */
static inline double
nibble_value(int nibble, int which)
{
	return bq_level_value(bq_level((nibble >> which) & 1, (nibble >> (2 + which)) & 1));
}

void
bq_lut_query(const float *q, int dim, uint8_t *table, float *scale, float *bias)
{
	int			nrows = bq_block_nrows(dim);
	double		widest = 0;
	double		total = 0;
	double		step;

	/* Row j spans +-BQ_STRONG * (|q[2j]| + |q[2j + 1]|). */
	for (int j = 0; j < nrows; j++)
	{
		double		width = 2 * BQ_STRONG *
			(fabs((double) q[2 * j]) + (2 * j + 1 < dim ? fabs((double) q[2 * j + 1]) : 0));

		total += width;
		if (width > widest)
			widest = width;
	}

	/* One entry must fit 8 bits, and any sum of entries, each rounded, 16. */
	step = fmax(widest / UINT8_MAX, total / (UINT16_MAX - nrows));
	if (step == 0)
	{
		memset(table, 0, bq_block_nbytes(dim));
		*scale = 0;
		*bias = 0;
		return;
	}
	for (int j = 0; j < nrows; j++)
	{
		double		a = q[2 * j];
		double		b = 2 * j + 1 < dim ? q[2 * j + 1] : 0;
		double		top = BQ_STRONG * (fabs(a) + fabs(b));

		for (int nibble = 0; nibble < 16; nibble++)
		{
			double		value = a * nibble_value(nibble, 0) + b * nibble_value(nibble, 1);

			table[16 * j + nibble] = (uint8_t) ((top - value) / step + 0.5);
		}
	}
	*scale = (float) step;
	*bias = (float) (total / 2);
}

void
bq_lut_hamming(const uint8_t *planes, int dim, uint8_t *table)
{
	int			nrows = bq_block_nrows(dim);

	for (int j = 0; j < nrows; j++)
	{
		for (int nibble = 0; nibble < 16; nibble++)
		{
			int			sum = 0;

			for (int which = 0; which < 2 && 2 * j + which < dim; which++)
			{
				int			level = bq_level((nibble >> which) & 1, (nibble >> (2 + which)) & 1);
				int			difference = level - bq_get_level(planes, dim, 2 * j + which);

				sum += difference < 0 ? -difference : difference;
			}
			table[16 * j + nibble] = (uint8_t) sum;
		}
	}
}
