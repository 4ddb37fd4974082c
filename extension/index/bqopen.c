/* bqopen.c: opening an index for a function of SQL, and who may. */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xlog.h"
#include "catalog/index.h"
#include "catalog/pg_class.h"
#include "index/bqindex.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rls.h"

/* May the user look at an index so closely?  `privilege`: on the table, 0: ownership. */
static void
check_privilege(Oid index_oid, Oid heap_oid, AclMode privilege)
{
	AclResult	result;

	if (privilege != 0)
	{
		result = pg_class_aclcheck(heap_oid, GetUserId(), privilege);
		if (result != ACLCHECK_OK)
			aclcheck_error(result, OBJECT_TABLE, get_rel_name(heap_oid));
		return;
	}
#if PG_VERSION_NUM >= 160000
	if (!object_ownercheck(RelationRelationId, index_oid, GetUserId()))
#else
	if (!pg_class_ownercheck(index_oid, GetUserId()))
#endif
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_INDEX, get_rel_name(index_oid));
}

/*
 * Open an index for one of the functions of SQL, and its table before it; both stay
 * locked until the caller closes them.  Errors if it is not a bq index in good standing.
 */
Relation
bq_open_index(Oid index_oid, LOCKMODE lockmode, AclMode privilege, Relation *heap)
{
	Oid			heap_oid = IndexGetRelation(index_oid, true);
	Relation	index;

	/* Before any lock: who may not look may not block others, either. */
	if (OidIsValid(heap_oid))
		check_privilege(index_oid, heap_oid, privilege);

	/* Like amcheck: the table first, as everyone else who locks both. */
	*heap = OidIsValid(heap_oid) ? table_open(heap_oid, lockmode) : NULL;
	/* what is no index is opened for its name only: anybody may come as far as here */
	index = relation_open(index_oid, *heap != NULL ? lockmode : AccessShareLock);
	if (*heap == NULL || index->rd_rel->relkind != RELKIND_INDEX ||
		index->rd_indam->ambuild != bqbuild)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 index->rd_rel->relkind == RELKIND_PARTITIONED_INDEX ?
				 errmsg("index \"%s\" is partitioned", RelationGetRelationName(index)) :
				 errmsg("\"%s\" is not a bq index", RelationGetRelationName(index)),
				 index->rd_rel->relkind == RELKIND_PARTITIONED_INDEX ?
				 errhint("Name the index of one partition; SELECT relid FROM pg_partition_tree('%s') WHERE isleaf lists them.",
						 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(index)),
													RelationGetRelationName(index))) : 0));
	/* The oid may have come to mean another index before it was locked. */
	if (heap_oid != IndexGetRelation(index_oid, false))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("could not open parent table of index \"%s\"",
						RelationGetRelationName(index))));

	if (RELATION_IS_OTHER_TEMP(index))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot access temporary tables of other sessions")));
	if (!index->rd_index->indisvalid)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("index \"%s\" is not valid", RelationGetRelationName(index)),
				 errhint("Rebuild the index with REINDEX.")));
	if (RecoveryInProgress() && !RelationIsPermanent(index))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot access temporary or unlogged relations during recovery")));
	return index;
}

/* Error out if row security hides rows that `what` is of. */
void
bq_check_row_security(Relation heap, Relation index, const char *what)
{
	if (check_enable_rls(RelationGetRelid(heap), InvalidOid, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("%s of index \"%s\" are of rows that row security hides", what,
						RelationGetRelationName(index)),
				 errhint("Call it as the owner of the table, or as a role with BYPASSRLS.")));
}
