/*
 * bqexplain.c: what EXPLAIN (ANALYZE) says of a scan beside "Index Searches": how many
 * lists it read and how many codes it compared, all loops together.  PostgreSQL 18 was
 * the first to let extensions add lines.
 */
#include "postgres.h"

#include "index/bqindex.h"

#if PG_VERSION_NUM >= 180000

#include "commands/explain.h"
#include "commands/explain_format.h"
#include "commands/explain_state.h"

static explain_per_node_hook_type previous_hook;

static void
explain_node(PlanState *planstate, List *ancestors, const char *relationship,
			 const char *plan_name, ExplainState *es)
{
	if (previous_hook)
		previous_hook(planstate, ancestors, relationship, plan_name, es);

	if (es->analyze && IsA(planstate, IndexScanState))
	{
		IndexScanState *state = (IndexScanState *) planstate;

		/* no scan: the node was never executed, or only by parallel workers */
		if (state->iss_ScanDesc != NULL &&
			state->iss_RelationDesc->rd_indam->amgettuple == bqgettuple)
		{
			BqScanReport report = bq_scan_report(state->iss_ScanDesc);

			ExplainPropertyInteger("Lists Read", NULL, report.nlists, es);
			ExplainPropertyInteger("Codes Compared", NULL, report.ncodes, es);
			if (report.nfetched > 0)
				ExplainPropertyInteger("Vectors Compared", NULL, report.nfetched, es);
		}
	}
}

void
bq_explain_init(void)
{
	previous_hook = explain_per_node_hook;
	explain_per_node_hook = explain_node;
}

#else

void
bq_explain_init(void)
{
}

#endif
