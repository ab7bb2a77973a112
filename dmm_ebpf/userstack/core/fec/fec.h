/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fec.h: a code against erasures over a window that slides along a stream (random linear, as in RFC
 * 8681): a repair symbol is a sum of the source symbols of its window, each times a coefficient.
 *
 * A symbol is a row of symbol_bytes bytes with a number, counted along the stream. The coefficients
 * follow from the number of the repair symbol and that of the source symbol, so a repair symbol
 * needs its number, its window and its bytes, and nothing else. A window of n symbols of which k
 * are missing is mended by k repair symbols, but for one time in 255 or so, when it takes one more.
 *
 * Refuses: a window longer than FEC_WINDOW, or in which more are missing than FEC_UNKNOWN. What a
 * repair symbol says is as true as who sent it: a sum that contradicts others is told of, but one
 * that is false alone gives false bytes, so who uses them has to check them by something else.
 *
 * No function here allocates, blocks or fails but as it says.
 */
#ifndef DMM_FEC_H
#define DMM_FEC_H

#include "../base/util.h"

enum {
	FEC_WINDOW = 255,  /* source symbols in a window */
	FEC_UNKNOWN = 64,  /* missing symbols, of all windows that are looked at, */
	FEC_ROWS = 64,	   /* and repair symbols for them */
	FEC_SYMBOL = 2048, /* bytes of a symbol at most */
};

/* Which source symbols are in a repair symbol */
struct fec_window {
	uint64_t first;
	uint32_t n;    /* 1 to FEC_WINDOW */
	uint32_t seed; /* number of the repair symbol */
};

/* The bytes of a source symbol; NULL: it is missing */
typedef const uint8_t *(*fec_source)(void *arg, uint64_t index);

/* What source symbol index is multiplied by; never 0 */
uint8_t fec_coefficient(uint32_t seed, uint64_t index);

/* The repair symbol, written to out. false: a source symbol is missing, or the window is refused.
 */
bool fec_encode(uint8_t *out, uint32_t symbol_bytes, const struct fec_window *window,
		fec_source source, void *arg);

struct fec_row {
	uint8_t coefficient[FEC_UNKNOWN]; /* by column */
	uint8_t pivot;			  /* a column in which no other row has anything; 1 here */
	bool used;
};

/*
 * The equations that are known, each row solved as far as possible: reduced row echelon form.
 * Columns are missing symbols, rows are what is left of repair symbols.
 */
struct fec_decoder {
	uint64_t index[FEC_UNKNOWN]; /* of a column */
	bool column_used[FEC_UNKNOWN];
	struct fec_row row[FEC_ROWS];
	uint32_t symbol_bytes;
	uint32_t n_rows;
	uint32_t n_columns;
	uint8_t *bytes; /* FEC_ROWS + 1 symbols: the rows', and one to work with */
};

enum fec_result {
	FEC_KEPT,	/* fec_solved() may have something */
	FEC_USELESS,	/* nothing that was not known */
	FEC_REFUSED,	/* too long, or too much is missing */
	FEC_CONTRADICTS /* somebody has lied, now or before */
};

/* Bytes of memory that a decoder wants besides itself */
static inline size_t fec_decoder_bytes(uint32_t symbol_bytes)
{
	return (size_t)(FEC_ROWS + 1) * symbol_bytes;
}

/* bytes: fec_decoder_bytes() of them, which stay the caller's. symbol_bytes: 1 to FEC_SYMBOL */
void fec_decoder_init(struct fec_decoder *d, uint8_t *bytes, uint32_t symbol_bytes);
/* A repair symbol came. source: what is there of its window, and has been told of if it came since
 * a row was kept that it is in */
enum fec_result fec_repair(struct fec_decoder *d, const struct fec_window *window,
			   const uint8_t *repair, fec_source source, void *arg);
/* A source symbol came, by whatever way; FEC_KEPT unless it contradicts */
enum fec_result fec_arrived(struct fec_decoder *d, uint64_t index, const uint8_t *symbol);
/*
 * A missing symbol that is known now: its bytes, good until the next call, and *index; NULL:
 * none. It stays until it is told of by fec_arrived(), with bytes that are not these, or forgotten.
 */
const uint8_t *fec_solved(const struct fec_decoder *d, uint64_t *index);
/* The bytes of this one, if it is such a symbol; else NULL */
const uint8_t *fec_solved_at(const struct fec_decoder *d, uint64_t index);
/* Symbols below are not wanted any more: rows that have them in go */
void fec_forget(struct fec_decoder *d, uint64_t below);

#endif /* DMM_FEC_H */
