/*
 * bqkernel_avx512.c: the kernels for x86-64 with AVX-512 as of Ice Lake and Zen 4.
 *
 * Main loops load whole registers: a masked load, even with a full mask, is not
 * seen by the hardware prefetcher of Sapphire Rapids (from DRAM 18 ns per 384-d
 * code instead of 3.4).  Only the ends of arrays are loaded under a mask.
 */
#include "bqkernel.h"

#ifdef BQ_HAVE_X86
#include <immintrin.h>

/* What bqcpu.c asks for before this kernel is used. */
#define TARGET __attribute__((target( \
	"avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512vpopcntdq,popcnt")))
#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE __m512i
load(const void *p)
{
	return _mm512_loadu_si512(p);
}

/*
 * The last n (0 to 63) bytes of a plane, then zeros.  Whole lanes are loaded
 * without a mask: for 384 dimensions (48 bytes) this is the main loop.
 */
INLINE __m512i
load_tail(const uint8_t *p, size_t n)
{
	__m512i		v = _mm512_setzero_si512();

	if (n >= 32)
		v = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *) p));
	if (n >= 48)
		v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *) (p + 32)), 2);
	else if (n >= 16 && n < 32)
		v = _mm512_zextsi128_si512(_mm_loadu_si128((const __m128i *) p));
	if (n % 16 != 0)
	{
		__mmask64	rest = ((UINT64_C(1) << (n % 16)) - 1) << (n / 16 * 16);

		v = _mm512_mask_loadu_epi8(v, rest, p);
	}
	return v;
}

INLINE uint32_t
sum_words(__m512i v)
{
	return (uint32_t) _mm512_reduce_add_epi64(v);
}

/* Names for three-input logic: the truth table of the expression over A, B, C. */
enum
{
	A = 0xf0,
	B = 0xcc,
	C = 0xaa
};
#define LOGIC(a, b, c, table) _mm512_ternarylogic_epi64(a, b, c, (table) & 0xff)

INLINE void
add_hamming(__m512i sa, __m512i ma, __m512i sb, __m512i mb, __m512i *low, __m512i *high)
{
	__m512i		differ = _mm512_xor_si512(sa, sb);

	*low = _mm512_add_epi64(*low, _mm512_popcnt_epi64(LOGIC(differ, ma, mb, A ^ B ^ C)));
	*high = _mm512_add_epi64(*high, _mm512_popcnt_epi64(LOGIC(differ, ma, mb, A & (B | C))));
}

static TARGET uint32_t
bq_hamming_avx512(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	const uint8_t *am = a + nbytes;
	const uint8_t *bm = b + nbytes;
	__m512i		low = _mm512_setzero_si512();
	__m512i		high = _mm512_setzero_si512();
	size_t		i = 0;

	for (; i + 64 <= nbytes; i += 64)
		add_hamming(load(a + i), load(am + i), load(b + i), load(bm + i), &low, &high);
	if (i < nbytes)
	{
		size_t		n = nbytes - i;

		add_hamming(load_tail(a + i, n), load_tail(am + i, n),
					load_tail(b + i, n), load_tail(bm + i, n), &low, &high);
	}
	return sum_words(_mm512_add_epi64(low, _mm512_add_epi64(high, high)));
}

static TARGET uint32_t
bq_hamming_sign_avx512(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	__m512i		sum = _mm512_setzero_si512();
	size_t		i = 0;

	for (; i + 64 <= nbytes; i += 64)
		sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_xor_si512(load(a + i),
																		 load(b + i))));
	if (i < nbytes)
		sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(
							   _mm512_xor_si512(load_tail(a + i, nbytes - i),
												load_tail(b + i, nbytes - i))));
	return sum_words(sum);
}

/* 1, 2, 4 = 1 + [one is strong] + 2 [both are] */
INLINE void
add_quiver(__m512i sa, __m512i ma, __m512i sb, __m512i mb, __m512i *once, __m512i *twice)
{
	__m512i		differ = _mm512_xor_si512(sa, sb);
	__m512i		one = LOGIC(differ, ma, mb, A & (B | C));
	__m512i		both = LOGIC(differ, ma, mb, A & B & C);

	*once = _mm512_add_epi64(*once, _mm512_add_epi64(_mm512_popcnt_epi64(differ),
													 _mm512_popcnt_epi64(one)));
	*twice = _mm512_add_epi64(*twice, _mm512_popcnt_epi64(both));
}

static TARGET uint32_t
bq_hamming_quiver_avx512(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	const uint8_t *am = a + nbytes;
	const uint8_t *bm = b + nbytes;
	__m512i		once = _mm512_setzero_si512();
	__m512i		twice = _mm512_setzero_si512();
	size_t		i = 0;

	for (; i + 64 <= nbytes; i += 64)
		add_quiver(load(a + i), load(am + i), load(b + i), load(bm + i), &once, &twice);
	if (i < nbytes)
	{
		size_t		n = nbytes - i;

		add_quiver(load_tail(a + i, n), load_tail(am + i, n),
				   load_tail(b + i, n), load_tail(bm + i, n), &once, &twice);
	}
	return sum_words(_mm512_add_epi64(once, _mm512_add_epi64(twice, twice)));
}

static TARGET uint32_t
bq_popcount_avx512(const uint8_t *a, size_t nbytes)
{
	__m512i		sum = _mm512_setzero_si512();
	size_t		i = 0;

	for (; i + 64 <= nbytes; i += 64)
		sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(load(a + i)));
	if (i < nbytes)
		sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(load_tail(a + i, nbytes - i)));
	return sum_words(sum);
}

/* Mask of the first n (1 to 16) lanes. */
INLINE __mmask16
first_lanes(int n)
{
	return (__mmask16) (0xffff >> (16 - n));
}

/* Mask of the first n (1 to 31) of 32. */
INLINE uint32_t
first_bits(int n)
{
	return UINT32_MAX >> (32 - n);
}

/* Bits of 32 dimensions. */
INLINE uint32_t
load_bits(const uint8_t *plane)
{
	uint32_t	bits;

	memcpy(&bits, plane, sizeof(bits));
	return bits;
}

/* Bits of the last n (1 to 31) dimensions of a plane. */
INLINE uint32_t
load_last_bits(const uint8_t *plane, int n)
{
	return (uint32_t) _mm_cvtsi128_si32(_mm_maskz_loadu_epi8(first_lanes((n + 7) / 8), plane));
}

INLINE void
store_last_bits(uint8_t *plane, int n, uint32_t bits)
{
	_mm_mask_storeu_epi8(plane, first_lanes((n + 7) / 8), _mm_cvtsi32_si128((int) bits));
}

/* The last n (1 to 31) floats of an array, 16 at a time, then zeros. */
INLINE __m512
load_lower(const float *x, int n)
{
	return _mm512_maskz_loadu_ps((__mmask16) first_bits(n), x);
}

INLINE __m512
load_upper(const float *x, int n)
{
	return _mm512_maskz_loadu_ps((__mmask16) (first_bits(n) >> 16), x + 16);
}

/* v, negated where the mask is set */
INLINE __m512
negate(__m512 v, __mmask16 mask)
{
	return _mm512_mask_xor_ps(v, mask, v, _mm512_set1_ps(-0.0f));
}

/* Sum of 16 lanes in the fixed order: l and l + 8, + 4, + 2, + 1. */
INLINE float
add_floats(__m512 v)
{
	__m256		eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
	__m128		four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
	__m128		two = _mm_add_ps(four, _mm_movehl_ps(four, four));

	return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* 16 terms of bq_dot; s and m hold their bits below others. */
INLINE void
add_terms(__m512 q, uint32_t s, uint32_t m, __m512 *all, __m512 *strong)
{
	__m512		term = negate(q, (__mmask16) ~s);

	*all = _mm512_add_ps(*all, term);
	*strong = _mm512_mask_add_ps(*strong, (__mmask16) m, *strong, term);
}

static TARGET void
bq_dot_avx512(const float *q, const uint8_t *planes, int dim, float *all, float *strong)
{
	const uint8_t *magnitude = planes + bq_plane_nbytes(dim);
	__m512		a[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
	__m512		b[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
	int			i = 0;

	for (; i + 32 <= dim; i += 32)
	{
		uint32_t	s = load_bits(planes + i / 8);
		uint32_t	m = load_bits(magnitude + i / 8);

		add_terms(_mm512_loadu_ps(q + i), s, m, &a[0], &b[0]);
		add_terms(_mm512_loadu_ps(q + i + 16), s >> 16, m >> 16, &a[1], &b[1]);
	}
	/* zeros beyond the end change no lane: none is ever -0 */
	if (i < dim)
	{
		int			n = dim - i;
		uint32_t	s = load_last_bits(planes + i / 8, n);
		uint32_t	m = load_last_bits(magnitude + i / 8, n);

		add_terms(load_lower(q + i, n), s, m, &a[0], &b[0]);
		add_terms(load_upper(q + i, n), s >> 16, m >> 16, &a[1], &b[1]);
	}
	*all = add_floats(_mm512_add_ps(a[0], a[1]));
	*strong = add_floats(_mm512_add_ps(b[0], b[1]));
}

/* Sum of 32 double lanes in the fixed order. */
INLINE double
add_doubles(const __m512d lanes[4])
{
	__m512d		eight = _mm512_add_pd(_mm512_add_pd(lanes[0], lanes[2]),
									  _mm512_add_pd(lanes[1], lanes[3]));
	__m256d		four = _mm256_add_pd(_mm512_castpd512_pd256(eight),
									 _mm512_extractf64x4_pd(eight, 1));
	__m128d		two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));

	return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

/* Squares of floats are exact in double: fused or not, the same sum. */
INLINE __m512d
add_squares(__m512d sum, __m256 x)
{
	__m512d		v = _mm512_cvtps_pd(x);

	return _mm512_fmadd_pd(v, v, sum);
}

INLINE __m512d
add_absolutes(__m512d sum, __m256 x)
{
	return _mm512_add_pd(sum, _mm512_cvtps_pd(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x)));
}

/* `add` is one of the two above, known when this is inlined. */
INLINE double
add_all(const float *x, int dim, __m512d (*add) (__m512d, __m256))
{
	__m512d		lanes[4] = {_mm512_setzero_pd(), _mm512_setzero_pd(),
		_mm512_setzero_pd(), _mm512_setzero_pd()};
	int			i = 0;

	for (; i + 32 <= dim; i += 32)
	{
		BQ_UNROLL
		for (int k = 0; k < 4; k++)
			lanes[k] = add(lanes[k], _mm256_loadu_ps(x + i + 8 * k));
	}
	if (i < dim)
	{
		__m512		lower = load_lower(x + i, dim - i);
		__m512		upper = load_upper(x + i, dim - i);

		lanes[0] = add(lanes[0], _mm512_castps512_ps256(lower));
		lanes[1] = add(lanes[1], _mm512_extractf32x8_ps(lower, 1));
		lanes[2] = add(lanes[2], _mm512_castps512_ps256(upper));
		lanes[3] = add(lanes[3], _mm512_extractf32x8_ps(upper, 1));
	}
	return add_doubles(lanes);
}

static TARGET double
bq_sum_squares_avx512(const float *x, int dim)
{
	return add_all(x, dim, add_squares);
}

static TARGET double
bq_sum_absolute_avx512(const float *x, int dim)
{
	return add_all(x, dim, add_absolutes);
}

/* Bits of two registers, the lower one's first. */
INLINE uint32_t
join(__mmask16 lower, __mmask16 upper)
{
	return (uint32_t) _mm512_kunpackw(upper, lower);
}

INLINE uint32_t
pack_signs(__m512 lower, __m512 upper)
{
	__m512		zero = _mm512_setzero_ps();

	return join(_mm512_cmp_ps_mask(lower, zero, _CMP_GT_OQ),
				_mm512_cmp_ps_mask(upper, zero, _CMP_GT_OQ));
}

INLINE uint32_t
pack_magnitudes(__m512 lower, __m512 upper, __m512 threshold)
{
	return join(_mm512_cmp_ps_mask(_mm512_abs_ps(lower), threshold, _CMP_GT_OQ),
				_mm512_cmp_ps_mask(_mm512_abs_ps(upper), threshold, _CMP_GT_OQ));
}

static TARGET void
bq_pack_avx512(const float *x, int dim, float threshold, uint8_t *planes)
{
	uint8_t    *magnitude = planes + bq_plane_nbytes(dim);
	__m512		cut = _mm512_set1_ps(threshold);
	int			i = 0;

	for (; i + 32 <= dim; i += 32)
	{
		__m512		lower = _mm512_loadu_ps(x + i);
		__m512		upper = _mm512_loadu_ps(x + i + 16);
		uint32_t	s = pack_signs(lower, upper);
		uint32_t	m = pack_magnitudes(lower, upper, cut);

		memcpy(planes + i / 8, &s, sizeof(s));
		memcpy(magnitude + i / 8, &m, sizeof(m));
	}
	if (i < dim)
	{
		/* zeros give zero bits: |0| exceeds no threshold */
		__m512		lower = load_lower(x + i, dim - i);
		__m512		upper = load_upper(x + i, dim - i);

		store_last_bits(planes + i / 8, dim - i, pack_signs(lower, upper));
		store_last_bits(magnitude + i / 8, dim - i, pack_magnitudes(lower, upper, cut));
	}
}

/* 16 dimensions; s and m hold their bits below others. */
INLINE __m512
unpack_bits(uint32_t s, uint32_t m, __m512 weak, __m512 strong)
{
	return negate(_mm512_mask_blend_ps((__mmask16) m, weak, strong), (__mmask16) ~s);
}

static TARGET void
bq_unpack_avx512(const uint8_t *planes, int dim, float weak, float strong, float *x)
{
	const uint8_t *magnitude = planes + bq_plane_nbytes(dim);
	__m512		w = _mm512_set1_ps(weak);
	__m512		v = _mm512_set1_ps(strong);
	int			i = 0;

	for (; i + 32 <= dim; i += 32)
	{
		uint32_t	s = load_bits(planes + i / 8);
		uint32_t	m = load_bits(magnitude + i / 8);

		_mm512_storeu_ps(x + i, unpack_bits(s, m, w, v));
		_mm512_storeu_ps(x + i + 16, unpack_bits(s >> 16, m >> 16, w, v));
	}
	if (i < dim)
	{
		uint32_t	rest = first_bits(dim - i);
		uint32_t	s = load_last_bits(planes + i / 8, dim - i);
		uint32_t	m = load_last_bits(magnitude + i / 8, dim - i);

		_mm512_mask_storeu_ps(x + i, (__mmask16) rest, unpack_bits(s, m, w, v));
		_mm512_mask_storeu_ps(x + i + 16, (__mmask16) (rest >> 16),
							  unpack_bits(s >> 16, m >> 16, w, v));
	}
}

/* A string of flips, from one of its bits on. */
typedef struct Flips
{
	const uint8_t *bytes;
	__m512i		shift;			/* brings bit k of a word to the sign of lane k */
} Flips;

INLINE Flips
start_flips(const uint64_t *flips, unsigned first)
{
	const __m512i shift = _mm512_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24,
											23, 22, 21, 20, 19, 18, 17, 16);

	return (Flips) {
		(const uint8_t *) flips + first / 8,
		_mm512_sub_epi32(shift, _mm512_set1_epi32((int) (first % 8)))
	};
}

/* v, flipped by bits i to i + 15; i is a multiple of 8.  Cheaper here than a mask register. */
INLINE __m512
flip_register(__m512 v, Flips flips, size_t i)
{
	uint32_t	word;
	__m512i		signs;

	memcpy(&word, flips.bytes + i / 8, sizeof(word));
	signs = _mm512_sllv_epi32(_mm512_set1_epi32((int) word), flips.shift);
	return _mm512_castsi512_ps(LOGIC(_mm512_castps_si512(v), signs,
									 _mm512_set1_epi32(INT32_MIN), A ^ (B & C)));
}

/*
 * One step inside a register: s + v or s - v, s being v with neighbours swapped.
 * Products with +-1 are exact, so the fused form rounds as the plain sum does.
 */
INLINE __m512
add_or_subtract(__m512 s, __m512 v, int minus)
{
	const __m512 one = _mm512_set1_ps(1.0f);

	return _mm512_fmadd_ps(v, _mm512_mask_blend_ps((__mmask16) minus, one, _mm512_set1_ps(-1.0f)),
						   s);
}

/* Four steps inside a register. */
INLINE __m512
transform_register(__m512 v)
{
	v = add_or_subtract(_mm512_permute_ps(v, 0xb1), v, 0xaaaa);
	v = add_or_subtract(_mm512_permute_ps(v, 0x4e), v, 0xcccc);
	v = add_or_subtract(_mm512_shuffle_f32x4(v, v, 0xb1), v, 0xf0f0);
	return add_or_subtract(_mm512_shuffle_f32x4(v, v, 0x4e), v, 0xff00);
}

#define Floats __m512
#define LANES 16
#define REGISTERS 16
#define HAVE_MASKS

INLINE Floats
load_floats(const float *x)
{
	return _mm512_loadu_ps(x);
}

INLINE void
store_floats(float *x, Floats v)
{
	_mm512_storeu_ps(x, v);
}

INLINE Floats
all_floats(float f)
{
	return _mm512_set1_ps(f);
}

INLINE Floats
load_first(const float *x, int n)
{
	return _mm512_maskz_loadu_ps(first_lanes(n), x);
}

INLINE void
store_first(float *x, Floats v, int n)
{
	_mm512_mask_storeu_ps(x, first_lanes(n), v);
}

#include "bqkernel_floats.h"

/*
 * Four rows at a time.  The bytes of one code are brought side by side, each
 * gets its row's number above the nibble, and so one 64-entry lookup serves four
 * rows and one dot product with ones adds them up in 32 bits: 8 instructions for
 * 128 lookups, where a shuffle per row and 16-bit sums take 11.
 */
INLINE void
add_rows(__m512i table, __m512i codes, __m512i *low, __m512i *high)
{
	/* byte 4c + r takes byte 16r + c */
	const __m512i transpose = _mm512_set_epi32(
		0x3f2f1f0f, 0x3e2e1e0e, 0x3d2d1d0d, 0x3c2c1c0c, 0x3b2b1b0b, 0x3a2a1a0a, 0x39291909,
		0x38281808, 0x37271707, 0x36261606, 0x35251505, 0x34241404, 0x33231303, 0x32221202,
		0x31211101, 0x30201000);
	const __m512i row = _mm512_set1_epi32(0x30201000);
	const __m512i nibble = _mm512_set1_epi8(15);
	const __m512i ones = _mm512_set1_epi8(1);
	__m512i		index;

	codes = _mm512_permutexvar_epi8(transpose, codes);
	index = LOGIC(codes, nibble, row, (A & B) | C);
	*low = _mm512_dpbusd_epi32(*low, _mm512_permutexvar_epi8(index, table), ones);
	index = LOGIC(_mm512_srli_epi16(codes, 4), nibble, row, (A & B) | C);
	*high = _mm512_dpbusd_epi32(*high, _mm512_permutexvar_epi8(index, table), ones);
}

static TARGET void
bq_lut_block_avx512(const uint8_t *table, const uint8_t *block, int nrows, uint16_t out[BQ_BLOCK])
{
	/* two sums each: one chain of dot products would wait for its own latency */
	__m512i		low[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
	__m512i		high[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
	int			j = 0;

	for (; j + 8 <= nrows; j += 8)
	{
		add_rows(load(table + 16 * j), load(block + 16 * j), &low[0], &high[0]);
		add_rows(load(table + 16 * j + 64), load(block + 16 * j + 64), &low[1], &high[1]);
	}
	for (; j < nrows; j += 4)
	{
		/* rows of zeros add nothing */
		__mmask16	rest = nrows - j >= 4 ? 0xffff : first_lanes(4 * (nrows - j));

		add_rows(_mm512_maskz_loadu_epi32(rest, table + 16 * j),
				 _mm512_maskz_loadu_epi32(rest, block + 16 * j), &low[0], &high[0]);
	}
	low[0] = _mm512_add_epi32(low[0], low[1]);
	high[0] = _mm512_add_epi32(high[0], high[1]);
	_mm256_storeu_si256((__m256i *) out, _mm512_cvtepi32_epi16(low[0]));
	_mm256_storeu_si256((__m256i *) (out + 16), _mm512_cvtepi32_epi16(high[0]));
}

/* Sums c to c + 15 turned into floats. */
static inline TARGET __attribute__((always_inline)) __m512
scale_sums(const uint16_t *sums, float scale, float bias, const uint16_t *factor, int c)
{
	__m512		sum = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) (sums + c))));
	__m512		times = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) (factor + c))));

	sum = _mm512_sub_ps(_mm512_mul_ps(_mm512_set1_ps(scale), sum), _mm512_set1_ps(bias));
	return _mm512_mul_ps(sum, times);
}

static TARGET void
bq_scale_sums_avx512(const uint16_t sums[BQ_BLOCK], float scale, float bias,
					 const uint16_t factor[BQ_BLOCK], float out[BQ_BLOCK])
{
	for (int c = 0; c < BQ_BLOCK; c += 16)
		_mm512_storeu_ps(out + c, scale_sums(sums, scale, bias, factor, c));
}

static TARGET uint32_t
bq_find_sums_avx512(const uint16_t sums[BQ_BLOCK], float scale, float bias,
					const uint16_t factor[BQ_BLOCK], float limit)
{
	uint32_t	found = 0;

	for (int c = 0; c < BQ_BLOCK; c += 16)
		found |= (uint32_t) _mm512_cmp_ps_mask(scale_sums(sums, scale, bias, factor, c),
											   _mm512_set1_ps(limit), _CMP_LE_OQ) << c;
	return found;
}

const BqKernel bq_kernel_avx512 = {
	.name = "avx512",
	.hamming = bq_hamming_avx512,
	.hamming_sign = bq_hamming_sign_avx512,
	.hamming_quiver = bq_hamming_quiver_avx512,
	.popcount = bq_popcount_avx512,
	.dot = bq_dot_avx512,
	.sum_squares = bq_sum_squares_avx512,
	.sum_absolute = bq_sum_absolute_avx512,
	.pack = bq_pack_avx512,
	.unpack = bq_unpack_avx512,
	.scale = scale_floats,
	.flip = flip_floats,
	.hadamard = hadamard_floats,
	.mix = mix_floats,
	.lut_block = bq_lut_block_avx512,
	.scale_sums = bq_scale_sums_avx512,
	.find_sums = bq_find_sums_avx512,
	.unstage = bq_unstage_sse2,
};

#endif							/* BQ_HAVE_X86 */
