/*
 * bqmoments.h: per-coordinate statistics of vectors and of their codes on the
 * original axes, mergeable and stable for billions of rows.
 */
#ifndef BQMOMENTS_H
#define BQMOMENTS_H

#include <stddef.h>
#include <stdint.h>

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

/* Add one row: x and its decoded code f, dim floats each. */
extern void bq_moments_add(int64_t *count, double *values, int dim, const float *x, const float *f);

/* Add the moments of other rows. */
extern void bq_moments_merge(int64_t *count, double *values, int dim,
							 int64_t other_count, const double *other);

#endif							/* BQMOMENTS_H */
