/* bqrank.c: which lists are near a query or a new row. */
#include "postgres.h"

#include <math.h>

#include "index/bqindex.h"

/*
 * Coordinates of a rounded query: with |c| <= 127 and at most BQ_INDEX_MAX_DIM (8,000)
 * terms, inner products stay below 2^30.
 */
#define QUERY_MAX 1023

/* Round a query to 11 bits per coordinate: what ranks lists needs no more.  Returns the unit. */
static float
round_query(const float *q, int dim, int16 *rounded)
{
	float		largest = 0;
	float		factor;

	for (int i = 0; i < dim; i++)
		largest = Max(largest, fabsf(q[i]));
	factor = largest > 0 ? QUERY_MAX / largest : 0;
	for (int i = 0; i < dim; i++)
		rounded[i] = (int16) lrintf(q[i] * factor);
	return largest / QUERY_MAX;
}

/* Score every list: inner product of q with the list's direction. */
void
bq_score_lists(Relation index, const BqLayout *layout, const float *q, float *scores)
{
	int			per_page = BQ_CENTROIDS_PER_PAGE(layout->dim);
	int16	   *rounded = (int16 *) palloc(layout->dim * sizeof(int16));
	float		unit = round_query(q, layout->dim, rounded);
	uint32		list = 0;

	for (BlockNumber blkno = layout->centroid_start; list < layout->nlists; blkno++)
	{
		Buffer		buffer = bq_read_page(index, blkno, BQ_PAGE_CENTROIDS, BUFFER_LOCK_SHARE);
		const char *record = PageGetContents(BufferGetPage(buffer));

		if (blkno + 1 < layout->list_start)
			bq_prefetch(index, blkno + 1, 0);
		for (int i = 0; i < per_page && list < layout->nlists; i++, list++)
		{
			const BqCentroidData *centroid = (const BqCentroidData *) record;

			scores[list] = unit * centroid->scale *
				bq_kernel->dot_integer(rounded, centroid->value, layout->dim);
			record += BQ_CENTROID_NBYTES(layout->dim);
		}
		UnlockReleaseBuffer(buffer);
	}
	pfree(rounded);
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
	bq_score_lists(index, layout, q, scores);
	for (uint32 list = 1; list < layout->nlists; list++)
		if (scores[list] > scores[best])
			best = list;
	pfree(scores);
	return best;
}
