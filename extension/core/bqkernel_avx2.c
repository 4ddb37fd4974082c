/* bqkernel_avx2.c: the kernels for x86-64 with AVX2 and POPCNT. */
#include "bqkernel.h"

#ifdef BQ_HAVE_X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,popcnt")))
#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE __m256i
load(const void *p)
{
	return _mm256_loadu_si256((const __m256i *) p);
}

INLINE uint64_t
load_word(const uint8_t *p, size_t nbytes)
{
	uint64_t	word = 0;

	memcpy(&word, p, nbytes < 8 ? nbytes : 8);
	return word;
}

/*
 * Bits set in each byte, by a table of nibbles (Mula, Kurz, Lemire, "Faster
 * population counts using AVX2 instructions", Computer Journal 61, 2018, section 4).
 */
INLINE __m256i
count_bytes(__m256i v)
{
	const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
										   0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
	const __m256i nibble = _mm256_set1_epi8(15);
	__m256i		low = _mm256_and_si256(v, nibble);
	__m256i		high = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);

	return _mm256_add_epi8(_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high));
}

/* Add bytes to a sum of four 64-bit lanes. */
INLINE __m256i
add_bytes(__m256i sum, __m256i bytes)
{
	return _mm256_add_epi64(sum, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
}

INLINE uint32_t
sum_words(__m256i v)
{
	__m128i		half = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));

	return (uint32_t) (_mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1));
}

INLINE uint32_t
count_bits(uint64_t word)
{
	return (uint32_t) _mm_popcnt_u64(word);
}

static TARGET uint32_t
bq_hamming_avx2(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	__m256i		sum = _mm256_setzero_si256();
	uint32_t	distance = 0;
	size_t		i = 0;

	for (; i + 32 <= nbytes; i += 32)
	{
		__m256i		differ = _mm256_xor_si256(load(a + i), load(b + i));
		__m256i		ma = load(a + nbytes + i);
		__m256i		mb = load(b + nbytes + i);
		__m256i		low = _mm256_xor_si256(differ, _mm256_xor_si256(ma, mb));
		__m256i		high = _mm256_and_si256(differ, _mm256_or_si256(ma, mb));
		__m256i		twice = count_bytes(high);

		twice = _mm256_add_epi8(twice, twice);
		sum = add_bytes(sum, _mm256_add_epi8(count_bytes(low), twice));
	}
	for (; i < nbytes; i += 8)
	{
		uint64_t	differ = load_word(a + i, nbytes - i) ^ load_word(b + i, nbytes - i);
		uint64_t	ma = load_word(a + nbytes + i, nbytes - i);
		uint64_t	mb = load_word(b + nbytes + i, nbytes - i);

		distance += count_bits(differ ^ ma ^ mb) + 2 * count_bits(differ & (ma | mb));
	}
	return distance + sum_words(sum);
}

static TARGET uint32_t
bq_hamming_sign_avx2(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	__m256i		sum = _mm256_setzero_si256();
	uint32_t	distance = 0;
	size_t		i = 0;

	for (; i + 32 <= nbytes; i += 32)
		sum = add_bytes(sum, count_bytes(_mm256_xor_si256(load(a + i), load(b + i))));
	for (; i < nbytes; i += 8)
		distance += count_bits(load_word(a + i, nbytes - i) ^ load_word(b + i, nbytes - i));
	return distance + sum_words(sum);
}

static TARGET uint32_t
bq_hamming_quiver_avx2(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	__m256i		sum = _mm256_setzero_si256();
	uint32_t	distance = 0;
	size_t		i = 0;

	/* 1, 2, 4 = 1 + [one is strong] + 2 [both are] */
	for (; i + 32 <= nbytes; i += 32)
	{
		__m256i		differ = _mm256_xor_si256(load(a + i), load(b + i));
		__m256i		ma = load(a + nbytes + i);
		__m256i		mb = load(b + nbytes + i);
		__m256i		one = _mm256_and_si256(differ, _mm256_or_si256(ma, mb));
		__m256i		both = _mm256_and_si256(differ, _mm256_and_si256(ma, mb));
		__m256i		twice = count_bytes(both);

		twice = _mm256_add_epi8(twice, twice);
		sum = add_bytes(sum, _mm256_add_epi8(_mm256_add_epi8(count_bytes(differ),
															 count_bytes(one)), twice));
	}
	for (; i < nbytes; i += 8)
	{
		uint64_t	differ = load_word(a + i, nbytes - i) ^ load_word(b + i, nbytes - i);
		uint64_t	ma = load_word(a + nbytes + i, nbytes - i);
		uint64_t	mb = load_word(b + nbytes + i, nbytes - i);

		distance += count_bits(differ) + count_bits(differ & (ma | mb)) +
			2 * count_bits(differ & ma & mb);
	}
	return distance + sum_words(sum);
}

static TARGET uint32_t
bq_popcount_avx2(const uint8_t *a, size_t nbytes)
{
	uint32_t	count = 0;

	/* POPCNT alone: one load per word leaves the shuffles nothing to win */
	for (size_t i = 0; i < nbytes; i += 8)
		count += count_bits(load_word(a + i, nbytes - i));
	return count;
}

/* Bit k of `bits` spread to lane k: all ones where set. */
INLINE __m256i
spread_bits(uint8_t bits)
{
	const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);

	return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), lane), lane);
}

/* Sum of 8 lanes in the fixed order: l and l + 4, + 2, + 1. */
INLINE float
add_floats(__m256 v)
{
	__m128		four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
	__m128		two = _mm_add_ps(four, _mm_movehl_ps(four, four));

	return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Eight terms of bq_dot, for the lanes that hold them. */
INLINE void
add_terms(__m256 q, uint8_t sign, uint8_t magnitude, __m256 *all, __m256 *strong)
{
	const __m256 minus = _mm256_set1_ps(-0.0f);
	__m256		s = _mm256_castsi256_ps(spread_bits(sign));
	__m256		m = _mm256_castsi256_ps(spread_bits(magnitude));
	__m256		term = _mm256_xor_ps(q, _mm256_andnot_ps(s, minus));

	*all = _mm256_add_ps(*all, term);
	/* adding +0 for a weak dimension changes no lane: none is ever -0 */
	*strong = _mm256_add_ps(*strong, _mm256_and_ps(m, term));
}

static TARGET void
bq_dot_avx2(const float *q, const uint8_t *planes, int dim, float *all, float *strong)
{
	size_t		nbytes = bq_plane_nbytes(dim);
	const uint8_t *magnitude = planes + nbytes;
	__m256		a[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(),
		_mm256_setzero_ps(), _mm256_setzero_ps()};
	__m256		s[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(),
		_mm256_setzero_ps(), _mm256_setzero_ps()};
	int			i = 0;

	for (; i + 32 <= dim; i += 32)
	{
		BQ_UNROLL
		for (int k = 0; k < 4; k++)
			add_terms(_mm256_loadu_ps(q + i + 8 * k), planes[i / 8 + k], magnitude[i / 8 + k],
					  &a[k], &s[k]);
	}
	if (i < dim)
	{
		float		values[32] = {0};
		uint8_t		bits[2][4] = {{0}};

		memcpy(values, q + i, (size_t) (dim - i) * sizeof(float));
		memcpy(bits[0], planes + i / 8, nbytes - (size_t) i / 8);
		memcpy(bits[1], magnitude + i / 8, nbytes - (size_t) i / 8);
		BQ_UNROLL
		for (int k = 0; k < 4; k++)
			add_terms(_mm256_loadu_ps(values + 8 * k), bits[0][k], bits[1][k], &a[k], &s[k]);
	}
	*all = add_floats(_mm256_add_ps(_mm256_add_ps(a[0], a[2]), _mm256_add_ps(a[1], a[3])));
	*strong = add_floats(_mm256_add_ps(_mm256_add_ps(s[0], s[2]), _mm256_add_ps(s[1], s[3])));
}

/* Sum of 32 double lanes in the fixed order: l and l + 16, + 8, + 4, + 2, + 1. */
INLINE double
add_doubles(const __m256d lanes[8])
{
	__m256d		eight[2] = {
		_mm256_add_pd(_mm256_add_pd(lanes[0], lanes[4]), _mm256_add_pd(lanes[2], lanes[6])),
		_mm256_add_pd(_mm256_add_pd(lanes[1], lanes[5]), _mm256_add_pd(lanes[3], lanes[7]))
	};
	__m256d		four = _mm256_add_pd(eight[0], eight[1]);
	__m128d		two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));

	return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

INLINE __m256d
add_squares(__m256d sum, __m128 x)
{
	__m256d		v = _mm256_cvtps_pd(x);

	return _mm256_add_pd(sum, _mm256_mul_pd(v, v));
}

INLINE __m256d
add_absolutes(__m256d sum, __m128 x)
{
	return _mm256_add_pd(sum, _mm256_cvtps_pd(_mm_andnot_ps(_mm_set1_ps(-0.0f), x)));
}

/* `add` is one of the two above, known when this is inlined. */
INLINE double
add_all(const float *x, int dim, __m256d (*add) (__m256d, __m128))
{
	__m256d		lanes[8];
	int			i = 0;

	BQ_UNROLL
	for (int k = 0; k < 8; k++)
		lanes[k] = _mm256_setzero_pd();
	for (; i + 32 <= dim; i += 32)
	{
		BQ_UNROLL
		for (int k = 0; k < 8; k++)
			lanes[k] = add(lanes[k], _mm_loadu_ps(x + i + 4 * k));
	}
	if (i < dim)
	{
		float		tail[32] = {0};

		memcpy(tail, x + i, (size_t) (dim - i) * sizeof(float));
		BQ_UNROLL
		for (int k = 0; k < 8; k++)
			lanes[k] = add(lanes[k], _mm_loadu_ps(tail + 4 * k));
	}
	return add_doubles(lanes);
}

static TARGET double
bq_sum_squares_avx2(const float *x, int dim)
{
	return add_all(x, dim, add_squares);
}

static TARGET double
bq_sum_absolute_avx2(const float *x, int dim)
{
	return add_all(x, dim, add_absolutes);
}

/* Both bits of eight dimensions. */
INLINE void
pack_byte(__m256 v, __m256 threshold, uint8_t *sign, uint8_t *magnitude)
{
	__m256		size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);

	*sign = (uint8_t) _mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ));
	*magnitude = (uint8_t) _mm256_movemask_ps(_mm256_cmp_ps(size, threshold, _CMP_GT_OQ));
}

static TARGET void
bq_pack_avx2(const float *x, int dim, float threshold, uint8_t *planes)
{
	uint8_t    *magnitude = planes + bq_plane_nbytes(dim);
	__m256		cut = _mm256_set1_ps(threshold);
	int			i = 0;

	for (; i + 8 <= dim; i += 8)
		pack_byte(_mm256_loadu_ps(x + i), cut, planes + i / 8, magnitude + i / 8);
	if (i < dim)
	{
		/* zeros give zero bits: |0| exceeds no threshold */
		float		tail[8] = {0};

		memcpy(tail, x + i, (size_t) (dim - i) * sizeof(float));
		pack_byte(_mm256_loadu_ps(tail), cut, planes + i / 8, magnitude + i / 8);
	}
}

INLINE __m256
unpack_byte(uint8_t sign, uint8_t magnitude, __m256 weak, __m256 strong)
{
	__m256		s = _mm256_castsi256_ps(spread_bits(sign));
	__m256		m = _mm256_castsi256_ps(spread_bits(magnitude));

	return _mm256_xor_ps(_mm256_blendv_ps(weak, strong, m),
						 _mm256_andnot_ps(s, _mm256_set1_ps(-0.0f)));
}

static TARGET void
bq_unpack_avx2(const uint8_t *planes, int dim, float weak, float strong, float *x)
{
	const uint8_t *magnitude = planes + bq_plane_nbytes(dim);
	__m256		w = _mm256_set1_ps(weak);
	__m256		s = _mm256_set1_ps(strong);
	int			i = 0;

	for (; i + 8 <= dim; i += 8)
		_mm256_storeu_ps(x + i, unpack_byte(planes[i / 8], magnitude[i / 8], w, s));
	if (i < dim)
	{
		float		tail[8];

		_mm256_storeu_ps(tail, unpack_byte(planes[i / 8], magnitude[i / 8], w, s));
		memcpy(x + i, tail, (size_t) (dim - i) * sizeof(float));
	}
}

/* A string of flips, from one of its bits on. */
typedef struct Flips
{
	const uint8_t *bytes;
	__m256i		shift;			/* brings bit k of a word to the sign of lane k */
} Flips;

INLINE Flips
start_flips(const uint64_t *flips, unsigned first)
{
	const __m256i shift = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);

	return (Flips) {
		(const uint8_t *) flips + first / 8,
		_mm256_sub_epi32(shift, _mm256_set1_epi32((int) (first % 8)))
	};
}

/* v, flipped by bits i to i + 7; i is a multiple of 8. */
INLINE __m256
flip_register(__m256 v, Flips flips, size_t i)
{
	uint32_t	word;
	__m256i		signs;

	memcpy(&word, flips.bytes + i / 8, sizeof(word));
	signs = _mm256_sllv_epi32(_mm256_set1_epi32((int) word), flips.shift);
	return _mm256_xor_ps(v, _mm256_and_ps(_mm256_castsi256_ps(signs), _mm256_set1_ps(-0.0f)));
}

/* Three steps of the transform inside a register: s + v or s - v, s being v with halves swapped. */
INLINE __m256
transform_register(__m256 v)
{
	const __m256 odd = _mm256_setr_ps(0, -0.0f, 0, -0.0f, 0, -0.0f, 0, -0.0f);
	const __m256 upper = _mm256_setr_ps(0, 0, -0.0f, -0.0f, 0, 0, -0.0f, -0.0f);
	const __m256 half = _mm256_setr_ps(0, 0, 0, 0, -0.0f, -0.0f, -0.0f, -0.0f);

	v = _mm256_add_ps(_mm256_permute_ps(v, 0xb1), _mm256_xor_ps(v, odd));
	v = _mm256_add_ps(_mm256_permute_ps(v, 0x4e), _mm256_xor_ps(v, upper));
	return _mm256_add_ps(_mm256_permute2f128_ps(v, v, 1), _mm256_xor_ps(v, half));
}

#define Floats __m256
#define LANES 8
#define REGISTERS 8

INLINE Floats
load_floats(const float *x)
{
	return _mm256_loadu_ps(x);
}

INLINE void
store_floats(float *x, Floats v)
{
	_mm256_storeu_ps(x, v);
}

INLINE Floats
all_floats(float f)
{
	return _mm256_set1_ps(f);
}

#include "bqkernel_floats.h"

/*
 * Sums of two rows at a time, one per 128-bit half (Andre, Kermarrec, Le Scouarnec,
 * "Cache locality is not enough", VLDB 9(4), 2015, for lookups by shuffle).  `whole`
 * adds pairs of bytes as 16-bit numbers, `odd` the upper bytes; taking 256 * odd
 * from whole leaves the sum of the lower bytes, wherever whole has wrapped.
 */
INLINE void
add_entries(__m256i entries, __m256i *whole, __m256i *odd)
{
	*whole = _mm256_add_epi16(*whole, entries);
	*odd = _mm256_add_epi16(*odd, _mm256_srli_epi16(entries, 8));
}

INLINE void
store_sums(__m256i whole, __m256i odd, uint16_t out[16])
{
	__m256i		even = _mm256_sub_epi16(whole, _mm256_slli_epi16(odd, 8));
	__m128i		e = _mm_add_epi16(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
	__m128i		o = _mm_add_epi16(_mm256_castsi256_si128(odd), _mm256_extracti128_si256(odd, 1));

	_mm_storeu_si128((__m128i *) out, _mm_unpacklo_epi16(e, o));
	_mm_storeu_si128((__m128i *) (out + 8), _mm_unpackhi_epi16(e, o));
}

static TARGET void
bq_lut_block_avx2(const uint8_t *table, const uint8_t *block, int nrows, uint16_t out[BQ_BLOCK])
{
	const __m256i nibble = _mm256_set1_epi8(15);
	__m256i		whole[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
	__m256i		odd[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};

	for (int j = 0; j < nrows; j += 2)
	{
		__m256i		t;
		__m256i		codes;

		if (j + 2 <= nrows)
		{
			t = load(table + 16 * j);
			codes = load(block + 16 * j);
		}
		else
		{
			/* a second row of zeros adds nothing */
			t = _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *) (table + 16 * j)));
			codes = _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *) (block + 16 * j)));
		}
		add_entries(_mm256_shuffle_epi8(t, _mm256_and_si256(codes, nibble)),
					&whole[0], &odd[0]);
		codes = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
		add_entries(_mm256_shuffle_epi8(t, codes), &whole[1], &odd[1]);
	}
	store_sums(whole[0], odd[0], out);
	store_sums(whole[1], odd[1], out + 16);
}

/* Sums c to c + 7 turned into floats. */
static inline TARGET __attribute__((always_inline)) __m256
scale_sums(const uint16_t *sums, float scale, float bias, const uint16_t *factor, int c)
{
	__m256		sum = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) (sums + c))));
	__m256		times = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) (factor + c))));

	sum = _mm256_sub_ps(_mm256_mul_ps(_mm256_set1_ps(scale), sum), _mm256_set1_ps(bias));
	return _mm256_mul_ps(sum, times);
}

static TARGET void
bq_scale_sums_avx2(const uint16_t sums[BQ_BLOCK], float scale, float bias,
				   const uint16_t factor[BQ_BLOCK], float out[BQ_BLOCK])
{
	for (int c = 0; c < BQ_BLOCK; c += 8)
		_mm256_storeu_ps(out + c, scale_sums(sums, scale, bias, factor, c));
}

static TARGET uint32_t
bq_find_sums_avx2(const uint16_t sums[BQ_BLOCK], float scale, float bias,
				  const uint16_t factor[BQ_BLOCK], float limit)
{
	uint32_t	found = 0;

	for (int c = 0; c < BQ_BLOCK; c += 8)
		found |= (uint32_t) _mm256_movemask_ps(_mm256_cmp_ps(scale_sums(sums, scale, bias, factor, c),
															 _mm256_set1_ps(limit),
															 _CMP_LE_OQ)) << c;
	return found;
}

/*
 * Transpose 16 x 16 bytes: four rounds, each of which interleaves the registers of the
 * first half with those of the second.
 */
static inline __attribute__((always_inline)) void
transpose(__m128i v[16])
{
	for (int round = 0; round < 4; round++)
	{
		__m128i		w[16];

		for (int i = 0; i < 8; i++)
		{
			w[2 * i] = _mm_unpacklo_epi8(v[i], v[i + 8]);
			w[2 * i + 1] = _mm_unpackhi_epi8(v[i], v[i + 8]);
		}
		for (int i = 0; i < 16; i++)
			v[i] = w[i];
	}
}

/*
 * 16 bytes of each code are 32 rows; with an even number of rows codes begin at whole
 * bytes.  The last rows are worked out together with some that were done before.
 */
void
bq_unstage_sse2(const uint8_t *staged, int nrows, uint8_t *rows)
{
	const __m128i low = _mm_set1_epi8(15);
	int			stride = nrows / 2;

	if (nrows % 2 != 0 || stride < 16)
	{
		bq_kernel_portable.unstage(staged, nrows, rows);
		return;
	}
	for (int from = 0; from < stride; from += 16)
	{
		int			at = from + 16 <= stride ? from : stride - 16;
		uint8_t    *out = rows + 32 * at;
		__m128i		a[16];
		__m128i		b[16];

		for (int c = 0; c < 16; c++)
		{
			a[c] = _mm_loadu_si128((const __m128i *) (staged + c * stride + at));
			b[c] = _mm_loadu_si128((const __m128i *) (staged + (c + 16) * stride + at));
		}
		transpose(a);
		transpose(b);
		for (int k = 0; k < 16; k++)
		{
			__m128i		even = _mm_or_si128(_mm_and_si128(a[k], low),
											_mm_slli_epi16(_mm_and_si128(b[k], low), 4));
			__m128i		odd = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(a[k], 4), low),
										   _mm_andnot_si128(low, b[k]));

			_mm_storeu_si128((__m128i *) (out + 32 * k), even);
			_mm_storeu_si128((__m128i *) (out + 32 * k + 16), odd);
		}
	}
}

const BqKernel bq_kernel_avx2 = {
	.name = "avx2",
	.hamming = bq_hamming_avx2,
	.hamming_sign = bq_hamming_sign_avx2,
	.hamming_quiver = bq_hamming_quiver_avx2,
	.popcount = bq_popcount_avx2,
	.dot = bq_dot_avx2,
	.sum_squares = bq_sum_squares_avx2,
	.sum_absolute = bq_sum_absolute_avx2,
	.pack = bq_pack_avx2,
	.unpack = bq_unpack_avx2,
	.scale = scale_floats,
	.flip = flip_floats,
	.hadamard = hadamard_floats,
	.mix = mix_floats,
	.lut_block = bq_lut_block_avx2,
	.scale_sums = bq_scale_sums_avx2,
	.find_sums = bq_find_sums_avx2,
	.unstage = bq_unstage_sse2,
};

#endif							/* BQ_HAVE_X86 */
