/*
 * bqmoments.h: per-coordinate statistics of vectors and of their codes on the
 * original axes, mergeable and stable for billions of rows.
 */
#ifndef BQMOMENTS_H
#define BQMOMENTS_H

#include "bqencode.h"

/* Rows of the array `values`, dim doubles each. */
enum
{
	BQ_MOMENT_MEAN,				/* mean of x_j */
	BQ_MOMENT_M2,				/* sum of (x_j - mean)^2 */
	BQ_MOMENT_CODE_MEAN,		/* mean of f_j, the decoded code of x */
	BQ_MOMENT_CODE_M2,			/* sum of (f_j - mean)^2 */
	BQ_MOMENT_COMOMENT,			/* sum of (x_j - mean)(f_j - mean) */
	BQ_MOMENT_POSITIVE,			/* number of rows with x_j > 0 */
	BQ_MOMENTS
};

/*
 * Add a row: x is encoded on its original axes and decoded again, and both are counted.
 * `planes` and `decoded` are scratch.  Unless `scaled` is NULL, x is scaled to norm 1 first,
 * and is in there afterwards; the zero vector stays.  Returns as bq_encode(); on an error
 * nothing has been added.
 */
extern BqStatus bq_moments_add(int64_t *count, double *values, int dim, const float *x,
							   float *scaled, uint8_t *planes, float *decoded);

/* Add the moments of other rows. */
extern void bq_moments_merge(int64_t *count, double *values, int dim,
							 int64_t other_count, const double *other);

#endif							/* BQMOMENTS_H */
