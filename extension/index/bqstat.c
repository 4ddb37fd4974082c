/*
 * bqstat.c: figures for monitoring: what scans did, and bq_index_summary(), what an index
 * tells of itself at once.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xlog.h"
#include "catalog/index.h"
#include "catalog/pg_authid_d.h"
#include "catalog/pg_class.h"
#include "funcapi.h"
#include "index/bqscan.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/timestamp.h"

#if PG_VERSION_NUM < 160000
#define counts t_counts
#define tuples_hot_updated t_tuples_hot_updated
#define delta_live_tuples t_delta_live_tuples
#define changed_tuples t_changed_tuples
#endif

/*
 * Add what a scan did to the statistics that the server keeps of its index.  Extensions have none
 * of their own before PostgreSQL 18, and then only if they are preloaded.  But every relation has
 * some that are for tables alone, and are added to nothing else when they are flushed
 * (pgstat_relation.c: pgstat_relation_flush_cb).  So these counters cost nothing, need no shared
 * memory, and are saved, reset, and dropped as all others are.  The view bq_stat_indexes gives
 * them their names.
 */
void
bq_count_scan(Relation index, const BqScan *so)
{
	if (so->uncounted || !pgstat_should_count_relation(index))
		return;
	index->pgstat_info->counts.tuples_hot_updated += so->nlists;
	index->pgstat_info->counts.delta_live_tuples += so->ncodes;
	index->pgstat_info->counts.changed_tuples += so->nfetched;
}

/* May the user see figures of an index?  As of bq_index_info(), and who may see all statistics. */
static bool
may_see(Oid index_oid)
{
	Oid			heap_oid = IndexGetRelation(index_oid, true);
	bool		missing = false;

	return has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS) ||
		(OidIsValid(heap_oid) &&
		 pg_class_aclcheck_ext(heap_oid, GetUserId(), ACL_SELECT, &missing) == ACLCHECK_OK);
}

/*
 * Open an index of bq, to be closed with its lock; NULL if it is something else, is gone or
 * locked, or its pages are not for this session.
 */
static Relation
open_at_once(Oid index_oid)
{
	Relation	index;

	if (!ConditionalLockRelationOid(index_oid, AccessShareLock))
		return NULL;
	index = try_relation_open(index_oid, NoLock);
	if (index == NULL)
		UnlockRelationOid(index_oid, AccessShareLock);
	else if (index->rd_rel->relkind != RELKIND_INDEX || index->rd_indam->ambuild != bqbuild ||
			 RELATION_IS_OTHER_TEMP(index) || (RecoveryInProgress() && !RelationIsPermanent(index)))
	{
		relation_close(index, AccessShareLock);
		index = NULL;
	}
	return index;
}

/* Copy the metapage if it is one, of whatever version. */
static bool
copy_metapage(Relation index, BqMetaPageData *meta)
{
	Buffer		buffer = ReadBuffer(index, BQ_METAPAGE_BLKNO);
	bool		found;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	*meta = *BqPageGetMeta(BufferGetPage(buffer));
	found = !PageIsNew(BufferGetPage(buffer)) && meta->magic == BQ_MAGIC;
	UnlockReleaseBuffer(buffer);
	return found;
}

PG_FUNCTION_INFO_V1(bq_index_summary);

/*
 * SQL: bq_index_summary(index).  Monitoring asks for all indexes in one statement, again and
 * again: this reads one page, waits for nobody, and what it cannot tell is null, not an error.
 */
Datum
bq_index_summary(PG_FUNCTION_ARGS)
{
	Oid			index_oid = PG_GETARG_OID(0);
	Relation	index = may_see(index_oid) ? open_at_once(index_oid) : NULL;
	BqMetaPageData meta;
	TupleDesc	desc;
	Datum		values[8];
	bool		nulls[8];
	int			i = 0;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != lengthof(values))
		elog(ERROR, "bq_index_summary() is declared with another result");
	memset(nulls, true, sizeof(nulls));
	if (index != NULL)
	{
		BlockNumber npages = RelationGetNumberOfBlocks(index);

		nulls[i] = false;
		values[i++] = Int64GetDatum((int64) npages * BLCKSZ);
		/* while it is built, pages come and go */
		if (index->rd_index->indisvalid && npages > 0 && copy_metapage(index, &meta))
		{
			nulls[i] = false;
			values[i++] = Int32GetDatum((int32) meta.version);
			if (meta.version == BQ_VERSION)
			{
				memset(nulls + i, false, (lengthof(nulls) - i) * sizeof(bool));
				values[i++] = Int32GetDatum((int32) meta.dim);
				values[i] = Int32GetDatum(meta.transform);
				nulls[i++] = meta.transform < 0;
				values[i++] = Int32GetDatum((int32) meta.nlists);
				values[i++] = Int64GetDatum((int64) meta.build_rows);
				values[i++] = Int32GetDatum((int32) meta.nchanged);
				values[i] = TimestampTzGetDatum(meta.split_at);
				nulls[i++] = meta.split_at == 0;
				Assert(i == lengthof(values));
			}
		}
		relation_close(index, AccessShareLock);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
