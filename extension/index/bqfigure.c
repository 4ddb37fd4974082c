/* bqfigure.c: from what is known of neighbours to the figures of a model. */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "index/bqmeasure.h"
#include "utils/memutils.h"

/* Of what may be lost, the part that may be lost by leaving blocks half read. */
#define STOP_SHARE 0.1
/* ... or by ranking the lists of few groups. */
#define GROUP_SHARE 0.1
/* Of rows beyond the tenth, the part that may be lost by the order of the estimates. */
#define LATER_SHARE 0.7

/* Room for what queries find; nothing was found yet. */
BqFigures *
bq_new_figures(const BqQueries *s, uint32 nlists)
{
	BqFigures  *f = (BqFigures *) palloc0(sizeof(BqFigures));

	f->nqueries = s->nqueries;
	f->margins = (float *) MemoryContextAllocHuge(CurrentMemoryContext,
												  (size_t) s->nqueries * nlists * sizeof(float));
	f->findings = (BqFinding *) palloc(s->nqueries * BQ_NEIGHBOURS * sizeof(BqFinding));
	f->slacks = (float *) palloc(s->nqueries * s->ncandidates * sizeof(float));
	f->later_slacks = (float *) palloc(s->nqueries * BQ_LATER_NEIGHBOURS * sizeof(float));
	return f;
}

/*
 * Take in where the neighbours of a query lie; `reached` is the cosine of its
 * BQ_MARGIN_RANKth row.
 */
void
bq_add_figures(BqFigures *f, const float *scores, uint32 nlists, const float *group_scores,
			   uint32 ngroups, double reached, const BqTrueNeighbour *neighbours, int n)
{
	if (n > 0)
		f->gap += neighbours[n - 1].cosine - reached;
	for (uint32 list = 0; list < nlists; list++)
		f->margins[f->nmargins++] = (float) (reached - scores[list]);
	for (int i = 0; i < n; i++)
	{
		BqFinding  *finding = &f->findings[f->n++];
		uint32		own = neighbours[i].neighbour->list;
		uint32		nbetter = 0;

		for (uint32 list = 0; list < nlists; list++)
			nbetter += scores[list] > scores[own];
		finding->lists = (float) nbetter;
		finding->margin = (float) (reached - scores[own]);
		nbetter = 0;
		for (uint32 group = 0; group < ngroups; group++)
			nbetter += group_scores[group] > group_scores[own / BQ_BLOCK];
		finding->groups = (float) nbetter;
		finding->slack = neighbours[i].slack;
		finding->deviations = neighbours[i].deviations;
	}
}

static int
compare_floats(const void *a, const void *b)
{
	float		x = *(const float *) a;
	float		y = *(const float *) b;

	return x < y ? -1 : x > y;
}

/* The value that a share of them does not exceed; sorts them. */
static float
quantile(float *values, size_t n, double share)
{
	qsort(values, n, sizeof(float), compare_floats);
	return values[Min(n - 1, (size_t) (n * share))];
}

/* How many of sorted values are not above `limit`. */
static size_t
count_up_to(const float *values, size_t n, float limit)
{
	size_t		low = 0;

	while (low < n)
	{
		size_t		middle = low + (n - low) / 2;

		if (values[middle] <= limit)
			low = middle + 1;
		else
			n = middle;
	}
	return low;
}

/* Rough costs of what a query does, in ns, for comparing ways to one recall. */
#define NS_PER_DIM_AND_CODE 0.018
#define LEFT_BY_STOPS 0.6		/* of that */
#define NS_PER_LIST 300
#define NS_PER_ROW 2000
#define NS_PER_TOASTED_ROW 9000

/* How many lists a query reads that goes so far. */
static double
count_lists(const BqFigures *f, bool by_margin, float lists)
{
	return by_margin ? (double) count_up_to(f->margins, f->nmargins, lists) / f->nqueries :
		lists + 1;
}

/*
 * Lower the margins of neighbours to those with which their lists are read.  Some of the nearest
 * are in any case: where more rows than BQ_MARGIN_RANK are equal, a large margin is the only other
 * way, which all queries would have to go.
 */
static void
lower_margins(BqFigures *f)
{
	for (size_t i = 0; i < f->n; i++)
	{
		BqFinding  *finding = &f->findings[i];
		double		place = (finding->lists + 1) / BQ_LEAST_PROBES * f->nqueries;

		if (finding->lists == 0)
			finding->margin = -FLT_MAX;
		else if (place < f->nmargins)
			finding->margin = Min(finding->margin, f->margins[(size_t) place]);
	}
}

/*
 * The cheapest way to a recall: the less is lost by the order of the estimates, the fewer
 * lists will do.  A neighbour is found if both its list and its slack are within reach.
 */
static void
choose_figures(const BqFigures *f, bool by_margin, double recall, double ns_per_list,
			   float *scratch, uint32 *nprobes, float *slack)
{
	double		ns_per_row = NS_PER_ROW +
		(f->nslacks > 0 ? (double) f->ntoasted / f->nslacks : 0) * NS_PER_TOASTED_ROW;
	double		least = DBL_MAX;
	size_t		wanted = (size_t) ceil(recall * f->n);

	for (int step = 1; step < 10; step++)
	{
		float		reach;
		float		lists;
		size_t		n = 0;
		double		cost;

		for (size_t i = 0; i < f->n; i++)
			scratch[i] = f->findings[i].slack;
		reach = quantile(scratch, f->n, 1 - (1 - recall) * step / 10);
		/*
		 * Less than none would give out rows beyond what the estimates say, which is
		 * well for the first ones and loses many later.
		 */
		reach = Max(reach, 0);
		for (size_t i = 0; i < f->n; i++)
			if (f->findings[i].slack <= reach)
				scratch[n++] = by_margin ? f->findings[i].margin : f->findings[i].lists;
		if (n < wanted)
			continue;
		qsort(scratch, n, sizeof(float), compare_floats);
		lists = scratch[Max(wanted, 1) - 1];
		cost = count_lists(f, by_margin, lists) * ns_per_list;
		if (f->nslacks > 0)
			cost += (double) count_up_to(f->slacks, f->nslacks, reach) / f->nqueries * ns_per_row;
		if (cost >= least)
			continue;
		least = cost;
		*nprobes = (uint32) Max(1, count_lists(f, by_margin, lists));
		if (f->nslacks == 0)
			continue;
		*slack = reach;
	}
}

/* All figures of a model, and its margins or none; false if no neighbour was found. */
bool
bq_fill_model(BqFigures *f, bool by_margin, bool exact, double rows_per_list, BqLayout *layout,
			  uint32 *nprobes)
{
	float	   *scratch = (float *) palloc((f->n + 1) * sizeof(float));
	double		ns_per_list = NS_PER_LIST + rows_per_list * layout->dim * NS_PER_DIM_AND_CODE *
		(f->stops ? LEFT_BY_STOPS : 1);
	double		stop_share = f->stops ? STOP_SHARE : 0;
	double		group_share = f->groups ? GROUP_SHARE : 0;

	if (f->n == 0)
		return false;
	qsort(f->margins, f->nmargins, sizeof(float), compare_floats);
	lower_margins(f);
	qsort(f->slacks, f->nslacks, sizeof(float), compare_floats);
	qsort(f->later_slacks, f->nlater, sizeof(float), compare_floats);
	for (int i = 0; i < BQ_RECALLS; i++)
	{
		/* re-ranking of what codes find is not the index's, and will lose some, too */
		double		lost = exact ? 1 - bq_recalls[i] : (1 - bq_recalls[i]) / 2;
		double		recall = 1 - lost * (1 - stop_share - group_share);

		for (size_t k = 0; k < f->n; k++)
			scratch[k] = f->findings[k].deviations;
		layout->model.deviations[i] = Max(layout->model.deviations[i],
										  quantile(scratch, f->n, 1 - lost * stop_share));
		for (size_t k = 0; k < f->n; k++)
			scratch[k] = f->findings[k].groups;
		layout->model.ngroups[i] = Max(layout->model.ngroups[i], 1 +
									   (uint32) quantile(scratch, f->n, 1 - lost * group_share));
		choose_figures(f, by_margin, recall, ns_per_list, scratch, &nprobes[i],
					   &layout->model.slack[i]);
		layout->model.later_slack[i] = f->nlater == 0 ? layout->model.slack[i] :
			f->later_slacks[Min(f->nlater - 1, (size_t) (f->nlater * (1 - lost * LATER_SHARE)))];
		nprobes[i] = Min(nprobes[i], layout->nlists);
	}
	layout->model.gap = (float) (f->gap / f->nqueries);
	memset(layout->margins, 0, sizeof(layout->margins));
	for (int i = 0; i < BQ_MARGINS && by_margin; i++)
	{
		double		probes = pow(layout->nlists, (double) i / (BQ_MARGINS - 1));

		layout->margins[i] = f->margins[Min(f->nmargins - 1, (size_t) (probes * f->nqueries))];
	}
	return true;
}
