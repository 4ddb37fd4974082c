/* bqexact.c: the exact distance of a candidate. */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "access/htup_details.h"
#include "access/relscan.h"
#include "index/bqscan.h"
#include "utils/memutils.h"

/* Norms whose squares and products are floats with all their digits, and so pgvector's cosines. */
#define MIN_COSINE_NORM 1e-17
#define MAX_COSINE_NORM 1e19

/* Rows of the table asked for ahead of the executor. */
#define PREFETCH_ROWS 4

/* The key of a row by its code: what the operators compute, but for a monotone map. */
static double
code_key(Relation index, const BqScan *so, const BqCandidate *candidate)
{
	uint8		planes[2 * (BQ_INDEX_MAX_DIM / 8)];
	double		norm = candidate->norm;
	double		product;

	bq_read_planes(index, &so->layout, candidate->block, candidate->slot, planes);
	product = bq_inner_product(so->q, planes, so->layout.dim,
							   so->strategy == BQ_STRATEGY_COSINE ? 1 : candidate->norm);
	if (so->strategy == BQ_STRATEGY_L2)
		return (norm * norm - 2 * product) * so->unit * so->unit;
	return -product * so->unit;
}

/*
 * Ask for the page of a row of the table: the system if it is not in shared buffers, else the
 * CPU for its start and the row's line pointer.  Nothing is read here, as nothing is pinned.
 */
static void
prefetch_row(Relation heap, BqCandidate *candidate)
{
	OffsetNumber offset = ItemPointerGetOffsetNumberNoCheck(&candidate->tid);
	Buffer		buffer;

	if (candidate->prefetched)
		return;
	candidate->prefetched = true;
	buffer = PrefetchBuffer(heap, MAIN_FORKNUM,
							ItemPointerGetBlockNumberNoCheck(&candidate->tid)).recent_buffer;
	if (buffer > 0 && offset >= FirstOffsetNumber && offset <= MaxHeapTuplesPerPage)
	{
		Page		page = BufferGetPage(buffer);

		__builtin_prefetch(page);
		__builtin_prefetch(&((PageHeader) page)->pd_linp[offset - 1]);
	}
}

/* Put a candidate back with its exact key; one that was given out, or is passed over, goes. */
static void
put_back(BqScan *so, BqCandidate *candidate, double key)
{
	candidate->key = key;
	candidate->exact = true;
	if (!bq_was_given(so, candidate))
		bq_push_candidate(so, candidate);
}

/*
 * Does the operator's distance say where a row belongs?  Nothing is nearer to NULL than another,
 * nor by cosine to the zero vector.  A cosine of very small or large vectors is NaN, 0 or 2,
 * whichever way they point, because pgvector squares norms as floats.
 */
static bool
has_distance(const BqScan *so, const ScanKeyData *key, const BqCandidate *candidate)
{
	double		length = so->length / so->unit;

	if (key->sk_flags & SK_ISNULL)
		return false;
	return so->strategy != BQ_STRATEGY_COSINE ||
		(length >= MIN_COSINE_NORM && length <= MAX_COSINE_NORM &&
		 candidate->norm >= MIN_COSINE_NORM && candidate->norm <= MAX_COSINE_NORM);
}

/*
 * Distance of the row that a candidate stands for; false if the snapshot sees none there.
 * Where the operator's says nothing, the estimate stands.  That also keeps rows apart whose
 * products are beyond floats, all at -infinity: of those, the estimates would err.
 */
static bool
row_distance(IndexScanDesc scan, BqCandidate *candidate, double *distance)
{
	BqScan	   *so = (BqScan *) scan->opaque;
	ScanKey		key = &scan->orderByData[0];
	MemoryContext old_context;
	Datum		value;
	bool		found;

	old_context = MemoryContextSwitchTo(so->row_context);
	found = bq_fetch_value(so->fetch, &candidate->tid, &value);
	if (found && so->together)
		candidate->tid = bq_fetched_position(so->fetch);
	if (found)
	{
		*distance = !has_distance(so, key, candidate) ? NAN :
			DatumGetFloat8(FunctionCall2Coll(&key->sk_func, key->sk_collation, value,
											 key->sk_argument));
		candidate->odd = isnan(*distance) || (isinf(*distance) && *distance < 0);
		/* of infinite ones: the difference of vectors beyond floats */
		if (isnan(*distance))
			*distance = candidate->key;
		else if (candidate->odd)
			*distance = Min(candidate->key, -FLT_MAX);
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(so->row_context);
	return found;
}

/* What the operator says of the row that was given last: mostly what it was put in order by. */
double
bq_operator_distance(IndexScanDesc scan)
{
	BqScan	   *so = (BqScan *) scan->opaque;
	ScanKey		key = &scan->orderByData[0];
	double		distance = so->floor.key;
	MemoryContext old_context;
	Datum		value;

	if (!so->floor.odd || key->sk_flags & SK_ISNULL)
		return distance;
	old_context = MemoryContextSwitchTo(so->row_context);
	if (bq_fetch_version(so->fetch, &so->floor.tid, &value))
		distance = DatumGetFloat8(FunctionCall2Coll(&key->sk_func, key->sk_collation, value,
													key->sk_argument));
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(so->row_context);
	return distance;
}

static int
compare_positions(const void *a, const void *b)
{
	return ItemPointerCompare((ItemPointer) &((const BqCandidate *) a)->tid,
							  (ItemPointer) &((const BqCandidate *) b)->tid);
}

/*
 * The lowest candidates, of which only bounds are known: fetch their rows together, in the
 * order of the table, so that one row is on its way while another is compared.
 */
static void
compare_rows(IndexScanDesc scan)
{
	BqScan	   *so = (BqScan *) scan->opaque;
	BqCandidate batch[BQ_MAX_BATCH];
	const BqCandidate *next;
	int			n = 0;

	if (so->fetch == NULL)
	{
		MemoryContext old_context = MemoryContextSwitchTo(so->scan_context);

		so->fetch = bq_begin_fetching(scan->heapRelation, scan->indexRelation, scan->xs_snapshot);
		MemoryContextSwitchTo(old_context);
	}
	do
	{
		batch[n++] = bq_pop_candidate(so);
		next = bq_first_candidate(so);
	} while (n < so->batch && next != NULL && !next->exact &&
			 !(so->dropped && bq_before(&so->limit, next)));
	so->batch = BQ_LATER_BATCH;

	qsort(batch, n, sizeof(BqCandidate), compare_positions);
	for (int i = 0; i < n && so->heap_io_concurrency > 0; i++)
		prefetch_row(scan->heapRelation, &batch[i]);
	for (int i = 0; i < n; i++)
	{
		double		distance;

		so->nfetched++;
		if (row_distance(scan, &batch[i], &distance))
			put_back(so, &batch[i], distance);
	}
}

/* The lowest candidate, of which only a bound is known: replace it by its exact distance. */
void
bq_make_exact(IndexScanDesc scan)
{
	BqScan	   *so = (BqScan *) scan->opaque;
	BqCandidate candidate;

	if (so->source != NULL)
	{
		compare_rows(scan);
		return;
	}
	candidate = bq_pop_candidate(so);
	put_back(so, &candidate, code_key(scan->indexRelation, so, &candidate));
}

/*
 * The rows next in turn will be fetched from the table by the executor; those of vectors have
 * been.
 */
void
bq_prefetch_rows(IndexScanDesc scan)
{
	BqScan	   *so = (BqScan *) scan->opaque;

	if (so->source != NULL || so->heap_io_concurrency == 0)
		return;
	for (int i = 0; i < PREFETCH_ROWS && i < so->ncandidates; i++)
		prefetch_row(scan->heapRelation, &so->candidates[i]);
}
