/*
 * bqchoice.c: original axes or a random rotation, for an index on vectors.
 *
 * A sample of the table's rows is searched with some of its own rows, by codes made both ways
 * (core/bqsearch.h): the choice is the side that finds more of their true neighbours.  No
 * closed form is as safe: dependence between coordinates shows in what is found, and in no
 * statistic of single ones.  What is as good either way is rotated: a rotation costs
 * nothing, and keeps what later rows may need.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/index.h"
#include "index/bqsource.h"
#include "type/bqcolumns.h"
#include "type/bqvec.h"
#include "utils/lsyscache.h"

/* The axes are chosen only if they find so much more. */
#define CLEAR_GAIN 0.01

/* Of fewer rows all codes are read anyway, and the gain is mostly chance. */
#define DRIFT_ROWS 1000

/* The order that rows are searched in; of norm 1, by cosine, both are the same. */
static BqSearchOrder
search_order(Relation index)
{
	return bq_index_metric(index) == BQ_STRATEGY_IP ? BQ_BY_PRODUCT : BQ_BY_DISTANCE;
}

static double
recall(int64 found, const BqSearches *searches)
{
	return (double) found / ((double) searches->count * BQ_SEARCH_NEIGHBOURS);
}

/* How much more of the neighbours the rotation finds, and the standard error of that. */
static double
rotation_gain(const BqSearches *searches, BqSearchOrder order, double *error)
{
	double		gain = recall(searches->found_rotated[order], searches) -
		recall(searches->found_axes[order], searches);
	double		square = (double) searches->squares[order] / (double) searches->count /
		(BQ_SEARCH_NEIGHBOURS * BQ_SEARCH_NEIGHBOURS);

	*error = sqrt(Max(square - gain * gain, 0) / (double) searches->count);
	return gain;
}

/* What pybq decided for codes of the same column; -1: nothing. */
static int
decided_transform(Relation heap, Relation index)
{
	AttrNumber	column = index->rd_index->indkey.values[0];

	if (column == 0)			/* an expression */
		return -1;
	return bq_decided_transform(get_func_namespace(index->rd_amhandler), RelationGetRelid(heap),
								NameStr(TupleDescAttr(RelationGetDescr(heap), column - 1)->attname));
}

/*
 * The transform of an index that has no rows.  One on codes has that of its column's type; -1: it
 * has none, the first row decides.
 */
int
bq_transform_without_rows(Relation index)
{
	BqOptions  *options = (BqOptions *) index->rd_options;

	if (bq_get_source(index) == NULL)
		return bq_typmod_transform(bq_column_typmod(RelationGetDescr(index), 1));
	return options != NULL && options->transform >= 0 ? options->transform : BQ_SEARCH_TRANSFORM;
}

/* Choose the transform of an index on vectors: what was decided before, or what suits the rows. */
BqChoice
bq_choose_transform(Relation heap, Relation index, IndexInfo *info, int dim)
{
	BqOptions  *options = (BqOptions *) index->rd_options;
	BqChoice	choice = {.reason = BQ_CHOICE_FEW_ROWS, .transform = BQ_SEARCH_TRANSFORM};
	int			decided = decided_transform(heap, index);
	const BqSearches *searches;
	double		error;

	if (options != NULL && options->transform >= 0)
	{
		choice.reason = BQ_CHOICE_OPTION;
		choice.transform = options->transform;
		return choice;
	}
	if (decided >= 0)
	{
		choice.reason = BQ_CHOICE_COLUMN;
		choice.transform = decided;
		return choice;
	}
	choice.statistics = bq_sample_rows(heap, index, info, dim);
	searches = &choice.statistics->searches;
	if (searches->count > 0)
	{
		choice.reason = BQ_CHOICE_MEASURED;
		if (rotation_gain(searches, search_order(index), &error) < -CLEAR_GAIN)
			choice.transform = 0;
	}
	if (choice.statistics->count == 0)
		choice.statistics = NULL;
	return choice;
}

/* What a sample of rows says, in words. */
static const char *
tell_searches(Relation index, const BqSearches *searches, int64 nrows, const char *verb)
{
	BqSearchOrder order = search_order(index);

	return psprintf("of the ten nearest among %lld rows, codes on the axes %s %.3f, rotated %.3f",
					(long long) nrows, verb, recall(searches->found_axes[order], searches),
					recall(searches->found_rotated[order], searches));
}

/* Why an index on vectors has its transform, in words; NULL: it is on codes. */
const char *
bq_tell_choice(Relation index, const BqMetaPageData *meta)
{
	const char *side = meta->transform == 0 ? "axes" : "rotation";

	if (bq_get_source(index) == NULL)
		return NULL;
	switch ((BqChoiceReason) meta->choice)
	{
		case BQ_CHOICE_MEASURED:
			if (meta->searches.count > 0)
				return psprintf("%s: %s", side, tell_searches(index, &meta->searches,
															  (int64) meta->sample_rows, "find"));
			break;
		case BQ_CHOICE_OPTION:
			return psprintf("%s: as the option transform says", side);
		case BQ_CHOICE_COLUMN:
			return psprintf("%s: as was decided for codes of the same column, see bq_columns",
							side);
		case BQ_CHOICE_FEW_ROWS:
			break;
	}
	return psprintf("%s: there were too few rows to measure", side);
}

/*
 * When the other choice would find clearly more in the rows that are there now, in words; else
 * NULL.  A choice that REINDEX would make again, by the option or bq_columns, is left alone.
 */
const char *
bq_tell_drift(Relation heap, Relation index, const BqMetaPageData *meta)
{
	IndexInfo  *info;
	BqStatistics *now;
	double		gain;
	double		error;

	if (bq_get_source(index) == NULL || decided_transform(heap, index) >= 0 ||
		(meta->choice != BQ_CHOICE_MEASURED && meta->choice != BQ_CHOICE_FEW_ROWS))
		return NULL;
	info = BuildIndexInfo(index);
	/* see what a query sees: a build would warn of rows that are on their way */
	info->ii_Concurrent = true;
	now = bq_sample_rows(heap, index, info, (int) meta->dim);
	if (now->searches.count == 0 || now->count < DRIFT_ROWS)
		return NULL;
	gain = rotation_gain(&now->searches, search_order(index), &error);
	if (meta->transform != 0)
		gain = -gain;
	if (gain <= Max(CLEAR_GAIN, 2 * error))
		return NULL;
	return psprintf("REINDEX: %s would now be better; %s",
					meta->transform == 0 ? "a rotation" : "the original axes",
					tell_searches(index, &now->searches, now->count, "now find"));
}
