/* bqsearch.c: search a sample of rows with its own rows, by codes made both ways. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "bqkernel.h"
#include "bqsearch.h"

#define K BQ_SEARCH_NEIGHBOURS

/* Of a window: rows, searches, and rows that each compares by code, the truly nearest. */
#define WINDOW_ROWS 1024
#define WINDOW_NBYTES (8 << 20)
#define WINDOW_SEARCHES 64
#define WINDOW_CANDIDATES 96

/* Rows from the start of a window to that of the next. */
#define WINDOW_DISTANCE 32768

int
bq_window_rows(int dim)
{
	int			fit = WINDOW_NBYTES / (int) sizeof(float) / dim;

	return fit < WINDOW_ROWS ? fit : WINDOW_ROWS;
}

int64_t
bq_window_start(int64_t row, int dim)
{
	int64_t		start = row / WINDOW_DISTANCE * WINDOW_DISTANCE;

	return row < start + bq_window_rows(dim) ? start : start + WINDOW_DISTANCE;
}

/*
 * Searches that pass over the rows together, so many rows at a time: all rows of a window do not
 * fit a cache, and one search after the other takes twice as long.
 */
#define GROUP 8
#define ROWS_AT_A_TIME 32

/* Scratch of bq_search(). */
typedef struct Room
{
	float	   *group;			/* keys of GROUP searches */
	float	   *keys;			/* of all rows: grow with their nearness to a query */
	float	   *sorted;
	float	   *estimates;		/* of candidates */
	uint32_t   *candidates;
	float	   *norms;
	float	   *q;				/* rotated query */
	uint8_t    *axes;			/* codes */
	uint8_t    *rotated;
} Room;

size_t
bq_search_room(size_t n, int dim)
{
	return (GROUP + 3) * n * sizeof(float) + n * sizeof(uint32_t) + (size_t) dim * sizeof(float) +
		2 * n * bq_planes_nbytes(dim);
}

static Room
divide_room(void *memory, size_t n, int dim)
{
	Room		room;

	room.group = (float *) memory;
	room.keys = room.group;
	room.sorted = room.group + GROUP * n;
	room.estimates = room.sorted + n;
	room.norms = room.estimates + n;
	room.q = room.norms + n;
	room.candidates = (uint32_t *) (room.q + dim);
	room.axes = (uint8_t *) (room.candidates + n);
	room.rotated = room.axes + n * bq_planes_nbytes(dim);
	return room;
}

/*
 * Inner products of q with n rows, 32 sums at a time in the same order whatever the width of
 * registers, so all give the same bits.  The sums are variables of their own: of a plain loop,
 * and of arrays, compilers make what takes six times as long.
 */
typedef float Four __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));

#define ADD_PRODUCT(sum, type, j) \
	do { \
		type		a_; \
		type		b_; \
\
		memcpy(&a_, q + i + (j), sizeof(type)); \
		memcpy(&b_, x + i + (j), sizeof(type)); \
		sum += a_ * b_; \
	} while (0)

static inline float
add_up(const float *q, const float *x, int i, int dim, Four low, Four high)
{
	float		sum = 0;

	for (; i < dim; i++)
		sum += q[i] * x[i];
	low += high;
	for (int k = 0; k < 4; k++)
		sum += low[k];
	return sum;
}

static void
multiply_rows_portable(const float *q, const float *x, size_t n, int dim, float *products)
{
	for (size_t row = 0; row < n; row++, x += dim)
	{
		Four		a = {0}, b = {0}, c = {0}, d = {0};
		Four		e = {0}, f = {0}, g = {0}, h = {0};
		int			i = 0;

		for (; i + 32 <= dim; i += 32)
		{
			ADD_PRODUCT(a, Four, 0);
			ADD_PRODUCT(e, Four, 4);
			ADD_PRODUCT(b, Four, 8);
			ADD_PRODUCT(f, Four, 12);
			ADD_PRODUCT(c, Four, 16);
			ADD_PRODUCT(g, Four, 20);
			ADD_PRODUCT(d, Four, 24);
			ADD_PRODUCT(h, Four, 28);
		}
		products[row] = add_up(q, x, i, dim, (a + b) + (c + d), (e + f) + (g + h));
	}
}

#ifdef BQ_HAVE_X86
__attribute__((target("avx2"))) static void
multiply_rows_avx2(const float *q, const float *x, size_t n, int dim, float *products)
{
	for (size_t row = 0; row < n; row++, x += dim)
	{
		Eight		a = {0}, b = {0}, c = {0}, d = {0};
		Four		halves[2];
		int			i = 0;

		for (; i + 32 <= dim; i += 32)
		{
			ADD_PRODUCT(a, Eight, 0);
			ADD_PRODUCT(b, Eight, 8);
			ADD_PRODUCT(c, Eight, 16);
			ADD_PRODUCT(d, Eight, 24);
		}
		a = (a + b) + (c + d);
		memcpy(halves, &a, sizeof(a));
		products[row] = add_up(q, x, i, dim, halves[0], halves[1]);
	}
}
#endif

static void
multiply_rows(const float *q, const float *x, size_t n, int dim, float *products)
{
#ifdef BQ_HAVE_X86
	if (BQ_KERNEL_HAS_AVX2)
	{
		multiply_rows_avx2(q, x, n, dim, products);
		return;
	}
#endif
	multiply_rows_portable(q, x, n, dim, products);
}

/* The m-th largest of n values, 1 <= m <= n; their order is lost (Hoare's FIND). */
static float
find_largest(float *values, size_t n, size_t m)
{
	size_t		first = 0;
	size_t		last = n - 1;

	while (first < last)
	{
		float		pivot = values[first + (last - first) / 2];
		size_t		i = first;
		size_t		j = last;

		for (;;)
		{
			float		value;

			while (values[i] > pivot)
				i++;
			while (values[j] < pivot)
				j--;
			if (i >= j)
				break;
			value = values[i];
			values[i++] = values[j];
			values[j--] = value;
		}
		/* what is before i is at least the pivot, what is after j at most */
		if (i == j)
		{
			if (m - 1 == i)
				return pivot;
			if (m - 1 < i)
				last = i - 1;
			else
				first = i + 1;
		}
		else if (m - 1 <= j)
			last = j;
		else
			first = i;
	}
	return values[first];
}

/* Of the K best estimates, how many are of rows that are as near as the K-th of all? */
static int
count_found(const Room *room, size_t ncandidates, float reach)
{
	uint32_t	best[K];
	int			nbest = 0;
	int			nfound = 0;

	for (uint32_t c = 0; c < ncandidates; c++)
	{
		int			place = nbest;

		if (nbest == K && room->estimates[c] <= room->estimates[best[K - 1]])
			continue;
		if (nbest < K)
			nbest++;
		else
			place--;
		for (; place > 0 && room->estimates[best[place - 1]] < room->estimates[c]; place--)
			best[place] = best[place - 1];
		best[place] = c;
	}
	for (int i = 0; i < nbest; i++)
		nfound += room->keys[room->candidates[best[i]]] >= reach;
	return nfound;
}

static void
estimate(const Room *room, size_t ncandidates, const float *q, const uint8_t *planes, int dim,
		 BqSearchOrder order)
{
	for (size_t c = 0; c < ncandidates; c++)
	{
		uint32_t	i = room->candidates[c];
		double		norm = room->norms[i];

		room->estimates[c] = (float)
			(bq_inner_product(q, planes + i * bq_planes_nbytes(dim), dim, room->norms[i]) -
			 (order == BQ_BY_DISTANCE ? norm * norm / 2 : 0));
	}
}

/* Search with row `self`, whose nearness to all rows is in `keys`; room->q is its rotation. */
static void
search(const Room *room, const float *x, size_t n, int dim, size_t self, size_t ncandidates,
	   BqSearchOrder order, BqSearches *searches)
{
	size_t		m = 0;
	int			found_axes;
	int			found_rotated;
	float		least;
	float		reach;

	for (size_t i = 0; i < n; i++)
		if (i != self)
			room->sorted[m++] = room->keys[i];
	least = ncandidates < m ? find_largest(room->sorted, m, ncandidates) : -INFINITY;
	m = 0;
	for (size_t i = 0; i < n; i++)
		if (i != self && room->keys[i] >= least)
		{
			room->sorted[m] = room->keys[i];
			room->candidates[m++] = (uint32_t) i;
		}
	reach = find_largest(room->sorted, m, K);

	estimate(room, m, x + self * dim, room->axes, dim, order);
	found_axes = count_found(room, m, reach);
	estimate(room, m, room->q, room->rotated, dim, order);
	found_rotated = count_found(room, m, reach);

	searches->found_axes[order] += found_axes;
	searches->found_rotated[order] += found_rotated;
	searches->squares[order] += (found_rotated - found_axes) * (found_rotated - found_axes);
}

/*
 * Make codes, and norms at most 1: neither products nor their squares leave float32.  Returns
 * whether norms differ by more than scaling to norm 1 leaves.
 */
static bool
encode(const Room *room, float *x, size_t n, int dim, const BqRotation *rotation)
{
	size_t		nbytes = bq_planes_nbytes(dim);
	float		largest = 0;
	float		smallest = INFINITY;

	for (size_t i = 0; i < n; i++)
	{
		(void) bq_encode(x + i * dim, dim, BQ_CUT_RMS, NULL, NULL, room->axes + i * nbytes,
						 &room->norms[i]);
		(void) bq_encode(x + i * dim, dim, BQ_CUT_RMS, rotation, room->q,
						 room->rotated + i * nbytes, &room->norms[i]);
		largest = fmaxf(largest, room->norms[i]);
		smallest = fminf(smallest, room->norms[i]);
	}
	if (largest > 0)
	{
		int			exponent = -ilogbf(largest) - 1;
		float		factor = ldexpf(1, exponent < 126 ? exponent : 126);

		for (size_t i = 0; i < n; i++)
			bq_kernel->scale(x + i * dim, x + i * dim, dim, factor);
		bq_kernel->scale(room->norms, room->norms, (int) n, factor);
	}
	return smallest < 0.999999f * largest;
}

void
bq_search(float *x, size_t n, int dim, size_t nqueries, size_t ncandidates,
		  const BqRotation *rotation, void *memory, BqSearches *searches)
{
	Room		room = divide_room(memory, n, dim);
	BqSearches	made = {0};
	bool		norms_differ;

	if (n <= K)
		return;
	norms_differ = encode(&room, x, n, dim, rotation);
	for (size_t first = 0; first < nqueries; first += GROUP)
	{
		size_t		end = first + GROUP < nqueries ? first + GROUP : nqueries;

		for (size_t i = 0; i < n; i += ROWS_AT_A_TIME)
			for (size_t k = first; k < end; k++)
				multiply_rows(x + n * k / nqueries * dim, x + i * dim,
							  n - i < ROWS_AT_A_TIME ? n - i : ROWS_AT_A_TIME, dim,
							  room.group + (k - first) * n + i);
		for (size_t k = first; k < end; k++)
		{
			size_t		self = n * k / nqueries;
			float		norm;

			if (room.norms[self] == 0)	/* no direction to search in */
				continue;
			made.count++;
			room.keys = room.group + (k - first) * n;
			(void) bq_prepare_query(x + self * dim, dim, rotation, room.q, &norm);
			if (norms_differ)
				search(&room, x, n, dim, self, ncandidates, BQ_BY_PRODUCT, &made);
			for (size_t i = 0; i < n; i++)
				room.keys[i] -= room.norms[i] * room.norms[i] / 2;
			search(&room, x, n, dim, self, ncandidates, BQ_BY_DISTANCE, &made);
		}
	}
	if (!norms_differ)
	{
		made.found_axes[BQ_BY_PRODUCT] = made.found_axes[BQ_BY_DISTANCE];
		made.found_rotated[BQ_BY_PRODUCT] = made.found_rotated[BQ_BY_DISTANCE];
		made.squares[BQ_BY_PRODUCT] = made.squares[BQ_BY_DISTANCE];
	}
	bq_searches_merge(searches, &made);
}

void
bq_search_window(float *x, size_t n, int dim, const BqRotation *rotation, void *room,
				 BqSearches *searches)
{
	size_t		nqueries = n / 8 < WINDOW_SEARCHES ? n / 8 : WINDOW_SEARCHES;

	bq_search(x, n, dim, nqueries, WINDOW_CANDIDATES, rotation, room, searches);
}

void
bq_searches_merge(BqSearches *searches, const BqSearches *other)
{
	searches->count += other->count;
	for (int order = 0; order < BQ_SEARCH_ORDERS; order++)
	{
		searches->found_axes[order] += other->found_axes[order];
		searches->found_rotated[order] += other->found_rotated[order];
		searches->squares[order] += other->squares[order];
	}
}
