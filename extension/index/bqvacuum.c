/*
 * bqvacuum.c: removing dead rows.
 *
 * Only header pages are read, a tenth of the index: a dead row's bit in `live` is
 * cleared, its code stays behind as garbage.  Blocks that gained free slots are put
 * into their list's free chain, where the next rows of that list will find them.
 */
#include "postgres.h"

#include "access/generic_xlog.h"
#include "commands/vacuum.h"
#include "index/bqsource.h"
#include "port/pg_bitutils.h"
#include "storage/lmgr.h"

#if PG_VERSION_NUM >= 180000
#define delay_point() vacuum_delay_point(false)
#else
#define delay_point() vacuum_delay_point()
#endif

/* Let a list's inserts find the free slots of block b. */
static void
add_to_free_chain(Relation index, const BqLayout *layout, uint32 b, uint32 list)
{
	Buffer		list_buffer = bq_read_page(index, bq_list_page(layout, list), BQ_PAGE_LISTS,
										   BUFFER_LOCK_EXCLUSIVE);
	Buffer		header_buffer = bq_read_page(index, bq_header_page(layout, b), BQ_PAGE_DATA,
											 BUFFER_LOCK_EXCLUSIVE);
	BqBlockData *block = BqPageGetBlock(BufferGetPage(header_buffer), b);

	if (!block->in_free_chain)
	{
		GenericXLogState *state = GenericXLogStart(index);
		BqListData *entry = BqPageGetList(GenericXLogRegisterBuffer(state, list_buffer, 0), list);

		block = BqPageGetBlock(GenericXLogRegisterBuffer(state, header_buffer, 0), b);
		block->next_free = entry->free;
		block->in_free_chain = true;
		entry->free = b;
		GenericXLogFinish(state);
	}
	UnlockReleaseBuffer(header_buffer);
	UnlockReleaseBuffer(list_buffer);
}

/*
 * Visit the blocks first .. end - 1, which share a header page.  Without a callback,
 * only count, and find free slots that a crash kept from the free chain.
 */
static void
vacuum_header_page(IndexVacuumInfo *info, const BqLayout *layout, uint32 first, uint32 end,
				   IndexBulkDeleteResult *stats, IndexBulkDeleteCallback callback, void *arg)
{
	Relation	index = info->index;
	Buffer		buffer = ReadBufferExtended(index, MAIN_FORKNUM, bq_header_page(layout, first),
											RBM_NORMAL, info->strategy);
	uint32		keep[BQ_HEADERS_PER_PAGE];
	uint32		list[BQ_HEADERS_PER_PAGE];
	bool		to_chain[BQ_HEADERS_PER_PAGE];
	bool		changed = false;

	LockBuffer(buffer, callback != NULL ? BUFFER_LOCK_EXCLUSIVE : BUFFER_LOCK_SHARE);
	bq_check_page(index, buffer, BQ_PAGE_DATA);
	for (uint32 b = first; b < end; b++)
	{
		BqBlockData *block = BqPageGetBlock(BufferGetPage(buffer), b);
		uint32		live = block->live;

		if (block->list >= layout->nlists)
			ereport(ERROR,
					(errcode(ERRCODE_INDEX_CORRUPTED),
					 errmsg("block %u of index \"%s\" belongs to list %u of %u", b,
							RelationGetRelationName(index), block->list, layout->nlists),
					 errhint("Rebuild the index with REINDEX.")));
		for (int c = 0; callback != NULL && c < BQ_BLOCK; c++)
			if ((live & ((uint32) 1 << c)) && callback(&block->tid[c], arg))
				live &= ~((uint32) 1 << c);
		keep[b - first] = live;
		list[b - first] = block->list;
		to_chain[b - first] = live != UINT32_MAX && !block->in_free_chain;
		changed |= live != block->live;
		stats->tuples_removed += pg_popcount32(block->live) - pg_popcount32(live);
		stats->num_index_tuples += pg_popcount32(live);
	}
	if (changed)
	{
		GenericXLogState *state = GenericXLogStart(index);
		Page		page = GenericXLogRegisterBuffer(state, buffer, 0);

		for (uint32 b = first; b < end; b++)
			BqPageGetBlock(page, b)->live = keep[b - first];
		GenericXLogFinish(state);
	}
	UnlockReleaseBuffer(buffer);

	/* List pages are locked before header pages: only now. */
	for (uint32 b = first; b < end; b++)
		if (to_chain[b - first])
			add_to_free_chain(index, layout, b, list[b - first]);
}

static IndexBulkDeleteResult *
vacuum_index(IndexVacuumInfo *info, IndexBulkDeleteResult *stats,
			 IndexBulkDeleteCallback callback, void *arg)
{
	uint32		nblocks;
	BqLayout	layout = bq_read_layout(info->index, &nblocks);

	bq_check_size(info->index, &layout, nblocks);
	if (stats == NULL)
		stats = (IndexBulkDeleteResult *) palloc0(sizeof(IndexBulkDeleteResult));
	stats->num_index_tuples = 0;
	/* Blocks added from now on hold only rows that this vacuum does not know. */
	for (uint32 b = 0; b < nblocks; b += BQ_HEADERS_PER_PAGE)
	{
		delay_point();
		vacuum_header_page(info, &layout, b, Min(b + BQ_HEADERS_PER_PAGE, nblocks), stats,
						   callback, arg);
	}
	return stats;
}

IndexBulkDeleteResult *
bqbulkdelete(IndexVacuumInfo *info, IndexBulkDeleteResult *stats,
			 IndexBulkDeleteCallback callback, void *callback_state)
{
	return vacuum_index(info, stats, callback, callback_state);
}

/*
 * An index without rows can take rows of any transform again: the first one may have
 * been rolled back, or all of them deleted to be encoded anew.
 */
static void
forget_transform(IndexVacuumInfo *info)
{
	Relation	index = info->index;

	/* no insertion meanwhile, see bqregroup.c */
	LockPage(index, BQ_METAPAGE_BLKNO, ExclusiveLock);
	if (vacuum_index(info, NULL, NULL, NULL)->num_index_tuples == 0)
	{
		Buffer		buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
										  BUFFER_LOCK_EXCLUSIVE);
		GenericXLogState *state = GenericXLogStart(index);

		BqPageGetMeta(GenericXLogRegisterBuffer(state, buffer, 0))->transform = -1;
		GenericXLogFinish(state);
		UnlockReleaseBuffer(buffer);
	}
	UnlockPage(index, BQ_METAPAGE_BLKNO, ExclusiveLock);
}

IndexBulkDeleteResult *
bqvacuumcleanup(IndexVacuumInfo *info, IndexBulkDeleteResult *stats)
{
	if (info->analyze_only)
		return stats;
	/* no bqbulkdelete() before: nothing to remove, but the counts are wanted */
	if (stats == NULL)
		stats = vacuum_index(info, NULL, NULL, NULL);
	if (stats->num_index_tuples == 0 && bq_read_layout(info->index, NULL).transform >= 0 &&
		bq_transform_without_rows(info->index) < 0)
		forget_transform(info);
	if (bq_wants_regrouping(info->index, stats->num_index_tuples))
		bq_regroup(info->index);
	stats->num_pages = RelationGetNumberOfBlocks(info->index);
	stats->estimated_count = false;
	return stats;
}
