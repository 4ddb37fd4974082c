/* bqvacuum.h: one pass of vacuum over an index, shared by the files that make it. */
#ifndef BQVACUUM_H
#define BQVACUUM_H

#include "commands/vacuum.h"
#include "index/bqsource.h"

typedef struct BqVacuum
{
	IndexVacuumInfo *info;
	Relation	index;
	BqLayout	layout;
	uint32		nfree;			/* when it began */
	BqListData *entries;		/* the same */
	IndexBulkDeleteCallback callback;	/* NULL: only look */
	void	   *arg;
	double		nremoved;
	double		nrows;
	uint32		nunowned;		/* blocks that belong to no list ... */
	uint8	   *unowned;		/* ... which they are, as bits */
} BqVacuum;

/* Does a block belong to a list, as lists are now? */
static inline bool
bq_is_owned(const BqVacuum *state, const BqBlockData *block)
{
	return block->list < state->layout.nlists &&
		block->epoch == state->entries[block->list].epoch;
}

/* bqvacuum.c */
extern BqVacuum bq_begin_vacuum(IndexVacuumInfo *info);
extern void bq_visit_blocks(BqVacuum *state, bool hurry);

/* bqreclaim.c */
extern uint64 bq_count_old_blocks(const BqVacuum *state);
extern void bq_free_old_chains(BqVacuum *state);
extern void bq_free_lost_blocks(IndexVacuumInfo *info);

#endif							/* BQVACUUM_H */
