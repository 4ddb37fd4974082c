/*
 * bqmeasure.c: how far a query must go for a wanted recall.
 *
 * Measured with rows of the table as queries, when lists are made: in how many lists, and
 * in an index on vectors by how much beyond its estimate, the ten nearest rows are found.
 * bq.recall chooses from the figures.
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "index/bqmeasure.h"
#include "miscadmin.h"
#include "type/bqvec.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Entry of bq_recalls by which two ways of reading lists are compared. */
#define USUAL_RECALL 4

/*
 * Comparing with the vectors
 */

typedef struct Vectors
{
	BqFetch    *fetch;
	BqForm	   *form;
	FmgrInfo	distance;		/* the operator's function */
	Oid			collation;
	MemoryContext row_context;
} Vectors;

/* The operand's copy and its rotated self of length 1; false if the row cannot be seen. */
static bool
fetch_query(Vectors *v, ItemPointer tid, Datum *operand, float *q, float *length)
{
	int			dim = v->form->dim;
	Datum		value;
	double		norm;

	if (!bq_fetch_value(v->fetch, tid, &value))
		return false;
	*operand = PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
	bq_check_status(bq_prepare_query(bq_read_vector(v->form->source, *operand, dim, v->form->room),
									 dim, bq_get_rotation(dim, v->form->transform), q, length));
	norm = sqrt(bq_kernel->sum_squares(q, dim));
	if (norm == 0)
		return false;
	for (int i = 0; i < dim; i++)
		q[i] = (float) (q[i] / norm);
	return true;
}

/* The exact key of a row; false if it cannot be seen, or is beyond floats. */
static bool
fetch_key(Vectors *v, ItemPointer tid, Datum operand, float length, double *key, bool *toasted)
{
	MemoryContext old_context = MemoryContextSwitchTo(v->row_context);
	Datum		value;
	bool		found = bq_fetch_value(v->fetch, tid, &value);

	if (found)
	{
		*toasted = VARATT_IS_EXTERNAL(DatumGetPointer(value));
		*key = DatumGetFloat8(FunctionCall2Coll(&v->distance, v->collation, value, operand));
		if (v->form->metric == BQ_STRATEGY_COSINE)
			*key -= 1;
		else if (v->form->metric == BQ_STRATEGY_L2)
			*key = *key * *key - (double) length * length;
		found = isfinite(*key);
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(v->row_context);
	return found;
}

typedef struct ExactNeighbour
{
	double		key;
	const BqNeighbour *neighbour;
} ExactNeighbour;

static int
compare_exact(const void *a, const void *b)
{
	double		x = ((const ExactNeighbour *) a)->key;
	double		y = ((const ExactNeighbour *) b)->key;

	return x < y ? -1 : x > y;
}

/* How far the estimate of a row is beyond a distance. */
static float
needed_slack(const BqQueries *s, uint32 k, const BqNeighbour *neighbour, int metric, double key)
{
	double		width = s->inverse_unit * s->rows->inverses[neighbour->row];
	double		slack;

	if (metric == BQ_STRATEGY_IP)
		width *= (double) s->rows->norms[neighbour->row] * s->lengths[k];
	else if (metric == BQ_STRATEGY_L2)
		width *= 2.0 * s->rows->norms[neighbour->row] * s->lengths[k];
	slack = width > 0 ? (neighbour->key - key) / width : 0;
	return (float) Max(-FLT_MAX, Min(FLT_MAX, slack));
}

/*
 * The true neighbours among the candidates of query k, into true_ones[]; returns their
 * number.  Their slack: how far the estimate is beyond the distance of the next one.
 */
static int
find_true_ones(Vectors *v, const BqQueries *s, uint32 k, const BqNeighbour *nearest,
			   Datum operand, BqTrueNeighbour *true_ones, BqFigures *figures)
{
	ExactNeighbour *exact = (ExactNeighbour *) palloc(s->ncandidates * sizeof(ExactNeighbour));
	int			n = 0;
	int			ntrue;

	for (int i = 0; i < s->ncandidates && nearest[i].row != SIZE_MAX; i++)
	{
		bool		toasted;

		exact[n].neighbour = &nearest[i];
		if (fetch_key(v, &s->rows->tids[nearest[i].row], operand, s->lengths[k], &exact[n].key,
					  &toasted))
		{
			figures->ntoasted += toasted;
			n++;
		}
	}
	qsort(exact, n, sizeof(ExactNeighbour), compare_exact);
	ntrue = Min(n, BQ_NEIGHBOURS);
	for (int i = 0; i < n; i++)
	{
		const BqNeighbour *neighbour = exact[i].neighbour;
		/* a row is lost as soon as the next one is given out, the tenth as the query ends */
		int			next = Min(i + 1, n - 1);
		float		slack = needed_slack(s, k, neighbour, v->form->metric,
										 exact[Min(next, BQ_NEIGHBOURS)].key);

		figures->slacks[figures->nslacks++] = slack;
		if (i < ntrue)
		{
			true_ones[i].neighbour = neighbour;
			true_ones[i].slack = slack;
		}
		else if (next < Min(n, BQ_LATER_NEIGHBOURS))
			figures->later_slacks[figures->nlater++] =
				needed_slack(s, k, neighbour, v->form->metric, exact[next].key);
	}
	pfree(exact);
	return ntrue;
}

/*
 * How many standard deviations of a stop are needed for a row not to be passed over, if all
 * rows up to `limit` are wanted.
 */
static float
needed_deviations(const BqQueries *s, uint32 k, const BqNeighbour *neighbour, int metric,
				  double limit, uint8 *block)
{
	int			dim = s->dim;
	float		norm = s->rows->norms[neighbour->row];
	float		length = s->lengths[k];
	float		unit = (float) (s->inverse_unit / sqrt(dim)) * s->rows->inverses[neighbour->row];
	uint32		sum = 0;
	int			done = 0;
	double		most = 0;

	bq_block_put(block, dim, 0, s->rows->planes + neighbour->row * bq_planes_nbytes(dim));
	for (int i = 0; i < s->nstops; i++)
	{
		const BqStop *stop = &s->stops[k][i];
		uint16		sums[BQ_BLOCK];
		double		key;
		double		above;

		bq_kernel->lut_block(s->tables[k].entries + done * BQ_ROW_NBYTES,
							 block + done * BQ_ROW_NBYTES, stop->nrows - done, sums);
		done = stop->nrows;
		sum += sums[0];
		key = (stop->bias - stop->scale * (float) sum) * unit;
		above = bq_estimate_key(metric, key + stop->deviation * unit, norm, length);
		key = bq_estimate_key(metric, key, norm, length);
		if (key > above)
			most = Max(most, (key - limit) / (key - above));
	}
	return (float) Min(most, BQ_NO_STOP);
}

/*
 * Measuring
 */

/* Use rows spread over all of them as queries. */
static void
prepare_queries(BqQueries *s, Vectors *v, uint32 wanted, Datum *operands)
{
	float	   *q = (float *) palloc(s->dim * sizeof(float));

	s->self = (size_t *) palloc(wanted * sizeof(size_t));
	s->tables = (BqTable *) palloc(wanted * sizeof(BqTable));
	s->lengths = (float *) palloc(wanted * sizeof(float));
	s->stops = (BqStop (*)[BQ_MAX_STOPS]) palloc(wanted * sizeof(*s->stops));
	for (uint32 k = 0; k < wanted; k++)
	{
		size_t		row = s->rows->n * k / wanted;
		float		length = s->rows->norms[row];

		if (v->fetch == NULL)
			bq_set_to_code(q, s->rows->planes + row * bq_planes_nbytes(s->dim), s->dim);
		else if (!fetch_query(v, &s->rows->tids[row], &operands[s->nqueries], q, &length))
			continue;
		s->self[s->nqueries] = row;
		s->lengths[s->nqueries] = length;
		s->tables[s->nqueries] = bq_make_table(q, s->dim);
		s->nstops = bq_make_stops(q, s->dim, &s->tables[s->nqueries], s->stops[s->nqueries]);
		s->nqueries++;
	}
	pfree(q);
}

/* The cosine of query k and a row by its code. */
static double
estimated_cosine(const BqQueries *s, uint32 k, const BqNeighbour *neighbour, int metric)
{
	return bq_estimate_cosine(metric, neighbour->key, s->rows->norms[neighbour->row],
							  s->lengths[k]);
}

/*
 * Fill the model for lists read as far as a margin says, or for a fixed number of them.  By
 * cosine a margin takes fewer; by the other distances of vectors, what these rows say:
 * where norms are alike they have the order of cosines.
 */
static bool
choose_way(BqFigures *figures, int metric, const Vectors *v, double nrows, BqLayout *layout,
		   uint32 *nprobes)
{
	bool		exact = v->fetch != NULL;
	bool		by_margin = metric == BQ_STRATEGY_COSINE && layout->nlists > 1;
	BqLayout	other = *layout;
	uint32		other_nprobes[BQ_RECALLS];

	if (!bq_fill_model(figures, by_margin, exact, nrows / layout->nlists, layout, nprobes))
		return false;
	if (by_margin || !exact || layout->nlists == 1)
		return true;
	bq_fill_model(figures, true, exact, nrows / layout->nlists, &other, other_nprobes);
	if (other_nprobes[USUAL_RECALL] < nprobes[USUAL_RECALL])
	{
		*layout = other;
		memcpy(nprobes, other_nprobes, sizeof(other_nprobes));
	}
	return true;
}

/*
 * Measure for one distance, into `nprobes` and the rest of the layout's model; false if no
 * neighbour was found.
 */
static bool
measure(Relation index, const BqQueries *s, Vectors *v, const Datum *operands, int metric,
		const uint8 *groups, double nrows, BqLayout *layout, uint32 *nprobes)
{
	uint32		nlists = layout->nlists;
	uint32		ngroups = bq_count_groups(layout);
	float	   *scores = (float *) palloc0(nlists * sizeof(float));
	float	   *group_scores = (float *) palloc(Max(ngroups, 1) * sizeof(float));
	BqNeighbour *nearest = bq_find_neighbours(s, metric);
	BqFigures  *figures = bq_new_figures(s, nlists);
	uint8	   *block = (uint8 *) palloc0(bq_block_nbytes(s->dim));
	/* the row of that rank among all rows; with few there is none */
	int			rank = (int) Max(1, rint(BQ_MARGIN_RANK * (s->rows->n / nrows)));

	figures->stops = s->nstops > 0;
	figures->groups = ngroups > 0;
	rank = (int) Min((size_t) rank, Max(s->rows->n, 2) - 1);
	for (uint32 k = 0; k < s->nqueries; k++)
	{
		const BqNeighbour *candidates = nearest + (size_t) k * s->ncandidates;
		BqTrueNeighbour found[BQ_NEIGHBOURS];
		int			n = 0;

		CHECK_FOR_INTERRUPTS();
		if (nlists > 1)
			bq_score_groups(groups, nlists, s->dim, &s->tables[k], scores);
		if (ngroups > 0)
			bq_score_outer_groups(index, layout, &s->tables[k], group_scores);
		if (v->fetch != NULL)
			n = find_true_ones(v, s, k, candidates, operands[k], found, figures);
		else
			for (; n < BQ_NEIGHBOURS && candidates[n].row != SIZE_MAX; n++)
			{
				found[n].neighbour = &candidates[n];
				found[n].slack = -FLT_MAX;
			}
		for (int i = 0; i < n; i++)
		{
			found[i].cosine = estimated_cosine(s, k, found[i].neighbour, metric);
			found[i].deviations = needed_deviations(s, k, found[i].neighbour, metric,
													candidates[rank - 1].key, block);
		}
		bq_add_figures(figures, scores, nlists, group_scores, ngroups,
					   candidates[rank - 1].row == SIZE_MAX ? 0 :
					   estimated_cosine(s, k, &candidates[rank - 1], metric), found, n);
	}
	return choose_way(figures, metric, v, nrows, layout, nprobes);
}

/*
 * Measure with rows of the table as queries; `rows` may be a sample of nrows.  Lists are
 * those of the rows, NULL if there is but one.  By cosine, lists are read as far as a margin
 * says (see BqMetaPageData), by inner product and L2 distance that or a fixed number of them:
 * long vectors can be near from far away.  Without a heap, or in an index on codes, codes
 * stand for the vectors, and nothing is learned of the slack.
 */
void
bq_measure(Relation heap, Relation index, const BqCentroids *centroids, const BqRows *rows,
		   const uint32 *lists, double nrows, BqLayout *layout)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "bq measure",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	const BqSource *source = bq_get_source(index);
	int			metric = source != NULL ? bq_index_metric(index) : BQ_STRATEGY_COSINE;
	uint32		wanted = (uint32) Min(rows->n, BQ_QUERIES);
	Datum	   *operands = (Datum *) palloc(Max(wanted, 1) * sizeof(Datum));
	uint8	   *groups = layout->nlists > 1 ? bq_pack_directions(centroids) : NULL;
	const BqModel before = layout->model;
	bool		found = false;
	Vectors		v = {0};
	BqQueries	s = {
		.rows = rows,
		.lists = lists,
		.dim = layout->dim,
		.ncandidates = bq_count_candidates(layout->dim),
		.inverse_unit = source != NULL ? BQ_VECTOR_INVERSE_UNIT : BQ_INVERSE_UNIT
	};

	if (heap != NULL && source != NULL)
	{
		v.fetch = bq_begin_fetching(heap, index, GetActiveSnapshot());
		v.form = bq_begin_forming(index, layout->dim, layout->transform);
		bq_distance_function(index, metric, &v.distance, &v.collation);
		v.row_context = AllocSetContextCreate(context, "bq row", ALLOCSET_DEFAULT_SIZES);
	}
	prepare_queries(&s, &v, wanted, operands);
	memset(layout->model.deviations, 0, sizeof(layout->model.deviations));
	memset(layout->model.ngroups, 0, sizeof(layout->model.ngroups));
	/* inner products first: what they share with cosines is the cosines' */
	if (source == NULL)
		found = measure(index, &s, &v, operands, BQ_STRATEGY_IP, groups, nrows, layout,
						layout->model.product_nprobes);
	found |= measure(index, &s, &v, operands, metric, groups, nrows, layout, layout->model.nprobes);
	if (!found)
		layout->model = before;
	if (v.fetch != NULL)
		bq_end_fetching(v.fetch);
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
}
