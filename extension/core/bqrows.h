/*
 * bqrows.h: the core's operations over many rows, for callers that hold arrays.
 *
 * Payloads lie bq_nbytes(dim) bytes apart; vectors `stride` floats apart.  Where a
 * row can be bad, *bad_row is the first one, and rows before it are done.
 */
#ifndef BQROWS_H
#define BQROWS_H

#include "bqencode.h"

typedef enum BqCodeDistance
{
	BQ_HAMMING,
	BQ_HAMMING_SIGN,
	BQ_HAMMING_QUIVER
} BqCodeDistance;

typedef enum BqQueryDistance
{
	BQ_INNER_PRODUCT,
	BQ_COSINE,
	BQ_L2
} BqQueryDistance;

/* Check n payloads of `nbytes` bytes each, all of one dim and transform. */
extern BqStatus bq_check_rows(const uint8_t *payloads, size_t n, size_t nbytes,
							  BqHeader *first, size_t *bad_row);

/* Decode checked payloads; rows of x follow each other without a gap. */
extern void bq_decode_rows(const uint8_t *payloads, size_t n, int dim,
						   const BqRotation *rotation, float *x);

/* Prepare n float queries; rows of q follow each other without a gap. */
extern BqStatus bq_prepare_query_rows(const float *x, size_t n, size_t stride, int dim,
									  const BqRotation *rotation, float *q, size_t *bad_row);

/* Distances of checked payloads from one code, or from one prepared query. */
extern void bq_code_distance_rows(BqCodeDistance distance, const uint8_t *payloads, size_t n,
								  int dim, const uint8_t *planes, int32_t *out);
extern void bq_query_distance_rows(BqQueryDistance distance, const uint8_t *payloads, size_t n,
								   int dim, const float *q, float q_norm, double *out);

/* bq_moments_add() of n vectors; rows of `scaled` follow each other without a gap. */
extern BqStatus bq_moments_add_rows(int64_t *count, double *values, int dim,
									const float *x, size_t n, size_t stride, float *scaled,
									uint8_t *planes, float *decoded, size_t *bad_row);

#endif							/* BQROWS_H */
