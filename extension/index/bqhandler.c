/* bqhandler.c: what the planner and the catalogs see of the access method. */
#include "postgres.h"

#include "access/amvalidate.h"
#include "access/htup_details.h"
#include "access/reloptions.h"
#include "catalog/pg_amop.h"
#include "catalog/pg_amproc.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_opfamily.h"
#include "catalog/pg_type.h"
#include "commands/progress.h"
#include "commands/vacuum.h"
#include "index/bqkey.h"
#include "index/bqscan.h"
#include "index/bqbuild.h"
#include "index/bqsource.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

int			bq_probes;
double		bq_recall_wanted;
int			bq_iterative_scan;
int			bq_max_scan_tuples;

/* The names of pgvector's hnsw.iterative_scan; a boolean does, too. */
static const struct config_enum_entry iterative_scan_options[] = {
	{"off", BQ_ITERATIVE_OFF, false},
	{"strict_order", BQ_ITERATIVE_STRICT, false},
	{"relaxed_order", BQ_ITERATIVE_RELAXED, false},
	{"on", BQ_ITERATIVE_STRICT, true},
	{NULL, 0, false}
};

static relopt_kind bq_relopt_kind;

/* Settings and options; called once, when the library is loaded. */
void
bq_index_init(void)
{
	bq_relopt_kind = add_reloption_kind();
	add_int_reloption(bq_relopt_kind, "lists",
					  "Number of inverted lists, 0 to derive it from the number of rows",
					  0, 0, BQ_MAX_LISTS, AccessExclusiveLock);
	add_int_reloption(bq_relopt_kind, "probes",
					  "Number of lists that scans read first on average, 0 for what the wanted recall needs",
					  0, 0, BQ_MAX_LISTS, AccessExclusiveLock);

	add_real_reloption(bq_relopt_kind, "recall",
					   "Share of the nearest rows that queries should find, 0 for the default",
					   0, 0, 1, AccessExclusiveLock);
	add_int_reloption(bq_relopt_kind, "transform",
					  "Transform of an index on vectors, -1 to choose it from the rows",
					  -1, -1, BQ_MAX_TRANSFORM, AccessExclusiveLock);

	DefineCustomRealVariable("bq.recall",
							 "Share of the nearest rows that queries should find.",
							 "0 takes the index's option or, without one, 0.98.",
							 &bq_recall_wanted, 0, 0, 1, PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("bq.probes",
							"Number of lists that scans read first, on average.",
							"0 takes the index's option or, without one, what bq.recall needs.",
							&bq_probes, 0, 0, BQ_MAX_LISTS, PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomEnumVariable("bq.iterative_scan",
							 "Read more lists while the query wants more rows.",
							 "strict_order passes over rows that are nearer than one given before; relaxed_order gives them late.",
							 &bq_iterative_scan, BQ_ITERATIVE_STRICT, iterative_scan_options,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("bq.max_scan_tuples",
							"Number of rows after which a scan reads no more lists.",
							"-1 means no limit: a scan ends when the query has its rows or all lists were read.",
							&bq_max_scan_tuples, -1, -1, INT_MAX, PGC_USERSET, 0, NULL, NULL, NULL);

	bq_explain_init();
	bq_plan_init();
}

static bytea *
bqoptions(Datum reloptions, bool validate)
{
	static const relopt_parse_elt options[] = {
		{.optname = "lists", .opttype = RELOPT_TYPE_INT, .offset = offsetof(BqOptions, lists)},
		{.optname = "probes", .opttype = RELOPT_TYPE_INT, .offset = offsetof(BqOptions, probes)},
		{.optname = "recall", .opttype = RELOPT_TYPE_REAL, .offset = offsetof(BqOptions, recall)},
		{.optname = "transform", .opttype = RELOPT_TYPE_INT, .offset = offsetof(BqOptions, transform)},
	};

	return (bytea *) build_reloptions(reloptions, validate, bq_relopt_kind, sizeof(BqOptions),
									  options, lengthof(options));
}

static char *
bqbuildphasename(int64 phase)
{
	switch (phase)
	{
		case PROGRESS_CREATEIDX_SUBPHASE_INITIALIZE:
			return "loading codes";
		case BQ_PHASE_TRAIN:
			return "training lists";
		case BQ_PHASE_ASSIGN:
			return "assigning rows to lists";
		case BQ_PHASE_WRITE:
			return "writing lists";
		default:
			return NULL;
	}
}

/* Complain of a member of an operator family. */
static void
complain(const char *opfamily, const char *member, const char *what)
{
	ereport(INFO,
			(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
			 errmsg("operator family \"%s\" of access method %s contains %s %s", opfamily, "bq",
					member, what)));
}

/* One operator of the family: is it what a scan can answer? */
static bool
validate_operator(Form_pg_amop form, const char *opfamily, Oid opcintype)
{
	char	   *member = psprintf("operator %s", format_operator(form->amopopr));
	bool		distance = form->amopstrategy <= BQ_DISTANCES;
	bool		valid = true;

	if (form->amopstrategy < 1 || form->amopstrategy > BQ_STRATEGIES)
	{
		complain(opfamily, member, psprintf("with invalid strategy number %d", form->amopstrategy));
		valid = false;
	}
	if (form->amoppurpose != (distance ? AMOP_ORDER : AMOP_SEARCH))
	{
		complain(opfamily, member, distance ? "that is not for ORDER BY" : "that is not for searching");
		valid = false;
	}
	else if (distance && (get_op_rettype(form->amopopr) != FLOAT8OID ||
						  !opfamily_can_sort_type(form->amopsortfamily, FLOAT8OID)))
	{
		complain(opfamily, member, "with an incorrect ORDER BY operator family");
		valid = false;
	}
	if (!check_amop_signature(form->amopopr, distance ? FLOAT8OID : BOOLOID, opcintype,
							  form->amoprighttype))
	{
		complain(opfamily, member, "with wrong signature");
		valid = false;
	}
	return valid;
}

/* Name of an operator family; get_opfamily_name() is new in PostgreSQL 18. */
static char *
opfamily_name(Oid oid)
{
	HeapTuple	tuple = SearchSysCache1(OPFAMILYOID, ObjectIdGetDatum(oid));
	char	   *name;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator family %u", oid);
	name = pstrdup(NameStr(((Form_pg_opfamily) GETSTRUCT(tuple))->opfname));
	ReleaseSysCache(tuple);
	return name;
}

/* What a class is for, by its support function. */
typedef enum ClassKind
{
	CLASS_OF_CODES,				/* none: all distances */
	CLASS_OF_VECTORS,			/* BQ_SOURCE_PROC: one distance, not Hamming's */
	CLASS_OF_FILTERS			/* BQ_KEY_PROC: comparisons */
} ClassKind;

static bool
validate_procs(CatCList *procs, const char *opfamily, Oid opcintype, ClassKind *kind)
{
	bool		valid = true;

	*kind = CLASS_OF_CODES;
	for (int i = 0; i < procs->n_members; i++)
	{
		Form_pg_amproc form = (Form_pg_amproc) GETSTRUCT(&procs->members[i]->tuple);

		if (form->amproclefttype != opcintype)
			continue;
		if (*kind != CLASS_OF_CODES || form->amprocnum < BQ_SOURCE_PROC ||
			form->amprocnum > BQ_KEY_PROC ||
			!check_amproc_signature(form->amproc, INTERNALOID, true, 1, 1, INTERNALOID))
		{
			complain(opfamily, psprintf("function %s", format_procedure(form->amproc)),
					 psprintf("with wrong signature for support number %d", form->amprocnum));
			valid = false;
		}
		*kind = form->amprocnum == BQ_KEY_PROC ? CLASS_OF_FILTERS : CLASS_OF_VECTORS;
	}
	return valid;
}

/* Does a class of this kind have the operators it should?  Bit s of `seen`: strategy s. */
static bool
has_operators(ClassKind kind, uint32 seen)
{
	uint32		distances = seen & ((1u << (BQ_DISTANCES + 1)) - 1);

	switch (kind)
	{
		case CLASS_OF_CODES:
			return seen == ((1u << (BQ_DISTANCES + 1)) - 2);
		case CLASS_OF_VECTORS:
			return seen == distances && seen != 0 && (seen & (seen - 1)) == 0 &&
				seen != 1u << BQ_STRATEGY_HAMMING;
		default:
			return distances == 0 && (seen & (1u << BQ_STRATEGY_EQUAL));
	}
}

bool
bqvalidate(Oid opclass)
{
	HeapTuple	class_tuple = SearchSysCache1(CLAOID, ObjectIdGetDatum(opclass));
	Form_pg_opclass class_form;
	char	   *opfamily;
	CatCList   *operators;
	CatCList   *procs;
	ClassKind	kind;
	uint32		seen = 0;
	bool		valid = true;

	if (!HeapTupleIsValid(class_tuple))
		elog(ERROR, "cache lookup failed for operator class %u", opclass);
	class_form = (Form_pg_opclass) GETSTRUCT(class_tuple);
	opfamily = opfamily_name(class_form->opcfamily);

	operators = SearchSysCacheList1(AMOPSTRATEGY, ObjectIdGetDatum(class_form->opcfamily));
	for (int i = 0; i < operators->n_members; i++)
	{
		Form_pg_amop form = (Form_pg_amop) GETSTRUCT(&operators->members[i]->tuple);

		if (form->amoplefttype != class_form->opcintype)
			continue;
		valid &= validate_operator(form, opfamily, class_form->opcintype);
		if (form->amopstrategy >= 1 && form->amopstrategy <= BQ_STRATEGIES)
			seen |= 1u << form->amopstrategy;
	}
	procs = SearchSysCacheList1(AMPROCNUM, ObjectIdGetDatum(class_form->opcfamily));
	valid &= validate_procs(procs, opfamily, class_form->opcintype, &kind);
	if (!has_operators(kind, seen))
	{
		ereport(INFO,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
				 errmsg("operator class \"%s\" of access method %s is missing operators, or has some too many",
						NameStr(class_form->opcname), "bq"),
				 errdetail("Codes have the distances 1 to %d, vectors one of 2 to %d, filters at least \"=\" (%d).",
						   BQ_DISTANCES, BQ_DISTANCES, BQ_STRATEGY_EQUAL)));
		valid = false;
	}

	ReleaseCatCacheList(procs);
	ReleaseCatCacheList(operators);
	ReleaseSysCache(class_tuple);
	return valid;
}

PG_FUNCTION_INFO_V1(bqhandler);
Datum
bqhandler(PG_FUNCTION_ARGS)
{
	IndexAmRoutine *am = makeNode(IndexAmRoutine);

	am->amstrategies = BQ_STRATEGIES;
	am->amsupport = BQ_KEY_PROC;
	am->amoptsprocnum = 0;
	am->amcanorderbyop = true;
	am->amcanmulticol = true;	/* the first column is searched, the others filter */
	am->amoptionalkey = true;
	am->amsearcharray = true;
	am->amsearchnulls = true;
	am->amusemaintenanceworkmem = false;
#if PG_VERSION_NUM >= 170000
	am->amcanbuildparallel = true;
#endif
	am->amparallelvacuumoptions = VACUUM_OPTION_PARALLEL_BULKDEL;
	am->amkeytype = InvalidOid;

	am->ambuild = bqbuild;
	am->ambuildempty = bqbuildempty;
	am->aminsert = bqinsert;
	am->ambulkdelete = bqbulkdelete;
	am->amvacuumcleanup = bqvacuumcleanup;
	am->amcostestimate = bqcostestimate;
	am->amoptions = bqoptions;
	am->ambuildphasename = bqbuildphasename;
	am->amvalidate = bqvalidate;
	am->ambeginscan = bqbeginscan;
	am->amrescan = bqrescan;
	am->amgettuple = bqgettuple;
	am->amendscan = bqendscan;

	PG_RETURN_POINTER(am);
}
