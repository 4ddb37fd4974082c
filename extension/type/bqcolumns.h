/* bqcolumns.h: the extension's table bq_columns and its types, for other C files. */
#ifndef BQCOLUMNS_H
#define BQCOLUMNS_H

#include "fmgr.h"

extern int	bq_column_transform(FunctionCallInfo fcinfo, Oid table, const char *code_column);
extern int	bq_decided_transform(Oid schema, Oid table, const char *source_column);
extern Oid	bq_extension_type(FunctionCallInfo fcinfo, const char *name);

#endif							/* BQCOLUMNS_H */
