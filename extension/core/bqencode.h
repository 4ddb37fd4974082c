/* bqencode.h: float32 vectors -> packed codes, and back. */
#ifndef BQENCODE_H
#define BQENCODE_H

#include "bqrotate.h"

/* Where the magnitude bit is cut. */
typedef enum BqCut
{
	BQ_CUT_RMS,					/* BQ_THRESHOLD * rms(x): bq's own codes */
	BQ_CUT_MEAN					/* mean |x|: QuIVer's codes (arXiv 2605.02171) */
} BqCut;

/*
 * Encode x into `planes` and `norm`.  `rotation` may be NULL (original axes);
 * otherwise `scratch` holds dim floats.  x and scratch must not overlap.
 * Returns BQ_OK, BQ_NOT_FINITE or BQ_NORM_RANGE; the output is then undefined.
 */
extern BqStatus bq_encode(const float *x, int dim, BqCut cut, const BqRotation *rotation,
						  float *scratch, uint8_t *planes, float *norm);

/*
 * The same for n rows, `stride` floats apart, into payloads of bq_nbytes(dim)
 * bytes each.  On error *bad_row is the index of the first bad row.
 */
extern BqStatus bq_encode_rows(const float *x, size_t n, size_t stride, int dim, BqCut cut,
							   const BqRotation *rotation, float *scratch,
							   uint8_t *payloads, size_t *bad_row);

/* Ask for a row that is worked on next; see bqencode.c. */
extern void bq_prefetch_row(const float *x, int dim);

/*
 * The vector that a code stands for: level values scaled to the stored norm, and
 * turned back to the original axes if `rotation` is given.
 */
extern void bq_decode(const uint8_t *planes, int dim, float norm,
					  const BqRotation *rotation, float *x);

/*
 * Prepare a float query: check it and rotate it (NULL: copy).  `norm` gets |x|.
 * x and q may be the same array.  Returns as bq_encode().
 */
extern BqStatus bq_prepare_query(const float *x, int dim, const BqRotation *rotation,
								 float *q, float *norm);

/* Length of the unscaled level values: sqrt(sum of value^2). */
extern double bq_decoded_norm(const uint8_t *planes, int dim);

/*
 * Distances between a prepared query and a code: exactly those between q and the
 * decoded code (before turning back, which changes no distance).  A zero vector
 * or query has cosine distance 1 from everything.
 */
extern double bq_inner_product(const float *q, const uint8_t *planes, int dim, float norm);
extern double bq_cosine_distance(const float *q, float q_norm, const uint8_t *planes, int dim,
								 float norm);
extern double bq_l2_distance(const float *q, float q_norm, const uint8_t *planes, int dim,
							 float norm);

#endif							/* BQENCODE_H */
