/* bqrank.c: which lists are near a query or a new row. */
#include "postgres.h"

#include <math.h>

#include "index/bqindex.h"

/*
 * Integer inner product.  |q| <= 1023 and |c| <= 127, so 8,000 terms stay below 2^31.
 */
static int32
dot_int8(const int16 *q, const int8 *c, int n)
{
	int32		sum = 0;

	for (int i = 0; i < n; i++)
		sum += (int32) q[i] * c[i];
	return sum;
}

#define QUERY_MAX 1023

/* Round a query to 11 bits per coordinate: what ranks lists needs no more. */
static void
round_query(const float *q, int dim, int16 *rounded)
{
	float		largest = 0;
	float		factor;

	for (int i = 0; i < dim; i++)
		largest = Max(largest, fabsf(q[i]));
	factor = largest > 0 ? QUERY_MAX / largest : 0;
	for (int i = 0; i < dim; i++)
		rounded[i] = (int16) lrintf(q[i] * factor);
}

/* Score every list: inner product of q with the list's direction, up to a factor. */
static void
score_lists(Relation index, const BqLayout *layout, const float *q, float *scores)
{
	int			per_page = BQ_CENTROIDS_PER_PAGE(layout->dim);
	int16	   *rounded = (int16 *) palloc(layout->dim * sizeof(int16));
	uint32		list = 0;

	round_query(q, layout->dim, rounded);
	for (BlockNumber blkno = layout->centroid_start; list < layout->nlists; blkno++)
	{
		Buffer		buffer = bq_read_page(index, blkno, BQ_PAGE_CENTROIDS, BUFFER_LOCK_SHARE);
		const char *record = PageGetContents(BufferGetPage(buffer));

		for (int i = 0; i < per_page && list < layout->nlists; i++, list++)
		{
			const BqCentroidData *centroid = (const BqCentroidData *) record;

			scores[list] = centroid->scale * dot_int8(rounded, centroid->value, layout->dim);
			record += BQ_CENTROID_NBYTES(layout->dim);
		}
		UnlockReleaseBuffer(buffer);
	}
	pfree(rounded);
}

/* Fill `ranked` with all lists and their scores, in no order. */
void
bq_rank_lists(Relation index, const BqLayout *layout, const float *q, BqRankedList *ranked)
{
	float	   *scores;

	if (layout->nlists == 1)
	{
		ranked[0].list = 0;
		ranked[0].score = 0;
		return;
	}
	scores = (float *) palloc(layout->nlists * sizeof(float));
	score_lists(index, layout, q, scores);
	for (uint32 list = 0; list < layout->nlists; list++)
	{
		ranked[list].list = list;
		ranked[list].score = scores[list];
	}
	pfree(scores);
}

/* The list a new row goes to. */
uint32
bq_nearest_list(Relation index, const BqLayout *layout, const float *q)
{
	float	   *scores;
	uint32		best = 0;

	if (layout->nlists == 1)
		return 0;
	scores = (float *) palloc(layout->nlists * sizeof(float));
	score_lists(index, layout, q, scores);
	for (uint32 list = 1; list < layout->nlists; list++)
		if (scores[list] > scores[best])
			best = list;
	pfree(scores);
	return best;
}
