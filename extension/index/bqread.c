/*
 * bqread.c: the blocks of a list, one by one.
 *
 * A header is read before its codes, and a writer puts codes before it sets their bits
 * in `live`: what is live here has its code in place.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "index/bqindex.h"
#include "miscadmin.h"

void
bq_release_page(BqHeldPage *held)
{
	if (BufferIsValid(held->buffer))
		UnlockReleaseBuffer(held->buffer);
	held->buffer = InvalidBuffer;
}

/* Lock a page for reading, in the place of another one, unless it is held already. */
Page
bq_hold_page(Relation index, BqHeldPage *held, BlockNumber blkno, BqPageKind kind)
{
	if (!BufferIsValid(held->buffer) || held->blkno != blkno)
	{
		bq_release_page(held);
		held->buffer = bq_read_page(index, blkno, kind, BUFFER_LOCK_SHARE);
		held->blkno = blkno;
	}
	return BufferGetPage(held->buffer);
}

/*
 * Something that a reader looked for is not there.  On a standby that can be the work of a
 * vacuum on the primary, whose snapshots do not wait for ours (bqsplit.c); else it is damage.
 */
static void
report_change(Relation index, const char *what)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("canceling statement due to conflict with recovery"),
				 errdetail("Index \"%s\" was changed by vacuum: %s.",
						   RelationGetRelationName(index), what),
				 errhint("In a moment you should be able to repeat your command.")));
	ereport(ERROR,
			(errcode(ERRCODE_INDEX_CORRUPTED),
			 errmsg("index \"%s\" is damaged: %s", RelationGetRelationName(index), what),
			 errhint("Rebuild the index with REINDEX.")));
}

/* The chain of a list, as those must read it who began with this layout. */
BqChain
bq_read_chain(Relation index, const BqLayout *layout, uint32 list)
{
	BqListData *entry;
	Buffer		buffer = bq_read_entry(index, layout, list, BUFFER_LOCK_SHARE, &entry);
	BqChain		chain = {.list = list};
	bool		old = entry->changed > layout->generation;

	chain.head = old ? entry->old_head : entry->head;
	chain.nblocks = old ? entry->old_nblocks : entry->nblocks;
	chain.epoch = old ? entry->old_epoch : entry->epoch;
	UnlockReleaseBuffer(buffer);
	if (old && chain.head == BQ_NO_BLOCK)
		report_change(index, psprintf("the blocks of list %u before it was split are gone", list));
	/* as on a page that was lost and is zero: the list would look empty */
	if (chain.epoch == 0)
		report_change(index, psprintf("list %u was never written", list));
	/* the index may have grown since; if it has not, a chain that long is a circle */
	if (chain.nblocks > layout->nblocks && chain.nblocks > bq_read_layout(index).nblocks)
		report_change(index, psprintf("list %u has %u blocks of %u", list, chain.nblocks,
									  layout->nblocks));
	return chain;
}

/* Begin to read a list. */
void
bq_begin_list(BqListReader *reader, Relation index, const BqLayout *layout, const BqChain *chain)
{
	reader->index = index;
	reader->layout = layout;
	reader->chain = *chain;
	reader->block = BQ_NO_BLOCK;
	reader->next = chain->head;
	/* Blocks are only ever added at the head: from the head read, the chain has this length. */
	reader->left = chain->nblocks;
	reader->nheld = 0;
	reader->copied = NULL;
	reader->headers.buffer = InvalidBuffer;
	reader->codes.buffer = InvalidBuffer;
}

/* Is the number of packed rows of a block possible? */
static void
check_packed(Relation index, const BqLayout *layout, uint32 b, const BqBlockData *block)
{
	if (block->packed != layout->nrows &&
		(block->packed > layout->nrows || block->packed % BQ_STAGE_ROWS != 0))
		report_change(index, psprintf("block %u has %u packed rows of %d", b, block->packed,
									  layout->nrows));
}

/* Blocks of one header page after which interrupts are looked for: a chain may be a circle. */
#define MAX_HELD 64

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
	if (!BufferIsValid(reader->headers.buffer) || reader->headers.blkno != header_page ||
		++reader->nheld == MAX_HELD)
	{
		bq_end_list(reader);
		reader->nheld = 0;
		CHECK_FOR_INTERRUPTS();
	}
	block = BqPageGetBlock(reader->layout, bq_hold_page(reader->index, &reader->headers, header_page,
													 BQ_PAGE_HEADERS),
						   reader->block);
	if (block->list != reader->chain.list || block->epoch != reader->chain.epoch)
		report_change(reader->index,
					  psprintf("block %u belongs to list %u of epoch %u, expected %u of %u",
							   reader->block, block->list, block->epoch, reader->chain.list,
							   reader->chain.epoch));
	check_packed(reader->index, reader->layout, reader->block, block);
	reader->packed = block->packed;
	reader->next = block->next;
	return block;
}

/*
 * Rows of codes: one block after the other, and within a block by parts that are staged
 * or packed
 */

/* Room for a part, staged and packed. */
static uint8 staged_part[BQ_STAGE_ROWS * BQ_ROW_NBYTES];
static uint8 packed_part[BQ_STAGE_ROWS * BQ_ROW_NBYTES];

/* A row of codes, and those after it on its page. */
static const uint8 *
hold_row(BqListReader *reader, uint64 row)
{
	uint64		on_page = row / BQ_ROWS_PER_PAGE;

	if (!BufferIsValid(reader->codes.buffer) || on_page != reader->codes_on)
	{
		bq_hold_page(reader->index, &reader->codes, bq_code_page(reader->layout, row),
				  BQ_PAGE_CODES);
		reader->codes_on = on_page;
	}
	return BqPageGetRow(BufferGetPage(reader->codes.buffer), row);
}

/*
 * Add the sums of a table (core/bqlut.h) over rows `first` to `last` - 1 of the block whose
 * header was read last; of a block that is not packed, all of them.
 */
void
bq_sum_rows(BqListReader *reader, const uint8 *table, int first, int last, uint16 *sums)
{
	const BqLayout *layout = reader->layout;
	uint64		row = bq_first_row(layout, reader->block);

	if (reader->copied != NULL)
	{
		uint16		part[BQ_BLOCK];

		bq_kernel->lut_block(table + first * BQ_ROW_NBYTES,
							 reader->copied + first * BQ_ROW_NBYTES, last - first, part);
		for (int c = 0; c < BQ_BLOCK; c++)
			sums[c] += part[c];
		return;
	}
	for (int j = first; j < last;)
	{
		/* of a staged block, rows of one part that lie on one page, or a whole part */
		int			end = j < reader->packed ? Min(reader->packed, last) :
			Min(layout->nrows, j + BQ_STAGE_ROWS);
		int			n = bq_rows_on_page(row + j, row + end);
		const uint8 *rows = hold_row(reader, row + j);
		uint16		part[BQ_BLOCK];

		if (j >= reader->packed)
		{
			if (n < end - j)
			{
				for (int i = 0; i < end - j; i += n)
				{
					n = bq_rows_on_page(row + j + i, row + end);
					memcpy(staged_part + i * BQ_ROW_NBYTES, hold_row(reader, row + j + i),
						   n * BQ_ROW_NBYTES);
				}
				rows = staged_part;
				n = end - j;
			}
			bq_kernel->unstage(rows, n, packed_part);
			rows = packed_part;
		}
		bq_kernel->lut_block(table + j * BQ_ROW_NBYTES, rows, n, part);
		for (int c = 0; c < BQ_BLOCK; c++)
			sums[c] += part[c];
		j += n;
	}
}

/* Copy the codes of the block whose header was read last, packed: bq_block_nbytes(dim) bytes. */
void
bq_copy_rows(BqListReader *reader, uint8 *codes)
{
	const BqLayout *layout = reader->layout;
	uint64		row = bq_first_row(layout, reader->block);

	for (int j = 0; j < layout->nrows;)
	{
		bool		packed = j < reader->packed;
		int			end = packed ? reader->packed : Min(layout->nrows, j + BQ_STAGE_ROWS);
		uint8	   *part = packed ? codes + j * BQ_ROW_NBYTES : staged_part;

		for (int i = j; i < end;)
		{
			int			n = bq_rows_on_page(row + i, row + end);

			memcpy(part + (i - j) * BQ_ROW_NBYTES, hold_row(reader, row + i), n * BQ_ROW_NBYTES);
			i += n;
		}
		if (!packed)
			bq_kernel->unstage(staged_part, end - j, codes + j * BQ_ROW_NBYTES);
		j = end;
	}
}

/* Let go of the pages. */
void
bq_end_list(BqListReader *reader)
{
	bq_release_page(&reader->codes);
	bq_release_page(&reader->headers);
}

/* Copy rows of the whole array, wherever pages end. */
void
bq_read_rows(Relation index, const BqLayout *layout, uint64 row, int n, uint8 *rows)
{
	for (uint64 end = row + n; row < end;)
	{
		Buffer		buffer = bq_read_page(index, bq_code_page(layout, row), BQ_PAGE_CODES,
										  BUFFER_LOCK_SHARE);

		n = bq_rows_on_page(row, end);
		memcpy(rows, BqPageGetRow(BufferGetPage(buffer), row), n * BQ_ROW_NBYTES);
		UnlockReleaseBuffer(buffer);
		rows += n * BQ_ROW_NBYTES;
		row += n;
	}
}

/*
 * Lock a block's header page and find its header: who wants to read codes must know
 * which of them are packed, and that this stays so.
 */
static Buffer
read_header(Relation index, const BqLayout *layout, uint32 b, const BqBlockData **block)
{
	Buffer		buffer = bq_read_page(index, bq_header_page(layout, b), BQ_PAGE_HEADERS,
									  BUFFER_LOCK_SHARE);

	*block = BqPageGetBlock(layout, BufferGetPage(buffer), b);
	check_packed(index, layout, b, *block);
	return buffer;
}

/* Take the code in one slot out of its block. */
void
bq_read_planes(Relation index, const BqLayout *layout, uint32 b, int slot, uint8 *planes)
{
	const BqBlockData *block;
	Buffer		header_buffer = read_header(index, layout, b, &block);
	uint64		row = bq_first_row(layout, b);

	memset(planes, 0, bq_planes_nbytes(layout->dim));
	for (int j = 0; j < layout->nrows;)
	{
		int			end = j < block->packed ? block->packed :
			Min(layout->nrows, j + BQ_STAGE_ROWS);

		if (j < block->packed)
		{
			int			n = bq_rows_on_page(row + j, row + end);
			Buffer		buffer = bq_read_page(index, bq_code_page(layout, row + j), BQ_PAGE_CODES,
											  BUFFER_LOCK_SHARE);

			bq_block_get_rows(BqPageGetRow(BufferGetPage(buffer), row + j), j, j + n,
							  layout->dim, slot, planes);
			UnlockReleaseBuffer(buffer);
			j += n;
		}
		else
		{
			int			first = slot * (end - j);	/* nibble of the part */
			int			first_row = first / 2 / BQ_ROW_NBYTES;
			int			end_row = ((first + end - j + 1) / 2 + BQ_ROW_NBYTES - 1) / BQ_ROW_NBYTES;

			bq_read_rows(index, layout, row + j + first_row, end_row - first_row, staged_part);
			bq_stage_get(staged_part + first / 2 - first_row * BQ_ROW_NBYTES, first % 2, j, end,
						 layout->dim, planes);
			j = end;
		}
	}
	UnlockReleaseBuffer(header_buffer);
}

/* Copy a block: its header, and bq_block_nbytes(dim) bytes of packed codes. */
void
bq_read_block(Relation index, const BqLayout *layout, uint32 b, BqWholeBlock *header, uint8 *codes)
{
	const BqBlockData *block;
	Buffer		header_buffer = read_header(index, layout, b, &block);
	uint64		row = bq_first_row(layout, b);

	memcpy(header, block, layout->header_nbytes);
	bq_read_rows(index, layout, row, block->packed, codes);
	for (int j = block->packed; j < layout->nrows; j += BQ_STAGE_ROWS)
	{
		int			n = Min(layout->nrows - j, BQ_STAGE_ROWS);

		bq_read_rows(index, layout, row + j, n, staged_part);
		bq_kernel->unstage(staged_part, n, codes + j * BQ_ROW_NBYTES);
	}
	UnlockReleaseBuffer(header_buffer);
}
