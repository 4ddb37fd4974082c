/*
 * bqsearch.h: what codes find inside a sample, on the original axes and rotated.
 *
 * Moments of single coordinates (bqmoments.h) do not see how coordinates depend on each
 * other; what a search finds does.  So of a stream of rows some runs, the *windows*, are
 * searched with some of their own rows.  What is kept are sums: those of parts add up to
 * those of the whole, though parts may have had other windows than the whole would have.
 */
#ifndef BQSEARCH_H
#define BQSEARCH_H

#include "bqencode.h"

/* Nearest rows that each search looks for. */
#define BQ_SEARCH_NEIGHBOURS 10

/* What rows are near by; of rows of one norm these are the same. */
typedef enum BqSearchOrder
{
	BQ_BY_DISTANCE,				/* Euclidean */
	BQ_BY_PRODUCT,				/* inner product, the largest first */
	BQ_SEARCH_ORDERS
} BqSearchOrder;

typedef struct BqSearches
{
	int64_t		count;			/* searches, for BQ_SEARCH_NEIGHBOURS rows each */
	/* rows found, by order */
	int64_t		found_axes[BQ_SEARCH_ORDERS];
	int64_t		found_rotated[BQ_SEARCH_ORDERS];
	/* sum over searches of (rows found rotated - on the axes)^2 */
	int64_t		squares[BQ_SEARCH_ORDERS];
} BqSearches;

/* Any rotation is as good as another; a fixed one makes results repeatable. */
#define BQ_SEARCH_TRANSFORM 1

/* A window that ends early, with its stream, is searched if it has so many rows. */
#define BQ_WINDOW_MIN_ROWS 100

/* Rows of a window: 1,024, or as many as have 8 MB. */
extern int	bq_window_rows(int dim);

/* First row of the window that row number `row` of a stream lies in, or of the next one. */
extern int64_t bq_window_start(int64_t row, int dim);

/* Bytes of scratch that bq_search() needs, to be aligned as doubles are. */
extern size_t bq_search_room(size_t n, int dim);

/*
 * Search n finite rows, one after the other without a gap, with `nqueries` of them, each among
 * all but itself, by codes on the axes and rotated.  Only the `ncandidates` truly nearest rows
 * are compared by code.  The rows are multiplied by a power of two; `rotation` is that of
 * BQ_SEARCH_TRANSFORM.
 */
extern void bq_search(float *x, size_t n, int dim, size_t nqueries, size_t ncandidates,
					  const BqRotation *rotation, void *room, BqSearches *searches);

/* The same for a window, which has at least BQ_WINDOW_MIN_ROWS rows. */
extern void bq_search_window(float *x, size_t n, int dim, const BqRotation *rotation, void *room,
							 BqSearches *searches);

extern void bq_searches_merge(BqSearches *searches, const BqSearches *other);

#endif							/* BQSEARCH_H */
