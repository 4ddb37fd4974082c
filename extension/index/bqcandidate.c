/*
 * bqcandidate.c: the rows that may be wanted.
 *
 * While lists are read, candidates lie in an array; when it is full, the best `keep` of
 * them stay (partial selection).  Afterwards it is a heap.  If the executor outruns it,
 * lists are read again for more of them, and if those do not fit work_mem, all rows of
 * the lists go through a tuplesort, once: draining a table costs what sorting it does.
 */
#include "postgres.h"

#include "catalog/pg_operator_d.h"
#include "catalog/pg_type_d.h"
#include "executor/tuptable.h"
#include "index/bqscan.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* The array has room for so many times `keep`: then a selection pays. */
#define ROOM 4

/* Of many queries, memory for more of them at a time pays more. */
#define ROOM_TOGETHER 2

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
			while (bq_before(&a[i], &pivot))
				i++;
			while (bq_before(&pivot, &a[j]))
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
		if (child + 1 < n && bq_before(&heap[child + 1], &heap[child]))
			child++;
		if (!bq_before(&heap[child], &moving))
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
	BqCandidate worst;

	select_candidates(so->candidates, so->ncandidates, so->keep);
	so->ncandidates = so->keep;
	worst = so->candidates[0];
	for (int i = 1; i < so->keep; i++)
		if (bq_before(&worst, &so->candidates[i]))
			worst = so->candidates[i];
	/* what was dropped before is beyond the old limit */
	if (!so->dropped || bq_before(&worst, &so->limit))
		so->limit = worst;
	so->dropped = true;
	bq_note_limit(so);
}

/*
 * In memory
 */

/* Forget all candidates, and make room for those that are wanted now. */
void
bq_clear_candidates(BqScan *so)
{
	int			room = so->together ? ROOM_TOGETHER : ROOM;

	if (so->capacity < room * so->keep)
	{
		so->capacity = room * so->keep;
		if (so->candidates != NULL)
			pfree(so->candidates);
		so->candidates = (BqCandidate *)
			MemoryContextAllocHuge(so->query_context, (size_t) so->capacity * sizeof(BqCandidate));
	}
	so->ncandidates = 0;
	so->dropped = false;
	so->progress = false;
}

/* Place for one more candidate, which counts after bq_keep_candidate(). */
BqCandidate *
bq_new_candidate(BqScan *so)
{
	return &so->candidates[so->ncandidates];
}

static void
sort_candidate(BqScan *so, const BqCandidate *candidate)
{
	TupleTableSlot *slot = so->sorted_slot;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, false, 5 * sizeof(bool));
	slot->tts_values[0] = Float8GetDatum(candidate->key);
	slot->tts_values[1] = Int32GetDatum((int32) candidate->block);
	slot->tts_values[2] = Int32GetDatum(candidate->segment << 16 | candidate->slot << 1 |
										candidate->exact);
	slot->tts_values[3] = PointerGetDatum(&candidate->tid);
	slot->tts_values[4] = Float4GetDatum(candidate->norm);
	ExecStoreVirtualTuple(slot);
	tuplesort_puttupleslot(so->sorted, slot);
}

/* Keep the one in the place of bq_new_candidate(). */
void
bq_keep_candidate(BqScan *so)
{
	if (so->sorted != NULL)
	{
		sort_candidate(so, bq_new_candidate(so));
		return;
	}
	if (so->dropped && bq_before(&so->limit, bq_new_candidate(so)))
		return;
	so->ncandidates++;
	if (so->ncandidates == so->capacity)
		drop_candidates(so);
}

/* Know the limit as soon as there are more than are kept. */
void
bq_limit_candidates(BqScan *so)
{
	if (so->sorted == NULL && so->ncandidates > so->keep)
		drop_candidates(so);
}

/* Take the first of the sorted rows that is not in the heap. */
static void
fetch_next(BqScan *so)
{
	TupleTableSlot *slot = so->sorted_slot;
	BqCandidate *next = &so->next;
	uint32		place;
	bool		isnull;

	so->have_next = tuplesort_gettupleslot(so->sorted, true, false, slot, NULL);
	if (!so->have_next)
		return;
	next->key = DatumGetFloat8(slot_getattr(slot, 1, &isnull));
	next->block = (uint32) DatumGetInt32(slot_getattr(slot, 2, &isnull));
	place = (uint32) DatumGetInt32(slot_getattr(slot, 3, &isnull));
	next->tid = *(ItemPointer) DatumGetPointer(slot_getattr(slot, 4, &isnull));
	next->norm = DatumGetFloat4(slot_getattr(slot, 5, &isnull));
	next->segment = (uint8) (place >> 16);
	next->slot = (uint16) ((place & 0xffff) >> 1);
	next->exact = place & 1;
	next->prefetched = false;
}

/* All lists have been read: the rest of the work, so that the first one can be had. */
void
bq_order_candidates(BqScan *so)
{
	if (so->sorted != NULL)
	{
		tuplesort_performsort(so->sorted);
		ExecDropSingleTupleTableSlot(so->sorted_slot);
		so->sorted_slot = MakeSingleTupleTableSlot(so->sorted_desc, &TTSOpsMinimalTuple);
		fetch_next(so);
		return;
	}
	bq_limit_candidates(so);
	for (int i = so->ncandidates / 2 - 1; i >= 0; i--)
		sift_down(so->candidates, so->ncandidates, i);
}

/* The lowest candidate, NULL if there is none. */
const BqCandidate *
bq_first_candidate(BqScan *so)
{
	/* rows of equal keys must all be in the heap, which has the order between them */
	while (so->have_next && (so->ncandidates == 0 || so->next.key <= so->candidates[0].key))
	{
		bq_push_candidate(so, &so->next);
		fetch_next(so);
	}
	return so->ncandidates > 0 ? &so->candidates[0] : NULL;
}

/* Remove the lowest candidate, which exists. */
BqCandidate
bq_pop_candidate(BqScan *so)
{
	BqCandidate top = so->candidates[0];

	so->candidates[0] = so->candidates[--so->ncandidates];
	if (so->ncandidates > 0)
		sift_down(so->candidates, so->ncandidates, 0);
	return top;
}

/* Add one to the heap. */
void
bq_push_candidate(BqScan *so, const BqCandidate *candidate)
{
	int			i = so->ncandidates++;

	if (so->ncandidates > so->capacity)
	{
		so->capacity *= 2;
		so->candidates = (BqCandidate *)
			repalloc_huge(so->candidates, (size_t) so->capacity * sizeof(BqCandidate));
	}
	while (i > 0 && bq_before(candidate, &so->candidates[(i - 1) / 2]))
	{
		so->candidates[i] = so->candidates[(i - 1) / 2];
		i = (i - 1) / 2;
	}
	so->candidates[i] = *candidate;
}

/* Does work_mem hold more candidates? */
bool
bq_can_keep_more(const BqScan *so)
{
	return (int64) so->keep * ROOM * ROOM * ROOM * (int64) sizeof(BqCandidate) <= (int64) work_mem * 1024;
}

/*
 * Sorted
 */

/* From now on candidates are kept in a tuplesort, as many as there are. */
void
bq_begin_sorting(BqScan *so)
{
	AttrNumber	column = 1;
	Oid			less = Float8LessOperator;
	Oid			collation = InvalidOid;
	bool		nulls_first = false;

	so->sorted_desc = CreateTemplateTupleDesc(5);
	TupleDescInitEntry(so->sorted_desc, 1, "key", FLOAT8OID, -1, 0);
	TupleDescInitEntry(so->sorted_desc, 2, "block", INT4OID, -1, 0);
	TupleDescInitEntry(so->sorted_desc, 3, "place", INT4OID, -1, 0);
	TupleDescInitEntry(so->sorted_desc, 4, "tid", TIDOID, -1, 0);
	TupleDescInitEntry(so->sorted_desc, 5, "norm", FLOAT4OID, -1, 0);
	so->sorted = tuplesort_begin_heap(so->sorted_desc, 1, &column, &less, &collation,
									  &nulls_first, work_mem, NULL, TUPLESORT_NONE);
	so->sorted_slot = MakeSingleTupleTableSlot(so->sorted_desc, &TTSOpsVirtual);
	so->have_next = false;
}

/* Release what the memory context of the query does not. */
void
bq_end_sorting(BqScan *so)
{
	if (so->sorted == NULL)
		return;
	ExecDropSingleTupleTableSlot(so->sorted_slot);
	tuplesort_end(so->sorted);
	so->sorted = NULL;
	so->have_next = false;
}

/*
 * Given out
 *
 * Codes that are all read to their end come in exact order, so what was given lies below the
 * last row.  Estimates of vectors err now and then, and so do those of blocks left half read: in
 * relaxed order a row that turns out nearer than the last one is given late, so it must be told
 * from one that was given.
 */

/* A row has been given out; to be called in relaxed order where estimates err. */
void
bq_note_given(BqScan *so, const BqCandidate *candidate)
{
	uint64		key = (uint64) candidate->block << 16 | candidate->slot;

	if (so->given == NULL)
	{
		HASHCTL		control = {
			.keysize = sizeof(uint64),
			.entrysize = sizeof(uint64),
			.hcxt = so->query_context
		};

		so->given = hash_create("bq rows given", 256, &control,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	hash_search(so->given, &key, HASH_ENTER, NULL);
}

/* Rows of other lists come now. */
void
bq_forget_given(BqScan *so)
{
	if (so->given != NULL)
		hash_destroy(so->given);
	so->given = NULL;
}

/* Has a row, of which the exact key or nothing but a bound is known, been given out? */
bool
bq_was_given(const BqScan *so, const BqCandidate *candidate)
{
	uint64		key = (uint64) candidate->block << 16 | candidate->slot;

	if (so->given != NULL)
		return hash_search(so->given, &key, HASH_FIND, NULL) != NULL;
	return so->have_floor && candidate->exact && !bq_before(&so->floor, candidate);
}
