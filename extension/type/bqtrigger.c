/* bqtrigger.c: bq_encode_trigger(), which keeps codes in step with the vectors of their rows. */
#include "postgres.h"

#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "parser/parse_coerce.h"
#include "type/bqcolumns.h"
#include "type/bqvec.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#define ARGUMENTS_HINT \
	"Arguments of bq_encode_trigger are: code column, vector column, and perhaps the transform."

/* What one statement needs to know, worked out at its first row. */
typedef struct BqTrigger
{
	AttrNumber	code;
	AttrNumber	source;
	int32		typmod;			/* of the codes */
	int			transform;
	bool		casts;			/* the vectors are of another type than real[] */
	FmgrInfo	cast;
} BqTrigger;

static AttrNumber
find_column(Relation rel, const char *name)
{
	int			number = SPI_fnumber(RelationGetDescr(rel), name);

	if (number <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist", name,
						RelationGetRelationName(rel)),
				 errhint(ARGUMENTS_HINT)));
	return (AttrNumber) number;
}

/* Error out unless the writer may call a function, as where SQL calls it. */
static void
check_execute(Oid function)
{
#if PG_VERSION_NUM >= 160000
	AclResult	allowed = object_aclcheck(ProcedureRelationId, function, GetUserId(), ACL_EXECUTE);
#else
	AclResult	allowed = pg_proc_aclcheck(function, GetUserId(), ACL_EXECUTE);
#endif

	if (allowed != ACLCHECK_OK)
		aclcheck_error(allowed, OBJECT_FUNCTION, get_func_name(function));
}

/* Look up and check what the trigger's arguments name. */
static BqTrigger *
prepare(FunctionCallInfo fcinfo, const TriggerData *data)
{
	Trigger    *trigger = data->tg_trigger;
	Relation	rel = data->tg_relation;
	BqTrigger  *state = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(BqTrigger));
	Oid			type;
	Oid			function;

	if (trigger->tgnargs != 2 && trigger->tgnargs != 3)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("trigger \"%s\" has %d arguments, expected 2 or 3", trigger->tgname,
						trigger->tgnargs),
				 errhint(ARGUMENTS_HINT)));
	state->code = find_column(rel, trigger->tgargs[0]);
	state->source = find_column(rel, trigger->tgargs[1]);
	if (SPI_gettypeid(RelationGetDescr(rel), state->code) !=
		bq_extension_type(fcinfo, "bqvec"))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of table \"%s\" is not of type bqvec", trigger->tgargs[0],
						RelationGetRelationName(rel)),
				 errhint(ARGUMENTS_HINT)));

	if (TupleDescAttr(RelationGetDescr(rel), state->source - 1)->attgenerated != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" of table \"%s\" is generated, so that a BEFORE trigger does not see its value",
						trigger->tgargs[1], RelationGetRelationName(rel)),
				 errhint("Make the codes a generated column, too, with bq_encode() of the same expression.")));
	type = SPI_gettypeid(RelationGetDescr(rel), state->source);
	switch (find_coercion_pathway(FLOAT4ARRAYOID, type, COERCION_EXPLICIT, &function))
	{
		case COERCION_PATH_RELABELTYPE:
			break;
		case COERCION_PATH_FUNC:
			check_execute(function);
			state->casts = true;
			fmgr_info_cxt(function, &state->cast, fcinfo->flinfo->fn_mcxt);
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("column \"%s\" of table \"%s\" is of type %s, which is not one of vectors",
							trigger->tgargs[1], RelationGetRelationName(rel), format_type_be(type)),
					 errhint("Use a type with a cast to real[].")));
	}

	state->typmod = bq_column_typmod(RelationGetDescr(rel), state->code);
	if (trigger->tgnargs == 3)
		state->transform = bq_check_transform(pg_strtoint32(trigger->tgargs[2]));
	else if (bq_typmod_transform(state->typmod) >= 0)
		state->transform = bq_typmod_transform(state->typmod);
	else
		state->transform = bq_column_transform(fcinfo, RelationGetRelid(rel), trigger->tgargs[0]);
	return state;
}

/* The code of a vector of whatever type. */
static Datum
encode(BqTrigger *state, Datum vector)
{
	if (state->casts)
	{
		/* a cast may take the type modifier, and whether it is explicit, too */
		LOCAL_FCINFO(call, 3);

		InitFunctionCallInfoData(*call, &state->cast, state->cast.fn_nargs, InvalidOid, NULL, NULL);
		call->args[0].value = vector;
		call->args[0].isnull = false;
		call->args[1].value = Int32GetDatum(-1);
		call->args[1].isnull = false;
		call->args[2].value = BoolGetDatum(true);
		call->args[2].isnull = false;
		vector = FunctionCallInvoke(call);
		if (call->isnull)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("cast of a vector to real[] returned null")));
	}
	return PointerGetDatum(bqvec_encode_array(DatumGetArrayTypeP(vector), state->transform,
											  BQ_CUT_RMS));
}

/* A code that came with its row must be one that queries can be compared with. */
static void
check_given(const BqTrigger *state, const TriggerData *data, Datum code)
{
	BqHeader	header = bqvec_view(PG_DETOAST_DATUM_PACKED(code)).header;

	if (header.transform != state->transform)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("code of transform %d in column \"%s\" of table \"%s\", expected %d",
						header.transform, data->tg_trigger->tgargs[0],
						RelationGetRelationName(data->tg_relation), state->transform),
				 errhint("Leave the code out: it is made from the vector.")));
}

/* Whether a column of the old row has another value. */
static bool
differs(HeapTuple old, TupleDesc tupdesc, AttrNumber column, Datum value, bool is_null)
{
	bool		was_null;
	Datum		before = heap_getattr(old, column, tupdesc, &was_null);

	return was_null != is_null || (!is_null && !datum_image_eq(before, value, false, -1));
}

PG_FUNCTION_INFO_V1(bq_encode_trigger);

/*
 * SQL: BEFORE INSERT OR UPDATE ... FOR EACH ROW EXECUTE FUNCTION
 * bq_encode_trigger(code column, vector column [, transform]).
 *
 * Makes the code where it is null, and where an UPDATE changed the vector and not the code.
 * A code that was given stays: whoever made it had the vector, too.
 */
Datum
bq_encode_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	bool		update;
	bool		given;
	bool		changed;
	BqTrigger  *state;
	TupleDesc	tupdesc;
	HeapTuple	row;
	Datum		code;
	Datum		vector;
	bool		no_code;
	bool		no_vector;
	int			column;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(data->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(data->tg_event) ||
		!(TRIGGER_FIRED_BY_INSERT(data->tg_event) || TRIGGER_FIRED_BY_UPDATE(data->tg_event)))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("bq_encode_trigger must be called BEFORE INSERT OR UPDATE, FOR EACH ROW")));
	update = TRIGGER_FIRED_BY_UPDATE(data->tg_event);
	row = update ? data->tg_newtuple : data->tg_trigtuple;
	tupdesc = RelationGetDescr(data->tg_relation);

	state = fcinfo->flinfo->fn_extra;
	if (state == NULL)
		state = fcinfo->flinfo->fn_extra = prepare(fcinfo, data);

	code = heap_getattr(row, state->code, tupdesc, &no_code);
	vector = heap_getattr(row, state->source, tupdesc, &no_vector);
	given = !no_code && (!update || differs(data->tg_trigtuple, tupdesc, state->code, code, no_code));
	changed = !update ||
		differs(data->tg_trigtuple, tupdesc, state->source, vector, no_vector);
	if (given)
		check_given(state, data, code);
	if (given || (!no_code && !changed) || (no_code && no_vector))
		return PointerGetDatum(row);

	no_code = no_vector;
	if (!no_code)
	{
		code = encode(state, vector);
		(void) bq_check_typmod(state->typmod, ((BqVec *) DatumGetPointer(code))->header.dim,
							   state->transform, NULL);
	}
	column = state->code;
	return PointerGetDatum(heap_modify_tuple_by_cols(row, tupdesc, 1, &column, &code, &no_code));
}
