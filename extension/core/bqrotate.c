/*
 * bqrotate.c: the seeded random rotation.
 *
 * Four rounds, each: random sign flips, then the Walsh-Hadamard transform of the
 * leading (rounds 0, 2) or trailing (rounds 1, 3) block of the largest power of two
 * that fits.  Where that is not the whole vector, rounds 1 and 3 end with a mixing
 * step between the two halves.  Each step is orthogonal.
 *
 * Not after every round: a coordinate that the leading block misses is spread by the
 * trailing one, but mixing in between would leave a half of it where the trailing
 * block misses it, and so on; of some axes 1/8 of the energy then stayed on two
 * coordinates.  Transforming both blocks in each round costs twice as much and is no
 * better.
 */
#include <math.h>

#include "bqkernel.h"
#include "bqrotate.h"

/*
 * The i-th word of a stream of random bits: splitmix64 in counter mode (Steele,
 * Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
 */
static uint64_t
random_word(uint64_t seed, uint64_t i)
{
	uint64_t	z = seed + (i + 1) * UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* The words depend on transform, round and position, never on dim. */
void
bq_rotation_init(BqRotation *rotation, int dim, int transform)
{
	int			nwords = (dim + 63) / 64;
	uint64_t	seed = random_word(UINT64_C(0x6271766563), (uint64_t) transform);	/* "bqvec" */

	rotation->dim = dim;
	rotation->transform = transform;
	for (int round = 0; round < BQ_ROTATION_ROUNDS; round++)
		for (int i = 0; i < nwords; i++)
			rotation->flips[round][i] = random_word(seed, (uint64_t) round << 32 | (uint64_t) i);
}

static int
largest_power_of_two(int dim)
{
	int			n = 1;

	while (2 * n <= dim)
		n *= 2;
	return n;
}

/* The layout of one round. */
typedef struct Round
{
	int			n;				/* length of the transformed block */
	int			block;			/* its first element */
	int			rest;			/* first element of what is outside it */
	float		factor;			/* 1 / sqrt n */
	bool		mix;			/* whether it ends with the mixing step */
} Round;

static Round
get_round(int dim, int round)
{
	Round		r;

	r.n = largest_power_of_two(dim);
	r.block = round % 2 == 0 ? 0 : dim - r.n;
	r.rest = round % 2 == 0 ? r.n : 0;
	r.factor = (float) (1.0 / sqrt((double) r.n));
	r.mix = round % 2 == 1 && r.n != dim;
	return r;
}

void
bq_rotate(const BqRotation *rotation, const float *x, float *y)
{
	int			dim = rotation->dim;
	int			half = dim / 2;

	for (int round = 0; round < BQ_ROTATION_ROUNDS; round++)
	{
		Round		r = get_round(dim, round);
		const uint64_t *flips = rotation->flips[round];

		bq_kernel->hadamard(y + r.block, x + r.block, r.n, flips, r.block, r.factor);
		bq_kernel->flip(y + r.rest, x + r.rest, dim - r.n, flips, r.rest);
		if (r.mix)
			bq_kernel->mix(y, y + dim - half, half);
		/* the first round has brought everything from x to y */
		x = y;
	}
}

/* Each step is its own inverse (flips, transform, mixing are symmetric): run them backwards. */
void
bq_unrotate(const BqRotation *rotation, float *x)
{
	int			dim = rotation->dim;
	int			half = dim / 2;

	for (int round = BQ_ROTATION_ROUNDS - 1; round >= 0; round--)
	{
		Round		r = get_round(dim, round);

		if (r.mix)
			bq_kernel->mix(x, x + dim - half, half);
		bq_kernel->hadamard(x + r.block, x + r.block, r.n, NULL, 0, r.factor);
		bq_kernel->flip(x, x, dim, rotation->flips[round], 0);
	}
}
