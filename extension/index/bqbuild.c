/*
 * bqbuild.c: CREATE INDEX.
 *
 * One pass over the table collects the codes.  If they fit maintenance_work_mem, they
 * are clustered, assigned and written from memory.  If not, what fits is kept as a
 * random sample; lists are trained on it, and a second pass assigns all rows and
 * brings them into list order through a tuplesort.
 *
 * Nobody else can see the index yet, so pages are written without WAL and logged
 * whole at the end.
 */
#include "postgres.h"

#include <math.h>

#include "access/tableam.h"
#include "access/xloginsert.h"
#include "catalog/index.h"
#include "catalog/pg_operator_d.h"
#include "catalog/pg_type_d.h"
#include "commands/progress.h"
#include "common/pg_prng.h"
#include "executor/tuptable.h"
#include "index/bqindex.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "type/bqvec.h"
#include "utils/memutils.h"
#include "utils/tuplesort.h"

/* Rows per list to train on. */
#define TRAIN_ROWS_PER_LIST 64

typedef struct BuildState
{
	Relation	heap;
	Relation	index;
	IndexInfo  *info;
	int			dim;
	int			transform;		/* of the rows; -1 before the first */
	double		ntuples;		/* rows indexed */

	/* rows in memory */
	size_t		nrows;
	size_t		capacity;
	size_t		limit;			/* what maintenance_work_mem allows */
	uint8	   *planes;
	float	   *norms;
	ItemPointerData *tids;
	bool		sampled;		/* memory holds a sample, not all rows */
	pg_prng_state random;

	/* second pass */
	const BqCentroids *centroids;
	Tuplesortstate *sort;
	TupleTableSlot *slot;

	/* output */
	BqLayout	layout;
	uint32		nblocks;
	BqListData *lists;
	uint8	   *block_rows;		/* the block being filled */
	BqBlockData block;
	int			block_used;
} BuildState;

/*
 * Rows in memory
 */

static void
grow_memory(BuildState *state)
{
	size_t		capacity = Min(state->limit, Max(state->capacity * 2, 1024));

	if (state->planes == NULL)
	{
		state->planes = (uint8 *) MemoryContextAllocHuge(CurrentMemoryContext,
														 capacity * bq_planes_nbytes(state->dim));
		state->norms = (float *) MemoryContextAllocHuge(CurrentMemoryContext,
														capacity * sizeof(float));
		state->tids = (ItemPointerData *) MemoryContextAllocHuge(CurrentMemoryContext,
																 capacity * sizeof(ItemPointerData));
	}
	else
	{
		state->planes = (uint8 *) repalloc_huge(state->planes,
												capacity * bq_planes_nbytes(state->dim));
		state->norms = (float *) repalloc_huge(state->norms, capacity * sizeof(float));
		state->tids = (ItemPointerData *) repalloc_huge(state->tids,
														capacity * sizeof(ItemPointerData));
	}
	state->capacity = capacity;
}

static void
put_row(BuildState *state, size_t i, ItemPointer tid, const BqVecView *code)
{
	memcpy(state->planes + i * bq_planes_nbytes(state->dim), code->planes,
		   bq_planes_nbytes(state->dim));
	state->norms[i] = code->header.norm;
	state->tids[i] = *tid;
}

static BqVecView
check_row(BuildState *state, struct varlena *value)
{
	BqVecView	code = bqvec_view(value);

	state->layout.transform = state->transform;
	bq_check_code(state->index, &state->layout, &code.header);
	state->transform = code.header.transform;
	return code;
}

/* First pass: keep all rows, or a uniform sample of them (Vitter's algorithm R). */
static void
collect_row(Relation index, ItemPointer tid, Datum *values, bool *isnull, bool alive, void *arg)
{
	BuildState *state = (BuildState *) arg;
	struct varlena *value;
	BqVecView	code;

	if (isnull[0])
		return;
	value = PG_DETOAST_DATUM_PACKED(values[0]);
	code = check_row(state, value);
	state->ntuples++;

	if (state->nrows == state->capacity && state->capacity < state->limit)
		grow_memory(state);
	if (state->nrows < state->capacity)
		put_row(state, state->nrows++, tid, &code);
	else
	{
		uint64		i = pg_prng_uint64_range(&state->random, 0, (uint64) state->ntuples - 1);

		state->sampled = true;
		if (i < state->nrows)
			put_row(state, i, tid, &code);
	}
	if ((Pointer) value != DatumGetPointer(values[0]))
		pfree(value);
	pgstat_progress_update_param(PROGRESS_CREATEIDX_TUPLES_DONE, (int64) state->ntuples);
}

/*
 * Output, rows arriving in list order
 */

/* Write the block being filled; `more`: the next row belongs to the same list. */
static void
flush_block(BuildState *state, bool more)
{
	const BqLayout *layout = &state->layout;
	uint32		b = state->nblocks;
	BqListData *list = &state->lists[state->block.list];
	uint64		row = bq_first_row(layout, b);
	Buffer		buffer;

	if (state->block_used == 0)
		return;
	if (b == BQ_NO_BLOCK - 1)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("bq index cannot have more than %u blocks", BQ_NO_BLOCK - 1),
				 errhint("Partition the table.")));
	bq_extend(state->index, bq_data_end(layout, b), bq_data_end(layout, b + 1), false);

	for (int j = 0; j < layout->nrows;)
	{
		int			n = Min(layout->nrows - j,
							BQ_ROWS_PER_PAGE - (int) ((row + j) % BQ_ROWS_PER_PAGE));

		buffer = bq_read_page(state->index, bq_code_page(layout, row + j), BQ_PAGE_DATA,
							  BUFFER_LOCK_EXCLUSIVE);
		memcpy(BqPageGetRow(BufferGetPage(buffer), row + j),
			   state->block_rows + j * BQ_ROW_NBYTES, n * BQ_ROW_NBYTES);
		MarkBufferDirty(buffer);
		UnlockReleaseBuffer(buffer);
		j += n;
	}

	/* Blocks of a list lie in a row; only the last one can have free slots. */
	state->block.next = more ? b + 1 : BQ_NO_BLOCK;
	state->block.next_free = BQ_NO_BLOCK;
	state->block.live = state->block_used == BQ_BLOCK ? UINT32_MAX :
		((uint32) 1 << state->block_used) - 1;
	state->block.in_free_chain = state->block_used < BQ_BLOCK;
	buffer = bq_read_page(state->index, bq_header_page(layout, b), BQ_PAGE_DATA,
						  BUFFER_LOCK_EXCLUSIVE);
	*BqPageGetBlock(BufferGetPage(buffer), b) = state->block;
	MarkBufferDirty(buffer);
	UnlockReleaseBuffer(buffer);

	if (list->head == BQ_NO_BLOCK)
		list->head = b;
	list->nblocks++;
	if (state->block_used < BQ_BLOCK)
		list->free = b;
	state->nblocks++;
	state->block_used = 0;
	memset(state->block_rows, 0, bq_block_nbytes(layout->dim));
	memset(&state->block, 0, sizeof(BqBlockData));
}

static void
write_row(BuildState *state, uint32 list, ItemPointer tid, float norm, const uint8 *planes)
{
	if (state->block_used > 0 && (state->block.list != list || state->block_used == BQ_BLOCK))
	{
		CHECK_FOR_INTERRUPTS();
		flush_block(state, state->block.list == list);
	}
	state->block.list = list;
	state->block.tid[state->block_used] = *tid;
	state->block.norm[state->block_used] = norm;
	state->block.inverse[state->block_used] = bq_inverse_pack(planes, state->dim, norm);
	bq_block_put(state->block_rows, state->dim, state->block_used, planes);
	state->block_used++;
}

/* All rows are in memory: bring them into list order by counting. */
static void
write_from_memory(BuildState *state, const uint32 *lists)
{
	size_t	   *start = (size_t *) palloc0(((size_t) state->layout.nlists + 1) * sizeof(size_t));
	size_t	   *order = (size_t *) MemoryContextAllocHuge(CurrentMemoryContext,
														  (state->nrows + 1) * sizeof(size_t));

	for (size_t i = 0; i < state->nrows; i++)
		start[lists[i] + 1]++;
	for (uint32 list = 0; list < state->layout.nlists; list++)
		start[list + 1] += start[list];
	for (size_t i = 0; i < state->nrows; i++)
		order[start[lists[i]]++] = i;
	for (size_t k = 0; k < state->nrows; k++)
	{
		size_t		i = order[k];

		write_row(state, lists[i], &state->tids[i], state->norms[i],
				  state->planes + i * bq_planes_nbytes(state->dim));
	}
	flush_block(state, false);
	pfree(order);
	pfree(start);
}

/* Second pass: assign what has been gathered in memory and hand it to the sort. */
static void
sort_batch(BuildState *state)
{
	size_t		planes_nbytes = bq_planes_nbytes(state->dim);
	uint32	   *lists = (uint32 *) MemoryContextAllocHuge(CurrentMemoryContext,
														  (state->nrows + 1) * sizeof(uint32));
	bytea	   *planes = (bytea *) palloc(VARHDRSZ + planes_nbytes);

	if (state->centroids != NULL)
		bq_assign(state->centroids, state->planes, state->nrows, lists);
	else
		memset(lists, 0, state->nrows * sizeof(uint32));
	SET_VARSIZE(planes, VARHDRSZ + planes_nbytes);
	for (size_t i = 0; i < state->nrows; i++)
	{
		ExecClearTuple(state->slot);
		memset(state->slot->tts_isnull, false, 4 * sizeof(bool));
		memcpy(VARDATA(planes), state->planes + i * planes_nbytes, planes_nbytes);
		state->slot->tts_values[0] = Int32GetDatum((int32) lists[i]);
		state->slot->tts_values[1] = PointerGetDatum(&state->tids[i]);
		state->slot->tts_values[2] = Float4GetDatum(state->norms[i]);
		state->slot->tts_values[3] = PointerGetDatum(planes);
		ExecStoreVirtualTuple(state->slot);
		tuplesort_puttupleslot(state->sort, state->slot);
	}
	pfree(planes);
	pfree(lists);
	state->nrows = 0;
}

static void
sort_row(Relation index, ItemPointer tid, Datum *values, bool *isnull, bool alive, void *arg)
{
	BuildState *state = (BuildState *) arg;
	struct varlena *value;
	BqVecView	code;

	if (isnull[0])
		return;
	value = PG_DETOAST_DATUM_PACKED(values[0]);
	code = check_row(state, value);
	state->ntuples++;
	put_row(state, state->nrows++, tid, &code);
	if (state->nrows == state->capacity)
		sort_batch(state);
	if ((Pointer) value != DatumGetPointer(values[0]))
		pfree(value);
	pgstat_progress_update_param(PROGRESS_CREATEIDX_TUPLES_DONE, (int64) state->ntuples);
}

static void
write_sorted(BuildState *state)
{
	TupleDesc	desc = CreateTemplateTupleDesc(4);
	AttrNumber	column = 1;
	Oid			less = Int4LessOperator;
	Oid			collation = InvalidOid;
	bool		nulls_first = false;
	TupleTableSlot *slot;

	TupleDescInitEntry(desc, 1, "list", INT4OID, -1, 0);
	TupleDescInitEntry(desc, 2, "tid", TIDOID, -1, 0);
	TupleDescInitEntry(desc, 3, "norm", FLOAT4OID, -1, 0);
	TupleDescInitEntry(desc, 4, "planes", BYTEAOID, -1, 0);
#if PG_VERSION_NUM >= 190000
	TupleDescFinalize(desc);
#endif

	state->sort = tuplesort_begin_heap(desc, 1, &column, &less, &collation, &nulls_first,
									   maintenance_work_mem / 2, NULL, TUPLESORT_NONE);
	state->slot = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);
	state->ntuples = 0;
	state->nrows = 0;
	/* half of the memory is the sort's now */
	state->capacity = Max(state->capacity / 2, 1);
	table_index_build_scan(state->heap, state->index, state->info, false, false, sort_row,
						   state, NULL);
	sort_batch(state);
	tuplesort_performsort(state->sort);

	slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	while (tuplesort_gettupleslot(state->sort, true, false, slot, NULL))
	{
		bool		isnull;
		uint32		list = (uint32) DatumGetInt32(slot_getattr(slot, 1, &isnull));
		ItemPointer tid = (ItemPointer) DatumGetPointer(slot_getattr(slot, 2, &isnull));
		float		norm = DatumGetFloat4(slot_getattr(slot, 3, &isnull));
		struct varlena *planes = (struct varlena *) DatumGetPointer(slot_getattr(slot, 4, &isnull));

		write_row(state, list, tid, norm, (const uint8 *) VARDATA_ANY(planes));
	}
	flush_block(state, false);
	ExecDropSingleTupleTableSlot(slot);
	ExecDropSingleTupleTableSlot(state->slot);
	tuplesort_end(state->sort);
}

/*
 * The parts before the data
 */

/*
 * How many lists.  About 200 rows each: then the half block that a list wastes on
 * average, and its centroid, stay below a tenth of the index.  Above 640,000 rows
 * 4 sqrt(n), so that ranking the lists stays cheaper than reading them.
 */
static uint32
choose_lists(Relation index, double nrows)
{
	BqOptions  *options = (BqOptions *) index->rd_options;
	double		lists;

	if (options != NULL && options->lists > 0)
		lists = options->lists;
	else if (nrows < BQ_FLAT_ROWS)
		lists = 1;
	else
		lists = Min(nrows / 200, 4 * sqrt(nrows));
	/* training needs a row for each list */
	return (uint32) Max(1, Min(Min(lists, nrows), BQ_MAX_LISTS));
}

static void
set_layout(BuildState *state, uint32 nlists)
{
	BqLayout   *layout = &state->layout;

	layout->dim = state->dim;
	layout->nrows = bq_block_nrows(state->dim);
	layout->transform = state->transform;
	layout->nlists = nlists;
	layout->nprobes = 1;
	layout->centroid_start = BQ_METAPAGE_BLKNO + 1;
	layout->list_start = layout->centroid_start;
	if (nlists > 1)
		layout->list_start += (nlists + BQ_CENTROIDS_PER_PAGE(state->dim) - 1) /
			BQ_CENTROIDS_PER_PAGE(state->dim);
	layout->data_start = layout->list_start + (nlists + BQ_LISTS_PER_PAGE - 1) / BQ_LISTS_PER_PAGE;
}

static Buffer
new_page(Relation index, ForkNumber fork, BqPageKind kind)
{
	Buffer		buffer = ReadBufferExtended(index, fork, P_NEW, RBM_NORMAL, NULL);

	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	bq_init_page(BufferGetPage(buffer), kind);
	MarkBufferDirty(buffer);
	return buffer;
}

static void
fill_metapage(Page page, const BqLayout *layout, uint32 nblocks, double ntuples)
{
	BqMetaPage	meta = BqPageGetMeta(page);

	meta->magic = BQ_MAGIC;
	meta->version = BQ_VERSION;
	meta->dim = layout->dim;
	meta->transform = layout->transform;
	meta->nlists = layout->nlists;
	meta->nprobes = layout->nprobes;
	meta->centroid_start = layout->centroid_start;
	meta->list_start = layout->list_start;
	meta->data_start = layout->data_start;
	meta->nblocks = nblocks;
	meta->build_rows = ntuples;
}

/* Lay out everything before the data pages, lists still empty. */
static void
create_front_pages(Relation index, ForkNumber fork, const BqLayout *layout)
{
	Buffer		buffer = new_page(index, fork, BQ_PAGE_META);

	fill_metapage(BufferGetPage(buffer), layout, 0, 0);
	UnlockReleaseBuffer(buffer);
	for (BlockNumber blkno = layout->centroid_start; blkno < layout->list_start; blkno++)
		UnlockReleaseBuffer(new_page(index, fork, BQ_PAGE_CENTROIDS));
	for (uint32 list = 0; list < layout->nlists; list += BQ_LISTS_PER_PAGE)
	{
		BqListData *entry;

		buffer = new_page(index, fork, BQ_PAGE_LISTS);
		entry = BqPageGetList(BufferGetPage(buffer), 0);
		for (int i = 0; i < BQ_LISTS_PER_PAGE; i++)
		{
			entry[i].head = BQ_NO_BLOCK;
			entry[i].free = BQ_NO_BLOCK;
		}
		UnlockReleaseBuffer(buffer);
	}
}

static void
write_centroids(Relation index, const BqLayout *layout, const BqCentroids *centroids)
{
	int			per_page = BQ_CENTROIDS_PER_PAGE(layout->dim);

	for (uint32 list = 0; list < layout->nlists;)
	{
		Buffer		buffer = bq_read_page(index, layout->centroid_start + list / per_page,
										  BQ_PAGE_CENTROIDS, BUFFER_LOCK_EXCLUSIVE);
		char	   *record = PageGetContents(BufferGetPage(buffer));

		for (int k = 0; k < per_page && list < layout->nlists; k++, list++)
		{
			const float *direction = centroids->values + (size_t) list * layout->dim;
			BqCentroidData *centroid = (BqCentroidData *) record;
			float		largest = 0;

			for (int i = 0; i < layout->dim; i++)
				largest = Max(largest, fabsf(direction[i]));
			centroid->scale = largest / 127;
			for (int i = 0; i < layout->dim; i++)
				centroid->value[i] = largest > 0 ? (int8) lrintf(direction[i] / centroid->scale) : 0;
			record += BQ_CENTROID_NBYTES(layout->dim);
		}
		MarkBufferDirty(buffer);
		UnlockReleaseBuffer(buffer);
	}
}

static void
write_lists(BuildState *state)
{
	for (uint32 list = 0; list < state->layout.nlists; list++)
	{
		Buffer		buffer = bq_read_page(state->index, bq_list_page(&state->layout, list),
										  BQ_PAGE_LISTS, BUFFER_LOCK_EXCLUSIVE);

		for (; list < state->layout.nlists; list++)
		{
			*BqPageGetList(BufferGetPage(buffer), list) = state->lists[list];
			if ((list + 1) % BQ_LISTS_PER_PAGE == 0)
				break;
		}
		MarkBufferDirty(buffer);
		UnlockReleaseBuffer(buffer);
	}
}

/* Train on a random part of the rows in memory. */
static void
train_lists(BuildState *state, BqCentroids *centroids)
{
	size_t		planes_nbytes = bq_planes_nbytes(state->dim);
	size_t		wanted = Min(state->nrows, (size_t) centroids->nlists * TRAIN_ROWS_PER_LIST);
	uint8	   *sample = (uint8 *) MemoryContextAllocHuge(CurrentMemoryContext,
														  wanted * planes_nbytes);
	size_t		taken = 0;

	/* Selection sampling (Knuth 3.4.2, algorithm S): in order, each row equally likely. */
	for (size_t i = 0; i < state->nrows && taken < wanted; i++)
		if (pg_prng_double(&state->random) * (double) (state->nrows - i) < (double) (wanted - taken))
			memcpy(sample + taken++ * planes_nbytes, state->planes + i * planes_nbytes,
				   planes_nbytes);
	bq_train(centroids, sample, taken);
	pfree(sample);
}

static int
column_dim(Relation index)
{
	int32		typmod = TupleDescAttr(RelationGetDescr(index), 0)->atttypmod;

	if (typmod < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("column does not have dimensions"),
				 errhint("Declare it as bqvec(dim), for example with ALTER TABLE ... ALTER COLUMN ... TYPE bqvec(384).")));
	if (typmod > BQ_INDEX_MAX_DIM)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("column cannot have more than %d dimensions for a bq index",
						BQ_INDEX_MAX_DIM)));
	return typmod;
}

IndexBuildResult *
bqbuild(Relation heap, Relation index, IndexInfo *info)
{
	IndexBuildResult *result = (IndexBuildResult *) palloc0(sizeof(IndexBuildResult));
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "bq build",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	BuildState *state = (BuildState *) palloc0(sizeof(BuildState));
	uint32		nlists;
	uint32	   *lists = NULL;
	BqCentroids centroids;
	Buffer		buffer;

	state->heap = heap;
	state->index = index;
	state->info = info;
	state->dim = column_dim(index);
	state->transform = -1;
	state->layout.dim = state->dim;
	/* per row: code, norm, position, list, place in the order */
	state->limit = Max((size_t) maintenance_work_mem * 1024 /
					   (bq_planes_nbytes(state->dim) + sizeof(float) + sizeof(ItemPointerData) +
						sizeof(uint32) + sizeof(size_t)), 1024);
	pg_prng_seed(&state->random, 0x6271);

	pgstat_progress_update_param(PROGRESS_CREATEIDX_SUBPHASE, BQ_PHASE_LOAD);
	result->heap_tuples = table_index_build_scan(heap, index, info, true, true, collect_row,
												 state, NULL);
	result->index_tuples = state->ntuples;

	nlists = choose_lists(index, (double) Min((double) state->nrows, state->ntuples));
	if (state->sampled)
		nlists = Min(choose_lists(index, state->ntuples), (uint32) (state->nrows / 2));
	set_layout(state, nlists);
	state->lists = (BqListData *) MemoryContextAllocZero(context, nlists * sizeof(BqListData));
	for (uint32 list = 0; list < nlists; list++)
	{
		state->lists[list].head = BQ_NO_BLOCK;
		state->lists[list].free = BQ_NO_BLOCK;
	}
	state->block_rows = (uint8 *) palloc0(bq_block_nbytes(state->dim));

	create_front_pages(index, MAIN_FORKNUM, &state->layout);

	if (nlists > 1)
	{
		centroids.nlists = nlists;
		centroids.dim = state->dim;
		centroids.values = (float *) MemoryContextAllocHuge(context, (size_t) nlists * state->dim *
															sizeof(float));
		pgstat_progress_update_param(PROGRESS_CREATEIDX_SUBPHASE, BQ_PHASE_TRAIN);
		train_lists(state, &centroids);
		write_centroids(index, &state->layout, &centroids);
		state->centroids = &centroids;
	}

	if (nlists > 1 || !state->sampled)
	{
		pgstat_progress_update_param(PROGRESS_CREATEIDX_SUBPHASE, BQ_PHASE_ASSIGN);
		lists = (uint32 *) MemoryContextAllocHuge(context, (state->nrows + 1) * sizeof(uint32));
		if (nlists > 1)
		{
			bq_assign(&centroids, state->planes, state->nrows, lists);
			state->layout.nprobes = bq_measure_probes(&centroids, state->planes, state->nrows,
													  lists);
		}
		else
			memset(lists, 0, state->nrows * sizeof(uint32));
	}

	pgstat_progress_update_param(PROGRESS_CREATEIDX_SUBPHASE, BQ_PHASE_WRITE);
	if (state->sampled)
		write_sorted(state);
	else
		write_from_memory(state, lists);
	write_lists(state);

	state->layout.transform = state->transform;
	buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META, BUFFER_LOCK_EXCLUSIVE);
	fill_metapage(BufferGetPage(buffer), &state->layout, state->nblocks, state->ntuples);
	MarkBufferDirty(buffer);
	UnlockReleaseBuffer(buffer);

	if (RelationNeedsWAL(index))
		log_newpage_range(index, MAIN_FORKNUM, 0, RelationGetNumberOfBlocks(index), true);

	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
	return result;
}

/* The init fork of an unlogged index: an empty one. */
void
bqbuildempty(Relation index)
{
	BuildState	state = {0};

	state.dim = column_dim(index);
	state.transform = -1;
	set_layout(&state, 1);
	create_front_pages(index, INIT_FORKNUM, &state.layout);
	log_newpage_range(index, INIT_FORKNUM, 0, state.layout.data_start, true);
}
