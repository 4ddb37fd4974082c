/*
 * bqbound.c: what the sums of a query's table over codes say of distances.
 */
#include "postgres.h"

#include <float.h>
#include <math.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "index/bqscan.h"

/* Relative rounding errors of a few floats. */
#define FLOAT_ERROR 4e-7f

/* What a sum of products in floats loses: of its terms' sizes, and below the least float. */
#define SUM_ERROR(dim) (((dim) + 4) * 0x1p-24)
#define SUM_UNDERFLOW(dim) ((dim) * 0x1p-149)

/* BqBlockData.inverse of most vectors, see bqform.c. */
#define USUAL_INVERSE 1.07

/* Distances of vectors are less than this many times the slack above their bounds. */
#define SURE_SLACKS 4

/* Bit c: keys[c] <= limit, or not quite (compared as floats). */
static inline uint32
keys_up_to(const float *keys, double limit)
{
	float		bound = nextafterf((float) limit, FLT_MAX);
	uint32		mask = 0;

#ifdef __SSE2__
	for (int c = 0; c < BQ_BLOCK; c += 4)
		mask |= (uint32) _mm_movemask_ps(_mm_cmple_ps(_mm_loadu_ps(keys + c),
													  _mm_set1_ps(bound))) << c;
#else
	for (int c = 0; c < BQ_BLOCK; c++)
		mask |= (uint32) (keys[c] <= bound) << c;
#endif
	return mask;
}

/*
 * Lower bounds of the keys of a block's rows, from the sums of the query's table.
 *
 * Keys, with x the decoded code of length |x| = norm and q the query times `unit`:
 * Hamming, the distance itself; cosine, -<q, x> / |x|; inner product, -<q, x>; L2, |x|^2
 * - 2 <q, x> with x times `unit` as well.  Each grows with its distance.  Adding `slack`
 * to <q, levels> makes a lower bound of each, and FLT_MIN covers products too small for
 * the relative precision of floats.
 */
void
bq_bound_keys(const BqScan *so, const BqBlockData *block, const uint16 *sums, float scale,
			  float bias, float *keys)
{
	float		unit = so->key_unit;

	if (so->strategy == BQ_STRATEGY_HAMMING)
	{
		for (int c = 0; c < BQ_BLOCK; c++)
			keys[c] = sums[c];
		return;
	}
	bq_kernel->scale_sums(sums, scale * unit, (bias + so->slack) * unit, block->inverse, keys);
	if (so->strategy == BQ_STRATEGY_IP)
	{
		for (int c = 0; c < BQ_BLOCK; c++)
			keys[c] = keys[c] * block->norm[c] - FLT_MIN;
	}
	else if (so->strategy == BQ_STRATEGY_L2)
	{
		for (int c = 0; c < BQ_BLOCK; c++)
		{
			float		norm = (float) (block->norm[c] * so->unit);

			keys[c] = (2 * keys[c] + norm * (1 - FLOAT_ERROR)) * norm - FLT_MIN;
		}
	}
	/* a bound below, also where the product of two norms is beyond floats */
	for (int c = 0; c < BQ_BLOCK; c++)
		keys[c] = keys[c] < FLT_MAX ? keys[c] : FLT_MAX;
}

/* Rows whose bounds are not above a limit (bits), by sums that stand for bias - scale * sum. */
uint32
bq_find_rows(const BqScan *so, const BqBlockData *block, const uint16 *sums, float scale,
			 float bias, double limit)
{
	float		keys[BQ_BLOCK];

	if (so->strategy == BQ_STRATEGY_COSINE)
	{
		float		unit = so->key_unit;

		return bq_kernel->find_sums(sums, scale * unit, (bias + so->slack) * unit, block->inverse,
									nextafterf((float) limit, FLT_MAX));
	}
	bq_bound_keys(so, block, sums, scale, bias, keys);
	return keys_up_to(keys, limit);
}

/* How far above its bound the key of a row can be; of a vector, practically. */
double
bq_bound_width(const BqScan *so, const BqBlockData *block, int c)
{
	double		norm = block->norm[c];
	double		width = so->inverse_unit / sqrt(so->layout.dim) * block->inverse[c] *
		(so->source != NULL ? SURE_SLACKS : 2) * so->slack;

	if (so->strategy == BQ_STRATEGY_IP)
		return width * norm + 2 * FLT_MIN;
	if (so->strategy == BQ_STRATEGY_L2)
	{
		norm *= so->unit;
		width = (2 * width + 2 * FLOAT_ERROR * norm) * norm + 2 * FLT_MIN;
		if (so->source != NULL)
			width += 2 * SUM_ERROR(so->layout.dim) * (so->length + norm) * (so->length + norm) +
				2 * SUM_UNDERFLOW(so->layout.dim) * so->unit * so->unit;
		return width;
	}
	return width;
}

/*
 * The key of a candidate for that of a bound, and back, about.  Distances of vectors are those
 * of the operator; the bound is then one of the distance.  The operator computes with floats:
 * slack covers what it loses of products, but not of a distance that they hardly change.
 */
double
bq_candidate_key(const BqScan *so, double key)
{
	int			dim = so->layout.dim;
	double		square;

	if (so->source == NULL)
		return key;
	switch (so->strategy)
	{
		case BQ_STRATEGY_IP:
			return key / so->unit - SUM_UNDERFLOW(dim);
		case BQ_STRATEGY_L2:
			square = (so->length * so->length + key) * (1 - SUM_ERROR(dim)) / so->unit / so->unit;
			return sqrt(Max(0, square - SUM_UNDERFLOW(dim)));
		default:
			return so->length > 0 ? 1 + key / so->length : 0;
	}
}

double
bq_bound_of_key(const BqScan *so, double key)
{
	int			dim = so->layout.dim;
	double		bound;

	if (so->source == NULL || isinf(key))
		return key;
	switch (so->strategy)
	{
		case BQ_STRATEGY_IP:
			bound = (key + SUM_UNDERFLOW(dim)) * so->unit;
			break;
		case BQ_STRATEGY_L2:
			bound = (key * key + SUM_UNDERFLOW(dim)) / (1 - SUM_ERROR(dim)) * so->unit * so->unit -
				so->length * so->length;
			break;
		default:
			bound = (key - 1) * so->length;
	}
	return bound + 4 * FLOAT_ERROR * (fabs(bound) + so->length * so->length);
}

/* Bounds are those of cosines so much too low, in units of bqform.c. */
void
bq_set_slack(BqScan *so, double slack)
{
	so->slack = (float) (slack * sqrt(so->layout.dim) * so->length);
	so->shift = slack * USUAL_INVERSE;
}

/* Let a bound allow for an error of its cosine that is greater by `shift`. */
static void
lower_bound(const BqScan *so, double shift, BqCandidate *candidate)
{
	double		width = shift * so->length;

	if (so->strategy == BQ_STRATEGY_IP)
		width *= candidate->norm;
	else if (so->strategy == BQ_STRATEGY_L2)
		width *= 2 * candidate->norm * so->unit;
	candidate->key = bq_candidate_key(so, bq_bound_of_key(so, candidate->key) - width);
}

/*
 * Rows beyond the first ones lie closer together, and are lost by smaller errors: from now on
 * bounds allow for more of them, those of the candidates as well.
 */
void
bq_raise_slack(BqScan *so)
{
	double		before = so->shift;

	if (so->source == NULL || so->reach.later_slack <= so->reach.slack)
		return;
	bq_set_slack(so, so->reach.later_slack);
	for (int i = 0; i < so->ncandidates; i++)
		if (!so->candidates[i].exact)
			lower_bound(so, so->shift - before, &so->candidates[i]);
	if (so->dropped)
	{
		lower_bound(so, so->shift - before, &so->limit);
		bq_note_limit(so);
	}
	bq_order_candidates(so);
}
