/*
 * bqprobe.c: which lists a query reads, and reading them.
 *
 * The nearest lists are read in *segments*: first about as many as the setting, the
 * option or the index says, then, if the executor wants more rows, ever more of the rest.
 */
#include "postgres.h"

#include <float.h>
#include <math.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "index/bqscan.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"

/* A scan reads up to so many times the lists that the average one reads, and not less. */
#define MOST_PROBES 4
#define LEAST_PROBES 0.25

/*
 * Beyond the first rows, a scan in strict order goes on to further lists while it has
 * not seen so many rows for each that it gave: those it did not see are passed over.
 */
#define SEEN_PER_ROW 8

/* By cosine, and from so many rows on, also while a further list is that near. */
#define MARGIN_ROWS 10

/* Relative rounding errors of a few floats. */
#define FLOAT_ERROR 4e-7f

/* What a sum of products in floats loses: of its terms' sizes, and below the least float. */
#define SUM_ERROR(dim) (((dim) + 4) * 0x1p-24)
#define SUM_UNDERFLOW(dim) ((dim) * 0x1p-149)

/* Distances of vectors are less than this many times the slack above their bounds. */
#define SURE_SLACKS 4

/* How fast the number of lists grows with that of the rows that lie between those wanted. */
#define FILTER_POWER 0.35

/* How many pages of a list are asked for in advance. */
#define PREFETCH_PAGES 8

/*
 * Reading lists
 */

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
static void
bound_keys(const BqScan *so, const BqBlockData *block, const uint16 *sums, float *keys)
{
	float		unit = (float) (so->inverse_unit / sqrt(so->layout.dim));

	if (so->strategy == BQ_STRATEGY_HAMMING)
	{
		for (int c = 0; c < BQ_BLOCK; c++)
			keys[c] = sums[c];
		return;
	}
	bq_kernel->scale_sums(sums, so->table.scale * unit, (so->table.bias + so->slack) * unit,
						  block->inverse, keys);
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

/* How far above its bound the key of a row can be; of a vector, practically. */
static double
bound_width(const BqScan *so, const BqBlockData *block, int c)
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
static double
candidate_key(const BqScan *so, double key)
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

static double
bound_of_key(const BqScan *so, double key)
{
	int			dim = so->layout.dim;
	double		bound;

	if (so->source == NULL || fabs(key) >= FLT_MAX)
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

/*
 * Take in a block: its header, which rows may be wanted (bits), and the sums of the query's
 * table over its codes.
 */
static void
read_block(BqScan *so, uint8 segment, uint32 b, const BqBlockData *block, uint32 rows,
		   const uint16 *sums)
{
	float		keys[BQ_BLOCK];
	double		limit = so->dropped ? so->limit.key : FLT_MAX;

	bound_keys(so, block, sums, keys);

	/* Few blocks have a row worth a look: find them without a branch per row. */
	for (uint32 wanted = keys_up_to(keys, bound_of_key(so, limit)) & rows; wanted != 0;
		 wanted &= wanted - 1)
	{
		int			c = pg_rightmost_one_pos32(wanted);
		BqCandidate *candidate = bq_new_candidate(so);

		candidate->key = candidate_key(so, keys[c]);
		if (candidate->key > limit)
			continue;
		candidate->block = b;
		candidate->slot = (uint16) c;
		candidate->segment = segment;
		/* a row of norm 0 has no rounding errors: its product is 0 */
		candidate->exact = so->source == NULL &&
			(so->strategy == BQ_STRATEGY_HAMMING || block->norm[c] == 0);
		if (candidate->exact && so->strategy != BQ_STRATEGY_HAMMING)
			candidate->key = 0;
		candidate->tid = block->tid[c];
		candidate->norm = block->norm[c];
		candidate->prefetched = false;
		/* given out already, as far as one can tell without the exact key */
		if (bq_was_given(so, candidate))
			continue;
		if (so->have_floor && so->given == NULL && !candidate->exact && fabsf(keys[c]) < FLT_MAX &&
			candidate_key(so, keys[c] + bound_width(so, block, c)) < so->floor.key)
			continue;
		bq_keep_candidate(so);
		limit = so->dropped ? so->limit.key : FLT_MAX;
	}
}

/* Read all blocks of a list; `first_time`: count its rows. */
static void
read_list(Relation index, BqScan *so, uint8 segment, const BqChain *chain, bool first_time)
{
	BqListReader reader;
	const BqBlockData *block;

	bq_begin_list(&reader, index, &so->layout, chain);
	while ((block = bq_next_block(&reader)) != NULL)
	{
		uint16		sums[BQ_BLOCK];

		uint32		rows = block->live;

		if (so->filter != NULL)
			rows &= bq_match_block(so->filter, block);
		if (first_time)
		{
			so->nscanned += pg_popcount32(block->live);
			so->nseen += pg_popcount32(rows);
		}
		if (rows == 0)
			continue;			/* and its codes stay where they are */
		bq_sum_block(&reader, so->table.entries, sums);
		read_block(so, segment, reader.block, block, rows, sums);
		so->ncodes += BQ_BLOCK;
	}
	bq_end_list(&reader);
}

/*
 * Ask for a list that will be read next: its headers and its code pages.  A guess:
 * blocks lie in a row if the build wrote them.
 */
static void
prefetch_list(Relation index, const BqLayout *layout, const BqChain *chain)
{
	uint64		row = bq_first_row(layout, chain->head);
	uint64		end = row + (uint64) chain->nblocks * layout->nrows;

	if (chain->head == BQ_NO_BLOCK)
		return;
	bq_prefetch(index, bq_header_page(layout, chain->head),
				SizeOfPageHeaderData + chain->head % layout->headers_per_page *
				layout->header_nbytes);
	for (int i = 0; row < end && i < PREFETCH_PAGES; i++)
	{
		bq_prefetch(index, bq_code_page(layout, row),
					SizeOfPageHeaderData + row % BQ_ROWS_PER_PAGE * BQ_ROW_NBYTES);
		row += BQ_ROWS_PER_PAGE - row % BQ_ROWS_PER_PAGE;
	}
}

/*
 * Choosing lists
 */

/* The nearer a list the larger, with its number in the lower half; no two are equal. */
static inline uint64
rank_key(float score, uint32 list)
{
	uint32		bits;

	memcpy(&bits, &score, sizeof(bits));
	bits ^= bits & 0x80000000 ? 0xffffffff : 0x80000000;
	return (uint64) bits << 32 | (UINT32_MAX - list);
}

static inline uint32
ranked_list(uint64 key)
{
	return UINT32_MAX - (uint32) key;
}

static inline float
ranked_score(uint64 key)
{
	uint32		bits = (uint32) (key >> 32);
	float		score;

	bits ^= bits & 0x80000000 ? 0x80000000 : 0xffffffff;
	memcpy(&score, &bits, sizeof(score));
	return score;
}

static void
sink_list(BqScan *so, uint32 i)
{
	uint64		moving = so->ranked[i];

	for (uint32 child = 2 * i + 1; child < so->nranked; child = 2 * i + 1)
	{
		child += child + 1 < so->nranked && so->ranked[child + 1] > so->ranked[child];
		if (so->ranked[child] < moving)
			break;
		so->ranked[i] = so->ranked[child];
		i = child;
	}
	so->ranked[i] = moving;
}

/* Rank all lists. */
void
bq_rank_lists(Relation index, BqScan *so)
{
	uint32		nlists = so->layout.nlists;
	float	   *scores = (float *) palloc0(nlists * sizeof(float));

	if (nlists > 1)
	{
		/* Hamming's table holds distances from a code, not products */
		BqTable		table = so->strategy == BQ_STRATEGY_HAMMING ?
			bq_make_table(so->q, so->layout.dim) : so->table;

		bq_score_lists(index, &so->layout, &table, scores);
	}
	so->ranked = (uint64 *) palloc(nlists * sizeof(uint64));
	so->chosen = (uint32 *) palloc(nlists * sizeof(uint32));
	so->segment_of = (uint8 *) palloc(nlists * sizeof(uint8));
	for (uint32 list = 0; list < nlists; list++)
		so->ranked[list] = rank_key(scores[list], list);
	so->nranked = nlists;
	so->nchosen = 0;
	so->segment = 0;
	so->ncounted = 0;
	so->nscanned = 0;
	so->nseen = 0;
	for (uint32 i = nlists / 2; i-- > 0;)
		sink_list(so, i);
	pfree(scores);
}

/* Begin a segment of about `probes` lists, or as many as there are. */
void
bq_plan_segment(BqScan *so, uint32 probes)
{
	uint32		nlists = so->layout.nlists;

	so->segment++;
	so->segment_start = so->nchosen;
	so->least = so->most = (uint32) Min((uint64) so->nchosen + Max(probes, 1), nlists);
	so->margin = 0;
	if (so->strategy == BQ_STRATEGY_COSINE && so->nchosen == 0 && so->most < nlists)
	{
		double		place = log(probes) / log(nlists) * (BQ_MARGINS - 1);
		int			i = (int) place;
		const float *margins = so->layout.margins;

		so->margin = margins[i] + (place - i) * (margins[i + 1] - margins[i]);
		so->margin *= so->length;
		so->row_margin = so->margin + so->layout.model.gap * so->length;
		so->least = (uint32) Max(1, probes * LEAST_PROBES);
		so->most = (uint32) Min((uint64) probes * MOST_PROBES, nlists);
	}
}

/* Cosine of the worst candidate, times |q|, by its code. */
static double
limit_cosine(const BqScan *so)
{
	if (so->source == NULL)
		return -so->limit.key;
	return (1 - so->limit.key) * so->length - so->shift;
}

/*
 * Rows that meet the conditions lie further apart than all rows: does the first segment take
 * another list for that?  By cosine the margin tells when to stop; else so many times more
 * lists are read as a query needs for that many times more rows, about.
 */
static bool
goes_on_for_filter(BqScan *so)
{
	if (so->filter == NULL || so->nranked == 0 || so->segment > 1)
		return false;
	if (so->margin == 0 && so->nseen >= BQ_MARGIN_RANK &&
		so->nchosen >= so->reach.nprobes * pow((double) so->nscanned / so->nseen, FILTER_POWER))
		return false;
	/* the margin needs the BQ_MARGIN_RANKth of few rows */
	bq_limit_candidates(so);
	so->most++;
	return true;
}

/* Is there an i-th list in this segment?  Chooses it if it was not chosen before. */
static bool
choose_list(BqScan *so, uint32 i)
{
	if (i < so->nchosen)
		return true;
	if (so->nchosen == so->most && !goes_on_for_filter(so))
		return false;
	if (so->nchosen >= so->least && so->dropped &&
		ranked_score(so->ranked[0]) < limit_cosine(so) - so->margin)
	{
		so->most = so->nchosen;
		return false;
	}
	so->segment_of[so->nchosen] = so->segment;
	so->chosen[so->nchosen++] = ranked_list(so->ranked[0]);
	so->ranked[0] = so->ranked[--so->nranked];
	sink_list(so, 0);
	return true;
}

/*
 * Read the chosen lists from number `from` on, and those that the segment goes on to
 * choose, into the candidates.
 */
void
bq_read_lists(Relation index, BqScan *so, uint32 from)
{
	BqChain		next = {.list = UINT32_MAX};

	for (uint32 i = from; choose_list(so, i); i++)
	{
		BqChain		chain = next;

		if (chain.list != so->chosen[i])
			chain = bq_read_chain(index, &so->layout, so->chosen[i]);
		if (i + 1 < so->nchosen || so->nranked > 0)
		{
			next = bq_read_chain(index, &so->layout, i + 1 < so->nchosen ?
								 so->chosen[i + 1] : ranked_list(so->ranked[0]));
			prefetch_list(index, &so->layout, &next);
		}
		read_list(index, so, so->segment_of[i], &chain, i >= so->ncounted);
		so->nlists++;
		so->ncounted = Max(so->ncounted, i + 1);
	}
	/* the same lists if they are read again */
	so->most = so->nchosen;
	bq_order_candidates(so);
}

/*
 * Should a scan in strict order read further lists before it gives out this row?  Rows
 * that it meets later and that are nearer are lost.
 */
bool
bq_wants_more_lists(const BqScan *so, const BqCandidate *candidate)
{
	if (so->strategy == BQ_STRATEGY_COSINE && so->nreturned >= MARGIN_ROWS && so->row_margin > 0)
	{
		double		cosine = so->source != NULL ? (1 - candidate->key) * so->length : -candidate->key;

		if (ranked_score(so->ranked[0]) >= cosine - so->row_margin)
			return true;
	}
	return so->nseen < SEEN_PER_ROW * (so->nreturned + 1);
}
