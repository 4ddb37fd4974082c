/*
 * bqscan.h: a query in progress, shared by the files that answer it:
 *
 *	bqscan.c		the access method's callbacks: prepare the query, give out rows
 *	bqprobe.c		which lists to read, and reading them into candidates
 *	bqshare.c		reading lists once for many queries
 *	bqbatch.c		many queries at once
 *	bqstop.c		when to leave a block half read
 *	bqbound.c		what sums say of distances
 *	bqcandidate.c	the candidates: the best ones in memory, or all of them sorted
 *	bqexact.c		the exact distance of a candidate
 *	bqstat.c		what scans did, for monitoring
 */
#ifndef BQSCAN_H
#define BQSCAN_H

#include "index/bqkey.h"
#include "index/bqsource.h"
#include "utils/hsearch.h"
#include "utils/tuplesort.h"

/*
 * Nearest rows that a BqModel is about: so many are looked for when it is measured, and beyond
 * them a scan takes more care.
 */
#define BQ_NEIGHBOURS 10

/* By margin, a scan reads at least this part of the lists that the average one reads, and one. */
#define BQ_LEAST_PROBES 0.25

/* Rows kept as candidates at first: LIMIT 40 (k = 10, rerank = 4) and a good margin. */
#define BQ_FIRST_KEEP BQ_MARGIN_RANK

/* Rows of vectors that are fetched together, at first and later, at most. */
#define BQ_FIRST_BATCH 16
#define BQ_LATER_BATCH 8
#define BQ_MAX_BATCH 16

/* Lists, if they are on disk, that are asked for at once. */
#define BQ_MAX_AHEAD 15

/* What bq.iterative_scan says of rows found late. */
typedef enum BqIterativeScan
{
	BQ_ITERATIVE_OFF,			/* read no more lists than the first ones */
	BQ_ITERATIVE_STRICT,		/* pass over what is nearer than the row given last */
	BQ_ITERATIVE_RELAXED		/* give it, out of order */
} BqIterativeScan;

extern int	bq_iterative_scan;

/*
 * A row that may be wanted.  Its key grows with its distance: codes, see bound_keys();
 * vectors, the distance itself.  Until the exact one is known it is that of a bound: the
 * row is not nearer, or, of vectors, hardly ever.
 */
typedef struct BqCandidate
{
	double		key;
	ItemPointerData tid;
	uint16		slot;
	uint32		block;
	float		norm;
	uint8		segment;		/* in which its list was read */
	bool		exact;
	bool		odd;			/* exact, but not what the operator says, see bqexact.c */
	bool		prefetched;
} BqCandidate;

/*
 * Where the sums of a block's codes are looked at before they are complete: after `nrows`
 * rows, a sum s stands for bias - scale * s over all of them, with an error of `deviation`.
 */
typedef struct BqStop
{
	int			nrows;
	float		scale;
	float		bias;
	float		deviation;		/* standard deviation */
} BqStop;

#define BQ_MAX_STOPS 16

/* A block that was not read to its end, but might have rows that are wanted later. */
typedef struct BqPassedBlock
{
	BqChain		chain;			/* of it alone */
	uint8		segment;
} BqPassedBlock;

/* The cosine of a row of this norm with a query of this length, by the key of their distance. */
static inline double
bq_estimate_cosine(int metric, double key, double norm, double length)
{
	double		cosine = -key;

	if (metric == BQ_STRATEGY_IP)
		cosine = -key / (norm * length);
	else if (metric == BQ_STRATEGY_L2)
		cosine = (norm - key / norm) / (2 * length);
	/* also of norms that are 0, or whose product is */
	return cosine >= -1 ? Min(cosine, 1) : -1;
}

/*
 * What it takes to read a list comes first: where many queries are answered together, getting
 * these lines is what a list costs.
 */
typedef struct BqScan
{
	/* the query */
	int			strategy;
	int			nstops;			/* see `stops` */
	double		unit;			/* keys are those of q times this power of two */
	BqTable		table;			/* of q * unit: smaller sums are nearer */
	double		length;			/* |q * unit| */
	float		slack;			/* of a sum: a bound of its rounding errors, or see BqReach */
	float		key_unit;		/* of sums of the table, see BqBlockData.inverse */
	const BqSource *source;		/* of an index on vectors; NULL: on codes */
	BqFilter   *filter;			/* conditions on filter columns, or NULL */
	Relation	heap;
	BlockNumber heap_pages;		/* see bq_check_position() */

	/* lists */
	uint32		least;			/* to be chosen in this segment in any case; from there on ... */
	bool		by_margin;		/* ... those as near as `list_limit` */
	bool		first_look;		/* keep in mind blocks that might matter, see `passed` */

	/* candidates: a heap once lists have been read */
	bool		have_floor;		/* rows up to `floor` have been given out */
	bool		dropped;		/* some rows were not kept ... */
	int			ncandidates;
	double		list_limit;		/* score of a list `margin` below that limit ... */
	double		bound_limit;	/* ... and its key as one of bounds */
	BqCandidate limit;			/* ... all of them beyond this one */
	BqCandidate *candidates;
	int			capacity;
	int			keep;
	Tuplesortstate *sorted;		/* all rows by their keys, once memory holds too few ... */
	HTAB	   *given;			/* rows given in relaxed order from these lists, or NULL */

	int64		nscanned;		/* rows in the lists read so far ... */
	int64		nseen;			/* ... of them those that meet the conditions ... */
	uint32		ncounted;		/* ... and the number of those lists */
	int64		nlists;			/* read, for EXPLAIN */
	int64		ncodes;			/* compared in all dimensions, for EXPLAIN */

	/* preparing it, and giving out its rows */
	MemoryContext scan_context; /* lives as long as the scan */
	MemoryContext query_context;	/* emptied by each rescan */
	BqLayout	layout;
	bool		started;
	bool		uncounted;		/* in statistics: it measures others */
	BqIterativeScan mode;		/* settings as of the start of the query */
	int			max_rows;
	const float *q;				/* as in bqquery, or the decoded code */
	BqStop		stops[BQ_MAX_STOPS];
	double		inverse_unit;	/* of BqBlockData.inverse */

	/* of an index on vectors */
	double		shift;			/* by how much slack raises cosines, about */
	BqReach		reach;			/* how far to go for the wanted recall */
	BqFetch    *fetch;			/* lives as long as the scan */
	int			batch;			/* rows fetched together */
	MemoryContext row_context;	/* emptied after each row */

	/* one of many queries (bqbatch.c) */
	bool		together;		/* lists are read by bq_read_together() ... */
	bool		waiting;		/* ... which is to be called, ... */
	uint32		waiting_from;	/* ... and to begin with this one of the ranking */

	/* choosing lists */
	BqRanking	ranking;		/* the nearest first, in which order they are read */
	uint32		nchosen;		/* the first ones have been, or will be */
	uint8		segment;		/* the present one */
	uint32		segment_start;	/* in `ranking`: where it begins */
	uint32		most;			/* as `least` */
	double		margin;			/* how far below that of the worst candidate cosines may be */
	double		row_margin;		/* later, below the row that is given out; or infinity */

	/* blocks passed over at a stop */
	BqPassedBlock *passed;
	uint32		npassed;
	uint32		passed_capacity;

	int			io_concurrency; /* of the index's tablespace; 0: ask no disk for lists ahead */
	int			heap_io_concurrency;	/* of the table's: nor for rows */

	TupleDesc	sorted_desc;
	TupleTableSlot *sorted_slot;
	bool		have_next;
	BqCandidate next;			/* ... and the first one that is not in the heap yet */

	BqCandidate floor;
	bool		progress;		/* a row was given out since lists were read */

	int64		nreturned;
	int64		nfetched;		/* rows of the table compared, for EXPLAIN */
} BqScan;

/* Order of candidates: no two are equal, so "beyond" has one meaning. */
static inline bool
bq_before(const BqCandidate *a, const BqCandidate *b)
{
	if (a->key != b->key)
		return a->key < b->key;
	/* what came late comes late: a floor given out earlier stays below it */
	if (a->segment != b->segment)
		return a->segment < b->segment;
	if (a->block != b->block)
		return a->block < b->block;
	return a->slot < b->slot;
}

/* Is the i-th list of the ranking, which has this score, as near as the margin wants? */
static inline bool
bq_is_list_near(const BqScan *so, uint32 i, float score)
{
	return !so->by_margin || i < so->least || !so->dropped || score >= so->list_limit;
}

/* Are there lists that were not chosen? */
static inline bool
bq_has_more_lists(const BqScan *so)
{
	return so->nchosen < so->ranking.nordered || so->ranking.nranked > 0 || so->ranking.ngroups > 0;
}

/* bqcandidate.c */
extern void bq_clear_candidates(BqScan *so);
extern BqCandidate *bq_new_candidate(BqScan *so);
extern void bq_keep_candidate(BqScan *so);
extern void bq_limit_candidates(BqScan *so);
extern void bq_order_candidates(BqScan *so);
extern const BqCandidate *bq_first_candidate(BqScan *so);
extern BqCandidate bq_pop_candidate(BqScan *so);
extern void bq_push_candidate(BqScan *so, const BqCandidate *candidate);
extern bool bq_can_keep_more(const BqScan *so);
extern void bq_begin_sorting(BqScan *so);
extern void bq_end_sorting(BqScan *so);
extern void bq_note_given(BqScan *so, const BqCandidate *candidate);
extern void bq_forget_given(BqScan *so);
extern bool bq_was_given(const BqScan *so, const BqCandidate *candidate);

/* bqbound.c */
extern uint32 bq_find_rows(const BqScan *so, const BqBlockData *block, const uint16 *sums,
						   float scale, float bias, double limit);
extern void bq_bound_keys(const BqScan *so, const BqBlockData *block, const uint16 *sums,
						  float scale, float bias, float *keys);
extern double bq_bound_width(const BqScan *so, const BqBlockData *block, int c);
extern void bq_set_slack(BqScan *so, double slack);
extern void bq_raise_slack(BqScan *so);
extern double bq_candidate_key(const BqScan *so, double key);
extern double bq_bound_of_key(const BqScan *so, double key);

/* bqstop.c */
extern int	bq_make_stops(const float *q, int dim, const BqTable *table, BqStop *stops);

/* bqprobe.c */
extern void bq_look_again(Relation index, BqScan *so);
extern void bq_rank_lists(Relation index, BqScan *so);
extern void bq_plan_segment(BqScan *so, uint32 probes);
extern bool bq_choose_list(BqScan *so, uint32 i);
extern void bq_note_limit(BqScan *so);
extern void bq_take_block(Relation index, BqScan *so, uint8 segment, BqListReader *reader,
						  const BqBlockData *block, uint32 rows);
extern bool bq_ask_for_list(Relation index, const BqScan *so, const BqChain *chain);
extern void bq_read_lists(Relation index, BqScan *so, uint32 from);
extern void bq_finish_lists(BqScan *so);
extern bool bq_wants_more_lists(BqScan *so, const BqCandidate *candidate);

/* bqshare.c */
extern void bq_read_together(Relation index, BqScan **scans, int n, uint32 most_visits);

/* bqscan.c */
extern void bq_start_query(IndexScanDesc scan, const BqLayout *layout);
extern bool bq_next_row(IndexScanDesc scan);

/* bqexact.c */
extern void bq_make_exact(IndexScanDesc scan);
extern void bq_prefetch_rows(IndexScanDesc scan);
extern double bq_operator_distance(IndexScanDesc scan);

/* bqstat.c */
extern void bq_count_scan(Relation index, const BqScan *so);

#endif							/* BQSCAN_H */
