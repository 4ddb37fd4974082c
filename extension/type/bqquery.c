/*
 * bqquery.c: the prepared query: text (`transform:[v1,v2,...]`), binary (dim and
 * transform as uint16, then float4 values, big endian), and its distances to codes.
 */
#include "postgres.h"

#include "common/shortest_dec.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "port/pg_bswap.h"
#include "type/bqvec.h"

static BqQuery *
bqquery_alloc(int dim, int transform)
{
	BqQuery    *query = palloc(BQQUERY_SIZE(dim));

	SET_VARSIZE(query, BQQUERY_SIZE(dim));
	query->header.dim = (uint16) dim;
	query->header.transform = (uint16) transform;
	return query;
}

/*
 * Check the values of a query as it will be stored, and set its norm from them: the
 * norm is then the same however the query came here.
 */
static BqStatus
finish_query(BqQuery *query)
{
	return bq_prepare_query(query->values, query->header.dim, NULL, query->values,
							&query->header.norm);
}

PG_FUNCTION_INFO_V1(bq_query);

/* SQL: bq_query(real[], transform) */
Datum
bq_query(PG_FUNCTION_ARGS)
{
	int32		transform = PG_GETARG_INT32(1);
	int			dim;
	const float4 *x = bq_check_array(PG_GETARG_ARRAYTYPE_P(0), &dim);
	const BqRotation *rotation = bq_get_rotation(dim, bq_check_transform(transform));
	BqQuery    *query = bqquery_alloc(dim, transform);

	bq_check_status(bq_prepare_query(x, dim, rotation, query->values, &query->header.norm));
	bq_check_status(finish_query(query));
	PG_RETURN_BQQUERY_P(query);
}

PG_FUNCTION_INFO_V1(bqquery_in);

Datum
bqquery_in(PG_FUNCTION_ARGS)
{
	const char *str = PG_GETARG_CSTRING(0);
	struct Node *escontext = (struct Node *) fcinfo->context;
	const char *position;
	uint16		transform;
	int			dim = 1;
	BqQuery    *query;
	BqStatus	status;

	/* each check may only note an error in escontext: null then means nothing */
	if (!bq_parse_transform("bqquery", str, &position, &transform, escontext))
		PG_RETURN_NULL();
	if (*position++ != '[')
		goto invalid;
	for (const char *c = position; *c != '\0'; c++)
		dim += *c == ',';
	if (!bq_check_dim(dim, ERRCODE_DATA_EXCEPTION, escontext))
		PG_RETURN_NULL();

	query = bqquery_alloc(dim, transform);
	for (int i = 0; i < dim; i++)
	{
		if (!bq_parse_float("bqquery", str, &position, &query->values[i], escontext))
			PG_RETURN_NULL();
		if (*position++ != (i < dim - 1 ? ',' : ']'))
			goto invalid;
	}
	if (!bq_parse_end("bqquery", str, position, escontext))
		PG_RETURN_NULL();

	status = finish_query(query);
	if (status != BQ_OK)
		ereturn(escontext, (Datum) 0,
				(errcode(bq_status_sqlstate(status)),
				 errmsg("%s", bq_status_message(status))));
	PG_RETURN_BQQUERY_P(query);

invalid:
	(void) bq_syntax_error("bqquery", str, escontext);
	PG_RETURN_NULL();
}

PG_FUNCTION_INFO_V1(bqquery_out);

Datum
bqquery_out(PG_FUNCTION_ARGS)
{
	BqQuery    *query = PG_GETARG_BQQUERY_P(0);
	int			dim = query->header.dim;
	/* transform, colon, brackets, values with their commas, NUL */
	char	   *result = palloc(5 + 3 + (size_t) dim * (FLOAT_SHORTEST_DECIMAL_LEN + 1) + 1);
	char	   *end = result;

	end += sprintf(end, "%d:[", query->header.transform);
	for (int i = 0; i < dim; i++)
	{
		if (i > 0)
			*end++ = ',';
		end += float_to_shortest_decimal_bufn(query->values[i], end);
	}
	*end++ = ']';
	*end = '\0';
	PG_RETURN_CSTRING(result);
}

PG_FUNCTION_INFO_V1(bqquery_recv);

Datum
bqquery_recv(PG_FUNCTION_ARGS)
{
	StringInfo	buf = (StringInfo) PG_GETARG_POINTER(0);
	BqStatus	status = BQ_BAD_LENGTH;

	if (buf->len - buf->cursor >= 4)
	{
		int			dim = (int) pq_getmsgint(buf, 2);
		int			transform = (int) pq_getmsgint(buf, 2);

		/* length before memory: dim may be anything */
		if (dim < 1 || dim > BQ_MAX_DIM)
			status = BQ_BAD_DIM;
		else if ((size_t) (buf->len - buf->cursor) == (size_t) dim * sizeof(float4))
		{
			BqQuery    *query = bqquery_alloc(dim, transform);
			const char *values = pq_getmsgbytes(buf, dim * (int) sizeof(float4));

			/* what pq_getmsgfloat4() does, without a call for each */
			for (int i = 0; i < dim; i++)
			{
				uint32		bits;

				memcpy(&bits, values + i * sizeof(bits), sizeof(bits));
				bits = pg_ntoh32(bits);
				memcpy(&query->values[i], &bits, sizeof(bits));
			}
			status = finish_query(query);
			if (status == BQ_OK)
				PG_RETURN_BQQUERY_P(query);
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
			 errmsg("invalid bqquery in binary format: %s", bq_status_message(status))));
}

PG_FUNCTION_INFO_V1(bqquery_send);

Datum
bqquery_send(PG_FUNCTION_ARGS)
{
	BqQuery    *query = PG_GETARG_BQQUERY_P(0);
	StringInfoData buf;

	pq_begintypsend(&buf);
	pq_sendint16(&buf, query->header.dim);
	pq_sendint16(&buf, query->header.transform);
	for (int i = 0; i < query->header.dim; i++)
		pq_sendfloat4(&buf, query->values[i]);
	PG_RETURN_BYTEA_P(pq_endtypsend(&buf));
}

PG_FUNCTION_INFO_V1(bqquery_dims);

/* SQL: vector_dims(bqquery) */
Datum
bqquery_dims(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(PG_GETARG_BQQUERY_P(0)->header.dim);
}

PG_FUNCTION_INFO_V1(bqquery_norm);

/* SQL: vector_norm(bqquery) */
Datum
bqquery_norm(PG_FUNCTION_ARGS)
{
	PG_RETURN_FLOAT8(PG_GETARG_BQQUERY_P(0)->header.norm);
}

PG_FUNCTION_INFO_V1(bqquery_transform);

/* SQL: transform(bqquery) */
Datum
bqquery_transform(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(PG_GETARG_BQQUERY_P(0)->header.transform);
}

/* A query that had to be detoasted or unpacked: as it came, and as it is used. */
typedef struct DetoastedQuery
{
	struct varlena *stored;
	BqQuery    *query;
} DetoastedQuery;

/*
 * Argument `n`, aligned and in memory.  A query is the same for row after row: one
 * from bq_query() is used where it lies; one from a table, toasted or packed, is
 * detoasted once and kept as long as the stored bytes (a toast pointer, mostly) stay
 * the same.
 */
static const BqQuery *
get_query(FunctionCallInfo fcinfo, int n)
{
	struct varlena *stored = (struct varlena *) PG_GETARG_POINTER(n);
	DetoastedQuery *cache;
	MemoryContext context;

	if (!VARATT_IS_EXTENDED(stored))
		return bqquery_check_length((BqQuery *) stored);
	if (fcinfo->flinfo == NULL ||
		(VARATT_IS_EXTERNAL(stored) && !VARATT_IS_EXTERNAL_ONDISK(stored)))
		return PG_GETARG_BQQUERY_P(n);

	cache = fcinfo->flinfo->fn_extra;
	if (cache != NULL && VARSIZE_ANY(cache->stored) == VARSIZE_ANY(stored) &&
		memcmp(cache->stored, stored, VARSIZE_ANY(stored)) == 0)
		return cache->query;

	context = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	if (cache != NULL)
	{
		/* forget first: what follows may fail */
		fcinfo->flinfo->fn_extra = NULL;
		pfree(cache->stored);
		pfree(cache->query);
		pfree(cache);
	}
	cache = palloc(sizeof(DetoastedQuery));
	cache->stored = palloc(VARSIZE_ANY(stored));
	memcpy(cache->stored, stored, VARSIZE_ANY(stored));
	cache->query = bqquery_check_length((BqQuery *) pg_detoast_datum_copy(stored));
	fcinfo->flinfo->fn_extra = cache;
	MemoryContextSwitchTo(context);
	return cache->query;
}

typedef double (*QueryDistance) (const BqQuery *query, const BqVecView *code);

/* Inlined into each distance below, so that `distance` is no indirect call. */
static pg_attribute_always_inline Datum
query_distance(FunctionCallInfo fcinfo, QueryDistance distance)
{
	struct varlena *stored = PG_GETARG_BQVEC_PP(0);
	const BqQuery *query = get_query(fcinfo, 1);
	BqVecView	code = bqvec_view(stored);
	double		result;

	bq_check_comparable(&code.header, &query->header);
	result = distance(query, &code);

	PG_FREE_IF_COPY(stored, 0);
	PG_RETURN_FLOAT8(result);
}

static inline double
inner_product(const BqQuery *query, const BqVecView *code)
{
	return bq_inner_product(query->values, code->planes, code->header.dim, code->header.norm);
}

static inline double
negative_inner_product(const BqQuery *query, const BqVecView *code)
{
	return 0 - inner_product(query, code);	/* 0 for 0, not -0 */
}

static inline double
cosine_distance(const BqQuery *query, const BqVecView *code)
{
	return bq_cosine_distance(query->values, query->header.norm, code->planes,
							  code->header.dim, code->header.norm);
}

static inline double
l2_distance(const BqQuery *query, const BqVecView *code)
{
	return bq_l2_distance(query->values, query->header.norm, code->planes,
						  code->header.dim, code->header.norm);
}

PG_FUNCTION_INFO_V1(bqvec_cosine_distance);

/* SQL: cosine_distance(bqvec, bqquery), <=> */
Datum
bqvec_cosine_distance(PG_FUNCTION_ARGS)
{
	return query_distance(fcinfo, cosine_distance);
}

PG_FUNCTION_INFO_V1(bqvec_inner_product);

/* SQL: inner_product(bqvec, bqquery) */
Datum
bqvec_inner_product(PG_FUNCTION_ARGS)
{
	return query_distance(fcinfo, inner_product);
}

PG_FUNCTION_INFO_V1(bqvec_negative_inner_product);

/* SQL: negative_inner_product(bqvec, bqquery), <#> */
Datum
bqvec_negative_inner_product(PG_FUNCTION_ARGS)
{
	return query_distance(fcinfo, negative_inner_product);
}

PG_FUNCTION_INFO_V1(bqvec_l2_distance);

/* SQL: l2_distance(bqvec, bqquery), <-> */
Datum
bqvec_l2_distance(PG_FUNCTION_ARGS)
{
	return query_distance(fcinfo, l2_distance);
}
