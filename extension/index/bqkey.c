/* bqkey.c: keys of filter columns, and the conditions of a query on them. */
#include "postgres.h"

#include "access/relscan.h"
#include "catalog/pg_type.h"
#include "index/bqkey.h"
#include "port/pg_bitutils.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/*
 * Keys of values
 */

static int64
integer_value(Datum value, Oid type)
{
	switch (type)
	{
		case INT2OID:
			return DatumGetInt16(value);
		case INT8OID:
			return DatumGetInt64(value);
		default:
			return DatumGetInt32(value);
	}
}

static inline uint32
key_of_int32(int32 value)
{
	return (uint32) value ^ 0x80000000;
}

static uint32
clamped_key(int64 value, int64 least, int64 most, int *beyond)
{
	*beyond = value < least ? -1 : value > most ? 1 : 0;
	return key_of_int32((int32) Max(least, Min(most, value)));
}

static uint32
int2_key(Datum value, Oid type, Oid collation, int *beyond)
{
	return clamped_key(integer_value(value, type), PG_INT16_MIN, PG_INT16_MAX, beyond);
}

static uint32
int4_key(Datum value, Oid type, Oid collation, int *beyond)
{
	return clamped_key(integer_value(value, type), PG_INT32_MIN, PG_INT32_MAX, beyond);
}

/* Significant bits that are kept of 64. */
#define KEPT_BITS 26

/* Non-negative numbers up to 2^26 as they are, then a float with so many bits. */
static uint32
shorten(uint64 value)
{
	int			exponent;

	if (value < UINT64_C(1) << KEPT_BITS)
		return (uint32) value;
	exponent = pg_leftmost_one_pos64(value) - (KEPT_BITS - 1);
	return ((uint32) exponent << (KEPT_BITS - 1)) + (uint32) (value >> exponent);
}

static uint32
key_of_int64(int64 value)
{
	return value >= 0 ? 0x80000000 + shorten((uint64) value) :
		0x7fffffff - shorten((uint64) -(value + 1));
}

static uint32
int8_key(Datum value, Oid type, Oid collation, int *beyond)
{
	*beyond = 0;
	return key_of_int64(integer_value(value, type));
}

static uint32
timestamp_key(Datum value, Oid type, Oid collation, int *beyond)
{
	*beyond = 0;
	return key_of_int64(DatumGetTimestamp(value));
}

static uint32
date_key(Datum value, Oid type, Oid collation, int *beyond)
{
	*beyond = 0;
	return key_of_int32(DatumGetDateADT(value));
}

static uint32
bool_key(Datum value, Oid type, Oid collation, int *beyond)
{
	*beyond = 0;
	return DatumGetBool(value);
}

static uint32
oid_key(Datum value, Oid type, Oid collation, int *beyond)
{
	*beyond = 0;
	return DatumGetObjectId(value);
}

/* The order of float4, with one zero, and NaN above all, as in PostgreSQL. */
static uint32
key_of_float(float value)
{
	uint32		bits;

	if (isnan(value))
		return UINT32_MAX;
	value += 0.0f;
	if (value == 0)
		value = 0;
	memcpy(&bits, &value, sizeof(bits));
	return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

static uint32
float_key(Datum value, Oid type, Oid collation, int *beyond)
{
	*beyond = 0;
	return key_of_float(type == FLOAT8OID ? (float) DatumGetFloat8(value) : DatumGetFloat4(value));
}

static uint32
numeric_key(Datum value, Oid type, Oid collation, int *beyond)
{
	*beyond = 0;
	return key_of_float((float) DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
																   value)));
}

static uint32
text_key(Datum value, Oid type, Oid collation, int *beyond)
{
	*beyond = 0;
	return DatumGetUInt32(DirectFunctionCall1Coll(hashtext, collation, value));
}

static uint32
bpchar_key(Datum value, Oid type, Oid collation, int *beyond)
{
	*beyond = 0;
	return DatumGetUInt32(DirectFunctionCall1Coll(hashbpchar, collation, value));
}

static uint32
uuid_key(Datum value, Oid type, Oid collation, int *beyond)
{
	*beyond = 0;
	return DatumGetUInt32(DirectFunctionCall1(uuid_hash, value));
}

#define KEY_TYPE(name, exactly) \
	PG_FUNCTION_INFO_V1(bq_##name); \
	Datum \
	bq_##name(PG_FUNCTION_ARGS) \
	{ \
		static const BqKeyType type = {name, exactly}; \
	\
		(void) fcinfo; \
		PG_RETURN_POINTER(&type); \
	} \
	extern int	bq_no_such_variable

KEY_TYPE(bool_key, true);
KEY_TYPE(int2_key, true);
KEY_TYPE(int4_key, true);
KEY_TYPE(int8_key, false);
KEY_TYPE(oid_key, true);		/* enums as well: their values are oids, in no order */
KEY_TYPE(float_key, false);
KEY_TYPE(numeric_key, false);
KEY_TYPE(date_key, true);
KEY_TYPE(timestamp_key, false);
KEY_TYPE(text_key, false);
KEY_TYPE(bpchar_key, false);
KEY_TYPE(uuid_key, false);

/* Number of filter columns. */
int
bq_count_keys(Relation index)
{
	int			nkeys = RelationGetNumberOfAttributes(index) - 1;

	if (nkeys > BQ_MAX_KEYS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("bq index \"%s\" cannot have more than %d filter columns",
						RelationGetRelationName(index), BQ_MAX_KEYS)));
	return nkeys;
}

/* How an index makes keys of a filter column, from 0. */
const BqKeyType *
bq_get_key_type(Relation index, int column)
{
	AttrNumber	attno = (AttrNumber) (column + 2);

	if (!OidIsValid(index_getprocid(index, attno, BQ_KEY_PROC)))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column %d of bq index \"%s\" has no type to filter by", attno,
						RelationGetRelationName(index)),
				 errdetail("The first column of a bq index has vectors or codes, the others are for filters.")));
	return (const BqKeyType *)
		DatumGetPointer(FunctionCall1(index_getprocinfo(index, attno, BQ_KEY_PROC),
									  PointerGetDatum(NULL)));
}

/* Set the keys of the filter columns of a row. */
void
bq_make_keys(Relation index, const Datum *values, const bool *isnull, BqRow *row)
{
	int			nkeys = bq_count_keys(index);

	row->nulls = 0;
	for (int i = 0; i < nkeys; i++)
	{
		int			beyond;

		row->keys[i] = 0;
		if (isnull[i + 1])
			row->nulls |= (uint32) 1 << i;
		else
			row->keys[i] = bq_get_key_type(index, i)->key(values[i + 1],
													 index->rd_opcintype[i + 1],
													 index->rd_indcollation[i + 1], &beyond);
	}
}

/*
 * Conditions
 */

static void
add_range(BqCondition *condition, uint32 low, uint32 high)
{
	if (low > high)
		return;
	condition->ranges[condition->nranges].low = low;
	condition->ranges[condition->nranges].width = high - low;
	condition->nranges++;
}

/* Add the keys that rows with `column operator value` can have. */
static void
add_comparison(BqCondition *condition, const BqKeyType *type, int strategy, Datum value,
			   Oid value_type, Oid collation)
{
	int			beyond;
	uint32		key = type->key(value, value_type, collation, &beyond);
	/* of an exact type, the key itself is out where the value is; not so of one beyond */
	bool		open = type->exact && beyond == 0;

	switch (strategy)
	{
		case BQ_STRATEGY_LESS:
			if (beyond >= 0 && !(open && key == 0))
				add_range(condition, 0, open ? key - 1 : key);
			break;
		case BQ_STRATEGY_LESS_EQUAL:
			if (beyond >= 0)
				add_range(condition, 0, key);
			break;
		case BQ_STRATEGY_EQUAL:
			if (beyond == 0)
				add_range(condition, key, key);
			break;
		case BQ_STRATEGY_GREATER_EQUAL:
			if (beyond <= 0)
				add_range(condition, key, UINT32_MAX);
			break;
		case BQ_STRATEGY_GREATER:
			if (beyond <= 0 && !(open && key == UINT32_MAX))
				add_range(condition, open ? key + 1 : key, UINT32_MAX);
			break;
		default:
			elog(ERROR, "unexpected strategy %d of a filter", strategy);
	}
}

static int
compare_ranges(const void *a, const void *b)
{
	uint32		x = ((const BqRange *) a)->low;
	uint32		y = ((const BqRange *) b)->low;

	return x < y ? -1 : x > y;
}

/* Of a long array of values: each key once. */
static void
remove_equal_ranges(BqCondition *condition)
{
	int			n = 0;

	qsort(condition->ranges, condition->nranges, sizeof(BqRange), compare_ranges);
	for (int i = 0; i < condition->nranges; i++)
		if (n == 0 || condition->ranges[i].low != condition->ranges[n - 1].low ||
			condition->ranges[i].width != condition->ranges[n - 1].width)
			condition->ranges[n++] = condition->ranges[i];
	condition->nranges = n;
}

/* column operator ANY (array) */
static void
add_array(BqCondition *condition, const BqKeyType *type, int strategy, Datum value, Oid collation)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	Oid			element = ARR_ELEMTYPE(array);
	int16		length;
	bool		by_value;
	char		align;
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	get_typlenbyvalalign(element, &length, &by_value, &align);
	deconstruct_array(array, element, length, by_value, align, &elements, &nulls, &n);
	condition->ranges = (BqRange *) palloc(Max(n, 1) * sizeof(BqRange));
	for (int i = 0; i < n; i++)
		if (!nulls[i])
			add_comparison(condition, type, strategy, elements[i], element, collation);
	remove_equal_ranges(condition);
}

/* The conditions of a scan, in the current memory context; NULL if there are none. */
BqFilter *
bq_make_filter(IndexScanDesc scan)
{
	Relation	index = scan->indexRelation;
	BqFilter   *filter;

	if (scan->numberOfKeys == 0)
		return NULL;
	filter = (BqFilter *) palloc0(sizeof(BqFilter));
	filter->conditions = (BqCondition *) palloc0(scan->numberOfKeys * sizeof(BqCondition));
	for (int i = 0; i < scan->numberOfKeys; i++)
	{
		ScanKey		key = &scan->keyData[i];
		BqCondition *condition;
		const BqKeyType *type;
		Oid			collation;

		/* IS NOT NULL of vectors or codes: only such rows are in the index (bqcost.c) */
		if (key->sk_attno == 1)
			continue;
		condition = &filter->conditions[filter->nconditions++];
		condition->column = key->sk_attno - 2;
		condition->ranges = (BqRange *) palloc(sizeof(BqRange));
		if (key->sk_flags & SK_SEARCHNULL)
		{
			condition->wants_null = true;
			continue;
		}
		if (key->sk_flags & SK_SEARCHNOTNULL)
		{
			add_range(condition, 0, UINT32_MAX);
			continue;
		}
		/* comparisons with NULL are never true */
		if (key->sk_flags & SK_ISNULL)
		{
			filter->never = true;
			continue;
		}
		type = bq_get_key_type(index, condition->column);
		collation = index->rd_indcollation[key->sk_attno - 1];
		filter->lossy |= !type->exact;
		if (key->sk_flags & SK_SEARCHARRAY)
			add_array(condition, type, key->sk_strategy, key->sk_argument, collation);
		else
			add_comparison(condition, type, key->sk_strategy, key->sk_argument,
						   OidIsValid(key->sk_subtype) ? key->sk_subtype :
						   index->rd_opcintype[key->sk_attno - 1], collation);
		filter->never |= condition->nranges == 0;
	}
	return filter;
}

/* Which of a block's BQ_BLOCK rows meet a condition: a bit for each. */
static uint32
match_condition(const BqCondition *condition, const uint32 *keys, uint32 nulls)
{
	uint32		matches = 0;

	if (condition->wants_null)
		return nulls;
	for (int r = 0; r < condition->nranges; r++)
	{
		const BqRange range = condition->ranges[r];
		uint32		found = 0;

		for (int c = 0; c < BQ_BLOCK; c++)
			found |= (uint32) (keys[c] - range.low <= range.width) << c;
		matches |= found;
	}
	return matches & ~nulls;
}

/* Which rows of a block meet all conditions: a bit for each, also of slots without a row. */
uint32
bq_match_block(const BqFilter *filter, const BqBlockData *block)
{
	uint32		matches = UINT32_MAX;

	for (int i = 0; i < filter->nconditions && matches != 0; i++)
	{
		const BqCondition *condition = &filter->conditions[i];
		const BqBlockKeys *column = BqBlockGetKeys(block, condition->column);

		matches &= match_condition(condition, column->keys, column->nulls);
	}
	return matches;
}
