/*
 * fuzz_recv.c: bqvec_recv() and bqquery_recv() against damaged bytes, under the
 * address and undefined-behaviour sanitizers.
 *
 *	fuzz_recv [inputs per type] [seed]
 *
 * The functions are those of the extension, compiled from its sources; what they call
 * of the server is replaced (fakeserver.h).  Not a server with sanitizers: there palloc()
 * takes from large blocks, inside which a read past the end goes unnoticed.  Here each
 * allocation and each input is a malloc() of its own size.
 *
 * An input is a good value, damaged in one of several ways, or not at all.  A second,
 * independent check says whether it should be accepted.  What is accepted must be sent
 * back as the same bytes and survive text; what is rejected must be an ereport(ERROR)
 * of the SQLSTATE for binary input.  Each reason for rejection has to occur.
 */
#include "fakeserver.h"

#include <float.h>
#include <math.h>
#include <time.h>

#include "core/bqkernel.h"

/* --- the types, and what their input should be --- */

typedef struct Type
{
	const char *name;
	PGFunction	in;
	PGFunction	out;
	PGFunction	recv;
	PGFunction	send;
	/* write a good value of at most MAX_INPUT bytes, return its length */
	size_t		(*make) (uint8 *bytes);
	/* 1 if good, 0 if bad, -1 if too close to call */
	int			(*judge) (const uint8 *bytes, size_t nbytes);
	/* every reason for rejection */
	BqStatus	reasons[5];
} Type;

#define MAX_INPUT (4 + 4 * BQ_MAX_DIM + 64)

/* xorshift64* (Vigna, 2016) */
static uint64 random_state;

static uint64
random_bits(void)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return random_state * UINT64CONST(0x2545F4914F6CDD1D);
}

static size_t
below(size_t n)
{
	return (size_t) ((random_bits() >> 11) % n);
}

static void
put16(uint8 *bytes, size_t value)
{
	bytes[0] = (uint8) (value >> 8);
	bytes[1] = (uint8) value;
}

static void
put_float(uint8 *bytes, float value)
{
	uint32		bits;

	memcpy(&bits, &value, 4);
	put16(bytes, bits >> 16);
	put16(bytes + 2, bits & 0xffff);
}

static float
get_float(const uint8 *bytes)
{
	uint32		bits = (uint32) bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
	float		value;

	memcpy(&value, &bits, 4);
	return value;
}

/* Mostly small, so that a byte of damage matters; the rest up to the limit. */
static int
random_dim(void)
{
	size_t		kind = below(1000);

	if (kind == 0)
		return BQ_MAX_DIM - (int) below(2);
	return 1 + (int) below(kind < 50 ? 1600 : 70);
}

static size_t
make_bqvec(uint8 *bytes)
{
	int			dim = random_dim();

	put16(bytes, (size_t) dim);
	put16(bytes + 2, below(3) == 0 ? below(65536) : 0);
	memset(bytes + 4, 0, bq_nbytes(dim) - 4);
	if (below(20) == 0)
		return bq_nbytes(dim);	/* the zero vector */
	put_float(bytes + 4, (float) ldexp(1 + (double) below(1000) / 1000, (int) below(270) - 149));
	for (int i = 0; i < dim; i++)
		bq_set_level(bytes + BQ_HEADER_NBYTES, dim, i, (int) below(BQ_LEVELS));
	return bq_nbytes(dim);
}

static int
judge_bqvec(const uint8 *bytes, size_t nbytes)
{
	int			dim;
	float		norm;
	size_t		set = 0;

	if (nbytes < 8)
		return 0;
	dim = bytes[0] * 256 + bytes[1];
	norm = get_float(bytes + 4);
	if (dim < 1 || dim > 16000 || nbytes != (size_t) (8 + 2 * ((dim + 7) / 8)))
		return 0;
	if (isnan(norm) || signbit(norm) || norm > FLT_MAX / 128)
		return 0;
	for (size_t i = 8; i < nbytes; i++)
		for (size_t bit = 0; bit < 8; bit++)
			if (bytes[i] >> bit & 1)
			{
				if ((i - 8) % (nbytes / 2 - 4) * 8 + bit >= (size_t) dim)
					return 0;
				set++;
			}
	return norm != 0 || set == 0;
}

static size_t
make_bqquery(uint8 *bytes)
{
	int			dim = random_dim();
	int			exponent = (int) below(250) - 140;

	put16(bytes, (size_t) dim);
	put16(bytes + 2, below(3) == 0 ? below(65536) : 0);
	for (int i = 0; i < dim; i++)
		put_float(bytes + 4 + 4 * i,
				  (float) ldexp((double) below(2000) / 1000 - 1, exponent));
	return 4 + 4 * (size_t) dim;
}

static int
judge_bqquery(const uint8 *bytes, size_t nbytes)
{
	const double limit = FLT_MAX / 128;
	double		sum = 0;

	if (nbytes < 4)
		return 0;
	if (bytes[0] * 256 + bytes[1] < 1 || bytes[0] * 256 + bytes[1] > 16000)
		return 0;
	if (nbytes != 4 + 4 * (size_t) (bytes[0] * 256 + bytes[1]))
		return 0;
	for (size_t i = 4; i < nbytes; i += 4)
	{
		double		value = get_float(bytes + i);

		if (!isfinite(value))
			return 0;
		sum += value * value;
	}
	if (fabs(sqrt(sum) / limit - 1) < 1e-6)
		return -1;
	return sqrt(sum) < limit;
}

static const Type types[] = {
	{"bqvec", bqvec_in, bqvec_out, bqvec_recv, bqvec_send, make_bqvec, judge_bqvec,
	{BQ_BAD_DIM, BQ_BAD_LENGTH, BQ_BAD_NORM, BQ_BAD_PADDING, BQ_BAD_ZERO}},
	{"bqquery", bqquery_in, bqquery_out, bqquery_recv, bqquery_send, make_bqquery, judge_bqquery,
	{BQ_BAD_DIM, BQ_BAD_LENGTH, BQ_NOT_FINITE, BQ_NORM_RANGE, BQ_OK}}
};

/* --- damage --- */

/* Damage a value in place; there is room for MAX_INPUT bytes.  Returns its new length. */
static size_t
damage(uint8 *bytes, size_t nbytes)
{
	static const uint16 dims[] = {0, 1, 7, 8, 9, 63, 64, 65, 15999, 16000, 16001, 32767, 32768, 65535};
	static const uint32 floats[] = {
		0, 0x80000000, 1, 0x80000001, 0x007fffff, 0x00800000, 0x3f800000, 0xbf800000, 0x7bffffff,
		0x7c000000, 0x7c000001, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7f800001,
		0x7fc00000, 0xffffffff
	};

	for (size_t times = 1 + below(3); times > 0; times--)
	{
		size_t		length;

		switch (below(7))
		{
			case 0:				/* cut off */
				nbytes = below(nbytes + 1);
				break;
			case 1:				/* a little shorter or longer */
				length = nbytes + below(5);
				nbytes = length < 2 ? 0 : length - 2;
				if (nbytes > MAX_INPUT)
					nbytes = MAX_INPUT;
				break;
			case 2:				/* another dim, which the rest does not fit */
				if (nbytes >= 2)
					put16(bytes, dims[below(lengthof(dims))]);
				break;
			case 3:				/* a special float where floats are */
				if (nbytes >= 8)
				{
					uint32		bits = floats[below(lengthof(floats))];
					size_t		at = below(2) ? 4 : 4 * (1 + below(nbytes / 4 - 1));

					put16(bytes + at, bits >> 16);
					put16(bytes + at + 2, bits & 0xffff);
				}
				break;
			case 4:				/* flip bits anywhere */
				for (size_t n = below(8); n > 0 && nbytes > 0; n--)
					bytes[below(nbytes)] ^= (uint8) (1 << below(8));
				break;
			case 5:				/* flip a bit near the end, where padding is */
				if (nbytes > 0)
					bytes[nbytes - 1 - below(nbytes < 4 ? nbytes : 4)] ^= (uint8) (1 << below(8));
				break;
			case 6:				/* overwrite a stretch */
				if (nbytes > 0)
				{
					size_t		at = below(nbytes);

					length = below(nbytes - at) % 16 + 1;
					for (size_t i = at; i < at + length && i < nbytes; i++)
						bytes[i] = (uint8) random_bits();
				}
				break;
		}
	}
	return nbytes;
}

/* --- the run --- */

static Datum
call(PGFunction function, Datum argument)
{
	LOCAL_FCINFO(fcinfo, 3);

	InitFunctionCallInfoData(*fcinfo, NULL, 3, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = argument;
	fcinfo->args[1].value = ObjectIdGetDatum(InvalidOid);
	fcinfo->args[2].value = Int32GetDatum(-1);	/* typmod */
	for (int i = 0; i < 3; i++)
		fcinfo->args[i].isnull = false;
	return function(fcinfo);
}

/* Receive: true with the value, false after an error. */
static bool
receive(const Type *type, uint8 *bytes, size_t nbytes, Datum *value)
{
	StringInfoData message;

	message.data = (char *) bytes;
	message.len = (int) nbytes;
	message.maxlen = (int) nbytes;
	message.cursor = 0;
	if (sigsetjmp(on_error, 0) != 0)
		return false;
	*value = call(type->recv, PointerGetDatum(&message));
	require(message.cursor == message.len);	/* or the server would complain */
	return true;
}

/* Sending, and text and back, give the bytes that were received. */
static void
check_round_trip(const Type *type, const uint8 *bytes, size_t nbytes, Datum value)
{
	bytea	   *sent;
	Datum		again;

	if (sigsetjmp(on_error, 0) != 0)
	{
		fprintf(stderr, "error after good input: %s\n", error_message);
		exit(1);
	}
	sent = DatumGetByteaPP(call(type->send, value));
	require(VARSIZE(sent) - VARHDRSZ == nbytes && memcmp(VARDATA(sent), bytes, nbytes) == 0);
	again = call(type->in, call(type->out, value));
	require(VARSIZE(DatumGetPointer(again)) == VARSIZE(DatumGetPointer(value)));
	require(memcmp(DatumGetPointer(again), DatumGetPointer(value),
				   VARSIZE(DatumGetPointer(value))) == 0);
}

static void
fuzz(const Type *type, long inputs)
{
	static const char *const kernels[] = {"portable", "avx2", "avx512", "neon"};
	static uint8 room[MAX_INPUT];
	long		accepted = 0;
	long		by_reason[lengthof(type->reasons)] = {0};
	char		reason_message[lengthof(type->reasons)][256];
	clock_t		start = clock();

	for (size_t i = 0; i < lengthof(type->reasons); i++)
		snprintf(reason_message[i], sizeof(reason_message[i]), "invalid %s in binary format: %s",
				 type->name, bq_status_message(type->reasons[i]));

	for (long n = 0; n < inputs; n++)
	{
		size_t		nbytes = type->make(room);
		bool		intact = below(10) == 0;
		uint8	   *input;
		int			verdict;
		Datum		value;

		for (size_t spare = 0; spare < 8; spare++)
			room[nbytes + spare] = (uint8) random_bits();
		if (!intact)
			nbytes = damage(room, nbytes);
		/* its own allocation, not even a byte larger */
		input = malloc(nbytes);
		require(input != NULL || nbytes == 0);
		memcpy(input, room, nbytes);
		verdict = type->judge(input, nbytes);
		require(!intact || verdict != 0);

		/* another kernel now and then, if this CPU has it: they read what was received */
		(void) bq_kernel_select(kernels[below(lengthof(kernels))]);

		if (receive(type, input, nbytes, &value))
		{
			require(verdict != 0);
			check_round_trip(type, input, nbytes, value);
			accepted++;
		}
		else
		{
			size_t		reason = 0;

			require(verdict != 1);
			require(error_sqlstate == ERRCODE_INVALID_BINARY_REPRESENTATION);
			while (reason < lengthof(type->reasons) &&
				   strcmp(error_message, reason_message[reason]) != 0)
				reason++;
			require(reason < lengthof(type->reasons));
			by_reason[reason]++;
		}
		free(input);
		free_chunks();
	}

	printf("%s: %ld inputs, %ld accepted, %ld rejected; %.0f per second\n", type->name, inputs,
		   accepted, inputs - accepted,
		   (double) inputs * CLOCKS_PER_SEC / (double) Max(clock() - start, 1));
	require(accepted > 0);
	for (size_t i = 0; i < lengthof(type->reasons); i++)
	{
		if (type->reasons[i] == BQ_OK)
			continue;
		printf("%10ld  %s\n", by_reason[i], bq_status_message(type->reasons[i]));
		require(by_reason[i] > 0);
	}
}

int
main(int argc, char **argv)
{
	long		inputs = argc > 1 ? atol(argv[1]) : 1000000;
	uint64		seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;

	require(inputs > 0);
	printf("seed %llu\n", (unsigned long long) seed);
	random_state = seed * UINT64CONST(0x9e3779b97f4a7c15) + 1;
	for (size_t i = 0; i < lengthof(types); i++)
		fuzz(&types[i], inputs);
	return 0;
}
