/*
 * bqstatistics.c: statistics of vectors, per coordinate (core/bqmoments.h) and of what
 * searches find (core/bqsearch.h), as the aggregate bq_statistics(real[]), the composite type
 * of that name, and bq_merge().
 */
#include "postgres.h"

#include <float.h>

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "libpq/pqformat.h"
#include "type/bqstatistics.h"
#include "type/bqvec.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

/*
 * Columns of the composite type: count, one array for each row of values, number of searches,
 * one array of the orders for each of their sums.
 */
#define N_MOMENT_COLUMNS (1 + BQ_MOMENTS)
#define N_COLUMNS (N_MOMENT_COLUMNS + 4)
static const int column_moment[N_MOMENT_COLUMNS] = {
	-1, BQ_MOMENT_MEAN, BQ_MOMENT_M2, BQ_MOMENT_CODE_MEAN, BQ_MOMENT_CODE_M2,
	BQ_MOMENT_COMOMENT, BQ_MOMENT_POSITIVE
};

/* Statistics of no rows, in the current memory context. */
BqStatistics *
bq_new_statistics(int dim)
{
	BqStatistics *statistics = palloc0(sizeof(BqStatistics));

	statistics->dim = dim;
	statistics->values = palloc0(VALUES_NBYTES(dim));
	statistics->planes = palloc(bq_planes_nbytes(dim));
	statistics->decoded = palloc(sizeof(float4) * dim);
	statistics->scaled = palloc(sizeof(float4) * dim);
	return statistics;
}

/* Add a row to what is known of coordinates; `scaled`: with norm 1, which is then in there. */
void
bq_add_row(BqStatistics *statistics, const float4 *x, float4 *scaled)
{
	bq_check_status(bq_moments_add(&statistics->count, statistics->values, statistics->dim, x,
								   scaled, statistics->planes, statistics->decoded));
}

/* Search the window as far as it has come, if it has rows enough; adds to `searches`. */
static void
search_window(BqStatistics *statistics, float *rows, BqSearches *searches)
{
	const BqRotation *rotation = bq_get_rotation(statistics->dim, BQ_SEARCH_TRANSFORM);
	void	   *room;

	if (statistics->nwindow < BQ_WINDOW_MIN_ROWS)
		return;
	room = palloc(bq_search_room(statistics->nwindow, statistics->dim));
	bq_search_window(rows, statistics->nwindow, statistics->dim, rotation, room, searches);
	pfree(room);
}

/* Take a row into its window, if it belongs to one; the memory is that of the state. */
static void
add_to_window(BqStatistics *statistics, const float4 *x)
{
	int			dim = statistics->dim;
	int64		row = statistics->row++;

	if (row < bq_window_start(row, dim))
		return;
	if (statistics->nwindow == statistics->window_capacity)
	{
		MemoryContext context = GetMemoryChunkContext(statistics);
		int			capacity = Min(Max(16, 2 * statistics->window_capacity),
								   bq_window_rows(dim));

		if (statistics->window == NULL)
			statistics->window = MemoryContextAlloc(context, sizeof(float) * dim * capacity);
		else
			statistics->window = repalloc(statistics->window, sizeof(float) * dim * capacity);
		statistics->window_capacity = capacity;
	}
	memcpy(statistics->window + (size_t) statistics->nwindow * dim, x, sizeof(float) * dim);
	if (++statistics->nwindow == bq_window_rows(dim))
	{
		search_window(statistics, statistics->window, &statistics->searches);
		pfree(statistics->window);
		statistics->window = NULL;
		statistics->nwindow = statistics->window_capacity = 0;
	}
}

/*
 * Sums of all searches, also in a window that is not full.  The state stays as it is: more rows
 * may come, as in window functions.
 */
static BqSearches
finish_searches(BqStatistics *statistics)
{
	BqSearches	searches = statistics->searches;

	if (statistics->nwindow >= BQ_WINDOW_MIN_ROWS)
	{
		size_t		nbytes = sizeof(float) * statistics->dim * statistics->nwindow;
		float	   *copy = palloc(nbytes);

		memcpy(copy, statistics->window, nbytes);
		search_window(statistics, copy, &searches);
		pfree(copy);
	}
	return searches;
}

static void
check_same_dim(int a, int b)
{
	if (a != b)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("different dimensions of statistics %d and %d", a, b)));
}

/* Where the state of an aggregate lives; it must not be called otherwise. */
static MemoryContext
aggregate_context(FunctionCallInfo fcinfo)
{
	MemoryContext context;

	if (!AggCheckCallContext(fcinfo, &context))
		elog(ERROR, "function of aggregate bq_statistics called in non-aggregate context");
	return context;
}

/* Add the vector in argument 1, perhaps scaled to norm 1; nulls are skipped. */
static Datum
accumulate(FunctionCallInfo fcinfo, bool normalize)
{
	MemoryContext context = aggregate_context(fcinfo);
	BqStatistics *state = PG_ARGISNULL(0) ? NULL : (BqStatistics *) PG_GETARG_POINTER(0);
	ArrayType  *array;
	const float4 *x;
	int			dim;

	if (PG_ARGISNULL(1))
	{
		if (state == NULL)
			PG_RETURN_NULL();
		PG_RETURN_POINTER(state);
	}

	array = PG_GETARG_ARRAYTYPE_P(1);
	x = bq_check_array(array, &dim);
	if (state == NULL)
	{
		context = MemoryContextSwitchTo(context);
		state = bq_new_statistics(dim);
		MemoryContextSwitchTo(context);
	}
	check_same_dim(state->dim, dim);
	bq_add_row(state, x, normalize ? state->scaled : NULL);
	add_to_window(state, normalize ? state->scaled : x);

	PG_FREE_IF_COPY(array, 1);
	PG_RETURN_POINTER(state);
}

PG_FUNCTION_INFO_V1(bq_statistics_accum);

Datum
bq_statistics_accum(PG_FUNCTION_ARGS)
{
	return accumulate(fcinfo, false);
}

PG_FUNCTION_INFO_V1(bq_statistics_accum_scaled);

/* The same of bq_statistics(real[], normalize); a null does not scale. */
Datum
bq_statistics_accum_scaled(PG_FUNCTION_ARGS)
{
	return accumulate(fcinfo, !PG_ARGISNULL(2) && PG_GETARG_BOOL(2));
}

PG_FUNCTION_INFO_V1(bq_statistics_combine);

/* Add the state of another process. */
Datum
bq_statistics_combine(PG_FUNCTION_ARGS)
{
	MemoryContext context = aggregate_context(fcinfo);
	BqStatistics *state = PG_ARGISNULL(0) ? NULL : (BqStatistics *) PG_GETARG_POINTER(0);
	BqStatistics *other = PG_ARGISNULL(1) ? NULL : (BqStatistics *) PG_GETARG_POINTER(1);
	BqSearches	searches;

	if (other == NULL)
	{
		if (state == NULL)
			PG_RETURN_NULL();
		PG_RETURN_POINTER(state);
	}
	if (state == NULL)
	{
		/* the other one is gone after this call */
		context = MemoryContextSwitchTo(context);
		state = bq_new_statistics(other->dim);
		MemoryContextSwitchTo(context);
	}
	check_same_dim(state->dim, other->dim);
	bq_moments_merge(&state->count, state->values, state->dim, other->count, other->values);
	searches = finish_searches(other);
	bq_searches_merge(&state->searches, &searches);
	PG_RETURN_POINTER(state);
}

PG_FUNCTION_INFO_V1(bq_statistics_serialize);

/* State -> bytea, for the leader of a parallel query on the same machine. */
Datum
bq_statistics_serialize(PG_FUNCTION_ARGS)
{
	BqStatistics *state;
	BqSearches	searches;
	StringInfoData buf;

	(void) aggregate_context(fcinfo);
	state = (BqStatistics *) PG_GETARG_POINTER(0);
	searches = finish_searches(state);
	pq_begintypsend(&buf);
	pq_sendint32(&buf, (uint32) state->dim);
	pq_sendint64(&buf, (uint64) state->count);
	pq_sendbytes(&buf, (const char *) &searches, sizeof(searches));
	pq_sendbytes(&buf, (const char *) state->values, (int) VALUES_NBYTES(state->dim));
	PG_RETURN_BYTEA_P(pq_endtypsend(&buf));
}

PG_FUNCTION_INFO_V1(bq_statistics_deserialize);

Datum
bq_statistics_deserialize(PG_FUNCTION_ARGS)
{
	bytea	   *serialized;
	StringInfoData buf;
	BqStatistics *state;

	(void) aggregate_context(fcinfo);
	serialized = PG_GETARG_BYTEA_PP(0);
	buf.data = VARDATA_ANY(serialized);
	buf.len = VARSIZE_ANY_EXHDR(serialized);
	buf.maxlen = 0;
	buf.cursor = 0;
	state = bq_new_statistics((int) pq_getmsgint(&buf, 4));
	state->count = pq_getmsgint64(&buf);
	pq_copymsgbytes(&buf, (char *) &state->searches, sizeof(state->searches));
	pq_copymsgbytes(&buf, (char *) state->values, (int) VALUES_NBYTES(state->dim));
	pq_getmsgend(&buf);
	PG_RETURN_POINTER(state);
}

/* One sum of searches, by order. */
static Datum
form_sums(const int64 *sums)
{
	Datum		elements[BQ_SEARCH_ORDERS];

	for (int i = 0; i < BQ_SEARCH_ORDERS; i++)
		elements[i] = Int64GetDatum(sums[i]);
	return PointerGetDatum(construct_array(elements, BQ_SEARCH_ORDERS, INT8OID, 8,
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* Statistics as a row of the composite type that the running function returns. */
Datum
bq_form_statistics(FunctionCallInfo fcinfo, BqStatistics *statistics)
{
	BqSearches	searches = finish_searches(statistics);
	int			dim = statistics->dim;
	Datum	   *elements = palloc(sizeof(Datum) * dim);
	Datum		columns[N_COLUMNS];
	bool		nulls[N_COLUMNS] = {false};
	TupleDesc	tupdesc;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE ||
		tupdesc->natts != N_COLUMNS)
		elog(ERROR, "type bq_statistics does not have the columns of version "
			 CppAsString2(BQ_EXTENSION_VERSION));

	columns[0] = Int64GetDatum(statistics->count);
	for (int column = 1; column < N_MOMENT_COLUMNS; column++)
	{
		const double *values = statistics->values + (size_t) column_moment[column] * dim;
		bool		counts = column_moment[column] == BQ_MOMENT_POSITIVE;

		for (int j = 0; j < dim; j++)
			elements[j] = counts ? Int64GetDatum((int64) values[j]) : Float8GetDatum(values[j]);
		columns[column] = PointerGetDatum(construct_array(elements, dim,
														  counts ? INT8OID : FLOAT8OID,
														  8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	}
	columns[N_MOMENT_COLUMNS] = Int64GetDatum(searches.count);
	columns[N_MOMENT_COLUMNS + 1] = form_sums(searches.found_axes);
	columns[N_MOMENT_COLUMNS + 2] = form_sums(searches.found_rotated);
	columns[N_MOMENT_COLUMNS + 3] = form_sums(searches.squares);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), columns, nulls));
}

PG_FUNCTION_INFO_V1(bq_statistics_final);

/* No rows: null, as avg() has it. */
Datum
bq_statistics_final(PG_FUNCTION_ARGS)
{
	(void) aggregate_context(fcinfo);
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	return bq_form_statistics(fcinfo, (BqStatistics *) PG_GETARG_POINTER(0));
}

/* Counts are kept in float8, which holds each one up to here. */
#define MAX_COUNT (INT64CONST(1) << DBL_MANT_DIG)

/* What a value of a moment can be for so many vectors of finite real coordinates. */
static void
value_range(int moment, int64 count, double *least, double *most)
{
	double		squares = (double) count * FLT_MAX * FLT_MAX;

	switch (moment)
	{
		case BQ_MOMENT_MEAN:
		case BQ_MOMENT_CODE_MEAN:
			*least = -FLT_MAX;
			*most = FLT_MAX;
			break;
		case BQ_MOMENT_M2:
		case BQ_MOMENT_CODE_M2:
			*least = 0;
			*most = squares;
			break;
		case BQ_MOMENT_COMOMENT:
			*least = -squares;
			*most = squares;
			break;
		default:				/* BQ_MOMENT_POSITIVE */
			*least = 0;
			*most = (double) count;
	}
}

/* No vectors have such statistics: others would take them for real, and fail later. */
static void
check_values(const double *values, int dim, int moment, int64 count)
{
	double		least;
	double		most;

	value_range(moment, count, &least, &most);
	for (int j = 0; j < dim; j++)
		if (!(values[j] >= least && values[j] <= most))
			ereport(ERROR,
					(errcode(ERRCODE_DATA_EXCEPTION),
					 errmsg("%g in bq_statistics cannot be of %lld vectors", values[j],
							(long long) count)));
}

/* The most that a sum over so many searches can be. */
#define MOST_FOUND(searches) ((searches) * BQ_SEARCH_NEIGHBOURS)
#define MOST_SQUARES(searches) (MOST_FOUND(searches) * BQ_SEARCH_NEIGHBOURS)

/* Read one sum of searches; nobody finds more than there is. */
static void
read_sums(Datum column, int64 *sums, int64 most)
{
	ArrayType  *array = DatumGetArrayTypeP(column);

	if (array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("arrays of bq_statistics must not contain nulls")));
	if (ARR_NDIM(array) != 1 || ARR_DIMS(array)[0] != BQ_SEARCH_ORDERS)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("sums of searches in bq_statistics must have %d elements",
						BQ_SEARCH_ORDERS)));
	memcpy(sums, ARR_DATA_PTR(array), sizeof(int64) * BQ_SEARCH_ORDERS);
	for (int i = 0; i < BQ_SEARCH_ORDERS; i++)
		if (sums[i] < 0 || sums[i] > most)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_EXCEPTION),
					 errmsg("%lld in bq_statistics cannot be of searches that find at most %lld",
							(long long) sums[i], (long long) most)));
}

/* Searches that somebody may have made up: what is added to them must stay in range. */
#define MAX_SEARCHES (INT64CONST(1) << 48)

static void
limit_sums(int64 *sums, int64 most)
{
	for (int i = 0; i < BQ_SEARCH_ORDERS; i++)
		sums[i] = Min(sums[i], most);
}

/*
 * What was checked on its way in may be made up all the same, and then its sums may be out of
 * range: they stop there.  An error would be met by whoever adds the next honest rows.
 */
static void
limit_values(BqStatistics *statistics)
{
	statistics->count = Min(statistics->count, MAX_COUNT);
	for (int moment = 0; moment < BQ_MOMENTS; moment++)
	{
		double	   *values = statistics->values + (size_t) moment * statistics->dim;
		double		least;
		double		most;

		value_range(moment, statistics->count, &least, &most);
		for (int j = 0; j < statistics->dim; j++)
			values[j] = Max(least, Min(most, values[j]));
	}
	statistics->searches.count = Min(statistics->searches.count, MAX_SEARCHES);
	limit_sums(statistics->searches.found_axes, MOST_FOUND(statistics->searches.count));
	limit_sums(statistics->searches.found_rotated, MOST_FOUND(statistics->searches.count));
	limit_sums(statistics->searches.squares, MOST_SQUARES(statistics->searches.count));
}

static bool
are_possible_sums(const int64 *sums, int64 most)
{
	for (int i = 0; i < BQ_SEARCH_ORDERS; i++)
		if (sums[i] < 0 || sums[i] > most)
			return false;
	return true;
}

/* Can there be vectors of these statistics? */
bool
bq_statistics_are_possible(const BqStatistics *statistics)
{
	const BqSearches *searches = &statistics->searches;

	for (int moment = 0; moment < BQ_MOMENTS; moment++)
	{
		const double *values = statistics->values + (size_t) moment * statistics->dim;
		double		least;
		double		most;

		value_range(moment, statistics->count, &least, &most);
		for (int j = 0; j < statistics->dim; j++)
			if (!(values[j] >= least && values[j] <= most))
				return false;
	}
	return searches->count >= 0 && searches->count <= statistics->count &&
		are_possible_sums(searches->found_axes, MOST_FOUND(searches->count)) &&
		are_possible_sums(searches->found_rotated, MOST_FOUND(searches->count)) &&
		are_possible_sums(searches->squares, MOST_SQUARES(searches->count));
}

/* A row of the composite type, from outside: nothing about it is taken for granted. */
static BqStatistics
read_statistics(HeapTupleHeader row)
{
	BqStatistics statistics = {0};
	BqSearches *searches = &statistics.searches;
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(row),
												 HeapTupleHeaderGetTypMod(row));
	HeapTupleData tuple;
	Datum		columns[N_COLUMNS];
	bool		nulls[N_COLUMNS];

	if (tupdesc->natts != N_COLUMNS)
		elog(ERROR, "type bq_statistics does not have the columns of version "
			 CppAsString2(BQ_EXTENSION_VERSION));
	tuple.t_len = HeapTupleHeaderGetDatumLength(row);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = row;
	heap_deform_tuple(&tuple, tupdesc, columns, nulls);
	ReleaseTupleDesc(tupdesc);

	for (int column = 0; column < N_COLUMNS; column++)
		if (nulls[column])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("columns of bq_statistics must not be null")));
	statistics.count = DatumGetInt64(columns[0]);
	if (statistics.count < 0 || statistics.count > MAX_COUNT)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("count of bq_statistics must be between 0 and %lld, not %lld",
						(long long) MAX_COUNT, (long long) statistics.count)));

	for (int column = 1; column < N_MOMENT_COLUMNS; column++)
	{
		ArrayType  *array = DatumGetArrayTypeP(columns[column]);
		int			dim = ARR_NDIM(array) == 1 ? ARR_DIMS(array)[0] : 0;
		double	   *values;

		if (array_contains_nulls(array))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("arrays of bq_statistics must not contain nulls")));
		(void) bq_check_dim(dim, ERRCODE_DATA_EXCEPTION, NULL);
		if (statistics.values == NULL)
		{
			statistics.dim = dim;
			statistics.values = palloc(VALUES_NBYTES(dim));
		}
		check_same_dim(statistics.dim, dim);

		values = statistics.values + (size_t) column_moment[column] * dim;
		if (column_moment[column] == BQ_MOMENT_POSITIVE)
			for (int j = 0; j < dim; j++)
				values[j] = (double) ((const int64 *) ARR_DATA_PTR(array))[j];
		else
			memcpy(values, ARR_DATA_PTR(array), sizeof(double) * dim);
		check_values(values, dim, column_moment[column], statistics.count);
	}

	searches->count = DatumGetInt64(columns[N_MOMENT_COLUMNS]);
	if (searches->count < 0 || searches->count > Min(statistics.count, MAX_SEARCHES))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("searches of bq_statistics must be between 0 and %lld, not %lld",
						(long long) Min(statistics.count, MAX_SEARCHES),
						(long long) searches->count)));
	read_sums(columns[N_MOMENT_COLUMNS + 1], searches->found_axes, MOST_FOUND(searches->count));
	read_sums(columns[N_MOMENT_COLUMNS + 2], searches->found_rotated,
			  MOST_FOUND(searches->count));
	read_sums(columns[N_MOMENT_COLUMNS + 3], searches->squares, MOST_SQUARES(searches->count));
	return statistics;
}

PG_FUNCTION_INFO_V1(bq_merge);

/* SQL: bq_merge(bq_statistics, bq_statistics): statistics of both sets of rows; a null adds nothing. */
Datum
bq_merge(PG_FUNCTION_ARGS)
{
	BqStatistics a;
	BqStatistics b;

	if (PG_ARGISNULL(0) && PG_ARGISNULL(1))
		PG_RETURN_NULL();
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
	{
		a = read_statistics(PG_GETARG_HEAPTUPLEHEADER(PG_ARGISNULL(0) ? 1 : 0));
		return bq_form_statistics(fcinfo, &a);
	}
	a = read_statistics(PG_GETARG_HEAPTUPLEHEADER(0));
	b = read_statistics(PG_GETARG_HEAPTUPLEHEADER(1));
	check_same_dim(a.dim, b.dim);
	bq_moments_merge(&a.count, a.values, a.dim, b.count, b.values);
	bq_searches_merge(&a.searches, &b.searches);
	limit_values(&a);
	return bq_form_statistics(fcinfo, &a);
}
