/*
 * bqchoice.c: original axes or a random rotation, for an index on vectors.
 *
 * Codes of a sample of the table's rows are made both ways, and the sample is searched with
 * some of its own rows: the choice is the side that finds more of their true neighbours.  No
 * closed form is as safe: dependence between coordinates shows in what is found, and in no
 * statistic of single ones.  What is as good either way is rotated: a rotation costs
 * nothing, and keeps what later rows may need.
 */
#include "postgres.h"

#include <math.h>

#include "access/tableam.h"
#include "common/pg_prng.h"
#include "index/bqsource.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "type/bqcolumns.h"
#include "type/bqvec.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#define SAMPLE_ROWS 2000
#define SAMPLE_ROWS_PER_PAGE 25	/* rows of one page may be alike */
#define QUERIES 100
#define NEIGHBOURS 10

/* Fewer rows tell nothing. */
#define MIN_ROWS 100

/* The axes are chosen only if they find so much more. */
#define CLEAR_GAIN 0.01

/* Any rotation is as good as another; a fixed one makes builds repeatable. */
#define ROTATION 1

typedef struct Sample
{
	const BqForm *form;
	int			limit;			/* rows wanted */
	size_t		n;
	int			of_page;		/* rows taken of this page */
	float	   *x;				/* n x dim */
} Sample;

static void
take_row(Relation index, ItemPointer tid, Datum *values, bool *isnull, bool alive, void *arg)
{
	Sample	   *sample = (Sample *) arg;
	int			dim = sample->form->dim;
	float	   *x = sample->x + (size_t) sample->n * dim;
	float		norm;

	(void) index;
	(void) tid;
	if (isnull[0] || !alive || sample->n == (size_t) sample->limit ||
		sample->of_page == SAMPLE_ROWS_PER_PAGE)
		return;
	memcpy(x, bq_read_vector(sample->form->source, values[0], dim, sample->form->room),
		   dim * sizeof(float));
	bq_check_status(bq_prepare_query(x, dim, NULL, x, &norm));
	if (norm == 0)
		return;
	/* to length 1: neither products nor the choice need the size of the numbers */
	for (int i = 0; i < dim && sample->form->metric == BQ_STRATEGY_COSINE; i++)
		x[i] /= norm;
	sample->n++;
	sample->of_page++;
}

/* Take rows from pages in random order, until there are enough. */
static void
take_sample(Relation heap, Relation index, IndexInfo *info, Sample *sample)
{
	BlockNumber npages = RelationGetNumberOfBlocks(heap);
	BlockNumber *pages = (BlockNumber *) MemoryContextAllocHuge(CurrentMemoryContext,
																Max(npages, 1) * sizeof(BlockNumber));
	pg_prng_state random;

	pg_prng_seed(&random, 0x6271);
	for (BlockNumber i = 0; i < npages; i++)
		pages[i] = i;
	for (BlockNumber i = 0; i < npages && sample->n < (size_t) sample->limit; i++)
	{
		BlockNumber k = (BlockNumber) pg_prng_uint64_range(&random, i, npages - 1);
		BlockNumber page = pages[k];

		pages[k] = pages[i];
		sample->of_page = 0;
		table_index_build_range_scan(heap, index, info, false, false, false, page, 1, take_row,
									 sample, NULL);
		CHECK_FOR_INTERRUPTS();
	}
	pfree(pages);
}

/* What grows with the distance of a row from a query. */
static double
distance_key(int metric, double product, double norm)
{
	return metric == BQ_STRATEGY_L2 ? norm * norm - 2 * product : -product;
}

/* Mark the NEIGHBOURS rows of the lowest keys, but not row `self`. */
static void
mark_nearest(const double *keys, size_t n, size_t self, bool *marks)
{
	size_t		nearest[NEIGHBOURS];
	int			found = 0;

	for (size_t i = 0; i < n; i++)
	{
		int			place = found;

		if (i == self || (found == NEIGHBOURS && keys[i] >= keys[nearest[found - 1]]))
			continue;
		if (found < NEIGHBOURS)
			found++;
		else
			place--;
		for (; place > 0 && keys[nearest[place - 1]] > keys[i]; place--)
			nearest[place] = nearest[place - 1];
		nearest[place] = i;
	}
	memset(marks, 0, n * sizeof(bool));
	for (int i = 0; i < found; i++)
		marks[nearest[i]] = true;
}

static double
dot(const float *a, const float *b, int dim)
{
	float		lanes[16] = {0};	/* for the compiler to vectorize */
	double		sum = 0;
	int			i = 0;

	for (; i + 16 <= dim; i += 16)
		for (int k = 0; k < 16; k++)
			lanes[k] += a[i + k] * b[i + k];
	for (; i < dim; i++)
		sum += (double) a[i] * b[i];
	for (int k = 0; k < 16; k++)
		sum += lanes[k];
	return sum;
}

/* Recall of codes by one transform inside the sample. */
static double
measure_recall(const Sample *sample, const bool *truth, int transform)
{
	const BqForm *form = sample->form;
	int			dim = form->dim;
	const BqRotation *rotation = bq_get_rotation(dim, transform);
	size_t		planes_nbytes = bq_planes_nbytes(dim);
	uint8	   *planes = (uint8 *) palloc(sample->n * planes_nbytes);
	float	   *norms = (float *) palloc(sample->n * sizeof(float));
	float	   *q = (float *) palloc(dim * sizeof(float));
	double	   *keys = (double *) palloc(sample->n * sizeof(double));
	bool	   *marks = (bool *) palloc(sample->n * sizeof(bool));
	int			nqueries = (int) Min(QUERIES, sample->n);
	int			nhits = 0;

	for (size_t i = 0; i < sample->n; i++)
		bq_check_status(bq_encode(sample->x + i * dim, dim, BQ_CUT_RMS, rotation, q,
								  planes + i * planes_nbytes, &norms[i]));
	for (int k = 0; k < nqueries; k++)
	{
		size_t		self = sample->n * k / nqueries;
		float		norm;

		CHECK_FOR_INTERRUPTS();
		bq_check_status(bq_prepare_query(sample->x + self * dim, dim, rotation, q, &norm));
		for (size_t i = 0; i < sample->n; i++)
			keys[i] = distance_key(form->metric,
								   bq_inner_product(q, planes + i * planes_nbytes, dim, norms[i]),
								   norms[i]);
		mark_nearest(keys, sample->n, self, marks);
		for (size_t i = 0; i < sample->n; i++)
			nhits += marks[i] && truth[k * sample->n + i];
	}
	pfree(marks);
	pfree(keys);
	pfree(q);
	pfree(norms);
	pfree(planes);
	return (double) nhits / (nqueries * (double) Min(NEIGHBOURS, sample->n - 1));
}

/* The true neighbours of the queries: a bit for each query and row. */
static bool *
find_truth(const Sample *sample)
{
	int			dim = sample->form->dim;
	int			nqueries = (int) Min(QUERIES, sample->n);
	bool	   *truth = (bool *) palloc(nqueries * sample->n * sizeof(bool));
	double	   *keys = (double *) palloc(sample->n * sizeof(double));

	for (int k = 0; k < nqueries; k++)
	{
		size_t		self = sample->n * k / nqueries;

		CHECK_FOR_INTERRUPTS();
		for (size_t i = 0; i < sample->n; i++)
		{
			const float *x = sample->x + i * dim;

			keys[i] = distance_key(sample->form->metric,
								   dot(sample->x + self * dim, x, dim),
								   sample->form->metric == BQ_STRATEGY_L2 ? sqrt(dot(x, x, dim)) : 1);
		}
		mark_nearest(keys, sample->n, self, truth + k * sample->n);
	}
	pfree(keys);
	return truth;
}

/* What pybq decided for codes of the same column; -1: nothing. */
static int
decided_transform(Relation heap, Relation index)
{
	AttrNumber	column = index->rd_index->indkey.values[0];

	if (column == 0)			/* an expression */
		return -1;
	return bq_decided_transform(get_func_namespace(index->rd_amhandler), RelationGetRelid(heap),
								NameStr(TupleDescAttr(RelationGetDescr(heap), column - 1)->attname));
}

/*
 * The transform of an index that has no rows.  One on codes has that of its column's type; -1: it
 * has none, the first row decides.
 */
int
bq_transform_without_rows(Relation index)
{
	BqOptions  *options = (BqOptions *) index->rd_options;

	if (bq_get_source(index) == NULL)
		return bq_typmod_transform(bq_column_typmod(RelationGetDescr(index), 1));
	return options != NULL && options->transform >= 0 ? options->transform : ROTATION;
}

/* Choose the transform of an index on vectors: what was decided before, or what suits the rows. */
BqChoice
bq_choose_transform(Relation heap, Relation index, IndexInfo *info, int dim)
{
	BqChoice	choice = {.transform = decided_transform(heap, index)};
	MemoryContext context;
	MemoryContext old_context;
	Sample		sample = {0};

	if (choice.transform >= 0)
		return choice;
	choice.transform = ROTATION;
	context = AllocSetContextCreate(CurrentMemoryContext, "bq choice", ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(context);

	sample.form = bq_begin_forming(index, dim, 0);
	sample.limit = (int) Max(Min((size_t) SAMPLE_ROWS,
								 (size_t) maintenance_work_mem * 1024 / 4 / (dim * sizeof(float))),
							 MIN_ROWS);
	sample.x = (float *) MemoryContextAllocHuge(context,
												(size_t) sample.limit * dim * sizeof(float));
	take_sample(heap, index, info, &sample);
	if (sample.n >= MIN_ROWS)
	{
		const bool *truth = find_truth(&sample);

		choice.nrows = (uint32) sample.n;
		choice.recall_axes = (float) measure_recall(&sample, truth, 0);
		choice.recall_rotated = (float) measure_recall(&sample, truth, ROTATION);
		if (choice.recall_axes > choice.recall_rotated + CLEAR_GAIN)
			choice.transform = 0;
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
	return choice;
}
