/*
 * bqread.c: the blocks of a list, one by one.
 *
 * A header is read before its codes, and a writer puts codes before it sets their bits
 * in `live`: what is live here has its code in place.
 */
#include "postgres.h"

#include "index/bqindex.h"
#include "miscadmin.h"

static void
release_page(BqHeldPage *held)
{
	if (BufferIsValid(held->buffer))
		UnlockReleaseBuffer(held->buffer);
	held->buffer = InvalidBuffer;
}

static Page
hold_page(Relation index, BqHeldPage *held, BlockNumber blkno)
{
	if (!BufferIsValid(held->buffer) || held->blkno != blkno)
	{
		release_page(held);
		held->buffer = bq_read_page(index, blkno, BQ_PAGE_DATA, BUFFER_LOCK_SHARE);
		held->blkno = blkno;
	}
	return BufferGetPage(held->buffer);
}

/* Begin to read a list, as of its entry. */
void
bq_begin_list(BqListReader *reader, Relation index, const BqLayout *layout, uint32 list,
			  const BqListData *entry)
{
	reader->index = index;
	reader->layout = layout;
	reader->list = list;
	reader->block = BQ_NO_BLOCK;
	reader->next = entry->head;
	/* Blocks are only ever added at the head: from the head read, the chain has this length. */
	reader->left = entry->nblocks;
	reader->headers.buffer = InvalidBuffer;
	reader->codes.buffer = InvalidBuffer;
}

/*
 * The next block's header, NULL at the end.  It stays locked, for reading, until the next
 * call; reader->block is its number.
 */
const BqBlockData *
bq_next_block(BqListReader *reader)
{
	BlockNumber header_page;
	const BqBlockData *block;

	if (reader->left == 0 || reader->next == BQ_NO_BLOCK)
		return NULL;
	reader->left--;
	reader->block = reader->next;
	header_page = bq_header_page(reader->layout, reader->block);
	/* Header before codes, and interrupts only while nothing is locked. */
	if (reader->headers.blkno != header_page || !BufferIsValid(reader->headers.buffer))
	{
		bq_end_list(reader);
		CHECK_FOR_INTERRUPTS();
	}
	block = BqPageGetBlock(hold_page(reader->index, &reader->headers, header_page), reader->block);
	if (block->list != reader->list)
		ereport(ERROR,
				(errcode(ERRCODE_INDEX_CORRUPTED),
				 errmsg("block %u of index \"%s\" belongs to list %u, expected %u", reader->block,
						RelationGetRelationName(reader->index), block->list, reader->list),
				 errhint("Rebuild the index with REINDEX.")));
	reader->next = block->next;
	return block;
}

/* Sums of a table (core/bqlut.h) over the codes of the block whose header was read last. */
void
bq_sum_block(BqListReader *reader, const uint8 *table, uint16 *sums)
{
	const BqLayout *layout = reader->layout;
	uint64		row = bq_first_row(layout, reader->block);

	memset(sums, 0, BQ_BLOCK * sizeof(uint16));
	for (int j = 0; j < layout->nrows;)
	{
		int			n = Min(layout->nrows - j,
							BQ_ROWS_PER_PAGE - (int) ((row + j) % BQ_ROWS_PER_PAGE));
		Page		page = hold_page(reader->index, &reader->codes,
									 bq_code_page(layout, row + j));
		uint16		part[BQ_BLOCK];

		bq_kernel->lut_block(table + j * BQ_ROW_NBYTES, BqPageGetRow(page, row + j), n, part);
		for (int c = 0; c < BQ_BLOCK; c++)
			sums[c] += part[c];
		j += n;
	}
}

/* Let go of the pages. */
void
bq_end_list(BqListReader *reader)
{
	release_page(&reader->codes);
	release_page(&reader->headers);
}
