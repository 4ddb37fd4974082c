/*
 * bqcost.c: the planner's estimate.
 *
 * Everything up to the first row is paid before it: ranking the lists, running the
 * table over the codes of the probed ones.  After that, each row costs its exact
 * distance and, to whoever fetches it, a random heap page.  A query that wants more
 * rows than the probed lists hold goes on reading lists.
 */
#include "postgres.h"

#include <math.h>

#include "access/genam.h"
#include "index/bqindex.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "utils/float.h"
#include "utils/spccache.h"

/*
 * Work per unit, in cpu_operator_cost (0.0025, about 20 ns here): a code's 16-byte
 * rows take 8 ns per 1,000 dims (benchmarks/kernels.py); a candidate's exact distance
 * takes about 200 ns.
 */
#define COST_PER_CODE_DIM (0.4 / 1000)
#define COST_PER_CANDIDATE 10.0

void
bqcostestimate(PlannerInfo *root, IndexPath *path, double loop_count, Cost *startup,
			   Cost *total, Selectivity *selectivity, double *correlation, double *pages)
{
	IndexOptInfo *info = path->indexinfo;
	Relation	index;
	BqLayout	layout;
	BqOptions  *options;
	double		rows = Max(info->tuples, 1);
	double		probes;
	double		first;
	double		share;
	double		wanted;
	double		page_cost;
	double		front_pages;
	double		data_pages;
	double		code_cost;

	*selectivity = 1;
	*correlation = 0;
	*pages = 0;

	/*
	 * Only ORDER BY distance can use the index; a second distance, which orders ties, is not its.
	 * Nor are groups: they want every row, also those without a code, and equal ones together.
	 */
	if (list_length(path->indexorderbys) != 1 || root->group_pathkeys != NIL)
	{
		*startup = get_float8_infinity();
		*total = get_float8_infinity();
#if PG_VERSION_NUM >= 180000
		/* as much disabled as two enable_* settings */
		path->path.disabled_nodes = 2;
#endif
		return;
	}

	index = index_open(info->indexoid, NoLock);
	layout = bq_get_layout(index);
	options = (BqOptions *) index->rd_options;
	probes = layout.nprobes;
	if (options != NULL && options->probes > 0)
		probes = options->probes;
	if (bq_probes > 0)
		probes = bq_probes;
	probes = Min(probes, layout.nlists);
	index_close(index, NoLock);

	/* The first segment, and what has to be read after it until enough rows came. */
	first = probes / layout.nlists;
	wanted = rows;
	if (root->limit_tuples > 0)
	{
		double		passing = path->path.parent->tuples > 0 ?
			path->path.parent->rows / path->path.parent->tuples : 1;

		wanted = Min(rows, root->limit_tuples / Max(passing, 1 / rows));
	}
	share = first;
	while (share * rows < wanted && share < 1)
		share = Min(1, share * 3);

	get_tablespace_page_costs(info->reltablespace, NULL, &page_cost);
	front_pages = layout.list_start - layout.centroid_start;
	data_pages = Max(0.0, (double) info->pages - layout.data_start);
	code_cost = cpu_operator_cost * layout.dim * COST_PER_CODE_DIM * rows + page_cost * data_pages;

	*startup = page_cost * front_pages + first * code_cost;
	if (layout.nlists > 1)
		*startup += cpu_operator_cost * layout.dim * COST_PER_CODE_DIM * layout.nlists;
	*total = *startup + (share - first) * code_cost +
		rows * (cpu_index_tuple_cost + COST_PER_CANDIDATE * cpu_operator_cost);
	*pages = front_pages + share * data_pages;
}
