/*
 * bqarrange.c: numbers for lists: lists whose numbers are near each other lie near each other.
 *
 * So that 32 lists of a row make a group that has a direction (bqdirectory.h), and that lists which
 * are read together lie on the same pages.  Directions are halved along the line between two
 * means, then the halves, until one is left; each first half is a multiple of 32, if it can be.
 */
#include "postgres.h"

#include "index/bqbuild.h"
#include "miscadmin.h"

#define ROUNDS 4				/* of finding the two means */

/* Bring n lists into the order of their inner products with a line. */
static void
sort_along(BqScored *places, uint32 n, const BqCentroids *centroids, const float *line)
{
	for (uint32 i = 0; i < n; i++)
		places[i].score = bq_dot(line, centroids->values +
								 (size_t) places[i].number * centroids->dim, centroids->dim);
	qsort(places, n, sizeof(BqScored), bq_compare_scored);
}

/* Add up `n` directions, times a factor. */
static void
add_directions(float *sum, const BqScored *places, uint32 n, const BqCentroids *centroids,
			   float factor)
{
	for (uint32 i = 0; i < n; i++)
	{
		const float *direction = centroids->values + (size_t) places[i].number * centroids->dim;

		for (int d = 0; d < centroids->dim; d++)
			sum[d] += factor * direction[d];
	}
}

static void
arrange(BqScored *places, uint32 n, const BqCentroids *centroids, float *line)
{
	int			dim = centroids->dim;
	uint32		half = n / 2;

	CHECK_FOR_INTERRUPTS();
	if (n > BQ_BLOCK)
		half = Max(half / BQ_BLOCK, 1) * BQ_BLOCK;
	if (n < 3)
		return;
	/* from the one that is furthest from the mean to the one that is furthest from it */
	memset(line, 0, dim * sizeof(float));
	add_directions(line, places, n, centroids, -1);
	sort_along(places, n, centroids, line);
	memcpy(line, centroids->values + (size_t) places[0].number * dim, dim * sizeof(float));
	sort_along(places, n, centroids, line);
	add_directions(line, &places[n - 1], 1, centroids, -1);
	for (int round = 0; round < ROUNDS; round++)
	{
		sort_along(places, n, centroids, line);
		memset(line, 0, dim * sizeof(float));
		add_directions(line, places, half, centroids, 1.0f / half);
		add_directions(line, places + half, n - half, centroids, -1.0f / (n - half));
	}
	sort_along(places, n, centroids, line);
	arrange(places, half, centroids, line);
	arrange(places + half, n - half, centroids, line);
}

/* Bring directions into such an order. */
void
bq_arrange_lists(BqCentroids *centroids)
{
	size_t		nbytes = centroids->dim * sizeof(float);
	BqScored   *places = (BqScored *) MemoryContextAllocHuge(CurrentMemoryContext,
															 centroids->nlists * sizeof(BqScored));
	uint32	   *from = (uint32 *) palloc(centroids->nlists * sizeof(uint32));
	float	   *line = (float *) palloc(nbytes);

	for (uint32 list = 0; list < centroids->nlists; list++)
		places[list].number = list;
	arrange(places, centroids->nlists, centroids, line);
	for (uint32 list = 0; list < centroids->nlists; list++)
		from[list] = places[list].number;
	/* in place, each cycle of the permutation in turn */
	for (uint32 list = 0; list < centroids->nlists; list++)
	{
		uint32		to = list;

		memcpy(line, centroids->values + (size_t) list * centroids->dim, nbytes);
		while (from[to] != list)
		{
			uint32		next = from[to];

			memcpy(centroids->values + (size_t) to * centroids->dim,
				   centroids->values + (size_t) next * centroids->dim, nbytes);
			from[to] = to;
			to = next;
		}
		if (to != list)
			memcpy(centroids->values + (size_t) to * centroids->dim, line, nbytes);
		from[to] = to;
	}
	pfree(line);
	pfree(from);
	pfree(places);
}
