/*
 * bqwrite.c: a whole new set of lists, rows arriving in list order.
 *
 * For CREATE INDEX.  Nobody else knows the new pages until they are complete, so they are
 * written without WAL and logged whole at the end.
 */
#include "postgres.h"

#include <math.h>

#include "index/bqbuild.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"

/*
 * How many lists.  About BQ_ROWS_PER_LIST rows each: then the half block that a list wastes on
 * average stays near a tenth of the index.  Above 410,000 rows 4 sqrt(n), so that
 * ranking the lists stays cheaper than reading them.
 */
uint32
bq_choose_lists(Relation index, double nrows)
{
	BqOptions  *options = (BqOptions *) index->rd_options;
	double		lists;

	if (options != NULL && options->lists > 0)
		lists = options->lists;
	else if (nrows < BQ_FLAT_ROWS)
		lists = 1;
	else
		lists = Min(nrows / BQ_ROWS_PER_LIST, 4 * sqrt(nrows));
	/* training needs a row for each list */
	return (uint32) Max(1, Min(Min(lists, nrows), BQ_MAX_LISTS));
}

/* A part of the lists more that the directory has room for, so that it rarely grows at once. */
#define SPARE_LISTS 4

/* Lay out `nlists` empty lists, the directory first; transform and probes come later. */
BqLayout
bq_plan_layout(int dim, int nkeys, uint32 nlists)
{
	BqLayout	layout = {0};
	uint32		capacity = nlists + nlists / SPARE_LISTS;

	bq_set_layout(&layout, dim, nkeys);
	layout.transform = -1;
	layout.nlists = nlists;
	bq_clear_model(&layout);
	layout.data_start = BQ_METAPAGE_BLKNO + 1;
	layout.capacity = Min((capacity + BQ_BLOCK - 1) / BQ_BLOCK * BQ_BLOCK, BQ_MAX_LISTS);
	layout.segments[0] = 0;
	for (int i = 1; i < BQ_SEGMENTS; i++)
		layout.segments[i] = BQ_NO_BLOCK;
	layout.nblocks = bq_count_directory_blocks(&layout);
	layout.generation = BQ_FIRST_GENERATION;
	return layout;
}

static void
clear_entry(BqListData *entry)
{
	memset(entry, 0, sizeof(BqListData));
	entry->head = BQ_NO_BLOCK;
	entry->free = BQ_NO_BLOCK;
	entry->old_head = BQ_NO_BLOCK;
	entry->epoch = BQ_FIRST_GENERATION;
}

/* Make the pages of the directory; all lists are empty. */
void
bq_create_lists(Relation index, ForkNumber fork, const BqLayout *layout)
{
	BlockNumber end = bq_data_end(layout, layout->nblocks);
	uint32		list = 0;

	for (BlockNumber blkno = layout->data_start; blkno < end; blkno++)
	{
		Buffer		buffer = bq_new_page(index, fork, blkno, bq_page_kind(layout, blkno));

		for (; list < layout->nlists && bq_list_page(layout, list) == blkno; list++)
			clear_entry((BqListData *) BqPageGetRow(BufferGetPage(buffer),
													bq_list_row(layout, list)));
		UnlockReleaseBuffer(buffer);
	}
}

/* What the metapage says of a layout. */
void
bq_fill_metapage(Page page, const BqLayout *layout, uint32 nblocks, double nrows)
{
	BqMetaPage	meta = BqPageGetMeta(page);

	meta->magic = BQ_MAGIC;
	meta->version = BQ_VERSION;
	meta->dim = layout->dim;
	meta->transform = layout->transform;
	meta->nlists = layout->nlists;
	meta->nkeys = layout->nkeys;
	meta->data_start = layout->data_start;
	meta->npages = bq_data_end(layout, nblocks);
	meta->nblocks = nblocks;
	meta->free_head = BQ_NO_BLOCK;
	meta->nfree = 0;
	meta->capacity = layout->capacity;
	memcpy(meta->segments, layout->segments, sizeof(meta->segments));
	meta->generation = layout->generation;
	meta->build_rows = nrows;
	meta->nchanged = 0;
	meta->closed = false;
	memcpy(meta->margins, layout->margins, sizeof(meta->margins));
	meta->model = layout->model;
}

/* Start writing; the directory exists, and its lists are empty. */
BqWriter *
bq_begin_writing(Relation index, const BqLayout *layout)
{
	BqWriter   *writer = (BqWriter *) palloc0(sizeof(BqWriter));

	writer->index = index;
	writer->layout = *layout;
	writer->nblocks = layout->nblocks;
	writer->lists = (BqListData *) MemoryContextAllocHuge(CurrentMemoryContext,
														  layout->nlists * sizeof(BqListData));
	for (uint32 list = 0; list < layout->nlists; list++)
		clear_entry(&writer->lists[list]);
	writer->rows = (uint8 *) palloc0(bq_block_nbytes(layout->dim));
	return writer;
}

/* Write the block being filled; `more`: the next row belongs to the same list. */
static void
flush_block(BqWriter *writer, bool more)
{
	Relation	index = writer->index;
	const BqLayout *layout = &writer->layout;
	uint32		b = writer->nblocks;
	BqBlockData *block = &writer->block.data;
	BqListData *list = &writer->lists[block->list];
	uint64		row = bq_first_row(layout, b);
	Buffer		buffer;

	if (writer->used == 0)
		return;
	bq_extend(index, layout, bq_data_end(layout, b), bq_data_end(layout, b + 1));

	for (int j = 0; j < layout->nrows;)
	{
		int			n = bq_rows_on_page(row + j, row + layout->nrows);

		buffer = bq_read_page(index, bq_code_page(layout, row + j), BQ_PAGE_CODES,
							  BUFFER_LOCK_EXCLUSIVE);
		memcpy(BqPageGetRow(BufferGetPage(buffer), row + j), writer->rows + j * BQ_ROW_NBYTES,
			   n * BQ_ROW_NBYTES);
		MarkBufferDirty(buffer);
		UnlockReleaseBuffer(buffer);
		j += n;
	}

	/* Blocks of a list lie in a row; only the last one can have free slots. */
	block->next = more ? b + 1 : BQ_NO_BLOCK;
	block->next_free = BQ_NO_BLOCK;
	block->in_free_chain = writer->used < BQ_BLOCK;
	block->packed = (uint16) layout->nrows;
	block->epoch = list->epoch;
	buffer = bq_read_page(index, bq_header_page(layout, b), BQ_PAGE_HEADERS, BUFFER_LOCK_EXCLUSIVE);
	memcpy(BqPageGetBlock(layout, BufferGetPage(buffer), b), &writer->block, layout->header_nbytes);
	MarkBufferDirty(buffer);
	UnlockReleaseBuffer(buffer);

	if (list->head == BQ_NO_BLOCK)
		list->head = b;
	list->nblocks++;
	if (writer->used < BQ_BLOCK)
		list->free = b;
	writer->nblocks++;
	writer->used = 0;
	memset(writer->rows, 0, bq_block_nbytes(layout->dim));
	memset(&writer->block, 0, sizeof(BqWholeBlock));
}

/* Add a row; lists must arrive in order. */
void
bq_write_row(BqWriter *writer, uint32 list, const BqRow *row)
{
	int			dim = writer->layout.dim;

	if (writer->used > 0 && (writer->block.data.list != list || writer->used == BQ_BLOCK))
	{
		CHECK_FOR_INTERRUPTS();
		flush_block(writer, writer->block.data.list == list);
	}
	writer->block.data.list = list;
	bq_put_header(&writer->layout, &writer->block, writer->used, row);
	bq_block_put(writer->rows, dim, writer->used, row->planes);
	writer->used++;
}

/* Add all of `rows`, which lie in no order: bring them into list order by counting. */
void
bq_write_rows(BqWriter *writer, const BqRows *rows, const uint32 *lists)
{
	uint32		nlists = writer->layout.nlists;
	int			dim = writer->layout.dim;
	size_t	   *start;
	size_t	   *order;

	if (lists == NULL)			/* there is but one */
	{
		for (size_t i = 0; i < rows->n; i++)
		{
			BqRow		row = bq_get_row(rows, i, dim);

			bq_write_row(writer, 0, &row);
		}
		return;
	}
	start = (size_t *) MemoryContextAllocZero(CurrentMemoryContext,
											  ((size_t) nlists + 1) * sizeof(size_t));
	order = (size_t *) MemoryContextAllocHuge(CurrentMemoryContext,
											  (rows->n + 1) * sizeof(size_t));
	for (size_t i = 0; i < rows->n; i++)
		start[lists[i] + 1]++;
	for (uint32 list = 0; list < nlists; list++)
		start[list + 1] += start[list];
	for (size_t i = 0; i < rows->n; i++)
		order[start[lists[i]]++] = i;
	for (size_t k = 0; k < rows->n; k++)
	{
		BqRow		row = bq_get_row(rows, order[k], dim);

		bq_write_row(writer, lists[order[k]], &row);
	}
	pfree(order);
	pfree(start);
}

/* Write the last block and the lists' entries; returns the number of blocks. */
uint32
bq_end_writing(BqWriter *writer)
{
	uint32		list = 0;
	uint32		nblocks;

	flush_block(writer, false);
	while (list < writer->layout.nlists)
	{
		BqListData *entry;
		Buffer		buffer = bq_read_entry(writer->index, &writer->layout, list,
										   BUFFER_LOCK_EXCLUSIVE, &entry);
		BlockNumber blkno = BufferGetBlockNumber(buffer);

		do
			*entry++ = writer->lists[list++];
		while (list < writer->layout.nlists && bq_list_page(&writer->layout, list) == blkno);
		MarkBufferDirty(buffer);
		UnlockReleaseBuffer(buffer);
	}
	nblocks = writer->nblocks;
	pfree(writer->rows);
	pfree(writer->lists);
	pfree(writer);
	return nblocks;
}
