/*
 * bqregroup.c: new lists for an index that outgrew its old ones.
 *
 * An index made on an empty table, as object-relational mappers do, has one list; one
 * made on a small table has too few.  When VACUUM finds that the rows now call for
 * REGROUP_FACTOR times the lists there are, it trains new lists on the codes in the
 * index, writes them behind the old ones, and lets the metapage point to them.
 *
 * Writers hold a share lock on the metapage (a heavyweight lock, not its buffer lock)
 * from reading the layout to the end of the insertion, so they wait while this works:
 * about a second per 100,000 rows.  Scans do not wait: one that began with the old
 * lists goes on reading them, they stay as they are.  Their pages are not used again
 * before REINDEX; as each regrouping comes after tenfold growth, they are at most a
 * ninth of the index.
 */
#include "postgres.h"

#include "access/generic_xlog.h"
#include "access/xloginsert.h"
#include "index/bqindex.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"

#define REGROUP_FACTOR 10

/* Above this many rows, writers would wait too long: that is for REINDEX CONCURRENTLY. */
#define REGROUP_MAX_ROWS 1000000

static void
report_nothing(int phase)
{
}

/* Copy all live rows of the index into memory; false if there are more than `limit`. */
static bool
read_rows(Relation index, const BqLayout *layout, uint32 nblocks, size_t limit, BqRows *rows)
{
	for (uint32 b = 0; b < nblocks; b++)
	{
		Buffer		buffer = bq_read_page(index, bq_header_page(layout, b), BQ_PAGE_DATA,
										  BUFFER_LOCK_SHARE);
		BqBlockData block = *BqPageGetBlock(BufferGetPage(buffer), b);

		UnlockReleaseBuffer(buffer);
		CHECK_FOR_INTERRUPTS();
		for (int slot = 0; slot < BQ_BLOCK; slot++)
		{
			if (!(block.live & ((uint32) 1 << slot)))
				continue;
			if (rows->n >= limit)
				return false;
			if (rows->n == rows->capacity)
				bq_grow_rows(rows, layout->dim, limit);
			bq_read_planes(index, layout, b, slot,
						   rows->planes + rows->n * bq_planes_nbytes(layout->dim));
			rows->norms[rows->n] = block.norm[slot];
			rows->tids[rows->n] = block.tid[slot];
			rows->n++;
		}
	}
	return true;
}

/* Does an index of so many rows want new lists? */
bool
bq_wants_regrouping(Relation index, double nrows)
{
	BqLayout	layout = bq_get_layout(index);

	return nrows <= REGROUP_MAX_ROWS &&
		bq_choose_lists(index, nrows) >= (double) layout.nlists * REGROUP_FACTOR;
}

/* Make new lists; does nothing if the rows do not fit maintenance_work_mem. */
void
bq_regroup(Relation index)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "bq regroup",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	BqLayout	old_layout;
	BqLayout	layout;
	BqRows		rows = {0};
	uint32		nblocks;
	Buffer		buffer;

	LockPage(index, BQ_METAPAGE_BLKNO, ExclusiveLock);
	old_layout = bq_read_layout(index, &nblocks);
	if (read_rows(index, &old_layout, nblocks,
				  bq_rows_limit(old_layout.dim, maintenance_work_mem, false), &rows) &&
		bq_choose_lists(index, (double) rows.n) > old_layout.nlists)
	{
		/* where an attempt that was interrupted left its pages, if there was one */
		BlockNumber start = bq_data_end(&old_layout, nblocks);
		GenericXLogState *state;

		layout = bq_plan_layout(old_layout.dim, bq_choose_lists(index, (double) rows.n), start);
		layout.transform = old_layout.transform;
		bq_create_lists(index, MAIN_FORKNUM, &layout);
		nblocks = bq_write_lists(index, &layout, &rows, 0, report_nothing);
		if (RelationNeedsWAL(index))
			log_newpage_range(index, MAIN_FORKNUM, start, bq_data_end(&layout, nblocks), true);

		buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META, BUFFER_LOCK_EXCLUSIVE);
		state = GenericXLogStart(index);
		bq_fill_metapage(GenericXLogRegisterBuffer(state, buffer, 0), &layout, nblocks,
						 (double) rows.n);
		GenericXLogFinish(state);
		UnlockReleaseBuffer(buffer);
	}
	UnlockPage(index, BQ_METAPAGE_BLKNO, ExclusiveLock);

	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
}
