/* SPDX-License-Identifier: Apache-2.0 */
/* repair.c: see repair.h */
#include "repair.h"

/* The eight bytes at p as a number, the first one lowest, on hosts of either byte order */
static uint64_t word_at(const uint8_t *p)
{
	uint64_t word;

	memcpy(&word, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	word = __builtin_bswap64(word);
#endif
	return word;
}

void fec_header_put(uint8_t *to, const struct fec_header *h)
{
	put_be32(to, h->first);
	put_be32(to + 4, h->place);
	put_be32(to + 8, h->seed);
	put_be32(to + 12, h->check);
	put_be16(to + 16, h->symbol_bytes);
	for (uint32_t r = 0; r < FEC_RUNS; r++)
		put_be16(to + 18 + 2 * r, h->run[r]);
}

static uint32_t symbols_of(const struct fec_header *h, uint32_t run)
{
	return (h->run[run] + h->symbol_bytes - 1u) / h->symbol_bytes;
}

uint32_t fec_header_symbols(const struct fec_header *h)
{
	uint32_t n = 0;

	for (uint32_t r = 0; r < FEC_RUNS; r++)
		n += symbols_of(h, r);
	return n;
}

uint32_t fec_header_bytes(const struct fec_header *h)
{
	uint32_t bytes = 0;

	for (uint32_t r = 0; r < FEC_RUNS; r++)
		bytes += h->run[r];
	return bytes;
}

uint32_t fec_header_at(const struct fec_header *h, uint32_t nth, uint32_t *bytes)
{
	uint32_t r = 0, at = 0, off;

	for (; r < FEC_RUNS - 1 && nth >= symbols_of(h, r); r++) {
		nth -= symbols_of(h, r);
		at += h->run[r];
	}
	off = nth * h->symbol_bytes;
	*bytes = min_u32(h->symbol_bytes, h->run[r] - off);
	return at + off;
}

bool fec_header_get(struct fec_header *h, const uint8_t *from, size_t len)
{
	uint32_t n;

	if (len < FEC_HEADER)
		return false;
	*h = (struct fec_header){
		.first = get_be32(from),
		.place = get_be32(from + 4),
		.seed = get_be32(from + 8),
		.check = get_be32(from + 12),
		.symbol_bytes = get_be16(from + 16),
	};
	for (uint32_t r = 0; r < FEC_RUNS; r++)
		h->run[r] = get_be16(from + 18 + 2 * r);
	if (h->symbol_bytes < FEC_SYMBOL_MIN || h->symbol_bytes > FEC_SYMBOL ||
	    len != (size_t)FEC_HEADER + h->symbol_bytes)
		return false;
	n = fec_header_symbols(h);
	return n && n <= FEC_WINDOW;
}

uint64_t fec_hash(uint64_t index, const uint8_t *symbol, uint32_t symbol_bytes)
{
	uint64_t state = index, h = splitmix64(&state);

	for (; symbol_bytes >= 8; symbol_bytes -= 8, symbol += 8) {
		h = (h ^ word_at(symbol)) * 0x9e3779b97f4a7c15ull;
		h ^= h >> 29;
	}
	for (; symbol_bytes; symbol_bytes--)
		h = (h ^ *symbol++) * 0x100000001b3ull;
	return splitmix64(&h);
}
