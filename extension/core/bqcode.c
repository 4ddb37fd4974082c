/* bqcode.c: checks of codes that come from outside, and their header's bytes. */
#include <math.h>

#include "bqcode.h"

const char *
bq_status_message(BqStatus status)
{
	switch (status)
	{
		case BQ_OK:
			return "no error";
		case BQ_BAD_DIM:
			return "dimensions must be between 1 and 16000";
		case BQ_BAD_LENGTH:
			return "length of the code does not match its dimensions";
		case BQ_BAD_NORM:
			return "norm of the code must be finite and not negative";
		case BQ_BAD_PADDING:
			return "bits of the code beyond its dimensions must be zero";
		case BQ_BAD_ZERO:
			return "code of norm 0 must have all bits zero";
		case BQ_NOT_FINITE:
			return "NaN and infinite values are not allowed";
		case BQ_NORM_RANGE:
			return "norm of the vector must not exceed 2.65e36";
		case BQ_MIXED_DIM:
			return "dimensions of the code differ from those before it";
		case BQ_MIXED_TRANSFORM:
			return "transform of the code differs from those before it";
	}
	return "unknown error";
}

BqStatus
bq_check_header(const BqHeader *header)
{
	if (header->dim < 1 || header->dim > BQ_MAX_DIM)
		return BQ_BAD_DIM;
	/* -0 is out, or equal codes could differ in their bytes; written so that NaN fails too */
	if (signbit(header->norm) || !(header->norm <= BQ_MAX_NORM))
		return BQ_BAD_NORM;
	return BQ_OK;
}

BqStatus
bq_check_planes(const BqHeader *header, const uint8_t *planes)
{
	size_t		nbytes = bq_plane_nbytes(header->dim);
	int			used = header->dim % 8;

	if (used != 0 &&
		((planes[nbytes - 1] >> used) != 0 || (planes[2 * nbytes - 1] >> used) != 0))
		return BQ_BAD_PADDING;

	if (header->norm == 0)
	{
		for (size_t i = 0; i < 2 * nbytes; i++)
			if (planes[i] != 0)
				return BQ_BAD_ZERO;
	}
	return BQ_OK;
}

void
bq_write_header(uint8_t *payload, const BqHeader *header)
{
	uint32_t	bits;

	memcpy(&bits, &header->norm, 4);
	payload[0] = (uint8_t) (header->dim >> 8);
	payload[1] = (uint8_t) header->dim;
	payload[2] = (uint8_t) (header->transform >> 8);
	payload[3] = (uint8_t) header->transform;
	payload[4] = (uint8_t) (bits >> 24);
	payload[5] = (uint8_t) (bits >> 16);
	payload[6] = (uint8_t) (bits >> 8);
	payload[7] = (uint8_t) bits;
}

void
bq_read_header(const uint8_t *payload, BqHeader *header)
{
	uint32_t	bits = ((uint32_t) payload[4] << 24) | ((uint32_t) payload[5] << 16) |
		((uint32_t) payload[6] << 8) | payload[7];

	header->dim = (uint16_t) ((payload[0] << 8) | payload[1]);
	header->transform = (uint16_t) ((payload[2] << 8) | payload[3]);
	memcpy(&header->norm, &bits, 4);
}

BqStatus
bq_check_payload(const uint8_t *payload, size_t nbytes, BqHeader *header)
{
	BqStatus	status;

	if (nbytes < BQ_HEADER_NBYTES)
		return BQ_BAD_LENGTH;
	bq_read_header(payload, header);
	status = bq_check_header(header);
	if (status != BQ_OK)
		return status;
	if (nbytes != bq_nbytes(header->dim))
		return BQ_BAD_LENGTH;
	return bq_check_planes(header, payload + BQ_HEADER_NBYTES);
}
