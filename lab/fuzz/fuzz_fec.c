/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_fec.c: libFuzzer target for the erasure code (core/fec).
 *
 * The input is a program: repair symbols over windows that it chooses, true or false ones, source
 * symbols that come late, in any order, and such as are forgotten. Checked after each step: the
 * rows are reduced as fec.c says, what is not used is zero; each way of multiplying gives the same
 * bytes; and as long as nobody has lied, what is solved is the source symbol, and nothing
 * contradicts. The decoder's memory is exactly as large as it asked for.
 */
#include "../sim/holds.h"
#include "fec/fec.h"
#include "fec/gf256.h"
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

enum { SYMBOLS = 80, MOST_BYTES = 70 };

static uint8_t truth[SYMBOLS][MOST_BYTES];
static bool there[SYMBOLS];

static const uint8_t *what_is_there(void *arg, uint64_t index)
{
	(void)arg;
	return index < SYMBOLS && there[index] ? truth[index] : NULL;
}

static const uint8_t *what_is_true(void *arg, uint64_t index)
{
	(void)arg;
	return index < SYMBOLS ? truth[index] : NULL;
}

static void check_row(const struct fec_decoder *d, uint32_t r)
{
	const struct fec_row *row = &d->row[r];

	for (uint32_t c = 0; c < FEC_UNKNOWN; c++)
		CHECK(!row->coefficient[c] || (row->used && d->column_used[c]));
	if (!row->used)
		return;
	CHECK(row->coefficient[row->pivot] == 1);
	for (uint32_t other = 0; other < FEC_ROWS; other++)
		CHECK(other == r || !d->row[other].coefficient[row->pivot]);
}

static void check(const struct fec_decoder *d)
{
	uint32_t rows = 0, columns = 0;

	for (uint32_t r = 0; r < FEC_ROWS; r++) {
		check_row(d, r);
		rows += d->row[r].used;
	}
	for (uint32_t c = 0; c < FEC_UNKNOWN; c++) {
		bool any = false;

		columns += d->column_used[c];
		for (uint32_t r = 0; r < FEC_ROWS; r++)
			any |= d->row[r].coefficient[c];
		CHECK(any == d->column_used[c]);
		for (uint32_t other = 0; any && other < c; other++)
			CHECK(!d->column_used[other] || d->index[other] != d->index[c]);
	}
	CHECK(rows == d->n_rows && columns == d->n_columns && rows <= columns);
}

static void solved(struct fec_decoder *d, uint32_t bytes, bool honest)
{
	uint8_t copy[MOST_BYTES];
	const uint8_t *found;
	uint64_t index;

	while ((found = fec_solved(d, &index))) {
		CHECK(index >= SYMBOLS || !there[index]);
		CHECK(!honest || index >= SYMBOLS || !memcmp(found, truth[index], bytes));
		memcpy(copy, found, bytes);
		if (index < SYMBOLS)
			there[index] = true;
		CHECK(fec_arrived(d, index, copy) == FEC_KEPT || !honest);
		check(d);
	}
}

/* Returns whether it was true */
static bool repair(struct fec_decoder *d, struct input *in, uint32_t bytes, bool honest)
{
	struct fec_window w = {.first = take(in, 1) % SYMBOLS};
	uint8_t *symbol = malloc(bytes);
	bool lie;
	enum fec_result got;

	w.n = take(in, 1);
	w.seed = take(in, 2);
	lie = !fec_encode(symbol, bytes, &w, what_is_true, NULL);
	if (lie)
		memset(symbol, (int)w.seed, bytes);
	if (w.seed >> 8 == 0xff) {
		symbol[w.seed % bytes] ^= 1;
		lie = true;
	}
	got = fec_repair(d, &w, symbol, what_is_there, NULL);
	CHECK(got != FEC_CONTRADICTS || lie || !honest);
	CHECK(w.n || got == FEC_REFUSED);
	free(symbol);
	return !lie || got == FEC_REFUSED || got == FEC_CONTRADICTS;
}

static void ways_agree(uint32_t bytes, uint8_t c)
{
	uint8_t *to = malloc(bytes), *want = malloc(bytes);

	for (uint32_t way = 0; way < GF256_WAYS; way++) {
		if (!gf256_can((enum gf256_way)way))
			continue;
		memcpy(to, truth[0], bytes);
		gf256_add_product_by((enum gf256_way)way, to, truth[1], c, bytes);
		if (way == GF256_PORTABLE)
			memcpy(want, to, bytes);
		CHECK(!memcmp(to, want, bytes));
	}
	free(to);
	free(want);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	uint32_t bytes = 1 + take(&in, 1) % MOST_BYTES, below = 0;
	uint8_t *memory = malloc(fec_decoder_bytes(bytes));
	uint64_t state = take(&in, 2) + 1;
	struct fec_decoder d;
	bool honest = true;

	for (uint32_t i = 0; i < SYMBOLS; i++) {
		there[i] = xorshift64(&state) % 4;
		for (uint32_t at = 0; at < MOST_BYTES; at++)
			truth[i][at] = (uint8_t)(xorshift64(&state) >> 24);
	}
	fec_decoder_init(&d, memory, bytes);
	ways_agree(bytes, (uint8_t)state);
	while (in.left) {
		uint32_t op = take(&in, 1), index;

		if (op & 1) {
			honest &= repair(&d, &in, bytes, honest);
		} else if (op & 2) {
			index = take(&in, 1) % SYMBOLS;
			there[index] = true;
			CHECK(fec_arrived(&d, index, truth[index]) == FEC_KEPT || !honest);
		} else {
			below += op >> 2 & 7;
			fec_forget(&d, below);
			for (uint32_t i = 0; i < below && i < SYMBOLS; i++)
				there[i] = true; /* nobody asks for them */
		}
		check(&d);
		solved(&d, bytes, honest);
	}
	free(memory);
	return 0;
}
