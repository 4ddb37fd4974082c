/*
 * bqplan.c: plans that need not compute what they only order by.
 *
 * `SELECT id ... ORDER BY embedding <=> q LIMIT 10` has the distance in its target list, out
 * of sight.  An index scan has the order already, so nobody reads that column, but it is
 * computed for every row: with vectors out of line, a quarter of a query.  Where the
 * scan is all there is below LIMIT, a null takes its place.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "index/bqindex.h"
#include "nodes/makefuncs.h"
#include "nodes/plannodes.h"
#include "optimizer/planner.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/syscache.h"

static planner_hook_type previous_planner;
static bool called;				/* was the hook, or was a plan made without it noticed? */

/* Is this an index of this access method? */
static bool
is_bq_index(Oid index_oid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(index_oid));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_class) GETSTRUCT(tuple))->relam == get_am_oid("bq", true);
	ReleaseSysCache(tuple);
	return result;
}

/* A scan whose rows go to nobody who would look at columns out of sight. */
static void
forget_distance(IndexScan *scan)
{
	ListCell   *lc;

	if (list_length(scan->indexorderbyorig) != 1 || !is_bq_index(scan->indexid))
		return;
	foreach(lc, scan->scan.plan.targetlist)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (entry->resjunk && equal(entry->expr, linitial(scan->indexorderbyorig)))
			entry->expr = (Expr *) makeNullConst(FLOAT8OID, -1, InvalidOid);
	}
}

/* The plan of a query or subquery. */
static void
visit_top(Plan *plan)
{
	if (plan != NULL && IsA(plan, Limit))
		plan = plan->lefttree;
	if (plan == NULL)
		return;
	if (IsA(plan, IndexScan))
		forget_distance((IndexScan *) plan);
	else if (IsA(plan, SubqueryScan))
		visit_top(((SubqueryScan *) plan)->subplan);
}

/* Find subqueries anywhere below. */
static void
visit(Plan *plan)
{
	if (plan == NULL)
		return;
	if (IsA(plan, SubqueryScan))
	{
		visit_top(((SubqueryScan *) plan)->subplan);
		visit(((SubqueryScan *) plan)->subplan);
	}
	else if (IsA(plan, Append) || IsA(plan, MergeAppend))
	{
		ListCell   *lc;

		foreach(lc, IsA(plan, Append) ? ((Append *) plan)->appendplans :
				((MergeAppend *) plan)->mergeplans)
			visit((Plan *) lfirst(lc));
	}
	visit(plan->lefttree);
	visit(plan->righttree);
}

static PlannedStmt *
plan_query(Query *query, const char *text, int cursor_options, ParamListInfo params)
{
	PlannedStmt *result;

	called = true;
	result = previous_planner ? previous_planner(query, text, cursor_options, params) :
		standard_planner(query, text, cursor_options, params);

	/* rows that are to be locked are looked at again, out of sight or not */
	if (result->commandType == CMD_SELECT && result->rowMarks == NIL)
	{
		ListCell   *lc;

		visit_top(result->planTree);
		visit(result->planTree);
		foreach(lc, result->subplans)
		{
			visit_top((Plan *) lfirst(lc));
			visit((Plan *) lfirst(lc));
		}
	}
	return result;
}

/*
 * Called while a query is planned that may use an index.  In most sessions the first such
 * query loads this library, when its planner has begun without the hook.  If that is a
 * prepared statement, its plan would be kept: let it be made anew next time.
 */
void
bq_note_planning(void)
{
	if (!called)
		ResetPlanCache();
	called = true;
}

void
bq_plan_init(void)
{
	previous_planner = planner_hook;
	planner_hook = plan_query;
}
