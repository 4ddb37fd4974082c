/* bqrank.c: lists and groups ranked by a query, or by a new row. */
#include "postgres.h"

#include <float.h>

#include "index/bqdirectory.h"
#include "miscadmin.h"

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
	if (j < BQ_FACTOR_ROWS)
	{
		int			nfactors = Min(n, BQ_FACTOR_ROWS - j);

		memcpy((char *) group->factor + j * BQ_ROW_NBYTES, rows, nfactors * BQ_ROW_NBYTES);
		rows += nfactors * BQ_ROW_NBYTES;
		j += nfactors;
		n -= nfactors;
	}
	if (n == 0)
		return;
	bq_kernel->lut_block(table->entries + (j - BQ_FACTOR_ROWS) * BQ_ROW_NBYTES, rows, n, part);
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
	int			nrows = bq_group_nrows(dim);
	GroupScore	group = {0};

	for (uint32 list = 0; list < nlists; list += BQ_BLOCK)
	{
		add_rows(&group, table, groups, 0, nrows);
		finish_group(&group, table, Min(nlists - list, (uint32) BQ_BLOCK), scores + list);
		groups += (size_t) nrows * BQ_ROW_NBYTES;
	}
}

/*
 * Score a group on pages; `ahead`: the page after it will be needed as well.  `held` keeps its
 * last page.
 */
static void
score_group(Relation index, const BqLayout *layout, const BqTable *table, uint64 row,
			bool ahead, BqHeldPage *held, GroupScore *group)
{
	int			nrows = bq_group_nrows(layout->dim);

	for (int j = 0; j < nrows;)
	{
		BlockNumber blkno = bq_code_page(layout, row + j);
		int			n = bq_rows_on_page(row + j, row + nrows);
		bool		another = !BufferIsValid(held->buffer) || held->blkno != blkno;
		Page		page = bq_hold_page(index, held, blkno, BQ_PAGE_CODES);

		if (another && ahead)
			bq_prefetch(index, blkno + 1, 0, false);
		add_rows(group, table, BqPageGetRow(page, row + j), j, n);
		j += n;
	}
}

/* The same for the directions of lists of an index; returns how many follow from `list` on. */
uint32
bq_score_group(Relation index, const BqLayout *layout, const BqTable *table, uint32 list,
			   bool ahead, BqHeldPage *held, float *scores)
{
	uint32		n = Min(layout->nlists - list, (uint32) BQ_BLOCK);
	GroupScore	group = {0};

	score_group(index, layout, table, bq_group_row(layout, list), ahead, held, &group);
	finish_group(&group, table, n, scores);
	return n;
}

/* The directions of all lists. */
void
bq_score_lists(Relation index, const BqLayout *layout, const BqTable *table, float *scores)
{
	BqHeldPage	held = {InvalidBuffer, 0};

	for (uint32 list = 0; list < layout->nlists;)
	{
		list += bq_score_group(index, layout, table, list, true, &held, scores + list);
		if (list % 1024 == 0)	/* interrupts wait for locks */
		{
			bq_release_page(&held);
			CHECK_FOR_INTERRUPTS();
		}
	}
	bq_release_page(&held);
}

/* Groups that lists are found by, or 0. */
uint32
bq_count_groups(const BqLayout *layout)
{
	for (int i = 0; i < BQ_SEGMENTS && layout->segments[i] != BQ_NO_BLOCK; i++)
		if (bq_outer_groups_of(bq_segment_capacity(layout, i)) > 0)
			return bq_groups_of(layout->nlists);
	return 0;
}

/* The directions of groups; of those that have none, FLT_MAX. */
void
bq_score_outer_groups(Relation index, const BqLayout *layout, const BqTable *table,
					  float *scores)
{
	uint32		ngroups = bq_groups_of(layout->nlists);
	BqHeldPage	held = {InvalidBuffer, 0};
	uint32		done = 0;

	for (int segment = 0; done < ngroups; segment++)
	{
		uint32		capacity = bq_segment_capacity(layout, segment);
		uint32		n = Min(capacity / BQ_BLOCK, ngroups - done);

		if (bq_outer_groups_of(capacity) == 0)
			for (uint32 i = 0; i < n; i++)
				scores[done + i] = FLT_MAX;
		else
			for (uint32 i = 0; i < n; i += BQ_BLOCK)
			{
				uint32		part = Min(n - i, (uint32) BQ_BLOCK);
				GroupScore	group = {0};

				score_group(index, layout, table, bq_outer_group_row(layout, segment, i / BQ_BLOCK),
							true, &held, &group);
				finish_group(&group, table, part, scores + done + i);
				for (uint32 c = 0; c < part; c++)
					if (group.factor[c] == 0)
						scores[done + i + c] = FLT_MAX;
			}
		done += n;
	}
	bq_release_page(&held);
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
