/*
 * bqreclaim.c: giving back blocks that belong to no list.
 *
 * Blocks that belong to no list are left by splits (bqsplit.c): chains from before, until
 * no scan can be on its way there, and what a split that was interrupted had written.
 * They come into the chain of free blocks, from where any list takes them.
 */
#include "postgres.h"

#include "access/nbtxlog.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "index/bqvacuum.h"
#include "miscadmin.h"
#include "utils/snapmgr.h"

#if PG_VERSION_NUM >= 160000
#define vacuumed_heap(info) ((info)->heaprel)
#else
#define vacuumed_heap(info) NULL	/* the oldest snapshot of all databases will do */
#endif

/*
 * Follow a chain of unowned blocks, and take those it has out of the bits that are set;
 * returns the last one.  False if it led to an owned block: somebody took it meanwhile.
 */
static bool
follow_chain(BqVacuum *state, uint32 head, uint32 nblocks, uint32 *last)
{
	*last = BQ_NO_BLOCK;
	/* a chain that long is a circle */
	if (nblocks > state->layout.nblocks)
		return false;
	for (uint32 b = head; nblocks > 0 && b != BQ_NO_BLOCK; nblocks--)
	{
		Buffer		buffer;
		const BqBlockData *block;
		bool		owned;

		CHECK_FOR_INTERRUPTS();
		if (b >= state->layout.nblocks || bq_is_directory(&state->layout, b))
			return false;
		buffer = bq_read_page(state->index, bq_header_page(&state->layout, b), BQ_PAGE_HEADERS,
							  BUFFER_LOCK_SHARE);
		block = BqPageGetBlock(&state->layout, BufferGetPage(buffer), b);
		owned = bq_is_owned(state, block);
		*last = b;
		if (state->unowned != NULL)
			state->unowned[b / 8] &= ~(1 << b % 8);
		b = block->next;
		UnlockReleaseBuffer(buffer);
		if (owned)
			return false;
	}
	return true;
}

/*
 * Snapshots of standbys do not wait for ours: those that may still read the old chain must
 * be waited for, or cancelled, before its blocks are used again.  The record that B-trees
 * have for this does nothing else, and names no page that must be a B-tree's.
 */
static void
log_conflict(IndexVacuumInfo *info, FullTransactionId horizon)
{
	xl_btree_reuse_page record;

	if (!RelationNeedsWAL(info->index) || !XLogStandbyInfoActive())
		return;
	memset(&record, 0, sizeof(record));
	record.block = BQ_METAPAGE_BLKNO;
#if PG_VERSION_NUM >= 160000
	record.locator = info->index->rd_locator;
	record.snapshotConflictHorizon = horizon;
	record.isCatalogRel = RelationIsAccessibleInLogicalDecoding(info->heaprel);
#else
	record.node = info->index->rd_node;
	record.latestRemovedFullXid = horizon;
#endif
	XLogBeginInsert();
	XLogRegisterData((char *) &record, SizeOfBtreeReusePage);
	XLogInsert(RM_BTREE_ID, XLOG_BTREE_REUSE_PAGE);
}

/* Put a chain of unowned blocks, from `head` to `tail`, before the chain of free ones. */
static void
free_chain(BqVacuum *state, Buffer list_buffer, BqListData *entry, uint32 head, uint32 tail,
		   uint32 nblocks)
{
	Relation	index = state->index;
	Buffer		meta_buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
										   BUFFER_LOCK_EXCLUSIVE);
	BqMetaPage	meta = BqPageGetMeta(BufferGetPage(meta_buffer));
	Buffer		header_buffer = bq_read_page(index, bq_header_page(&state->layout, tail),
											 BQ_PAGE_HEADERS, BUFFER_LOCK_EXCLUSIVE);
	BqBlockData *block = BqPageGetBlock(&state->layout, BufferGetPage(header_buffer), tail);
	int			page;

	bq_begin_log(index);
	if (entry != NULL)
	{
		page = bq_log_page(list_buffer);
		bq_log_set(page, &entry->old_head, uint32, BQ_NO_BLOCK);
		bq_log_set(page, &entry->old_nblocks, uint32, 0);
	}
	page = bq_log_page(meta_buffer);
	bq_log_set(page, &meta->free_head, uint32, head);
	bq_log_set(page, &meta->nfree, uint32, meta->nfree + nblocks);
	bq_log_set(bq_log_page(header_buffer), &block->next, uint32, meta->free_head);
	bq_finish_log();
	UnlockReleaseBuffer(header_buffer);
	UnlockReleaseBuffer(meta_buffer);
}

/* Give back the chains that lists had before they were split, where nobody needs them. */
void
bq_free_old_chains(BqVacuum *state)
{
	for (uint32 list = 0; list < state->layout.nlists; list++)
	{
		const BqListData *known = &state->entries[list];
		FullTransactionId horizon = FullTransactionIdFromU64(known->freed);
		BqListData *entry;
		Buffer		buffer;
		uint32		tail;

		if (known->old_head == BQ_NO_BLOCK ||
			!GlobalVisCheckRemovableFullXid(vacuumed_heap(state->info), horizon))
			continue;
		if (!follow_chain(state, known->old_head, known->old_nblocks, &tail))
			ereport(ERROR,
					(errcode(ERRCODE_INDEX_CORRUPTED),
					 errmsg("index \"%s\" is damaged: old chain of list %u leads astray",
							RelationGetRelationName(state->index), list),
					 errhint("Rebuild the index with REINDEX.")));
		log_conflict(state->info, horizon);
		buffer = bq_read_entry(state->index, &state->layout, list, BUFFER_LOCK_EXCLUSIVE, &entry);
		free_chain(state, buffer, entry, known->old_head, tail, known->old_nblocks);
		UnlockReleaseBuffer(buffer);
	}
}

/* How many blocks are known to be in old chains. */
uint64
bq_count_old_blocks(const BqVacuum *state)
{
	uint64		n = 0;

	for (uint32 list = 0; list < state->layout.nlists; list++)
		if (state->entries[list].old_head != BQ_NO_BLOCK)
			n += state->entries[list].old_nblocks;
	return n;
}

/*
 * Find the blocks that a split wrote which was not completed: they are in no list, old
 * chain or chain of free blocks.  No scan ever knew them.
 */
void
bq_free_lost_blocks(IndexVacuumInfo *info)
{
	BqVacuum state = bq_begin_vacuum(info);
	uint32		nfound = 0;
	uint32		last;
	Buffer		buffer;
	uint32		free_head;

	state.unowned = (uint8 *) MemoryContextAllocExtended(CurrentMemoryContext,
														 state.layout.nblocks / 8 + 1,
														 MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	bq_visit_blocks(&state, false);
	for (uint32 list = 0; list < state.layout.nlists; list++)
		if (state.entries[list].old_head != BQ_NO_BLOCK &&
			!follow_chain(&state, state.entries[list].old_head, state.entries[list].old_nblocks,
						  &last))
			return;
	/* writers take free blocks meanwhile: then leave it to the next vacuum */
	buffer = bq_read_page(info->index, BQ_METAPAGE_BLKNO, BQ_PAGE_META, BUFFER_LOCK_SHARE);
	free_head = BqPageGetMeta(BufferGetPage(buffer))->free_head;
	UnlockReleaseBuffer(buffer);
	if (!follow_chain(&state, free_head, state.layout.nblocks, &last))
		return;
	for (uint32 b = 0; b < state.layout.nblocks; b++)
	{
		const BqBlockData *block;
		bool		owned;

		if (!(state.unowned[b / 8] & 1 << b % 8))
			continue;
		/* it may have been free, and taken since */
		buffer = bq_read_page(info->index, bq_header_page(&state.layout, b), BQ_PAGE_HEADERS,
							  BUFFER_LOCK_SHARE);
		block = BqPageGetBlock(&state.layout, BufferGetPage(buffer), b);
		owned = bq_is_owned(&state, block);
		UnlockReleaseBuffer(buffer);
		if (!owned)
		{
			free_chain(&state, InvalidBuffer, NULL, b, b, 1);
			nfound++;
		}
		CHECK_FOR_INTERRUPTS();
	}
	if (nfound > 0)
		ereport(DEBUG1,
				(errmsg_internal("index \"%s\": %u blocks of a split that was interrupted are free",
								 RelationGetRelationName(info->index), nfound)));
}
