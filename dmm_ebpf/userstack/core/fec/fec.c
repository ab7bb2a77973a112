/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fec.c: see fec.h. Gauss-Jordan elimination, one row at a time: whatever comes, a repair symbol or
 * a late source symbol, leaves the rows reduced, so that a symbol is known as soon as the equations
 * say so, and the work is spread over arrivals.
 *
 * Invariants: a used row has 1 in its pivot's column and every other row 0 there; a used column has
 * something in a row; rows and columns that are not used are all zero.
 */
#include "fec.h"

#include "gf256.h"

uint8_t fec_coefficient(uint32_t seed, uint64_t index)
{
	uint64_t state = index ^ (uint64_t)seed << 40 ^ seed;

	return (uint8_t)(1 + (splitmix64(&state) >> 32) % 255);
}

static bool is_good(const struct fec_window *w)
{
	return w->n && w->n <= FEC_WINDOW && w->first <= UINT64_MAX - w->n;
}

bool fec_encode(uint8_t *out, uint32_t symbol_bytes, const struct fec_window *w, fec_source source,
		void *arg)
{
	if (!is_good(w))
		return false;
	memset(out, 0, symbol_bytes);
	for (uint64_t i = w->first; i < w->first + w->n; i++) {
		const uint8_t *symbol = source(arg, i);

		if (!symbol)
			return false;
		gf256_add_product(out, symbol, fec_coefficient(w->seed, i), symbol_bytes);
	}
	return true;
}

void fec_decoder_init(struct fec_decoder *d, uint8_t *bytes, uint32_t symbol_bytes)
{
	memset(d, 0, sizeof(*d));
	d->bytes = bytes;
	d->symbol_bytes = symbol_bytes;
}

static uint8_t *bytes_of(const struct fec_decoder *d, uint32_t row)
{
	return d->bytes + (size_t)row * d->symbol_bytes;
}

static int column_find(const struct fec_decoder *d, uint64_t index)
{
	for (int c = 0; c < FEC_UNKNOWN; c++) {
		if (d->column_used[c] && d->index[c] == index)
			return c;
	}
	return -1;
}

static int column_take(struct fec_decoder *d, uint64_t index)
{
	for (int c = 0; c < FEC_UNKNOWN; c++) {
		if (d->column_used[c])
			continue;
		d->column_used[c] = true;
		d->index[c] = index;
		d->n_columns++;
		return c;
	}
	return -1;
}

/* Columns in which no row has anything are free again */
static void columns_tidy(struct fec_decoder *d)
{
	uint8_t any[FEC_UNKNOWN] = {0};

	for (uint32_t r = 0; r < FEC_ROWS; r++) {
		for (uint32_t c = 0; d->row[r].used && c < FEC_UNKNOWN; c++)
			any[c] |= d->row[r].coefficient[c];
	}
	for (uint32_t c = 0; c < FEC_UNKNOWN; c++) {
		if (d->column_used[c] && !any[c]) {
			d->column_used[c] = false;
			d->n_columns--;
		}
	}
}

static void row_drop(struct fec_decoder *d, uint32_t r)
{
	memset(&d->row[r], 0, sizeof(d->row[r]));
	d->n_rows--;
}

/* row `to`, whose bytes are to_bytes, += c * row `from` */
static void row_add(struct fec_decoder *d, struct fec_row *to, uint8_t *to_bytes, uint32_t from,
		    uint8_t c)
{
	gf256_add_product_by(GF256_PORTABLE, to->coefficient, d->row[from].coefficient, c,
			     FEC_UNKNOWN);
	gf256_add_product(to_bytes, bytes_of(d, from), c, d->symbol_bytes);
}

static bool is_zero(const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (bytes[i])
			return false;
	}
	return true;
}

/* Row r has lost its pivot or is new: another column of it becomes one. It has something left. */
static void row_settle(struct fec_decoder *d, uint32_t r)
{
	struct fec_row *row = &d->row[r];
	uint8_t c = 0, inverse;

	while (!row->coefficient[c])
		c++;
	row->pivot = c;
	inverse = gf256_inverse(row->coefficient[c]);
	gf256_scale(row->coefficient, inverse, FEC_UNKNOWN);
	gf256_scale(bytes_of(d, r), inverse, d->symbol_bytes);
	for (uint32_t other = 0; other < FEC_ROWS; other++) {
		if (other != r && d->row[other].used && d->row[other].coefficient[c])
			row_add(d, &d->row[other], bytes_of(d, other), r,
				d->row[other].coefficient[c]);
	}
}

/* Row r lost its pivot; false: it contradicts */
static bool row_again(struct fec_decoder *d, uint32_t r)
{
	bool true_sum;

	if (!is_zero(d->row[r].coefficient, FEC_UNKNOWN)) {
		row_settle(d, r);
		return true;
	}
	true_sum = is_zero(bytes_of(d, r), d->symbol_bytes);
	row_drop(d, r);
	return true_sum;
}

/*
 * What of a window is there goes off the sum, what is missing gets a column. false: too much is
 * missing
 */
static bool reduce_by_sources(struct fec_decoder *d, const struct fec_window *w,
			      struct fec_row *row, uint8_t *sum, fec_source source, void *arg)
{
	for (uint64_t i = w->first; i < w->first + w->n; i++) {
		const uint8_t *symbol = source(arg, i);
		uint8_t times = fec_coefficient(w->seed, i);
		int c;

		if (symbol) {
			gf256_add_product(sum, symbol, times, d->symbol_bytes);
			continue;
		}
		c = column_find(d, i);
		if (c < 0)
			c = column_take(d, i);
		if (c < 0)
			return false;
		row->coefficient[c] = times;
	}
	return true;
}

static void reduce_by_rows(struct fec_decoder *d, struct fec_row *row, uint8_t *sum)
{
	for (uint32_t r = 0; r < FEC_ROWS; r++) {
		uint8_t c = d->row[r].used ? row->coefficient[d->row[r].pivot] : 0;

		if (c)
			row_add(d, row, sum, r, c);
	}
}

static enum fec_result keep(struct fec_decoder *d, const struct fec_row *row, const uint8_t *sum)
{
	uint32_t r = 0;

	if (is_zero(row->coefficient, FEC_UNKNOWN))
		return is_zero(sum, d->symbol_bytes) ? FEC_USELESS : FEC_CONTRADICTS;
	while (d->row[r].used) /* as many rows as columns, and each has one of its own */
		r++;
	d->row[r] = *row;
	d->row[r].used = true;
	d->n_rows++;
	memcpy(bytes_of(d, r), sum, d->symbol_bytes);
	row_settle(d, r);
	return FEC_KEPT;
}

enum fec_result fec_repair(struct fec_decoder *d, const struct fec_window *w, const uint8_t *repair,
			   fec_source source, void *arg)
{
	uint8_t *sum = bytes_of(d, FEC_ROWS);
	struct fec_row row = {.used = false};
	enum fec_result result = FEC_REFUSED;

	if (!is_good(w))
		return FEC_REFUSED;
	memcpy(sum, repair, d->symbol_bytes);
	if (reduce_by_sources(d, w, &row, sum, source, arg)) {
		reduce_by_rows(d, &row, sum);
		result = keep(d, &row, sum);
	}
	columns_tidy(d);
	return result;
}

enum fec_result fec_arrived(struct fec_decoder *d, uint64_t index, const uint8_t *symbol)
{
	int c = column_find(d, index);
	enum fec_result result = FEC_KEPT;

	if (c < 0)
		return FEC_KEPT;
	for (uint32_t r = 0; r < FEC_ROWS; r++) {
		struct fec_row *row = &d->row[r];

		if (!row->used || !row->coefficient[c])
			continue;
		gf256_add_product(bytes_of(d, r), symbol, row->coefficient[c], d->symbol_bytes);
		row->coefficient[c] = 0;
		if (row->pivot == c && !row_again(d, r))
			result = FEC_CONTRADICTS;
	}
	columns_tidy(d);
	return result;
}

static bool is_alone(const struct fec_row *row)
{
	for (uint32_t c = 0; c < FEC_UNKNOWN; c++) {
		if (c != row->pivot && row->coefficient[c])
			return false;
	}
	return true;
}

const uint8_t *fec_solved(const struct fec_decoder *d, uint64_t *index)
{
	for (uint32_t r = 0; r < FEC_ROWS; r++) {
		if (!d->row[r].used || !is_alone(&d->row[r]))
			continue;
		*index = d->index[d->row[r].pivot];
		return bytes_of(d, r);
	}
	return NULL;
}

const uint8_t *fec_solved_at(const struct fec_decoder *d, uint64_t index)
{
	int c = column_find(d, index);

	for (uint32_t r = 0; c >= 0 && r < FEC_ROWS; r++) {
		if (d->row[r].used && d->row[r].pivot == c)
			return is_alone(&d->row[r]) ? bytes_of(d, r) : NULL;
	}
	return NULL;
}

/* A column below is made a pivot where it can be: what it takes with it is that row alone, and the
 * others keep what they say of the rest */
static void forget_column(struct fec_decoder *d, uint32_t c)
{
	uint32_t r = 0;

	while (r < FEC_ROWS && !(d->row[r].used && d->row[r].coefficient[c]))
		r++;
	if (r == FEC_ROWS)
		return;
	for (uint32_t other = r + 1; other < FEC_ROWS; other++) {
		struct fec_row *row = &d->row[other];
		uint8_t times = row->used ? row->coefficient[c] : 0;

		if (times)
			row_add(d, row, bytes_of(d, other), r,
				gf256_mul(times, gf256_inverse(d->row[r].coefficient[c])));
	}
	row_drop(d, r);
}

void fec_forget(struct fec_decoder *d, uint64_t below)
{
	for (uint32_t c = 0; c < FEC_UNKNOWN; c++) {
		if (d->column_used[c] && d->index[c] < below)
			forget_column(d, c);
	}
	columns_tidy(d);
}
