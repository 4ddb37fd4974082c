/*
 * fakeserver.h: the functions of a server that input and output of bq's types call, replaced
 * by ones in which no read past an end goes unnoticed: each allocation is a malloc() of its own.
 */
#ifndef FAKESERVER_H
#define FAKESERVER_H

#include "postgres.h"

#include <setjmp.h>
#include <stdio.h>

#include "type/bqvec.h"

/* the C library's, not those of libpgport */
#undef fprintf
#undef printf
#undef snprintf
#undef sprintf
#undef vsnprintf
#undef vsprintf

extern Datum bqvec_in(PG_FUNCTION_ARGS);
extern Datum bqvec_out(PG_FUNCTION_ARGS);
extern Datum bqvec_recv(PG_FUNCTION_ARGS);
extern Datum bqvec_send(PG_FUNCTION_ARGS);
extern Datum bqquery_in(PG_FUNCTION_ARGS);
extern Datum bqquery_out(PG_FUNCTION_ARGS);
extern Datum bqquery_recv(PG_FUNCTION_ARGS);
extern Datum bqquery_send(PG_FUNCTION_ARGS);

/* Stop: what was promised does not hold.  (Not abort(): its signal would be the server's.) */
#define require(condition) \
	do { \
		if (!(condition)) \
		{ \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
			exit(1); \
		} \
	} while (0)

/* Everything that was allocated, at most MAX_CHUNKS pieces, is freed together. */
extern void free_chunks(void);

/* ereport(ERROR) comes here, having left what it said. */
extern sigjmp_buf on_error;
extern int	error_sqlstate;
extern char error_message[256];

/* Errors of functions that were given this as their context are soft: noted here, once. */
extern struct Node *soft_errors;
extern bool soft_error;

/* Longest text or message of a value that is sent. */
#define MAX_MESSAGE (VARHDRSZ + 4 + 4 * BQ_MAX_DIM)

#endif							/* FAKESERVER_H */
