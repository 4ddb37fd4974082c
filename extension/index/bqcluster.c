/*
 * bqcluster.c: directions for the lists: spherical k-means on codes.
 *
 * Everything is done on packed codes: to assign rows, each direction is turned into a
 * lookup table and run over all codes as a query would be (core/bqlut.h), at a few
 * nanoseconds per pair.  A code's own length does not change which direction is
 * nearest to it, so it is left out.  Lists trained on codes are as good as lists
 * trained on the vectors: recall within 0.003 at equal probes (extension/README.md).
 *
 * Many lists are found by way of cells (bqcell.c).
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "common/pg_prng.h"
#include "index/bqbuild.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#define TRAIN_ITERATIONS 8
#define TRAIN_ROWS_PER_LIST 64
#define DOT_LANES 16

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
void
bq_set_to_code(float *direction, const uint8 *planes, int dim)
{
	double		scale = 1 / bq_decoded_norm(planes, dim);

	bq_kernel->unpack(planes, dim, (float) (scale * BQ_WEAK), (float) (scale * BQ_STRONG),
					  direction);
}

/* Add it to a sum; `value` is room for dim floats. */
static void
add_code(float *sum, const uint8 *planes, int dim, float *value)
{
	bq_set_to_code(value, planes, dim);
	for (int i = 0; i < dim; i++)
		sum[i] += value[i];
}

float
bq_dot(const float *a, const float *b, int dim)
{
	float		sum[DOT_LANES] = {0};	/* lanes, for the compiler to vectorize */
	float		total = 0;
	int			i = 0;

	for (; i + DOT_LANES <= dim; i += DOT_LANES)
		for (int k = 0; k < DOT_LANES; k++)
			sum[k] += a[i + k] * b[i + k];
	for (; i < dim; i++)
		total += a[i] * b[i];
	for (int k = 0; k < DOT_LANES; k++)
		total += sum[k];
	return total;
}

/* Inner products of one direction with all. */
static void
score_directions(const BqCentroids *centroids, const float *q, float *scores)
{
	for (uint32 list = 0; list < centroids->nlists; list++)
		scores[list] = bq_dot(q, centroids->values + (size_t) list * centroids->dim, centroids->dim);
}

static BqCentroids
make_centroids(uint32 nlists, int dim)
{
	BqCentroids centroids = {.nlists = nlists, .dim = dim};

	centroids.values = (float *) MemoryContextAllocHuge(CurrentMemoryContext,
														(size_t) nlists * dim * sizeof(float));
	return centroids;
}

/*
 * Cells
 */

int
bq_compare_scored(const void *a, const void *b)
{
	const BqScored *x = (const BqScored *) a;
	const BqScored *y = (const BqScored *) b;

	if (x->score != y->score)
		return x->score > y->score ? -1 : 1;
	return x->number < y->number ? -1 : 1;
}

/* For each cell, all cells, the nearest first. */
static uint32 *
rank_cells(const BqCentroids *coarse)
{
	uint32		ncells = coarse->nlists;
	uint32	   *around = (uint32 *) palloc((size_t) ncells * ncells * sizeof(uint32));
	BqScored   *ranks = (BqScored *) palloc(ncells * sizeof(BqScored));
	float	   *scores = (float *) palloc(ncells * sizeof(float));

	for (uint32 cell = 0; cell < ncells; cell++)
	{
		CHECK_FOR_INTERRUPTS();
		score_directions(coarse, coarse->values + (size_t) cell * coarse->dim, scores);
		scores[cell] = FLT_MAX;
		for (uint32 other = 0; other < ncells; other++)
		{
			ranks[other].score = scores[other];
			ranks[other].number = other;
		}
		qsort(ranks, ncells, sizeof(BqScored), bq_compare_scored);
		for (uint32 i = 0; i < ncells; i++)
			around[(size_t) cell * ncells + i] = ranks[i].number;
	}
	pfree(scores);
	pfree(ranks);
	return around;
}

/* The candidates of each cell: `wanted` lists of the cells around it. */
static void
choose_candidates(BqAssigner *a, const BqClusters *clusters, uint32 wanted)
{
	const BqCentroids *lists = &clusters->lists;
	uint32		ncells = clusters->coarse.nlists;
	uint32	   *cell_of = (uint32 *) palloc(lists->nlists * sizeof(uint32));
	uint32	   *start = (uint32 *) palloc0((ncells + 1) * sizeof(uint32));
	uint32	   *members = (uint32 *) palloc(lists->nlists * sizeof(uint32));
	float	   *scores = (float *) palloc(ncells * sizeof(float));

	for (uint32 list = 0; list < lists->nlists; list++)
	{
		CHECK_FOR_INTERRUPTS();
		score_directions(&clusters->coarse, lists->values + (size_t) list * lists->dim, scores);
		cell_of[list] = 0;
		for (uint32 cell = 1; cell < ncells; cell++)
			if (scores[cell] > scores[cell_of[list]])
				cell_of[list] = cell;
		start[cell_of[list] + 1]++;
	}
	for (uint32 cell = 0; cell < ncells; cell++)
		start[cell + 1] += start[cell];
	for (uint32 list = lists->nlists; list-- > 0;)
		members[--start[cell_of[list] + 1]] = list;
	/* members of cell k now begin at start[k + 1] */
	for (uint32 cell = 0; cell < ncells; cell++)
	{
		const uint32 *around = clusters->around + (size_t) cell * ncells;
		uint32	   *candidates = a->candidates + (size_t) cell * wanted;
		uint32		n = 0;

		for (uint32 i = 0; i < ncells && n < wanted; i++)
		{
			uint32		from = start[around[i] + 1];
			uint32		end = around[i] + 1 < ncells ? start[around[i] + 2] : lists->nlists;

			while (from < end && n < wanted)
				candidates[n++] = members[from++];
		}
	}
	pfree(scores);
	pfree(members);
	pfree(start);
	pfree(cell_of);
}

/* Put the rows items[0 .. n) into their cells, whose tables are made. */
static BqCells
sort_into_cells(BqAssigner *a, size_t n, const BqClusters *clusters, uint32 ncandidates)
{
	uint32		ncells = clusters->coarse.nlists;
	BqCells		cells = {
		.ncells = ncells,
		.ncandidates = ncandidates
	};
	size_t	   *sorted = (size_t *) MemoryContextAllocHuge(CurrentMemoryContext,
														   (n + 1) * sizeof(size_t));

	bq_assign(a, true, n, NULL);
	cells.start = (size_t *) palloc0((ncells + 2) * sizeof(size_t));
	for (size_t i = 0; i < n; i++)
		cells.start[a->lists[a->items[i]] + 2]++;
	for (uint32 cell = 0; cell < ncells; cell++)
		cells.start[cell + 2] += cells.start[cell + 1];
	for (size_t i = 0; i < n; i++)
		sorted[cells.start[a->lists[a->items[i]] + 1]++] = a->items[i];
	memcpy(a->items, sorted, n * sizeof(size_t));
	pfree(sorted);
	return cells;
}

/*
 * Training
 */

/*
 * Train directions on the rows items[0 .. n), at least as many as directions; in cells,
 * if there are any.  Starts from rows spread evenly over the items; a list that loses
 * all its rows restarts from a random row of the largest list, so it splits that one.
 */
static void
train(BqAssigner *a, bool of_cells, BqCentroids *centroids, size_t n, const BqClusters *clusters,
	  const BqCells *cells)
{
	int			dim = centroids->dim;
	uint32		nlists = centroids->nlists;
	size_t		planes_nbytes = bq_planes_nbytes(dim);
	uint32	   *counts = (uint32 *) palloc(nlists * sizeof(uint32));
	float	   *value = (float *) palloc(dim * sizeof(float));
	pg_prng_state random;

	Assert(n >= nlists && nlists > 0);
	/* Fixed seed: the same rows give the same index. */
	pg_prng_seed(&random, 0x6271);
	for (uint32 list = 0; list < nlists; list++)
	{
		size_t		from = n * list / nlists;
		size_t		to = n * (list + 1) / nlists;
		size_t		pick = from + pg_prng_uint64_range(&random, 0, to - from - 1);

		bq_set_to_code(centroids->values + (size_t) list * dim,
					   a->planes + a->items[pick] * planes_nbytes, dim);
	}

	for (int iteration = 0; iteration < TRAIN_ITERATIONS; iteration++)
	{
		uint32		largest = 0;

		if (cells != NULL)
			choose_candidates(a, clusters, cells->ncandidates);
		bq_make_tables(a, of_cells, centroids);
		bq_assign(a, of_cells, n, cells);

		memset(counts, 0, nlists * sizeof(uint32));
		memset(centroids->values, 0, (size_t) nlists * dim * sizeof(float));
		for (size_t i = 0; i < n; i++)
		{
			uint32		list = a->lists[a->items[i]];

			if (i % 65536 == 0)
				CHECK_FOR_INTERRUPTS();
			add_code(centroids->values + (size_t) list * dim,
					 a->planes + a->items[i] * planes_nbytes, dim, value);
			counts[list]++;
		}
		for (uint32 list = 1; list < nlists; list++)
			if (counts[list] > counts[largest])
				largest = list;
		for (uint32 list = 0; list < nlists; list++)
		{
			float	   *direction = centroids->values + (size_t) list * dim;

			if (counts[list] == 0)
			{
				size_t		i = pg_prng_uint64_range(&random, 0, n - 1);

				while (a->lists[a->items[i]] != largest)
					i = (i + 1) % n;
				bq_set_to_code(direction, a->planes + a->items[i] * planes_nbytes, dim);
			}
			normalise(direction, dim);
		}
	}
	pfree(value);
	pfree(counts);
}

/* Take a random sample of the rows; returns its size. */
static size_t
pick_sample(BqAssigner *a, uint32 nlists)
{
	size_t		wanted = Min(a->rows->n, (size_t) nlists * TRAIN_ROWS_PER_LIST);
	size_t		taken = 0;
	pg_prng_state random;

	/* Selection sampling (Knuth 3.4.2, algorithm S): in order, each row equally likely. */
	pg_prng_seed(&random, 0x6271);
	for (size_t i = 0; taken < wanted; i++)
		if (pg_prng_double(&random) * (double) (a->rows->n - i) < (double) (wanted - taken))
			a->items[taken++] = i;
	return taken;
}

/* Train `nlists` lists on a random part of the rows; there are at least as many rows. */
BqClusters
bq_train(BqAssigner *a, uint32 nlists)
{
	uint32		ncells = bq_count_cells(nlists);
	BqClusters	clusters = {0};
	BqCells		cells;
	size_t		n;

	a->known = NULL;
	clusters.lists = make_centroids(nlists, a->dim);
	if (ncells > 1)
	{
		clusters.coarse = make_centroids(ncells, a->dim);
		train(a, true, &clusters.coarse, pick_sample(a, ncells), NULL, NULL);
		clusters.around = rank_cells(&clusters.coarse);
		bq_make_tables(a, true, &clusters.coarse);
	}
	n = pick_sample(a, nlists);
	if (ncells > 1)
	{
		cells = sort_into_cells(a, n, &clusters, bq_count_train_candidates(nlists));
		train(a, false, &clusters.lists, n, &clusters, &cells);
		pfree(cells.start);
	}
	else
		train(a, false, &clusters.lists, n, NULL, NULL);
	bq_arrange_lists(&clusters.lists);
	return clusters;
}

/* Assign all rows; returns the list of each, valid until the next call. */
const uint32 *
bq_assign_rows(BqAssigner *a, const BqClusters *clusters)
{
	uint32		nlists = clusters->lists.nlists;
	uint32		ncandidates = bq_count_assign_candidates(nlists);
	bool		by_cells = ncandidates < nlists;
	size_t		n = a->rows->n;

	/* takes longer than to assign a few rows, as often as these come */
	if (a->known != clusters)
	{
		bq_make_tables(a, false, &clusters->lists);
		if (by_cells)
		{
			bq_make_tables(a, true, &clusters->coarse);
			choose_candidates(a, clusters, ncandidates);
		}
		a->known = clusters;
	}
	for (size_t i = 0; i < n; i++)
		a->items[i] = i;
	if (by_cells)
	{
		BqCells		cells = sort_into_cells(a, n, clusters, ncandidates);

		bq_assign(a, false, n, &cells);
		pfree(cells.start);
	}
	else
		bq_assign(a, false, n, NULL);
	return a->lists;
}

void
bq_free_clusters(BqClusters *clusters)
{
	pfree(clusters->lists.values);
	if (clusters->coarse.nlists > 1)
	{
		pfree(clusters->coarse.values);
		pfree(clusters->around);
	}
}
