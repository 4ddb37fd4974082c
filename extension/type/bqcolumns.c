/*
 * bqcolumns.c: what is done with bq_columns, the extension's table, in functions: looking up
 * a transform, deciding it once, adding statistics, taking statistics from a sample.
 *
 * Row security lets only the owner of a table change its row.  Whoever may insert into the
 * table may decide and add, which is all that an ingest needs, and is checked here.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/partition.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "optimizer/plancat.h"
#include "type/bqcolumns.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* Schema of the extension, whose functions find its table wherever it was moved. */
static Oid
extension_schema(FunctionCallInfo fcinfo)
{
	return get_func_namespace(fcinfo->flinfo->fn_oid);
}

static const char *
schema_name(FunctionCallInfo fcinfo)
{
	return quote_identifier(get_namespace_name(extension_schema(fcinfo)));
}

static void
report_unknown(Oid table, const char *code_column)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("column \"%s\" of table \"%s\" is not in bq_columns", code_column,
					get_rel_name(table)),
			 errhint("Make the table with pybq, or insert a row into bq_columns.")));
}

static void
report_unmatched(Oid table, const char *code_column)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("column \"%s\" of table \"%s\" is not in bq_columns with the dimensions of the statistics",
					code_column, get_rel_name(table))));
}

/* Find the row of a code column; false if there is none, *transform -1 if it is not decided. */
static bool
find_transform(Relation columns, Snapshot snapshot, Oid table, const char *code_column,
			   int *transform)
{
	Oid			columns_oid = RelationGetRelid(columns);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	NameData	name;
	bool		undecided;

	namestrcpy(&name, code_column);
	ScanKeyInit(&keys[0], get_attnum(columns_oid, "table_name"), BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(table));
	ScanKeyInit(&keys[1], get_attnum(columns_oid, "code_column"), BTEqualStrategyNumber, F_NAMEEQ,
				NameGetDatum(&name));
	scan = systable_beginscan(columns, InvalidOid, false, snapshot, 2, keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		*transform = DatumGetInt32(heap_getattr(tuple, get_attnum(columns_oid, "transform"),
												RelationGetDescr(columns), &undecided));
		(void) heap_getattr(tuple, get_attnum(columns_oid, "decided_at"),
							RelationGetDescr(columns), &undecided);
		if (undecided)
			*transform = -1;
	}
	systable_endscan(scan);
	return HeapTupleIsValid(tuple);
}

/*
 * Transform of a code column, or error out if it has none yet.  A partition has that of the
 * nearest table above it, unless it has its own.  Row security is not asked: a writer who may
 * not read the table needs the number, and every code tells it.
 */
int
bq_column_transform(FunctionCallInfo fcinfo, Oid table, const char *code_column)
{
	Oid			columns_oid = get_relname_relid("bq_columns", extension_schema(fcinfo));
	Relation	columns = table_open(columns_oid, AccessShareLock);
	/* not that of the statement: codes are to be what new queries expect */
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	List	   *ancestors = get_rel_relispartition(table) ? get_partition_ancestors(table) : NIL;
	int			transform;
	bool		found = find_transform(columns, snapshot, table, code_column, &transform);

	for (int i = 0; !found && i < list_length(ancestors); i++)
		found = find_transform(columns, snapshot, list_nth_oid(ancestors, i), code_column,
							   &transform);
	if (!found)
		report_unknown(table, code_column);
	UnregisterSnapshot(snapshot);
	table_close(columns, AccessShareLock);
	if (transform < 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("transform of column \"%s\" of table \"%s\" is not decided yet",
						code_column, get_rel_name(table)),
				 errhint("Ingest the first rows with pybq, which decides it, or make the table with a transform.")));
	return transform;
}

/*
 * Run a statement on bq_columns as its owner, on behalf of a user who may insert into the
 * table.  $1 is the table, $2 the code column.  Returns the number of rows, of which *result
 * is the first column of the first.
 *
 * The caller has set search_path to pg_catalog, and calls functions of the extension with just
 * their types of arguments, which are preferred to all others: whoever may create functions in the
 * schema of the extension gets none of them to run.
 */
static uint64
run_as_owner(FunctionCallInfo fcinfo, const char *statement, int n_arguments, Oid *types,
			 Datum *values, const char *nulls, int *result)
{
	Oid			table = DatumGetObjectId(values[0]);
	Oid			columns_oid = get_relname_relid("bq_columns", extension_schema(fcinfo));
	AclResult	allowed = pg_class_aclcheck(table, GetUserId(), ACL_INSERT);
	Relation	columns;
	Oid			user;
	int			context;
	uint64		n_rows;
	bool		isnull;

	if (allowed != ACLCHECK_OK)
		aclcheck_error(allowed, get_relkind_objtype(get_rel_relkind(table)), get_rel_name(table));

	columns = table_open(columns_oid, RowExclusiveLock);
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(columns->rd_rel->relowner, context | SECURITY_LOCAL_USERID_CHANGE);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args(statement, n_arguments, types, values, nulls, false, 0) < 0)
		elog(ERROR, "SPI failed on bq_columns: %s", SPI_result_code_string(SPI_result));
	n_rows = SPI_processed;
	if (n_rows > 0 && result != NULL)
		*result = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
											  &isnull));
	SPI_finish();
	SetUserIdAndSecContext(user, context);
	table_close(columns, NoLock);
	return n_rows;
}

/* A type of the extension, wherever the extension was moved. */
Oid
bq_extension_type(FunctionCallInfo fcinfo, const char *name)
{
	return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum(name),
						   ObjectIdGetDatum(extension_schema(fcinfo)));
}

#define WHERE_COLUMN " WHERE table_name = $1 AND code_column = $2"

PG_FUNCTION_INFO_V1(bq_decide);

/*
 * SQL: bq_decide(table, code_column, transform, statistics, f_axis, f_rotate, reason).  Of
 * several at once, one decides; the others wait for it, and get its transform.
 */
Datum
bq_decide(PG_FUNCTION_ARGS)
{
	Oid			types[] = {REGCLASSOID, NAMEOID, INT4OID, bq_extension_type(fcinfo, "bq_statistics"), FLOAT8OID,
	FLOAT8OID, TEXTOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)];
	const char *schema = schema_name(fcinfo);
	int			transform;

	for (Size i = 0; i < lengthof(types); i++)
	{
		if (PG_ARGISNULL(i) && i < 4)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("table, code column, transform and statistics must not be null")));
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	(void) run_as_owner(fcinfo,
						psprintf("UPDATE %s.bq_columns SET transform = $3,"
								 " decided_statistics = %s.bq_merge(NULL::%s.bq_statistics, $4),"
								 " decided_count = ($4).count, f_axis = $5, f_rotate = $6,"
								 " reason = $7, decided_at = now()" WHERE_COLUMN
								 " AND decided_at IS NULL AND dim = cardinality(($4).mean)",
								 schema, schema, schema),
						lengthof(types), types, values, nulls, NULL);
	if (run_as_owner(fcinfo,
					 psprintf("SELECT transform FROM %s.bq_columns" WHERE_COLUMN
							  " AND decided_at IS NOT NULL", schema),
					 2, types, values, NULL, &transform) == 0)
		report_unmatched(PG_GETARG_OID(0), NameStr(*PG_GETARG_NAME(1)));
	PG_RETURN_INT32(transform);
}

PG_FUNCTION_INFO_V1(bq_add_statistics);

/* SQL: bq_add_statistics(table, code_column, statistics) */
Datum
bq_add_statistics(PG_FUNCTION_ARGS)
{
	Oid			types[] = {REGCLASSOID, NAMEOID, bq_extension_type(fcinfo, "bq_statistics")};
	Datum		values[] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1), PG_GETARG_DATUM(2)};
	const char *schema = schema_name(fcinfo);

	if (run_as_owner(fcinfo,
					 psprintf("UPDATE %s.bq_columns SET statistics = %s.bq_merge(statistics, $3)"
							  WHERE_COLUMN " AND dim = cardinality(($3).mean)", schema, schema),
					 lengthof(types), types, values, NULL, NULL) == 0)
		report_unmatched(PG_GETARG_OID(0), NameStr(*PG_GETARG_NAME(1)));
	PG_RETURN_VOID();
}

/*
 * Share of the table and its partitions, in percent, that has about so many rows.  Locks them:
 * only now can nobody drop the table.
 */
static double
sample_percent(Oid table, int rows)
{
	double		total = 0;
	ListCell   *lc;

	table_close(table_open(table, AccessShareLock), NoLock);
	foreach(lc, find_all_inheritors(table, AccessShareLock, NULL))
	{
		Relation	relation = table_open(lfirst_oid(lc), NoLock);
		BlockNumber pages = 0;
		double		tuples = 0;
		double		visible;

		if (RELKIND_HAS_TABLE_AM(relation->rd_rel->relkind))
			estimate_rel_size(relation, NULL, &pages, &tuples, &visible);
		total += tuples;
		table_close(relation, NoLock);
	}
	return total > rows ? 100.0 * rows / total : 100.0;
}

PG_FUNCTION_INFO_V1(bq_sample_statistics);

/*
 * SQL: bq_sample_statistics(table, code_column, sample): as they would be collected now, from
 * the stored vectors of some pages.  Everything runs with the privileges of the caller.
 */
Datum
bq_sample_statistics(PG_FUNCTION_ARGS)
{
	Oid			types[] = {REGCLASSOID, NAMEOID};
	Datum		values[] = {PG_ARGISNULL(0) ? (Datum) 0 : PG_GETARG_DATUM(0),
	PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1)};
	char		nulls[] = {' ', PG_ARGISNULL(1) ? 'n' : ' '};
	const char *schema = schema_name(fcinfo);
	int			rows = PG_ARGISNULL(2) ? 0 : PG_GETARG_INT32(2);
	Oid			table;
	char	   *source;
	bool		normalize;
	double		percent;
	bool		isnull;
	Datum		result;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	table = PG_GETARG_OID(0);
	if (rows < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("sample must be at least 1 row, not %d", rows)));
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args(psprintf("SELECT source_column::pg_catalog.text, metric"
									   " FROM %s.bq_columns"
									   " WHERE table_name OPERATOR(pg_catalog.=) $1 AND"
									   " (code_column OPERATOR(pg_catalog.=) $2 OR $2 IS NULL)",
									   schema),
							  lengthof(types), types, values, nulls, true, 2) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed on bq_columns: %s", SPI_result_code_string(SPI_result));
	if (SPI_processed == 0)
		report_unknown(table, PG_ARGISNULL(1) ? "code" : NameStr(*PG_GETARG_NAME(1)));
	if (SPI_processed > 1)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_COLUMN),
				 errmsg("table \"%s\" has more than one code column", get_rel_name(table)),
				 errhint("Name one as the second argument.")));
	source = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	normalize = strcmp(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2),
					   "cosine") == 0;
	if (source == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" keeps codes only: there are no vectors to sample",
						get_rel_name(table))));

	percent = sample_percent(table, rows);
	if (SPI_execute(psprintf("SELECT %s.bq_statistics(%s::pg_catalog.float4[], %s)"
							 " FROM %s TABLESAMPLE SYSTEM (%.9g)",
							 schema, quote_identifier(source), normalize ? "true" : "false",
							 quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)),
														get_rel_name(table)),
							 percent),
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed on the sample: %s", SPI_result_code_string(SPI_result));
	result = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	if (!isnull)
		result = SPI_datumTransfer(result, false, -1);
	SPI_finish();
	if (isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result);
}
