/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gf256.h: the field of 256 elements, x^8 + x^4 + x^3 + x^2 + 1 (0x11d, as in RFC 5510 and 8681):
 * addition is XOR.
 *
 * Invariant: nothing here keeps state; any byte is an element.
 */
#ifndef DMM_GF256_H
#define DMM_GF256_H

#include "../base/util.h"

/* How a row of bytes is multiplied; each gives the same bytes */
enum gf256_way { GF256_PORTABLE, GF256_SSSE3, GF256_AVX2, GF256_WAYS };

uint8_t gf256_mul(uint8_t a, uint8_t b);
/* a != 0 */
uint8_t gf256_inverse(uint8_t a);

/* to[i] += c * from[i]; the two do not overlap. By the fastest way that this processor has. */
void gf256_add_product(uint8_t *to, const uint8_t *from, uint8_t c, size_t bytes);
/* The same by a way of which gf256_can() says yes */
void gf256_add_product_by(enum gf256_way way, uint8_t *to, const uint8_t *from, uint8_t c,
			  size_t bytes);
bool gf256_can(enum gf256_way way);
/* row[i] *= c */
void gf256_scale(uint8_t *row, uint8_t c, size_t bytes);

#endif /* DMM_GF256_H */
