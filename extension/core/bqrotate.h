/* bqrotate.h: the seeded random rotation, orthogonal for every dim, O(dim log dim). */
#ifndef BQROTATE_H
#define BQROTATE_H

#include "bqkernel.h"

#define BQ_ROTATION_ROUNDS 4

/*
 * A rotation is fixed by its transform number and dim alone; this struct only
 * holds the sign flips worked out from them, about 8 kB.
 */
typedef struct BqRotation
{
	int			dim;
	int			transform;		/* 1 to BQ_MAX_TRANSFORM */
	uint64_t	flips[BQ_ROTATION_ROUNDS][BQ_FLIP_WORDS(BQ_MAX_DIM)];
} BqRotation;

extern void bq_rotation_init(BqRotation *rotation, int dim, int transform);

/*
 * Turn dim floats from x to y, which may be the same array, and back in place.
 * No sum overflows while |x| is at most BQ_MAX_NORM.
 */
extern void bq_rotate(const BqRotation *rotation, const float *x, float *y);
extern void bq_unrotate(const BqRotation *rotation, float *x);

#endif							/* BQROTATE_H */
