/* bqbatch.c: bq_search(), many queries at once. */
#include "postgres.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/relscan.h"
#include "access/table.h"
#include "catalog/pg_type_d.h"
#include "funcapi.h"
#include "index/bqscan.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "type/bqcaller.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Queries that are answered together, at most. */
#define MOST_TOGETHER 4096

/* Blocks of the memory of queries. */
#define BLOCK_NBYTES (64 * 1024)

/* Candidates that a query may come to keep for each row that is wanted. */
#define KEPT_PER_ROW 32

/* Of work_mem, what the lists that they choose at a time may take. */
#define VISITS_PART 8
#define VISIT_NBYTES 16

/* The queries of a call, and where their rows go. */
typedef struct Batch
{
	IndexScanDesc scan;
	BqScan	   *blank;			/* of which each query's is a copy */
	BqLayout	layout;
	MemoryContext context;		/* of queries that are answered together */
	ScanKeyData key;
	Datum	   *queries;
	bool	   *nulls;
	int			k;
	ReturnSetInfo *result;
} Batch;

/* Let the scan be that of query i. */
static void
turn_to(Batch *batch, BqScan *so, int i)
{
	ScanKey		key = &batch->scan->orderByData[0];

	*key = batch->key;
	if (batch->nulls[i])
		key->sk_flags |= SK_ISNULL;
	else
		key->sk_argument = batch->queries[i];
	batch->scan->opaque = so;
}

/* Begin query i, which then waits for its lists. */
static BqScan *
begin_query(Batch *batch, int i)
{
	BqScan	   *so = (BqScan *) palloc(sizeof(BqScan));

	*so = *batch->blank;
	so->query_context = batch->context;
	turn_to(batch, so, i);
	pgstat_count_index_scan(batch->scan->indexRelation);
	bq_start_query(batch->scan, &batch->layout);
	return so;
}

/* Give out rows of query i until there are k, no more, or it waits for lists. */
static void
give_rows(Batch *batch, BqScan *so, int i)
{
	turn_to(batch, so, i);
	while (so->nreturned < batch->k && bq_next_row(batch->scan))
	{
		Datum		values[3];
		bool		nulls[3] = {false};

		so->nreturned++;
		values[0] = Int32GetDatum(i + 1);
		values[1] = PointerGetDatum(&so->floor.tid);
		values[2] = Float8GetDatum(bq_operator_distance(batch->scan));
		nulls[2] = batch->nulls[i];
		tuplestore_putvalues(batch->result->setResult, batch->result->setDesc, values, nulls);
	}
}

/* Answer queries from the `first` on, as many as work_mem has room for; returns where to go on. */
static int
answer_some(Batch *batch, int first, int n)
{
	Size		room = work_mem * (Size) 1024;
	BqScan	   *scans[MOST_TOGETHER];
	BqScan	   *waiting[MOST_TOGETHER];
	MemoryContext old_context = MemoryContextSwitchTo(batch->context);
	int			most = Min(n - first, MOST_TOGETHER);
	Size		each = (Size) batch->k * KEPT_PER_ROW * sizeof(BqCandidate);
	int			nwaiting = 0;
	int			m = 0;

	most = (int) Min((Size) most, Max(room / each, 1));
	while (m < most && (m == 0 || MemoryContextMemAllocated(batch->context, true) < room))
	{
		CHECK_FOR_INTERRUPTS();
		scans[m] = begin_query(batch, first + m);
		waiting[nwaiting++] = scans[m++];
	}
	while (nwaiting > 0)
	{
		bq_read_together(batch->scan->indexRelation, waiting, nwaiting,
						 room / VISITS_PART / VISIT_NBYTES);
		nwaiting = 0;
		for (int i = 0; i < m; i++)
		{
			if (scans[i] == NULL)
				continue;
			give_rows(batch, scans[i], first + i);
			if (scans[i]->waiting)
				waiting[nwaiting++] = scans[i];
			else
			{
				bq_count_scan(batch->scan->indexRelation, scans[i]);
				bq_end_sorting(scans[i]);
				scans[i] = NULL;
			}
		}
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(batch->context);
	return first + m;
}

/* What a call must be like beyond what bq_open_index() checks. */
static void
check_arguments(Relation index, const ArrayType *array, int k)
{
	if (k < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("k must be positive, not %d", k)));
	if (bq_get_source(index) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("index \"%s\" is on codes, expected one on vectors",
						RelationGetRelationName(index)),
				 errhint("Join the queries with LATERAL (SELECT ... ORDER BY ... LIMIT ...).")));
	if (ARR_ELEMTYPE(array) != index->rd_opcintype[0])
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("index \"%s\" is on %s, and the queries are %s",
						RelationGetRelationName(index), format_type_be(index->rd_opcintype[0]),
						format_type_be(ARR_ELEMTYPE(array))),
				 errhint("Cast the queries to %s.",
						 format_type_be(get_array_type(index->rd_opcintype[0])))));
	/* as the planner: older snapshots may see versions of rows that it does not have */
	if (index->rd_index->indcheckxmin &&
		!TransactionIdPrecedes(HeapTupleHeaderGetXmin(index->rd_indextuple->t_data),
							   TransactionXmin))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("index \"%s\" is too new for this transaction",
						RelationGetRelationName(index)),
				 errhint("Try again when transactions that are older than the index have ended.")));
}

PG_FUNCTION_INFO_V1(bq_index_search);

/* SQL: bq_search(index, queries, k): the k nearest rows of each query */
Datum
bq_index_search(PG_FUNCTION_ARGS)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(1);
	Batch		batch = {
		.k = PG_GETARG_INT32(2),
		.result = (ReturnSetInfo *) fcinfo->resultinfo,
		.key = {
			.sk_flags = SK_ORDER_BY,
			.sk_attno = 1
		}
	};
	Relation	heap;
	Relation	index;
	BqCaller	caller;
	int16		length;
	bool		by_value;
	char		alignment;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	index = bq_open_index(PG_GETARG_OID(0), AccessShareLock, ACL_SELECT, &heap);
	bq_check_row_security(heap, index, "searches");
	check_arguments(index, array, batch.k);
	get_typlenbyvalalign(ARR_ELEMTYPE(array), &length, &by_value, &alignment);
	deconstruct_array(array, ARR_ELEMTYPE(array), length, by_value, alignment, &batch.queries,
					  &batch.nulls, &n);

	caller = bq_become_owner(heap->rd_rel->relowner);
	batch.key.sk_strategy = (StrategyNumber) bq_index_metric(index);
	bq_distance_function(index, batch.key.sk_strategy, &batch.key.sk_func,
						 &batch.key.sk_collation);
#if PG_VERSION_NUM >= 180000
	batch.scan = index_beginscan(heap, index, GetActiveSnapshot(), NULL, 0, 1);
#else
	batch.scan = index_beginscan(heap, index, GetActiveSnapshot(), 0, 1);
#endif
	batch.blank = (BqScan *) batch.scan->opaque;
	batch.blank->together = true;
	batch.blank->fetch = bq_begin_fetching(heap, index, GetActiveSnapshot());
	batch.layout = bq_get_layout(index);
	/* blocks of its own size are soon half of what is asked for */
	batch.context = AllocSetContextCreate(CurrentMemoryContext, "bq queries",
										  ALLOCSET_DEFAULT_MINSIZE, ALLOCSET_DEFAULT_INITSIZE,
										  BLOCK_NBYTES);
	for (int first = 0; first < n;)
		first = answer_some(&batch, first, n);

	batch.scan->opaque = batch.blank;
	index_endscan(batch.scan);
	MemoryContextDelete(batch.context);
	bq_become_caller(&caller);
	/* as after an index scan, locks stay: the positions mean something as long as they do */
	relation_close(index, NoLock);
	table_close(heap, NoLock);
	return (Datum) 0;
}
