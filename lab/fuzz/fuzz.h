/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz.h: the input of a fuzz target, read as a program. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* What is left of an input */
struct input {
	const uint8_t *p;
	size_t left;
};

/* The next n bytes (at most 4) as a number, big-endian; 0 where none are left. */
static inline uint32_t take(struct input *in, uint32_t n)
{
	uint32_t v = 0;

	while (n--) {
		v = v << 8 | (in->left ? *in->p : 0);
		if (in->left) {
			in->p++;
			in->left--;
		}
	}
	return v;
}

#endif /* FUZZ_H */
