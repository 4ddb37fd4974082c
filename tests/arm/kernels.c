/*
 * kernels.c: every kernel of this machine against the portable one, bit for bit.
 *
 * For machines that the Python tests cannot reach: cross-compiled and run under
 * qemu-user (`make test-arm`).  Each array ends where an unmapped page begins, so
 * that reading past its end kills the program.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bqhalf.h"
#include "bqkernel.h"
#include "bqlut.h"
#include "bqrotate.h"

#define N_ARRAYS 5
#define ARRAY_NBYTES (1 << 19)

static uint8_t *array_end[N_ARRAYS];
static uint64_t state = 20261120;

static uint64_t
random_bits(void)
{
	/* xorshift64 (Marsaglia, "Xorshift RNGs", 2003) */
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* Array i, nbytes long, ending `offset` bytes before the unmapped page; random bytes. */
static void *
get_array(int i, size_t nbytes, size_t offset)
{
	uint8_t    *array = array_end[i] - offset - nbytes;

	for (size_t k = 0; k < nbytes; k++)
		array[k] = (uint8_t) (random_bits() >> 32);
	return array;
}

/* The same, filled with floats of all sizes, some of them zero or denormal. */
static float *
get_floats(int i, int n, size_t offset)
{
	float	   *array = get_array(i, (size_t) n * sizeof(float), offset * sizeof(float));

	for (int k = 0; k < n; k++)
	{
		uint32_t	bits = (uint32_t) random_bits();
		uint32_t	kind = random_bits() >> 60;
		float		value;

		if (kind == 0)
			bits &= UINT32_C(0x80000000);	/* zero */
		else if (kind == 1)
			bits &= UINT32_C(0x807fffff);	/* denormal */
		else					/* exponents 118 to 133 */
			bits = (bits & UINT32_C(0x87ffffff)) + (UINT32_C(118) << 23);
		memcpy(&value, &bits, sizeof(value));
		array[k] = value;
	}
	return array;
}

static void
check(bool same, const char *kernel, const char *function, int n, size_t offset)
{
	if (same)
		return;
	printf("%s: %s differs at length %d, offset %zu\n", kernel, function, n, offset);
	exit(1);
}

static void
check_codes(const BqKernel *kernel, int nbytes, size_t offset)
{
	const BqKernel *truth = &bq_kernel_portable;
	uint8_t    *a = get_array(0, 2 * (size_t) nbytes, offset);
	uint8_t    *b = get_array(1, 2 * (size_t) nbytes, offset);

	check(kernel->hamming(a, b, nbytes) == truth->hamming(a, b, nbytes),
		  kernel->name, "hamming", nbytes, offset);
	check(kernel->hamming_sign(a, b, nbytes) == truth->hamming_sign(a, b, nbytes),
		  kernel->name, "hamming_sign", nbytes, offset);
	check(kernel->hamming_quiver(a, b, nbytes) == truth->hamming_quiver(a, b, nbytes),
		  kernel->name, "hamming_quiver", nbytes, offset);
	check(kernel->popcount(a + nbytes, nbytes) == truth->popcount(a + nbytes, nbytes),
		  kernel->name, "popcount", nbytes, offset);
}

static void
check_vectors(const BqKernel *kernel, int dim, size_t offset)
{
	const BqKernel *truth = &bq_kernel_portable;
	size_t		nbytes = (size_t) dim * sizeof(float);
	float	   *x = get_floats(0, dim, offset);
	float	   *y = get_floats(1, dim, offset);
	uint8_t    *planes = get_array(2, bq_planes_nbytes(dim), offset);
	uint8_t    *packed = get_array(3, bq_planes_nbytes(dim), offset);
	float	   *unpacked = get_floats(4, dim, offset);
	float		sums[2][2];
	double		sum[2];
	static float expected[2][BQ_MAX_DIM];
	static uint8_t expected_planes[2 * BQ_MAX_DIM / 8];
	static uint64_t flips[BQ_FLIP_WORDS(BQ_MAX_DIM + 64)];

	kernel->dot(x, planes, dim, &sums[0][0], &sums[0][1]);
	truth->dot(x, planes, dim, &sums[1][0], &sums[1][1]);
	check(memcmp(sums[0], sums[1], sizeof(sums[0])) == 0, kernel->name, "dot", dim, offset);

	sum[0] = kernel->sum_squares(x, dim);
	sum[1] = truth->sum_squares(x, dim);
	check(memcmp(&sum[0], &sum[1], sizeof(double)) == 0, kernel->name, "sum_squares", dim, offset);
	sum[0] = kernel->sum_absolute(x, dim);
	sum[1] = truth->sum_absolute(x, dim);
	check(memcmp(&sum[0], &sum[1], sizeof(double)) == 0, kernel->name, "sum_absolute", dim, offset);

	kernel->pack(x, dim, 1.0f, packed);
	truth->pack(x, dim, 1.0f, expected_planes);
	check(memcmp(packed, expected_planes, bq_planes_nbytes(dim)) == 0,
		  kernel->name, "pack", dim, offset);
	kernel->unpack(planes, dim, 0.5f, 1.5f, unpacked);
	truth->unpack(planes, dim, 0.5f, 1.5f, expected[0]);
	check(memcmp(unpacked, expected[0], nbytes) == 0, kernel->name, "unpack", dim, offset);

	for (size_t i = 0; i < BQ_FLIP_WORDS(BQ_MAX_DIM + 64); i++)
		flips[i] = random_bits();
	kernel->flip(unpacked, x, dim, flips, (int) offset);
	truth->flip(expected[0], x, dim, flips, (int) offset);
	check(memcmp(unpacked, expected[0], nbytes) == 0, kernel->name, "flip", dim, offset);

	kernel->scale(unpacked, x, dim, 0.3f);
	truth->scale(expected[0], x, dim, 0.3f);
	check(memcmp(unpacked, expected[0], nbytes) == 0, kernel->name, "scale", dim, offset);

	memcpy(expected[0], x, nbytes);
	memcpy(expected[1], y, nbytes);
	kernel->mix(x, y, dim);
	truth->mix(expected[0], expected[1], dim);
	check(memcmp(x, expected[0], nbytes) == 0 && memcmp(y, expected[1], nbytes) == 0,
		  kernel->name, "mix", dim, offset);

	if ((dim & (dim - 1)) == 0)
	{
		for (int with_flips = 0; with_flips < 2; with_flips++)
		{
			const uint64_t *f = with_flips ? flips : NULL;

			truth->hadamard(expected[0], x, dim, f, (int) offset, 0.4f);
			kernel->hadamard(unpacked, x, dim, f, (int) offset, 0.4f);
			check(memcmp(unpacked, expected[0], nbytes) == 0, kernel->name, "hadamard",
				  dim, offset);
			kernel->hadamard(x, x, dim, f, (int) offset, 0.4f);
			check(memcmp(x, expected[0], nbytes) == 0, kernel->name, "hadamard in place",
				  dim, offset);
		}
	}
}

static void
check_block(const BqKernel *kernel, int nrows, size_t offset)
{
	uint8_t    *table = get_array(0, 16 * (size_t) nrows, offset);
	uint8_t    *block = get_array(1, 16 * (size_t) nrows, offset);
	uint16_t	out[2][BQ_BLOCK];

	kernel->lut_block(table, block, nrows, out[0]);
	bq_kernel_portable.lut_block(table, block, nrows, out[1]);
	check(memcmp(out[0], out[1], sizeof(out[0])) == 0, kernel->name, "lut_block", nrows, offset);

	uint8_t    *rows[2] = {malloc(16 * (size_t) nrows + 1), malloc(16 * (size_t) nrows + 1)};

	kernel->unstage(block, nrows, rows[0]);
	bq_kernel_portable.unstage(block, nrows, rows[1]);
	check(memcmp(rows[0], rows[1], 16 * (size_t) nrows) == 0, kernel->name, "unstage", nrows, offset);
	free(rows[0]);
	free(rows[1]);
}

/* Of numbers of all kinds, NaN among them; `kernel` is in use, before and after. */
static void
check_half(const BqKernel *kernel, int n, size_t offset)
{
	uint16_t   *half = get_array(0, (size_t) n * sizeof(uint16_t), offset * sizeof(uint16_t));
	float	   *x = get_array(1, (size_t) n * sizeof(float), offset * sizeof(float));
	float	   *wide[2] = {malloc((size_t) n * sizeof(float) + 1), malloc((size_t) n * sizeof(float) + 1)};
	uint16_t   *narrow[2] = {malloc((size_t) n * sizeof(uint16_t) + 1), malloc((size_t) n * sizeof(uint16_t) + 1)};

	/* half of the numbers: those near 1, which random bits hardly ever are */
	for (int k = 0; k < n; k += 2)
		x[k] = (float) ((int64_t) random_bits() >> 32) * 0x1p-31f;
	for (int k = 0; k < 2; k++)
	{
		bq_kernel_select(k == 0 ? kernel->name : bq_kernel_portable.name);
		bq_widen_half(half, wide[k], n);
		bq_narrow_half(x, narrow[k], n);
	}
	bq_kernel_select(kernel->name);
	check(memcmp(wide[0], wide[1], (size_t) n * sizeof(float)) == 0, kernel->name, "widen_half", n, offset);
	check(memcmp(narrow[0], narrow[1], (size_t) n * sizeof(uint16_t)) == 0, kernel->name, "narrow_half", n, offset);
	for (int k = 0; k < 2; k++)
	{
		free(wide[k]);
		free(narrow[k]);
	}
}

int
main(void)
{
	size_t		page = (size_t) sysconf(_SC_PAGESIZE);
	const char *name;

	for (int i = 0; i < N_ARRAYS; i++)
	{
		uint8_t    *pages = mmap(NULL, ARRAY_NBYTES + page, PROT_READ | PROT_WRITE,
								 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (pages == MAP_FAILED || mprotect(pages + ARRAY_NBYTES, page, PROT_NONE) != 0)
		{
			perror("mmap");
			return 1;
		}
		array_end[i] = pages + ARRAY_NBYTES;
	}

	for (int i = 0; (name = bq_kernel_name(i)) != NULL; i++)
	{
		if (strcmp(name, bq_kernel_portable.name) == 0)
			continue;
		if (!bq_kernel_available(name))
		{
			printf("%s: not available here\n", name);
			continue;
		}
		bq_kernel_select(name);
		for (size_t offset = 0; offset < 20; offset++)
		{
			for (int n = 0; n <= 200; n++)
			{
				check_codes(bq_kernel, n, offset);
				check_block(bq_kernel, n, offset);
				check_half(bq_kernel, n, offset);
				if (n > 0)
					check_vectors(bq_kernel, n, offset);
			}
			for (int n = 256; n <= 8192; n *= 2)
				check_vectors(bq_kernel, n, offset);
		}
		printf("%s: equal to portable\n", name);
	}
	return 0;
}
