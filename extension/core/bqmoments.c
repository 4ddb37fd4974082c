/* bqmoments.c: per-coordinate statistics, by Welford's update and Chan's merge. */
#include "bqkernel.h"
#include "bqmoments.h"

#include <string.h>

/*
 * 1 if x > 0, else 0, from its bits.  For a comparison compilers make a branch, which is
 * mispredicted for every other coordinate: bq_moments_add() then takes three times as long.
 */
static inline int32_t
is_positive(float x)
{
	uint32_t	bits;

	memcpy(&bits, &x, sizeof(bits));
	return (int32_t) ((~bits & (0 - bits)) >> 31);
}

/* The arrays do not overlap: too many to check at run time, so compilers would give up. */
#ifdef __clang__
#define VECTORIZE _Pragma("clang loop vectorize(assume_safety)")
#else
#define VECTORIZE _Pragma("GCC ivdep")
#endif

/* In float32, as in SQL; not times 1 / norm, which is infinite for the smallest norms. */
static inline __attribute__((always_inline)) void
divide(float *x, int dim, float norm)
{
	VECTORIZE
	for (int j = 0; j < dim; j++)
		x[j] /= norm;
}

/* Add a row and its decoded code f. */
static inline __attribute__((always_inline)) void
add(double weight, double *values, int dim, const float *x, const float *f)
{
	double	   *mean = values + (size_t) BQ_MOMENT_MEAN * dim;
	double	   *m2 = values + (size_t) BQ_MOMENT_M2 * dim;
	double	   *code_mean = values + (size_t) BQ_MOMENT_CODE_MEAN * dim;
	double	   *code_m2 = values + (size_t) BQ_MOMENT_CODE_M2 * dim;
	double	   *comoment = values + (size_t) BQ_MOMENT_COMOMENT * dim;
	double	   *positive = values + (size_t) BQ_MOMENT_POSITIVE * dim;

	VECTORIZE
	for (int j = 0; j < dim; j++)
	{
		double		dx = x[j] - mean[j];
		double		df = f[j] - code_mean[j];

		mean[j] += dx * weight;
		code_mean[j] += df * weight;
		m2[j] += dx * (x[j] - mean[j]);
		code_m2[j] += df * (f[j] - code_mean[j]);
		comoment[j] += dx * (f[j] - code_mean[j]);
		positive[j] += is_positive(x[j]);
	}
}

#ifdef BQ_HAVE_X86
/* Twice as fast, and the same bits: each coordinate is a sum of its own. */
__attribute__((target("avx2"))) static void
divide_avx2(float *x, int dim, float norm)
{
	divide(x, dim, norm);
}

__attribute__((target("avx2"))) static void
add_avx2(double weight, double *values, int dim, const float *x, const float *f)
{
	add(weight, values, dim, x, f);
}
#define USE_AVX2 BQ_KERNEL_HAS_AVX2
#else
#define USE_AVX2 false
#define divide_avx2 divide
#define add_avx2 add
#endif

BqStatus
bq_moments_add(int64_t *count, double *values, int dim, const float *x, float *scaled,
			   uint8_t *planes, float *decoded)
{
	float		norm;
	BqStatus	status;

	if (scaled != NULL)
	{
		status = bq_prepare_query(x, dim, NULL, scaled, &norm);	/* a copy, checked */
		if (status != BQ_OK)
			return status;
		if (norm > 0)
			(USE_AVX2 ? divide_avx2 : divide) (scaled, dim, norm);
		x = scaled;
	}
	status = bq_encode(x, dim, BQ_CUT_RMS, NULL, NULL, planes, &norm);
	if (status != BQ_OK)
		return status;
	bq_decode(planes, dim, norm, NULL, decoded);
	*count += 1;
	(USE_AVX2 ? add_avx2 : add) (1.0 / (double) *count, values, dim, x, decoded);
	return BQ_OK;
}

/* Chan, Golub, LeVeque, "Updating formulae ...", 1979, eq. (2.1), and the same for the comoment. */
void
bq_moments_merge(int64_t *count, double *values, int dim, int64_t other_count, const double *other)
{
	double		total = (double) *count + (double) other_count;
	double		share;
	double		weight;

	if (other_count == 0)
		return;
	share = (double) other_count / total;
	weight = (double) *count * share;
	for (int j = 0; j < dim; j++)
	{
		size_t		mean = (size_t) BQ_MOMENT_MEAN * dim + j;
		size_t		m2 = (size_t) BQ_MOMENT_M2 * dim + j;
		size_t		code_mean = (size_t) BQ_MOMENT_CODE_MEAN * dim + j;
		size_t		code_m2 = (size_t) BQ_MOMENT_CODE_M2 * dim + j;
		size_t		comoment = (size_t) BQ_MOMENT_COMOMENT * dim + j;
		size_t		positive = (size_t) BQ_MOMENT_POSITIVE * dim + j;
		double		dx = other[mean] - values[mean];
		double		df = other[code_mean] - values[code_mean];

		values[mean] += dx * share;
		values[code_mean] += df * share;
		values[m2] += other[m2] + dx * dx * weight;
		values[code_m2] += other[code_m2] + df * df * weight;
		values[comoment] += other[comoment] + dx * df * weight;
		values[positive] += other[positive];
	}
	*count += other_count;
}
