/*
 * bqdirectory.h: the directory of lists, shared by the files that know its layout:
 *
 *	bqdirectory.c	where things lie in it; entries of lists
 *	bqdirection.c	writing directions, and reading them
 *	bqrank.c		which are near a query or a new row
 *
 * A run of the directory has first the entries of its lists (BqListData), from the
 * beginning of a code page to the end of one: who holds the page of an entry may lock any
 * page of a block.  Then follow the directions.  32 lists are a *group*: BQ_FACTOR_ROWS rows
 * with their factors, then a block of codes (core/bqlut.h), without regard to where pages
 * end.
 *
 * Large runs have directions of groups as well, in groups of the same form behind those of
 * the lists: the mean of the group's lists, whose numbers were chosen so that they lie
 * together (bqarrange.c).  Scans look at the nearest groups only (bqorder.c).  A factor of 0
 * stands for lists that came as it happened: at these every scan looks.
 */
#ifndef BQDIRECTORY_H
#define BQDIRECTORY_H

#include "index/bqindex.h"

#define BQ_FACTOR_ROWS ((int) (BQ_BLOCK * sizeof(float) / BQ_ROW_NBYTES))

static inline int
bq_group_nrows(int dim)
{
	return BQ_FACTOR_ROWS + bq_block_nrows(dim);
}

static inline uint32
bq_groups_of(uint32 nlists)
{
	return (nlists + BQ_BLOCK - 1) / BQ_BLOCK;
}

/* Groups of groups of a run, or 0 if it is ranked list by list. */
static inline uint32
bq_outer_groups_of(uint32 capacity)
{
	return capacity < BQ_GROUPED_LISTS ? 0 : bq_groups_of(capacity / BQ_BLOCK);
}

/* bqdirectory.c */
extern int	bq_find_segment(const BqLayout *layout, uint32 *list);
extern uint64 bq_group_row(const BqLayout *layout, uint32 list);
extern uint64 bq_outer_group_row(const BqLayout *layout, int segment, uint32 outer);

#endif							/* BQDIRECTORY_H */
