/*
 * bqinsert.c: one new row.
 *
 * The nearest list takes it, in a block with a free slot (bqblock.c).  Blocks with free slots
 * form a chain that starts in the list's entry; where that is empty, the list gets a new one.
 *
 * Order of locks, here and everywhere: page of the list's entry, metapage, header page,
 * code pages.  Replay locks the pages of a record in the order they were registered in, and
 * keeps them: register pages in the order of locks, or readers of a standby deadlock with it.
 *
 * The page of the entry stays locked, for reading, until the row is in.  So vacuum, having
 * locked it once for writing to close a list (bqsplit.c), knows that no row is on its way.
 */
#include "postgres.h"

#include "index/bqkey.h"
#include "index/bqsource.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"

/*
 * Lists and their blocks
 */

/*
 * Give a list, whose entry is locked exclusively, a new block at the head of its chain: a
 * free one, or one of the pages behind the last.  False if there is neither.
 */
static bool
add_block(Relation index, const BqLayout *layout, uint32 list, Buffer list_buffer,
		  BqListData *entry)
{
	Buffer		meta_buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
										   BUFFER_LOCK_EXCLUSIVE);
	BqMetaPage	meta = BqPageGetMeta(BufferGetPage(meta_buffer));
	uint32		b = bq_choose_block(index, layout, meta);
	BqBlockData fresh = {0};
	Buffer		header_buffer;
	BqBlockData *block;
	int			page;

	if (b == BQ_NO_BLOCK)
	{
		UnlockReleaseBuffer(meta_buffer);
		return false;
	}
	header_buffer = bq_read_page(index, bq_header_page(layout, b), BQ_PAGE_HEADERS,
								 BUFFER_LOCK_EXCLUSIVE);
	block = BqPageGetBlock(layout, BufferGetPage(header_buffer), b);

	fresh.list = list;
	fresh.epoch = entry->epoch;
	fresh.next = entry->head;
	fresh.next_free = entry->free;
	fresh.in_free_chain = true;
	bq_begin_log(index);
	page = bq_log_page(list_buffer);
	bq_log_set(page, &entry->head, uint32, b);
	bq_log_set(page, &entry->free, uint32, b);
	bq_log_set(page, &entry->nblocks, uint32, entry->nblocks + 1);
	bq_log_taken(meta_buffer, b, block);
	/* all but what belongs to slots */
	bq_log_change(bq_log_page(header_buffer), block, &fresh, offsetof(BqBlockData, tid));
	bq_finish_log();
	UnlockReleaseBuffer(header_buffer);
	UnlockReleaseBuffer(meta_buffer);
	return true;
}

/*
 * Block b, first of the list's free chain (BQ_NO_BLOCK: none), had no slot.  Take it
 * out of the chain, and add a new block if the chain is empty then.  Does nothing if
 * somebody else has already done it, or if the list is closed.  False if the index has to
 * be extended first.
 */
static bool
provide_block(Relation index, const BqLayout *layout, uint32 list, uint32 b)
{
	BqListData *entry;
	Buffer		list_buffer = bq_read_entry(index, layout, list, BUFFER_LOCK_EXCLUSIVE, &entry);
	bool		done = true;

	if (entry->closed || entry->changed > layout->generation)
		;
	else if (entry->free == b && b == BQ_NO_BLOCK)
		done = add_block(index, layout, list, list_buffer, entry);
	else if (entry->free == b)
	{
		Buffer		header_buffer = bq_read_page(index, bq_header_page(layout, b), BQ_PAGE_HEADERS,
												 BUFFER_LOCK_EXCLUSIVE);
		BqBlockData *block = BqPageGetBlock(layout, BufferGetPage(header_buffer), b);

		if (block->list != list || block->epoch != entry->epoch || !block->in_free_chain)
			ereport(ERROR,
					(errcode(ERRCODE_INDEX_CORRUPTED),
					 errmsg("block %u of index \"%s\" is wrongly in the free chain of list %u", b,
							RelationGetRelationName(index), list),
					 errhint("Rebuild the index with REINDEX.")));
		/* vacuum may have made room since */
		if (block->live == UINT32_MAX)
		{
			int			page;

			bq_begin_log(index);
			page = bq_log_page(list_buffer);
			bq_log_set(page, &entry->free, uint32, block->next_free);
			page = bq_log_page(header_buffer);
			bq_log_set(page, &block->next_free, uint32, BQ_NO_BLOCK);
			bq_log_set(page, &block->in_free_chain, uint16, false);
			bq_finish_log();
		}
		UnlockReleaseBuffer(header_buffer);
	}
	UnlockReleaseBuffer(list_buffer);
	return done;
}

/*
 * The index as a whole
 */

/* The first row ever decides the transform of the index. */
static void
set_transform(Relation index, int transform)
{
	Buffer		buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
									  BUFFER_LOCK_EXCLUSIVE);
	BqMetaPage	meta = BqPageGetMeta(BufferGetPage(buffer));

	if (meta->transform < 0)
	{
		bq_begin_log(index);
		bq_log_set(bq_log_page(buffer), &meta->transform, int32, transform);
		bq_finish_log();
	}
	UnlockReleaseBuffer(buffer);
}

/* Make a row of a value; false if the index leaves it out. */
static bool
form_row(Relation index, BqLayout *layout, const Datum *values, const bool *isnull,
		 ItemPointer tid, BqRow *row)
{
	if (bq_get_source(index) != NULL)
	{
		if (!bq_form_vector(bq_begin_forming(index, layout->dim, layout->transform), values[0], tid,
							row))
			return false;
	}
	else
	{
		BqHeader	header = bq_form_code(values[0], tid, row);

		bq_check_code(index, layout, &header);
		if (layout->transform < 0)
		{
			set_transform(index, header.transform);
			*layout = bq_get_layout(index);
			bq_check_code(index, layout, &header);
		}
	}
	bq_make_keys(index, values, isnull, row);
	return true;
}

/* May rows of this layout's transform be added?  Called with the entry of a list locked. */
static bool
is_open(Relation index, const BqLayout *layout)
{
	BqMetaPageData meta = bq_read_metapage(index);

	return !meta.closed && meta.transform == layout->transform;
}

/*
 * Wait until vacuum has opened a list, or the index, again.  It holds the lock as long as
 * one is closed; one that is found closed then was left so by an error or a crash.
 */
static void
wait_until_open(Relation index, const BqLayout *layout, uint32 list)
{
	BqListData *entry;
	BqMetaPage	meta;
	Buffer		buffer;
	uint64		changed;

	LockPage(index, BQ_METAPAGE_BLKNO, ExclusiveLock);
	buffer = bq_read_entry(index, layout, list, BUFFER_LOCK_EXCLUSIVE, &entry);
	if (entry->closed)
	{
		bq_begin_log(index);
		bq_log_set(bq_log_page(buffer), &entry->closed, uint16, false);
		bq_finish_log();
	}
	changed = entry->changed;
	UnlockReleaseBuffer(buffer);
	buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META, BUFFER_LOCK_EXCLUSIVE);
	meta = BqPageGetMeta(BufferGetPage(buffer));
	/* a row would wait for ever for the split that this speaks of */
	if (changed > meta->generation)
		bq_report_damage(index, bq_list_page(layout, list), "list was changed in the future");
	if (meta->closed)
	{
		bq_begin_log(index);
		bq_log_set(bq_log_page(buffer), &meta->closed, uint32, false);
		bq_finish_log();
	}
	UnlockReleaseBuffer(buffer);
	UnlockPage(index, BQ_METAPAGE_BLKNO, ExclusiveLock);
}

/* Add a row to a list; false if vacuum closed or changed it, or the index. */
static bool
insert_into_list(Relation index, const BqLayout *layout, uint32 list, const BqRow *row)
{
	for (;;)
	{
		BqListData *entry;
		Buffer		buffer = bq_read_entry(index, layout, list, BUFFER_LOCK_SHARE, &entry);
		uint32		b = entry->free;
		bool		closed = entry->closed || entry->changed > layout->generation;
		bool		done;

		if (!closed && !is_open(index, layout))
			closed = true;
		done = !closed && b != BQ_NO_BLOCK &&
			bq_insert_into_block(index, layout, list, entry->epoch, b, row);
		UnlockReleaseBuffer(buffer);
		if (done || closed)
			return done;
		CHECK_FOR_INTERRUPTS();
		if (!provide_block(index, layout, list, b))
			bq_provide_pages(index, layout, bq_read_layout(index).nblocks + 1);
	}
}

bool
bqinsert(Relation index, Datum *values, bool *isnull, ItemPointer tid, Relation heap,
		 IndexUniqueCheck check_unique, bool index_unchanged, IndexInfo *info)
{
	MemoryContext context;
	MemoryContext old_context;
	int			transform = -1;
	BqRow		row;
	float	   *direction = NULL;

	if (isnull[0])
		return false;

	context = AllocSetContextCreate(CurrentMemoryContext, "bq insert", ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(context);

	for (;;)
	{
		BqLayout	layout = bq_get_layout(index);
		uint32		list = 0;

		/* once, but for the transform, which vacuum may have forgotten since */
		if (layout.transform != transform || transform < 0)
		{
			if (!form_row(index, &layout, values, isnull, tid, &row))
				break;
			transform = layout.transform;
		}
		if (layout.nlists > 1)
		{
			if (direction == NULL)
			{
				direction = (float *) palloc(layout.dim * sizeof(float));
				bq_decode(row.planes, layout.dim, 1, NULL, direction);
			}
			list = bq_nearest_list(index, &layout, direction);
		}
		if (insert_into_list(index, &layout, list, &row))
			break;
		CHECK_FOR_INTERRUPTS();
		wait_until_open(index, &layout, list);
	}

	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
	return false;
}
