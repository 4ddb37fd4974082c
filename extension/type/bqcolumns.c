/*
 * bqcolumns.c: what is done with the extension's tables, bq_column_data (shown by the view
 * bq_columns) and bq_loads, in functions: they alone write to them.
 *
 * The owner of a table says what is in its row.  Whoever may insert into the table may decide
 * once, add statistics and record loads, which is all that an ingest needs.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "optimizer/plancat.h"
#include "type/bqcaller.h"
#include "type/bqcolumns.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/rls.h"
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

static Oid
get_type(Oid schema, const char *name)
{
	return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum(name),
						   ObjectIdGetDatum(schema));
}

/* A type of the extension, wherever the extension was moved. */
Oid
bq_extension_type(FunctionCallInfo fcinfo, const char *name)
{
	return get_type(extension_schema(fcinfo), name);
}

static void
report_unknown(Oid table, const char *code_column)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("column \"%s\" of table \"%s\" is not in bq_columns", code_column,
					get_rel_name(table)),
			 errhint("Make the table with pybq, or call bq_register_column.")));
}

static void
report_unmatched(Oid table, const char *code_column)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("column \"%s\" of table \"%s\" is not in bq_columns with the dimensions of the statistics",
					code_column, get_rel_name(table))));
}

/*
 * Number of a column of bq_column_data.  Its owner, who need not be a superuser, may have
 * changed the table: values that C code reads must be what it takes them for.
 */
static AttrNumber
find_attribute(Relation columns, const char *name, Oid type)
{
	AttrNumber	number = get_attnum(RelationGetRelid(columns), name);

	if (number <= 0 || getBaseType(get_atttype(RelationGetRelid(columns), number)) != type)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of table \"%s\" is not of type %s", name,
						RelationGetRelationName(columns), format_type_be(type)),
				 errhint("Drop and create the extension bq, or undo what was done to its tables.")));
	return number;
}

/* Open bq_column_data to read it without SQL; `schema` is that of the extension. */
static Relation
open_columns(Oid schema)
{
	Relation	columns = table_open(get_relname_relid("bq_column_data", schema), AccessShareLock);

	if (columns->rd_rel->relkind != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", RelationGetRelationName(columns)),
				 errhint("Drop and create the extension bq, or undo what was done to its tables.")));
	return columns;
}

/*
 * Find the row of a column, whose name is in `attribute`; false if there is none, *transform -1 if it
 * is not decided.
 */
static bool
find_transform(Relation columns, Snapshot snapshot, Oid table, const char *attribute,
			   const char *column, int *transform)
{
	Oid			schema = RelationGetNamespace(columns);
	AttrNumber	transform_number = find_attribute(columns, "transform", INT4OID);
	AttrNumber	decided_number = find_attribute(columns, "decided_at", TIMESTAMPTZOID);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	NameData	name;
	bool		undecided;

	namestrcpy(&name, column);
	ScanKeyInit(&keys[0], find_attribute(columns, "table_name", get_type(schema, "bq_table")),
				BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(table));
	ScanKeyInit(&keys[1], find_attribute(columns, attribute, NAMEOID), BTEqualStrategyNumber,
				F_NAMEEQ, NameGetDatum(&name));
	scan = systable_beginscan(columns, InvalidOid, false, snapshot, 2, keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		*transform = DatumGetInt32(heap_getattr(tuple, transform_number, RelationGetDescr(columns),
												&undecided));
		(void) heap_getattr(tuple, decided_number, RelationGetDescr(columns), &undecided);
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
	Relation	columns = open_columns(extension_schema(fcinfo));
	/* not that of the statement: codes are to be what new queries expect */
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	List	   *ancestors = get_rel_relispartition(table) ? get_partition_ancestors(table) : NIL;
	int			transform;
	bool		found = find_transform(columns, snapshot, table, "code_column", code_column,
									   &transform);

	for (int i = 0; !found && i < list_length(ancestors); i++)
		found = find_transform(columns, snapshot, list_nth_oid(ancestors, i), "code_column",
							   code_column, &transform);
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
 * Transform that was decided for the codes of a column of vectors, -1 if none was; `schema` is that
 * of the extension.
 */
int
bq_decided_transform(Oid schema, Oid table, const char *source_column)
{
	Relation	columns;
	Snapshot	snapshot;
	int			transform = -1;

	if (!OidIsValid(get_relname_relid("bq_column_data", schema)))
		return -1;
	columns = open_columns(schema);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	(void) find_transform(columns, snapshot, table, "source_column", source_column, &transform);
	UnregisterSnapshot(snapshot);
	table_close(columns, AccessShareLock);
	return transform;
}

/* Error out unless the caller may insert into a table. */
static void
check_insert(Oid table)
{
	AclResult	allowed = pg_class_aclcheck(table, GetUserId(), ACL_INSERT);

	if (allowed != ACLCHECK_OK)
		aclcheck_error(allowed, get_relkind_objtype(get_rel_relkind(table)), get_rel_name(table));
}

/* Error out unless the caller owns a table. */
static void
check_owner(Oid table)
{
#if PG_VERSION_NUM >= 160000
	bool		owned = object_ownercheck(RelationRelationId, table, GetUserId());
#else
	bool		owned = pg_class_ownercheck(table, GetUserId());
#endif

	if (!owned)
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(get_rel_relkind(table)),
					   get_rel_name(table));
}

/* Error out unless the caller may read a column in all rows of a table. */
static void
check_select(Oid table, const char *column)
{
	AttrNumber	number = get_attnum(table, column);
	AclResult	allowed = pg_class_aclcheck(table, GetUserId(), ACL_SELECT);

	if (allowed != ACLCHECK_OK && number != InvalidAttrNumber)
		allowed = pg_attribute_aclcheck(table, number, GetUserId(), ACL_SELECT);
	if (allowed != ACLCHECK_OK)
		aclcheck_error(allowed, get_relkind_objtype(get_rel_relkind(table)), get_rel_name(table));
	if (check_enable_rls(table, InvalidOid, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("statistics of table \"%s\" are of rows that row security hides",
						get_rel_name(table)),
				 errhint("Call it as the owner of the table, or as a role with BYPASSRLS.")));
}

static Oid
get_owner(Oid table)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", table);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * Run a statement on a table of the extension as its owner, on behalf of a caller who was
 * checked; %s in it is the schema of the extension.  Returns the number of rows, of which *result
 * is the first column of the first.
 *
 * The caller has set search_path to pg_catalog, and calls functions of the extension with just
 * their types of arguments, which are preferred to all others: whoever may create functions in the
 * schema of the extension gets none of them to run.
 */
static uint64
run_as_owner(FunctionCallInfo fcinfo, const char *relation, const char *statement,
			 int n_arguments, Oid *types, Datum *values, const char *nulls, int *result)
{
	Relation	opened = table_open(get_relname_relid(relation, extension_schema(fcinfo)),
									RowExclusiveLock);
	StringInfoData query;
	BqCaller	caller;
	uint64		n_rows;
	bool		isnull;

	initStringInfo(&query);
	for (const char *p = statement; *p != '\0'; p++)
	{
		if (strncmp(p, "%s", 2) == 0)
		{
			appendStringInfoString(&query, schema_name(fcinfo));
			p++;
		}
		else
			appendStringInfoChar(&query, *p);
	}

	/* triggers that the owner may have made are to be no danger for the caller */
	caller = bq_become_owner(opened->rd_rel->relowner);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args(query.data, n_arguments, types, values, nulls, false, 0) < 0)
		elog(ERROR, "SPI failed on %s: %s", relation, SPI_result_code_string(SPI_result));
	n_rows = SPI_processed;
	if (n_rows > 0 && result != NULL)
		*result = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
											  &isnull));
	SPI_finish();
	bq_become_caller(&caller);
	table_close(opened, NoLock);
	return n_rows;
}

#define WHERE_COLUMN " WHERE table_name::oid = $1 AND code_column = $2"
#define COLUMN_TYPES OIDOID, NAMEOID

/* All arguments as SPI wants them; error out if one of the first n_required is null. */
static void
get_arguments(FunctionCallInfo fcinfo, int n_required, Datum *values, char *nulls)
{
	for (int i = 0; i < PG_NARGS(); i++)
	{
		if (PG_ARGISNULL(i) && i < n_required)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("argument %d of %s must not be null", i + 1,
							get_func_name(fcinfo->flinfo->fn_oid))));
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
}

/*
 * Run a statement on the row of a code column with all arguments of the function, for the owner
 * of the table; there must be one.
 */
static void
change_column(FunctionCallInfo fcinfo, int n_required, const char *statement, Oid *types)
{
	Datum		values[FUNC_MAX_ARGS];
	char		nulls[FUNC_MAX_ARGS];

	get_arguments(fcinfo, n_required, values, nulls);
	check_owner(PG_GETARG_OID(0));
	if (run_as_owner(fcinfo, "bq_column_data", statement, PG_NARGS(), types, values, nulls,
					 NULL) == 0)
		report_unknown(PG_GETARG_OID(0), NameStr(*PG_GETARG_NAME(1)));
}

PG_FUNCTION_INFO_V1(bq_register_column);

/*
 * SQL: bq_register_column(table, code_column, source_column, dim, metric, transform, reason).
 * Rows of tables that are gone make room first: the oid may be one of theirs.
 */
Datum
bq_register_column(PG_FUNCTION_ARGS)
{
	Oid			types[] = {COLUMN_TYPES, NAMEOID, INT4OID, TEXTOID, INT4OID, TEXTOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)];

	get_arguments(fcinfo, 2, values, nulls);
	check_owner(PG_GETARG_OID(0));
	(void) run_as_owner(fcinfo, "bq_column_data",
						"DELETE FROM %s.bq_column_data WHERE ctid = ANY (ARRAY("
						" SELECT d.ctid FROM %s.bq_column_data AS d WHERE NOT EXISTS"
						" (SELECT FROM pg_class AS c WHERE c.oid = d.table_name::oid)"
						" FOR UPDATE SKIP LOCKED))",
						0, NULL, NULL, NULL, NULL);
	(void) run_as_owner(fcinfo, "bq_column_data",
						"INSERT INTO %s.bq_column_data (table_name, code_column, source_column,"
						" dim, metric, transform, reason, decided_count, decided_at)"
						" VALUES ($1, $2, $3, $4, $5, coalesce($6, 0), $7,"
						" CASE WHEN $6 IS NOT NULL THEN 0 END,"
						" CASE WHEN $6 IS NOT NULL THEN now() END)",
						lengthof(types), types, values, nulls, NULL);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(bq_rename_column);

/* SQL: bq_rename_column(table, column, new_name) */
Datum
bq_rename_column(PG_FUNCTION_ARGS)
{
	Oid			types[] = {COLUMN_TYPES, NAMEOID};

	change_column(fcinfo, 3,
				  "UPDATE %s.bq_column_data SET"
				  " code_column = CASE WHEN code_column = $2 THEN $3 ELSE code_column END,"
				  " source_column = CASE WHEN source_column = $2 THEN $3 ELSE source_column END"
				  " WHERE table_name::oid = $1 AND (code_column = $2 OR source_column = $2)",
				  types);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(bq_forget_column);

/* SQL: bq_forget_column(table, code_column) */
Datum
bq_forget_column(PG_FUNCTION_ARGS)
{
	Oid			types[] = {COLUMN_TYPES};

	change_column(fcinfo, 2, "DELETE FROM %s.bq_column_data" WHERE_COLUMN, types);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(bq_set_next_column);

/* SQL: bq_set_next_column(table, code_column, next_column, next_transform) */
Datum
bq_set_next_column(PG_FUNCTION_ARGS)
{
	Oid			types[] = {COLUMN_TYPES, NAMEOID, INT4OID};

	change_column(fcinfo, 2,
				  "UPDATE %s.bq_column_data SET next_column = $3, next_transform = $4"
				  WHERE_COLUMN, types);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(bq_decide_again);

/* SQL: bq_decide_again(table, code_column, transform, statistics, f_axis, f_rotate, reason) */
Datum
bq_decide_again(PG_FUNCTION_ARGS)
{
	Oid			types[] = {COLUMN_TYPES, INT4OID, bq_extension_type(fcinfo, "bq_statistics"),
	FLOAT8OID, FLOAT8OID, TEXTOID};

	change_column(fcinfo, 3,
				  "UPDATE %s.bq_column_data SET transform = $3,"
				  " decided_statistics = %s.bq_merge(NULL::%s.bq_statistics, $4),"
				  " decided_count = coalesce(($4).count, 0), f_axis = $5, f_rotate = $6,"
				  " reason = $7, decided_at = now(), next_column = NULL, next_transform = NULL"
				  WHERE_COLUMN " AND dim = coalesce(cardinality(($4).mean), dim)", types);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(bq_keep_calibration);

/* SQL: bq_keep_calibration(table, code_column, recall, k, rerank, probes, rows) */
Datum
bq_keep_calibration(PG_FUNCTION_ARGS)
{
	Oid			types[] = {COLUMN_TYPES, FLOAT8OID, INT4OID, FLOAT8OID, INT4OID, INT8OID};

	change_column(fcinfo, 5,
				  "UPDATE %s.bq_column_data SET calibrations ="
				  " (SELECT coalesce(jsonb_agg(c), '[]') FROM jsonb_array_elements(calibrations) AS c"
				  " WHERE (c ->> 'recall')::float8 <> $3 OR (c ->> 'k')::integer <> $4)"
				  " || jsonb_build_object('recall', $3, 'k', $4, 'rerank', $5, 'probes', $6,"
				  " 'rows', $7, 'transform', transform, 'measured_at', now())" WHERE_COLUMN, types);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(bq_decide);

/*
 * SQL: bq_decide(table, code_column, transform, statistics, f_axis, f_rotate, reason).  Of
 * several at once, one decides; the others wait for it, and get its transform.
 */
Datum
bq_decide(PG_FUNCTION_ARGS)
{
	Oid			types[] = {COLUMN_TYPES, INT4OID, bq_extension_type(fcinfo, "bq_statistics"),
	FLOAT8OID, FLOAT8OID, TEXTOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)];
	int			transform;

	get_arguments(fcinfo, 4, values, nulls);
	check_insert(PG_GETARG_OID(0));
	(void) run_as_owner(fcinfo, "bq_column_data",
						"UPDATE %s.bq_column_data SET transform = $3,"
						" decided_statistics = %s.bq_merge(NULL::%s.bq_statistics, $4),"
						" decided_count = ($4).count, f_axis = $5, f_rotate = $6,"
						" reason = $7, decided_at = now()" WHERE_COLUMN
						" AND decided_at IS NULL AND dim = cardinality(($4).mean)",
						lengthof(types), types, values, nulls, NULL);
	if (run_as_owner(fcinfo, "bq_column_data",
					 "SELECT transform::integer FROM %s.bq_column_data" WHERE_COLUMN
					 " AND decided_at IS NOT NULL",
					 2, types, values, NULL, &transform) == 0)
		report_unmatched(PG_GETARG_OID(0), NameStr(*PG_GETARG_NAME(1)));
	PG_RETURN_INT32(transform);
}

PG_FUNCTION_INFO_V1(bq_add_statistics);

/* SQL: bq_add_statistics(table, code_column, statistics) */
Datum
bq_add_statistics(PG_FUNCTION_ARGS)
{
	Oid			types[] = {COLUMN_TYPES, bq_extension_type(fcinfo, "bq_statistics")};
	Datum		values[] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1), PG_GETARG_DATUM(2)};

	check_insert(PG_GETARG_OID(0));
	if (run_as_owner(fcinfo, "bq_column_data",
					 "UPDATE %s.bq_column_data SET statistics = %s.bq_merge(statistics, $3)"
					 WHERE_COLUMN " AND dim = cardinality(($3).mean)",
					 lengthof(types), types, values, NULL, NULL) == 0)
		report_unmatched(PG_GETARG_OID(0), NameStr(*PG_GETARG_NAME(1)));
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(bq_record_load);

/* SQL: bq_record_load(table, source, batch, batch_rows, fingerprint, written) */
Datum
bq_record_load(PG_FUNCTION_ARGS)
{
	Oid			types[] = {OIDOID, TEXTOID, INT4OID, INT4OID, TEXTOID, INT8OID, OIDOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)];

	get_arguments(fcinfo, PG_NARGS(), values, nulls);
	values[PG_NARGS()] = ObjectIdGetDatum(GetUserId());
	nulls[PG_NARGS()] = ' ';
	check_insert(PG_GETARG_OID(0));
	(void) run_as_owner(fcinfo, "bq_loads",
						"INSERT INTO %s.bq_loads"
						" (table_name, source, batch, batch_rows, fingerprint, written, loader)"
						" VALUES ($1, $2, $3, $4, $5, $6, $7)",
						lengthof(types), types, values, nulls, NULL);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(bq_forget_load);

/* SQL: bq_forget_load(table, source); rows of the caller, so there is nothing to check */
Datum
bq_forget_load(PG_FUNCTION_ARGS)
{
	Oid			types[] = {OIDOID, TEXTOID, OIDOID};
	Datum		values[] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1), ObjectIdGetDatum(GetUserId())};

	(void) run_as_owner(fcinfo, "bq_loads",
						"DELETE FROM %s.bq_loads"
						" WHERE table_name::oid = $1 AND source = $2 AND loader = $3",
						lengthof(types), types, values, NULL, NULL);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(bq_table_in);

/*
 * Oid of the table of a name, as pg_dump writes it; 0 if there is none, or if it is the oid of
 * one that was gone when it was dumped.
 */
Datum
bq_table_in(PG_FUNCTION_ARGS)
{
	const char *name = PG_GETARG_CSTRING(0);
	List	   *names;

	if (name[0] != '\0' && strspn(name, "0123456789") == strlen(name))
		PG_RETURN_OID(InvalidOid);
#if PG_VERSION_NUM >= 160000
	names = stringToQualifiedNameList(name, fcinfo->context);
	if (names == NIL)
		PG_RETURN_NULL();
#else
	names = stringToQualifiedNameList(name);
#endif
	PG_RETURN_OID(RangeVarGetRelid(makeRangeVarFromNameList(names), NoLock, true));
}

PG_FUNCTION_INFO_V1(bq_table_out);

Datum
bq_table_out(PG_FUNCTION_ARGS)
{
	return regclassout(fcinfo);
}

PG_FUNCTION_INFO_V1(bq_skip_row);

/* SQL: BEFORE INSERT ... FOR EACH ROW EXECUTE FUNCTION bq_skip_row() */
Datum
bq_skip_row(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(((TriggerData *) fcinfo->context)->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(((TriggerData *) fcinfo->context)->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("bq_skip_row must be called BEFORE INSERT, FOR EACH ROW")));
	return PointerGetDatum(NULL);
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
 * the stored vectors of some pages.
 *
 * The cast to real[], and the expression of a virtual column, are code of the table's owner:
 * they run with the owner's privileges, as in ANALYZE, whoever calls.  The caller must be allowed
 * to read all rows.
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
	BqCaller	caller;
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

	check_select(table, source);
	percent = sample_percent(table, rows);
	caller = bq_become_owner(get_owner(table));
	if (SPI_execute(psprintf("SELECT %s.bq_statistics(%s::pg_catalog.float4[], %s)"
							 " FROM %s TABLESAMPLE SYSTEM (%.9g)",
							 schema, quote_identifier(source), normalize ? "true" : "false",
							 quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)),
														get_rel_name(table)),
							 percent),
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed on the sample: %s", SPI_result_code_string(SPI_result));
	bq_become_caller(&caller);
	result = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	if (!isnull)
		result = SPI_datumTransfer(result, false, -1);
	SPI_finish();
	if (isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result);
}
