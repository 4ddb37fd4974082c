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

#include "index/bqscan.h"
#include "miscadmin.h"
#include "type/bqvec.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define TILE_BLOCKS 64			/* blocks that stay in cache while all tables pass */
#define QUERIES 256
#define NEIGHBOURS 10			/* that must be found */

/* By their codes; among them are practically all of the true ten, and the BQ_MARGIN_RANKth. */
#define CANDIDATES 100

#define DEFAULT_RECALL 0.98

/*
 * Estimates of cosines have errors of about 0.36 / sqrt(dim) (standard deviation; codes of
 * random directions).  Three of them where nothing was measured, eight to miss nothing.
 */
#define ESTIMATE_ERROR 0.36
#define UNKNOWN_SLACK (3 * ESTIMATE_ERROR)
#define FULL_SLACK (8 * ESTIMATE_ERROR)

/*
 * Of what may be lost, the part that may be lost by leaving blocks half read.  With so many
 * deviations little is lost where nothing was measured.
 */
#define STOP_SHARE 0.1
#define UNKNOWN_DEVIATIONS 2.5

/* The recalls that BqModel has figures for. */
static const double recalls[BQ_RECALLS] = {0.80, 0.90, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999};

/*
 * Choosing from the figures
 */

/* The setting, the option of the index, or the default. */
double
bq_wanted_recall(Relation index)
{
	BqOptions  *options = (BqOptions *) index->rd_options;

	if (bq_recall_wanted > 0)
		return bq_recall_wanted;
	if (options != NULL && options->recall > 0)
		return options->recall;
	return DEFAULT_RECALL;
}

/*
 * The place of a recall among those of the figures, linear in the logarithm of what is lost:
 * between figures i and i + 1, at `share` of the way or beyond.
 */
static int
find_place(double recall, double *share)
{
	double		lost = 1 - recall;
	int			i = 0;

	while (i < BQ_RECALLS - 2 && lost < 1 - recalls[i + 1])
		i++;
	*share = log((1 - recalls[i]) / lost) / log((1 - recalls[i]) / (1 - recalls[i + 1]));
	*share = Max(0, *share);
	return i;
}

static double
interpolate(const float *figures, double recall)
{
	double		share;
	int			i = find_place(recall, &share);

	return figures[i] + (figures[i + 1] - figures[i]) * share;
}

/*
 * The slack that misses nothing.  Errors are those of random directions after a rotation
 * only.  On the axes vectors may have a common one (where most coordinates are 0, say), up to
 * the length of the levels: then no estimate excludes a row.
 */
static double
full_slack(const BqLayout *layout)
{
	return layout->transform == 0 ? BQ_STRONG : FULL_SLACK / sqrt(layout->dim);
}

/* How far a query goes: by the settings, the options of the index, and its figures. */
BqReach
bq_wanted_reach(Relation index, const BqLayout *layout, int strategy)
{
	BqOptions  *options = (BqOptions *) index->rd_options;
	double		recall = bq_wanted_recall(index);
	const BqModel *model = &layout->model;
	/* indexes on vectors have one distance */
	const uint32 *probes = strategy == BQ_STRATEGY_IP && bq_get_source(index) == NULL ?
		model->product_nprobes : model->nprobes;
	BqReach		reach;

	if (recall < 1)
	{
		double		share;
		int			i = find_place(recall, &share);
		double		n = probes[i] * pow((double) probes[i + 1] / probes[i], share);

		reach.nprobes = (uint32) Max(1, rint(Min(n, layout->nlists)));
		reach.slack = Min(interpolate(model->slack, recall), full_slack(layout));
		reach.deviations = Max(0, interpolate(model->deviations, recall));
	}
	else
	{
		reach.nprobes = layout->nlists;
		reach.slack = full_slack(layout);
		reach.deviations = BQ_NO_STOP;
	}
	/* settings beat options */
	if (options != NULL && options->probes > 0 && bq_recall_wanted == 0)
		reach.nprobes = Min((uint32) options->probes, layout->nlists);
	if (bq_probes > 0)
		reach.nprobes = Min((uint32) bq_probes, layout->nlists);
	/* who asks for all lists means all rows */
	if (reach.nprobes == layout->nlists)
		reach.deviations = BQ_NO_STOP;
	return reach;
}

/* Figures of an index without rows, or with one list: nothing to measure. */
void
bq_clear_model(BqLayout *layout)
{
	for (int i = 0; i < BQ_RECALLS; i++)
	{
		layout->model.nprobes[i] = 1;
		layout->model.product_nprobes[i] = 1;
		layout->model.slack[i] = (float) (UNKNOWN_SLACK / sqrt(layout->dim));
		layout->model.deviations[i] = UNKNOWN_DEVIATIONS;
	}
	layout->model.gap = 0;
}

/*
 * Finding neighbours by their codes
 */

typedef struct Neighbour
{
	double		key;			/* grows with the distance; norms may be beyond floats */
	uint32		list;
	size_t		row;
} Neighbour;

typedef struct Search
{
	const BqRows *rows;
	const uint32 *lists;		/* of each row; NULL: there is but one */
	int			dim;
	double		inverse_unit;
	uint32		nqueries;
	size_t	   *self;			/* the row that each query is */
	BqTable    *tables;			/* of queries of length 1 */
	float	   *lengths;		/* that they had before */
	BqStop	  (*stops)[BQ_MAX_STOPS];
	int			nstops;
} Search;

/* Pack up to TILE_BLOCKS * 32 codes into blocks; returns the number of blocks. */
static int
pack_tile(const uint8 *codes, size_t ncodes, int dim, uint8 *blocks)
{
	size_t		planes_nbytes = bq_planes_nbytes(dim);
	size_t		block_nbytes = bq_block_nbytes(dim);
	int			nblocks = (int) ((ncodes + BQ_BLOCK - 1) / BQ_BLOCK);

	memset(blocks, 0, nblocks * block_nbytes);
	for (size_t i = 0; i < ncodes; i++)
		bq_block_put(blocks + i / BQ_BLOCK * block_nbytes, dim, (int) (i % BQ_BLOCK),
					 codes + i * planes_nbytes);
	return nblocks;
}

static inline void
add_neighbour(Neighbour *nearest, double key, uint32 list, size_t row)
{
	int			i = CANDIDATES - 1;

	if (key >= nearest[i].key)
		return;
	for (; i > 0 && nearest[i - 1].key > key; i--)
		nearest[i] = nearest[i - 1];
	nearest[i].key = key;
	nearest[i].list = list;
	nearest[i].row = row;
}

/* The key of a row by the estimate of its cosine with the query. */
static inline double
estimate_key(int metric, double cosine, double norm, double length)
{
	switch (metric)
	{
		case BQ_STRATEGY_IP:
			return -cosine * norm * length;
		case BQ_STRATEGY_L2:
			return norm * (norm - 2 * cosine * length);
		default:
			return -cosine;
	}
}

/* The CANDIDATES nearest rows of each query, not counting itself, nearest first. */
static Neighbour *
find_neighbours(const Search *s, int metric)
{
	int			dim = s->dim;
	int			nrows = bq_block_nrows(dim);
	size_t		planes_nbytes = bq_planes_nbytes(dim);
	size_t		block_nbytes = bq_block_nbytes(dim);
	uint8	   *tile = (uint8 *) palloc(TILE_BLOCKS * block_nbytes);
	Neighbour  *found = (Neighbour *) palloc(s->nqueries * CANDIDATES * sizeof(Neighbour));
	float		unit = (float) (s->inverse_unit / sqrt(dim));

	for (size_t i = 0; i < (size_t) s->nqueries * CANDIDATES; i++)
	{
		found[i].key = DBL_MAX;
		found[i].row = SIZE_MAX;
		found[i].list = 0;
	}
	for (size_t start = 0; start < s->rows->n; start += TILE_BLOCKS * BQ_BLOCK)
	{
		size_t		n = Min(s->rows->n - start, (size_t) TILE_BLOCKS * BQ_BLOCK);
		int			nblocks = pack_tile(s->rows->planes + start * planes_nbytes, n, dim, tile);

		CHECK_FOR_INTERRUPTS();
		for (uint32 k = 0; k < s->nqueries; k++)
		{
			const BqTable *table = &s->tables[k];
			Neighbour  *nearest = found + (size_t) k * CANDIDATES;

			for (int b = 0; b < nblocks; b++)
			{
				uint16		sums[BQ_BLOCK];
				size_t		first = start + (size_t) b * BQ_BLOCK;

				bq_kernel->lut_block(table->entries, tile + b * block_nbytes, nrows, sums);
				for (size_t i = first; i < Min(start + n, first + BQ_BLOCK); i++)
				{
					float		cosine = (table->bias - table->scale * (float) sums[i - first]) *
						unit * s->rows->inverses[i];

					if (i != s->self[k])
						add_neighbour(nearest,
									  estimate_key(metric, cosine, s->rows->norms[i], s->lengths[k]),
									  s->lists != NULL ? s->lists[i] : 0, i);
				}
			}
		}
	}
	pfree(tile);
	return found;
}

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
	const Neighbour *neighbour;
} ExactNeighbour;

static int
compare_exact(const void *a, const void *b)
{
	double		x = ((const ExactNeighbour *) a)->key;
	double		y = ((const ExactNeighbour *) b)->key;

	return x < y ? -1 : x > y;
}

/*
 * What is known of one neighbour
 */

typedef struct Finding
{
	float		lists;			/* its list comes after so many, or after so large a margin */
	float		slack;			/* with so much it is found before a query for all is over */
	float		deviations;		/* with so many its block is read to the end */
} Finding;

typedef struct Figures
{
	Finding    *findings;
	size_t		n;
	float	   *margins;		/* up to each list of each query: BqMetaPageData.margins */
	size_t		nmargins;
	float	   *slacks;			/* of all candidates that were compared */
	size_t		nslacks;
	size_t		ntoasted;		/* of them, with values out of line */
	uint32		nqueries;
	double		gap;			/* sum of BqModel.gap */
} Figures;

/* A neighbour of a query, and its slack. */
typedef struct TrueNeighbour
{
	const Neighbour *neighbour;
	float		slack;
	float		deviations;
} TrueNeighbour;

/*
 * The true neighbours among the candidates of query k, into true_ones[]; returns their
 * number.  Their slack: how far the estimate is beyond the distance of the next one.
 */
static int
find_true_ones(Vectors *v, const Search *s, uint32 k, const Neighbour *nearest, Datum operand,
			   TrueNeighbour *true_ones, Figures *figures)
{
	ExactNeighbour exact[CANDIDATES];
	int			n = 0;
	int			ntrue;

	for (int i = 0; i < CANDIDATES && nearest[i].row != SIZE_MAX; i++)
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
	if (n == 0)
		return 0;
	qsort(exact, n, sizeof(ExactNeighbour), compare_exact);
	ntrue = Min(n, NEIGHBOURS);
	for (int i = 0; i < n; i++)
	{
		const Neighbour *neighbour = exact[i].neighbour;
		/* a row is lost as soon as the next one is given out, the tenth as the query ends */
		double		last = exact[Min(Min(i + 1, n - 1), NEIGHBOURS)].key;
		double		width = s->inverse_unit * s->rows->inverses[neighbour->row];
		double		slack;

		if (v->form->metric == BQ_STRATEGY_IP)
			width *= (double) s->rows->norms[neighbour->row] * s->lengths[k];
		else if (v->form->metric == BQ_STRATEGY_L2)
			width *= 2.0 * s->rows->norms[neighbour->row] * s->lengths[k];
		slack = width > 0 ? (neighbour->key - last) / width : 0;
		slack = Max(-FLT_MAX, Min(FLT_MAX, slack));
		figures->slacks[figures->nslacks++] = (float) slack;
		if (i < ntrue)
		{
			true_ones[i].neighbour = neighbour;
			true_ones[i].slack = (float) slack;
		}
	}
	return ntrue;
}

/*
 * How many standard deviations of a stop are needed for a row not to be passed over, if all
 * rows up to `limit` are wanted.
 */
static float
needed_deviations(const Search *s, uint32 k, const Neighbour *neighbour, int metric, double limit,
				  uint8 *block)
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
		above = estimate_key(metric, key + stop->deviation * unit, norm, length);
		key = estimate_key(metric, key, norm, length);
		if (key > above)
			most = Max(most, (key - limit) / (key - above));
	}
	return (float) Min(most, BQ_NO_STOP);
}

static Figures *
new_figures(uint32 nqueries, uint32 nlists)
{
	Figures    *f = (Figures *) palloc0(sizeof(Figures));

	f->nqueries = nqueries;
	f->margins = (float *) MemoryContextAllocHuge(CurrentMemoryContext,
												  (size_t) nqueries * nlists * sizeof(float));
	f->findings = (Finding *) palloc(nqueries * NEIGHBOURS * sizeof(Finding));
	f->slacks = (float *) palloc(nqueries * CANDIDATES * sizeof(float));
	return f;
}

/*
 * Take in where the neighbours of a query lie.  By margin, `reached` is the cosine of its
 * BQ_MARGIN_RANKth row.
 */
static void
add_figures(Figures *f, const float *scores, uint32 nlists, bool by_margin, double reached,
			const TrueNeighbour *neighbours, int n)
{
	if (by_margin && n > 0)
		f->gap += -neighbours[n - 1].neighbour->key - reached;
	for (uint32 list = 0; list < nlists && by_margin; list++)
		f->margins[f->nmargins++] = (float) (reached - scores[list]);
	for (int i = 0; i < n; i++)
	{
		Finding    *finding = &f->findings[f->n++];
		float		score = scores[neighbours[i].neighbour->list];
		uint32		nbetter = 0;

		for (uint32 list = 0; list < nlists && !by_margin; list++)
			nbetter += scores[list] > score;
		finding->lists = by_margin ? (float) (reached - score) : (float) nbetter;
		finding->slack = neighbours[i].slack;
		finding->deviations = neighbours[i].deviations;
	}
}

/*
 * From findings to figures
 */

static int
compare_floats(const void *a, const void *b)
{
	float		x = *(const float *) a;
	float		y = *(const float *) b;

	return x < y ? -1 : x > y;
}

/* The value that a share of them does not exceed; sorts them. */
static float
quantile(float *values, size_t n, double share)
{
	qsort(values, n, sizeof(float), compare_floats);
	return values[Min(n - 1, (size_t) (n * share))];
}

/* How many of sorted values are not above `limit`. */
static size_t
count_up_to(const float *values, size_t n, float limit)
{
	size_t		low = 0;

	while (low < n)
	{
		size_t		middle = low + (n - low) / 2;

		if (values[middle] <= limit)
			low = middle + 1;
		else
			n = middle;
	}
	return low;
}

/* Rough costs of what a query does, in ns, for comparing ways to one recall. */
#define NS_PER_DIM_AND_CODE 0.012
#define NS_PER_LIST 300
#define NS_PER_ROW 2000
#define NS_PER_TOASTED_ROW 9000

/* How many lists a query reads that goes so far. */
static double
count_lists(const Figures *f, bool by_margin, float lists)
{
	return by_margin ? (double) count_up_to(f->margins, f->nmargins, lists) / f->nqueries :
		lists + 1;
}

/*
 * The cheapest way to a recall: the less is lost by the order of the estimates, the fewer
 * lists will do.  A neighbour is found if both its list and its slack are within reach.
 */
static void
choose_figures(const Figures *f, bool by_margin, double recall, double ns_per_list,
			   float *scratch, uint32 *nprobes, float *slack)
{
	double		ns_per_row = NS_PER_ROW +
		(f->nslacks > 0 ? (double) f->ntoasted / f->nslacks : 0) * NS_PER_TOASTED_ROW;
	double		least = DBL_MAX;
	size_t		wanted = (size_t) ceil(recall * f->n);

	for (int step = 1; step < 10; step++)
	{
		float		reach;
		float		lists;
		size_t		n = 0;
		double		cost;

		for (size_t i = 0; i < f->n; i++)
			scratch[i] = f->findings[i].slack;
		reach = quantile(scratch, f->n, 1 - (1 - recall) * step / 10);
		/*
		 * Less than none would give out rows beyond what the estimates say, which is
		 * well for the first ones and loses many later.
		 */
		reach = Max(reach, 0);
		for (size_t i = 0; i < f->n; i++)
			if (f->findings[i].slack <= reach)
				scratch[n++] = f->findings[i].lists;
		if (n < wanted)
			continue;
		qsort(scratch, n, sizeof(float), compare_floats);
		lists = scratch[Max(wanted, 1) - 1];
		cost = count_lists(f, by_margin, lists) * ns_per_list;
		if (f->nslacks > 0)
			cost += (double) count_up_to(f->slacks, f->nslacks, reach) / f->nqueries * ns_per_row;
		if (cost >= least)
			continue;
		least = cost;
		*nprobes = (uint32) Max(1, count_lists(f, by_margin, lists));
		if (f->nslacks == 0)
			continue;
		*slack = reach;
	}
}

/* All figures of a model, and its margins; false if no neighbour was found. */
static bool
fill_model(Figures *f, bool by_margin, bool exact, double rows_per_list, BqLayout *layout,
		   uint32 *nprobes)
{
	float	   *scratch = (float *) palloc((f->n + 1) * sizeof(float));
	double		ns_per_list = NS_PER_LIST + rows_per_list * layout->dim * NS_PER_DIM_AND_CODE;

	if (f->n == 0)
		return false;
	qsort(f->margins, f->nmargins, sizeof(float), compare_floats);
	qsort(f->slacks, f->nslacks, sizeof(float), compare_floats);
	for (int i = 0; i < BQ_RECALLS; i++)
	{
		/* re-ranking of what codes find is not the index's, and will lose some, too */
		double		lost = exact ? 1 - recalls[i] : (1 - recalls[i]) / 2;
		double		recall = 1 - lost * (1 - STOP_SHARE);

		for (size_t k = 0; k < f->n; k++)
			scratch[k] = f->findings[k].deviations;
		layout->model.deviations[i] = Max(layout->model.deviations[i],
										  quantile(scratch, f->n, 1 - lost * STOP_SHARE));
		choose_figures(f, by_margin, recall, ns_per_list, scratch, &nprobes[i],
					   &layout->model.slack[i]);
		nprobes[i] = Min(nprobes[i], layout->nlists);
	}
	layout->model.gap = (float) (f->gap / f->nqueries);
	for (int i = 0; i < BQ_MARGINS && f->nmargins > 0; i++)
	{
		double		probes = pow(layout->nlists, (double) i / (BQ_MARGINS - 1));

		layout->margins[i] = f->margins[Min(f->nmargins - 1, (size_t) (probes * f->nqueries))];
	}
	return true;
}

/*
 * Measuring
 */

/* Use rows spread over all of them as queries. */
static void
prepare_queries(Search *s, Vectors *v, uint32 wanted, Datum *operands)
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

/*
 * Measure for one distance, into `nprobes` and the rest of the layout's model; false if no
 * neighbour was found.
 */
static bool
measure(const Search *s, Vectors *v, const Datum *operands, int metric, const uint8 *groups,
		double nrows, BqLayout *layout, uint32 *nprobes)
{
	uint32		nlists = layout->nlists;
	bool		by_margin = metric == BQ_STRATEGY_COSINE && nlists > 1;
	float	   *scores = (float *) palloc0(nlists * sizeof(float));
	Neighbour  *nearest = find_neighbours(s, metric);
	Figures    *figures = new_figures(s->nqueries, nlists);
	uint8	   *block = (uint8 *) palloc0(bq_block_nbytes(s->dim));
	/* the row of that rank among all rows; with few there is none */
	int			rank = (int) Max(1, rint(BQ_MARGIN_RANK * (s->rows->n / nrows)));

	rank = (int) Min((size_t) rank, Max(s->rows->n, 2) - 1);
	for (uint32 k = 0; k < s->nqueries; k++)
	{
		const Neighbour *candidates = nearest + (size_t) k * CANDIDATES;
		TrueNeighbour found[NEIGHBOURS];
		int			n = 0;

		CHECK_FOR_INTERRUPTS();
		if (nlists > 1)
			bq_score_groups(groups, nlists, s->dim, &s->tables[k], scores);
		if (v->fetch != NULL)
			n = find_true_ones(v, s, k, candidates, operands[k], found, figures);
		else
			for (; n < NEIGHBOURS && candidates[n].row != SIZE_MAX; n++)
			{
				found[n].neighbour = &candidates[n];
				found[n].slack = -FLT_MAX;
			}
		for (int i = 0; i < n; i++)
			found[i].deviations = needed_deviations(s, k, found[i].neighbour, metric,
													candidates[rank - 1].key, block);
		add_figures(figures, scores, nlists, by_margin, -candidates[rank - 1].key, found, n);
	}
	return fill_model(figures, by_margin, v->fetch != NULL, nrows / nlists, layout,
					  nprobes);
}

/*
 * Measure with rows of the table as queries; `rows` may be a sample of nrows.  Lists are
 * those of the rows, NULL if there is but one.  By cosine, lists are read as far as a margin
 * says (see BqMetaPageData); by inner product, where long vectors are near from far away,
 * and by L2 distance, a fixed number of them.  Without a heap, or in an index on codes, codes
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
	uint32		wanted = (uint32) Min(rows->n, QUERIES);
	Datum	   *operands = (Datum *) palloc(Max(wanted, 1) * sizeof(Datum));
	uint8	   *groups = layout->nlists > 1 ? bq_pack_directions(centroids) : NULL;
	const BqModel before = layout->model;
	bool		found = false;
	Vectors		v = {0};
	Search		s = {
		.rows = rows,
		.lists = lists,
		.dim = layout->dim,
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
	/* inner products first: what they share with cosines is the cosines' */
	if (source == NULL)
		found = measure(&s, &v, operands, BQ_STRATEGY_IP, groups, nrows, layout,
						layout->model.product_nprobes);
	found |= measure(&s, &v, operands, metric, groups, nrows, layout, layout->model.nprobes);
	if (!found)
		layout->model = before;
	if (v.fetch != NULL)
		bq_end_fetching(v.fetch);
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
}
