/*
 * bqassign.c: the nearest direction of each code, alone or with parallel workers.
 *
 * Most of the time of a build goes here, so this is what it shares with workers.  The
 * leader reads the table and writes the index; codes, tables and results lie in shared
 * memory, and a round of work is cut into chunks that leader and workers claim one by
 * one.  Workers touch neither table nor index, and no result depends on who worked it
 * out: with workers or without, the same rows give the same index.
 *
 * A worker takes part in the rounds that are open when it arrives.  One that comes late,
 * or never, delays nobody.
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "access/parallel.h"
#include "access/xact.h"
#include "commands/progress.h"
#include "index/bqbuild.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/spin.h"
#include "utils/backend_progress.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#define TILE_BLOCKS 64			/* blocks that stay in cache while all tables pass */
#define TILE_ROWS (TILE_BLOCKS * BQ_BLOCK)

#define KEY_ASSIGN 1			/* in the table of contents of shared memory */

/* Rows that are compared with the same directions. */
typedef struct Chunk
{
	size_t		start;			/* in `items` */
	uint32		n;				/* at most TILE_ROWS */
	uint32		cell;
} Chunk;

typedef struct BqAssignShared
{
	/* fixed; the arrays of BqAssigner follow this struct */
	int			dim;
	size_t		capacity;
	uint32		nlists;

	/* one round */
	uint32		nchunks;
	bool		to_cells;		/* by their tables; else by those of the lists */
	bool		all;			/* all are candidates; else those of a chunk's cell */
	uint32		ncandidates;
	pg_atomic_uint32 next_chunk;

	slock_t		mutex;			/* for what follows */
	uint64		round;			/* the number of this one ... */
	bool		open;			/* ... which has chunks to claim */
	bool		finished;		/* there will be no more */
	int			nactive;		/* workers in this round */
	ConditionVariable changed;
} BqAssignShared;

static size_t
max_chunks(size_t capacity, uint32 nlists)
{
	return capacity / TILE_ROWS + bq_count_cells(nlists) + 1;
}

/*
 * Let the arrays of `a` lie behind each other from `base` on, which is NULL to know no more than
 * their bytes; returns these.
 */
static size_t
place_arrays(BqAssigner *a, size_t capacity, uint32 nlists, bool planes, char *base)
{
	size_t		nbytes = 0;

#define PLACE(array, n) \
	do { \
		(array) = base == NULL ? NULL : (void *) (base + nbytes); \
		nbytes += MAXALIGN((n) * sizeof(*(array))); \
	} while (0)
	for (int cells = 0; cells < 2; cells++)
	{
		BqTables   *tables = cells ? &a->cell_tables : &a->list_tables;
		uint32		n = cells ? bq_count_cells(nlists) : nlists;

		PLACE(tables->entries, n * bq_block_nbytes(a->dim));
		PLACE(tables->scale, n);
		PLACE(tables->bias, n);
	}
	PLACE(a->candidates, bq_max_candidates(nlists));
	PLACE(a->chunks, max_chunks(capacity, nlists));
	PLACE(a->items, capacity);
	PLACE(a->lists, capacity);
	if (planes)
		PLACE(a->planes, capacity * bq_planes_nbytes(a->dim));
#undef PLACE
	return nbytes;
}

/* Compare the rows of one chunk with the candidates of its cell. */
static void
assign_chunk(const BqAssigner *a, const Chunk *chunk, uint8 *tile)
{
	size_t		block_nbytes = bq_block_nbytes(a->dim);
	size_t		planes_nbytes = bq_planes_nbytes(a->dim);
	int			nrows = bq_block_nrows(a->dim);
	int			nblocks = (int) ((chunk->n + BQ_BLOCK - 1) / BQ_BLOCK);
	const BqTables *tables = a->shared->to_cells ? &a->cell_tables : &a->list_tables;
	uint32		ncandidates = a->shared->ncandidates;
	const uint32 *candidates = a->shared->all ? NULL :
		a->candidates + (size_t) chunk->cell * ncandidates;
	const size_t *items = a->items + chunk->start;
	float		best[TILE_BLOCKS][BQ_BLOCK];
	uint32		nearest[TILE_BLOCKS][BQ_BLOCK];

	memset(tile, 0, nblocks * block_nbytes);
	for (uint32 i = 0; i < chunk->n; i++)
		bq_block_put(tile + i / BQ_BLOCK * block_nbytes, a->dim, (int) (i % BQ_BLOCK),
					 a->planes + items[i] * planes_nbytes);
	for (int b = 0; b < nblocks; b++)
		for (int c = 0; c < BQ_BLOCK; c++)
		{
			best[b][c] = -FLT_MAX;
			nearest[b][c] = candidates != NULL ? candidates[0] : 0;
		}
	for (uint32 k = 0; k < ncandidates; k++)
	{
		uint32		list = candidates != NULL ? candidates[k] : k;
		float		scale = tables->scale[list];
		float		bias = tables->bias[list];

		for (int b = 0; b < nblocks; b++)
		{
			uint16		sums[BQ_BLOCK];

			bq_kernel->lut_block(tables->entries + list * block_nbytes, tile + b * block_nbytes,
								 nrows, sums);
			for (int c = 0; c < BQ_BLOCK; c++)
			{
				float		score = bias - scale * (float) sums[c];
				bool		better = score > best[b][c];

				best[b][c] = better ? score : best[b][c];
				nearest[b][c] = better ? list : nearest[b][c];
			}
		}
	}
	for (uint32 i = 0; i < chunk->n; i++)
		a->lists[items[i]] = nearest[i / BQ_BLOCK][i % BQ_BLOCK];
}

/* Claim and work chunks until all are claimed. */
static void
work_chunks(const BqAssigner *a)
{
	uint8	   *tile = (uint8 *) palloc(TILE_BLOCKS * bq_block_nbytes(a->dim));
	uint32		i;

	while ((i = pg_atomic_fetch_add_u32(&a->shared->next_chunk, 1)) < a->shared->nchunks)
	{
		CHECK_FOR_INTERRUPTS();
		assign_chunk(a, &a->chunks[i], tile);
		if (a->reports)
			pgstat_progress_update_param(PROGRESS_CREATEIDX_TUPLES_DONE,
										 (int64) (a->chunks[i].start + a->chunks[i].n));
	}
	pfree(tile);
}

/*
 * The leader's side
 */

/*
 * Prepare to assign codes of `rows` to up to `nlists` directions, with `nworkers` workers
 * if they can be had.  With workers, codes move to shared memory, and rows->planes points
 * there until bq_end_assigning().
 */
BqAssigner *
bq_begin_assigning(int dim, BqRows *rows, uint32 nlists, int nworkers)
{
	BqAssigner *a = (BqAssigner *) palloc0(sizeof(BqAssigner));
	size_t		capacity = Max(rows->capacity, 1);
	size_t		nbytes;
	BqAssignShared *shared = NULL;

	a->dim = dim;
	a->rows = rows;
	if (nworkers > 0)
	{
		EnterParallelMode();
		a->context = CreateParallelContext("bq", "bq_assign_main", nworkers);
		nbytes = add_size(MAXALIGN(sizeof(BqAssignShared)),
						  place_arrays(a, capacity, nlists, true, NULL));
		shm_toc_estimate_chunk(&a->context->estimator, nbytes);
		shm_toc_estimate_keys(&a->context->estimator, 1);
		InitializeParallelDSM(a->context);
		/* no shared memory to be had: alone */
		if (a->context->seg == NULL)
		{
			DestroyParallelContext(a->context);
			ExitParallelMode();
			a->context = NULL;
		}
		else
		{
			shared = (BqAssignShared *) shm_toc_allocate(a->context->toc, nbytes);
			shm_toc_insert(a->context->toc, KEY_ASSIGN, shared);
		}
	}
	if (shared == NULL)
	{
		nbytes = MAXALIGN(sizeof(BqAssignShared)) +
			place_arrays(a, capacity, nlists, false, NULL);
		shared = (BqAssignShared *) MemoryContextAllocHuge(CurrentMemoryContext, nbytes);
	}
	memset(shared, 0, sizeof(BqAssignShared));
	a->shared = shared;
	shared->dim = dim;
	shared->capacity = capacity;
	shared->nlists = nlists;
	pg_atomic_init_u32(&shared->next_chunk, 0);
	SpinLockInit(&shared->mutex);
	ConditionVariableInit(&shared->changed);
	place_arrays(a, capacity, nlists, a->context != NULL,
				 (char *) shared + MAXALIGN(sizeof(BqAssignShared)));

	if (a->context == NULL)
		a->planes = rows->planes;
	else
	{
		if (rows->n > 0)
		{
			memcpy(a->planes, rows->planes, rows->n * bq_planes_nbytes(dim));
			pfree(rows->planes);
		}
		rows->planes = a->planes;
		LaunchParallelWorkers(a->context);
		ereport(DEBUG1,
				(errmsg_internal("bq: %d of %d parallel workers assign codes in %zu bytes",
								 a->context->nworkers_launched, nworkers, nbytes)));
	}
	return a;
}

/* Let rows be compared with these directions, of the lists or of the cells. */
void
bq_make_tables(BqAssigner *a, bool of_cells, const BqCentroids *centroids)
{
	BqTables   *tables = of_cells ? &a->cell_tables : &a->list_tables;
	size_t		block_nbytes = bq_block_nbytes(a->dim);

	tables->n = centroids->nlists;
	for (uint32 list = 0; list < centroids->nlists; list++)
	{
		CHECK_FOR_INTERRUPTS();
		bq_lut_query(centroids->values + (size_t) list * a->dim, a->dim,
					 tables->entries + list * block_nbytes, &tables->scale[list],
					 &tables->bias[list]);
	}
}

/*
 * Nearest list, or cell, of the rows items[0 .. n), into lists[].  With cells, only the
 * candidates of a row's cell are looked at, and rows of one cell lie together: those of
 * cell k from cell_start[k] to cell_start[k + 1].
 */
void
bq_assign(BqAssigner *a, bool to_cells, size_t n, const BqCells *cells)
{
	BqAssignShared *shared = a->shared;
	uint32		ncells = cells != NULL ? cells->ncells : 1;

	shared->to_cells = to_cells;
	shared->all = cells == NULL;
	shared->ncandidates = cells != NULL ? cells->ncandidates :
		to_cells ? a->cell_tables.n : a->list_tables.n;
	shared->nchunks = 0;
	for (uint32 cell = 0; cell < ncells; cell++)
	{
		size_t		start = cells != NULL ? cells->start[cell] : 0;
		size_t		end = cells != NULL ? cells->start[cell + 1] : n;

		for (; start < end; start += TILE_ROWS)
		{
			Chunk	   *chunk = &a->chunks[shared->nchunks++];

			chunk->start = start;
			chunk->n = (uint32) Min(end - start, TILE_ROWS);
			chunk->cell = cell;
		}
	}
	pg_atomic_write_u32(&shared->next_chunk, 0);
	if (a->reports)
		pgstat_progress_update_param(PROGRESS_CREATEIDX_TUPLES_TOTAL, (int64) n);
	if (a->context == NULL)
	{
		work_chunks(a);
		return;
	}

	SpinLockAcquire(&shared->mutex);
	shared->round++;
	shared->open = true;
	SpinLockRelease(&shared->mutex);
	ConditionVariableBroadcast(&shared->changed);

	work_chunks(a);

	SpinLockAcquire(&shared->mutex);
	shared->open = false;
	SpinLockRelease(&shared->mutex);
	ConditionVariablePrepareToSleep(&shared->changed);
	for (;;)
	{
		int			nactive;

		SpinLockAcquire(&shared->mutex);
		nactive = shared->nactive;
		SpinLockRelease(&shared->mutex);
		if (nactive == 0)
			break;
		ConditionVariableSleep(&shared->changed, WAIT_EVENT_PARALLEL_FINISH);
	}
	ConditionVariableCancelSleep();
}

/* Let the workers go.  The codes of `rows` go with the shared memory. */
void
bq_end_assigning(BqAssigner *a)
{
	if (a->context != NULL)
	{
		SpinLockAcquire(&a->shared->mutex);
		a->shared->finished = true;
		SpinLockRelease(&a->shared->mutex);
		ConditionVariableBroadcast(&a->shared->changed);
		WaitForParallelWorkersToFinish(a->context);
		DestroyParallelContext(a->context);
		ExitParallelMode();
		a->rows->planes = NULL;
		a->rows->n = a->rows->capacity = 0;
	}
	else
		pfree(a->shared);
	pfree(a);
}

/*
 * The workers' side
 */

void
bq_assign_main(dsm_segment *seg, shm_toc *toc)
{
	BqAssigner	a = {0};
	BqAssignShared *shared = (BqAssignShared *) shm_toc_lookup(toc, KEY_ASSIGN, false);
	uint64		round = 0;

	a.shared = shared;
	a.dim = shared->dim;
	place_arrays(&a, shared->capacity, shared->nlists, true,
				 (char *) shared + MAXALIGN(sizeof(BqAssignShared)));

	ConditionVariablePrepareToSleep(&shared->changed);
	for (;;)
	{
		bool		finished;
		bool		joined = false;

		SpinLockAcquire(&shared->mutex);
		finished = shared->finished;
		if (shared->open && shared->round != round)
		{
			joined = true;
			round = shared->round;
			shared->nactive++;
		}
		SpinLockRelease(&shared->mutex);

		if (finished)
			break;
		if (!joined)
		{
			ConditionVariableSleep(&shared->changed, WAIT_EVENT_PARALLEL_CREATE_INDEX_SCAN);
			continue;
		}
		work_chunks(&a);
		SpinLockAcquire(&shared->mutex);
		shared->nactive--;
		SpinLockRelease(&shared->mutex);
		ConditionVariableBroadcast(&shared->changed);
	}
	ConditionVariableCancelSleep();
}
