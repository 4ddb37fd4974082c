/*
 * bqcode.h: the packed code, defined once: level -> bits -> distance -> value,
 * sizes, byte order, padding.
 *
 * A code keeps one of four levels per dimension, in two bits:
 *
 *	level	meaning			sign  magnitude		value	thermometer
 *	  0		strong minus	  0		  1		   -1.510		000
 *	  1		weak minus		  0		  0		   -0.4528		001
 *	  2		weak plus		  1		  0		    0.4528		011
 *	  3		strong plus		  1		  1		    1.510		111
 *
 * The sign bit is x > 0, the magnitude bit |x| > 0.9816 rms(x): the optimal
 * four-level quantizer of a Gaussian (Max, "Quantizing for minimum distortion",
 * IRE Trans. Inf. Theory 6, 1960, table I, N = 4).  The threshold is per vector,
 * so a code never depends on statistics of the table.
 *
 * Distance between two levels is their difference, 0 to 3; it is the Hamming
 * distance of the thermometer codes, whose three bits are, from the right,
 * sign | ~magnitude, sign, sign & magnitude.
 *
 * Payload, the same bytes in Python, on the wire and in files:
 *
 *	offset	bytes			what
 *	0		2				dim, unsigned, big endian, 1 to BQ_MAX_DIM
 *	2		2				transform, unsigned, big endian, 0 = original axes
 *	4		4				norm: IEEE float32, big endian; |x|, finite, >= 0
 *	8		ceil(dim/8)		sign plane: dimension i is bit i % 8 of byte i / 8
 *	...		ceil(dim/8)		magnitude plane, likewise
 *
 * Bits beyond dim are zero.  The zero vector has norm 0 and all bits zero; no
 * other code has norm 0.
 */
#ifndef BQCODE_H
#define BQCODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/*
 * Same bytes everywhere, or no build: the kernels read planes and flips as little
 * endian words, and float sums must not be kept in wider registers (x87).
 */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bq needs a little-endian machine"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "bq needs float arithmetic without excess precision; on 32-bit x86 use -msse2 -mfpmath=sse"
#endif

#define BQ_MAX_DIM 16000		/* as pgvector's vector */
#define BQ_MAX_TRANSFORM 65535
#define BQ_HEADER_NBYTES 8

/*
 * The largest norm of a vector or query.  Sums of up to BQ_MAX_DIM coordinates
 * (at most sqrt(16000) = 126.5 norms) then stay below FLT_MAX.
 */
#define BQ_MAX_NORM 0x1.fffffep+120	/* FLT_MAX / 128, itself a float */

#define BQ_LEVELS 4
#define BQ_THRESHOLD 0.9816		/* in units of rms(x) */
#define BQ_WEAK 0.4528			/* |value| of levels 1 and 2 */
#define BQ_STRONG 1.510			/* |value| of levels 0 and 3 */

static inline int
bq_level(int sign, int magnitude)
{
	return sign ? 2 + magnitude : 1 - magnitude;
}

static inline int
bq_level_sign(int level)
{
	return level >= 2;
}

static inline int
bq_level_magnitude(int level)
{
	return level == 0 || level == 3;
}

static inline double
bq_level_value(int level)
{
	static const double value[BQ_LEVELS] = {-BQ_STRONG, -BQ_WEAK, BQ_WEAK, BQ_STRONG};

	return value[level];
}

/* Bytes of one bit plane. */
static inline size_t
bq_plane_nbytes(int dim)
{
	return ((size_t) dim + 7) / 8;
}

/* Bytes of both planes: what the kernels call `planes`. */
static inline size_t
bq_planes_nbytes(int dim)
{
	return 2 * bq_plane_nbytes(dim);
}

/* Bytes of a whole payload. */
static inline size_t
bq_nbytes(int dim)
{
	return BQ_HEADER_NBYTES + bq_planes_nbytes(dim);
}

/* Level of dimension i in a pair of planes. */
static inline int
bq_get_level(const uint8_t *planes, int dim, int i)
{
	const uint8_t *magnitude = planes + bq_plane_nbytes(dim);

	return bq_level((planes[i / 8] >> (i % 8)) & 1, (magnitude[i / 8] >> (i % 8)) & 1);
}

/* Set dimension i; the planes must have been zeroed before. */
static inline void
bq_set_level(uint8_t *planes, int dim, int i, int level)
{
	uint8_t    *magnitude = planes + bq_plane_nbytes(dim);

	planes[i / 8] |= (uint8_t) (bq_level_sign(level) << (i % 8));
	magnitude[i / 8] |= (uint8_t) (bq_level_magnitude(level) << (i % 8));
}

/* What can be wrong with a vector or a payload; bq_status_message() words it. */
typedef enum BqStatus
{
	BQ_OK = 0,
	BQ_BAD_DIM,					/* dim outside 1 .. BQ_MAX_DIM */
	BQ_BAD_LENGTH,				/* payload length does not match its dim */
	BQ_BAD_NORM,				/* norm NaN, infinite, negative or too large */
	BQ_BAD_PADDING,				/* bits beyond dim are set */
	BQ_BAD_ZERO,				/* norm 0 but bits set */
	BQ_NOT_FINITE,				/* NaN or infinity in a vector */
	BQ_NORM_RANGE,				/* norm of a vector above BQ_MAX_NORM */
	BQ_MIXED_DIM,				/* codes of different dim in one array */
	BQ_MIXED_TRANSFORM			/* codes of different transforms in one array */
} BqStatus;

typedef struct BqHeader
{
	uint16_t	dim;
	uint16_t	transform;
	float		norm;
} BqHeader;

/* One wording per mistake, lower case, no full stop: errors of SQL and Python. */
extern const char *bq_status_message(BqStatus status);

/* Check a header and its planes; `planes` has bq_planes_nbytes(dim) bytes. */
extern BqStatus bq_check_header(const BqHeader *header);
extern BqStatus bq_check_planes(const BqHeader *header, const uint8_t *planes);

/* Payload header <-> struct, whatever the byte order of the machine. */
extern void bq_write_header(uint8_t *payload, const BqHeader *header);
extern void bq_read_header(const uint8_t *payload, BqHeader *header);

/* Check a payload of `nbytes` bytes from outside and read its header. */
extern BqStatus bq_check_payload(const uint8_t *payload, size_t nbytes, BqHeader *header);

#endif							/* BQCODE_H */
