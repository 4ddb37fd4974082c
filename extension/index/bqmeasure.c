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

#include "index/bqsource.h"
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

const double bq_coverage[BQ_COVERAGES] = {0.80, 0.90, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999};

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
 * A place among the figures for the share of neighbours that each of two steps, lists and
 * order, must keep so that both together keep `recall`: between 0 and BQ_COVERAGES - 1, or
 * beyond; linear in the logarithm of what is lost.
 */
static double
find_place(double recall)
{
	double		lost = Max((1 - recall) / 2, 1e-6);
	int			i = 0;

	while (i < BQ_COVERAGES - 2 && lost < 1 - bq_coverage[i + 1])
		i++;
	return i + log((1 - bq_coverage[i]) / lost) /
		log((1 - bq_coverage[i]) / (1 - bq_coverage[i + 1]));
}

static double
interpolate(double a, double b, double place)
{
	return a + (b - a) * place;
}

/* How many lists a query reads first, on average. */
uint32
bq_wanted_probes(Relation index, const BqLayout *layout, int strategy)
{
	BqOptions  *options = (BqOptions *) index->rd_options;
	double		recall = bq_wanted_recall(index);
	/* indexes on vectors have one distance */
	const uint32 *figures = strategy == BQ_STRATEGY_IP && bq_get_source(index) == NULL ?
		layout->model.product_nprobes : layout->model.nprobes;
	double		place;
	int			i;
	double		probes;

	if (bq_probes > 0)
		return Min((uint32) bq_probes, layout->nlists);
	if (options != NULL && options->probes > 0)
		return Min((uint32) options->probes, layout->nlists);
	if (recall >= 1)
		return layout->nlists;
	place = find_place(recall);
	i = Max(0, Min((int) place, BQ_COVERAGES - 2));
	probes = exp(interpolate(log(figures[i]), log(figures[i + 1]), place - i));
	return (uint32) Max(1, Min(rint(probes), layout->nlists));
}

/* By how much the estimate of a cosine may be too low, in units of bqform.c. */
double
bq_wanted_slack(Relation index, const BqLayout *layout)
{
	double		recall = bq_wanted_recall(index);
	const float *figures = layout->model.slack;
	double		full = FULL_SLACK / sqrt(layout->dim);
	double		place;
	int			i;

	if (recall >= 1)
		return full;
	place = find_place(recall);
	i = Max(0, Min((int) place, BQ_COVERAGES - 2));
	return Min(full, interpolate(figures[i], figures[i + 1], place - i));
}

/* Figures of an index without rows, or with one list: nothing to measure. */
void
bq_clear_model(BqLayout *layout)
{
	for (int i = 0; i < BQ_COVERAGES; i++)
	{
		layout->model.nprobes[i] = 1;
		layout->model.product_nprobes[i] = 1;
		layout->model.slack[i] = (float) (UNKNOWN_SLACK / sqrt(layout->dim));
	}
}

/*
 * Finding neighbours by their codes
 */

typedef struct Neighbour
{
	float		key;			/* grows with the distance */
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
add_neighbour(Neighbour *nearest, float key, uint32 list, size_t row)
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
static inline float
estimate_key(int metric, float cosine, float norm, float length)
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
		found[i].key = FLT_MAX;
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
									 dim, v->form->rotation, q, length));
	norm = sqrt(bq_kernel->sum_squares(q, dim));
	if (norm == 0)
		return false;
	for (int i = 0; i < dim; i++)
		q[i] = (float) (q[i] / norm);
	return true;
}

/* The exact key of a row; false if it cannot be seen. */
static bool
fetch_key(Vectors *v, ItemPointer tid, Datum operand, float length, double *key)
{
	MemoryContext old_context = MemoryContextSwitchTo(v->row_context);
	Datum		value;
	bool		found = bq_fetch_value(v->fetch, tid, &value);

	if (found)
	{
		*key = DatumGetFloat8(FunctionCall2Coll(&v->distance, v->collation, value, operand));
		if (v->form->metric == BQ_STRATEGY_COSINE)
			*key -= 1;
		else if (v->form->metric == BQ_STRATEGY_L2)
			*key = *key * *key - (double) length * length;
		found = !isnan(*key);
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
 * The true neighbours among the candidates of query k, into true_ones[]; returns their
 * number.  For each, how much its estimate is beyond the last one's distance: so much slack
 * finds it before a query for all of them is over.
 */
static int
find_true_ones(Vectors *v, const Search *s, uint32 k, const Neighbour *nearest, Datum operand,
			   const Neighbour **true_ones, float *slacks)
{
	ExactNeighbour exact[CANDIDATES];
	int			n = 0;
	int			ntrue;

	for (int i = 0; i < CANDIDATES && nearest[i].row != SIZE_MAX; i++)
	{
		exact[n].neighbour = &nearest[i];
		if (fetch_key(v, &s->rows->tids[nearest[i].row], operand, s->lengths[k], &exact[n].key))
			n++;
	}
	qsort(exact, n, sizeof(ExactNeighbour), compare_exact);
	ntrue = Min(n, NEIGHBOURS);
	for (int i = 0; i < ntrue; i++)
	{
		size_t		row = exact[i].neighbour->row;
		double		width = s->inverse_unit * s->rows->inverses[row];

		if (v->form->metric == BQ_STRATEGY_IP)
			width *= s->rows->norms[row] * s->lengths[k];
		else if (v->form->metric == BQ_STRATEGY_L2)
			width *= 2 * s->rows->norms[row] * s->lengths[k];
		true_ones[i] = exact[i].neighbour;
		slacks[i] = width > 0 ? (float) ((exact[i].neighbour->key - exact[ntrue - 1].key) / width) : 0;
	}
	return ntrue;
}

/*
 * Measuring
 */

static int
compare_floats(const void *a, const void *b)
{
	float		x = *(const float *) a;
	float		y = *(const float *) b;

	return x < y ? -1 : x > y;
}

/* The value that a share of them does not exceed; they are sorted. */
static float
quantile(const float *values, size_t n, double share)
{
	return values[Min(n - 1, (size_t) (n * share))];
}

/* What is gathered about the lists of neighbours. */
typedef struct Figures
{
	float	   *margins;		/* up to each list of each query: BqMetaPageData.margins */
	size_t		nmargins;
	float	   *needed;			/* up to the list of each neighbour */
	float	   *ranks;			/* of the list of each neighbour */
	size_t		n;
} Figures;

static Figures
new_figures(uint32 nqueries, uint32 nlists)
{
	Figures		f = {0};

	f.margins = (float *) MemoryContextAllocHuge(CurrentMemoryContext,
												 (size_t) nqueries * nlists * sizeof(float));
	f.needed = (float *) palloc(nqueries * NEIGHBOURS * sizeof(float));
	f.ranks = (float *) palloc(nqueries * NEIGHBOURS * sizeof(float));
	return f;
}

/* Take in where the neighbours of a query lie; `reached`: cosine of its BQ_MARGIN_RANKth row. */
static void
add_figures(Figures *f, const float *scores, uint32 nlists, float reached,
			const Neighbour **neighbours, int n)
{
	for (uint32 list = 0; list < nlists; list++)
		f->margins[f->nmargins++] = reached - scores[list];
	for (int i = 0; i < n; i++)
	{
		float		score = scores[neighbours[i]->list];
		uint32		nbetter = 0;

		for (uint32 list = 0; list < nlists; list++)
			nbetter += scores[list] > score;
		f->needed[f->n] = reached - score;
		f->ranks[f->n++] = (float) nbetter;
	}
}

/* Lists for each coverage: a fixed number of them. */
static void
finish_ranks(Figures *f, uint32 nlists, uint32 *nprobes)
{
	qsort(f->ranks, f->n, sizeof(float), compare_floats);
	for (int i = 0; i < BQ_COVERAGES; i++)
		nprobes[i] = Min(nlists, (uint32) quantile(f->ranks, f->n, bq_coverage[i]) + 1);
}

/* The same on average, as far as a margin says. */
static void
finish_margins(Figures *f, uint32 nqueries, BqLayout *layout)
{
	size_t		nbelow = 0;

	qsort(f->needed, f->n, sizeof(float), compare_floats);
	qsort(f->margins, f->nmargins, sizeof(float), compare_floats);
	for (int i = 0; i < BQ_COVERAGES; i++)
	{
		float		margin = quantile(f->needed, f->n, bq_coverage[i]);

		while (nbelow < f->nmargins && f->margins[nbelow] <= margin)
			nbelow++;
		layout->model.nprobes[i] = (uint32) Max(1, nbelow / nqueries);
	}
	for (int i = 0; i < BQ_MARGINS; i++)
	{
		double		probes = pow(layout->nlists, (double) i / (BQ_MARGINS - 1));

		layout->margins[i] = f->margins[Min(f->nmargins - 1, (size_t) (probes * nqueries))];
	}
}

/*
 * Measure, with rows of the table as queries; `rows` may be a sample of nrows.  Lists are
 * those of the rows, NULL if there is but one.  By cosine, lists are read as far as a margin
 * says (see BqMetaPageData); by inner product, where long vectors are near from far away,
 * and by L2 distance, a fixed number of them.  Without a heap, or in an index on codes, codes
 * stand for the vectors, and nothing is learned of the slack.
 */
void
bq_measure(Relation heap, Relation index, const BqCentroids *centroids, const BqRows *rows,
		   const uint32 *lists, double nrows, BqLayout *layout)
{
	const BqSource *source = bq_get_source(index);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "bq measure",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	int			dim = layout->dim;
	uint32		nlists = layout->nlists;
	uint32		wanted = (uint32) Min(rows->n, QUERIES);
	int			metric = source != NULL ? bq_index_metric(index) : BQ_STRATEGY_COSINE;
	uint8	   *groups = nlists > 1 ? bq_pack_directions(centroids) : NULL;
	float	   *scores = (float *) palloc0(nlists * sizeof(float));
	float	   *q = (float *) palloc(dim * sizeof(float));
	Datum	   *operands = (Datum *) palloc(wanted * sizeof(Datum));
	Search		s = {.rows = rows,.lists = lists,.dim = dim};
	Vectors		v = {0};
	Neighbour  *nearest;
	Neighbour  *by_product = NULL;
	Figures		figures = new_figures(wanted, nlists);
	Figures		product_figures = {0};
	float	   *slacks = (float *) palloc(wanted * NEIGHBOURS * sizeof(float));
	size_t		nslacks = 0;
	int			rank = (int) Max(1, rint(BQ_MARGIN_RANK * (rows->n / nrows)));

	s.inverse_unit = source != NULL ? BQ_VECTOR_INVERSE_UNIT : BQ_INVERSE_UNIT;
	s.self = (size_t *) palloc(wanted * sizeof(size_t));
	s.tables = (BqTable *) palloc(wanted * sizeof(BqTable));
	s.lengths = (float *) palloc(wanted * sizeof(float));
	if (heap != NULL && source != NULL)
	{
		v.fetch = bq_begin_fetching(heap, index, GetActiveSnapshot());
		v.form = bq_begin_forming(index, dim, layout->transform);
		bq_distance_function(index, metric, &v.distance, &v.collation);
		v.row_context = AllocSetContextCreate(context, "bq row", ALLOCSET_DEFAULT_SIZES);
	}
	for (uint32 k = 0; k < wanted; k++)
	{
		size_t		row = rows->n * k / wanted;
		float		length = 1;

		if (v.fetch == NULL)
		{
			bq_set_to_code(q, rows->planes + row * bq_planes_nbytes(dim), dim);
			length = rows->norms[row];
		}
		else if (!fetch_query(&v, &rows->tids[row], &operands[s.nqueries], q, &length))
			continue;
		s.self[s.nqueries] = row;
		s.lengths[s.nqueries] = length;
		s.tables[s.nqueries++] = bq_make_table(q, dim);
	}
	nearest = find_neighbours(&s, metric);
	if (source == NULL)
	{
		by_product = find_neighbours(&s, BQ_STRATEGY_IP);
		product_figures = new_figures(wanted, nlists);
	}

	for (uint32 k = 0; k < s.nqueries; k++)
	{
		const Neighbour *candidates = nearest + (size_t) k * CANDIDATES;
		const Neighbour *found[NEIGHBOURS];
		int			n = 0;
		/* with few rows there is none of that rank */
		float		reached = -candidates[Min((size_t) rank, Max(rows->n, 2) - 1) - 1].key;

		CHECK_FOR_INTERRUPTS();
		if (nlists > 1)
			bq_score_groups(groups, nlists, dim, &s.tables[k], scores);
		if (v.fetch != NULL)
		{
			n = find_true_ones(&v, &s, k, candidates, operands[k], found, slacks + nslacks);
			nslacks += n;
		}
		else
			while (n < NEIGHBOURS && candidates[n].row != SIZE_MAX)
			{
				found[n] = &candidates[n];
				n++;
			}
		add_figures(&figures, scores, nlists, reached, found, n);
		if (by_product != NULL)
		{
			candidates = by_product + (size_t) k * CANDIDATES;
			for (n = 0; n < NEIGHBOURS && candidates[n].row != SIZE_MAX; n++)
				found[n] = &candidates[n];
			add_figures(&product_figures, scores, nlists, 0, found, n);
		}
	}
	if (figures.n > 0 && nlists > 1)
	{
		if (metric == BQ_STRATEGY_COSINE)
			finish_margins(&figures, s.nqueries, layout);
		else
			finish_ranks(&figures, nlists, layout->model.nprobes);
		if (by_product != NULL)
			finish_ranks(&product_figures, nlists, layout->model.product_nprobes);
	}
	if (nslacks > 0)
	{
		qsort(slacks, nslacks, sizeof(float), compare_floats);
		for (int i = 0; i < BQ_COVERAGES; i++)
			layout->model.slack[i] = quantile(slacks, nslacks, bq_coverage[i]);
	}
	if (v.fetch != NULL)
		bq_end_fetching(v.fetch);
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
}
