/*
 * bqblock.c: writing rows into blocks, and blocks themselves.
 *
 * A row goes into a free slot of a block, in place: its code first, then position and lengths
 * into the header, and last the slot's bit in `live`.  While a block fills, codes are staged
 * (core/bqlut.h), so that a row changes one run of bytes; when it is full, it is packed.
 *
 * A block's header page stays locked while its code pages are written, so two writers never
 * work on one block, and a reader that saw a slot live finds its code in place.
 */
#include "postgres.h"

#include "index/bqindex.h"
#include "port/pg_bitutils.h"

/*
 * A packed block with so many free slots is staged again: filling them in packed form
 * would log 5 bytes for each row of 16, staging and packing log the block twice.
 */
#define RESTAGE_SLOTS 8

/*
 * Changes of code rows of one block
 */

/* Code pages that fit one record beside the header page. */
#define MAX_CODE_PAGES (BQ_LOG_PAGES - 1)

typedef struct BlockWriter
{
	Relation	index;
	const BqLayout *layout;
	Buffer		header_buffer;	/* locked exclusively */
	Buffer		codes[MAX_CODE_PAGES];	/* pages of this record, locked exclusively */
	int			ncodes;
} BlockWriter;

static void
begin_record(BlockWriter *writer)
{
	bq_begin_log(writer->index);
	bq_log_page(writer->header_buffer);
	writer->ncodes = 0;
}

static void
finish_record(BlockWriter *writer)
{
	bq_finish_log();
	while (writer->ncodes > 0)
		UnlockReleaseBuffer(writer->codes[--writer->ncodes]);
}

/*
 * Change bytes from byte `offset` of code row `row` on.  If that needs another page than
 * fits the record, what was collected is written as a record of its own.
 */
static void
change_codes(BlockWriter *writer, uint64 row, size_t offset, const uint8 *bytes, size_t nbytes)
{
	while (nbytes > 0)
	{
		uint64		first = row + offset / BQ_ROW_NBYTES;
		int			within = (int) (offset % BQ_ROW_NBYTES);
		BlockNumber blkno = bq_code_page(writer->layout, first);
		size_t		n = Min(nbytes, (size_t) (BQ_ROWS_PER_PAGE - first % BQ_ROWS_PER_PAGE) *
							BQ_ROW_NBYTES - within);
		Buffer		buffer = writer->ncodes > 0 ? writer->codes[writer->ncodes - 1] : InvalidBuffer;

		if (!BufferIsValid(buffer) || BufferGetBlockNumber(buffer) != blkno)
		{
			if (writer->ncodes == MAX_CODE_PAGES)
			{
				finish_record(writer);
				begin_record(writer);
			}
			buffer = bq_read_page(writer->index, blkno, BQ_PAGE_CODES, BUFFER_LOCK_EXCLUSIVE);
			writer->codes[writer->ncodes++] = buffer;
		}
		bq_log_change(bq_log_page(buffer), BqPageGetRow(BufferGetPage(buffer), first) + within,
					  bytes, n);
		bytes += n;
		offset += n;
		nbytes -= n;
	}
}

/* Read rows of a block, some of which may lie on pages of the record: those are let go before. */
static void
read_other_codes(BlockWriter *writer, uint64 row, int n, uint8 *rows)
{
	if (writer->ncodes > 0)
	{
		finish_record(writer);
		begin_record(writer);
	}
	bq_read_rows(writer->index, writer->layout, row, n, rows);
}

/* Rows of a part of the block that begins with row j. */
static inline int
part_nrows(const BqLayout *layout, int j)
{
	return Min(layout->nrows - j, BQ_STAGE_ROWS);
}

/* Write a code into a slot that is not live, staged from row `packed` on. */
static void
put_code(BlockWriter *writer, uint64 first_row, int packed, int slot, const uint8 *planes)
{
	const BqLayout *layout = writer->layout;
	int			j = 0;

	while (j < packed)
	{
		/* every 16th byte of the rows on a page: one byte of each row */
		uint8		rows[BQ_STAGE_ROWS * BQ_ROW_NBYTES];
		int			n = Min(packed - j, BQ_STAGE_ROWS);

		/* the other code of a byte is read, and stays */
		read_other_codes(writer, first_row + j, n, rows);
		bq_block_put_rows(rows, j, j + n, layout->dim, slot, planes);
		for (int i = 0; i < n; i++)
			change_codes(writer, first_row + j + i, slot % 16,
						 rows + i * BQ_ROW_NBYTES + slot % 16, 1);
		j += n;
	}
	while (j < layout->nrows)
	{
		uint8		run[BQ_STAGE_ROWS / 2 + 1];
		int			n = part_nrows(layout, j);
		int			first = slot * n;	/* nibble of the part */
		size_t		nbytes = (first % 2 + n + 1) / 2;

		/* where codes share a byte, the other's half stays */
		if (n % 2 != 0)
		{
			uint8		rows[BQ_STAGE_ROWS / 2 + 2 * BQ_ROW_NBYTES];
			int			row = first / 2 / BQ_ROW_NBYTES;
			int			end = (int) ((first / 2 + nbytes + BQ_ROW_NBYTES - 1) / BQ_ROW_NBYTES);

			read_other_codes(writer, first_row + j + row, end - row, rows);
			memcpy(run, rows + first / 2 - row * BQ_ROW_NBYTES, nbytes);
		}
		bq_stage_put(run, first % 2, j, j + n, layout->dim, planes);
		change_codes(writer, first_row + j, first / 2, run, nbytes);
		j += n;
	}
}

/*
 * Write the rows of a part of a block in its other form, and say so in the header, in one
 * record: a part lies on no more pages than fit it.
 */
static void
rewrite_part(BlockWriter *writer, uint32 b, int j, const uint8 *rows, int packed)
{
	BqBlockData *block = BqPageGetBlock(writer->layout, BufferGetPage(writer->header_buffer), b);

	begin_record(writer);
	change_codes(writer, bq_first_row(writer->layout, b) + j, 0, rows,
				 (size_t) part_nrows(writer->layout, j) * BQ_ROW_NBYTES);
	bq_log_set(0, &block->packed, uint16, (uint16) packed);
	finish_record(writer);
}

/* Turn a block from staged to packed, or back. */
static void
change_form(BlockWriter *writer, uint32 b, bool pack)
{
	const BqLayout *layout = writer->layout;
	const BqBlockData *block = BqPageGetBlock(layout, BufferGetPage(writer->header_buffer), b);
	size_t		nbytes = (size_t) Min(layout->nrows, BQ_STAGE_ROWS) * BQ_ROW_NBYTES;
	uint8	   *from = (uint8 *) palloc(nbytes);
	uint8	   *to = (uint8 *) palloc(nbytes);

	/* packed parts come first, staged ones last: parts are packed in order, staged from the end */
	while (pack ? block->packed < layout->nrows : block->packed > 0)
	{
		int			j = pack ? block->packed : (block->packed - 1) / BQ_STAGE_ROWS * BQ_STAGE_ROWS;
		int			n = part_nrows(layout, j);

		bq_read_rows(writer->index, layout, bq_first_row(layout, b) + j, n, from);
		if (pack)
			bq_kernel->unstage(from, n, to);
		else
			bq_stage(from, n, to);
		rewrite_part(writer, b, j, to, pack ? j + n : j);
	}
	pfree(to);
	pfree(from);
}

/*
 * Put a row into block b of a list if it has a free slot.  For large dims the code pages
 * take more than one WAL record; until the last one the slot stays free.
 */
bool
bq_insert_into_block(Relation index, const BqLayout *layout, uint32 list, uint32 epoch,
					 uint32 b, const BqRow *row)
{
	BlockWriter writer = {.index = index, .layout = layout};
	BqBlockData *block;
	uint32		live;
	int			packed;
	int			slot;

	/* its codes would be the entries, of which the caller has locked one */
	if (bq_is_directory(layout, b))
		bq_report_damage(index, bq_header_page(layout, b), "block is part of the directory");
	writer.header_buffer = bq_read_page(index, bq_header_page(layout, b), BQ_PAGE_HEADERS,
										BUFFER_LOCK_EXCLUSIVE);
	block = BqPageGetBlock(layout, BufferGetPage(writer.header_buffer), b);
	if (block->list != list || block->epoch != epoch || block->live == UINT32_MAX)
	{
		UnlockReleaseBuffer(writer.header_buffer);
		return false;
	}
	if (block->packed > layout->nrows)
		bq_report_damage(index, BufferGetBlockNumber(writer.header_buffer),
						 "block has an impossible number of packed rows");
	/* what is in an empty block need not be read */
	if (block->packed > 0 && block->live != 0 &&
		BQ_BLOCK - pg_popcount32(block->live) >= RESTAGE_SLOTS)
		change_form(&writer, b, false);

	packed = block->live != 0 ? block->packed : 0;
	slot = pg_rightmost_one_pos32(~block->live);
	live = block->live | (uint32) 1 << slot;
	begin_record(&writer);
	put_code(&writer, bq_first_row(layout, b), packed, slot, row->planes);
	if (packed != block->packed)
		bq_log_set(0, &block->packed, uint16, (uint16) packed);
	bq_log_set(0, &block->live, uint32, live);
	bq_log_set(0, &block->tid[slot], ItemPointerData, row->tid);
	bq_log_set(0, &block->inverse[slot], uint16, row->inverse);
	bq_log_set(0, &block->norm[slot], float, row->norm);
	for (int i = 0; i < layout->nkeys; i++)
	{
		BqBlockKeys *column = BqBlockGetKeys(block, i);
		uint32		nulls = (column->nulls & ~((uint32) 1 << slot)) | (row->nulls >> i & 1) << slot;

		bq_log_set(0, &column->keys[slot], uint32, row->keys[i]);
		if (nulls != column->nulls)
			bq_log_set(0, &column->nulls, uint32, nulls);
	}
	finish_record(&writer);

	if (live == UINT32_MAX)
		change_form(&writer, b, true);
	UnlockReleaseBuffer(writer.header_buffer);
	return true;
}

/* Write a block that nobody knows yet: its packed rows, then its header. */
void
bq_write_block(Relation index, const BqLayout *layout, uint32 b, const BqWholeBlock *header,
			   const uint8 *rows)
{
	BlockWriter writer = {.index = index, .layout = layout};

	writer.header_buffer = bq_read_page(index, bq_header_page(layout, b), BQ_PAGE_HEADERS,
										BUFFER_LOCK_EXCLUSIVE);
	begin_record(&writer);
	change_codes(&writer, bq_first_row(layout, b), 0, rows, bq_block_nbytes(layout->dim));
	bq_log_change(0, BqPageGetBlock(layout, BufferGetPage(writer.header_buffer), b), header,
				  layout->header_nbytes);
	finish_record(&writer);
	UnlockReleaseBuffer(writer.header_buffer);
}

/*
 * Blocks that belong to nobody
 */

/*
 * The block to take next: the first free one, or the one behind the last.  BQ_NO_BLOCK if the
 * index has to be extended first.  Called with the metapage locked exclusively.
 */
uint32
bq_choose_block(Relation index, const BqLayout *layout, const BqMetaPageData *meta)
{
	uint32		b = meta->free_head;

	if (b != BQ_NO_BLOCK)
	{
		if (b >= meta->nblocks || meta->nfree == 0 || bq_is_directory(layout, b))
			bq_report_damage(index, BQ_METAPAGE_BLKNO, "chain of free blocks leads astray");
		return b;
	}
	b = meta->nblocks;
	if (b == BQ_NO_BLOCK - 1)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("bq index cannot have more than %u blocks", BQ_NO_BLOCK - 1),
				 errhint("Partition the table.")));
	return bq_data_end(layout, b + 1) <= meta->npages ? b : BQ_NO_BLOCK;
}

/*
 * Let the metapage know that block b, of this header, was taken, in the record that was begun.
 * Both pages are locked, that of the metapage exclusively since the block was chosen.
 */
void
bq_log_taken(Buffer meta_buffer, uint32 b, const BqBlockData *block)
{
	BqMetaPage	meta = BqPageGetMeta(BufferGetPage(meta_buffer));
	int			page = bq_log_page(meta_buffer);

	if (meta->free_head == b)
	{
		bq_log_set(page, &meta->free_head, uint32, block->next);
		bq_log_set(page, &meta->nfree, uint32, meta->nfree - 1);
	}
	else
		bq_log_set(page, &meta->nblocks, uint32, b + 1);
}
