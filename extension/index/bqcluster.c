/*
 * bqcluster.c: directions for the lists: spherical k-means on codes.
 *
 * Everything is done on packed codes: to assign rows, each direction is turned into a
 * lookup table and run over all codes as a query would be (core/bqlut.h), at a few
 * nanoseconds per pair.  A code's own length does not change which direction is
 * nearest to it, so it is left out.  Lists trained on codes are as good as lists
 * trained on the vectors: recall within 0.003 at equal probes (extension/README.md).
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "common/pg_prng.h"
#include "index/bqindex.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#define TRAIN_ITERATIONS 8
#define TRAIN_ROWS_PER_LIST 64
#define TILE_BLOCKS 64			/* blocks that stay in cache while all tables pass */
#define PROBE_QUERIES 128
#define PROBE_NEIGHBOURS 10		/* at most BQ_MARGIN_RANK */
#define PROBE_COVERAGE 0.99		/* share of the neighbours that the default must reach */

/* Tables of all directions, one after the other. */
typedef struct ListTables
{
	uint8	   *tables;
	float	   *scale;
	float	   *bias;
} ListTables;

static ListTables
build_tables(const BqCentroids *centroids)
{
	size_t		nbytes = bq_block_nbytes(centroids->dim);
	ListTables	t;

	t.tables = (uint8 *) MemoryContextAllocHuge(CurrentMemoryContext,
												centroids->nlists * nbytes);
	t.scale = (float *) palloc(centroids->nlists * sizeof(float));
	t.bias = (float *) palloc(centroids->nlists * sizeof(float));
	for (uint32 list = 0; list < centroids->nlists; list++)
	{
		CHECK_FOR_INTERRUPTS();
		bq_lut_query(centroids->values + (size_t) list * centroids->dim, centroids->dim,
					 t.tables + list * nbytes, &t.scale[list], &t.bias[list]);
	}
	return t;
}

static void
free_tables(ListTables *t)
{
	pfree(t->tables);
	pfree(t->scale);
	pfree(t->bias);
}

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

/* Nearest direction of each code. */
void
bq_assign(const BqCentroids *centroids, const uint8 *codes, size_t ncodes, uint32 *lists)
{
	int			dim = centroids->dim;
	size_t		block_nbytes = bq_block_nbytes(dim);
	int			nrows = bq_block_nrows(dim);
	ListTables	t = build_tables(centroids);
	uint8	   *tile = (uint8 *) palloc(TILE_BLOCKS * block_nbytes);

	for (size_t start = 0; start < ncodes; start += TILE_BLOCKS * BQ_BLOCK)
	{
		size_t		n = Min(ncodes - start, (size_t) TILE_BLOCKS * BQ_BLOCK);
		int			nblocks = pack_tile(codes + start * bq_planes_nbytes(dim), n, dim, tile);
		float		best[TILE_BLOCKS][BQ_BLOCK];
		uint32		nearest[TILE_BLOCKS][BQ_BLOCK];

		CHECK_FOR_INTERRUPTS();
		for (int b = 0; b < nblocks; b++)
			for (int c = 0; c < BQ_BLOCK; c++)
			{
				best[b][c] = -FLT_MAX;
				nearest[b][c] = 0;
			}
		for (uint32 list = 0; list < centroids->nlists; list++)
		{
			for (int b = 0; b < nblocks; b++)
			{
				uint16		sums[BQ_BLOCK];

				bq_kernel->lut_block(t.tables + list * block_nbytes, tile + b * block_nbytes,
									 nrows, sums);
				for (int c = 0; c < BQ_BLOCK; c++)
				{
					float		score = t.bias[list] - t.scale[list] * (float) sums[c];
					bool		better = score > best[b][c];

					best[b][c] = better ? score : best[b][c];
					nearest[b][c] = better ? list : nearest[b][c];
				}
			}
		}
		for (size_t i = 0; i < n; i++)
			lists[start + i] = nearest[i / BQ_BLOCK][i % BQ_BLOCK];
	}
	pfree(tile);
	free_tables(&t);
}

/* Add the unit vector that a code stands for to a sum. */
static void
add_code(float *sum, const uint8 *planes, int dim)
{
	double		scale = 1 / bq_decoded_norm(planes, dim);
	float		value[BQ_LEVELS];

	for (int level = 0; level < BQ_LEVELS; level++)
		value[level] = (float) (scale * bq_level_value(level));
	for (int i = 0; i < dim; i++)
		sum[i] += value[bq_get_level(planes, dim, i)];
}

static void
normalise(float *x, int dim)
{
	double		length = 0;

	for (int i = 0; i < dim; i++)
		length += (double) x[i] * x[i];
	length = sqrt(length);
	for (int i = 0; i < dim; i++)
		x[i] = length > 0 ? (float) (x[i] / length) : 0;
}

/* The direction of one code. */
static void
set_to_code(float *direction, const uint8 *planes, int dim)
{
	memset(direction, 0, dim * sizeof(float));
	add_code(direction, planes, dim);
}

/*
 * Train centroids->nlists directions on codes (there are more codes than lists).
 * Starts from rows spread evenly over a random order; a list that loses all its rows
 * restarts from a random row of the largest list, so it splits that one.
 */
static void
train(BqCentroids *centroids, const uint8 *codes, size_t ncodes)
{
	int			dim = centroids->dim;
	uint32		nlists = centroids->nlists;
	size_t		planes_nbytes = bq_planes_nbytes(dim);
	uint32	   *lists = (uint32 *) MemoryContextAllocHuge(CurrentMemoryContext,
														  ncodes * sizeof(uint32));
	uint32	   *counts = (uint32 *) palloc(nlists * sizeof(uint32));
	pg_prng_state random;

	/* Fixed seed: the same rows give the same index. */
	pg_prng_seed(&random, 0x6271);
	for (uint32 list = 0; list < nlists; list++)
	{
		size_t		from = ncodes * list / nlists;
		size_t		to = ncodes * (list + 1) / nlists;
		size_t		pick = from + pg_prng_uint64_range(&random, 0, to - from - 1);

		set_to_code(centroids->values + (size_t) list * dim, codes + pick * planes_nbytes, dim);
	}

	for (int iteration = 0; iteration < TRAIN_ITERATIONS; iteration++)
	{
		uint32		largest = 0;

		bq_assign(centroids, codes, ncodes, lists);

		memset(counts, 0, nlists * sizeof(uint32));
		memset(centroids->values, 0, (size_t) nlists * dim * sizeof(float));
		for (size_t i = 0; i < ncodes; i++)
		{
			if (i % 65536 == 0)
				CHECK_FOR_INTERRUPTS();
			add_code(centroids->values + (size_t) lists[i] * dim, codes + i * planes_nbytes, dim);
			counts[lists[i]]++;
		}
		for (uint32 list = 1; list < nlists; list++)
			if (counts[list] > counts[largest])
				largest = list;
		for (uint32 list = 0; list < nlists; list++)
		{
			float	   *direction = centroids->values + (size_t) list * dim;

			if (counts[list] == 0)
			{
				size_t		i = pg_prng_uint64_range(&random, 0, ncodes - 1);

				while (lists[i] != largest)
					i = (i + 1) % ncodes;
				set_to_code(direction, codes + i * planes_nbytes, dim);
			}
			normalise(direction, dim);
		}
	}
	pfree(counts);
	pfree(lists);
}

/* Train the lists of a layout on a random part of the rows. */
BqCentroids
bq_train_on_sample(const BqLayout *layout, const BqRows *rows, BqReport report)
{
	size_t		planes_nbytes = bq_planes_nbytes(layout->dim);
	size_t		wanted = Min(rows->n, (size_t) layout->nlists * TRAIN_ROWS_PER_LIST);
	uint8	   *sample = (uint8 *) MemoryContextAllocHuge(CurrentMemoryContext,
														  wanted * planes_nbytes);
	size_t		taken = 0;
	BqCentroids centroids;
	pg_prng_state random;

	report(BQ_PHASE_TRAIN);
	centroids.nlists = layout->nlists;
	centroids.dim = layout->dim;
	centroids.values = (float *) MemoryContextAllocHuge(CurrentMemoryContext,
														(size_t) layout->nlists * layout->dim *
														sizeof(float));
	/* Selection sampling (Knuth 3.4.2, algorithm S): in order, each row equally likely. */
	pg_prng_seed(&random, 0x6271);
	for (size_t i = 0; i < rows->n && taken < wanted; i++)
		if (pg_prng_double(&random) * (double) (rows->n - i) < (double) (wanted - taken))
			memcpy(sample + taken++ * planes_nbytes, rows->planes + i * planes_nbytes,
				   planes_nbytes);
	train(&centroids, sample, taken);
	pfree(sample);
	return centroids;
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
find_neighbours(const BqCentroids *queries, const BqRows *rows, const uint32 *lists,
				Neighbours *by_angle, Neighbours *by_product)
{
	int			dim = queries->dim;
	int			nrows = bq_block_nrows(dim);
	size_t		planes_nbytes = bq_planes_nbytes(dim);
	size_t		block_nbytes = bq_block_nbytes(dim);
	uint8	   *tile = (uint8 *) palloc(TILE_BLOCKS * block_nbytes);
	ListTables	t = build_tables(queries);

	for (size_t start = 0; start < rows->n; start += TILE_BLOCKS * BQ_BLOCK)
	{
		size_t		n = Min(rows->n - start, (size_t) TILE_BLOCKS * BQ_BLOCK);
		const uint8 *codes = rows->planes + start * planes_nbytes;
		int			nblocks = pack_tile(codes, n, dim, tile);
		float		inverse[TILE_BLOCKS * BQ_BLOCK];

		CHECK_FOR_INTERRUPTS();
		for (size_t i = 0; i < n; i++)
			inverse[i] = (float) (1 / bq_decoded_norm(codes + i * planes_nbytes, dim));
		for (uint32 k = 0; k < queries->nlists; k++)
		{
			size_t		self = rows->n * k / queries->nlists;

			for (int b = 0; b < nblocks; b++)
			{
				uint16		sums[BQ_BLOCK];

				bq_kernel->lut_block(t.tables + k * block_nbytes, tile + b * block_nbytes,
									 nrows, sums);
				for (size_t i = (size_t) b * BQ_BLOCK; i < Min(n, ((size_t) b + 1) * BQ_BLOCK); i++)
				{
					float		score = (t.bias[k] - t.scale[k] * (float) sums[i % BQ_BLOCK]) *
						inverse[i];

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
	free_tables(&t);
}

/* Scores of all lists for one query. */
static void
score_directions(const BqCentroids *centroids, const float *q, float *scores)
{
	for (uint32 list = 0; list < centroids->nlists; list++)
	{
		const float *direction = centroids->values + (size_t) list * centroids->dim;
		float		score = 0;

		for (int i = 0; i < centroids->dim; i++)
			score += q[i] * direction[i];
		scores[list] = score;
	}
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
	BqCentroids queries = {.nlists = nqueries, .dim = dim};
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

	queries.values = (float *) palloc((size_t) nqueries * dim * sizeof(float));
	for (uint32 k = 0; k < nqueries; k++)
	{
		set_to_code(queries.values + (size_t) k * dim,
					rows->planes + rows->n * k / nqueries * bq_planes_nbytes(dim), dim);
		clear_neighbours(by_angle[k]);
		clear_neighbours(by_product[k]);
	}
	find_neighbours(&queries, rows, lists, by_angle, by_product);

	margins = (float *) MemoryContextAllocHuge(CurrentMemoryContext,
											   (size_t) nqueries * nlists * sizeof(float));
	needed = (float *) palloc(nqueries * PROBE_NEIGHBOURS * sizeof(float));
	ranks = (float *) palloc(nqueries * PROBE_NEIGHBOURS * sizeof(float));
	for (uint32 k = 0; k < nqueries; k++)
	{
		/* with few rows there is none of that rank */
		float		reached = by_angle[k][Min((size_t) rank, rows->n - 1) - 1].score;

		CHECK_FOR_INTERRUPTS();
		score_directions(centroids, queries.values + (size_t) k * dim, scores);
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
	pfree(queries.values);
	pfree(scores);
	pfree(by_product);
	pfree(by_angle);
}
