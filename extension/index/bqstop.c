/*
 * bqstop.c: when to leave a block half read.
 *
 * Reading codes is what most of a query's time goes to, and the first dimensions of a block
 * mostly say enough: that none of its rows will be among the candidates.  With q the query,
 * S its inner product with the levels of the first dimensions and w the share that these have
 * of |q|^2, S / w estimates the whole product.  Its error, for rows of all directions, has
 * the variance (1 - w) / w * |q|^2 (ADSampling, arXiv 2303.09855, goes by the same idea); that
 * is true after a rotation, and about so on the axes.  How many standard deviations are safe
 * is measured with the table's own rows (bqmeasure.c).
 *
 * What is safe for the nearest ten rows is not for the fiftieth, which is hardly nearer than
 * the last candidate.  So blocks that were passed over by a narrow margin are kept in mind and
 * read if a query wants more than ten rows.
 */
#include "postgres.h"

#include <math.h>

#include "index/bqscan.h"

/* Smaller blocks are read to their end as quickly as they are looked at. */
#define LEAST_ROWS 256

/* Rows of a block before its first stop. */
#define FIRST_STOP 64

/* From one stop to the next: so many rows, or this part of those so far, and at the end. */
#define STEP_ROWS 64
#define STEP_PART 2
#define LAST_ROWS 32

/* What a smaller share of the query says is not worth a look. */
#define LEAST_SHARE 0.02

/* The stops for a query and its table; returns their number. */
int
bq_make_stops(const float *q, int dim, const BqTable *table, BqStop *stops)
{
	int			nrows = bq_block_nrows(dim);
	double		total = bq_kernel->sum_squares(q, dim);
	double		sum = 0;
	double		bias = 0;
	int			done = 0;
	int			n = 0;

	if (total == 0 || nrows < LEAST_ROWS)
		return 0;
	for (int row = FIRST_STOP; row <= nrows - LAST_ROWS && n < BQ_MAX_STOPS;
		 row += Max(STEP_ROWS, row / STEP_PART / STEP_ROWS * STEP_ROWS))
	{
		double		share;

		sum += bq_kernel->sum_squares(q + 2 * done, 2 * (row - done));
		bias += bq_lut_bias(q, dim, done, row, table->scale);
		done = row;
		share = Min(sum / total, 1);
		if (share < LEAST_SHARE)
			continue;
		stops[n].nrows = row;
		stops[n].scale = (float) (table->scale / share);
		stops[n].bias = (float) (bias / share);
		stops[n].deviation = (float) sqrt((1 - share) / share * total);
		n++;
	}
	return n;
}
