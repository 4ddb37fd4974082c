/*
 * bqdirection.c: directions of lists and groups, written and read.
 *
 * A direction is kept as a 2-bit code and a factor, and is ranked by the table of the
 * query like any code.  That costs no recall: a code's error is small beside the
 * differences between directions, and a list that comes a little early or late is read all
 * the same.
 */
#include "postgres.h"

#include "index/bqdirectory.h"
#include "miscadmin.h"

/* Put the direction of list `c` of a group. */
static void
pack_direction(uint8 *group, int dim, uint32 c, const float *direction)
{
	uint8		planes[2 * (BQ_INDEX_MAX_DIM / 8)] = {0};
	float		factor = 0;
	float		norm;

	if (bq_encode(direction, dim, BQ_CUT_RMS, NULL, NULL, planes, &norm) == BQ_OK && norm > 0)
	{
		/* so that the direction's own score is 1, and others' are right on average */
		factor = (float) (1 / (bq_inner_product(direction, planes, dim, 1) *
							   bq_decoded_norm(planes, dim)));
		bq_block_put(group + BQ_FACTOR_ROWS * BQ_ROW_NBYTES, dim, (int) c, planes);
	}
	memcpy(group + c * sizeof(float), &factor, sizeof(float));
}

/* Directions, of length 1, as groups: in memory as on the pages. */
uint8 *
bq_pack_directions(const BqCentroids *centroids)
{
	int			dim = centroids->dim;
	size_t		nbytes = (size_t) bq_group_nrows(dim) * BQ_ROW_NBYTES;
	uint8	   *groups = (uint8 *) MemoryContextAllocExtended(CurrentMemoryContext,
															  bq_groups_of(centroids->nlists) * nbytes,
															  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);

	for (uint32 list = 0; list < centroids->nlists; list++)
		pack_direction(groups + list / BQ_BLOCK * nbytes, dim, list % BQ_BLOCK,
					   centroids->values + (size_t) list * dim);
	return groups;
}

/* Write rows where nobody else knows them or reads anything else in them; `log` them. */
static void
write_rows(Relation index, const BqLayout *layout, uint64 row, uint64 nrows, const uint8 *rows,
		   bool log)
{
	for (uint64 end = row + nrows; row < end;)
	{
		Buffer		buffer = bq_read_page(index, bq_code_page(layout, row), BQ_PAGE_CODES,
										  BUFFER_LOCK_EXCLUSIVE);
		uint8	   *place = BqPageGetRow(BufferGetPage(buffer), row);
		int			n = bq_rows_on_page(row, end);

		if (log)
		{
			bq_begin_log(index);
			bq_log_change(bq_log_page(buffer), place, rows, n * BQ_ROW_NBYTES);
			bq_finish_log();
		}
		else
		{
			memcpy(place, rows, n * BQ_ROW_NBYTES);
			MarkBufferDirty(buffer);
		}
		UnlockReleaseBuffer(buffer);
		rows += n * BQ_ROW_NBYTES;
		row += n;
		CHECK_FOR_INTERRUPTS();
	}
}

/* The direction of a group: `n` directions from `first` on. */
static void
set_to_mean(float *mean, const BqCentroids *centroids, uint32 first, uint32 n)
{
	memset(mean, 0, centroids->dim * sizeof(float));
	for (uint32 list = first; list < first + n; list++)
		for (int i = 0; i < centroids->dim; i++)
			mean[i] += centroids->values[(size_t) list * centroids->dim + i];
}

/* Write those of a new index: all are in the first run of the directory. */
void
bq_write_centroids(Relation index, const BqLayout *layout, const BqCentroids *centroids)
{
	int			dim = layout->dim;
	uint32		ngroups = bq_groups_of(layout->nlists);
	uint8	   *groups = bq_pack_directions(centroids);

	write_rows(index, layout, bq_group_row(layout, 0), (uint64) ngroups * bq_group_nrows(dim), groups,
			   false);
	pfree(groups);
	if (bq_outer_groups_of(layout->capacity) > 0)
	{
		BqCentroids means = {.nlists = ngroups, .dim = dim};

		means.values = (float *) palloc((size_t) ngroups * dim * sizeof(float));
		for (uint32 group = 0; group < ngroups; group++)
			set_to_mean(means.values + (size_t) group * dim, centroids, group * BQ_BLOCK,
						Min(layout->nlists - group * BQ_BLOCK, (uint32) BQ_BLOCK));
		groups = bq_pack_directions(&means);
		write_rows(index, layout, bq_outer_group_row(layout, 0, 0),
				   (uint64) bq_groups_of(ngroups) * bq_group_nrows(dim), groups, false);
		pfree(groups);
		pfree(means.values);
	}
}

/* Let the group of a list have the direction `mean`; NULL: no scan may pass it over. */
static void
set_group_direction(Relation index, const BqLayout *layout, uint32 list, const float *mean)
{
	int			nrows = bq_group_nrows(layout->dim);
	int			segment = bq_find_segment(layout, &list);
	uint32		number = list / BQ_BLOCK;
	uint64		row;
	uint8	   *outer;

	if (bq_outer_groups_of(bq_segment_capacity(layout, segment)) == 0)
		return;
	row = bq_outer_group_row(layout, segment, number / BQ_BLOCK);
	outer = (uint8 *) palloc((size_t) nrows * BQ_ROW_NBYTES);
	bq_read_rows(index, layout, row, nrows, outer);
	if (mean != NULL)
		pack_direction(outer, layout->dim, number % BQ_BLOCK, mean);
	else
		memset(outer + number % BQ_BLOCK * sizeof(float), 0, sizeof(float));
	write_rows(index, layout, row, nrows, outer, true);
	pfree(outer);
}

/*
 * Let `n` directions from `first` on be those of as many lists from `list` on.  Groups
 * are written whole: what is known of other lists in them stays the same.  One caller at a
 * time (vacuum).
 */
void
bq_set_directions(Relation index, const BqLayout *layout, const BqCentroids *centroids,
				  uint32 first, uint32 list, uint32 n)
{
	int			nrows = bq_group_nrows(layout->dim);
	uint8	   *group = (uint8 *) palloc((size_t) nrows * BQ_ROW_NBYTES);
	float	   *mean = (float *) palloc(layout->dim * sizeof(float));

	for (uint32 end = list + n; list < end;)
	{
		uint64		row = bq_group_row(layout, list);

		/* a list that changes stays near its group; new ones may be far from others in theirs */
		if (list >= layout->nlists)
		{
			bool		whole = list % BQ_BLOCK == 0 && end - list >= BQ_BLOCK;

			if (whole)
				set_to_mean(mean, centroids, first, BQ_BLOCK);
			set_group_direction(index, layout, list, whole ? mean : NULL);
		}
		bq_read_rows(index, layout, row, nrows, group);
		do
			pack_direction(group, layout->dim, list % BQ_BLOCK,
						   centroids->values + (size_t) first++ * layout->dim);
		while (++list < end && list % BQ_BLOCK != 0);
		write_rows(index, layout, row, nrows, group, true);
	}
	pfree(mean);
	pfree(group);
}

/* The directions of all lists, as far as their codes tell. */
BqCentroids
bq_read_directions(Relation index, const BqLayout *layout)
{
	int			dim = layout->dim;
	int			nrows = bq_group_nrows(dim);
	BqCentroids centroids = {.nlists = layout->nlists, .dim = dim};
	uint8	   *group = (uint8 *) palloc((size_t) nrows * BQ_ROW_NBYTES);
	uint8	   *planes = (uint8 *) palloc(bq_planes_nbytes(dim));

	centroids.values = (float *) MemoryContextAllocHuge(CurrentMemoryContext,
														(size_t) layout->nlists * dim * sizeof(float));
	for (uint32 list = 0; list < layout->nlists; list++)
	{
		if (list % BQ_BLOCK == 0)
			bq_read_rows(index, layout, bq_group_row(layout, list), nrows, group);
		bq_block_get(group + BQ_FACTOR_ROWS * BQ_ROW_NBYTES, dim, list % BQ_BLOCK, planes);
		bq_set_to_code(centroids.values + (size_t) list * dim, planes, dim);
	}
	pfree(planes);
	pfree(group);
	return centroids;
}
