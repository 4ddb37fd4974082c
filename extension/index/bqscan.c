/*
 * bqscan.c: a query.
 *
 * The nearest lists are read in *segments*: first about as many as the setting, the
 * option or the index says, then, if the executor wants more rows, ever more of the
 * rest.  Within a segment rows come out in exact order of distance.
 *
 * Reading a segment runs the query's lookup table over all codes in it.  The table has
 * 8-bit entries, so its sums give a lower bound of the distance rather than the
 * distance; the `keep` rows with the lowest bounds become candidates.  They wait in a
 * heap; a candidate that comes to the top with a bound gets its exact distance (by the
 * same function as the operator in a sequential scan) and sinks to its place.  If the
 * executor outruns the candidates, the segment is read again for more of them: memory
 * stays bounded, and few queries ever ask.
 *
 * No page stays pinned between two rows.  A row may be removed by vacuum while its
 * position waits in the heap, and its place may be used again: an MVCC snapshot does
 * not see the newcomer, so other snapshots are refused (as pgvector does).
 */
#include "postgres.h"

#include <float.h>
#include <math.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "access/htup_details.h"
#include "access/relscan.h"
#include "index/bqindex.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_bitutils.h"
#include "type/bqvec.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Candidates kept at first: rows for LIMIT 40 (k = 10, rerank = 4) and a good margin. */
#define FIRST_KEEP BQ_MARGIN_RANK

/* A scan reads up to so many times the lists that the average one reads, and not less. */
#define MOST_PROBES 4
#define LEAST_PROBES 0.25

/*
 * Rounding errors of table entries, each at most half a step, are independent ones
 * (core/bqlut.c): their sum stays within this many standard deviations.
 */
#define BOUND_DEVIATIONS 6

/* Relative rounding errors: of BqBlockData.inverse at its smallest, of a few floats. */
#define INVERSE_ERROR ((float) (0.51 * BQ_INVERSE_UNIT * BQ_STRONG))
#define FLOAT_ERROR 4e-7f

/* How many pages of a list are asked for in advance. */
#define PREFETCH_PAGES 8

typedef struct BqCandidate
{
	double		key;			/* distance, up to a monotone map; see read_block() */
	uint32		block;
	uint16		slot;
	bool		exact;			/* key is the distance, not a bound */
	uint8		fetched;		/* how far prefetch_rows() has come with its table row */
	ItemPointerData tid;
	float		norm;
	Buffer		row_buffer;		/* where the row's page is, or was a moment ago */
} BqCandidate;

typedef struct BqScan
{
	MemoryContext context;		/* lives as long as the scan */
	MemoryContext query_context;	/* emptied by each rescan */
	BqLayout	layout;
	int			strategy;
	bool		started;

	/* the query */
	const float *q;				/* as in bqquery, or the decoded code */
	const uint8 *planes;		/* Hamming: the code */
	BqTable		table;			/* smaller sums are nearer */
	float		slack;			/* a bound of the rounding errors of a sum */

	/* lists */
	BqListData *lists;			/* all entries, as of the start of the scan */
	uint64	   *ranked;			/* a heap of lists not chosen yet, see rank_key() */
	uint32		nranked;
	uint32	   *chosen;			/* lists in the order they are read in */
	uint32		nchosen;
	uint32		segment_start;	/* in `chosen` */
	uint32		least;			/* of `chosen` in this segment; from there on ... */
	uint32		most;
	double		margin;			/* ... lists as far below the worst candidate as this */

	/* candidates: a heap once the segment has been read */
	BqCandidate *candidates;
	int			ncandidates;
	int			capacity;
	int			keep;
	bool		dropped;		/* some rows of the segment were not kept ... */
	BqCandidate limit;			/* ... all of them beyond this one */
	bool		have_floor;		/* rows up to this one have been given out */
	BqCandidate floor;
	bool		progress;		/* a row was given out since the segment was read */

	int64		nreturned;
	int64		nlists;			/* read, for EXPLAIN */
	int64		ncodes;			/* compared, for EXPLAIN */
} BqScan;

/* Order of candidates: no two are equal, so "beyond" has one meaning. */
static inline bool
before(const BqCandidate *a, const BqCandidate *b)
{
	if (a->key != b->key)
		return a->key < b->key;
	if (a->block != b->block)
		return a->block < b->block;
	return a->slot < b->slot;
}

/*
 * Partial selection and the heap
 */

/* Reorder so that the `k` first candidates are the lowest; 0 < k < n (Hoare's FIND). */
static void
select_candidates(BqCandidate *a, int n, int k)
{
	int			left = 0;
	int			right = n - 1;

	while (left < right)
	{
		BqCandidate pivot = a[left + (right - left) / 2];
		int			i = left;
		int			j = right;

		while (i <= j)
		{
			while (before(&a[i], &pivot))
				i++;
			while (before(&pivot, &a[j]))
				j--;
			if (i <= j)
			{
				BqCandidate swap = a[i];

				a[i++] = a[j];
				a[j--] = swap;
			}
		}
		if (k - 1 <= j)
			right = j;
		else if (k - 1 >= i)
			left = i;
		else
			break;
	}
}

static void
sift_down(BqCandidate *heap, int n, int i)
{
	BqCandidate moving = heap[i];

	for (;;)
	{
		int			child = 2 * i + 1;

		if (child >= n)
			break;
		if (child + 1 < n && before(&heap[child + 1], &heap[child]))
			child++;
		if (!before(&heap[child], &moving))
			break;
		heap[i] = heap[child];
		i = child;
	}
	heap[i] = moving;
}

/* Keep only the lowest `keep` candidates, and remember where the rest began. */
static void
drop_candidates(BqScan *so)
{
	select_candidates(so->candidates, so->ncandidates, so->keep);
	so->ncandidates = so->keep;
	so->limit = so->candidates[0];
	for (int i = 1; i < so->keep; i++)
		if (before(&so->limit, &so->candidates[i]))
			so->limit = so->candidates[i];
	so->dropped = true;
}

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
 * Take in a block: its header, and the sums of the query's table over its rows.
 *
 * Keys, with x the decoded code of length |x| = norm: Hamming, the distance itself;
 * cosine, -<q, x> / |x|; inner product, -<q, x>; L2, |x|^2 - 2 <q, x>.  Each grows with
 * its distance.  Adding `slack` to <q, levels> makes a lower bound of each.
 */
static void
read_block(BqScan *so, uint32 b, const BqBlockData *block, const uint16 *sums)
{
	float		keys[BQ_BLOCK];
	float		unit = (float) (BQ_INVERSE_UNIT / sqrt(so->layout.dim));
	double		limit = so->dropped ? so->limit.key : FLT_MAX;

	if (so->strategy == BQ_STRATEGY_HAMMING)
	{
		for (int c = 0; c < BQ_BLOCK; c++)
			keys[c] = sums[c];
	}
	else
		bq_kernel->scale_sums(sums, so->table.scale * unit, (so->table.bias + so->slack) * unit,
							  block->inverse, keys);
	if (so->strategy == BQ_STRATEGY_IP)
	{
		for (int c = 0; c < BQ_BLOCK; c++)
			keys[c] *= block->norm[c];
	}
	else if (so->strategy == BQ_STRATEGY_L2)
	{
		for (int c = 0; c < BQ_BLOCK; c++)
			keys[c] = (2 * keys[c] + block->norm[c] * (1 - FLOAT_ERROR)) * block->norm[c];
	}
	/* a bound below, also where the product of two norms is beyond floats */
	for (int c = 0; c < BQ_BLOCK; c++)
		keys[c] = keys[c] < FLT_MAX ? keys[c] : FLT_MAX;

	/* Few blocks have a row worth a look: find them without a branch per row. */
	for (uint32 wanted = keys_up_to(keys, limit) & block->live; wanted != 0;
		 wanted &= wanted - 1)
	{
		int			c = pg_rightmost_one_pos32(wanted);
		BqCandidate *candidate = &so->candidates[so->ncandidates];

		if (keys[c] > limit)
			continue;
		candidate->key = keys[c];
		candidate->block = b;
		candidate->slot = (uint16) c;
		/* a row of norm 0 has no rounding errors: its product is 0 */
		candidate->exact = so->strategy == BQ_STRATEGY_HAMMING || block->norm[c] == 0;
		candidate->tid = block->tid[c];
		candidate->norm = block->norm[c];
		candidate->fetched = 0;
		if (candidate->exact && so->have_floor && !before(&so->floor, candidate))
			continue;
		if (so->have_floor && !candidate->exact && fabsf(keys[c]) < FLT_MAX)
		{
			/* the upper bound, on the other side of the estimate */
			double		factor = (double) unit * block->inverse[c] * 2 * so->slack;

			if (so->strategy == BQ_STRATEGY_IP)
				factor *= block->norm[c];
			else if (so->strategy == BQ_STRATEGY_L2)
				factor = (2 * factor + 2 * FLOAT_ERROR * block->norm[c]) * block->norm[c];
			if (candidate->key + factor < so->floor.key)
				continue;
		}
		so->ncandidates++;
		if (so->ncandidates == so->capacity)
		{
			drop_candidates(so);
			limit = so->limit.key;
		}
	}
}

/* Copy the entries of all lists. */
static void
read_entries(Relation index, BqScan *so)
{
	uint32		list = 0;

	so->lists = (BqListData *) palloc(so->layout.nlists * sizeof(BqListData));
	while (list < so->layout.nlists)
	{
		uint32		n = Min(so->layout.nlists - list, (uint32) BQ_LISTS_PER_PAGE);
		Buffer		buffer = bq_read_page(index, bq_list_page(&so->layout, list), BQ_PAGE_LISTS,
										  BUFFER_LOCK_SHARE);

		memcpy(so->lists + list, BqPageGetList(BufferGetPage(buffer), list),
			   n * sizeof(BqListData));
		UnlockReleaseBuffer(buffer);
		list += n;
	}
}

/*
 * Ask for a list that will be read next: its headers and its code pages.  A guess:
 * blocks lie in a row if the build wrote them.
 */
static void
prefetch_list(Relation index, const BqScan *so, uint32 list)
{
	const BqListData *entry = &so->lists[list];
	uint64		row = bq_first_row(&so->layout, entry->head);
	uint64		end = row + (uint64) entry->nblocks * so->layout.nrows;

	if (entry->head == BQ_NO_BLOCK)
		return;
	bq_prefetch(index, bq_header_page(&so->layout, entry->head),
				SizeOfPageHeaderData + entry->head % BQ_HEADERS_PER_PAGE * sizeof(BqBlockData));
	for (int i = 0; row < end && i < PREFETCH_PAGES; i++)
	{
		bq_prefetch(index, bq_code_page(&so->layout, row),
					SizeOfPageHeaderData + row % BQ_ROWS_PER_PAGE * BQ_ROW_NBYTES);
		row += BQ_ROWS_PER_PAGE - row % BQ_ROWS_PER_PAGE;
	}
}

/* Read all blocks of a list. */
static void
read_list(Relation index, BqScan *so, uint32 list)
{
	BqListReader reader;
	const BqBlockData *block;

	bq_begin_list(&reader, index, &so->layout, list, &so->lists[list]);
	while ((block = bq_next_block(&reader)) != NULL)
	{
		uint16		sums[BQ_BLOCK];

		bq_sum_block(&reader, so->table.entries, sums);
		read_block(so, reader.block, block, sums);
		so->ncodes += BQ_BLOCK;
	}
	bq_end_list(&reader);
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
static void
rank_lists(Relation index, BqScan *so)
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
	for (uint32 list = 0; list < nlists; list++)
		so->ranked[list] = rank_key(scores[list], list);
	so->nranked = nlists;
	so->nchosen = 0;
	for (uint32 i = nlists / 2; i-- > 0;)
		sink_list(so, i);
	pfree(scores);
}

/* Begin a segment of about `probes` lists, or as many as there are. */
static void
plan_segment(BqScan *so, uint32 probes)
{
	uint32		nlists = so->layout.nlists;

	so->segment_start = so->nchosen;
	so->least = so->most = Min(so->nchosen + Max(probes, 1), nlists);
	so->margin = 0;
	if (so->strategy == BQ_STRATEGY_COSINE && so->nchosen == 0 && so->most < nlists)
	{
		double		place = log(probes) / log(nlists) * (BQ_MARGINS - 1);
		int			i = (int) place;
		const float *margins = so->layout.margins;

		so->margin = margins[i] + (place - i) * (margins[i + 1] - margins[i]);
		so->margin *= sqrt(bq_kernel->sum_squares(so->q, so->layout.dim));
		so->least = (uint32) Max(1, probes * LEAST_PROBES);
		so->most = (uint32) Min((uint64) probes * MOST_PROBES, nlists);
	}
}

/* Is there an i-th list in this segment?  Chooses it if it was not chosen before. */
static bool
choose_list(BqScan *so, uint32 i)
{
	if (i < so->nchosen)
		return true;
	if (so->nchosen == so->most)
		return false;
	/* keys of cosine are -<q, x> / |x| */
	if (so->nchosen >= so->least && so->dropped &&
		ranked_score(so->ranked[0]) < -so->limit.key - so->margin)
	{
		so->most = so->nchosen;
		return false;
	}
	so->chosen[so->nchosen++] = ranked_list(so->ranked[0]);
	so->ranked[0] = so->ranked[--so->nranked];
	sink_list(so, 0);
	return true;
}

/* Read the lists of the segment and make the candidates a heap. */
static void
read_segment(IndexScanDesc scan)
{
	BqScan	   *so = (BqScan *) scan->opaque;

	if (so->capacity < 4 * so->keep)
	{
		so->capacity = 4 * so->keep;
		if (so->candidates != NULL)
			pfree(so->candidates);
		so->candidates = (BqCandidate *) MemoryContextAllocHuge(so->query_context, (size_t) so->capacity *
																sizeof(BqCandidate));
	}
	so->ncandidates = 0;
	so->dropped = false;
	so->progress = false;
	for (uint32 i = so->segment_start; choose_list(so, i); i++)
	{
		if (i + 1 < so->nchosen)
			prefetch_list(scan->indexRelation, so, so->chosen[i + 1]);
		else if (so->nranked > 0)
			prefetch_list(scan->indexRelation, so, ranked_list(so->ranked[0]));
		read_list(scan->indexRelation, so, so->chosen[i]);
		so->nlists++;
	}
	/* the same lists if they are read again */
	so->most = so->nchosen;
	if (so->ncandidates > so->keep)
		drop_candidates(so);
	for (int i = so->ncandidates / 2 - 1; i >= 0; i--)
		sift_down(so->candidates, so->ncandidates, i);
}

/* The exact key of a candidate: what the operators compute, but for the monotone map. */
static double
exact_key(Relation index, BqScan *so, const BqCandidate *candidate, uint8 *planes)
{
	float		norm = candidate->norm;
	double		product;

	bq_read_planes(index, &so->layout, candidate->block, candidate->slot, planes);
	product = bq_inner_product(so->q, planes, so->layout.dim,
							   so->strategy == BQ_STRATEGY_COSINE ? 1 : norm);
	if (so->strategy == BQ_STRATEGY_L2)
		return (double) norm * norm - 2 * product;
	return -product;
}

/* Rows of the table asked for ahead of the executor, and the most of each, in bytes. */
#define PREFETCH_ROWS 3
#define PREFETCH_ROW_NBYTES 1024

/*
 * The rows next in turn will be fetched from the table, each from another page.  Bring
 * them closer: the page from disk to the system's cache if it is not in shared
 * buffers, else its header and line pointer to the CPU's cache, and at the next call
 * the row itself.  Nothing is pinned: what is read here only steers prefetches.
 */
static void
prefetch_rows(IndexScanDesc scan)
{
	BqScan	   *so = (BqScan *) scan->opaque;

	if (scan->heapRelation == NULL)
		return;
	for (int i = 0; i < PREFETCH_ROWS && i < so->ncandidates; i++)
	{
		BqCandidate *candidate = &so->candidates[i];
		OffsetNumber offset = ItemPointerGetOffsetNumber(&candidate->tid);

		if (offset > MaxHeapTuplesPerPage)
			continue;
		if (candidate->fetched == 0)
		{
			candidate->fetched = 1;
			candidate->row_buffer =
				PrefetchBuffer(scan->heapRelation, MAIN_FORKNUM,
							   ItemPointerGetBlockNumber(&candidate->tid)).recent_buffer;
			if (candidate->row_buffer > 0)
			{
				Page		page = BufferGetPage(candidate->row_buffer);

				__builtin_prefetch(page);
				__builtin_prefetch(PageGetItemId(page, offset));
			}
		}
		else if (candidate->fetched == 1)
		{
			candidate->fetched = 2;
			if (candidate->row_buffer > 0)
			{
				Page		page = BufferGetPage(candidate->row_buffer);
				ItemId		item = PageGetItemId(page, offset);
				int			nbytes = Min(ItemIdGetLength(item), PREFETCH_ROW_NBYTES);

				for (int at = 0; at < nbytes; at += 64)
					__builtin_prefetch((char *) page + ItemIdGetOffset(item) + at);
			}
		}
	}
}

/*
 * The access method's callbacks
 */

IndexScanDesc
bqbeginscan(Relation index, int nkeys, int norderbys)
{
	IndexScanDesc scan = RelationGetIndexScan(index, nkeys, norderbys);
	BqScan	   *so = (BqScan *) palloc0(sizeof(BqScan));

	so->context = CurrentMemoryContext;
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

	MemoryContextReset(so->query_context);
	so->started = false;
	so->candidates = NULL;
	so->ncandidates = 0;
	so->capacity = 0;
	so->nreturned = 0;
}

/* Prepare table, rounding bound and order of lists for the operand. */
static void
start_query(IndexScanDesc scan)
{
	Relation	index = scan->indexRelation;
	BqScan	   *so = (BqScan *) scan->opaque;
	ScanKey		key = &scan->orderByData[0];
	BqOptions  *options = (BqOptions *) index->rd_options;
	uint32		probes;
	float	   *q;

	so->started = true;
	so->strategy = key->sk_strategy;
	so->layout = bq_get_layout(index);
	so->slack = 0;

	if (key->sk_flags & SK_ISNULL)
	{
		/* No row is nearer to NULL than another, nor to the zero vector. */
		so->strategy = BQ_STRATEGY_COSINE;
		q = (float *) palloc0(so->layout.dim * sizeof(float));
		so->table = bq_make_table(q, so->layout.dim);
	}
	else if (so->strategy == BQ_STRATEGY_HAMMING)
	{
		BqVecView	code = bqvec_view(PG_DETOAST_DATUM_PACKED(key->sk_argument));
		uint8	   *planes = (uint8 *) palloc(bq_planes_nbytes(code.header.dim));

		bq_check_code(index, &so->layout, &code.header);
		memcpy(planes, code.planes, bq_planes_nbytes(code.header.dim));
		so->planes = planes;
		so->table.entries = (uint8 *) palloc(bq_block_nbytes(so->layout.dim));
		bq_lut_hamming(planes, so->layout.dim, so->table.entries);
		q = (float *) palloc(so->layout.dim * sizeof(float));
		bq_decode(planes, so->layout.dim, 1, NULL, q);
	}
	else
	{
		BqQuery    *query =
			bqquery_check_length((BqQuery *) PG_DETOAST_DATUM(key->sk_argument));

		bq_check_code(index, &so->layout, &query->header);
		q = query->values;
		so->table = bq_make_table(q, so->layout.dim);
		so->slack = so->table.scale * (float) Min(0.5 * so->layout.nrows,
											BOUND_DEVIATIONS * sqrt(so->layout.nrows / 12.0)) +
			INVERSE_ERROR * fabsf(so->table.bias);
	}
	so->q = q;

	rank_lists(index, so);
	read_entries(index, so);

	probes = so->strategy == BQ_STRATEGY_IP ? so->layout.product_nprobes : so->layout.nprobes;
	if (options != NULL && options->probes > 0)
		probes = options->probes;
	if (bq_probes > 0)
		probes = bq_probes;
	so->have_floor = false;
	so->keep = FIRST_KEEP;
	plan_segment(so, probes);
}

/* Go on to lists further away; false at the end of the scan. */
static bool
next_segment(BqScan *so)
{
	if (!bq_iterative_scan || so->nranked == 0)
		return false;
	if (bq_max_scan_tuples >= 0 && so->nreturned >= bq_max_scan_tuples)
		return false;
	so->have_floor = false;
	plan_segment(so, 2 * so->nchosen);
	return true;
}

bool
bqgettuple(IndexScanDesc scan, ScanDirection direction)
{
	BqScan	   *so = (BqScan *) scan->opaque;
	MemoryContext old_context = MemoryContextSwitchTo(so->query_context);
	bool		found = false;

	Assert(ScanDirectionIsForward(direction));
	if (!so->started)
	{
		if (scan->numberOfOrderBys != 1)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("bq index \"%s\" can only answer ORDER BY one distance",
							RelationGetRelationName(scan->indexRelation))));
		if (!IsMVCCSnapshot(scan->xs_snapshot))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("non-MVCC snapshots are not supported with bq indexes")));
		pgstat_count_index_scan(scan->indexRelation);
#if PG_VERSION_NUM >= 180000
		if (scan->instrument)
			scan->instrument->nsearches++;
#endif
		start_query(scan);
		read_segment(scan);
	}

	while (!found)
	{
		uint8		planes[2 * (BQ_INDEX_MAX_DIM / 8)];

		while (so->ncandidates > 0)
		{
			BqCandidate *top = &so->candidates[0];

			if (!top->exact)
			{
				top->key = exact_key(scan->indexRelation, so, top, planes);
				top->exact = true;
				if (!so->have_floor || before(&so->floor, top))
				{
					sift_down(so->candidates, so->ncandidates, 0);
					continue;
				}
				/* given out by an earlier reading: remove it */
			}
			else if (so->dropped && before(&so->limit, top))
				break;
			else
			{
				so->floor = *top;
				so->have_floor = true;
				so->progress = true;
				scan->xs_heaptid = top->tid;
				found = true;
			}
			*top = so->candidates[--so->ncandidates];
			sift_down(so->candidates, so->ncandidates, 0);
			if (found)
				break;
		}
		if (found)
			break;

		CHECK_FOR_INTERRUPTS();
		if (so->dropped)
		{
			/* As many as work_mem holds, then on from the last row given out. */
			if ((int64) so->keep * 16 * (int64) sizeof(BqCandidate) <= (int64) work_mem * 1024 ||
				!so->progress)
				so->keep *= 4;
		}
		else if (!next_segment(so))
			break;
		read_segment(scan);
	}

	MemoryContextSwitchTo(old_context);
	if (found)
	{
		prefetch_rows(scan);
		so->nreturned++;
		scan->xs_recheck = false;
		scan->xs_recheckorderby = false;
	}
	return found;
}

void
bqendscan(IndexScanDesc scan)
{
	BqScan	   *so = (BqScan *) scan->opaque;

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
		.key = so->floor.key,
		.block = so->floor.block,
		.slot = so->floor.slot
	};

	return report;
}
