/* bqdirectory.c: where things lie in the directory, and the entries of its lists. */
#include "postgres.h"

#include "index/bqdirectory.h"
#include "miscadmin.h"

/* Rows of the entries of so many lists, to the end of a page. */
static inline uint64
entry_nrows(uint32 capacity)
{
	return (uint64) (capacity + BQ_LISTS_PER_PAGE - 1) / BQ_LISTS_PER_PAGE * BQ_ROWS_PER_PAGE;
}

/* Lists that a run of the directory has room for. */
uint32
bq_segment_capacity(const BqLayout *layout, int segment)
{
	return segment == 0 ? layout->capacity : layout->capacity << (segment - 1);
}

/* Blocks of a run, wherever it begins. */
uint32
bq_count_segment_blocks(const BqLayout *layout, uint32 capacity)
{
	uint64		nrows = BQ_ROWS_PER_PAGE - 1 + entry_nrows(capacity) +
		(uint64) (capacity / BQ_BLOCK + bq_outer_groups_of(capacity)) * bq_group_nrows(layout->dim);

	return (uint32) ((nrows + layout->nrows - 1) / layout->nrows);
}

/* Lists that there is room for. */
uint32
bq_directory_capacity(const BqLayout *layout)
{
	uint32		capacity = 0;

	for (int i = 0; i < BQ_SEGMENTS && layout->segments[i] != BQ_NO_BLOCK; i++)
		capacity += bq_segment_capacity(layout, i);
	return capacity;
}

/* Is a block, so called, part of the directory? */
bool
bq_is_directory(const BqLayout *layout, uint32 block)
{
	for (int i = 0; i < BQ_SEGMENTS && layout->segments[i] != BQ_NO_BLOCK; i++)
		if (block >= layout->segments[i] && block - layout->segments[i] <
			bq_count_segment_blocks(layout, bq_segment_capacity(layout, i)))
			return true;
	return false;
}

uint32
bq_count_directory_blocks(const BqLayout *layout)
{
	uint32		n = 0;

	for (int i = 0; i < BQ_SEGMENTS && layout->segments[i] != BQ_NO_BLOCK; i++)
		n += bq_count_segment_blocks(layout, bq_segment_capacity(layout, i));
	return n;
}

/* First row of the entries of a run. */
static inline uint64
segment_row(const BqLayout *layout, int segment)
{
	uint64		row = bq_first_row(layout, layout->segments[segment]);

	return (row + BQ_ROWS_PER_PAGE - 1) / BQ_ROWS_PER_PAGE * BQ_ROWS_PER_PAGE;
}

/* The run of a list, which becomes its number within the run. */
int
bq_find_segment(const BqLayout *layout, uint32 *list)
{
	int			segment = 0;

	while (*list >= bq_segment_capacity(layout, segment))
		*list -= bq_segment_capacity(layout, segment++);
	return segment;
}

/* Row of the entry of a list. */
uint64
bq_list_row(const BqLayout *layout, uint32 list)
{
	int			segment = bq_find_segment(layout, &list);

	return segment_row(layout, segment) + (uint64) list * BQ_LIST_ROWS;
}

BlockNumber
bq_list_page(const BqLayout *layout, uint32 list)
{
	return bq_code_page(layout, bq_list_row(layout, list));
}

/* First row of the group that a list belongs to. */
uint64
bq_group_row(const BqLayout *layout, uint32 list)
{
	int			segment = bq_find_segment(layout, &list);

	return segment_row(layout, segment) + entry_nrows(bq_segment_capacity(layout, segment)) +
		(uint64) list / BQ_BLOCK * bq_group_nrows(layout->dim);
}

/* First row of an outer group of a run that has them. */
uint64
bq_outer_group_row(const BqLayout *layout, int segment, uint32 outer)
{
	uint32		capacity = bq_segment_capacity(layout, segment);

	return segment_row(layout, segment) + entry_nrows(capacity) +
		((uint64) capacity / BQ_BLOCK + outer) * bq_group_nrows(layout->dim);
}

/* Lock the page of a list's entry, and find it there. */
Buffer
bq_read_entry(Relation index, const BqLayout *layout, uint32 list, int lockmode,
			  BqListData **entry)
{
	uint64		row = bq_list_row(layout, list);
	Buffer		buffer = bq_read_page(index, bq_code_page(layout, row), BQ_PAGE_CODES, lockmode);

	*entry = (BqListData *) BqPageGetRow(BufferGetPage(buffer), row);
	return buffer;
}

/* Copy all entries. */
BqListData *
bq_read_entries(Relation index, const BqLayout *layout)
{
	BqListData *entries = (BqListData *) MemoryContextAllocHuge(CurrentMemoryContext,
																layout->nlists * sizeof(BqListData));
	uint32		list = 0;

	while (list < layout->nlists)
	{
		BqListData *entry;
		Buffer		buffer = bq_read_entry(index, layout, list, BUFFER_LOCK_SHARE, &entry);
		BlockNumber blkno = BufferGetBlockNumber(buffer);

		do
			entries[list++] = *entry++;
		while (list < layout->nlists && bq_list_page(layout, list) == blkno);
		UnlockReleaseBuffer(buffer);
		CHECK_FOR_INTERRUPTS();
	}
	return entries;
}
