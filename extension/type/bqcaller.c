/* bqcaller.c: running as the owner of a table on behalf of a caller, restricted as ANALYZE is. */
#include "postgres.h"

#include "miscadmin.h"
#include "type/bqcaller.h"
#include "utils/guc.h"

/*
 * Become the owner of a table, whose code (expressions of an index, casts, triggers) gets no more
 * than the owner's rights, whoever calls, and cannot leave anything behind in the session: settings
 * are the caller's again afterwards.  Nor can the caller choose by search_path what that code means
 * by a name.  An error needs no cleaning up: the end of the (sub)transaction undoes all of it.
 */
BqCaller
bq_become_owner(Oid owner)
{
	BqCaller	caller = {.nest_level = NewGUCNestLevel()};

	GetUserIdAndSecContext(&caller.user, &caller.security);
	SetUserIdAndSecContext(owner, caller.security | SECURITY_RESTRICTED_OPERATION);
	/* what RestrictSearchPath() does, which came with 17 */
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	return caller;
}

void
bq_become_caller(const BqCaller *caller)
{
	AtEOXact_GUC(false, caller->nest_level);
	SetUserIdAndSecContext(caller->user, caller->security);
}
