/*
 * bqcheck.c: bq_index_check(), in the manner of amcheck: is every byte of an index what
 * the other bytes and the table say it must be?
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
#include "catalog/pg_class.h"
#include "catalog/pg_am_d.h"
#include "index/bqsource.h"
#include "miscadmin.h"
#include "type/bqvec.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* What a block was found to be part of. */
typedef enum BlockUse
{
	BLOCK_LOST,					/* of nothing: left by a crash */
	BLOCK_DIRECTORY,
	BLOCK_LIST,
	BLOCK_OLD_CHAIN,
	BLOCK_FREE
} BlockUse;

/* What the chains are checked by, of each block. */
typedef struct BlockLinks
{
	uint32		list;
	uint32		epoch;
	uint32		next;
	uint32		next_free;
	bool		in_free_chain;
	bool		full;
	bool		in_free_list;	/* met by walking the list's free chain */
	uint8		use;			/* BlockUse */
} BlockLinks;

/* A row of the index, found by its position in the table. */
typedef struct IndexedRow
{
	ItemPointerData tid;
	uint16		slot;
	uint16		inverse;
	uint32		block;
	float		norm;
} IndexedRow;

typedef struct CheckState
{
	Relation	heap;
	Relation	index;
	BqLayout	layout;
	BqListData *lists;
	uint32		nblocks;
	uint32		nlost;
	BlockLinks *links;
	IndexedRow *rows;			/* by tid, once sorted */
	size_t		nrows;
	size_t		capacity;
	uint8	   *block_rows;		/* the codes of one block */
	uint8	   *planes;
	BqForm	   *form;			/* of an index on vectors, else NULL */
	MemoryContext row_context;	/* emptied after each row of the table */
} CheckState;

#define damaged(state, ...) \
	ereport(ERROR, \
			(errcode(ERRCODE_INDEX_CORRUPTED), \
			 errmsg("index \"%s\" is damaged: %s", \
					RelationGetRelationName((state)->index), psprintf(__VA_ARGS__)), \
			 errhint("Rebuild the index with REINDEX.")))

/* May the user look at an index so closely?  `privilege`: on the table, 0: ownership. */
static void
check_privilege(Oid index_oid, Oid heap_oid, AclMode privilege)
{
	AclResult	result;

	if (privilege != 0)
	{
		result = pg_class_aclcheck(heap_oid, GetUserId(), privilege);
		if (result != ACLCHECK_OK)
			aclcheck_error(result, OBJECT_TABLE, get_rel_name(heap_oid));
		return;
	}
#if PG_VERSION_NUM >= 160000
	if (!object_ownercheck(RelationRelationId, index_oid, GetUserId()))
#else
	if (!pg_class_ownercheck(index_oid, GetUserId()))
#endif
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_INDEX, get_rel_name(index_oid));
}

/*
 * Open an index for one of the functions of SQL, and its table before it; both stay
 * locked until the caller closes them.  Errors if it is not a bq index in good standing.
 */
Relation
bq_open_index(Oid index_oid, LOCKMODE lockmode, AclMode privilege, Relation *heap)
{
	Oid			heap_oid = IndexGetRelation(index_oid, true);
	Relation	index;

	/* Before any lock: who may not look may not block others, either. */
	if (OidIsValid(heap_oid))
		check_privilege(index_oid, heap_oid, privilege);

	/* Like amcheck: the table first, as everyone else who locks both. */
	*heap = OidIsValid(heap_oid) ? table_open(heap_oid, lockmode) : NULL;
	/* what is no index is opened for its name only: anybody may come as far as here */
	index = relation_open(index_oid, *heap != NULL ? lockmode : AccessShareLock);
	if (*heap == NULL || index->rd_rel->relkind != RELKIND_INDEX ||
		index->rd_indam->ambuild != bqbuild)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 index->rd_rel->relkind == RELKIND_PARTITIONED_INDEX ?
				 errmsg("index \"%s\" is partitioned", RelationGetRelationName(index)) :
				 errmsg("\"%s\" is not a bq index", RelationGetRelationName(index)),
				 index->rd_rel->relkind == RELKIND_PARTITIONED_INDEX ?
				 errhint("Name the index of one partition; SELECT relid FROM pg_partition_tree('%s') WHERE isleaf lists them.",
						 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(index)),
													RelationGetRelationName(index))) : 0));
	/* The oid may have come to mean another index before it was locked. */
	if (heap_oid != IndexGetRelation(index_oid, false))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("could not open parent table of index \"%s\"",
						RelationGetRelationName(index))));

	if (RELATION_IS_OTHER_TEMP(index))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot access temporary tables of other sessions")));
	if (!index->rd_index->indisvalid)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("index \"%s\" is not valid", RelationGetRelationName(index)),
				 errhint("Rebuild the index with REINDEX.")));
	if (RecoveryInProgress() && !RelationIsPermanent(index))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot access temporary or unlogged relations during recovery")));
	return index;
}

/*
 * Read a table as its owner, who may not change the session: expressions of an index run as
 * they do when the owner inserts rows, with no more rights whoever asks.
 */
BqCaller
bq_become_owner(Relation heap)
{
	BqCaller	caller = {.nest_level = NewGUCNestLevel()};

	GetUserIdAndSecContext(&caller.user, &caller.security);
	SetUserIdAndSecContext(heap->rd_rel->relowner,
						   caller.security | SECURITY_RESTRICTED_OPERATION);
#if PG_VERSION_NUM >= 170000
	RestrictSearchPath();
#endif
	return caller;
}

void
bq_become_caller(const BqCaller *caller)
{
	AtEOXact_GUC(false, caller->nest_level);
	SetUserIdAndSecContext(caller->user, caller->security);
}

/*
 * Pages
 */

/* Is the metapage possible? */
static void
check_metapage(CheckState *state)
{
	const BqLayout *layout = &state->layout;
	int			column_dim = bq_typmod_dim(bq_column_typmod(RelationGetDescr(state->index), 1));

	state->layout = bq_read_layout(state->index);
	state->nblocks = layout->nblocks;
	for (int i = 0; i < BQ_RECALLS; i++)
		if (Max(layout->model.nprobes[i], layout->model.product_nprobes[i]) > layout->nlists)
			damaged(state, "metapage has %u probes for %u lists",
					Max(layout->model.nprobes[i], layout->model.product_nprobes[i]),
					layout->nlists);
	/* ALTER TABLE may take a column's dimensions away; the index keeps its own */
	if (column_dim > 0 && layout->dim != column_dim)
		damaged(state, "metapage has %d dimensions, the column has %d", layout->dim, column_dim);
}

/* Is every page there, and of the kind that its place asks for? */
static void
check_pages(CheckState *state)
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
			damaged(state, "page %u has a hole, which WAL would not keep", blkno);
		if (BqPageGetOpaque(page)->page_id != BQ_PAGE_ID || BqPageGetOpaque(page)->kind != kind)
			damaged(state, "page %u is of one kind at its start, of another at its end", blkno);
		UnlockReleaseBuffer(buffer);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
check_centroids(CheckState *state)
{
	uint32		nlists = state->layout.nlists;
	BqTable		table = {.bias = 1};
	float	   *factors;

	if (nlists == 1)
		return;
	/* where every product is 1, the scores are the factors */
	table.entries = (uint8 *) palloc0(bq_block_nbytes(state->layout.dim));
	factors = (float *) palloc(nlists * sizeof(float));
	bq_score_lists(state->index, &state->layout, &table, factors);
	for (uint32 list = 0; list < nlists; list++)
		if (!(factors[list] >= 0 && isfinite(factors[list])))
			damaged(state, "the centroid of list %u has factor %g", list, factors[list]);
	pfree(factors);
	pfree(table.entries);
}

/*
 * Blocks
 */

static void
add_row(CheckState *state, const ItemPointerData *tid, uint32 b, int slot,
		const BqBlockData *block)
{
	IndexedRow *row;

	if (state->nrows == state->capacity)
	{
		state->capacity = Max(state->capacity * 2, 1024);
		state->rows = state->rows == NULL ?
			(IndexedRow *) MemoryContextAllocHuge(CurrentMemoryContext,
												  state->capacity * sizeof(IndexedRow)) :
			(IndexedRow *) repalloc_huge(state->rows, state->capacity * sizeof(IndexedRow));
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
check_rows(CheckState *state, uint32 b, const BqBlockData *block, BlockNumber heap_pages)
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
			damaged(state, "slot %d of block %u has position (%u,%u) in a table of %u pages",
					slot, b, ItemPointerGetBlockNumberNoCheck(&tid),
					ItemPointerGetOffsetNumberNoCheck(&tid), heap_pages);

		if (state->layout.transform < 0)
			damaged(state, "slot %d of block %u has a row, but the metapage no transform", slot, b);

		header.norm = block->norm[slot];
		bq_block_get(state->block_rows, header.dim, slot, state->planes);
		status = bq_check_header(&header);
		if (status == BQ_OK)
			status = bq_check_planes(&header, state->planes);
		if (status != BQ_OK)
			damaged(state, "code in slot %d of block %u: %s", slot, b,
					bq_status_message(status));
		/* of vectors it follows from the row of the table only, see check_heap_row() */
		if (state->form != NULL ? (block->inverse[slot] == 0) != (header.norm == 0) :
			block->inverse[slot] != bq_inverse_pack(state->planes, header.dim, header.norm))
			damaged(state, "slot %d of block %u has inverse length %u, expected %u", slot, b,
					block->inverse[slot],
					bq_inverse_pack(state->planes, header.dim, header.norm));
		add_row(state, &tid, b, slot, block);
	}
}

static void
check_blocks(CheckState *state)
{
	const BlockNumber heap_pages = RelationGetNumberOfBlocks(state->heap);

	state->links = (BlockLinks *) MemoryContextAllocHuge(CurrentMemoryContext,
														 ((size_t) state->nblocks + 1) *
														 sizeof(BlockLinks));
	for (uint32 b = 0; b < state->nblocks; b++)
	{
		BlockLinks *links = &state->links[b];
		BqWholeBlock whole;
		const BqBlockData *block = &whole.data;

		memset(links, 0, sizeof(BlockLinks));
		if (bq_is_directory(&state->layout, b))
		{
			links->use = BLOCK_DIRECTORY;
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
			damaged(state, "block %u has free chain flag %u", b, block->in_free_chain);
		links->next_free = block->next_free;
		links->in_free_chain = block->in_free_chain;
		links->full = block->live == UINT32_MAX;
		check_rows(state, b, block, heap_pages);
	}
}

/*
 * Chains
 */

/* Walk a chain of blocks that belong to one list in one epoch, or to none. */
static void
check_chain(CheckState *state, const char *chain, uint32 list, uint32 epoch, BlockUse use,
			uint32 head, uint32 nblocks)
{
	uint32		length = 0;

	for (uint32 b = head; b != BQ_NO_BLOCK; length++)
	{
		BlockLinks *links;

		if (b >= state->nblocks)
			damaged(state, "%s of list %u leads to block %u of %u", chain, list, b,
					state->nblocks);
		links = &state->links[b];
		if (links->use == use)
			damaged(state, "%s of list %u comes to block %u twice", chain, list, b);
		if (links->use != BLOCK_LOST)
			damaged(state, "%s of list %u leads to block %u of another use", chain, list, b);
		if (use == BLOCK_FREE ?
			links->list < state->layout.nlists && links->epoch == state->lists[links->list].epoch :
			links->list != list || links->epoch != epoch)
			damaged(state, "%s of list %u leads to block %u of list %u, epoch %u", chain, list, b,
					links->list, links->epoch);
		links->use = use;
		b = links->next;
	}
	if (length != nblocks)
		damaged(state, "%s of list %u has %u blocks, expected %u", chain, list, length, nblocks);
}

/* The blocks of a list that have free slots. */
static void
check_free_chain(CheckState *state, uint32 list)
{
	for (uint32 b = state->lists[list].free; b != BQ_NO_BLOCK;)
	{
		BlockLinks *links = b < state->nblocks ? &state->links[b] : NULL;

		if (links == NULL || links->use != BLOCK_LIST || links->list != list)
			damaged(state, "free chain of list %u leads to block %u of another list", list, b);
		if (links->in_free_list)
			damaged(state, "free chain of list %u comes to block %u twice", list, b);
		if (!links->in_free_chain)
			damaged(state, "block %u is in the free chain of list %u without knowing", b, list);
		links->in_free_list = true;
		b = links->next_free;
	}
}

static void
check_lists(CheckState *state)
{
	uint32		nunreachable = 0;
	BqMetaPageData meta = bq_read_metapage(state->index);

	for (uint32 list = 0; list < state->layout.nlists; list++)
	{
		const BqListData *entry = &state->lists[list];

		CHECK_FOR_INTERRUPTS();
		check_chain(state, "chain", list, entry->epoch, BLOCK_LIST, entry->head, entry->nblocks);
		check_free_chain(state, list);
		if (entry->changed > state->layout.generation)
			damaged(state, "list %u was changed in generation " UINT64_FORMAT " of " UINT64_FORMAT,
					list, entry->changed, state->layout.generation);
		if (entry->old_head != BQ_NO_BLOCK && entry->old_epoch == entry->epoch)
			damaged(state, "list %u has two chains of epoch %u", list, entry->epoch);
		if (entry->old_head != BQ_NO_BLOCK)
			check_chain(state, "old chain", list, entry->old_epoch, BLOCK_OLD_CHAIN,
						entry->old_head, entry->old_nblocks);
	}
	check_chain(state, "free chain of the index, not", 0, 0, BLOCK_FREE, meta.free_head, meta.nfree);

	for (uint32 b = 0; b < state->nblocks; b++)
	{
		const BlockLinks *links = &state->links[b];

		if (links->use == BLOCK_LOST)
		{
			if (links->list < state->layout.nlists &&
				links->epoch == state->lists[links->list].epoch)
				damaged(state, "block %u is not in the chain of its list %u", b, links->list);
			state->nlost++;
		}
		if (links->use != BLOCK_LIST)
			continue;
		if (links->in_free_chain && !links->in_free_list)
			damaged(state, "block %u is not in the free chain of its list %u", b, links->list);
		nunreachable += !links->full && !links->in_free_chain;
	}
	/* A crash between the two steps of vacuum does that. */
	if (nunreachable > 0)
		ereport(WARNING,
				(errmsg("index \"%s\" has %u blocks whose free slots cannot be found",
						RelationGetRelationName(state->index), nunreachable),
				 errhint("VACUUM the table.")));
	/* a crash while a list is split */
	if (state->nlost > 0)
		ereport(WARNING,
				(errmsg("index \"%s\" has %u blocks that belong to nothing",
						RelationGetRelationName(state->index), state->nlost),
				 errhint("VACUUM the table.")));
}

/*
 * Rows
 */

static int
compare_rows(const void *a, const void *b)
{
	return ItemPointerCompare((ItemPointer) &((const IndexedRow *) a)->tid,
							  (ItemPointer) &((const IndexedRow *) b)->tid);
}

static void
check_positions(CheckState *state)
{
	if (state->nrows > 0)
		qsort(state->rows, state->nrows, sizeof(IndexedRow), compare_rows);
	for (size_t i = 1; i < state->nrows; i++)
	{
		const IndexedRow *row = &state->rows[i];

		if (compare_rows(row - 1, row) == 0)
			damaged(state, "row (%u,%u) is in block %u and in block %u",
					ItemPointerGetBlockNumber(&row->tid), ItemPointerGetOffsetNumber(&row->tid),
					(row - 1)->block, row->block);
	}
}

/* What the index must keep of a value; false if nothing, as of zero vectors by cosine. */
static bool
form_row(CheckState *state, Datum value, ItemPointer tid, BqRow *row)
{
	BqHeader	header;

	if (state->form != NULL)
		return bq_form_vector(state->form, value, tid, row);
	header = bq_form_code(value, tid, row);
	if (header.dim != state->layout.dim || header.transform != state->layout.transform)
		damaged(state, "row (%u,%u) of the table has %d dimensions and transform %d",
				ItemPointerGetBlockNumber(tid), ItemPointerGetOffsetNumber(tid), header.dim,
				header.transform);
	return true;
}

/* A row of the table: is it in the index, as it is? */
static void
check_heap_row(Relation index, ItemPointer tid, Datum *values, bool *isnull, bool alive, void *arg)
{
	CheckState *state = (CheckState *) arg;
	MemoryContext old_context;
	IndexedRow	key = {.tid = *tid};
	const IndexedRow *found;
	BqRow		row;
	bool		wanted;

	if (isnull[0])
		return;
	found = state->nrows == 0 ? NULL : (const IndexedRow *)
		bsearch(&key, state->rows, state->nrows, sizeof(IndexedRow), compare_rows);
	old_context = MemoryContextSwitchTo(state->row_context);
	wanted = form_row(state, values[0], tid, &row);
	if (wanted && found == NULL)
		damaged(state, "row (%u,%u) of the table is missing", ItemPointerGetBlockNumber(tid),
				ItemPointerGetOffsetNumber(tid));
	if (!wanted && found != NULL)
		damaged(state, "row (%u,%u) of the table, a zero vector, is in slot %d of block %u",
				ItemPointerGetBlockNumber(tid), ItemPointerGetOffsetNumber(tid), found->slot,
				found->block);
	if (wanted)
	{
		bq_read_planes(state->index, &state->layout, found->block, found->slot, state->planes);
		if (row.norm != found->norm || row.inverse != found->inverse ||
			memcmp(row.planes, state->planes, bq_planes_nbytes(state->layout.dim)) != 0)
			damaged(state, "row (%u,%u) of the table has another code than slot %d of block %u",
					ItemPointerGetBlockNumber(tid), ItemPointerGetOffsetNumber(tid), found->slot,
					found->block);
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(state->row_context);
}

/* Compare with all rows that a new snapshot sees. */
static void
check_heap(CheckState *state)
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
	CheckState	state = {0};

	state.index = bq_open_index(index_oid, lockmode, 0, &state.heap);
	check_metapage(&state);
	state.block_rows = (uint8 *) palloc(bq_block_nbytes(state.layout.dim));
	state.planes = (uint8 *) palloc(bq_planes_nbytes(state.layout.dim));
	state.row_context = AllocSetContextCreate(context, "bq row", ALLOCSET_DEFAULT_SIZES);
	if (bq_get_source(state.index) != NULL)
		state.form = bq_begin_forming(state.index, state.layout.dim, state.layout.transform);
	check_pages(&state);
	check_centroids(&state);
	state.lists = bq_read_entries(state.index, &state.layout);
	check_blocks(&state);
	check_lists(&state);
	check_positions(&state);
	if (heapallindexed)
	{
		BqCaller	caller = bq_become_owner(state.heap);

		check_heap(&state);
		bq_become_caller(&caller);
	}

	relation_close(state.index, lockmode);
	table_close(state.heap, lockmode);
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
	PG_RETURN_VOID();
}
