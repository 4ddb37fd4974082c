/* bqencode.c: float32 vectors -> packed codes, and back; float query against code. */
#include <math.h>

#include "bqencode.h"
#include "bqkernel.h"

/*
 * The rotation of very small vectors would lose bits to denormals.  Such vectors
 * are first multiplied by this power of two, which is exact; all others by 1.
 */
static float
unit_scale(double sum_squares, int dim)
{
	return sum_squares < ldexp(dim, -100) ? 0x1p100f : 1.0f;
}

/* Norm of x, with the checks that every vector from outside must pass. */
static BqStatus
check_vector(const float *x, int dim, double *sum_squares, float *norm)
{
	double		length;

	*sum_squares = bq_kernel->sum_squares(x, dim);
	/* Squares of finite floats cannot overflow a double: this finds NaN and infinity. */
	if (!isfinite(*sum_squares))
		return BQ_NOT_FINITE;
	length = sqrt(*sum_squares);
	if (length > BQ_MAX_NORM)
		return BQ_NORM_RANGE;
	*norm = (float) length;
	return BQ_OK;
}

BqStatus
bq_encode(const float *x, int dim, BqCut cut, const BqRotation *rotation,
		  float *scratch, uint8_t *planes, float *norm)
{
	double		sum_squares;
	double		threshold;
	BqStatus	status = check_vector(x, dim, &sum_squares, norm);

	if (status != BQ_OK)
		return status;
	if (sum_squares == 0)
	{
		memset(planes, 0, bq_planes_nbytes(dim));
		return BQ_OK;
	}

	/* The rotation keeps the length, so rms needs no second pass. */
	threshold = BQ_THRESHOLD * sqrt(sum_squares / dim);
	if (rotation != NULL)
	{
		float		factor = unit_scale(sum_squares, dim);

		if (factor != 1)
		{
			bq_kernel->scale(scratch, x, dim, factor);
			threshold *= factor;
			x = scratch;
		}
		bq_rotate(rotation, x, scratch);
		x = scratch;
	}
	if (cut == BQ_CUT_MEAN)
		threshold = bq_kernel->sum_absolute(x, dim) / dim;
	bq_kernel->pack(x, dim, (float) threshold, planes);
	return BQ_OK;
}

/*
 * Ask for the next row while this one is worked on.  Measured from DRAM
 * (benchmarks/kernels.py): 18 % at 384-d, nothing at 768-d, a loss at 1,536-d, where
 * the hardware's own prefetching along a row has time to get going.
 */
void
bq_prefetch_row(const float *x, int dim)
{
	for (int i = 0; i < dim && dim <= 512; i += 16)
		__builtin_prefetch(x + i);
}

BqStatus
bq_encode_rows(const float *x, size_t n, size_t stride, int dim, BqCut cut,
			   const BqRotation *rotation, float *scratch,
			   uint8_t *payloads, size_t *bad_row)
{
	BqHeader	header;

	header.dim = (uint16_t) dim;
	header.transform = (uint16_t) (rotation != NULL ? rotation->transform : 0);
	for (size_t i = 0; i < n; i++)
	{
		uint8_t    *payload = payloads + i * bq_nbytes(dim);
		BqStatus	status;

		if (i + 1 < n)
			bq_prefetch_row(x + (i + 1) * stride, dim);
		status = bq_encode(x + i * stride, dim, cut, rotation, scratch,
						   payload + BQ_HEADER_NBYTES, &header.norm);
		if (status != BQ_OK)
		{
			*bad_row = i;
			return status;
		}
		bq_write_header(payload, &header);
	}
	return BQ_OK;
}

double
bq_decoded_norm(const uint8_t *planes, int dim)
{
	size_t		nbytes = bq_plane_nbytes(dim);
	double		strong = bq_kernel->popcount(planes + nbytes, nbytes);

	return sqrt((dim - strong) * (BQ_WEAK * BQ_WEAK) + strong * (BQ_STRONG * BQ_STRONG));
}

void
bq_decode(const uint8_t *planes, int dim, float norm, const BqRotation *rotation, float *x)
{
	double		scale = norm / bq_decoded_norm(planes, dim);

	if (norm == 0)
	{
		/* not -0, which the sign bits would give */
		memset(x, 0, (size_t) dim * sizeof(float));
		return;
	}
	bq_kernel->unpack(planes, dim, (float) (scale * BQ_WEAK), (float) (scale * BQ_STRONG), x);
	if (rotation != NULL)
		bq_unrotate(rotation, x);
}

BqStatus
bq_prepare_query(const float *x, int dim, const BqRotation *rotation, float *q, float *norm)
{
	double		sum_squares;
	float		factor;
	BqStatus	status = check_vector(x, dim, &sum_squares, norm);

	if (status != BQ_OK)
		return status;
	if (rotation == NULL || sum_squares == 0)
	{
		if (q != x)
			memcpy(q, x, (size_t) dim * sizeof(float));
		return BQ_OK;
	}
	factor = unit_scale(sum_squares, dim);
	if (factor == 1)
		bq_rotate(rotation, x, q);
	else
	{
		bq_kernel->scale(q, x, dim, factor);
		bq_rotate(rotation, q, q);
		bq_kernel->scale(q, q, dim, 1 / factor);
	}
	return BQ_OK;
}

/* Inner product of q with the unscaled level values, over their length. */
static double
project(const float *q, const uint8_t *planes, int dim)
{
	float		all;
	float		strong;

	bq_kernel->dot(q, planes, dim, &all, &strong);
	return (BQ_WEAK * (double) all + (BQ_STRONG - BQ_WEAK) * (double) strong) /
		bq_decoded_norm(planes, dim);
}

double
bq_inner_product(const float *q, const uint8_t *planes, int dim, float norm)
{
	return norm == 0 ? 0 : norm * project(q, planes, dim);
}

double
bq_cosine_distance(const float *q, float q_norm, const uint8_t *planes, int dim, float norm)
{
	double		cosine;

	if (norm == 0 || q_norm == 0)
		return 1;
	cosine = project(q, planes, dim) / q_norm;
	/* rounding may leave the interval by an ulp */
	if (cosine > 1)
		cosine = 1;
	if (cosine < -1)
		cosine = -1;
	return 1 - cosine;
}

double
bq_l2_distance(const float *q, float q_norm, const uint8_t *planes, int dim, float norm)
{
	double		squared = (double) q_norm * q_norm + (double) norm * norm -
		2 * bq_inner_product(q, planes, dim, norm);

	return squared > 0 ? sqrt(squared) : 0;
}
