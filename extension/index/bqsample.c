/*
 * bqsample.c: a sample of the rows of an index on vectors, its statistics, and the pages on
 * which an index keeps those of its build.
 */
#include "postgres.h"

#include <math.h>

#include "access/tableam.h"
#include "common/pg_prng.h"
#include "index/bqsource.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "type/bqvec.h"
#include "utils/memutils.h"

#define SAMPLE_ROWS 2000
#define SAMPLE_ROWS_PER_PAGE 25	/* rows of one page may be alike; more if there are few pages */

/* Of the sample, one row in so many is searched with. */
#define SEARCH_STEP 20

typedef struct Sample
{
	const BqForm *form;
	int			limit;			/* rows wanted */
	size_t		n;
	int			of_page;		/* rows taken of this page */
	int			per_page;		/* at most */
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
		sample->of_page == sample->per_page)
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

	sample->per_page = Max(SAMPLE_ROWS_PER_PAGE, sample->limit / Max(npages, 1));
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

/*
 * Statistics of a sample of the rows that an index build would see: vectors of norm 1 where the
 * distance is cosine, and 0 left out.  In the current memory context.
 */
BqStatistics *
bq_sample_rows(Relation heap, Relation index, IndexInfo *info, int dim)
{
	BqStatistics *statistics = bq_new_statistics(dim);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "bq sample",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	Sample		sample = {0};

	sample.form = bq_begin_forming(index, dim, 0);
	sample.limit = (int) Max(Min((size_t) SAMPLE_ROWS,
								 (size_t) maintenance_work_mem * 1024 / 4 / (dim * sizeof(float))),
							 BQ_WINDOW_MIN_ROWS);
	sample.x = (float *) MemoryContextAllocHuge(context,
												(size_t) sample.limit * dim * sizeof(float));
	take_sample(heap, index, info, &sample);
	for (size_t i = 0; i < sample.n; i++)
		bq_add_row(statistics, sample.x + i * dim, NULL);
	if (sample.n >= BQ_WINDOW_MIN_ROWS)
		bq_search(sample.x, sample.n, dim, Max(sample.n / SEARCH_STEP, 50), sample.n,
				  bq_get_rotation(dim, BQ_SEARCH_TRANSFORM),
				  palloc(bq_search_room(sample.n, dim)), &statistics->searches);
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
	return statistics;
}

/*
 * Pages: the values of core/bqmoments.h, one after the other, from page 1 on.  The rest of the
 * statistics is in the metapage.
 */

/* Bytes that lie on a page of the statistics. */
#define PAGE_NBYTES (BQ_PAGE_NBYTES / sizeof(double) * sizeof(double))

BlockNumber
bq_count_statistics_pages(int dim)
{
	return (BlockNumber) ((VALUES_NBYTES(dim) + PAGE_NBYTES - 1) / PAGE_NBYTES);
}

/* Write them, of a new index that has no page after the metapage; the caller logs all pages. */
void
bq_write_statistics(Relation index, const BqStatistics *statistics)
{
	size_t		nbytes = VALUES_NBYTES(statistics->dim);
	BlockNumber blkno = BQ_METAPAGE_BLKNO + 1;

	for (size_t done = 0; done < nbytes; done += PAGE_NBYTES, blkno++)
	{
		Buffer		buffer = bq_new_page(index, MAIN_FORKNUM, blkno, BQ_PAGE_STATISTICS);

		memcpy(PageGetContents(BufferGetPage(buffer)), (const char *) statistics->values + done,
			   Min(nbytes - done, PAGE_NBYTES));
		UnlockReleaseBuffer(buffer);
	}
}

/* The statistics of the build; NULL: none were collected. */
BqStatistics *
bq_read_statistics(Relation index)
{
	BqMetaPageData meta = bq_read_metapage(index);
	BqLayout	layout = bq_read_layout(index);
	size_t		nbytes = VALUES_NBYTES(layout.dim);
	BlockNumber blkno = BQ_METAPAGE_BLKNO + 1;
	BqStatistics *statistics;

	if (meta.sample_rows == 0)
		return NULL;
	statistics = bq_new_statistics(layout.dim);
	statistics->count = (int64) meta.sample_rows;
	statistics->searches = meta.searches;
	for (size_t done = 0; done < nbytes; done += PAGE_NBYTES, blkno++)
	{
		Buffer		buffer = bq_read_page(index, blkno, BQ_PAGE_STATISTICS, BUFFER_LOCK_SHARE);

		memcpy((char *) statistics->values + done, PageGetContents(BufferGetPage(buffer)),
			   Min(nbytes - done, PAGE_NBYTES));
		UnlockReleaseBuffer(buffer);
	}
	return statistics;
}
