/* fakeserver.c: see fakeserver.h. */
#include "fakeserver.h"

#include "common/shortest_dec.h"
#include "libpq/pqformat.h"

/* --- the server, as far as it is called: memory, freed after each input --- */

#define MAX_CHUNKS 64
static void *chunks[MAX_CHUNKS];
static int	n_chunks;

MemoryContext CurrentMemoryContext = NULL;

void *
palloc(Size size)
{
	void	   *chunk = malloc(size);

	require(chunk != NULL && n_chunks < MAX_CHUNKS);
	chunks[n_chunks++] = chunk;
	return chunk;
}

void *
palloc0(Size size)
{
	return memset(palloc(size), 0, size);
}

void
pfree(void *pointer)
{
	(void) pointer;				/* free_chunks() does */
}

void
free_chunks(void)
{
	while (n_chunks > 0)
		free(chunks[--n_chunks]);
}

/* --- the server: errors --- */

sigjmp_buf	on_error;
int			error_sqlstate;
char		error_message[256];
struct Node *soft_errors;
bool		soft_error;

bool
errstart(int elevel, const char *domain)
{
	(void) domain;
	require(elevel == ERROR);
	error_sqlstate = ERRCODE_INTERNAL_ERROR;
	return true;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

int
errcode(int sqlerrcode)
{
	error_sqlstate = sqlerrcode;
	return 0;
}

int
errmsg(const char *fmt,...)
{
	va_list		arguments;

	va_start(arguments, fmt);
	vsnprintf(error_message, sizeof(error_message), fmt, arguments);
	va_end(arguments);
	return 0;
}

int
errmsg_internal(const char *fmt,...)
{
	snprintf(error_message, sizeof(error_message), "%s", fmt);
	return 0;
}

int
errhint(const char *fmt,...)
{
	(void) fmt;
	return 0;
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	(void) filename;
	(void) lineno;
	(void) funcname;
	siglongjmp(on_error, 1);
}

#if PG_VERSION_NUM >= 160000
bool
errsave_start(struct Node *context, const char *domain)
{
	require(context == NULL || context == soft_errors);
	return errstart(ERROR, domain);
}

/* A soft error returns to the function, which has to return null at once. */
void
errsave_finish(struct Node *context, const char *filename, int lineno, const char *funcname)
{
	if (context == NULL)
		errfinish(filename, lineno, funcname);
	require(!soft_error);
	soft_error = true;
}
#endif

void
ExceptionalCondition(const char *conditionName,
#if PG_VERSION_NUM < 160000
					 const char *errorType pg_attribute_unused(),
#endif
					 const char *fileName, int lineNumber)
{
	fprintf(stderr, "%s:%d: Assert(%s)\n", fileName, lineNumber, conditionName);
	exit(1);
}

/* --- the server: messages (pqformat.c, stringinfo.c), values, floats --- */

static void
need(StringInfo message, int nbytes)
{
	if (nbytes < 0 || nbytes > message->len - message->cursor)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("insufficient data left in message")));
}

const char *
pq_getmsgbytes(StringInfo message, int nbytes)
{
	need(message, nbytes);
	message->cursor += nbytes;
	return message->data + message->cursor - nbytes;
}

unsigned int
pq_getmsgint(StringInfo message, int nbytes)
{
	const uint8 *bytes = (const uint8 *) pq_getmsgbytes(message, nbytes);
	unsigned int value = 0;

	for (int i = 0; i < nbytes; i++)
		value = value << 8 | bytes[i];
	return value;
}

float4
pq_getmsgfloat4(StringInfo message)
{
	unsigned int bits = pq_getmsgint(message, 4);
	float4		value;

	memcpy(&value, &bits, 4);
	return value;
}

void
enlargeStringInfo(StringInfo message, int needed)
{
	require(message->len + needed < message->maxlen);
}

void
pq_begintypsend(StringInfo message)
{
	message->data = palloc(MAX_MESSAGE + 1);
	message->maxlen = MAX_MESSAGE + 1;
	message->len = VARHDRSZ;
	message->cursor = 0;
}

#if PG_VERSION_NUM >= 160000
void
pq_sendbytes(StringInfo message, const void *data, int nbytes)
#else
void
pq_sendbytes(StringInfo message, const char *data, int nbytes)
#endif
{
	enlargeStringInfo(message, nbytes);
	memcpy(message->data + message->len, data, nbytes);
	message->len += nbytes;
}

void
pq_sendfloat4(StringInfo message, float4 value)
{
	uint32		bits;

	memcpy(&bits, &value, 4);
	pq_sendint32(message, bits);
}

bytea *
pq_endtypsend(StringInfo message)
{
	SET_VARSIZE(message->data, message->len);
	return (bytea *) message->data;
}

struct varlena *
pg_detoast_datum(struct varlena *datum)
{
	require(!VARATT_IS_EXTENDED(datum));
	return datum;
}

struct varlena *
pg_detoast_datum_packed(struct varlena *datum)
{
	return pg_detoast_datum(datum);
}

int
float_to_shortest_decimal_bufn(float value, char *result)
{
	return snprintf(result, FLOAT_SHORTEST_DECIMAL_LEN, "%.9g", value);
}

int
pg_sprintf(char *str, const char *fmt,...)
{
	va_list		arguments;
	int			length;

	va_start(arguments, fmt);
	length = vsprintf(str, fmt, arguments);
	va_end(arguments);
	return length;
}

/* --- never called, but marks of coverage keep the functions that would call them --- */

#define NEVER_CALLED(name) \
	extern void never_##name(void) __asm__(#name); \
	void \
	never_##name(void) \
	{ \
		require(!#name); \
	} \
	extern int	no_such_variable

NEVER_CALLED(array_contains_nulls);
NEVER_CALLED(ArrayGetIntegerTypmods);
NEVER_CALLED(getBaseTypeAndTypmod);
NEVER_CALLED(pg_detoast_datum_copy);
NEVER_CALLED(psprintf);
NEVER_CALLED(pstrdup);
