/*
 * bqinsert.c: one new row.
 *
 * A row goes into a free slot of a block of its list, in place: its nibbles into the
 * block's code rows, then position and norm into the header, and last the slot's bit
 * in `live`.  Blocks with free slots form a chain that starts in the list's entry.
 *
 * Order of locks, here and everywhere: list page, metapage, header page, code pages.
 * A block's header page stays locked while its code pages are written, so two writers
 * never work on one block, and a reader that saw a slot live finds its code in place.
 * Replay locks the pages of a record in the order they were registered in, and keeps
 * them: register pages in the order of locks, or readers of a standby deadlock with it.
 */
#include "postgres.h"

#include "access/generic_xlog.h"
#include "index/bqsource.h"
#include "storage/lmgr.h"
#include "type/bqvec.h"
#include "utils/memutils.h"

/* Code pages that fit one WAL record beside the header page. */
#define CODE_PAGES_PER_RECORD (MAX_GENERIC_XLOG_PAGES - 1)

/* On how many pages `n` code rows lie. */
static int
code_page_count(uint64 first_row, int n)
{
	return (int) ((first_row + n - 1) / BQ_ROWS_PER_PAGE - first_row / BQ_ROWS_PER_PAGE) + 1;
}

/*
 * Put a row into block b if it has a free slot.  For large dims the code pages take
 * more than one WAL record; until the last one, with the header, the slot stays free.
 */
static bool
insert_into_block(Relation index, const BqLayout *layout, uint32 list, uint32 b,
				  const BqRow *row)
{
	uint64		first_row = bq_first_row(layout, b);
	Buffer		header_buffer = bq_read_page(index, bq_header_page(layout, b), BQ_PAGE_DATA,
											 BUFFER_LOCK_EXCLUSIVE);
	BqBlockData *block = BqPageGetBlock(BufferGetPage(header_buffer), b);
	GenericXLogState *state;
	int			slot = 0;
	int			j = 0;
	bool		last;

	if (block->list != list || block->live == UINT32_MAX)
	{
		UnlockReleaseBuffer(header_buffer);
		return false;
	}
	while (block->live & ((uint32) 1 << slot))
		slot++;

	do
	{
		Buffer		buffers[CODE_PAGES_PER_RECORD];
		int			nbuffers = 0;

		last = code_page_count(first_row + j, layout->nrows - j) <= CODE_PAGES_PER_RECORD;
		state = GenericXLogStart(index);
		if (last)
		{
			block = BqPageGetBlock(GenericXLogRegisterBuffer(state, header_buffer, 0), b);
			block->tid[slot] = row->tid;
			block->norm[slot] = row->norm;
			block->inverse[slot] = row->inverse;
			block->live |= (uint32) 1 << slot;
		}
		while (j < layout->nrows && nbuffers < CODE_PAGES_PER_RECORD)
		{
			int			n = Min(layout->nrows - j,
								BQ_ROWS_PER_PAGE - (int) ((first_row + j) % BQ_ROWS_PER_PAGE));
			Buffer		buffer = bq_read_page(index, bq_code_page(layout, first_row + j),
											  BQ_PAGE_DATA, BUFFER_LOCK_EXCLUSIVE);

			bq_block_put_rows(BqPageGetRow(GenericXLogRegisterBuffer(state, buffer, 0),
										   first_row + j),
							  j, j + n, layout->dim, slot, row->planes);
			buffers[nbuffers++] = buffer;
			j += n;
		}
		GenericXLogFinish(state);
		while (nbuffers > 0)
			UnlockReleaseBuffer(buffers[--nbuffers]);
	} while (!last);
	UnlockReleaseBuffer(header_buffer);
	return true;
}

/*
 * Give a list, whose page is locked exclusively, a new block at the head of its chain.
 * Pages are extended and initialised in WAL records of their own; until the last record
 * they belong to nobody, and a later call finds and uses them.
 */
static void
add_block(Relation index, const BqLayout *layout, uint32 list, Buffer list_buffer)
{
	Buffer		meta_buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
										   BUFFER_LOCK_EXCLUSIVE);
	uint32		b = BqPageGetMeta(BufferGetPage(meta_buffer))->nblocks;
	Buffer		header_buffer;
	GenericXLogState *state;
	BqListData *entry;
	BqBlockData *block;

	if (b == BQ_NO_BLOCK - 1)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("bq index cannot have more than %u blocks", BQ_NO_BLOCK - 1),
				 errhint("Partition the table.")));
	bq_extend(index, bq_data_end(layout, b), bq_data_end(layout, b + 1),
			  RelationNeedsWAL(index));
	header_buffer = bq_read_page(index, bq_header_page(layout, b), BQ_PAGE_DATA,
								 BUFFER_LOCK_EXCLUSIVE);

	state = GenericXLogStart(index);
	entry = BqPageGetList(GenericXLogRegisterBuffer(state, list_buffer, 0), list);
	BqPageGetMeta(GenericXLogRegisterBuffer(state, meta_buffer, 0))->nblocks = b + 1;
	block = BqPageGetBlock(GenericXLogRegisterBuffer(state, header_buffer, 0), b);
	memset(block, 0, sizeof(BqBlockData));
	block->list = list;
	block->next = entry->head;
	block->next_free = entry->free;
	block->in_free_chain = true;
	entry->head = b;
	entry->free = b;
	entry->nblocks++;
	GenericXLogFinish(state);
	UnlockReleaseBuffer(header_buffer);
	UnlockReleaseBuffer(meta_buffer);
}

/*
 * Block b, first of the list's free chain (BQ_NO_BLOCK: none), had no slot.  Take it
 * out of the chain, and add a new block if the chain is empty then.  Does nothing if
 * somebody else has already done it.
 */
static void
provide_block(Relation index, const BqLayout *layout, uint32 list, uint32 b)
{
	Buffer		list_buffer = bq_read_page(index, bq_list_page(layout, list), BQ_PAGE_LISTS,
										   BUFFER_LOCK_EXCLUSIVE);
	BqListData *entry = BqPageGetList(BufferGetPage(list_buffer), list);

	if (entry->free == b && b == BQ_NO_BLOCK)
		add_block(index, layout, list, list_buffer);
	else if (entry->free == b)
	{
		Buffer		header_buffer = bq_read_page(index, bq_header_page(layout, b), BQ_PAGE_DATA,
												 BUFFER_LOCK_EXCLUSIVE);
		BqBlockData *block = BqPageGetBlock(BufferGetPage(header_buffer), b);

		if (block->list != list || !block->in_free_chain)
			ereport(ERROR,
					(errcode(ERRCODE_INDEX_CORRUPTED),
					 errmsg("block %u of index \"%s\" is wrongly in the free chain of list %u", b,
							RelationGetRelationName(index), list),
					 errhint("Rebuild the index with REINDEX.")));
		/* vacuum may have made room since */
		if (block->live == UINT32_MAX)
		{
			GenericXLogState *state = GenericXLogStart(index);

			entry = BqPageGetList(GenericXLogRegisterBuffer(state, list_buffer, 0), list);
			block = BqPageGetBlock(GenericXLogRegisterBuffer(state, header_buffer, 0), b);
			entry->free = block->next_free;
			block->next_free = BQ_NO_BLOCK;
			block->in_free_chain = false;
			GenericXLogFinish(state);
		}
		UnlockReleaseBuffer(header_buffer);
	}
	UnlockReleaseBuffer(list_buffer);
}

/* The first row ever decides the transform of the index. */
static void
set_transform(Relation index, int transform)
{
	Buffer		buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
									  BUFFER_LOCK_EXCLUSIVE);

	if (BqPageGetMeta(BufferGetPage(buffer))->transform < 0)
	{
		GenericXLogState *state = GenericXLogStart(index);

		BqPageGetMeta(GenericXLogRegisterBuffer(state, buffer, 0))->transform = transform;
		GenericXLogFinish(state);
	}
	UnlockReleaseBuffer(buffer);
}

/* Make a row of a value; false if the index leaves it out. */
static bool
form_row(Relation index, BqLayout *layout, Datum value, ItemPointer tid, BqRow *row)
{
	BqVecView	code;

	if (bq_get_source(index) != NULL)
		return bq_form_vector(bq_begin_forming(index, layout->dim, layout->transform), value, tid,
							  row);
	code = bqvec_view(PG_DETOAST_DATUM_PACKED(value));
	bq_check_code(index, layout, &code.header);
	if (layout->transform < 0)
	{
		set_transform(index, code.header.transform);
		*layout = bq_get_layout(index);
		bq_check_code(index, layout, &code.header);
	}
	*row = bq_form_row(&code.header, code.planes, tid);
	return true;
}

bool
bqinsert(Relation index, Datum *values, bool *isnull, ItemPointer tid, Relation heap,
		 IndexUniqueCheck check_unique, bool index_unchanged, IndexInfo *info)
{
	MemoryContext context;
	MemoryContext old_context;
	BqLayout	layout;
	BqRow		row;
	float	   *direction;
	uint32		list = 0;

	if (isnull[0])
		return false;

	context = AllocSetContextCreate(CurrentMemoryContext, "bq insert", ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(context);

	/* The layout must not change under us: bqregroup.c. */
	LockPage(index, BQ_METAPAGE_BLKNO, ShareLock);
	layout = bq_get_layout(index);
	if (!form_row(index, &layout, values[0], tid, &row))
	{
		UnlockPage(index, BQ_METAPAGE_BLKNO, ShareLock);
		MemoryContextSwitchTo(old_context);
		MemoryContextDelete(context);
		return false;
	}
	if (layout.nlists > 1)
	{
		direction = (float *) palloc(layout.dim * sizeof(float));
		bq_decode(row.planes, layout.dim, 1, NULL, direction);
		list = bq_nearest_list(index, &layout, direction);
	}

	for (;;)
	{
		Buffer		buffer = bq_read_page(index, bq_list_page(&layout, list), BQ_PAGE_LISTS,
										  BUFFER_LOCK_SHARE);
		uint32		b = BqPageGetList(BufferGetPage(buffer), list)->free;

		UnlockReleaseBuffer(buffer);
		if (b != BQ_NO_BLOCK && insert_into_block(index, &layout, list, b, &row))
			break;
		provide_block(index, &layout, list, b);
	}
	UnlockPage(index, BQ_METAPAGE_BLKNO, ShareLock);

	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
	return false;
}
