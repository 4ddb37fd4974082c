/*
 * bqscan.c: a query: preparing it, and giving out its rows.
 *
 * Reading a list runs the query's lookup table over all codes in it.  The table has 8-bit
 * entries, so its sums give a lower bound of the distance rather than the distance; the
 * `keep` rows with the lowest bounds become candidates.  They wait in a heap; a candidate
 * that comes to the top with a bound gets its exact distance (by the same function as the
 * operator in a sequential scan) and sinks to its place.
 *
 * Rows come out in strict order, because the planner trusts it (DISTINCT, window functions,
 * incremental sorts): a row met in a list read late, and nearer than one that was given, is
 * passed over.  bq.iterative_scan = relaxed_order gives it all the same.
 *
 * No page stays pinned between two rows.  A row may be removed by vacuum while its
 * position waits in the heap, and its place may be used again: an MVCC snapshot does
 * not see the newcomer, so other snapshots are refused (as pgvector does).
 */
#include "postgres.h"

#include <math.h>

#include "access/relscan.h"
#include "index/bqscan.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "type/bqvec.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/spccache.h"

/*
 * Rounding errors of table entries, each at most half a step, are independent ones
 * (core/bqlut.c): their sum stays within this many standard deviations.
 */
#define BOUND_DEVIATIONS 6

/* How many more lists a scan in strict order reads at a time: a part of those so far. */
#define GROWTH 4
#define MIN_GROWTH 4

/* Relative rounding error of BqBlockData.inverse at its smallest. */
#define INVERSE_ERROR ((float) (0.51 * BQ_INVERSE_UNIT * BQ_STRONG))

IndexScanDesc
bqbeginscan(Relation index, int nkeys, int norderbys)
{
	IndexScanDesc scan = RelationGetIndexScan(index, nkeys, norderbys);
	BqScan	   *so = (BqScan *) palloc0(sizeof(BqScan));

	so->scan_context = CurrentMemoryContext;
	so->source = bq_get_source(index);
	so->row_context = AllocSetContextCreate(CurrentMemoryContext, "bq row",
											ALLOCSET_DEFAULT_SIZES);
	so->query_context = AllocSetContextCreate(CurrentMemoryContext, "bq scan",
											  ALLOCSET_DEFAULT_SIZES);
	scan->opaque = so;
	return scan;
}

void
bqrescan(IndexScanDesc scan, ScanKey keys, int nkeys, ScanKey orderbys, int norderbys)
{
	BqScan	   *so = (BqScan *) scan->opaque;

	if (keys != NULL && scan->numberOfKeys > 0)
		memmove(scan->keyData, keys, scan->numberOfKeys * sizeof(ScanKeyData));
	if (orderbys != NULL && scan->numberOfOrderBys > 0)
		memmove(scan->orderByData, orderbys, scan->numberOfOrderBys * sizeof(ScanKeyData));

	bq_end_sorting(so);
	MemoryContextReset(so->query_context);
	so->started = false;
	so->candidates = NULL;
	so->ncandidates = 0;
	so->capacity = 0;
	so->passed = NULL;
	so->passed_capacity = 0;
	so->nreturned = 0;
}

/* Scale a query to a length near 1, by a power of two: products and norms then stay floats. */
static void
scale_query(BqScan *so)
{
	int			dim = so->layout.dim;
	double		length = sqrt(bq_kernel->sum_squares(so->q, dim));
	float	   *scaled = (float *) palloc(dim * sizeof(float));
	int			exponent = 0;

	if (length > 0)
		frexp(length, &exponent);
	so->unit = ldexp(1, -exponent);
	so->length = length * so->unit;
	for (int i = 0; i < dim; i++)
		scaled[i] = (float) (so->q[i] * so->unit);
	so->table = bq_make_table(scaled, dim);
	if (so->reach.deviations < BQ_NO_STOP)
		so->nstops = bq_make_stops(scaled, dim, &so->table, so->stops);
	pfree(scaled);
}

/* A query for vectors: the operand, turned as the codes were. */
static void
prepare_vector(BqScan *so, Datum operand)
{
	int			dim = so->layout.dim;
	float	   *q = (float *) palloc(dim * sizeof(float));
	float		norm;

	bq_check_status(bq_prepare_query(bq_read_vector(so->source, operand, dim, q), dim,
									 bq_get_rotation(dim, so->layout.transform), q, &norm));
	so->q = q;
	scale_query(so);
	bq_set_slack(so, so->reach.slack);
}

/* Prepare table, rounding bound and order of lists for the operand, and read the first lists. */
void
bq_start_query(IndexScanDesc scan, const BqLayout *layout)
{
	Relation	index = scan->indexRelation;
	BqScan	   *so = (BqScan *) scan->opaque;
	ScanKey		key = &scan->orderByData[0];

	so->started = true;
	so->mode = (BqIterativeScan) bq_iterative_scan;
	so->max_rows = bq_max_scan_tuples;
	so->strategy = key->sk_strategy;
	so->layout = *layout;
	so->slack = 0;
	so->filter = bq_make_filter(scan);
	so->heap = scan->heapRelation;
	so->heap_pages = 0;
	so->shift = 0;
	so->row_margin = INFINITY;
	so->reach = bq_wanted_reach(index, &so->layout, so->strategy);
	so->unit = 1;
	so->length = 1;
	so->inverse_unit = so->source != NULL ? BQ_VECTOR_INVERSE_UNIT : BQ_INVERSE_UNIT;
	so->key_unit = (float) (so->inverse_unit / sqrt(so->layout.dim));
	so->batch = BQ_FIRST_BATCH;
	so->nstops = 0;
	so->npassed = 0;
	so->first_look = true;
	so->io_concurrency = get_tablespace_io_concurrency(index->rd_rel->reltablespace);
	so->heap_io_concurrency = scan->heapRelation == NULL ? 0 :
		get_tablespace_io_concurrency(scan->heapRelation->rd_rel->reltablespace);

	if (key->sk_flags & SK_ISNULL)
	{
		/* No row is nearer to NULL than another, nor to the zero vector. */
		so->strategy = BQ_STRATEGY_COSINE;
		so->q = (float *) palloc0(so->layout.dim * sizeof(float));
		scale_query(so);
	}
	else if (so->source != NULL)
		prepare_vector(so, key->sk_argument);
	else if (so->strategy == BQ_STRATEGY_HAMMING)
	{
		BqVecView	code = bqvec_view(PG_DETOAST_DATUM_PACKED(key->sk_argument));
		float	   *q = (float *) palloc(so->layout.dim * sizeof(float));

		bq_check_code(index, &so->layout, &code.header);
		so->table.entries = (uint8 *) palloc(bq_block_nbytes(so->layout.dim));
		bq_lut_hamming(code.planes, so->layout.dim, so->table.entries);
		bq_decode(code.planes, so->layout.dim, 1, NULL, q);
		so->q = q;
	}
	else
	{
		BqQuery    *query =
			bqquery_check_length((BqQuery *) PG_DETOAST_DATUM(key->sk_argument));

		bq_check_code(index, &so->layout, &query->header);
		so->q = query->values;
		scale_query(so);
		so->slack = so->table.scale * (float) Min(0.5 * so->layout.nrows,
												  BOUND_DEVIATIONS * sqrt(so->layout.nrows / 12.0)) +
			INVERSE_ERROR * fabsf(so->table.bias);
	}
	bq_rank_lists(index, so);

	so->have_floor = false;
	so->given = NULL;
	so->keep = BQ_FIRST_KEEP;
	bq_plan_segment(so, so->reach.nprobes);
	bq_clear_candidates(so);
	if (so->filter != NULL && so->filter->never)
	{
		bq_forget_lists(&so->ranking);
		so->most = 0;
	}
	bq_read_lists(index, so, 0);
}

/* May this scan read lists beyond the first ones, and are there any? */
static bool
may_go_on(const BqScan *so)
{
	return so->mode != BQ_ITERATIVE_OFF && bq_has_more_lists(so) &&
		(so->max_rows < 0 || so->nreturned < so->max_rows);
}

/* Go on to lists further away. */
static void
read_more_lists(IndexScanDesc scan)
{
	BqScan	   *so = (BqScan *) scan->opaque;

	if (so->mode == BQ_ITERATIVE_RELAXED)
	{
		/* what is left of the lists so far has been given out */
		bq_end_sorting(so);
		so->have_floor = false;
		bq_forget_given(so);
		bq_plan_segment(so, 2 * so->nchosen);
		bq_clear_candidates(so);
	}
	else
		bq_plan_segment(so, Max(so->nchosen / GROWTH, MIN_GROWTH));
	bq_read_lists(scan->indexRelation, so, so->segment_start);
}

/* Read the same lists again for the rows that were dropped, on from the last one given out. */
static void
read_lists_again(IndexScanDesc scan)
{
	BqScan	   *so = (BqScan *) scan->opaque;
	bool		relaxed = so->mode == BQ_ITERATIVE_RELAXED;

	if (bq_can_keep_more(so) || !so->progress)
		so->keep *= so->keep == BQ_FIRST_KEEP ? 4 : 16;
	else
	{
		/* a query that wants so many rows wants them all: sort them once */
		if (!relaxed && may_go_on(so))
			bq_plan_segment(so, so->layout.nlists);
		bq_begin_sorting(so);
	}
	bq_clear_candidates(so);
	so->npassed = 0;
	bq_read_lists(scan->indexRelation, so, relaxed ? so->segment_start : 0);
}

/*
 * The next row, as so->floor; false if there is none, or none before lists are read for which
 * this query is now waiting.
 */
bool
bq_next_row(IndexScanDesc scan)
{
	BqScan	   *so = (BqScan *) scan->opaque;

	while (!so->waiting)
	{
		const BqCandidate *first = bq_first_candidate(so);

		/* many may be passed over before one is given */
		CHECK_FOR_INTERRUPTS();
		if (first != NULL && !first->exact)
		{
			bq_make_exact(scan);
			continue;
		}
		if (first != NULL && so->dropped && bq_before(&so->limit, first))
			first = NULL;
		if (so->first_look && (first == NULL || so->nreturned >= BQ_NEIGHBOURS))
		{
			bq_raise_slack(so);
			bq_look_again(scan->indexRelation, so);
			continue;
		}
		if (first != NULL)
		{
			if (so->mode == BQ_ITERATIVE_STRICT && may_go_on(so) &&
				bq_wants_more_lists(so, first))
			{
				read_more_lists(scan);
				continue;
			}
			so->floor = bq_pop_candidate(so);
			so->have_floor = true;
			so->progress = true;
			if (so->mode == BQ_ITERATIVE_RELAXED && (so->source != NULL || so->nstops > 0))
				bq_note_given(so, &so->floor);
			return true;
		}
		if (so->dropped)
			read_lists_again(scan);
		else if (may_go_on(so))
			read_more_lists(scan);
		else
			return false;
	}
	return false;
}

bool
bqgettuple(IndexScanDesc scan, ScanDirection direction)
{
	BqScan	   *so = (BqScan *) scan->opaque;
	MemoryContext old_context = MemoryContextSwitchTo(so->query_context);
	bool		found;

	Assert(ScanDirectionIsForward(direction));
	if (!so->started)
	{
		BqLayout	layout;

		if (scan->numberOfOrderBys != 1)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("bq index \"%s\" can only answer ORDER BY one distance",
							RelationGetRelationName(scan->indexRelation))));
		if (!IsMVCCSnapshot(scan->xs_snapshot))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("non-MVCC snapshots are not supported with bq indexes")));
		if (!so->uncounted)
			pgstat_count_index_scan(scan->indexRelation);
#if PG_VERSION_NUM >= 180000
		if (scan->instrument)
			scan->instrument->nsearches++;
#endif
		layout = bq_get_layout(scan->indexRelation);
		bq_start_query(scan, &layout);
	}

	found = bq_next_row(scan);
	MemoryContextSwitchTo(old_context);
	if (found)
	{
		bq_prefetch_rows(scan);
		so->nreturned++;
		scan->xs_heaptid = so->floor.tid;
		scan->xs_recheck = so->filter != NULL && so->filter->lossy;
		scan->xs_recheckorderby = false;
	}
	return found;
}

void
bqendscan(IndexScanDesc scan)
{
	BqScan	   *so = (BqScan *) scan->opaque;

	bq_count_scan(scan->indexRelation, so);
	bq_end_sorting(so);
	if (so->fetch != NULL)
		bq_end_fetching(so->fetch);
	MemoryContextDelete(so->row_context);
	MemoryContextDelete(so->query_context);
	pfree(so);
	scan->opaque = NULL;
}

BqScanReport
bq_scan_report(IndexScanDesc scan)
{
	const BqScan *so = (const BqScan *) scan->opaque;
	BqScanReport report = {
		.nlists = so->nlists,
		.ncodes = so->ncodes,
		.nfetched = so->nfetched,
		.key = so->floor.key,
		.block = so->floor.block,
		.slot = so->floor.slot
	};

	return report;
}
