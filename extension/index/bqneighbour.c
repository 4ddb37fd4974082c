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

static inline void
add_neighbour(BqNeighbour *nearest, double key, uint32 list, size_t row)
{
	int			i = BQ_NEIGHBOUR_CANDIDATES - 1;

	if (key >= nearest[i].key)
		return;
	for (; i > 0 && nearest[i - 1].key > key; i--)
		nearest[i] = nearest[i - 1];
	nearest[i].key = key;
	nearest[i].list = list;
	nearest[i].row = row;
}

/* The BQ_NEIGHBOUR_CANDIDATES nearest rows to each query, not counting itself, nearest first. */
BqNeighbour *
bq_find_neighbours(const BqQueries *s, int metric)
{
	int			dim = s->dim;
	int			nrows = bq_block_nrows(dim);
	size_t		planes_nbytes = bq_planes_nbytes(dim);
	size_t		block_nbytes = bq_block_nbytes(dim);
	uint8	   *tile = (uint8 *) palloc(TILE_BLOCKS * block_nbytes);
	BqNeighbour *found = (BqNeighbour *) palloc(s->nqueries * BQ_NEIGHBOUR_CANDIDATES *
												sizeof(BqNeighbour));
	float		unit = (float) (s->inverse_unit / sqrt(dim));

	for (size_t i = 0; i < (size_t) s->nqueries * BQ_NEIGHBOUR_CANDIDATES; i++)
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
			BqNeighbour *nearest = found + (size_t) k * BQ_NEIGHBOUR_CANDIDATES;

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
						add_neighbour(nearest,
									  bq_estimate_key(metric, cosine, s->rows->norms[i], s->lengths[k]),
									  s->lists != NULL ? s->lists[i] : 0, i);
				}
			}
		}
	}
	pfree(tile);
	return found;
}
