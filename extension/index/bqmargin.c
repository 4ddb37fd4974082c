/* bqmargin.c: how many lists a query must read, measured when lists are made. */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "index/bqindex.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#define TILE_BLOCKS 64			/* blocks that stay in cache while all tables pass */
#define PROBE_QUERIES 256
#define PROBE_NEIGHBOURS 10		/* at most BQ_MARGIN_RANK */
#define PROBE_COVERAGE 0.99		/* share of the neighbours that the default must reach */

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

/* The BQ_MARGIN_RANK nearest codes of a query, nearest first. */
typedef struct Neighbour
{
	float		score;
	uint32		list;
} Neighbour;

typedef Neighbour Neighbours[BQ_MARGIN_RANK];

static void
clear_neighbours(Neighbour *nearest)
{
	for (int i = 0; i < BQ_MARGIN_RANK; i++)
	{
		nearest[i].score = -FLT_MAX;
		nearest[i].list = UINT32_MAX;
	}
}

static inline void
add_neighbour(Neighbour *nearest, float score, uint32 list)
{
	int			i = BQ_MARGIN_RANK - 1;

	if (score <= nearest[i].score)
		return;
	for (; i > 0 && nearest[i - 1].score < score; i--)
		nearest[i] = nearest[i - 1];
	nearest[i].score = score;
	nearest[i].list = list;
}

static int
compare_floats(const void *a, const void *b)
{
	float		x = *(const float *) a;
	float		y = *(const float *) b;

	return x < y ? -1 : x > y;
}

/*
 * Find the nearest codes of each query by cosine and by inner product.  Query k is the
 * code of row n * k / nqueries, and does not find itself.
 */
static void
find_neighbours(const BqTable *queries, uint32 nqueries, int dim, const BqRows *rows,
				const uint32 *lists, Neighbours *by_angle, Neighbours *by_product)
{
	int			nrows = bq_block_nrows(dim);
	size_t		planes_nbytes = bq_planes_nbytes(dim);
	size_t		block_nbytes = bq_block_nbytes(dim);
	uint8	   *tile = (uint8 *) palloc(TILE_BLOCKS * block_nbytes);

	for (size_t start = 0; start < rows->n; start += TILE_BLOCKS * BQ_BLOCK)
	{
		size_t		n = Min(rows->n - start, (size_t) TILE_BLOCKS * BQ_BLOCK);
		const uint8 *codes = rows->planes + start * planes_nbytes;
		int			nblocks = pack_tile(codes, n, dim, tile);
		float		inverse[TILE_BLOCKS * BQ_BLOCK];

		CHECK_FOR_INTERRUPTS();
		for (size_t i = 0; i < n; i++)
			inverse[i] = (float) (1 / bq_decoded_norm(codes + i * planes_nbytes, dim));
		for (uint32 k = 0; k < nqueries; k++)
		{
			size_t		self = rows->n * k / nqueries;

			for (int b = 0; b < nblocks; b++)
			{
				uint16		sums[BQ_BLOCK];

				bq_kernel->lut_block(queries[k].entries, tile + b * block_nbytes, nrows, sums);
				for (size_t i = (size_t) b * BQ_BLOCK; i < Min(n, ((size_t) b + 1) * BQ_BLOCK); i++)
				{
					float		score = inverse[i] *
						(queries[k].bias - queries[k].scale * (float) sums[i % BQ_BLOCK]);

					if (start + i == self)
						continue;
					add_neighbour(by_angle[k], score, lists[start + i]);
					add_neighbour(by_product[k], score * rows->norms[start + i],
								  lists[start + i]);
				}
			}
		}
	}
	pfree(tile);
}

/* The value that `coverage` of them do not exceed; sorts them. */
static float
quantile(float *values, size_t n, double coverage)
{
	qsort(values, n, sizeof(float), compare_floats);
	return values[Min(n - 1, (size_t) (n * coverage))];
}

/*
 * How many lists must a query read so that it meets PROBE_COVERAGE of its nearest codes?
 * Measured with rows of the table as queries.  By cosine, lists are read as far as a
 * margin says (see BqMetaPageData); by inner product, where long vectors are near from
 * far away, a fixed number of them.  `rows` may be a sample of nrows.
 */
void
bq_measure_probes(const BqCentroids *centroids, const BqRows *rows, const uint32 *lists,
				  double nrows, BqLayout *layout)
{
	int			dim = centroids->dim;
	uint32		nlists = centroids->nlists;
	uint32		nqueries = (uint32) Min(rows->n, PROBE_QUERIES);
	BqTable    *queries = (BqTable *) palloc(nqueries * sizeof(BqTable));
	float	   *direction = (float *) palloc(dim * sizeof(float));
	uint8	   *groups = bq_pack_directions(centroids);
	Neighbours *by_angle = (Neighbours *) palloc(nqueries * sizeof(Neighbours));
	Neighbours *by_product = (Neighbours *) palloc(nqueries * sizeof(Neighbours));
	float	   *scores = (float *) palloc(nlists * sizeof(float));
	float	   *margins;			/* up to each list of each query */
	float	   *needed;				/* up to the list of each neighbour */
	float	   *ranks;				/* of the list of each neighbour by product */
	size_t		nneeded = 0;
	size_t		nranks = 0;
	size_t		nbelow = 0;
	int			rank = (int) Max(1, rint(BQ_MARGIN_RANK * (rows->n / nrows)));
	float		margin;

	for (uint32 k = 0; k < nqueries; k++)
	{
		bq_set_to_code(direction, rows->planes + rows->n * k / nqueries * bq_planes_nbytes(dim),
					   dim);
		queries[k] = bq_make_table(direction, dim);
		clear_neighbours(by_angle[k]);
		clear_neighbours(by_product[k]);
	}
	find_neighbours(queries, nqueries, dim, rows, lists, by_angle, by_product);

	margins = (float *) MemoryContextAllocHuge(CurrentMemoryContext,
											   (size_t) nqueries * nlists * sizeof(float));
	needed = (float *) palloc(nqueries * PROBE_NEIGHBOURS * sizeof(float));
	ranks = (float *) palloc(nqueries * PROBE_NEIGHBOURS * sizeof(float));
	for (uint32 k = 0; k < nqueries; k++)
	{
		/* with few rows there is none of that rank */
		float		reached = by_angle[k][Min((size_t) rank, rows->n - 1) - 1].score;

		CHECK_FOR_INTERRUPTS();
		bq_score_groups(groups, nlists, dim, &queries[k], scores);
		pfree(queries[k].entries);
		for (uint32 list = 0; list < nlists; list++)
			margins[(size_t) k * nlists + list] = reached - scores[list];
		for (int i = 0; i < PROBE_NEIGHBOURS; i++)
		{
			if (by_angle[k][i].list != UINT32_MAX)
				needed[nneeded++] = reached - scores[by_angle[k][i].list];
			if (by_product[k][i].list != UINT32_MAX)
			{
				uint32		nbetter = 0;

				for (uint32 list = 0; list < nlists; list++)
					nbetter += scores[list] > scores[by_product[k][i].list];
				ranks[nranks++] = (float) nbetter;
			}
		}
	}
	if (nneeded > 0)
	{
		size_t		n = (size_t) nqueries * nlists;

		layout->product_nprobes = Min(nlists, (uint32) quantile(ranks, nranks, PROBE_COVERAGE) + 1);
		margin = quantile(needed, nneeded, PROBE_COVERAGE);
		qsort(margins, n, sizeof(float), compare_floats);
		while (nbelow < n && margins[nbelow] <= margin)
			nbelow++;
		layout->nprobes = (uint32) Max(1, nbelow / nqueries);
		for (int i = 0; i < BQ_MARGINS; i++)
		{
			double		probes = pow(nlists, (double) i / (BQ_MARGINS - 1));

			layout->margins[i] = margins[Min(n - 1, (size_t) (probes * nqueries))];
		}
	}
	pfree(ranks);
	pfree(needed);
	pfree(margins);
	pfree(groups);
	pfree(direction);
	pfree(queries);
	pfree(scores);
	pfree(by_product);
	pfree(by_angle);
}
