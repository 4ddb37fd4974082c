/*
 * bqrowset.c: rows in memory, for builds and for vacuum, and their way into headers of
 * blocks and out of them.
 */
#include "postgres.h"

#include "index/bqbuild.h"
#include "index/bqmeasure.h"
#include "utils/memutils.h"

/* Numbers that are kept of the filter columns of a row: keys, then null bits. */
static inline int
count_words(int nkeys)
{
	return nkeys > 0 ? nkeys + 1 : 0;
}

/* What a list needs in a build: its table, its direction, how far each query is from it. */
static size_t
list_nbytes(int dim)
{
	return bq_block_nbytes(dim) + dim * sizeof(float) + BQ_QUERIES * sizeof(float);
}

/* The same of so many lists, and of the queries: their tables and neighbours. */
size_t
bq_lists_nbytes(int dim, uint32 nlists)
{
	return nlists * list_nbytes(dim) +
		BQ_QUERIES * (bq_block_nbytes(dim) + bq_count_candidates(dim) * sizeof(BqNeighbour));
}

/*
 * How many rows may be in memory, with all that a build needs beside them: lengths, position,
 * keys, list, places in two orders; what `nlists` lists need, or if that is 0, a list for
 * BQ_ROWS_PER_LIST rows.  Codes are there twice while they move to shared memory.
 */
size_t
bq_rows_limit(int dim, int nkeys, int work_mem_kb, bool shared, uint32 nlists)
{
	size_t		memory = (size_t) work_mem_kb * 1024;
	size_t		row_nbytes = bq_planes_nbytes(dim) * (shared ? 2 : 1) + sizeof(float) +
		sizeof(uint16) + sizeof(ItemPointerData) + count_words(nkeys) * sizeof(uint32) +
		sizeof(uint32) + 2 * sizeof(size_t);

	if (nlists > 0)
		memory -= Min(bq_lists_nbytes(dim, nlists), memory / 2);
	else
		row_nbytes += list_nbytes(dim) / BQ_ROWS_PER_LIST;
	return Max(memory / row_nbytes, 1024);
}

/* Memory of any size; NULL: none so far. */
void *
bq_resize(void *array, size_t nbytes)
{
	return array == NULL ? MemoryContextAllocHuge(CurrentMemoryContext, nbytes) :
		repalloc_huge(array, nbytes);
}

/* Make room for at least one more row; `limit` bounds only how far ahead. */
void
bq_grow_rows(BqRows *rows, int dim, size_t limit)
{
	size_t		capacity = Max(rows->n + 1, Min(limit, Max(rows->capacity * 2, 1024)));

	rows->planes = (uint8 *) bq_resize(rows->planes, capacity * bq_planes_nbytes(dim));
	rows->norms = (float *) bq_resize(rows->norms, capacity * sizeof(float));
	rows->inverses = (uint16 *) bq_resize(rows->inverses, capacity * sizeof(uint16));
	rows->tids = (ItemPointerData *) bq_resize(rows->tids, capacity * sizeof(ItemPointerData));
	rows->keys = (uint32 *) bq_resize(rows->keys,
									  capacity * count_words(rows->nkeys) * sizeof(uint32));
	rows->capacity = capacity;
}

/* Let there be room for so many rows only; codes in shared memory stay there. */
void
bq_shrink_rows(BqRows *rows, int dim, size_t capacity, bool shared)
{
	rows->n = Min(rows->n, capacity);
	if (!shared)
		rows->planes = (uint8 *) repalloc_huge(rows->planes, capacity * bq_planes_nbytes(dim));
	rows->norms = (float *) repalloc_huge(rows->norms, capacity * sizeof(float));
	rows->inverses = (uint16 *) repalloc_huge(rows->inverses, capacity * sizeof(uint16));
	rows->tids = (ItemPointerData *) repalloc_huge(rows->tids,
												   capacity * sizeof(ItemPointerData));
	rows->keys = (uint32 *) repalloc_huge(rows->keys,
										  capacity * count_words(rows->nkeys) * sizeof(uint32));
	rows->capacity = capacity;
}

/* Keys of row i, and after them its null bits; nothing if there are no filter columns. */
static inline uint32 *
keys_of(const BqRows *rows, size_t i)
{
	return rows->keys + i * count_words(rows->nkeys);
}

void
bq_put_row(BqRows *rows, size_t i, int dim, const BqRow *row)
{
	size_t		planes_nbytes = bq_planes_nbytes(dim);

	memcpy(rows->planes + i * planes_nbytes, row->planes, planes_nbytes);
	rows->norms[i] = row->norm;
	rows->inverses[i] = row->inverse;
	rows->tids[i] = row->tid;
	memcpy(keys_of(rows, i), row->keys, rows->nkeys * sizeof(uint32));
	if (rows->nkeys > 0)
		keys_of(rows, i)[rows->nkeys] = row->nulls;
}

/* The row, whose code stays where it is. */
BqRow
bq_get_row(const BqRows *rows, size_t i, int dim)
{
	BqRow		row;

	row.tid = rows->tids[i];
	row.inverse = rows->inverses[i];
	row.norm = rows->norms[i];
	row.planes = rows->planes + i * bq_planes_nbytes(dim);
	memcpy(row.keys, keys_of(rows, i), rows->nkeys * sizeof(uint32));
	row.nulls = rows->nkeys > 0 ? keys_of(rows, i)[rows->nkeys] : 0;
	return row;
}

/* Put all of a row but its code into a slot of a header that nobody else sees. */
void
bq_put_header(const BqLayout *layout, BqWholeBlock *block, int slot, const BqRow *row)
{
	block->data.tid[slot] = row->tid;
	block->data.inverse[slot] = row->inverse;
	block->data.norm[slot] = row->norm;
	block->data.live |= (uint32) 1 << slot;
	for (int i = 0; i < layout->nkeys; i++)
	{
		block->columns[i].keys[slot] = row->keys[i];
		block->columns[i].nulls |= (row->nulls >> i & 1) << slot;
	}
}

/* The other way, into row i; its code is set already. */
void
bq_get_header(const BqLayout *layout, const BqWholeBlock *block, int slot, BqRows *rows, size_t i)
{
	uint32	   *keys = keys_of(rows, i);

	rows->tids[i] = block->data.tid[slot];
	rows->inverses[i] = block->data.inverse[slot];
	rows->norms[i] = block->data.norm[slot];
	if (layout->nkeys > 0)
		keys[layout->nkeys] = 0;
	for (int k = 0; k < layout->nkeys; k++)
	{
		keys[k] = block->columns[k].keys[slot];
		keys[layout->nkeys] |= (block->columns[k].nulls >> slot & 1) << k;
	}
}
