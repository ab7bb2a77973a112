/* SPDX-License-Identifier: Apache-2.0 */
/*
 * glue.c: the erasure code (core/fec) for Python: decoders with memory of their own, of exactly
 * their size, source symbols out of a table, and times of what costs most.
 */
#include "fec/fec.h"
#include "fec/gf256.h"

#include <stdlib.h>
#include <time.h>

/* Symbols 0 to n - 1, one behind the other; there[i] 0: it is missing */
struct fec_table {
	const uint8_t *bytes;
	const uint8_t *there;
	uint64_t n;
	uint32_t symbol_bytes;
};

static const uint8_t *of_table(void *arg, uint64_t index)
{
	const struct fec_table *t = arg;

	return index < t->n && t->there[index] ? t->bytes + index * t->symbol_bytes : NULL;
}

struct fec_decoder *glue_new(uint32_t symbol_bytes);
void glue_free(struct fec_decoder *d);
int glue_encode(uint8_t *out, struct fec_table *t, uint64_t first, uint32_t n, uint32_t seed);
int glue_repair(struct fec_decoder *d, struct fec_table *t, uint64_t first, uint32_t n,
		uint32_t seed, const uint8_t *repair);
double glue_ns_per_row(int way, uint32_t bytes, uint32_t rounds);

struct fec_decoder *glue_new(uint32_t symbol_bytes)
{
	struct fec_decoder *d = malloc(sizeof(*d));

	fec_decoder_init(d, malloc(fec_decoder_bytes(symbol_bytes)), symbol_bytes);
	return d;
}

void glue_free(struct fec_decoder *d)
{
	free(d->bytes);
	free(d);
}

int glue_encode(uint8_t *out, struct fec_table *t, uint64_t first, uint32_t n, uint32_t seed)
{
	struct fec_window w = {.first = first, .n = n, .seed = seed};

	return fec_encode(out, t->symbol_bytes, &w, of_table, t);
}

int glue_repair(struct fec_decoder *d, struct fec_table *t, uint64_t first, uint32_t n,
		uint32_t seed, const uint8_t *repair)
{
	struct fec_window w = {.first = first, .n = n, .seed = seed};

	return (int)fec_repair(d, &w, repair, of_table, t);
}

/* One row of so many bytes times a coefficient, added to another; both stay in the cache. -1: this
 * processor has no such way */
double glue_ns_per_row(int way, uint32_t bytes, uint32_t rounds)
{
	uint8_t *rows = calloc(2, bytes);
	struct timespec from, to;

	if (!gf256_can((enum gf256_way)way)) {
		free(rows);
		return -1;
	}
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (uint32_t i = 0; i < rounds; i++)
		gf256_add_product_by((enum gf256_way)way, rows, rows + bytes,
				     (uint8_t)(1 + i % 255), bytes);
	clock_gettime(CLOCK_MONOTONIC, &to);
	free(rows);
	return ((double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec)) /
	       rounds;
}
