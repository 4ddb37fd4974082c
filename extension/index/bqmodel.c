/*
 * bqmodel.c: how far a query goes for a wanted recall, by the figures of its index (BqModel).
 */
#include "postgres.h"

#include <math.h>

#include "index/bqmeasure.h"

#define DEFAULT_RECALL 0.98

/*
 * Estimates of cosines have errors of about 0.36 / sqrt(dim) (standard deviation; codes of
 * random directions).  Three of them where nothing was measured, eight to miss nothing.
 */
#define ESTIMATE_ERROR 0.36
#define UNKNOWN_SLACK (3 * ESTIMATE_ERROR)
#define FULL_SLACK (8 * ESTIMATE_ERROR)

/* With so many deviations little is lost where nothing was measured. */
#define UNKNOWN_DEVIATIONS 2.5

const double bq_recalls[BQ_RECALLS] = {0.80, 0.90, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999};

/* The setting, the option of the index, or the default. */
double
bq_wanted_recall(Relation index)
{
	BqOptions  *options = (BqOptions *) index->rd_options;

	if (bq_recall_wanted > 0)
		return bq_recall_wanted;
	if (options != NULL && options->recall > 0)
		return options->recall;
	return DEFAULT_RECALL;
}

/*
 * The place of a recall among those of the figures, linear in the logarithm of what is lost:
 * between figures i and i + 1, at `share` of the way or beyond.
 */
static int
find_place(double recall, double *share)
{
	double		lost = 1 - recall;
	int			i = 0;

	while (i < BQ_RECALLS - 2 && lost < 1 - bq_recalls[i + 1])
		i++;
	*share = log((1 - bq_recalls[i]) / lost) / log((1 - bq_recalls[i]) / (1 - bq_recalls[i + 1]));
	*share = Max(0, *share);
	return i;
}

static double
interpolate(const float *figures, double recall)
{
	double		share;
	int			i = find_place(recall, &share);

	return figures[i] + (figures[i + 1] - figures[i]) * share;
}

/*
 * The slack that misses nothing.  Errors are those of random directions after a rotation
 * only.  On the axes vectors may have a common one (where most coordinates are 0, say), up to
 * the length of the levels: then no estimate excludes a row.
 */
static double
full_slack(const BqLayout *layout)
{
	return layout->transform == 0 ? BQ_STRONG : FULL_SLACK / sqrt(layout->dim);
}

/* How far a query goes: by the settings, the options of the index, and its figures. */
BqReach
bq_wanted_reach(Relation index, const BqLayout *layout, int strategy)
{
	BqOptions  *options = (BqOptions *) index->rd_options;
	double		recall = bq_wanted_recall(index);
	const BqModel *model = &layout->model;
	/* indexes on vectors have one distance */
	const uint32 *probes = strategy == BQ_STRATEGY_IP && bq_get_source(index) == NULL ?
		model->product_nprobes : model->nprobes;
	BqReach		reach;

	if (recall < 1)
	{
		double		share;
		int			i = find_place(recall, &share);
		double		n = probes[i] * pow((double) probes[i + 1] / probes[i], share);

		reach.nprobes = (uint32) Max(1, rint(Min(n, layout->nlists)));
		reach.ngroups = model->ngroups[i + (share > 0)];
		reach.slack = Min(interpolate(model->slack, recall), full_slack(layout));
		reach.later_slack = Min(interpolate(model->later_slack, recall), full_slack(layout));
		reach.later_slack = Max(reach.slack, reach.later_slack);
		reach.deviations = Max(0, interpolate(model->deviations, recall));
	}
	else
	{
		reach.nprobes = layout->nlists;
		reach.ngroups = UINT32_MAX;
		reach.slack = reach.later_slack = full_slack(layout);
		reach.deviations = BQ_NO_STOP;
	}
	/* settings beat options */
	if (options != NULL && options->probes > 0 && bq_recall_wanted == 0)
		reach.nprobes = Min((uint32) options->probes, layout->nlists);
	if (bq_probes > 0)
		reach.nprobes = Min((uint32) bq_probes, layout->nlists);
	/* who asks for all lists means all rows */
	if (reach.nprobes == layout->nlists)
	{
		reach.deviations = BQ_NO_STOP;
		reach.ngroups = UINT32_MAX;
	}
	return reach;
}

/* Figures of an index without rows, or with one list: nothing to measure. */
void
bq_clear_model(BqLayout *layout)
{
	for (int i = 0; i < BQ_RECALLS; i++)
	{
		layout->model.nprobes[i] = 1;
		layout->model.product_nprobes[i] = 1;
		layout->model.slack[i] = (float) (UNKNOWN_SLACK / sqrt(layout->dim));
		layout->model.later_slack[i] = layout->model.slack[i];
		layout->model.deviations[i] = UNKNOWN_DEVIATIONS;
		layout->model.ngroups[i] = UINT32_MAX;
	}
	layout->model.gap = 0;
}
