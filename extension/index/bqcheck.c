/*
 * bqcheck.c: bq_index_check(), in the manner of amcheck: is every byte of an index what
 * the other bytes and the table say it must be?
 *
 * Here are pages, blocks, and rows against the table; chains of blocks in bqchain.c.
 *
 * Runs under ShareLock on table and index: nobody writes or vacuums meanwhile, so any
 * two pages agree.  On a standby, where such a lock cannot be had, replay can change
 * pages between two looks: pause it first.
 *
 * Pages after the last block belong to nobody yet: they are not looked at.
 *
 * Memory: 28 bytes per block and 20 per row.
 */
#include "postgres.h"

#include <math.h>

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/index.h"
#include "catalog/pg_am_d.h"
#include "index/bqcheck.h"
#include "index/bqkey.h"
#include "miscadmin.h"
#include "type/bqcaller.h"
#include "type/bqvec.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/*
 * Pages
 */

/* Is the metapage possible? */
static void
check_metapage(BqCheck *state)
{
	const BqLayout *layout = &state->layout;
	int			column_dim = bq_typmod_dim(bq_column_typmod(RelationGetDescr(state->index), 1));

	state->layout = bq_read_layout(state->index);
	state->nblocks = layout->nblocks;
	for (int i = 0; i < BQ_RECALLS; i++)
		if (Max(layout->model.nprobes[i], layout->model.product_nprobes[i]) > layout->nlists)
			bq_damaged(state, "metapage has %u probes for %u lists",
					   Max(layout->model.nprobes[i], layout->model.product_nprobes[i]),
					   layout->nlists);
	/* ALTER TABLE may take a column's dimensions away; the index keeps its own */
	if (column_dim > 0 && layout->dim != column_dim)
		bq_damaged(state, "metapage has %d dimensions, the column has %d", layout->dim, column_dim);
}

/* Is every page there, and of the kind that its place asks for? */
static void
check_pages(BqCheck *state)
{
	const BqLayout *layout = &state->layout;
	BlockNumber end;

	bq_check_size(state->index, layout);
	end = bq_data_end(layout, state->nblocks);
	for (BlockNumber blkno = BQ_METAPAGE_BLKNO + 1; blkno < end; blkno++)
	{
		BqPageKind	kind = blkno < layout->data_start ? BQ_PAGE_STATISTICS :
			bq_page_kind(layout, blkno);
		Buffer		buffer = bq_read_page(state->index, blkno, kind, BUFFER_LOCK_SHARE);
		Page		page = BufferGetPage(buffer);

		if (((PageHeader) page)->pd_lower != ((PageHeader) page)->pd_upper)
			bq_damaged(state, "page %u has a hole, which WAL would not keep", blkno);
		if (BqPageGetOpaque(page)->page_id != BQ_PAGE_ID || BqPageGetOpaque(page)->kind != kind)
			bq_damaged(state, "page %u is of one kind at its start, of another at its end", blkno);
		UnlockReleaseBuffer(buffer);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Statistics, of which there are some on all their pages or none at all. */
static void
check_statistics(BqCheck *state)
{
	BqMetaPageData meta = bq_read_metapage(state->index);
	BlockNumber npages = meta.sample_rows > 0 ? bq_count_statistics_pages(state->layout.dim) : 0;
	BqStatistics *statistics;

	if (meta.choice > BQ_CHOICE_COLUMN)
		bq_damaged(state, "metapage has transform %d for reason %u", meta.transform, meta.choice);
	if (meta.data_start != BQ_METAPAGE_BLKNO + 1 + npages)
		bq_damaged(state, "data begin on page %u after %u pages of statistics", meta.data_start,
				npages);
	if (npages == 0)
		return;
	statistics = bq_read_statistics(state->index);
	if (!bq_statistics_are_possible(statistics))
		bq_damaged(state, "no %u rows have the statistics of its sample", meta.sample_rows);
}

static void
check_centroids(BqCheck *state)
{
	uint32		nlists = state->layout.nlists;
	BqTable		table = {.bias = 1};
	uint32		ngroups = bq_count_groups(&state->layout);
	float	   *factors;

	if (nlists == 1)
		return;
	/* where every product is 1, the scores are the factors */
	table.entries = (uint8 *) palloc0(bq_block_nbytes(state->layout.dim));
	factors = (float *) palloc(nlists * sizeof(float));
	bq_score_lists(state->index, &state->layout, &table, factors);
	for (uint32 list = 0; list < nlists; list++)
		if (!(factors[list] >= 0 && isfinite(factors[list])))
			bq_damaged(state, "the centroid of list %u has factor %g", list, factors[list]);
	if (ngroups > 0)
		bq_score_outer_groups(state->index, &state->layout, &table, factors);
	for (uint32 group = 0; group < ngroups; group++)
		if (!(factors[group] >= 0 && isfinite(factors[group])))
			bq_damaged(state, "the centroid of group %u of lists has factor %g", group,
					   factors[group]);
	pfree(factors);
	pfree(table.entries);
}

/*
 * Blocks
 */

static void
add_row(BqCheck *state, const ItemPointerData *tid, uint32 b, int slot,
		const BqBlockData *block)
{
	BqIndexedRow *row;

	if (state->nrows == state->capacity)
	{
		state->capacity = Max(state->capacity * 2, 1024);
		state->rows = state->rows == NULL ?
			(BqIndexedRow *) MemoryContextAllocHuge(CurrentMemoryContext,
												  state->capacity * sizeof(BqIndexedRow)) :
			(BqIndexedRow *) repalloc_huge(state->rows, state->capacity * sizeof(BqIndexedRow));
	}
	row = &state->rows[state->nrows++];
	row->tid = *tid;
	row->slot = (uint16) slot;
	row->block = b;
	row->norm = block->norm[slot];
	row->inverse = block->inverse[slot];
}

/* Each row of a block: position, code, norm, and what is worked out from them. */
static void
check_rows(BqCheck *state, uint32 b, const BqBlockData *block, BlockNumber heap_pages)
{
	BqHeader	header = {
		.dim = (uint16) state->layout.dim,
		.transform = (uint16) state->layout.transform
	};

	for (int slot = 0; slot < BQ_BLOCK; slot++)
	{
		ItemPointerData tid = block->tid[slot];
		BqStatus	status;

		if (!(block->live & ((uint32) 1 << slot)))
			continue;
		if (!ItemPointerIsValid(&tid) ||
			ItemPointerGetOffsetNumberNoCheck(&tid) > MaxHeapTuplesPerPage ||
			ItemPointerGetBlockNumberNoCheck(&tid) >= heap_pages)
			bq_damaged(state, "slot %d of block %u has position (%u,%u) in a table of %u pages",
					   slot, b, ItemPointerGetBlockNumberNoCheck(&tid),
					   ItemPointerGetOffsetNumberNoCheck(&tid), heap_pages);

		if (state->layout.transform < 0)
			bq_damaged(state, "slot %d of block %u has a row, but the metapage no transform", slot, b);

		header.norm = block->norm[slot];
		bq_block_get(state->block_rows, header.dim, slot, state->planes);
		status = bq_check_header(&header);
		if (status == BQ_OK)
			status = bq_check_planes(&header, state->planes);
		if (status != BQ_OK)
			bq_damaged(state, "code in slot %d of block %u: %s", slot, b,
					   bq_status_message(status));
		/* of vectors it follows from the row of the table only, see check_heap_row() */
		if (state->form != NULL ? (block->inverse[slot] == 0) != (header.norm == 0) :
			block->inverse[slot] != bq_inverse_pack(state->planes, header.dim, header.norm))
			bq_damaged(state, "slot %d of block %u has inverse length %u, expected %u", slot, b,
					   block->inverse[slot],
					   bq_inverse_pack(state->planes, header.dim, header.norm));
		add_row(state, &tid, b, slot, block);
	}
}

static void
check_blocks(BqCheck *state)
{
	const BlockNumber heap_pages = RelationGetNumberOfBlocks(state->heap);

	state->links = (BqBlockLinks *) MemoryContextAllocHuge(CurrentMemoryContext,
														 ((size_t) state->nblocks + 1) *
														 sizeof(BqBlockLinks));
	for (uint32 b = 0; b < state->nblocks; b++)
	{
		BqBlockLinks *links = &state->links[b];
		BqWholeBlock whole;
		const BqBlockData *block = &whole.data;

		memset(links, 0, sizeof(BqBlockLinks));
		if (bq_is_directory(&state->layout, b))
		{
			links->use = BQ_BLOCK_DIRECTORY;
			continue;
		}
		bq_read_block(state->index, &state->layout, b, &whole, state->block_rows);
		CHECK_FOR_INTERRUPTS();
		links->list = block->list;
		links->epoch = block->epoch;
		links->next = block->next;
		if (block->list >= state->layout.nlists ||
			block->epoch != state->lists[block->list].epoch)
			continue;
		if (block->in_free_chain > 1)
			bq_damaged(state, "block %u has free chain flag %u", b, block->in_free_chain);
		links->next_free = block->next_free;
		links->in_free_chain = block->in_free_chain;
		links->full = block->live == UINT32_MAX;
		check_rows(state, b, block, heap_pages);
	}
}

/*
 * Rows
 */

static int
compare_rows(const void *a, const void *b)
{
	return ItemPointerCompare((ItemPointer) &((const BqIndexedRow *) a)->tid,
							  (ItemPointer) &((const BqIndexedRow *) b)->tid);
}

static void
check_positions(BqCheck *state)
{
	if (state->nrows > 0)
		qsort(state->rows, state->nrows, sizeof(BqIndexedRow), compare_rows);
	for (size_t i = 1; i < state->nrows; i++)
	{
		const BqIndexedRow *row = &state->rows[i];

		if (compare_rows(row - 1, row) == 0)
			bq_damaged(state, "row (%u,%u) is in block %u and in block %u",
					   ItemPointerGetBlockNumber(&row->tid), ItemPointerGetOffsetNumber(&row->tid),
					   (row - 1)->block, row->block);
	}
}

/* What the index must keep of a value; false if nothing, as of zero vectors by cosine. */
static bool
form_row(BqCheck *state, Datum value, ItemPointer tid, BqRow *row)
{
	BqHeader	header;

	if (state->form != NULL)
		return bq_form_vector(state->form, value, tid, row);
	header = bq_form_code(value, tid, row);
	if (header.dim != state->layout.dim || header.transform != state->layout.transform)
		bq_damaged(state, "row (%u,%u) of the table has %d dimensions and transform %d",
				   ItemPointerGetBlockNumber(tid), ItemPointerGetOffsetNumber(tid), header.dim,
				   header.transform);
	return true;
}

/* Are the keys of the filter columns of a row in the index those of its values? */
static bool
has_keys(BqCheck *state, const BqIndexedRow *found, const BqRow *row)
{
	const BqLayout *layout = &state->layout;
	Buffer		buffer = bq_read_page(state->index, bq_header_page(layout, found->block),
									  BQ_PAGE_HEADERS, BUFFER_LOCK_SHARE);
	BqBlockData *block = BqPageGetBlock(layout, BufferGetPage(buffer), found->block);
	bool		same = true;

	for (int i = 0; i < layout->nkeys; i++)
	{
		const BqBlockKeys *keys = BqBlockGetKeys(block, i);

		same &= (keys->nulls >> found->slot & 1) == (row->nulls >> i & 1) &&
			keys->keys[found->slot] == row->keys[i];
	}
	UnlockReleaseBuffer(buffer);
	return same;
}

/* A row of the table: is it in the index, as it is? */
static void
check_heap_row(Relation index, ItemPointer tid, Datum *values, bool *isnull, bool alive, void *arg)
{
	BqCheck *state = (BqCheck *) arg;
	MemoryContext old_context;
	BqIndexedRow	key = {.tid = *tid};
	const BqIndexedRow *found;
	BqRow		row;
	bool		wanted;

	if (isnull[0])
		return;
	found = state->nrows == 0 ? NULL : (const BqIndexedRow *)
		bsearch(&key, state->rows, state->nrows, sizeof(BqIndexedRow), compare_rows);
	old_context = MemoryContextSwitchTo(state->row_context);
	wanted = form_row(state, values[0], tid, &row);
	if (wanted && found == NULL)
		bq_damaged(state, "row (%u,%u) of the table is missing", ItemPointerGetBlockNumber(tid),
				   ItemPointerGetOffsetNumber(tid));
	if (!wanted && found != NULL)
		bq_damaged(state, "row (%u,%u) of the table, a zero vector, is in slot %d of block %u",
				   ItemPointerGetBlockNumber(tid), ItemPointerGetOffsetNumber(tid), found->slot,
				   found->block);
	if (wanted)
	{
		bq_read_planes(state->index, &state->layout, found->block, found->slot, state->planes);
		if (row.norm != found->norm || row.inverse != found->inverse ||
			memcmp(row.planes, state->planes, bq_planes_nbytes(state->layout.dim)) != 0)
			bq_damaged(state, "row (%u,%u) of the table has another code than slot %d of block %u",
					   ItemPointerGetBlockNumber(tid), ItemPointerGetOffsetNumber(tid), found->slot,
					   found->block);
		bq_make_keys(index, values, isnull, &row);
		if (!has_keys(state, found, &row))
			bq_damaged(state, "row (%u,%u) of the table has other filter keys than slot %d of block %u",
					   ItemPointerGetBlockNumber(tid), ItemPointerGetOffsetNumber(tid), found->slot,
					   found->block);
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(state->row_context);
}

/* Compare with all rows that a new snapshot sees. */
static void
check_heap(BqCheck *state)
{
	Snapshot	snapshot = RegisterSnapshot(GetTransactionSnapshot());
	IndexInfo  *info = BuildIndexInfo(state->index);
	TableScanDesc scan;

	/* amcheck's verify_nbtree.c tells why: the index may lack what this snapshot sees. */
	if (IsolationUsesXactSnapshot() && state->index->rd_index->indcheckxmin &&
		!TransactionIdPrecedes(HeapTupleHeaderGetXmin(state->index->rd_indextuple->t_data),
							   snapshot->xmin))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("index \"%s\" cannot be checked using transaction snapshot",
						RelationGetRelationName(state->index))));

	/* as a concurrent build would: under the snapshot, and without constraints */
	info->ii_Concurrent = true;
	info->ii_Unique = false;
	info->ii_ExclusionOps = NULL;
	info->ii_ExclusionProcs = NULL;
	info->ii_ExclusionStrats = NULL;
	scan = table_beginscan_strat(state->heap, snapshot, 0, NULL, true, true);
	table_index_build_scan(state->heap, state->index, info, true, false, check_heap_row, state,
						   scan);
	UnregisterSnapshot(snapshot);
}

PG_FUNCTION_INFO_V1(bq_index_check);
Datum
bq_index_check(PG_FUNCTION_ARGS)
{
	Oid			index_oid = PG_GETARG_OID(0);
	bool		heapallindexed = PG_GETARG_BOOL(1);
	LOCKMODE	lockmode = RecoveryInProgress() ? AccessShareLock : ShareLock;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "bq check",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	BqCheck	state = {0};

	state.index = bq_open_index(index_oid, lockmode, 0, &state.heap);
	check_metapage(&state);
	state.block_rows = (uint8 *) palloc(bq_block_nbytes(state.layout.dim));
	state.planes = (uint8 *) palloc(bq_planes_nbytes(state.layout.dim));
	state.row_context = AllocSetContextCreate(context, "bq row", ALLOCSET_DEFAULT_SIZES);
	if (bq_get_source(state.index) != NULL)
		state.form = bq_begin_forming(state.index, state.layout.dim, state.layout.transform);
	check_pages(&state);
	check_statistics(&state);
	check_centroids(&state);
	state.lists = bq_read_entries(state.index, &state.layout);
	check_blocks(&state);
	bq_check_lists(&state);
	check_positions(&state);
	if (heapallindexed)
	{
		BqCaller	caller = bq_become_owner(state.heap->rd_rel->relowner);

		check_heap(&state);
		bq_become_caller(&caller);
	}

	relation_close(state.index, lockmode);
	table_close(state.heap, lockmode);
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
	PG_RETURN_VOID();
}
