/* bqsplit.h: a list that is being split, shared by the files that do it. */
#ifndef BQSPLIT_H
#define BQSPLIT_H

#include "commands/vacuum.h"
#include "common/pg_prng.h"
#include "index/bqbuild.h"

typedef struct BqSplit
{
	IndexVacuumInfo *info;
	Relation	index;
	BqLayout	layout;
	uint32		list;
	uint32		epoch;			/* of the new blocks */
	uint32		nparts;
	BqListData *parts;			/* the new lists */
	uint8	   *room;			/* free slots in the first block of each */
	BqRows		rows;			/* of the batch, at most `limit` */
	size_t		limit;
	/* by block of the list, from the chain's end */
	uint32		nseen;
	uint32	   *seen;			/* live bits of rows written */
	uint32	   *blocks;			/* its number; BQ_NO_BLOCK: not known yet */
	BqAssigner *assigner;
	BqClusters	clusters;
	bool		hurry;			/* writers are waiting */
	uint32		nread_closed;	/* blocks that were read meanwhile */
	uint8	   *codes;			/* of one block */
} BqSplit;

/* The number of a part as a list: the first one takes the place of the old list. */
static inline uint32
bq_part_list(const BqSplit *split, uint32 part)
{
	return part == 0 ? split->list : split->layout.nlists + part - 1;
}

/* bqmove.c */
extern void bq_add_rows(BqSplit *split, const BqWholeBlock *block, uint32 slots);
extern bool bq_read_list_rows(BqSplit *split, double share, pg_prng_state *random);
extern void bq_write_batch(BqSplit *split, const uint32 *lists);
extern size_t bq_move_rows(BqSplit *split);

#endif							/* BQSPLIT_H */
