/*
 * bqinfo.c: bq_index_info(), what an index consists of, and bq_recall(), what its scans
 * find.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "common/pg_prng.h"
#include "funcapi.h"
#include "index/bqscan.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "type/bqcaller.h"
#include "type/bqvec.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

/* A number of lists this many times too small or too large is worth a REINDEX. */
#define LISTS_OFF_BY 4

/* Pages (1 MB) below which nobody minds a few that are not used. */
#define SMALL_INDEX 128

static int
compare_counts(const void *a, const void *b)
{
	uint32		x = *(const uint32 *) a;
	uint32		y = *(const uint32 *) b;

	return x < y ? -1 : x > y;
}

/* Count the live rows of each list, and the blocks of all of them. */
static uint32 *
count_rows(Relation index, const BqLayout *layout, int64 *total, uint32 *nblocks)
{
	BqListData *lists = bq_read_entries(index, layout);
	uint32	   *counts = (uint32 *) palloc0(layout->nlists * sizeof(uint32));

	*total = 0;
	*nblocks = 0;
	for (uint32 first = 0; first < layout->nblocks; first += layout->headers_per_page)
	{
		uint32		end = Min(layout->nblocks, first + layout->headers_per_page);
		Buffer		buffer = bq_read_page(index, bq_header_page(layout, first), BQ_PAGE_HEADERS,
										  BUFFER_LOCK_SHARE);

		for (uint32 b = first; b < end; b++)
		{
			const BqBlockData *block = BqPageGetBlock(layout, BufferGetPage(buffer), b);
			int			live = pg_popcount32(block->live);

			if (bq_is_directory(layout, b) || block->list >= layout->nlists ||
				block->epoch != lists[block->list].epoch)
				continue;
			counts[block->list] += live;
			*total += live;
			*nblocks += 1;
		}
		UnlockReleaseBuffer(buffer);
		CHECK_FOR_INTERRUPTS();
	}
	pfree(lists);
	return counts;
}

/* When VACUUM or REINDEX would help, in words; NULL if neither would. */
static const char *
advise(Relation index, const BqLayout *layout, double build_rows, int64 nrows, int64 nslots,
	   BlockNumber nunused, BlockNumber npages)
{
	uint32		wanted = bq_choose_lists(index, (double) nrows);

	if (wanted >= (uint64) layout->nlists * LISTS_OFF_BY)
		return psprintf("VACUUM: the index has %u lists, made for %.0f rows; for "
						INT64_FORMAT " rows %u are good",
						layout->nlists, build_rows, nrows, wanted);
	if (npages < SMALL_INDEX)
		return NULL;
	/* a list keeps half a block free on average, and one more that it is filling */
	if (layout->nlists >= (uint64) wanted * LISTS_OFF_BY ||
		nslots - nrows > nrows + (int64) layout->nlists * BQ_BLOCK ||
		nunused > npages / 4 + npages / 8)
		return psprintf("REINDEX: the index would become smaller; it has room for " INT64_FORMAT
						" rows in %u lists, and %u pages that are not used",
						nslots, layout->nlists, nunused);
	return NULL;
}

PG_FUNCTION_INFO_V1(bq_index_info);
Datum
bq_index_info(PG_FUNCTION_ARGS)
{
	Relation	heap;
	Relation	index = bq_open_index(PG_GETARG_OID(0), AccessShareLock, ACL_SELECT, &heap);
	BqMetaPageData meta = bq_read_metapage(index);
	BqLayout	layout = bq_read_layout(index);
	BlockNumber npages = RelationGetNumberOfBlocks(index);
	BlockNumber header_pages = (layout.nblocks + layout.headers_per_page - 1) /
		layout.headers_per_page;
	BlockNumber end = bq_data_end(&layout, layout.nblocks);
	uint32		ndirectory = bq_count_directory_blocks(&layout);
	int64		nslots;
	uint32		nblocks;
	int64		nunused;
	int64		nrows;
	uint32	   *counts;
	uint32		half = layout.nlists / 2;
	/* what was found in all rows is for who may see them; how many there are, pg_class tells */
	bool		hidden = check_enable_rls(RelationGetRelid(heap), InvalidOid, true) == RLS_ENABLED;
	const char *choice = NULL;
	const char *drift = NULL;
	const char *hint;
	TupleDesc	desc;
	Datum		values[20];
	bool		nulls[20] = {false};
	int			i = 0;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != lengthof(values))
		elog(ERROR, "bq_index_info() is declared with another result");
	counts = count_rows(index, &layout, &nrows, &nblocks);
	qsort(counts, layout.nlists, sizeof(uint32), compare_counts);
	nslots = (int64) nblocks * BQ_BLOCK;
	/* free blocks, chains from before a split, and pages ahead; npages may have grown since */
	nunused = Max((int64) layout.nblocks - nblocks - ndirectory, 0);
	hint = advise(index, &layout, meta.build_rows, nrows, nslots,
				  (BlockNumber) (nunused * layout.nrows / BQ_ROWS_PER_PAGE), npages);
	if (!hidden)
	{
		BqCaller	caller = bq_become_owner(heap->rd_rel->relowner);

		choice = bq_tell_choice(index, &meta);
		drift = bq_tell_drift(heap, index, &meta);
		bq_become_caller(&caller);
	}
	if (drift != NULL)
		hint = hint == NULL ? drift : psprintf("%s; %s", hint, drift);

	values[i++] = Int32GetDatum(BQ_VERSION);
	values[i++] = Int32GetDatum(layout.dim);
	values[i] = Int32GetDatum(layout.transform);
	nulls[i++] = layout.transform < 0;
	values[i++] = Int32GetDatum((int32) layout.nlists);
	values[i++] = Int32GetDatum((int32) bq_wanted_reach(index, &layout, BQ_STRATEGY_COSINE).nprobes);
	values[i++] = Int64GetDatum(nblocks);
	values[i++] = Int64GetDatum(nunused);
	values[i++] = Int64GetDatum(nrows);
	values[i++] = Int64GetDatum(nslots - nrows);
	values[i++] = Int64GetDatum(counts[0]);
	values[i++] = Float8GetDatum(layout.nlists % 2 == 1 ? counts[half] :
								 (counts[half - 1] + (double) counts[half]) / 2);
	values[i++] = Int64GetDatum(counts[layout.nlists - 1]);
	values[i++] = Int64GetDatum((int64) ndirectory * layout.nrows * BQ_ROW_NBYTES);
	values[i++] = Int64GetDatum((int64) header_pages * BLCKSZ);
	values[i++] = Int64GetDatum((int64) nblocks * layout.nrows * BQ_ROW_NBYTES);
	values[i++] = Int64GetDatum(nunused * layout.nrows * BQ_ROW_NBYTES +
								(npages > end ? (int64) (npages - end) * BLCKSZ : 0));
	values[i++] = Int64GetDatum((int64) npages * BLCKSZ);
	values[i++] = Int64GetDatum((int64) meta.build_rows);
	values[i] = choice != NULL ? CStringGetTextDatum(choice) : (Datum) 0;
	nulls[i++] = choice == NULL;
	values[i] = hint != NULL ? CStringGetTextDatum(hint) : (Datum) 0;
	nulls[i++] = hint == NULL;
	Assert(i == lengthof(values));

	relation_close(index, AccessShareLock);
	table_close(heap, AccessShareLock);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

PG_FUNCTION_INFO_V1(bq_index_statistics);

/* SQL: bq_index_statistics(index): of the sample that its transform was chosen by, or null. */
Datum
bq_index_statistics(PG_FUNCTION_ARGS)
{
	Relation	heap;
	Relation	index = bq_open_index(PG_GETARG_OID(0), AccessShareLock, ACL_SELECT, &heap);
	BqStatistics *statistics;

	bq_check_row_security(heap, index, "statistics");
	statistics = bq_read_statistics(index);
	relation_close(index, AccessShareLock);
	table_close(heap, AccessShareLock);
	if (statistics == NULL)
		PG_RETURN_NULL();
	return bq_form_statistics(fcinfo, statistics);
}

/*
 * Recall
 */

/* A row of the index. */
typedef struct PickedRow
{
	ItemPointerData tid;
	uint32		block;
	int			slot;
} PickedRow;

/* Take a random row out of the index; false if none was met in many attempts. */
static bool
pick_row(Relation index, const BqLayout *layout, const BqListData *lists, pg_prng_state *random,
		 PickedRow *row)
{
	for (int attempt = 0; attempt < 1000; attempt++)
	{
		uint32		b = (uint32) pg_prng_uint64_range(random, 0, layout->nblocks - 1);
		int			c = (int) pg_prng_uint64_range(random, 0, BQ_BLOCK - 1);
		Buffer		buffer = bq_read_page(index, bq_header_page(layout, b), BQ_PAGE_HEADERS,
										  BUFFER_LOCK_SHARE);
		const BqBlockData *header = BqPageGetBlock(layout, BufferGetPage(buffer), b);
		/* a zero vector is as far from everything as from itself */
		bool		usable = !bq_is_directory(layout, b) && header->list < layout->nlists &&
			header->epoch == lists[header->list].epoch &&
			(header->live & ((uint32) 1 << c)) && header->norm[c] > 0;

		row->tid = header->tid[c];
		UnlockReleaseBuffer(buffer);
		if (usable)
		{
			row->block = b;
			row->slot = c;
			return true;
		}
	}
	return false;
}

/* The vector that a row's code stands for, as a query in the space of the codes. */
static Datum
make_query(Relation index, const BqLayout *layout, const PickedRow *row)
{
	BqQuery    *query = (BqQuery *) palloc0(BQQUERY_SIZE(layout->dim));
	uint8	   *planes = (uint8 *) palloc(bq_planes_nbytes(layout->dim));

	SET_VARSIZE(query, BQQUERY_SIZE(layout->dim));
	query->header.dim = (uint16) layout->dim;
	query->header.transform = (uint16) layout->transform;
	query->header.norm = 1;
	bq_read_planes(index, layout, row->block, row->slot, planes);
	bq_decode(planes, layout->dim, 1, NULL, query->values);
	pfree(planes);
	return PointerGetDatum(query);
}

/*
 * Run a query for k rows other than its own; puts what grows with their distances into
 * `keys`, in the order they came, and returns their number.
 */
static int
run_query(IndexScanDesc scan, TupleTableSlot *slot, ScanKey key, int k, const PickedRow *own,
		  double *keys)
{
	int			n = 0;

	index_rescan(scan, NULL, 0, key, 1);
	while (n < k && index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		BqScanReport report = bq_scan_report(scan);

		if (report.block != own->block || report.slot != own->slot)
			keys[n++] = report.key;
		CHECK_FOR_INTERRUPTS();
	}
	return n;
}

/* The same, reading every list, and comparing every vector that might be near. */
static int
run_query_exactly(IndexScanDesc scan, TupleTableSlot *slot, ScanKey key, int k,
				  const PickedRow *own, double *keys)
{
	int			probes = bq_probes;
	double		recall = bq_recall_wanted;
	volatile int n = 0;

	PG_TRY();
	{
		bq_probes = BQ_MAX_LISTS;
		bq_recall_wanted = 1;
		n = run_query(scan, slot, key, k, own, keys);
	}
	PG_FINALLY();
	{
		bq_probes = probes;
		bq_recall_wanted = recall;
	}
	PG_END_TRY();
	return n;
}

PG_FUNCTION_INFO_V1(bq_recall);
Datum
bq_recall(PG_FUNCTION_ARGS)
{
	int			sample = PG_GETARG_INT32(1);
	int			k = PG_GETARG_INT32(2);
	Relation	heap;
	Relation	index;
	BqLayout	layout;
	BqListData *lists;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	BqFetch    *fetch = NULL;
	BlockNumber heap_pages = 0;
	BqCaller	caller;
	/* of codes no procedure: scans know the distance by its strategy */
	ScanKeyData key = {
		.sk_flags = SK_ORDER_BY,
		.sk_attno = 1,
		.sk_strategy = BQ_STRATEGY_COSINE
	};
	pg_prng_state random;
	double	   *exact;
	double	   *found;
	int64		nhits = 0;
	int64		nwanted = 0;

	if (sample < 1 || k < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("sample and k must be positive, not %d and %d", sample, k)));

	index = bq_open_index(PG_GETARG_OID(0), AccessShareLock, ACL_SELECT, &heap);
	bq_check_row_security(heap, index, "searches");
	caller = bq_become_owner(heap->rd_rel->relowner);
	layout = bq_read_layout(index);
	lists = bq_read_entries(index, &layout);
	/* nobody gets more rows than there is room for */
	k = (int) Min((uint64) k, Max((uint64) layout.nblocks * BQ_BLOCK, 1));
	if (bq_get_source(index) != NULL)
	{
		fetch = bq_begin_fetching(heap, index, GetActiveSnapshot());
		key.sk_strategy = (StrategyNumber) bq_index_metric(index);
		bq_distance_function(index, key.sk_strategy, &key.sk_func, &key.sk_collation);
	}
	exact = (double *) MemoryContextAllocHuge(CurrentMemoryContext, (size_t) k * sizeof(double));
	found = (double *) MemoryContextAllocHuge(CurrentMemoryContext, (size_t) k * sizeof(double));
	slot = table_slot_create(heap, NULL);
#if PG_VERSION_NUM >= 180000
	scan = index_beginscan(heap, index, GetActiveSnapshot(), NULL, 0, 1);
#else
	scan = index_beginscan(heap, index, GetActiveSnapshot(), 0, 1);
#endif
	((BqScan *) scan->opaque)->uncounted = true;

	/* the same rows each time, so that settings can be compared */
	pg_prng_seed(&random, 0x6271);
	for (int i = 0; i < sample; i++)
	{
		PickedRow	row;
		int			nexact;
		int			nfound;

		if (!pick_row(index, &layout, lists, &random, &row))
			break;
		bq_check_position(index, heap, &row.tid, &heap_pages);
		if (fetch == NULL)
			key.sk_argument = make_query(index, &layout, &row);
		else if (bq_fetch_value(fetch, &row.tid, &key.sk_argument))
			key.sk_argument = PointerGetDatum(PG_DETOAST_DATUM_COPY(key.sk_argument));
		else
			continue;			/* deleted, or not there yet */
		nfound = run_query(scan, slot, &key, k, &row, found);
		nexact = run_query_exactly(scan, slot, &key, k, &row, exact);
		pfree(DatumGetPointer(key.sk_argument));

		/* as far as the k-th is near enough: ties must not cost recall */
		for (int j = 0; j < nfound && nexact > 0; j++)
			nhits += found[j] <= exact[nexact - 1];
		nwanted += nexact;
	}

	if (fetch != NULL)
		bq_end_fetching(fetch);
	index_endscan(scan);
	bq_become_caller(&caller);
	ExecDropSingleTupleTableSlot(slot);
	relation_close(index, AccessShareLock);
	table_close(heap, AccessShareLock);
	if (nwanted == 0)
		PG_RETURN_NULL();
	PG_RETURN_FLOAT8((double) nhits / (double) nwanted);
}
