/*
 * bqvec_io.c: bqvec in text (`transform:norm:levels`), in binary (the payload of
 * core/bqcode.h), and its typmod.
 */
#include "postgres.h"

#include "common/shortest_dec.h"
#include "libpq/pqformat.h"
#include "type/bqvec.h"
#include "utils/lsyscache.h"

/* A code with its varlena header, dim and transform; norm and planes are the caller's. */
BqVec *
bqvec_alloc(int dim, int transform)
{
	BqVec	   *code = palloc(BQVEC_SIZE(dim));

	SET_VARSIZE(code, BQVEC_SIZE(dim));
	code->header.dim = (uint16) dim;
	code->header.transform = (uint16) transform;
	return code;
}

PG_FUNCTION_INFO_V1(bqvec_in);

Datum
bqvec_in(PG_FUNCTION_ARGS)
{
	const char *str = PG_GETARG_CSTRING(0);
	int32		typmod = PG_GETARG_INT32(2);
	struct Node *escontext = (struct Node *) fcinfo->context;
	const char *position;
	const char *levels;
	uint16		transform;
	float4		norm;
	size_t		dim;
	BqVec	   *code;
	BqStatus	status;

	/* each check may only note an error in escontext: null then means nothing */
	if (!bq_parse_transform("bqvec", str, &position, &transform, escontext) ||
		!bq_parse_float("bqvec", str, &position, &norm, escontext))
		PG_RETURN_NULL();
	if (*position != ':')
	{
		(void) bq_syntax_error("bqvec", str, escontext);
		PG_RETURN_NULL();
	}
	levels = position + 1;
	dim = strspn(levels, "0123");
	if (!bq_parse_end("bqvec", str, levels + dim, escontext) ||
		!bq_check_dim((int64) dim, ERRCODE_DATA_EXCEPTION, escontext) ||
		!bq_check_typmod(typmod, (int) dim, transform, escontext))
		PG_RETURN_NULL();

	code = bqvec_alloc((int) dim, transform);
	code->header.norm = norm;
	memset(code->planes, 0, bq_planes_nbytes((int) dim));
	for (int i = 0; i < (int) dim; i++)
		bq_set_level(code->planes, (int) dim, i, levels[i] - '0');

	status = bq_check_header(&code->header);
	if (status == BQ_OK)
		status = bq_check_planes(&code->header, code->planes);
	if (status != BQ_OK)
		ereturn(escontext, (Datum) 0,
				(errcode(bq_status_sqlstate(status)),
				 errmsg("%s", bq_status_message(status))));
	PG_RETURN_BQVEC_P(code);
}

PG_FUNCTION_INFO_V1(bqvec_out);

Datum
bqvec_out(PG_FUNCTION_ARGS)
{
	BqVecView	code = bqvec_view(PG_GETARG_BQVEC_PP(0));
	int			dim = code.header.dim;
	/* transform, norm, two colons, levels, NUL */
	char	   *result = palloc(5 + FLOAT_SHORTEST_DECIMAL_LEN + 2 + dim + 1);
	char	   *end = result;

	end += sprintf(end, "%d:", code.header.transform);
	end += float_to_shortest_decimal_bufn(code.header.norm, end);
	*end++ = ':';
	for (int i = 0; i < dim; i++)
		*end++ = (char) ('0' + bq_get_level(code.planes, dim, i));
	*end = '\0';
	PG_RETURN_CSTRING(result);
}

PG_FUNCTION_INFO_V1(bqvec_recv);

Datum
bqvec_recv(PG_FUNCTION_ARGS)
{
	StringInfo	buf = (StringInfo) PG_GETARG_POINTER(0);
	int32		typmod = PG_GETARG_INT32(2);
	int			nbytes = buf->len - buf->cursor;
	const uint8 *payload = (const uint8 *) pq_getmsgbytes(buf, nbytes);
	BqHeader	header;
	BqStatus	status = bq_check_payload(payload, (size_t) nbytes, &header);
	BqVec	   *code;

	if (status != BQ_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("invalid bqvec in binary format: %s", bq_status_message(status))));
	(void) bq_check_typmod(typmod, header.dim, header.transform, NULL);

	code = bqvec_alloc(header.dim, header.transform);
	code->header.norm = header.norm;
	memcpy(code->planes, payload + BQ_HEADER_NBYTES, bq_planes_nbytes(header.dim));
	PG_RETURN_BQVEC_P(code);
}

PG_FUNCTION_INFO_V1(bqvec_send);

Datum
bqvec_send(PG_FUNCTION_ARGS)
{
	BqVecView	code = bqvec_view(PG_GETARG_BQVEC_PP(0));
	uint8		header[BQ_HEADER_NBYTES];
	StringInfoData buf;

	bq_write_header(header, &code.header);
	pq_begintypsend(&buf);
	pq_sendbytes(&buf, (const char *) header, BQ_HEADER_NBYTES);
	pq_sendbytes(&buf, (const char *) code.planes, (int) bq_planes_nbytes(code.header.dim));
	PG_RETURN_BYTEA_P(pq_endtypsend(&buf));
}

PG_FUNCTION_INFO_V1(bqvec_typmod_in);

Datum
bqvec_typmod_in(PG_FUNCTION_ARGS)
{
	ArrayType  *modifiers = PG_GETARG_ARRAYTYPE_P(0);
	int			n;
	int32	   *modifier = ArrayGetIntegerTypmods(modifiers, &n);

	if (n != 1 && n != 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("type bqvec takes one or two modifiers, not %d", n),
				 errhint("They are its dimensions, and perhaps the transform of its codes.")));
	(void) bq_check_dim(modifier[0], ERRCODE_INVALID_PARAMETER_VALUE, NULL);
	if (n == 1)
		PG_RETURN_INT32(modifier[0]);
	PG_RETURN_INT32(modifier[0] | (bq_check_transform(modifier[1]) << BQ_TYPMOD_DIM_BITS) |
					BQ_TYPMOD_HAS_TRANSFORM);
}

PG_FUNCTION_INFO_V1(bqvec_typmod_out);

Datum
bqvec_typmod_out(PG_FUNCTION_ARGS)
{
	int32		typmod = PG_GETARG_INT32(0);

	if (typmod < 0)
		PG_RETURN_CSTRING(pstrdup(""));
	if (bq_typmod_transform(typmod) < 0)
		PG_RETURN_CSTRING(psprintf("(%d)", bq_typmod_dim(typmod)));
	PG_RETURN_CSTRING(psprintf("(%d,%d)", bq_typmod_dim(typmod), bq_typmod_transform(typmod)));
}

/* Type modifier of a column; of one whose type is a domain, that of the type below it. */
int32
bq_column_typmod(TupleDesc tupdesc, AttrNumber column)
{
	Form_pg_attribute attribute = TupleDescAttr(tupdesc, column - 1);
	int32		typmod = attribute->atttypmod;

	(void) getBaseTypeAndTypmod(attribute->atttypid, &typmod);
	return typmod;
}
