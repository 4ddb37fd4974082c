/*
 * bqrank.c: the directory: where lists are, and which are near a query or a new row.
 *
 * The direction of a list is kept as a 2-bit code and a factor, and is ranked by the
 * table of the query like any code.  That costs no recall: a code's error is small
 * beside the differences between directions, and a list that comes a little early or
 * late is read all the same.
 *
 * A run of the directory has first the entries of its lists (BqListData), from the
 * beginning of a code page to the end of one: who holds the page of an entry may lock any
 * page of a block.  Then follow the directions.  32 lists are a *group*: FACTOR_ROWS rows
 * with their factors, then a block of codes (core/bqlut.h), without regard to where pages
 * end.
 *
 * Large runs have directions of groups as well, in groups of the same form behind those of
 * the lists: the mean of the group's lists, whose numbers were chosen so that they lie
 * together (bqarrange.c).  Scans look at the nearest groups only (bqorder.c).  A factor of 0
 * stands for lists that came as it happened: at these every scan looks.
 */
#include "postgres.h"

#include <float.h>

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

/* Groups of groups of a run, or 0 if it is ranked list by list. */
static inline uint32
count_outer_groups(uint32 capacity)
{
	return capacity < BQ_GROUPED_LISTS ? 0 : count_groups(capacity / BQ_BLOCK);
}

/*
 * Where things lie in the directory
 */

/* Rows of the entries of so many lists, to the end of a page. */
static inline uint64
entry_nrows(uint32 capacity)
{
	return (uint64) (capacity + BQ_LISTS_PER_PAGE - 1) / BQ_LISTS_PER_PAGE * BQ_ROWS_PER_PAGE;
}

/* Lists that a run of the directory has room for. */
uint32
bq_segment_capacity(const BqLayout *layout, int segment)
{
	return segment == 0 ? layout->capacity : layout->capacity << (segment - 1);
}

/* Blocks of a run, wherever it begins. */
uint32
bq_count_segment_blocks(const BqLayout *layout, uint32 capacity)
{
	uint64		nrows = BQ_ROWS_PER_PAGE - 1 + entry_nrows(capacity) +
		(uint64) (capacity / BQ_BLOCK + count_outer_groups(capacity)) * group_nrows(layout->dim);

	return (uint32) ((nrows + layout->nrows - 1) / layout->nrows);
}

/* Lists that there is room for. */
uint32
bq_directory_capacity(const BqLayout *layout)
{
	uint32		capacity = 0;

	for (int i = 0; i < BQ_SEGMENTS && layout->segments[i] != BQ_NO_BLOCK; i++)
		capacity += bq_segment_capacity(layout, i);
	return capacity;
}

/* Is a block, so called, part of the directory? */
bool
bq_is_directory(const BqLayout *layout, uint32 block)
{
	for (int i = 0; i < BQ_SEGMENTS && layout->segments[i] != BQ_NO_BLOCK; i++)
		if (block >= layout->segments[i] && block - layout->segments[i] <
			bq_count_segment_blocks(layout, bq_segment_capacity(layout, i)))
			return true;
	return false;
}

uint32
bq_count_directory_blocks(const BqLayout *layout)
{
	uint32		n = 0;

	for (int i = 0; i < BQ_SEGMENTS && layout->segments[i] != BQ_NO_BLOCK; i++)
		n += bq_count_segment_blocks(layout, bq_segment_capacity(layout, i));
	return n;
}

/* First row of the entries of a run. */
static inline uint64
segment_row(const BqLayout *layout, int segment)
{
	uint64		row = bq_first_row(layout, layout->segments[segment]);

	return (row + BQ_ROWS_PER_PAGE - 1) / BQ_ROWS_PER_PAGE * BQ_ROWS_PER_PAGE;
}

/* The run of a list, which becomes its number within the run. */
static inline int
find_segment(const BqLayout *layout, uint32 *list)
{
	int			segment = 0;

	while (*list >= bq_segment_capacity(layout, segment))
		*list -= bq_segment_capacity(layout, segment++);
	return segment;
}

/* Row of the entry of a list. */
uint64
bq_list_row(const BqLayout *layout, uint32 list)
{
	int			segment = find_segment(layout, &list);

	return segment_row(layout, segment) + (uint64) list * BQ_LIST_ROWS;
}

BlockNumber
bq_list_page(const BqLayout *layout, uint32 list)
{
	return bq_code_page(layout, bq_list_row(layout, list));
}

/* First row of the group that a list belongs to. */
static uint64
group_row(const BqLayout *layout, uint32 list)
{
	int			segment = find_segment(layout, &list);

	return segment_row(layout, segment) + entry_nrows(bq_segment_capacity(layout, segment)) +
		(uint64) list / BQ_BLOCK * group_nrows(layout->dim);
}

/* First row of an outer group of a run that has them. */
static uint64
outer_group_row(const BqLayout *layout, int segment, uint32 outer)
{
	uint32		capacity = bq_segment_capacity(layout, segment);

	return segment_row(layout, segment) + entry_nrows(capacity) +
		((uint64) capacity / BQ_BLOCK + outer) * group_nrows(layout->dim);
}

/* Lock the page of a list's entry, and find it there. */
Buffer
bq_read_entry(Relation index, const BqLayout *layout, uint32 list, int lockmode,
			  BqListData **entry)
{
	uint64		row = bq_list_row(layout, list);
	Buffer		buffer = bq_read_page(index, bq_code_page(layout, row), BQ_PAGE_CODES, lockmode);

	*entry = (BqListData *) BqPageGetRow(BufferGetPage(buffer), row);
	return buffer;
}

/* Copy all entries. */
BqListData *
bq_read_entries(Relation index, const BqLayout *layout)
{
	BqListData *entries = (BqListData *) MemoryContextAllocHuge(CurrentMemoryContext,
																layout->nlists * sizeof(BqListData));
	uint32		list = 0;

	while (list < layout->nlists)
	{
		BqListData *entry;
		Buffer		buffer = bq_read_entry(index, layout, list, BUFFER_LOCK_SHARE, &entry);
		BlockNumber blkno = BufferGetBlockNumber(buffer);

		do
			entries[list++] = *entry++;
		while (list < layout->nlists && bq_list_page(layout, list) == blkno);
		UnlockReleaseBuffer(buffer);
		CHECK_FOR_INTERRUPTS();
	}
	return entries;
}

/*
 * Directions
 */

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
		bq_block_put(group + FACTOR_ROWS * BQ_ROW_NBYTES, dim, (int) c, planes);
	}
	memcpy(group + c * sizeof(float), &factor, sizeof(float));
}

/* Directions, of length 1, as groups: in memory as on the pages. */
uint8 *
bq_pack_directions(const BqCentroids *centroids)
{
	int			dim = centroids->dim;
	size_t		nbytes = (size_t) group_nrows(dim) * BQ_ROW_NBYTES;
	uint8	   *groups = (uint8 *) MemoryContextAllocExtended(CurrentMemoryContext,
															  count_groups(centroids->nlists) * nbytes,
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
	uint32		ngroups = count_groups(layout->nlists);
	uint8	   *groups = bq_pack_directions(centroids);

	write_rows(index, layout, group_row(layout, 0), (uint64) ngroups * group_nrows(dim), groups,
			   false);
	pfree(groups);
	if (count_outer_groups(layout->capacity) > 0)
	{
		BqCentroids means = {.nlists = ngroups, .dim = dim};

		means.values = (float *) palloc((size_t) ngroups * dim * sizeof(float));
		for (uint32 group = 0; group < ngroups; group++)
			set_to_mean(means.values + (size_t) group * dim, centroids, group * BQ_BLOCK,
						Min(layout->nlists - group * BQ_BLOCK, (uint32) BQ_BLOCK));
		groups = bq_pack_directions(&means);
		write_rows(index, layout, outer_group_row(layout, 0, 0),
				   (uint64) count_groups(ngroups) * group_nrows(dim), groups, false);
		pfree(groups);
		pfree(means.values);
	}
}

/* Let the group of a list have the direction `mean`; NULL: no scan may pass it over. */
static void
set_group_direction(Relation index, const BqLayout *layout, uint32 list, const float *mean)
{
	int			nrows = group_nrows(layout->dim);
	int			segment = find_segment(layout, &list);
	uint32		number = list / BQ_BLOCK;
	uint64		row;
	uint8	   *outer;

	if (count_outer_groups(bq_segment_capacity(layout, segment)) == 0)
		return;
	row = outer_group_row(layout, segment, number / BQ_BLOCK);
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
	int			nrows = group_nrows(layout->dim);
	uint8	   *group = (uint8 *) palloc((size_t) nrows * BQ_ROW_NBYTES);
	float	   *mean = (float *) palloc(layout->dim * sizeof(float));

	for (uint32 end = list + n; list < end;)
	{
		uint64		row = group_row(layout, list);

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
	int			nrows = group_nrows(dim);
	BqCentroids centroids = {.nlists = layout->nlists, .dim = dim};
	uint8	   *group = (uint8 *) palloc((size_t) nrows * BQ_ROW_NBYTES);
	uint8	   *planes = (uint8 *) palloc(bq_planes_nbytes(dim));

	centroids.values = (float *) MemoryContextAllocHuge(CurrentMemoryContext,
														(size_t) layout->nlists * dim * sizeof(float));
	for (uint32 list = 0; list < layout->nlists; list++)
	{
		if (list % BQ_BLOCK == 0)
			bq_read_rows(index, layout, group_row(layout, list), nrows, group);
		bq_block_get(group + FACTOR_ROWS * BQ_ROW_NBYTES, dim, list % BQ_BLOCK, planes);
		bq_set_to_code(centroids.values + (size_t) list * dim, planes, dim);
	}
	pfree(planes);
	pfree(group);
	return centroids;
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
	int			nrows = group_nrows(layout->dim);

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

	score_group(index, layout, table, group_row(layout, list), ahead, held, &group);
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
		if (count_outer_groups(bq_segment_capacity(layout, i)) > 0)
			return count_groups(layout->nlists);
	return 0;
}

/* The directions of groups; of those that have none, FLT_MAX. */
void
bq_score_outer_groups(Relation index, const BqLayout *layout, const BqTable *table,
					  float *scores)
{
	uint32		ngroups = count_groups(layout->nlists);
	BqHeldPage	held = {InvalidBuffer, 0};
	uint32		done = 0;

	for (int segment = 0; done < ngroups; segment++)
	{
		uint32		capacity = bq_segment_capacity(layout, segment);
		uint32		n = Min(capacity / BQ_BLOCK, ngroups - done);

		if (count_outer_groups(capacity) == 0)
			for (uint32 i = 0; i < n; i++)
				scores[done + i] = FLT_MAX;
		else
			for (uint32 i = 0; i < n; i += BQ_BLOCK)
			{
				uint32		part = Min(n - i, (uint32) BQ_BLOCK);
				GroupScore	group = {0};

				score_group(index, layout, table, outer_group_row(layout, segment, i / BQ_BLOCK),
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
