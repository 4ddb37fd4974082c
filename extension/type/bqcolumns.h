/* bqcolumns.h: what C needs to know of bq_columns, the extension's table. */
#ifndef BQCOLUMNS_H
#define BQCOLUMNS_H

#include "fmgr.h"

extern int	bq_column_transform(FunctionCallInfo fcinfo, Oid table, const char *code_column);

#endif							/* BQCOLUMNS_H */
