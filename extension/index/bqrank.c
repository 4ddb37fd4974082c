/*
 * bqrank.c: which lists are near a query or a new row.
 *
 * The direction of a list is kept as a 2-bit code and a factor, and is ranked by the
 * table of the query like any code.  That costs no recall: a code's error is small
 * beside the differences between directions, and a list that comes a little early or
 * late is read all the same.
 *
 * 32 lists are a *group*: FACTOR_ROWS rows with their factors, then a block of codes
 * (core/bqlut.h).  Groups follow one another in rows of 16 bytes over the centroid
 * pages, without regard to where pages end.
 */
#include "postgres.h"

#include "index/bqindex.h"
#include "miscadmin.h"

#define FACTOR_ROWS ((int) (BQ_BLOCK * sizeof(float) / BQ_ROW_NBYTES))

static inline int
group_nrows(int dim)
{
	return FACTOR_ROWS + bq_block_nrows(dim);
}

static inline uint32
count_groups(uint32 nlists)
{
	return (nlists + BQ_BLOCK - 1) / BQ_BLOCK;
}

/* Pages that the directions of so many lists need. */
BlockNumber
bq_count_centroid_pages(int dim, uint32 nlists)
{
	if (nlists <= 1)
		return 0;
	return (BlockNumber) (((uint64) count_groups(nlists) * group_nrows(dim) + BQ_ROWS_PER_PAGE - 1) /
						  BQ_ROWS_PER_PAGE);
}

/* Directions, of length 1, as groups: in memory as on the pages. */
uint8 *
bq_pack_directions(const BqCentroids *centroids)
{
	int			dim = centroids->dim;
	size_t		nbytes = (size_t) group_nrows(dim) * BQ_ROW_NBYTES;
	uint8	   *planes = (uint8 *) palloc(bq_planes_nbytes(dim));
	uint8	   *groups = (uint8 *) MemoryContextAllocExtended(CurrentMemoryContext,
															  count_groups(centroids->nlists) * nbytes,
															  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);

	for (uint32 list = 0; list < centroids->nlists; list++)
	{
		const float *direction = centroids->values + (size_t) list * dim;
		uint8	   *group = groups + list / BQ_BLOCK * nbytes;
		float		factor = 0;
		float		norm;

		if (bq_encode(direction, dim, BQ_CUT_RMS, NULL, NULL, planes, &norm) == BQ_OK && norm > 0)
		{
			/* so that the direction's own score is 1, and others' are right on average */
			factor = (float) (1 / (bq_inner_product(direction, planes, dim, 1) *
								   bq_decoded_norm(planes, dim)));
			bq_block_put(group + FACTOR_ROWS * BQ_ROW_NBYTES, dim, list % BQ_BLOCK, planes);
		}
		memcpy(group + list % BQ_BLOCK * sizeof(float), &factor, sizeof(float));
	}
	pfree(planes);
	return groups;
}

/* Write them; the pages exist. */
void
bq_write_centroids(Relation index, const BqLayout *layout, const BqCentroids *centroids)
{
	uint8	   *groups = bq_pack_directions(centroids);
	uint64		nrows = (uint64) count_groups(layout->nlists) * group_nrows(layout->dim);

	for (uint64 row = 0; row < nrows; row += BQ_ROWS_PER_PAGE)
	{
		Buffer		buffer = bq_read_page(index, layout->centroid_start + row / BQ_ROWS_PER_PAGE,
										  BQ_PAGE_CENTROIDS, BUFFER_LOCK_EXCLUSIVE);

		memcpy(BqPageGetRow(BufferGetPage(buffer), row), groups + row * BQ_ROW_NBYTES,
			   Min(nrows - row, (uint64) BQ_ROWS_PER_PAGE) * BQ_ROW_NBYTES);
		MarkBufferDirty(buffer);
		UnlockReleaseBuffer(buffer);
		CHECK_FOR_INTERRUPTS();
	}
	pfree(groups);
}

/* A group being scored, in one or several runs of rows. */
typedef struct GroupScore
{
	float		factor[BQ_BLOCK];
	uint16		sums[BQ_BLOCK];
} GroupScore;

/* Take in rows j ... j + n - 1 of a group. */
static inline void
add_rows(GroupScore *group, const BqTable *table, const uint8 *rows, int j, int n)
{
	uint16		part[BQ_BLOCK];

	if (j == 0)
		memset(group->sums, 0, sizeof(group->sums));
	if (j < FACTOR_ROWS)
	{
		int			nfactors = Min(n, FACTOR_ROWS - j);

		memcpy((char *) group->factor + j * BQ_ROW_NBYTES, rows, nfactors * BQ_ROW_NBYTES);
		rows += nfactors * BQ_ROW_NBYTES;
		j += nfactors;
		n -= nfactors;
	}
	if (n == 0)
		return;
	bq_kernel->lut_block(table->entries + (j - FACTOR_ROWS) * BQ_ROW_NBYTES, rows, n, part);
	for (int c = 0; c < BQ_BLOCK; c++)
		group->sums[c] += part[c];
}

static inline void
finish_group(const GroupScore *group, const BqTable *table, uint32 n, float *scores)
{
	for (uint32 c = 0; c < n; c++)
		scores[c] = (table->bias - table->scale * (float) group->sums[c]) * group->factor[c];
}

/* Score directions in memory: inner product of the table's query with each. */
void
bq_score_groups(const uint8 *groups, uint32 nlists, int dim, const BqTable *table, float *scores)
{
	int			nrows = group_nrows(dim);
	GroupScore	group;

	for (uint32 list = 0; list < nlists; list += BQ_BLOCK)
	{
		add_rows(&group, table, groups, 0, nrows);
		finish_group(&group, table, Min(nlists - list, (uint32) BQ_BLOCK), scores + list);
		groups += (size_t) nrows * BQ_ROW_NBYTES;
	}
}

/* The same for the directions of an index. */
void
bq_score_lists(Relation index, const BqLayout *layout, const BqTable *table, float *scores)
{
	int			nrows = group_nrows(layout->dim);
	uint64		row = 0;
	Buffer		buffer = InvalidBuffer;
	GroupScore	group;

	for (uint32 list = 0; list < layout->nlists; list += BQ_BLOCK)
	{
		for (int j = 0; j < nrows;)
		{
			int			on_page = (int) (row % BQ_ROWS_PER_PAGE);
			int			n = Min(nrows - j, BQ_ROWS_PER_PAGE - on_page);

			if (on_page == 0 || !BufferIsValid(buffer))
			{
				BlockNumber blkno = layout->centroid_start + (BlockNumber) (row / BQ_ROWS_PER_PAGE);

				if (BufferIsValid(buffer))
					UnlockReleaseBuffer(buffer);
				CHECK_FOR_INTERRUPTS();
				buffer = bq_read_page(index, blkno, BQ_PAGE_CENTROIDS, BUFFER_LOCK_SHARE);
				if (blkno + 1 < layout->list_start)
					bq_prefetch(index, blkno + 1, 0);
			}
			add_rows(&group, table, BqPageGetRow(BufferGetPage(buffer), row), j, n);
			row += n;
			j += n;
		}
		finish_group(&group, table, Min(layout->nlists - list, (uint32) BQ_BLOCK), scores + list);
	}
	UnlockReleaseBuffer(buffer);
}

/* The table of a float query, in memory of its own. */
BqTable
bq_make_table(const float *q, int dim)
{
	BqTable		table;

	table.entries = (uint8 *) palloc(bq_block_nbytes(dim));
	bq_lut_query(q, dim, table.entries, &table.scale, &table.bias);
	return table;
}

/* The list that a new row goes to. */
uint32
bq_nearest_list(Relation index, const BqLayout *layout, const float *q)
{
	float	   *scores;
	BqTable		table;
	uint32		best = 0;

	if (layout->nlists == 1)
		return 0;
	scores = (float *) palloc(layout->nlists * sizeof(float));
	table = bq_make_table(q, layout->dim);
	bq_score_lists(index, layout, &table, scores);
	for (uint32 list = 1; list < layout->nlists; list++)
		if (scores[list] > scores[best])
			best = list;
	pfree(table.entries);
	pfree(scores);
	return best;
}
