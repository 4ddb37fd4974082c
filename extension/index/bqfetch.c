/* bqfetch.c: values of the indexed column, or expression, from rows of the table. */
#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "index/bqsource.h"
#include "utils/snapmgr.h"

struct BqFetch
{
	IndexFetchTableData *fetch;
	Snapshot	snapshot;
	TupleTableSlot *slot;
	AttrNumber	column;			/* 0: an expression */
	IndexInfo  *info;			/* for it */
	EState	   *estate;
};

/*
 * Is the position of a row in the table?  To read a page behind its end is an error of the storage
 * manager, and to read InvalidBlockNumber makes a new page.  `heap_pages` is what the caller knows
 * of the table's length, 0 at first; tables grow.
 */
void
bq_check_position(Relation index, Relation heap, const ItemPointerData *tid,
				  BlockNumber *heap_pages)
{
	BlockNumber blkno = ItemPointerGetBlockNumberNoCheck(tid);
	OffsetNumber offset = ItemPointerGetOffsetNumberNoCheck(tid);

	if (blkno >= *heap_pages)
		*heap_pages = RelationGetNumberOfBlocks(heap);
	if (blkno >= *heap_pages || offset == InvalidOffsetNumber)
		ereport(ERROR,
				(errcode(ERRCODE_INDEX_CORRUPTED),
				 errmsg("index \"%s\" is damaged: a row has position (%u,%u) in a table of %u pages",
						RelationGetRelationName(index), blkno, offset, *heap_pages),
				 errhint("Rebuild the index with REINDEX.")));
}

/* Prepare to fetch rows that `snapshot` sees; lives in the current memory context. */
BqFetch *
bq_begin_fetching(Relation heap, Relation index, Snapshot snapshot)
{
	BqFetch    *fetch = (BqFetch *) palloc0(sizeof(BqFetch));

	fetch->fetch = table_index_fetch_begin(heap);
	fetch->snapshot = snapshot;
	fetch->slot = table_slot_create(heap, NULL);
	fetch->column = index->rd_index->indkey.values[0];
	if (fetch->column == 0)
	{
		fetch->info = BuildIndexInfo(index);
		fetch->estate = CreateExecutorState();
		GetPerTupleExprContext(fetch->estate)->ecxt_scantuple = fetch->slot;
	}
	return fetch;
}

/* The value in the row that was fetched, as an index has it; false if it is null. */
static bool
get_value(BqFetch *fetch, Datum *value)
{
	bool		isnull;

	if (fetch->column != 0)
		*value = slot_getattr(fetch->slot, fetch->column, &isnull);
	else
	{
		Datum		values[INDEX_MAX_KEYS];
		bool		nulls[INDEX_MAX_KEYS];

		ResetPerTupleExprContext(fetch->estate);
		FormIndexDatum(fetch->info, fetch->slot, fetch->estate, values, nulls);
		*value = values[0];
		isnull = nulls[0];
	}
	return !isnull;
}

/*
 * The value in the row at a position that an index has; false if no row is visible there,
 * or it is null.  The value stays until the next call.
 */
bool
bq_fetch_value(BqFetch *fetch, ItemPointer tid, Datum *value)
{
	ItemPointerData position = *tid;
	bool		call_again = false;
	bool		all_dead = false;

	/* a HOT chain has at most one member that an MVCC snapshot sees */
	return table_index_fetch_tuple(fetch->fetch, &position, fetch->snapshot, fetch->slot,
								   &call_again, &all_dead) && get_value(fetch, value);
}

/* The same of the version of a row that bq_fetched_position() told. */
bool
bq_fetch_version(BqFetch *fetch, ItemPointer tid, Datum *value)
{
	return table_tuple_fetch_row_version(fetch->fetch->rel, tid, fetch->snapshot, fetch->slot) &&
		get_value(fetch, value);
}

/* Position of the row that was fetched last: that of its version, not the one in the index. */
ItemPointerData
bq_fetched_position(const BqFetch *fetch)
{
	return fetch->slot->tts_tid;
}

void
bq_end_fetching(BqFetch *fetch)
{
	ExecDropSingleTupleTableSlot(fetch->slot);
	table_index_fetch_end(fetch->fetch);
	if (fetch->estate != NULL)
		FreeExecutorState(fetch->estate);
	pfree(fetch);
}
