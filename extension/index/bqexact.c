/* bqexact.c: the exact distance of a candidate. */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relscan.h"
#include "index/bqscan.h"
#include "utils/spccache.h"

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

/* The lowest candidate, of which only a bound is known: replace it by its exact distance. */
void
bq_make_exact(IndexScanDesc scan)
{
	BqScan	   *so = (BqScan *) scan->opaque;
	BqCandidate candidate = bq_pop_candidate(so);

	candidate.key = code_key(scan->indexRelation, so, &candidate);
	candidate.exact = true;
	/* a row that was given out by an earlier reading goes */
	if (!so->have_floor || bq_before(&so->floor, &candidate))
		bq_push_candidate(so, &candidate);
}

/*
 * The rows next in turn will be fetched from the table, each from another page: ask the
 * system for pages that are not in shared buffers, and the CPU for the start of others.
 * Nothing is read here, as nothing is pinned.
 */
void
bq_prefetch_rows(IndexScanDesc scan)
{
	BqScan	   *so = (BqScan *) scan->opaque;
	Relation	heap = scan->heapRelation;

	if (heap == NULL || get_tablespace_io_concurrency(heap->rd_rel->reltablespace) == 0)
		return;
	for (int i = 0; i < PREFETCH_ROWS && i < so->ncandidates; i++)
	{
		BqCandidate *candidate = &so->candidates[i];
		OffsetNumber offset = ItemPointerGetOffsetNumberNoCheck(&candidate->tid);
		Buffer		buffer;

		if (candidate->prefetched)
			continue;
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
}
