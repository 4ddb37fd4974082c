/* bq.h: what every file that includes postgres.h may need: versions of PostgreSQL. */
#ifndef BQ_H
#define BQ_H

#include "fmgr.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* Soft errors of input functions came with 16; before, they are errors. */
#if PG_VERSION_NUM < 160000
#define ereturn(context, dummy_value, ...) \
	do { (void) (context); ereport(ERROR, __VA_ARGS__); } while (0)
#endif

/* index/bqhandler.c: settings and options of the access method, for _PG_init() */
extern void bq_index_init(void);

#endif							/* BQ_H */
