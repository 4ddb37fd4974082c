/* bqcaller.h: running as the owner of a table on behalf of a caller. */
#ifndef BQCALLER_H
#define BQCALLER_H

/* Who called, to be again. */
typedef struct BqCaller
{
	Oid			user;
	int			security;
	int			nest_level;		/* of settings */
} BqCaller;

extern BqCaller bq_become_owner(Oid owner);
extern void bq_become_caller(const BqCaller *caller);

#endif							/* BQCALLER_H */
