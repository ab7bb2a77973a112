/* SPDX-License-Identifier: Apache-2.0 */
/* csum.h: the Internet checksum (RFC 1071), alone and while copying: see csum.c. */
#ifndef DMM_CSUM_H
#define DMM_CSUM_H

#include <stddef.h>
#include <stdint.h>

/*
 * Internet checksum over native 64-bit words: unfolded sums are added, folded at the end (RFC 1071)
 */
uint64_t csum_add(const void *data, size_t len, uint64_t sum);
/* memcpy and csum_add in one pass */
uint64_t csum_copy(void *dst, const void *src, size_t len);

/* The sum of two partial sums; the carry goes round */
static inline uint64_t csum_join(uint64_t sum, uint64_t w)
{
	sum += w;
	return sum + (sum < w);
}

static inline uint16_t csum_fold(uint64_t s)
{
	s = (s >> 32) + (s & 0xffffffffu);
	s = (s >> 32) + (s & 0xffffffffu);
	s = (s >> 16) + (s & 0xffffu);
	s = (s >> 16) + (s & 0xffffu);
	return (uint16_t)((s >> 16) + (s & 0xffffu));
}

#endif /* DMM_CSUM_H */
