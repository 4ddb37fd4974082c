/*
 * bqregroup.c: new lists for an index that outgrew its old ones.
 *
 * An index made on an empty table, as object-relational mappers do, has one list; one
 * made on a small table has too few.  When VACUUM finds that the rows now call for
 * REGROUP_FACTOR times the lists there are, it trains new lists on the codes in the
 * index, writes them behind the old ones, and lets the metapage point to them.
 *
 * Writers hold a share lock on the metapage (a heavyweight lock, not its buffer lock)
 * from reading the layout to the end of the insertion.  Training and assigning go without
 * that lock; only for adding the rows that came meanwhile and for writing it is taken
 * exclusively, so writers wait for about half a second per 300,000 rows.  (One that waits
 * longer than deadlock_timeout makes autovacuum give way.)  Scans do not wait: one that
 * began with the old lists goes on reading them, they stay as they are.  Their pages are
 * not used again before REINDEX; as each regrouping comes after tenfold growth, they are
 * at most a ninth of the index.
 */
#include "postgres.h"

#include "access/generic_xlog.h"
#include "access/xloginsert.h"
#include "index/bqindex.h"
#include "miscadmin.h"
#include "postmaster/autovacuum.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"

#define REGROUP_FACTOR 10

/* Above this many rows, writers would wait too long: that is for REINDEX CONCURRENTLY. */
#define REGROUP_MAX_ROWS 1000000

/*
 * Copy rows of the blocks up to `nblocks` that are not in seen[] into memory, and note
 * them there: bit c of seen[b] is slot c of block b.  False if there are more than `limit`.
 *
 * Called by vacuum, which nobody but itself removes rows beside: a row that was seen stays
 * in its slot.
 */
static bool
read_rows(Relation index, const BqLayout *layout, uint32 nblocks, uint32 *seen, size_t limit,
		  BqRows *rows)
{
	size_t		planes_nbytes = bq_planes_nbytes(layout->dim);
	uint8	   *codes = (uint8 *) palloc(bq_block_nbytes(layout->dim));

	for (uint32 b = 0; b < nblocks; b++)
	{
		Buffer		buffer = bq_read_page(index, bq_header_page(layout, b), BQ_PAGE_DATA,
										  BUFFER_LOCK_SHARE);
		BqBlockData block = *BqPageGetBlock(BufferGetPage(buffer), b);
		uint32		added = block.live & ~seen[b];

		UnlockReleaseBuffer(buffer);
		CHECK_FOR_INTERRUPTS();
		if (added == 0)
			continue;
		bq_read_block(index, layout, b, codes);
		for (int slot = 0; slot < BQ_BLOCK; slot++)
		{
			if (!(added & ((uint32) 1 << slot)))
				continue;
			if (rows->n >= limit)
				return false;
			if (rows->n == rows->capacity)
				bq_grow_rows(rows, layout->dim, limit);
			bq_block_get(codes, layout->dim, slot, rows->planes + rows->n * planes_nbytes);
			rows->norms[rows->n] = block.norm[slot];
			rows->inverses[rows->n] = block.inverse[slot];
			rows->tids[rows->n] = block.tid[slot];
			rows->n++;
		}
		seen[b] |= added;
	}
	pfree(codes);
	return true;
}

/* The list of each row, in memory that stays. */
static uint32 *
assign_rows(BqAssigner *assigner, const BqClusters *clusters)
{
	size_t		n = assigner->rows->n;
	uint32	   *lists = (uint32 *) MemoryContextAllocHuge(CurrentMemoryContext,
														  (n + 1) * sizeof(uint32));

	memcpy(lists, bq_assign_rows(assigner, clusters), n * sizeof(uint32));
	return lists;
}

static void
append_rows(BqRows *rows, const BqRows *added, int dim)
{
	size_t		planes_nbytes = bq_planes_nbytes(dim);
	size_t		n = rows->n + added->n;

	while (rows->capacity < n)
		bq_grow_rows(rows, dim, n);
	memcpy(rows->planes + rows->n * planes_nbytes, added->planes, added->n * planes_nbytes);
	memcpy(rows->norms + rows->n, added->norms, added->n * sizeof(float));
	memcpy(rows->inverses + rows->n, added->inverses, added->n * sizeof(uint16));
	memcpy(rows->tids + rows->n, added->tids, added->n * sizeof(ItemPointerData));
	rows->n = n;
}

/* Does an index of so many rows want new lists? */
bool
bq_wants_regrouping(Relation index, double nrows)
{
	BqLayout	layout = bq_get_layout(index);

	return nrows <= REGROUP_MAX_ROWS &&
		bq_choose_lists(index, nrows) >= (double) layout.nlists * REGROUP_FACTOR;
}

/* Write lists from page `start` on, unknown to anybody; returns their number of blocks. */
static uint32
write_lists(Relation index, BlockNumber start, const BqLayout *layout,
			const BqCentroids *centroids, const BqRows *rows, const uint32 *lists)
{
	BqWriter   *writer;
	uint32		nblocks;

	bq_create_lists(index, MAIN_FORKNUM, layout);
	bq_write_centroids(index, layout, centroids);
	writer = bq_begin_writing(index, layout);
	bq_write_rows(writer, rows, lists);
	nblocks = bq_end_writing(writer);
	if (RelationNeedsWAL(index))
		log_newpage_range(index, MAIN_FORKNUM, start, bq_data_end(layout, nblocks), true);
	return nblocks;
}

/* Memory that this vacuum may take, in kB. */
static int
vacuum_work_mem(void)
{
#if PG_VERSION_NUM >= 170000
	bool		autovacuum = AmAutoVacuumWorkerProcess();
#else
	bool		autovacuum = IsAutoVacuumWorkerProcess();
#endif

	return autovacuum && autovacuum_work_mem != -1 ? autovacuum_work_mem : maintenance_work_mem;
}

/* Make new lists; does nothing if the rows do not fit the memory. */
void
bq_regroup(Relation index)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "bq regroup",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	uint32		nblocks;
	BqLayout	old_layout = bq_read_layout(index, &nblocks);
	int			dim = old_layout.dim;
	size_t		limit = bq_rows_limit(dim, vacuum_work_mem(), false);
	uint32		nseen = nblocks;
	uint32	   *seen = (uint32 *) MemoryContextAllocHuge(context,
														 ((size_t) nseen + 1) * sizeof(uint32));
	BqRows		rows = {0};
	BqRows		added = {0};
	BqAssigner *assigner;
	BqClusters	clusters;
	BqLayout	layout;
	uint32	   *lists;
	uint32		nlists;

	memset(seen, 0, nseen * sizeof(uint32));
	if (!read_rows(index, &old_layout, nblocks, seen, limit, &rows) ||
		(nlists = bq_choose_lists(index, (double) rows.n)) <= old_layout.nlists)
	{
		MemoryContextSwitchTo(old_context);
		MemoryContextDelete(context);
		return;
	}

	layout = bq_plan_layout(dim, nlists, 0);
	layout.transform = old_layout.transform;
	layout.model = old_layout.model;
	assigner = bq_begin_assigning(dim, &rows, nlists, 0);
	clusters = bq_train(assigner, nlists);
	lists = assign_rows(assigner, &clusters);
	bq_measure(NULL, index, &clusters.lists, &rows, lists, (double) rows.n, &layout);
	bq_end_assigning(assigner);

	LockPage(index, BQ_METAPAGE_BLKNO, ExclusiveLock);
	bq_read_layout(index, &nblocks);
	seen = (uint32 *) repalloc_huge(seen, ((size_t) nblocks + 1) * sizeof(uint32));
	memset(seen + nseen, 0, (nblocks - nseen) * sizeof(uint32));
	if (read_rows(index, &old_layout, nblocks, seen, limit - rows.n, &added))
	{
		/* where an attempt that was interrupted left its pages, if there was one */
		BlockNumber start = bq_data_end(&old_layout, nblocks);
		Buffer		buffer;
		GenericXLogState *state;

		if (added.n > 0)
		{
			assigner = bq_begin_assigning(dim, &added, nlists, 0);
			lists = (uint32 *) repalloc_huge(lists, (rows.n + added.n) * sizeof(uint32));
			memcpy(lists + rows.n, bq_assign_rows(assigner, &clusters), added.n * sizeof(uint32));
			bq_end_assigning(assigner);
			append_rows(&rows, &added, dim);
		}
		layout.centroid_start += start;
		layout.list_start += start;
		layout.data_start += start;
		nblocks = write_lists(index, start, &layout, &clusters.lists, &rows, lists);

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
