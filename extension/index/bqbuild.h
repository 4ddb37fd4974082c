/*
 * bqbuild.h: making lists of rows in memory, shared by CREATE INDEX and the splitting of lists:
 *
 *	bqrowset.c		rows in memory
 *	bqcell.c		how many lists to look at
 *	bqassign.c		the nearest direction of each row, alone or with parallel workers
 *	bqcluster.c		directions for the lists, and all rows to their lists
 *	bqarrange.c		numbers for the lists
 *	bqwrite.c		lists to pages
 */
#ifndef BQBUILD_H
#define BQBUILD_H

#include "index/bqindex.h"
#include "storage/dsm.h"
#include "storage/shm_toc.h"

/* Phases shown in pg_stat_progress_create_index. */
enum
{
	BQ_PHASE_LOAD = 1,			/* 1 is PROGRESS_CREATEIDX_SUBPHASE_INITIALIZE */
	BQ_PHASE_TRAIN,
	BQ_PHASE_ASSIGN,
	BQ_PHASE_WRITE
};

/* bqrowset.c */
extern size_t bq_lists_nbytes(int dim, uint32 nlists);
extern size_t bq_rows_limit(int dim, int nkeys, int work_mem_kb, bool shared, uint32 nlists);
extern void *bq_resize(void *array, size_t nbytes);
extern void bq_grow_rows(BqRows *rows, int dim, size_t limit);
extern void bq_shrink_rows(BqRows *rows, int dim, size_t capacity, bool shared);
extern void bq_put_row(BqRows *rows, size_t i, int dim, const BqRow *row);
extern BqRow bq_get_row(const BqRows *rows, size_t i, int dim);
extern void bq_put_header(const BqLayout *layout, BqWholeBlock *block, int slot,
						  const BqRow *row);
extern void bq_get_header(const BqLayout *layout, const BqWholeBlock *block, int slot,
						  BqRows *rows, size_t i);

/* bqassign.c: codes to directions, alone or with parallel workers */

/* Directions, each as a table of bq_lut_query(). */
typedef struct BqTables
{
	uint32		n;
	uint8	   *entries;
	float	   *scale;
	float	   *bias;
} BqTables;

typedef struct BqAssigner
{
	int			dim;
	BqRows	   *rows;
	struct BqAssignShared *shared;
	struct ParallelContext *context;	/* NULL: alone */
	bool		reports;		/* progress of CREATE INDEX */

	/* of `rows`: codes; numbers of those in work, in order; list of each */
	uint8	   *planes;
	size_t	   *items;
	uint32	   *lists;
	BqTables	list_tables;
	BqTables	cell_tables;
	uint32	   *candidates;		/* ncandidates of each cell */
	struct Chunk *chunks;
	const struct BqClusters *known; /* whose tables and candidates these are, or NULL */
} BqAssigner;

/* Rows by cell, for BqAssigner.items; see bqcluster.c. */
typedef struct BqCells
{
	uint32		ncells;
	uint32		ncandidates;	/* lists that rows of a cell are compared with */
	size_t	   *start;			/* ncells + 1 */
} BqCells;

extern BqAssigner *bq_begin_assigning(int dim, BqRows *rows, uint32 nlists, int nworkers);
extern void bq_make_tables(BqAssigner *a, bool of_cells, const BqCentroids *centroids);
extern void bq_assign(BqAssigner *a, bool to_cells, size_t n, const BqCells *cells);
extern void bq_end_assigning(BqAssigner *a);
extern PGDLLEXPORT void bq_assign_main(dsm_segment *seg, shm_toc *toc);

/* bqarrange.c */
extern void bq_arrange_lists(BqCentroids *centroids);

/* bqcell.c */
extern uint32 bq_count_cells(uint32 nlists);
extern uint32 bq_count_train_candidates(uint32 nlists);
extern uint32 bq_count_assign_candidates(uint32 nlists);
extern size_t bq_max_candidates(uint32 nlists);

/* bqcluster.c */
typedef struct BqClusters
{
	BqCentroids lists;
	BqCentroids coarse;			/* of the cells; nlists 0: no cells */
	uint32	   *around;			/* for each cell all cells, the nearest first */
} BqClusters;

/* A list, or a cell, and how near it is. */
typedef struct BqScored
{
	float		score;
	uint32		number;
} BqScored;

extern int bq_compare_scored(const void *a, const void *b);	/* the nearest first */
extern float bq_dot(const float *a, const float *b, int dim);
extern BqClusters bq_train(BqAssigner *a, uint32 nlists);
extern const uint32 *bq_assign_rows(BqAssigner *a, const BqClusters *clusters);
extern void bq_free_clusters(BqClusters *clusters);

/* A set of lists being written; see bqwrite.c. */
typedef struct BqWriter
{
	Relation	index;
	BqLayout	layout;
	uint32		nblocks;		/* written so far */
	BqListData *lists;
	uint8	   *rows;			/* code rows of the block being filled */
	BqWholeBlock block;			/* its header */
	int			used;			/* its slots in use */
} BqWriter;

/* bqwrite.c */
extern BqLayout bq_plan_layout(int dim, int nkeys, uint32 nlists);
extern void bq_create_lists(Relation index, ForkNumber fork, const BqLayout *layout);
extern void bq_fill_metapage(Page page, const BqLayout *layout, uint32 nblocks, double nrows);
extern BqWriter *bq_begin_writing(Relation index, const BqLayout *layout);
extern void bq_write_row(BqWriter *writer, uint32 list, const BqRow *row);
extern void bq_write_rows(BqWriter *writer, const BqRows *rows, const uint32 *lists);
extern uint32 bq_end_writing(BqWriter *writer);

#endif							/* BQBUILD_H */
