/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gf256.c: see gf256.h.
 *
 * A product is linear in either factor, so c * x is c * (low four bits) + c * (high four bits): two
 * tables of sixteen products, which a byte shuffle looks up for a whole register at once (Plank,
 * Greenan and Miller, "Screaming Fast Galois Field Arithmetic", FAST 2013). They are made anew for
 * each row, in some thirty operations, so there is no table that somebody has to set up. A
 * processor without such a shuffle takes eight bytes at a time.
 */
#include "gf256.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { POLYNOMIAL_LOW = 0x1d, NIBBLE = 16, WORDS = 8 };

struct products {
	uint8_t low[NIBBLE];  /* c * i */
	uint8_t high[NIBBLE]; /* c * 16 i */
};

static uint8_t twice(uint8_t a)
{
	return (uint8_t)(a << 1 ^ (a >> 7) * POLYNOMIAL_LOW);
}

uint8_t gf256_mul(uint8_t a, uint8_t b)
{
	uint8_t sum = 0;

	for (; b; b >>= 1, a = twice(a))
		sum ^= (uint8_t)(a * (b & 1));
	return sum;
}

/* a^254, since a^255 = 1: 254 = 2 + 4 + ... + 128 */
uint8_t gf256_inverse(uint8_t a)
{
	uint8_t power = a, product = 1;

	for (int i = 0; i < 7; i++) {
		power = gf256_mul(power, power);
		product = gf256_mul(product, power);
	}
	return product;
}

static void make_products(struct products *p, uint8_t c)
{
	uint8_t power = c;

	p->low[0] = p->high[0] = 0;
	for (int bit = 1; bit < NIBBLE; bit <<= 1, power = twice(power)) {
		for (int i = 0; i < bit; i++)
			p->low[bit + i] = p->low[i] ^ power;
	}
	for (int bit = 1; bit < NIBBLE; bit <<= 1, power = twice(power)) {
		for (int i = 0; i < bit; i++)
			p->high[bit + i] = p->high[i] ^ power;
	}
}

static void by_bytes(uint8_t *to, const uint8_t *from, const struct products *p, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		to[i] ^= p->low[from[i] & 15] ^ p->high[from[i] >> 4];
}

/* Eight elements at once, each by itself */
static uint64_t twice_each(uint64_t a)
{
	uint64_t top = a & 0x8080808080808080ull;

	/* the low bits of the polynomial are 4, 3, 2 and 0 */
	top >>= 7;
	return (a & 0x7f7f7f7f7f7f7f7full) << 1 ^ (top | top << 2 | top << 3 | top << 4);
}

/*
 * Where there is no shuffle: c * x is the sum of x * 2^k for the bits of c. So many words at a time
 * let the compiler use whatever registers there are.
 */
static size_t by_words(uint8_t *to, const uint8_t *from, uint8_t c, size_t bytes)
{
	uint64_t x[WORDS], sum[WORDS];
	size_t i = 0;

	for (; i + sizeof(x) <= bytes; i += sizeof(x)) {
		memcpy(x, from + i, sizeof(x));
		memcpy(sum, to + i, sizeof(x));
		for (uint32_t left = c; left; left >>= 1) {
			uint64_t mask = -(uint64_t)(left & 1);

			for (int w = 0; w < WORDS; w++) {
				sum[w] ^= x[w] & mask;
				x[w] = twice_each(x[w]);
			}
		}
		memcpy(to + i, sum, sizeof(x));
	}
	return i;
}

#if defined(__x86_64__)
__attribute__((target("ssse3"))) static size_t by_ssse3(uint8_t *to, const uint8_t *from,
							const struct products *p, size_t bytes)
{
	const __m128i low = _mm_loadu_si128((const __m128i *)(const void *)p->low),
		      high = _mm_loadu_si128((const __m128i *)(const void *)p->high),
		      mask = _mm_set1_epi8(15);
	size_t i = 0;

	for (; i + 16 <= bytes; i += 16) {
		__m128i x = _mm_loadu_si128((const __m128i *)(const void *)(from + i)),
			y = _mm_loadu_si128((const __m128i *)(void *)(to + i)),
			l = _mm_shuffle_epi8(low, _mm_and_si128(x, mask)),
			h = _mm_shuffle_epi8(high, _mm_and_si128(_mm_srli_epi64(x, 4), mask));

		_mm_storeu_si128((__m128i *)(void *)(to + i),
				 _mm_xor_si128(y, _mm_xor_si128(l, h)));
	}
	return i;
}

__attribute__((target("avx2"))) static size_t by_avx2(uint8_t *to, const uint8_t *from,
						      const struct products *p, size_t bytes)
{
	const __m256i low = _mm256_broadcastsi128_si256(
			      _mm_loadu_si128((const __m128i *)(const void *)p->low)),
		      high = _mm256_broadcastsi128_si256(
			      _mm_loadu_si128((const __m128i *)(const void *)p->high)),
		      mask = _mm256_set1_epi8(15);
	size_t i = 0;

	for (; i + 32 <= bytes; i += 32) {
		__m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(from + i)),
			y = _mm256_loadu_si256((const __m256i *)(void *)(to + i)),
			l = _mm256_shuffle_epi8(low, _mm256_and_si256(x, mask)),
			h = _mm256_shuffle_epi8(high,
						_mm256_and_si256(_mm256_srli_epi64(x, 4), mask));

		_mm256_storeu_si256((__m256i *)(void *)(to + i),
				    _mm256_xor_si256(y, _mm256_xor_si256(l, h)));
	}
	return i;
}

bool gf256_can(enum gf256_way way)
{
	switch (way) {
	case GF256_PORTABLE:
		return true;
	case GF256_SSSE3:
		return __builtin_cpu_supports("ssse3");
	case GF256_AVX2:
		return __builtin_cpu_supports("avx2");
	default:
		return false;
	}
}

static size_t by_way(enum gf256_way way, uint8_t *to, const uint8_t *from, uint8_t c,
		     const struct products *p, size_t bytes)
{
	switch (way) {
	case GF256_AVX2:
		return by_avx2(to, from, p, bytes);
	case GF256_SSSE3:
		return by_ssse3(to, from, p, bytes);
	default:
		return by_words(to, from, c, bytes);
	}
}
#else
bool gf256_can(enum gf256_way way)
{
	return way == GF256_PORTABLE;
}

static size_t by_way(enum gf256_way way, uint8_t *to, const uint8_t *from, uint8_t c,
		     const struct products *p, size_t bytes)
{
	(void)way;
	(void)p;
	return by_words(to, from, c, bytes);
}
#endif

void gf256_add_product_by(enum gf256_way way, uint8_t *to, const uint8_t *from, uint8_t c,
			  size_t bytes)
{
	struct products p;
	size_t done;

	if (!c)
		return;
	make_products(&p, c);
	done = by_way(way, to, from, c, &p, bytes);
	by_bytes(to + done, from + done, &p, bytes - done);
}

void gf256_add_product(uint8_t *to, const uint8_t *from, uint8_t c, size_t bytes)
{
	enum gf256_way way = GF256_WAYS - 1;

	while (!gf256_can(way))
		way--;
	gf256_add_product_by(way, to, from, c, bytes);
}

void gf256_scale(uint8_t *row, uint8_t c, size_t bytes)
{
	struct products p;

	make_products(&p, c);
	for (size_t i = 0; i < bytes; i++)
		row[i] = p.low[row[i] & 15] ^ p.high[row[i] >> 4];
}
