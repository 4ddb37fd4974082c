/*
 * bqbuild.c: CREATE INDEX.
 *
 * One pass over the table collects the codes.  If they fit maintenance_work_mem, they
 * are clustered, assigned and written from memory.  If not, what fits is kept as a
 * random sample; lists are trained on it, and a second pass assigns all rows and
 * brings them into list order through a tuplesort.
 */
#include "postgres.h"

#include "access/tableam.h"
#include "access/xloginsert.h"
#include "catalog/index.h"
#include "catalog/pg_operator_d.h"
#include "catalog/pg_type_d.h"
#include "commands/progress.h"
#include "common/pg_prng.h"
#include "executor/tuptable.h"
#include "index/bqbuild.h"
#include "index/bqkey.h"
#include "index/bqsource.h"
#include "miscadmin.h"
#include "optimizer/optimizer.h"
#include "pgstat.h"
#include "utils/backend_progress.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplesort.h"

typedef struct BuildState
{
	Relation	heap;
	Relation	index;
	IndexInfo  *info;
	BqLayout	layout;			/* dim and transform from the start, the rest before writing */
	bool		any_alive;		/* a row that is not dead decided the transform */
	BqForm	   *form;			/* of an index on vectors, else NULL */
	BqChoice	choice;			/* of its transform */
	MemoryContext row_context;	/* emptied after each row */
	double		ntuples;		/* rows indexed */
	int			nworkers;		/* that help, besides the leader */
	BqRows		rows;			/* what is in memory */
	size_t		limit;			/* rows that maintenance_work_mem allows */
	bool		sampled;		/* memory holds a sample, not all rows */
	pg_prng_state random;

	/* second pass */
	BqAssigner *assigner;		/* NULL: one list */
	const BqClusters *clusters;
	Tuplesortstate *sort;
	TupleTableSlot *slot;
} BuildState;

/* Rows of a phase are counted from 0; training and assigning count those of each round. */
static void
report_phase(int phase, double nrows)
{
	const int	params[] = {PROGRESS_CREATEIDX_SUBPHASE, PROGRESS_CREATEIDX_TUPLES_TOTAL,
	PROGRESS_CREATEIDX_TUPLES_DONE};
	const int64 values[] = {phase, (int64) nrows, 0};

	pgstat_progress_update_multi_param(lengthof(params), params, values);
}

/*
 * Is a row for the index?  All of its codes have one transform, that of the first row
 * which is alive.
 *
 * A recently dead row of another transform, from before all codes were encoded anew, is
 * left out.  A transaction that still sees it must not use the index: that is what
 * ii_BrokenHotChain achieves (pg_index.indcheckxmin, as for broken HOT chains).
 */
static bool
belongs(BuildState *state, const BqHeader *header, bool alive)
{
	BqLayout   *layout = &state->layout;

	if (!alive && layout->transform >= 0 && header->transform != layout->transform)
	{
		state->info->ii_BrokenHotChain = true;
		return false;
	}
	if (alive && !state->any_alive)
	{
		/* only dead rows so far */
		if (layout->transform >= 0 && header->transform != layout->transform)
		{
			state->info->ii_BrokenHotChain = true;
			state->rows.n = 0;
			state->ntuples = 0;
			state->sampled = false;
		}
		state->any_alive = true;
		layout->transform = header->transform;
	}
	if (layout->transform < 0)
		layout->transform = header->transform;
	bq_check_code(state->index, layout, header);
	return true;
}

static void
count_row(BuildState *state)
{
	state->ntuples++;
	pgstat_progress_update_param(PROGRESS_CREATEIDX_TUPLES_DONE, (int64) state->ntuples);
}

/* What to do with each row of the table. */
typedef void (*RowConsumer) (BuildState *state, const BqRow *row);

/* Make a row of an indexed value and hand it on, if it belongs into the index. */
static void
consume_value(BuildState *state, ItemPointer tid, Datum *values, bool *isnull, bool alive,
			  RowConsumer consume)
{
	MemoryContext old_context;
	BqRow		row;
	bool		belonging;

	if (isnull[0])
		return;
	old_context = MemoryContextSwitchTo(state->row_context);
	if (state->form != NULL)
		belonging = bq_form_vector(state->form, values[0], tid, &row);
	else
	{
		BqHeader	header = bq_form_code(values[0], tid, &row);

		belonging = belongs(state, &header, alive);
	}
	MemoryContextSwitchTo(old_context);
	if (belonging)
	{
		bq_make_keys(state->index, values, isnull, &row);
		count_row(state);
		consume(state, &row);
	}
	MemoryContextReset(state->row_context);
}

/* First pass: keep all rows, or a uniform sample of them (Vitter's algorithm R). */
static void
keep_row(BuildState *state, const BqRow *row)
{
	BqRows	   *rows = &state->rows;
	int			dim = state->layout.dim;

	if (rows->n == rows->capacity && rows->capacity < state->limit)
		bq_grow_rows(rows, dim, state->limit);
	if (rows->n < rows->capacity)
		bq_put_row(rows, rows->n++, dim, row);
	else
	{
		uint64		i = pg_prng_uint64_range(&state->random, 0, (uint64) state->ntuples - 1);

		state->sampled = true;
		if (i < rows->n)
			bq_put_row(rows, i, dim, row);
	}
}

static void
collect_row(Relation index, ItemPointer tid, Datum *values, bool *isnull, bool alive, void *arg)
{
	(void) index;
	consume_value((BuildState *) arg, tid, values, isnull, alive, keep_row);
}

/*
 * Codes move to shared memory if workers help, and are there twice meanwhile.  If that is
 * too much for all rows, do without workers: a second pass would cost more than they save.
 * Of a sample, keep a random part, that leaves room for `nlists` lists: with few rows in
 * memory these are more than those rows alone would have.
 */
static void
make_room(BuildState *state, uint32 nlists)
{
	int			dim = state->layout.dim;
	size_t		planes_nbytes = bq_planes_nbytes(dim);
	size_t		limit = bq_rows_limit(dim, state->rows.nkeys, maintenance_work_mem,
									  state->nworkers > 0, state->sampled ? nlists : 0);
	BqRows	   *rows = &state->rows;
	uint8	   *swap;

	if (rows->n == 0 || (state->nworkers == 0 && !state->sampled))
		return;
	if (rows->n <= limit)
	{
		/* of shared memory all is taken at once, also for rows that never come */
		bq_shrink_rows(rows, dim, rows->n, false);
		return;
	}
	if (!state->sampled)
	{
		state->nworkers = 0;
		return;
	}
	swap = (uint8 *) palloc(planes_nbytes);
	for (size_t i = 0; i < limit; i++)
	{
		size_t		k = pg_prng_uint64_range(&state->random, i, rows->n - 1);
		uint8	   *planes = rows->planes + i * planes_nbytes;
		uint8	   *other = rows->planes + k * planes_nbytes;
		float		norm = rows->norms[i];
		uint16		inverse = rows->inverses[i];
		ItemPointerData tid = rows->tids[i];

		/* not the keys: nobody asks for those of a sample */
		memcpy(swap, planes, planes_nbytes);
		memmove(planes, other, planes_nbytes);
		memcpy(other, swap, planes_nbytes);
		rows->norms[i] = rows->norms[k];
		rows->norms[k] = norm;
		rows->inverses[i] = rows->inverses[k];
		rows->inverses[k] = inverse;
		rows->tids[i] = rows->tids[k];
		rows->tids[k] = tid;
	}
	pfree(swap);
	bq_shrink_rows(rows, dim, limit, false);
}

/* Second pass: assign what has been gathered in memory and hand it to the sort. */
static void
sort_batch(BuildState *state)
{
	BqRows	   *rows = &state->rows;
	size_t		planes_nbytes = bq_planes_nbytes(state->layout.dim);
	/* a row, its code behind it */
	bytea	   *packed = (bytea *) palloc(VARHDRSZ + sizeof(BqRow) + planes_nbytes);
	const uint32 *lists = NULL;

	if (state->assigner != NULL)
		lists = bq_assign_rows(state->assigner, state->clusters);
	SET_VARSIZE(packed, VARHDRSZ + sizeof(BqRow) + planes_nbytes);
	for (size_t i = 0; i < rows->n; i++)
	{
		BqRow		row = bq_get_row(rows, i, state->layout.dim);

		ExecClearTuple(state->slot);
		memset(state->slot->tts_isnull, false, 2 * sizeof(bool));
		memcpy(VARDATA(packed), &row, sizeof(BqRow));
		memcpy(VARDATA(packed) + sizeof(BqRow), row.planes, planes_nbytes);
		state->slot->tts_values[0] = Int32GetDatum(lists != NULL ? (int32) lists[i] : 0);
		state->slot->tts_values[1] = PointerGetDatum(packed);
		ExecStoreVirtualTuple(state->slot);
		tuplesort_puttupleslot(state->sort, state->slot);
	}
	pfree(packed);
	rows->n = 0;
}

static void
batch_row(BuildState *state, const BqRow *row)
{
	bq_put_row(&state->rows, state->rows.n++, state->layout.dim, row);
	if (state->rows.n == state->rows.capacity)
		sort_batch(state);
}

static void
sort_row(Relation index, ItemPointer tid, Datum *values, bool *isnull, bool alive, void *arg)
{
	(void) index;
	consume_value((BuildState *) arg, tid, values, isnull, alive, batch_row);
}

/* Read the table again and write its rows by way of a sort; returns the number of blocks. */
static uint32
write_sorted(BuildState *state)
{
	TupleDesc	desc = CreateTemplateTupleDesc(2);
	AttrNumber	column = 1;
	size_t		lists_nbytes = bq_lists_nbytes(state->layout.dim, state->layout.nlists);
	int			sort_kb = (int) (maintenance_work_mem - Min(lists_nbytes / 1024,
															(size_t) maintenance_work_mem / 2)) / 2;
	Oid			less = Int4LessOperator;
	Oid			collation = InvalidOid;
	bool		nulls_first = false;
	BqWriter   *writer = bq_begin_writing(state->index, &state->layout);
	TupleTableSlot *slot;

	TupleDescInitEntry(desc, 1, "list", INT4OID, -1, 0);
	TupleDescInitEntry(desc, 2, "row", BYTEAOID, -1, 0);

	state->sort = tuplesort_begin_heap(desc, 1, &column, &less, &collation, &nulls_first,
									   Max(sort_kb, 64), NULL, TUPLESORT_NONE);
	state->slot = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);
	state->ntuples = 0;
	state->rows.n = 0;
	/* half of the memory is the sort's now */
	bq_shrink_rows(&state->rows, state->layout.dim, Max(state->rows.capacity / 2, 1),
				   state->assigner != NULL && state->assigner->context != NULL);
	if (state->assigner != NULL)
		state->assigner->planes = state->rows.planes;
	table_index_build_scan(state->heap, state->index, state->info, false, false, sort_row,
						   state, NULL);
	sort_batch(state);
	tuplesort_performsort(state->sort);

	report_phase(BQ_PHASE_WRITE, state->ntuples);
	slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	while (tuplesort_gettupleslot(state->sort, true, false, slot, NULL))
	{
		bool		isnull;
		uint32		list = (uint32) DatumGetInt32(slot_getattr(slot, 1, &isnull));
		const char *packed = VARDATA_ANY((struct varlena *)
										 DatumGetPointer(slot_getattr(slot, 2, &isnull)));
		BqRow		row;

		memcpy(&row, packed, sizeof(BqRow));
		row.planes = (const uint8 *) packed + sizeof(BqRow);
		bq_write_row(writer, list, &row);
	}
	ExecDropSingleTupleTableSlot(slot);
	ExecDropSingleTupleTableSlot(state->slot);
	tuplesort_end(state->sort);
	return bq_end_writing(writer);
}

/* All rows are in memory: train, assign, write.  Returns the number of blocks. */
static uint32
write_lists_once(BuildState *state)
{
	BqLayout   *layout = &state->layout;
	BqRows	   *rows = &state->rows;
	const uint32 *lists = NULL;
	BqWriter   *writer;
	uint32		nblocks;

	if (layout->nlists > 1)
	{
		BqClusters	clusters;

		report_phase(BQ_PHASE_TRAIN, 0);
		state->assigner = bq_begin_assigning(layout->dim, rows, layout->nlists, state->nworkers);
		state->assigner->reports = true;
		clusters = bq_train(state->assigner, layout->nlists);
		bq_write_centroids(state->index, layout, &clusters.lists);
		report_phase(BQ_PHASE_ASSIGN, (double) state->rows.n);
		lists = bq_assign_rows(state->assigner, &clusters);
		bq_measure(state->heap, state->index, &clusters.lists, rows, lists, (double) rows->n, layout);
		bq_free_clusters(&clusters);
	}
	else if (rows->n > 0)
		bq_measure(state->heap, state->index, NULL, rows, NULL, (double) rows->n, layout);
	report_phase(BQ_PHASE_WRITE, state->ntuples);
	writer = bq_begin_writing(state->index, layout);
	bq_write_rows(writer, rows, lists);
	nblocks = bq_end_writing(writer);
	if (state->assigner != NULL)
		bq_end_assigning(state->assigner);
	return nblocks;
}

/* Not all rows fit memory: lists from the sample, then a second pass. */
static uint32
write_lists_twice(BuildState *state)
{
	BqLayout   *layout = &state->layout;
	const uint32 *lists;
	BqClusters	clusters;
	uint32		nblocks;

	if (layout->nlists == 1)
		return write_sorted(state);

	report_phase(BQ_PHASE_TRAIN, 0);
	state->assigner = bq_begin_assigning(layout->dim, &state->rows, layout->nlists,
										 state->nworkers);
	state->assigner->reports = true;
	clusters = bq_train(state->assigner, layout->nlists);
	bq_write_centroids(state->index, layout, &clusters.lists);
	report_phase(BQ_PHASE_ASSIGN, (double) state->rows.n);
	lists = bq_assign_rows(state->assigner, &clusters);
	bq_measure(state->heap, state->index, &clusters.lists, &state->rows, lists, state->ntuples,
			   layout);
	state->clusters = &clusters;
	nblocks = write_sorted(state);
	state->clusters = NULL;
	bq_end_assigning(state->assigner);
	return nblocks;
}

/* Workers that may help: by the size of the table, its options, and settings. */
static int
count_workers(Relation heap, Relation index, IndexInfo *info)
{
#if PG_VERSION_NUM >= 170000
	return info->ii_ParallelWorkers;
#else
	/* the server asks for B-trees only */
	return plan_create_index_workers(RelationGetRelid(heap), RelationGetRelid(index));
#endif
}

IndexBuildResult *
bqbuild(Relation heap, Relation index, IndexInfo *info)
{
	IndexBuildResult *result = (IndexBuildResult *) palloc0(sizeof(IndexBuildResult));
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "bq build",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	BuildState *state = (BuildState *) palloc0(sizeof(BuildState));
	int			dim = bq_column_dim(index);
	int			transform;
	uint32		nlists;
	uint32		nblocks;
	Buffer		buffer;
	BqMetaPage	meta;

	if (RelationGetNumberOfBlocks(index) != 0)
		elog(ERROR, "index \"%s\" already contains data", RelationGetRelationName(index));
	/* now, and not at the first row */
	for (int i = 0; i < bq_count_keys(index); i++)
		(void) bq_get_key_type(index, i);
	/*
	 * bq_measure() fetches rows: those of a table that this command has rewritten, or that came
	 * after the transaction's snapshot, are not seen by the snapshot it began with.
	 */
	PushActiveSnapshot(GetLatestSnapshot());
	state->heap = heap;
	state->index = index;
	state->info = info;
	state->layout.dim = dim;
	state->layout.transform = bq_transform_without_rows(index);
	state->rows.nkeys = bq_count_keys(index);
	state->nworkers = count_workers(heap, index, info);
	state->limit = bq_rows_limit(dim, state->rows.nkeys, maintenance_work_mem, false, 0);
	/* Fixed seed: the same rows give the same index. */
	pg_prng_seed(&state->random, 0x6271);

	state->row_context = AllocSetContextCreate(context, "bq row", ALLOCSET_DEFAULT_SIZES);
	if (bq_get_source(index) != NULL)
	{
		state->choice = bq_choose_transform(heap, index, info, dim);
		state->layout.transform = state->choice.transform;
		state->form = bq_begin_forming(index, dim, state->choice.transform);
	}

	report_phase(BQ_PHASE_LOAD, Max(heap->rd_rel->reltuples, 0));
	result->heap_tuples = table_index_build_scan(heap, index, info, true, true, collect_row,
												 state, NULL);
	result->index_tuples = state->ntuples;

	nlists = bq_choose_lists(index, state->ntuples);
	make_room(state, nlists);
	if (state->sampled)
		nlists = Min(nlists, (uint32) (state->rows.n / 2));
	transform = state->layout.transform;
	state->layout = bq_plan_layout(dim, state->rows.nkeys, nlists);
	state->layout.transform = transform;

	UnlockReleaseBuffer(bq_new_page(index, MAIN_FORKNUM, BQ_METAPAGE_BLKNO, BQ_PAGE_META));
	if (state->choice.statistics != NULL)
	{
		state->layout.data_start += bq_count_statistics_pages(dim);
		bq_write_statistics(index, state->choice.statistics);
	}
	bq_create_lists(index, MAIN_FORKNUM, &state->layout);
	if (state->sampled)
		nblocks = write_lists_twice(state);
	else
		nblocks = write_lists_once(state);

	buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META, BUFFER_LOCK_EXCLUSIVE);
	bq_fill_metapage(BufferGetPage(buffer), &state->layout, nblocks, state->ntuples);
	meta = BqPageGetMeta(BufferGetPage(buffer));
	meta->choice = state->choice.reason;
	if (state->choice.statistics != NULL)
	{
		meta->sample_rows = (uint32) state->choice.statistics->count;
		meta->searches = state->choice.statistics->searches;
	}
	MarkBufferDirty(buffer);
	UnlockReleaseBuffer(buffer);
	if (RelationNeedsWAL(index))
		log_newpage_range(index, MAIN_FORKNUM, 0, RelationGetNumberOfBlocks(index), true);

	PopActiveSnapshot();
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
	return result;
}

/* The init fork of an unlogged index: an empty one. */
void
bqbuildempty(Relation index)
{
	BqLayout	layout = bq_plan_layout(bq_column_dim(index), bq_count_keys(index), 1);
	Buffer		buffer = bq_new_page(index, INIT_FORKNUM, BQ_METAPAGE_BLKNO, BQ_PAGE_META);

	layout.transform = bq_transform_without_rows(index);
	bq_fill_metapage(BufferGetPage(buffer), &layout, layout.nblocks, 0);
	UnlockReleaseBuffer(buffer);
	bq_create_lists(index, INIT_FORKNUM, &layout);
	log_newpage_range(index, INIT_FORKNUM, 0, bq_data_end(&layout, layout.nblocks), true);
}
