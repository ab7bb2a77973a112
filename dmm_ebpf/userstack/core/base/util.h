/* SPDX-License-Identifier: Apache-2.0 */
/*
 * util.h: what every file of the core needs: byte order, lists, minimum and maximum, the keyed
 * hash.
 *
 * Invariant: nothing here keeps state or allocates.
 */
#ifndef DMM_UTIL_H
#define DMM_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "../units.h"

#define NEVER UINT64_MAX /* a deadline that does not come */

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint32_t max_u32(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* a * b / c without overflow; c > 0; saturates */
static inline uint64_t mul_div(uint64_t a, uint64_t b, uint64_t c)
{
	__uint128_t r = (__uint128_t)a * b / c;

	return r > UINT64_MAX ? UINT64_MAX : (uint64_t)r;
}

static inline uint32_t min_u32(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static inline uint16_t get_be16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t get_be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline void put_be16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static inline void put_be32(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)(v >> 24);
	p[1] = (uint8_t)(v >> 16);
	p[2] = (uint8_t)(v >> 8);
	p[3] = (uint8_t)v;
}

/* Smallest power of two that is at least v; v up to 2^31 */
static inline uint32_t pow2_ceil(uint32_t v)
{
	return v <= 1 ? 1 : 1u << (32 - __builtin_clz(v - 1));
}

/*
 * Circular doubly linked list; a head or an unlinked node that was list_init()ed points to itself
 */
struct list {
	struct list *next;
	struct list *prev;
};

static inline void list_init(struct list *l)
{
	l->next = l;
	l->prev = l;
}

static inline bool list_empty(const struct list *l)
{
	return l->next == l;
}

static inline void list_add_tail(struct list *head, struct list *n)
{
	n->prev = head->prev;
	n->next = head;
	head->prev->next = n;
	head->prev = n;
}

/* The node points to itself afterwards, so deleting twice is harmless */
static inline void list_del(struct list *n)
{
	n->prev->next = n->next;
	n->next->prev = n->prev;
	list_init(n);
}

static inline uint64_t xorshift64(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	*state = x;
	return x;
}

/* Seeds: successive values of one state are independent (splitmix64) */
static inline uint64_t splitmix64(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

#define SIP_ROUND(v0, v1, v2, v3)                                                                  \
	do {                                                                                       \
		(v0) += (v1);                                                                      \
		(v1) = ((v1) << 13 | (v1) >> 51) ^ (v0);                                           \
		(v0) = (v0) << 32 | (v0) >> 32;                                                    \
		(v2) += (v3);                                                                      \
		(v3) = ((v3) << 16 | (v3) >> 48) ^ (v2);                                           \
		(v0) += (v3);                                                                      \
		(v3) = ((v3) << 21 | (v3) >> 43) ^ (v0);                                           \
		(v2) += (v1);                                                                      \
		(v1) = ((v1) << 17 | (v1) >> 47) ^ (v2);                                           \
		(v2) = (v2) << 32 | (v2) >> 32;                                                    \
	} while (0)

/*
 * SipHash-2-4 of whole 64-bit words: remote peers choose the input, so tables and ISNs need
 * a keyed hash
 */
static inline uint64_t siphash(const uint64_t key[2], const void *data, uint32_t n_words)
{
	uint64_t v0 = key[0] ^ 0x736f6d6570736575ull, v1 = key[1] ^ 0x646f72616e646f6dull;
	uint64_t v2 = key[0] ^ 0x6c7967656e657261ull, v3 = key[1] ^ 0x7465646279746573ull;
	const uint8_t *p = data;

	for (uint32_t i = 0; i <= n_words; i++) {
		uint64_t m;

		if (i < n_words)
			memcpy(&m, p + 8 * i, 8);
		else
			m = (uint64_t)n_words << 59;
		v3 ^= m;
		SIP_ROUND(v0, v1, v2, v3);
		SIP_ROUND(v0, v1, v2, v3);
		v0 ^= m;
	}
	v2 ^= 0xff;
	for (int i = 0; i < 4; i++)
		SIP_ROUND(v0, v1, v2, v3);
	return v0 ^ v1 ^ v2 ^ v3;
}

#endif /* DMM_UTIL_H */
