/*
 * bqmove.c: the rows of a list that is split: reading those that came since, writing them to blocks
 * of the new lists, of which nobody knows yet.
 */
#include "postgres.h"

#include "index/bqsplit.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "utils/memutils.h"

/*
 * Reading the list
 */

void
bq_add_rows(BqSplit *split, const BqWholeBlock *block, uint32 slots)
{
	BqRows	   *rows = &split->rows;
	int			dim = split->layout.dim;

	for (; slots != 0; slots &= slots - 1)
	{
		int			slot = pg_rightmost_one_pos32(slots);

		bq_block_get(split->codes, dim, slot, rows->planes + rows->n * bq_planes_nbytes(dim));
		bq_get_header(&split->layout, block, slot, rows, rows->n++);
	}
}

/* Room to remember `n` blocks of the list: those added at the head come last. */
static void
remember_blocks(BqSplit *split, uint32 n)
{
	if (n <= split->nseen)
		return;
	split->seen = (uint32 *) bq_resize(split->seen, n * sizeof(uint32));
	split->blocks = (uint32 *) bq_resize(split->blocks, n * sizeof(uint32));
	for (; split->nseen < n; split->nseen++)
	{
		split->seen[split->nseen] = 0;
		split->blocks[split->nseen] = BQ_NO_BLOCK;
	}
}

/*
 * Read rows of the list that were not read before, as many as fit; false if some are left.
 * Vacuum alone removes rows, so one that was seen stays in its slot, and a block whose rows
 * were all seen is passed over.  If `share` is less than 1, rows of a random part of the
 * blocks are read, and not counted as seen.
 */
bool
bq_read_list_rows(BqSplit *split, double share, pg_prng_state *random)
{
	const BqLayout *layout = &split->layout;
	BqChain		chain = bq_read_chain(split->index, layout, split->list);
	uint32		b = chain.head;
	uint32		nblocks = chain.nblocks;

	remember_blocks(split, nblocks);
	split->rows.n = 0;
	while (nblocks-- > 0)
	{
		BqWholeBlock whole;
		BqBlockData *block = &whole.data;
		Buffer		buffer;
		uint32		added;

		if (split->blocks[nblocks] != BQ_NO_BLOCK)
			b = split->blocks[nblocks];
		split->blocks[nblocks] = b;
		/* it is read for the number of the next one, too */
		if (split->seen[nblocks] == UINT32_MAX &&
			(nblocks == 0 || split->blocks[nblocks - 1] != BQ_NO_BLOCK))
			continue;
		if (split->hurry)
		{
			CHECK_FOR_INTERRUPTS();
			split->nread_closed++;
		}
		else
			bq_delay_point();
		buffer = bq_read_page(split->index, bq_header_page(layout, b), BQ_PAGE_HEADERS,
							  BUFFER_LOCK_SHARE);
		*block = *BqPageGetBlock(layout, BufferGetPage(buffer), b);
		UnlockReleaseBuffer(buffer);
		if (block->list != split->list || block->epoch != chain.epoch)
			ereport(ERROR,
					(errcode(ERRCODE_INDEX_CORRUPTED),
					 errmsg("block %u of index \"%s\" belongs to list %u, expected %u", b,
							RelationGetRelationName(split->index), block->list, split->list),
					 errhint("Rebuild the index with REINDEX.")));
		added = block->live & ~split->seen[nblocks];
		if (added != 0 && (share >= 1 || pg_prng_double(random) < share))
		{
			bq_read_block(split->index, layout, b, &whole, split->codes);
			added = block->live & ~split->seen[nblocks];
			if (split->rows.n + pg_popcount32(added) > split->limit)
				return false;
			bq_add_rows(split, &whole, added);
			if (share >= 1)
				split->seen[nblocks] |= added;
		}
		b = block->next;
	}
	return true;
}

/*
 * Writing the new lists
 */

/* Take a free block, or one from the end; until it is written it belongs to no list. */
static uint32
take_block(BqSplit *split)
{
	Relation	index = split->index;
	const BqLayout *layout = &split->layout;

	for (;;)
	{
		Buffer		meta_buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
											   BUFFER_LOCK_EXCLUSIVE);
		BqMetaPage	meta = BqPageGetMeta(BufferGetPage(meta_buffer));
		uint32		b = bq_choose_block(index, layout, meta);
		uint32		nblocks = meta->nblocks;

		if (b != BQ_NO_BLOCK)
		{
			Buffer		header_buffer = bq_read_page(index, bq_header_page(layout, b),
													 BQ_PAGE_HEADERS, BUFFER_LOCK_SHARE);

			bq_begin_log(index);
			bq_log_taken(meta_buffer, b,
						 BqPageGetBlock(layout, BufferGetPage(header_buffer), b));
			bq_finish_log();
			UnlockReleaseBuffer(header_buffer);
			UnlockReleaseBuffer(meta_buffer);
			return b;
		}
		UnlockReleaseBuffer(meta_buffer);
		bq_provide_pages(index, layout, nblocks + 1);
	}
}

/* Write rows order[0 .. n) of the batch, at most 32, to a new block of a part. */
static void
write_block(BqSplit *split, uint32 part, const size_t *order, int n)
{
	BqListData *list = &split->parts[part];
	int			dim = split->layout.dim;
	uint32		b = take_block(split);
	BqWholeBlock block = {0};

	memset(split->codes, 0, bq_block_nbytes(dim));
	block.data.list = bq_part_list(split, part);
	block.data.epoch = split->epoch;
	block.data.next = list->head;
	block.data.next_free = BQ_NO_BLOCK;
	block.data.packed = (uint16) split->layout.nrows;
	for (int c = 0; c < n; c++)
	{
		BqRow		row = bq_get_row(&split->rows, order[c], dim);

		bq_put_header(&split->layout, &block, c, &row);
		bq_block_put(split->codes, dim, c, row.planes);
	}
	if (n < BQ_BLOCK)
	{
		block.data.in_free_chain = true;
		block.data.next_free = list->free;
		list->free = b;
		split->room[part] = (uint8) (BQ_BLOCK - n);
	}
	bq_write_block(split->index, &split->layout, b, &block, split->codes);
	list->head = b;
	list->nblocks++;
}

/* Write the rows of the batch, of which lists[] tells the parts. */
void
bq_write_batch(BqSplit *split, const uint32 *lists)
{
	size_t		n = split->rows.n;
	size_t	   *start = (size_t *) palloc0((split->nparts + 1) * sizeof(size_t));
	size_t	   *order = (size_t *) MemoryContextAllocHuge(CurrentMemoryContext,
														  (n + 1) * sizeof(size_t));
	size_t		at = 0;

	for (size_t i = 0; i < n; i++)
		start[lists[i] + 1]++;
	for (uint32 part = 0; part < split->nparts; part++)
		start[part + 1] += start[part];
	for (size_t i = 0; i < n; i++)
		order[start[lists[i]]++] = i;
	/* now start[part] is where the part ends */
	for (uint32 part = 0; part < split->nparts; part++)
	{
		size_t		end = start[part];

		for (; at < end && split->room[part] > 0; at++)
		{
			BqRow		row = bq_get_row(&split->rows, order[at], split->layout.dim);

			if (!bq_insert_into_block(split->index, &split->layout, bq_part_list(split, part),
									  split->epoch, split->parts[part].free, &row))
				elog(ERROR, "block %u of index \"%s\" has no room for a row",
					 split->parts[part].free, RelationGetRelationName(split->index));
			split->room[part]--;
		}
		while (at < end)
		{
			int			nrows = (int) Min(end - at, BQ_BLOCK);

			if (split->hurry)
				CHECK_FOR_INTERRUPTS();
			else
				bq_delay_point();
			write_block(split, part, order + at, nrows);
			at += nrows;
		}
	}
	pfree(order);
	pfree(start);
}

/* Move what was not seen before; returns how many rows that were. */
size_t
bq_move_rows(BqSplit *split)
{
	size_t		n = 0;
	bool		done;

	do
	{
		done = bq_read_list_rows(split, 1, NULL);
		if (split->rows.n > 0)
			bq_write_batch(split, bq_assign_rows(split->assigner, &split->clusters));
		n += split->rows.n;
	} while (!done);
	return n;
}
