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
#include "index/bqsource.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "utils/selfuncs.h"
#include "utils/spccache.h"

/*
 * Work per unit, in cpu_operator_cost (0.0025, about 20 ns here): a code's 16-byte
 * rows take 8 ns per 1,000 dims (benchmarks/kernels.py); a candidate's exact distance
 * takes about 200 ns.
 */
#define COST_PER_CODE_DIM (0.4 / 1000)
#define COST_PER_CANDIDATE 10.0

/*
 * Of a path that is not to be taken: more than any path that can be.  Not infinity: the planner
 * takes differences of costs, and one that is no number loses to nothing.
 */
#define NEVER 1e100

/* Of a table of vectors that lie in its own pages, the index has a fifth at most. */
#define SHARE_OF_VECTORS 0.2

/*
 * min(distance) is planned as ORDER BY distance LIMIT 1 of rows whose distance is not
 * null; the planner tells no more of it than this form.
 */
static bool
is_minimum(PlannerInfo *root, IndexPath *path)
{
	ListCell   *lc;

	if (root->parent_root == NULL || !root->parent_root->parse->hasAggs ||
		!equal(root->parse->rtable, root->parent_root->parse->rtable))
		return false;
	foreach(lc, path->path.parent->baserestrictinfo)
	{
		Expr	   *clause = lfirst_node(RestrictInfo, lc)->clause;

		if (IsA(clause, NullTest) && ((NullTest *) clause)->nulltesttype == IS_NOT_NULL &&
			equal(((NullTest *) clause)->arg, linitial(path->indexorderbys)))
			return true;
	}
	return false;
}

/* Path keys are canonical: the same order is the same pointer. */
static bool
begins_with(List *wanted, List *pathkeys)
{
	return wanted != NIL && linitial(wanted) == linitial(pathkeys);
}

/*
 * Does the query want the nearest rows, in their order?  That is what the index can
 * answer: it finds most of them, leaves out rows without a vector, and does not know when
 * it has all.  So no groups, no DISTINCT, no UNION, no partitions of a window, and no
 * minimum, whose meaning is another; and no second distance, which orders ties.
 */
static bool
is_nearest_first(PlannerInfo *root, IndexPath *path)
{
	Query	   *query = root->parse;
	ListCell   *lc;

	if (list_length(path->indexorderbys) != 1 || path->path.pathkeys == NIL)
		return false;
	/* rows without a vector, of all things */
	foreach(lc, path->indexclauses)
	{
		IndexClause *clause = lfirst_node(IndexClause, lc);

		if (clause->indexcol == 0 && IsA(clause->rinfo->clause, NullTest) &&
			((NullTest *) clause->rinfo->clause)->nulltesttype == IS_NULL)
			return false;
	}
	if (root->group_pathkeys != NIL || query->groupClause != NIL || query->groupingSets != NIL ||
		query->hasAggs || query->distinctClause != NIL || query->setOperations != NULL)
		return false;
	foreach(lc, query->windowClause)
	{
		WindowClause *window = lfirst_node(WindowClause, lc);

		if (window->partitionClause != NIL || window->orderClause == NIL)
			return false;
	}
	/* an order that the query asks for, not one that a join or a set operation would like */
	if (!begins_with(root->sort_pathkeys, path->path.pathkeys) &&
		!(query->limitCount != NULL && begins_with(root->window_pathkeys, path->path.pathkeys)))
		return false;
	return !is_minimum(root, path);
}

void
bqcostestimate(PlannerInfo *root, IndexPath *path, double loop_count, Cost *startup,
			   Cost *total, Selectivity *selectivity, double *correlation, double *pages)
{
	IndexOptInfo *info = path->indexinfo;
	Relation	index;
	BqLayout	layout;
	double		rows;
	double		blocks_read;
	double		header_share;
	double		probes;
	double		first;
	double		share;
	double		wanted;
	double		page_cost;
	double		front_pages;
	double		data_pages;
	double		code_cost;
	bool		on_vectors;

	bq_note_planning();
	*selectivity = 1;
	*correlation = 0;
	*pages = 0;

	if (!is_nearest_first(root, path))
	{
		*startup = NEVER;
		*total = NEVER;
#if PG_VERSION_NUM >= 180000
		/* as much disabled as two enable_* settings */
		path->path.disabled_nodes = 2;
#endif
		return;
	}

	index = index_open(info->indexoid, NoLock);
	layout = bq_get_layout(index);
	probes = bq_wanted_reach(index, &layout, BQ_STRATEGY_COSINE).nprobes;
	on_vectors = bq_get_source(index) != NULL;
	index_close(index, NoLock);

	/* Rows that meet the conditions lie in more lists; codes of blocks without any stay unread. */
	if (path->indexclauses != NIL)
		*selectivity = clauselist_selectivity(root, get_quals_from_indexclauses(path->indexclauses),
											  info->rel->relid, JOIN_INNER, NULL);
	rows = Max(info->tuples * *selectivity, 1);
	blocks_read = 1 - pow(1 - *selectivity, BQ_BLOCK);
	probes = Min(probes * pow(Max(*selectivity, 1 / Max(info->tuples, 1)), -0.35), layout.nlists);

	/* The first segment, and what has to be read after it until enough rows came. */
	first = probes / layout.nlists;
	wanted = rows;
	if (root->limit_tuples > 0)
	{
		double		passing = info->rel->tuples > 0 ?
			info->rel->rows / (info->rel->tuples * *selectivity) : 1;

		wanted = Min(rows, root->limit_tuples / Max(passing, 1 / rows));
	}
	share = first;
	while (share * rows < wanted && share < 1)
		share = Min(1, share * 3);

	get_tablespace_page_costs(info->reltablespace, NULL, &page_cost);
	front_pages = layout.nlists > 1 ?
		(double) bq_count_directory_blocks(&layout) * layout.nrows / BQ_ROWS_PER_PAGE : 0;
	data_pages = Max(0.0, (double) info->pages - layout.data_start - front_pages);

	/*
	 * A sequential scan is planned as if vectors out of line (TOAST) cost nothing; it would always
	 * look cheaper than codes, of which there are pages that count.
	 */
	if (on_vectors && front_pages + data_pages > SHARE_OF_VECTORS * info->rel->pages)
	{
		double		factor = SHARE_OF_VECTORS * info->rel->pages / (front_pages + data_pages);

		front_pages *= factor;
		data_pages *= factor;
	}
	header_share = (double) layout.header_nbytes /
		(layout.header_nbytes + (double) layout.nrows * BQ_ROW_NBYTES);
	data_pages *= header_share + (1 - header_share) * blocks_read;
	code_cost = cpu_operator_cost * layout.dim * COST_PER_CODE_DIM * info->tuples * blocks_read +
		page_cost * data_pages;

	*startup = page_cost * front_pages + first * code_cost;
	if (layout.nlists > 1)
		*startup += cpu_operator_cost * layout.dim * COST_PER_CODE_DIM * layout.nlists;
	*total = *startup + (share - first) * code_cost +
		rows * (cpu_index_tuple_cost + COST_PER_CANDIDATE * cpu_operator_cost);
	*pages = front_pages + share * data_pages;
}
