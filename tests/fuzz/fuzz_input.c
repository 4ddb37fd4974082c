/*
 * fuzz_input.c: text and binary input of bqvec and bqquery, for libFuzzer, under the address
 * and undefined-behaviour sanitizers.
 *
 *	fuzz_input corpus/input -max_total_time=60		with libFuzzer
 *	fuzz_input FILE ...								without: runs these inputs once
 *
 * COPY and parameters of queries come to the same four functions.  The first byte of an input
 * says which one, with which type modifier, and whether errors are to be soft; the rest is
 * what that function is given.
 *
 * What is accepted comes back from text and from binary as the same value.  What is rejected
 * has an SQLSTATE that extension/README.md lists for input; a soft error is raised once.
 */
#include "fakeserver.h"

#include <math.h>

#include "lib/stringinfo.h"

/* As in COPY ... ON_ERROR; what it is matters to the server's functions only. */
static char context_of_soft_errors;

static Datum
call(PGFunction function, Datum argument, int32 typmod)
{
	LOCAL_FCINFO(fcinfo, 3);

	InitFunctionCallInfoData(*fcinfo, NULL, 3, InvalidOid, (struct Node *) soft_errors, NULL);
	fcinfo->args[0].value = argument;
	fcinfo->args[1].value = ObjectIdGetDatum(InvalidOid);
	fcinfo->args[2].value = Int32GetDatum(typmod);
	for (int i = 0; i < 3; i++)
		fcinfo->args[i].isnull = false;
	return function(fcinfo);
}

static Datum
receive(PGFunction function, const char *bytes, size_t nbytes, int32 typmod)
{
	StringInfoData message = {
		.data = (char *) bytes,
		.len = (int) nbytes,
		.maxlen = (int) nbytes
	};
	Datum		value = call(function, PointerGetDatum(&message), typmod);

	require(message.cursor == message.len);
	return value;
}

static void
require_same(Datum a, Datum b)
{
	require(VARSIZE(DatumGetPointer(a)) == VARSIZE(DatumGetPointer(b)) &&
			memcmp(DatumGetPointer(a), DatumGetPointer(b), VARSIZE(DatumGetPointer(a))) == 0);
}

static bool
is_expected(bool text)
{
	switch (error_sqlstate)
	{
		case ERRCODE_INVALID_TEXT_REPRESENTATION:
		case ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE:
			return text;
		case ERRCODE_INVALID_BINARY_REPRESENTATION:
			return !text;
		case ERRCODE_DATA_EXCEPTION:	/* of binary input if it does not fit the modifier */
			return true;
		default:
			return false;
	}
}

static const int32 typmods[] = {
	-1,
	1,
	8,
	BQ_MAX_DIM,
	8 | BQ_TYPMOD_HAS_TRANSFORM,
	8 | 7 << BQ_TYPMOD_DIM_BITS | BQ_TYPMOD_HAS_TRANSFORM
};

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	bool		is_query;
	bool		text;
	int32		typmod;
	PGFunction	in;
	PGFunction	out;
	PGFunction	recv;
	PGFunction	send;
	static char *input;			/* survives errors */
	Datum		value;
	bytea	   *sent;

	if (size < 1 || size > MAX_MESSAGE)
		return 0;
	is_query = data[0] & 1;
	text = data[0] & 2;
	soft_errors = text && data[0] & 4 ? (struct Node *) &context_of_soft_errors : NULL;
	soft_error = false;
	/* bqquery has none */
	typmod = is_query ? -1 : typmods[(data[0] >> 3) % lengthof(typmods)];
	in = is_query ? bqquery_in : bqvec_in;
	out = is_query ? bqquery_out : bqvec_out;
	recv = is_query ? bqquery_recv : bqvec_recv;
	send = is_query ? bqquery_send : bqvec_send;

	/* its own allocation, not even a byte larger; text ends at its first zero */
	input = malloc(size);
	require(input != NULL);
	memcpy(input, data + 1, size - 1);
	input[size - 1] = '\0';
	if (text)
		input = realloc(input, strlen(input) + 1);

	if (sigsetjmp(on_error, 0) != 0)
		require(is_expected(text));
	else
	{
		value = text ? call(in, CStringGetDatum(input), typmod) :
			receive(recv, input, size - 1, typmod);
		if (soft_error)
			require(value == (Datum) 0 && is_expected(text));
		else
		{
			if (sigsetjmp(on_error, 0) != 0)
			{
				fprintf(stderr, "error after good input: %s\n", error_message);
				abort();
			}
			soft_errors = NULL;
			sent = DatumGetByteaPP(call(send, value, -1));
			require_same(receive(recv, VARDATA(sent), VARSIZE(sent) - VARHDRSZ, typmod), value);
			require_same(call(in, call(out, value, -1), typmod), value);
			if (!text)
				require(VARSIZE(sent) - VARHDRSZ == size - 1 &&
						memcmp(VARDATA(sent), input, size - 1) == 0);
		}
	}
	free(input);
	free_chunks();
	return 0;
}

#ifdef BQ_WITHOUT_LIBFUZZER

/* Run the inputs in these files. */
int
main(int argc, char **argv)
{
	static uint8_t input[MAX_MESSAGE + 1];

	for (int i = 1; i < argc; i++)
	{
		FILE	   *file = fopen(argv[i], "rb");

		require(file != NULL);
		LLVMFuzzerTestOneInput(input, fread(input, 1, sizeof(input), file));
		fclose(file);
	}
	printf("%d inputs of the corpus\n", argc - 1);
	return 0;
}

#endif
