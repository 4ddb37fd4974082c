/* bqrows.c: loops over rows, so that callers need none of their own. */
#include "bqhamming.h"
#include "bqmoments.h"
#include "bqrows.h"

BqStatus
bq_check_rows(const uint8_t *payloads, size_t n, size_t nbytes, BqHeader *first, size_t *bad_row)
{
	for (size_t i = 0; i < n; i++)
	{
		BqHeader	header;
		BqStatus	status = bq_check_payload(payloads + i * nbytes, nbytes, &header);

		if (i == 0)
			*first = header;
		/* equal lengths leave room for dims that differ within one byte of bits */
		if (status == BQ_OK && header.dim != first->dim)
			status = BQ_MIXED_DIM;
		if (status == BQ_OK && header.transform != first->transform)
			status = BQ_MIXED_TRANSFORM;
		if (status != BQ_OK)
		{
			*bad_row = i;
			return status;
		}
	}
	return BQ_OK;
}

void
bq_decode_rows(const uint8_t *payloads, size_t n, int dim, const BqRotation *rotation, float *x)
{
	for (size_t i = 0; i < n; i++)
	{
		const uint8_t *payload = payloads + i * bq_nbytes(dim);
		BqHeader	header;

		bq_read_header(payload, &header);
		bq_decode(payload + BQ_HEADER_NBYTES, dim, header.norm, rotation, x + i * (size_t) dim);
	}
}

BqStatus
bq_prepare_query_rows(const float *x, size_t n, size_t stride, int dim,
					  const BqRotation *rotation, float *q, size_t *bad_row)
{
	for (size_t i = 0; i < n; i++)
	{
		float		norm;
		BqStatus	status = bq_prepare_query(x + i * stride, dim, rotation,
											  q + i * (size_t) dim, &norm);

		if (status != BQ_OK)
		{
			*bad_row = i;
			return status;
		}
	}
	return BQ_OK;
}

void
bq_code_distance_rows(BqCodeDistance distance, const uint8_t *payloads, size_t n, int dim,
					  const uint8_t *planes, int32_t *out)
{
	uint32_t	(*kernel) (const uint8_t *a, const uint8_t *b, size_t nbytes) =
		distance == BQ_HAMMING ? bq_kernel->hamming :
		distance == BQ_HAMMING_SIGN ? bq_kernel->hamming_sign : bq_kernel->hamming_quiver;

	for (size_t i = 0; i < n; i++)
		out[i] = (int32_t) kernel(payloads + i * bq_nbytes(dim) + BQ_HEADER_NBYTES, planes,
								  bq_plane_nbytes(dim));
}

void
bq_query_distance_rows(BqQueryDistance distance, const uint8_t *payloads, size_t n, int dim,
					   const float *q, float q_norm, double *out)
{
	for (size_t i = 0; i < n; i++)
	{
		const uint8_t *payload = payloads + i * bq_nbytes(dim);
		const uint8_t *planes = payload + BQ_HEADER_NBYTES;
		BqHeader	header;

		bq_read_header(payload, &header);
		switch (distance)
		{
			case BQ_INNER_PRODUCT:
				out[i] = bq_inner_product(q, planes, dim, header.norm);
				break;
			case BQ_COSINE:
				out[i] = bq_cosine_distance(q, q_norm, planes, dim, header.norm);
				break;
			case BQ_L2:
				out[i] = bq_l2_distance(q, q_norm, planes, dim, header.norm);
				break;
		}
	}
}

BqStatus
bq_moments_add_rows(int64_t *count, double *values, int dim, const float *x, size_t n,
					size_t stride, float *scaled, uint8_t *planes, float *decoded,
					size_t *bad_row)
{
	for (size_t i = 0; i < n; i++)
	{
		BqStatus	status;

		if (i + 1 < n)
			bq_prefetch_row(x + (i + 1) * stride, dim);
		status = bq_moments_add(count, values, dim, x + i * stride,
								scaled != NULL ? scaled + i * (size_t) dim : NULL,
								planes, decoded);
		if (status != BQ_OK)
		{
			*bad_row = i;
			return status;
		}
	}
	return BQ_OK;
}
