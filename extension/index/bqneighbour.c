/* bqneighbour.c: the neighbours of rows by their codes, all of them compared. */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "index/bqmeasure.h"
#include "miscadmin.h"

#define TILE_BLOCKS 64			/* blocks that stay in cache while all tables pass */

/* Pack up to TILE_BLOCKS * 32 codes into blocks; returns the number of blocks. */
static int
pack_tile(const uint8 *codes, size_t ncodes, int dim, uint8 *blocks)
{
	size_t		planes_nbytes = bq_planes_nbytes(dim);
	size_t		block_nbytes = bq_block_nbytes(dim);
	int			nblocks = (int) ((ncodes + BQ_BLOCK - 1) / BQ_BLOCK);

	memset(blocks, 0, nblocks * block_nbytes);
	for (size_t i = 0; i < ncodes; i++)
		bq_block_put(blocks + i / BQ_BLOCK * block_nbytes, dim, (int) (i % BQ_BLOCK),
					 codes + i * planes_nbytes);
	return nblocks;
}

/* Put a neighbour in the place of the furthest one of a heap of n, if it is nearer. */
static inline void
add_neighbour(BqNeighbour *heap, int n, double key, uint32 list, size_t row)
{
	int			place = 0;

	if (!(key < heap[0].key))
		return;
	for (;;)
	{
		int			child = 2 * place + 1;

		if (child + 1 < n && heap[child + 1].key > heap[child].key)
			child++;
		if (child >= n || heap[child].key <= key)
			break;
		heap[place] = heap[child];
		place = child;
	}
	heap[place].key = key;
	heap[place].list = list;
	heap[place].row = row;
}

static int
compare_neighbours(const void *a, const void *b)
{
	const BqNeighbour *x = (const BqNeighbour *) a;
	const BqNeighbour *y = (const BqNeighbour *) b;

	if (x->key != y->key)
		return x->key < y->key ? -1 : 1;
	return x->row < y->row ? -1 : x->row > y->row;
}

/* The nearest rows to each query by their codes, not counting itself. */
BqNeighbour *
bq_find_neighbours(const BqQueries *s, int metric)
{
	int			wanted = s->ncandidates;
	int			dim = s->dim;
	int			nrows = bq_block_nrows(dim);
	size_t		planes_nbytes = bq_planes_nbytes(dim);
	size_t		block_nbytes = bq_block_nbytes(dim);
	uint8	   *tile = (uint8 *) palloc(TILE_BLOCKS * block_nbytes);
	BqNeighbour *found = (BqNeighbour *) palloc(s->nqueries * wanted * sizeof(BqNeighbour));
	float		unit = (float) (s->inverse_unit / sqrt(dim));

	for (size_t i = 0; i < (size_t) s->nqueries * wanted; i++)
	{
		found[i].key = DBL_MAX;
		found[i].row = SIZE_MAX;
		found[i].list = 0;
	}
	for (size_t start = 0; start < s->rows->n; start += TILE_BLOCKS * BQ_BLOCK)
	{
		size_t		n = Min(s->rows->n - start, (size_t) TILE_BLOCKS * BQ_BLOCK);
		int			nblocks = pack_tile(s->rows->planes + start * planes_nbytes, n, dim, tile);

		CHECK_FOR_INTERRUPTS();
		for (uint32 k = 0; k < s->nqueries; k++)
		{
			const BqTable *table = &s->tables[k];
			BqNeighbour *heap = found + (size_t) k * wanted;

			for (int b = 0; b < nblocks; b++)
			{
				uint16		sums[BQ_BLOCK];
				size_t		first = start + (size_t) b * BQ_BLOCK;

				bq_kernel->lut_block(table->entries, tile + b * block_nbytes, nrows, sums);
				for (size_t i = first; i < Min(start + n, first + BQ_BLOCK); i++)
				{
					float		cosine = (table->bias - table->scale * (float) sums[i - first]) *
						unit * s->rows->inverses[i];

					if (i != s->self[k])
						add_neighbour(heap, wanted,
									  bq_estimate_key(metric, cosine, s->rows->norms[i], s->lengths[k]),
									  s->lists != NULL ? s->lists[i] : 0, i);
				}
			}
		}
	}
	for (uint32 k = 0; k < s->nqueries; k++)
		qsort(found + (size_t) k * wanted, wanted, sizeof(BqNeighbour), compare_neighbours);
	pfree(tile);
	return found;
}
