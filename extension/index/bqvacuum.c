/*
 * bqvacuum.c: removing dead rows.
 *
 * Only header pages are read, a tenth of the index: a dead row's bit in `live` is
 * cleared, its code stays behind as garbage.  Blocks that gained free slots are put
 * into their list's free chain, where the next rows of that list will find them.
 *
 * Vacuum is alone with an index, but for readers and writers.
 */
#include "postgres.h"

#include "access/table.h"
#include "index/bqvacuum.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"

/* Rows are counted if they may call for so many times more lists than there are. */
#define MORE_LISTS 1.5

/* Let a list's inserts find the free slots of block b. */
static void
add_to_free_chain(const BqVacuum *state, uint32 b, uint32 list)
{
	Relation	index = state->index;
	BqListData *entry;
	Buffer		list_buffer = bq_read_entry(index, &state->layout, list, BUFFER_LOCK_EXCLUSIVE,
											&entry);
	Buffer		header_buffer = bq_read_page(index, bq_header_page(&state->layout, b),
											 BQ_PAGE_HEADERS, BUFFER_LOCK_EXCLUSIVE);
	BqBlockData *block = BqPageGetBlock(&state->layout, BufferGetPage(header_buffer), b);

	if (!block->in_free_chain)
	{
		int			page;

		bq_begin_log(index);
		page = bq_log_page(list_buffer);
		bq_log_set(page, &entry->free, uint32, b);
		page = bq_log_page(header_buffer);
		bq_log_set(page, &block->next_free, uint32, entry->free);
		bq_log_set(page, &block->in_free_chain, uint16, true);
		bq_finish_log();
	}
	UnlockReleaseBuffer(header_buffer);
	UnlockReleaseBuffer(list_buffer);
}

/*
 * Visit the blocks first .. end - 1, which share a header page.  Without a callback,
 * only count, and find free slots that a crash kept from the free chain.
 */
static void
vacuum_header_page(BqVacuum *state, uint32 first, uint32 end)
{
	const BqLayout *layout = &state->layout;
	Buffer		buffer = ReadBufferExtended(state->index, MAIN_FORKNUM,
											bq_header_page(layout, first), RBM_NORMAL,
											state->info->strategy);
	uint32		keep[BQ_PAGE_NBYTES / sizeof(BqBlockData)];
	uint32		list[lengthof(keep)];
	bool		to_chain[lengthof(keep)] = {false};
	bool		changed = false;

	LockBuffer(buffer, state->callback != NULL ? BUFFER_LOCK_EXCLUSIVE : BUFFER_LOCK_SHARE);
	bq_check_page(state->index, buffer, BQ_PAGE_HEADERS);
	for (uint32 b = first; b < end; b++)
	{
		BqBlockData *block = BqPageGetBlock(layout, BufferGetPage(buffer), b);
		uint32		live = block->live;

		keep[b - first] = live;
		if (bq_is_directory(layout, b))
			continue;
		if (!bq_is_owned(state, block))
		{
			state->nunowned++;
			if (state->unowned != NULL)
				state->unowned[b / 8] |= 1 << b % 8;
			continue;
		}
		for (int c = 0; state->callback != NULL && c < BQ_BLOCK; c++)
			if ((live & ((uint32) 1 << c)) && state->callback(&block->tid[c], state->arg))
				live &= ~((uint32) 1 << c);
		keep[b - first] = live;
		list[b - first] = block->list;
		to_chain[b - first] = live != UINT32_MAX && !block->in_free_chain;
		changed |= live != block->live;
		state->nremoved += pg_popcount32(block->live) - pg_popcount32(live);
		state->nrows += pg_popcount32(live);
	}
	if (changed)
	{
		int			page;

		bq_begin_log(state->index);
		page = bq_log_page(buffer);
		for (uint32 b = first; b < end; b++)
		{
			BqBlockData *block = BqPageGetBlock(layout, BufferGetPage(buffer), b);

			if (block->live != keep[b - first])
				bq_log_set(page, &block->live, uint32, keep[b - first]);
		}
		bq_finish_log();
	}
	UnlockReleaseBuffer(buffer);

	/* List pages are locked before header pages: only now. */
	for (uint32 b = first; b < end; b++)
		if (to_chain[b - first])
			add_to_free_chain(state, b, list[b - first]);
}

BqVacuum
bq_begin_vacuum(IndexVacuumInfo *info)
{
	BqVacuum state = {.info = info, .index = info->index};

	/* in this order: blocks that are taken meanwhile look owned, not the other way round */
	state.nfree = bq_read_metapage(info->index).nfree;
	state.layout = bq_read_layout(info->index);
	bq_check_size(info->index, &state.layout);
	state.entries = bq_read_entries(info->index, &state.layout);
	return state;
}

/* Visit all blocks; `hurry`: others are waiting. */
void
bq_visit_blocks(BqVacuum *state, bool hurry)
{
	uint32		per_page = state->layout.headers_per_page;

	/* Blocks added from now on hold only rows that this vacuum does not know. */
	for (uint32 b = 0; b < state->layout.nblocks; b += per_page)
	{
		if (hurry)
			CHECK_FOR_INTERRUPTS();
		else
			bq_delay_point();
		vacuum_header_page(state, b, Min(b + per_page, state->layout.nblocks));
	}
}

/* Open the lists that a split left closed. */
static void
open_lists(BqVacuum *state)
{
	for (uint32 list = 0; list < state->layout.nlists; list++)
	{
		BqListData *entry;
		Buffer		buffer;

		if (!state->entries[list].closed)
			continue;
		buffer = bq_read_entry(state->index, &state->layout, list, BUFFER_LOCK_EXCLUSIVE, &entry);
		bq_begin_log(state->index);
		bq_log_set(bq_log_page(buffer), &entry->closed, uint16, false);
		bq_finish_log();
		UnlockReleaseBuffer(buffer);
	}
}

/*
 * The callbacks
 */

IndexBulkDeleteResult *
bqbulkdelete(IndexVacuumInfo *info, IndexBulkDeleteResult *stats,
			 IndexBulkDeleteCallback callback, void *callback_state)
{
	BqVacuum state = bq_begin_vacuum(info);

	state.callback = callback;
	state.arg = callback_state;
	bq_visit_blocks(&state, false);
	if (stats == NULL)
		stats = (IndexBulkDeleteResult *) palloc0(sizeof(IndexBulkDeleteResult));
	stats->estimated_count = false;
	stats->num_index_tuples = state.nrows;
	stats->tuples_removed += state.nremoved;
	pfree(state.entries);
	return stats;
}

/* Let rows be added, or not. */
static void
set_closed(Relation index, bool closed, bool forget)
{
	Buffer		buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
									  BUFFER_LOCK_EXCLUSIVE);
	BqMetaPage	meta = BqPageGetMeta(BufferGetPage(buffer));
	int			page;

	bq_begin_log(index);
	page = bq_log_page(buffer);
	bq_log_set(page, &meta->closed, uint32, closed);
	if (forget)
		bq_log_set(page, &meta->transform, int32, -1);
	bq_finish_log();
	UnlockReleaseBuffer(buffer);
}

/*
 * An index without rows can take rows of any transform again: the first one may have
 * been rolled back, or all of them deleted to be encoded anew.
 */
static void
forget_transform(IndexVacuumInfo *info)
{
	Relation	index = info->index;
	BqLayout	layout = bq_read_layout(index);
	BqVacuum state;

	/* no insertion meanwhile, see bqinsert.c; those on their way hold the page of an entry */
	LockPage(index, BQ_METAPAGE_BLKNO, ExclusiveLock);
	set_closed(index, true, false);
	for (uint32 list = 0; list < layout.nlists; list++)
	{
		BqListData *entry;

		if (list == 0 || bq_list_page(&layout, list) != bq_list_page(&layout, list - 1))
			UnlockReleaseBuffer(bq_read_entry(index, &layout, list, BUFFER_LOCK_EXCLUSIVE,
											  &entry));
	}
	state = bq_begin_vacuum(info);
	bq_visit_blocks(&state, true);
	set_closed(index, false, state.nrows == 0);
	UnlockPage(index, BQ_METAPAGE_BLKNO, ExclusiveLock);
}

/*
 * Rows in the index, as far as its entries and the table tell.  Of a table that no vacuum has
 * counted, because it was cancelled, say, this one knows the few pages that changed since; and
 * where rows came in during the last one, they may be missing in its number for good.  So if
 * more rows than that would call for more lists, they are counted.
 */
static double
estimate_rows(BqVacuum *state)
{
	IndexVacuumInfo *info = state->info;
	Relation	heap = table_open(info->index->rd_index->indrelid, NoLock);
	bool		counted = !info->estimated_count || heap->rd_rel->reltuples >= 0;
	double		nslots = 0;

	table_close(heap, NoLock);
	/* the block that a list is filling is half empty on average */
	for (uint32 list = 0; list < state->layout.nlists; list++)
		if (state->entries[list].nblocks > 0)
			nslots += (state->entries[list].nblocks - 0.5) * BQ_BLOCK;
	if (!counted || info->num_heap_tuples < 0)
		return nslots;
	if (info->estimated_count && info->num_heap_tuples < nslots &&
		bq_choose_lists(info->index, nslots) > state->layout.nlists * MORE_LISTS)
	{
		bq_visit_blocks(state, false);
		return state->nrows;
	}
	return Min(nslots, info->num_heap_tuples);
}

IndexBulkDeleteResult *
bqvacuumcleanup(IndexVacuumInfo *info, IndexBulkDeleteResult *stats)
{
	MemoryContext context;
	MemoryContext old_context;
	BqVacuum state;
	uint64		nowned = 0;

	if (info->analyze_only)
		return stats;
	context = AllocSetContextCreate(CurrentMemoryContext, "bq vacuum", ALLOCSET_DEFAULT_SIZES);
	/* no bqbulkdelete() before: nothing was removed, and nothing has to be read */
	if (stats == NULL)
	{
		stats = (IndexBulkDeleteResult *) palloc0(sizeof(IndexBulkDeleteResult));
		stats->estimated_count = true;
	}
	old_context = MemoryContextSwitchTo(context);

	state = bq_begin_vacuum(info);
	if (stats->estimated_count)
		stats->num_index_tuples = estimate_rows(&state);
	if (stats->num_index_tuples == 0 && state.layout.transform >= 0 &&
		bq_transform_without_rows(info->index) < 0)
		forget_transform(info);
	open_lists(&state);
	for (uint32 list = 0; list < state.layout.nlists; list++)
		nowned += state.entries[list].nblocks;
	if (nowned + bq_count_old_blocks(&state) + state.nfree +
		bq_count_directory_blocks(&state.layout) < state.layout.nblocks)
		bq_free_lost_blocks(info);
	bq_free_old_chains(&state);
	bq_split_lists(info, stats->num_index_tuples);

	stats->num_pages = RelationGetNumberOfBlocks(info->index);
	stats->pages_free = (BlockNumber) ((uint64) bq_read_metapage(info->index).nfree * state.layout.nrows /
									   BQ_ROWS_PER_PAGE);
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
	return stats;
}
