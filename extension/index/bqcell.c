/*
 * bqcell.c: how many lists a row is compared with.
 *
 * Many lists are found by way of *cells*: a coarse clustering of the same codes, about
 * 4 sqrt(nlists) of them.  A row is compared with all cells, then only with the lists
 * around its cell, as a query looks only at the lists around it.
 */
#include "postgres.h"

#include <math.h>

#include "index/bqbuild.h"

/*
 * Cells, and the lists that a row is compared with, in units of sqrt(nlists).  Training
 * is content with less: recall at equal probes is the same (extension/README.md).
 */
#define CELLS 4
#define TRAIN_CANDIDATES 8
#define ASSIGN_CANDIDATES 16

/* How many cells lists are found by; 1: none, all lists are looked at. */
uint32
bq_count_cells(uint32 nlists)
{
	uint32		ncells = (uint32) (CELLS * sqrt(nlists));

	/* not worth it for few */
	return ncells + (uint32) (TRAIN_CANDIDATES * sqrt(nlists)) < nlists / 2 ? ncells : 1;
}

/* How many of the lists to look at: all, if `factor` does not spare half of them. */
static uint32
count_candidates(uint32 nlists, int factor)
{
	uint32		n = (uint32) (factor * sqrt(nlists));

	return n < nlists / 2 ? n : nlists;
}

uint32
bq_count_train_candidates(uint32 nlists)
{
	return count_candidates(nlists, TRAIN_CANDIDATES);
}

uint32
bq_count_assign_candidates(uint32 nlists)
{
	return count_candidates(nlists, ASSIGN_CANDIDATES);
}

/* The candidates of all cells together, at most. */
size_t
bq_max_candidates(uint32 nlists)
{
	uint32		n = count_candidates(nlists, ASSIGN_CANDIDATES);

	return n < nlists ? (size_t) n * bq_count_cells(nlists) :
		Max((size_t) count_candidates(nlists, TRAIN_CANDIDATES) * bq_count_cells(nlists), nlists);
}
