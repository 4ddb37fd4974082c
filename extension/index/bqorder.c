/*
 * bqorder.c: lists in the order of their nearness to a query or a new row, as far as it is asked
 * for.
 *
 * Few lists are ranked all at once.  Of many, the groups are ranked (bqdirectory.h), and lists only
 * of the nearest groups: of ever more, the further the order is asked for.  What a scan has in
 * memory is then proportional to the groups and to the lists that it reads.
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "index/bqindex.h"
#include "utils/memutils.h"

/*
 * A query looks at as many groups as the figures of the index say (BqModel.ngroups), and at so
 * many more for 32 lists that it reads.
 */
#define LEAST_GROUPS 32
#define GROUPS_PER_32 6

/* The nearer a list or group the larger, with its number in the lower half; no two are equal. */
static inline uint64
rank_key(float score, uint32 number)
{
	uint32		bits;

	memcpy(&bits, &score, sizeof(bits));
	bits ^= bits & 0x80000000 ? 0xffffffff : 0x80000000;
	return (uint64) bits << 32 | (UINT32_MAX - number);
}

static inline uint32
ranked_number(uint64 key)
{
	return UINT32_MAX - (uint32) key;
}

static inline float
ranked_score(uint64 key)
{
	uint32		bits = (uint32) (key >> 32);
	float		score;

	bits ^= bits & 0x80000000 ? 0x80000000 : 0xffffffff;
	memcpy(&score, &bits, sizeof(score));
	return score;
}

/*
 * Heaps of keys
 */

static void
sink_key(uint64 *heap, uint32 n, uint32 i)
{
	uint64		moving = heap[i];

	for (uint32 child = 2 * i + 1; child < n; child = 2 * i + 1)
	{
		child += child + 1 < n && heap[child + 1] > heap[child];
		if (heap[child] < moving)
			break;
		heap[i] = heap[child];
		i = child;
	}
	heap[i] = moving;
}

static void
make_heap(uint64 *heap, uint32 n)
{
	for (uint32 i = n / 2; i-- > 0;)
		sink_key(heap, n, i);
}

/* Take the largest of n keys, the last of which takes its place. */
static uint64
pop_key(uint64 *heap, uint32 n)
{
	uint64		first = heap[0];

	heap[0] = heap[n - 1];
	sink_key(heap, n - 1, 0);
	return first;
}

/*
 * Ranking
 */

/* One standard deviation above the mean: a few times as many lists as most queries read. */
static float
high_score(const float *scores, uint32 n)
{
	double		sum = 0;
	double		squares = 0;

	for (uint32 i = 0; i < n; i++)
	{
		sum += scores[i];
		squares += (double) scores[i] * scores[i];
	}
	return (float) (sum / n + sqrt(Max(0, squares / n - sum / n * sum / n)));
}

/*
 * Rank n more lists: all, or those of these groups.  Of the first ones those of high scores are
 * a heap, which is all that most queries need.
 */
static void
add_lists(BqRanking *r, const float *scores, uint32 n, const uint32 *groups)
{
	bool		first = r->ranked == NULL;
	float		high = first ? high_score(scores, n) : -INFINITY;
	uint32		low;

	if (first)
		r->ranked = (uint64 *) palloc(n * sizeof(uint64));
	else
		r->ranked = (uint64 *) repalloc_huge(r->ranked, (r->nranked + n) * sizeof(uint64));
	if (!first)
		r->nheap = r->nranked;
	r->nranked += n;
	low = r->nranked;
	for (uint32 i = 0; i < n; i++)
	{
		uint32		list = groups == NULL ? i : groups[i / BQ_BLOCK] * BQ_BLOCK + i % BQ_BLOCK;

		/* also what is no number */
		r->ranked[scores[i] < high ? --low : r->nheap++] = rank_key(scores[i], list);
	}
	make_heap(r->ranked, r->nheap);
}

static void
rank_all_lists(BqRanking *r)
{
	uint32		nlists = r->layout->nlists;
	float	   *scores = (float *) palloc0(nlists * sizeof(float));

	if (nlists > 1)
		bq_score_lists(r->index, r->layout, &r->table, scores);
	add_lists(r, scores, nlists, NULL);
	pfree(scores);
}

static void
rank_groups(BqRanking *r)
{
	float	   *scores = (float *) palloc(r->ngroups * sizeof(float));

	bq_score_outer_groups(r->index, r->layout, &r->table, scores);
	r->groups = (uint64 *) palloc(r->ngroups * sizeof(uint64));
	for (uint32 group = 0; group < r->ngroups; group++)
		r->groups[group] = rank_key(scores[group], group);
	make_heap(r->groups, r->ngroups);
	pfree(scores);
}

static int
compare_numbers(const void *a, const void *b)
{
	uint32		x = *(const uint32 *) a;
	uint32		y = *(const uint32 *) b;

	return x < y ? -1 : x > y;
}

/*
 * Look at the nearest groups until these are so many, and at those that have no direction.  They
 * are read as they lie, the last one of the index, which may not be full, at the end.
 */
static void
look_at_groups(BqRanking *r, uint32 wanted)
{
	uint32	   *groups = (uint32 *) palloc(r->ngroups * sizeof(uint32));
	uint32		ngroups = 0;
	float	   *scores;
	uint32		n = 0;
	BqHeldPage	held = {InvalidBuffer, 0};

	while (r->ngroups > 0 &&
		   (r->nlooked + ngroups < wanted || ranked_score(r->groups[0]) == FLT_MAX))
		groups[ngroups++] = ranked_number(pop_key(r->groups, r->ngroups--));
	qsort(groups, ngroups, sizeof(uint32), compare_numbers);
	scores = (float *) palloc(Max(ngroups, 1) * BQ_BLOCK * sizeof(float));
	for (uint32 i = 0; i < ngroups; i++)
	{
		bool		ahead = i + 1 < ngroups && groups[i + 1] == groups[i] + 1;

		n += bq_score_group(r->index, r->layout, &r->table, groups[i] * BQ_BLOCK, ahead, &held,
							scores + n);
	}
	bq_release_page(&held);
	add_lists(r, scores, n, groups);
	r->nlooked += ngroups;
	pfree(scores);
	pfree(groups);
}

/*
 * Rank lists by a table of inner products, those of `ngroups` groups at first.  `ranking` stays
 * valid as long as the layout.
 */
void
bq_begin_ranking(BqRanking *r, Relation index, const BqLayout *layout, const BqTable *table,
				 uint32 ngroups)
{
	memset(r, 0, sizeof(BqRanking));
	r->index = index;
	r->layout = layout;
	r->table = *table;
	r->order_capacity = 64;
	r->order = (BqRankedList *) palloc(r->order_capacity * sizeof(BqRankedList));
	r->ngroups = bq_count_groups(layout);
	if (ngroups < r->ngroups)
	{
		rank_groups(r);
		look_at_groups(r, ngroups);
	}
	else
	{
		r->ngroups = 0;
		rank_all_lists(r);
	}
}

/* Let there be no lists. */
void
bq_forget_lists(BqRanking *r)
{
	r->ngroups = r->nheap = r->nranked = r->nordered = 0;
}

/* Is there an i-th nearest list?  Then it is in `order`. */
bool
bq_know_list(BqRanking *r, uint32 i)
{
	while (r->nordered <= i)
	{
		if (r->ngroups > 0 && (r->nranked == 0 || r->nlooked <
							   LEAST_GROUPS + GROUPS_PER_32 * (r->nordered / BQ_BLOCK)))
			look_at_groups(r, r->nlooked + r->nlooked / 4 + 1);
		if (r->nranked == 0)
			return false;
		if (r->nheap == 0)
		{
			r->nheap = r->nranked;
			make_heap(r->ranked, r->nheap);
		}
		if (r->nordered == r->order_capacity)
		{
			r->order_capacity *= 2;
			r->order = (BqRankedList *) repalloc_huge(r->order, r->order_capacity *
													  sizeof(BqRankedList));
		}
		r->order[r->nordered++].key = pop_key(r->ranked, r->nheap--);
		r->ranked[r->nheap] = r->ranked[--r->nranked];
	}
	return true;
}

/* The i-th nearest list, which is known. */
uint32
bq_ranked_list(const BqRanking *r, uint32 i)
{
	return ranked_number(r->order[i].key);
}

/* Its score. */
float
bq_ranked_score(const BqRanking *r, uint32 i)
{
	return ranked_score(r->order[i].key);
}

/* The list that a new row goes to. */
uint32
bq_nearest_list(Relation index, const BqLayout *layout, const float *q)
{
	MemoryContext context;
	MemoryContext old_context;
	BqRanking	ranking;
	BqTable		table;
	uint32		best;

	if (layout->nlists == 1)
		return 0;
	context = AllocSetContextCreate(CurrentMemoryContext, "bq ranking", ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(context);
	table = bq_make_table(q, layout->dim);
	/* for a recall of .9 they hold the nearest list of nearly every row, else one as near */
	bq_begin_ranking(&ranking, index, layout, &table, layout->model.ngroups[1]);
	bq_know_list(&ranking, 0);
	best = bq_ranked_list(&ranking, 0);
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
	return best;
}
