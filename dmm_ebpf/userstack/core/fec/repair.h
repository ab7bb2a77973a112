/* SPDX-License-Identifier: Apache-2.0 */
/*
 * repair.h: what stands in front of a repair symbol on its way, and the check value by which who
 * repairs with it finds out that the outcome is wrong.
 *
 * The source symbols are pieces of a stream of bytes, one behind the other: runs of symbols of the
 * full size, of which the last may be shorter, and then counts as if zeros followed.
 *
 * 32 bytes, in network byte order: the number of the window's first symbol, the place in the stream
 * where that begins (of both the low 32 bits), the number of the repair symbol, the check value,
 * bytes of a full symbol (16 bits), and the bytes of each run (16 bits each, 0: there is none).
 *
 * The check value is the sum, over the window, of a hash of each symbol's bytes and number: each is
 * hashed once, whatever windows it is in. It is for mistakes, not against enemies: those may as
 * well lie in data.
 *
 * Pure functions of their arguments. Refuses: a window or a symbol that fec.h refuses.
 */
#ifndef DMM_FEC_REPAIR_H
#define DMM_FEC_REPAIR_H

#include "fec.h"

enum {
	FEC_HEADER = 32, /* bytes */
	FEC_RUNS = 7,
	FEC_SYMBOL_MIN = 64, /* bytes of a symbol that are worth a header */
};

struct fec_header {
	uint32_t first;
	uint32_t place;
	uint32_t seed;
	uint32_t check;
	uint16_t symbol_bytes;
	uint16_t run[FEC_RUNS];
};

void fec_header_put(uint8_t *to, const struct fec_header *h);
/* len: bytes of all that came. false: it is no repair symbol with its header */
bool fec_header_get(struct fec_header *h, const uint8_t *from, size_t len);

/* Source symbols of the window, and their bytes */
uint32_t fec_header_symbols(const struct fec_header *h);
uint32_t fec_header_bytes(const struct fec_header *h);
/* Where the nth of them begins, from the first on, and in *bytes how long it is */
uint32_t fec_header_at(const struct fec_header *h, uint32_t nth, uint32_t *bytes);

/* The hash of a symbol, of which check values are sums */
uint64_t fec_hash(uint64_t index, const uint8_t *symbol, uint32_t symbol_bytes);

/* The check value of a window by the sum of its hashes */
static inline uint32_t fec_check(uint64_t sum)
{
	return (uint32_t)(sum >> 32);
}

/* The number near `near` whose low 32 bits are low */
static inline uint64_t fec_unwrap(uint32_t low, uint64_t near)
{
	return near + (uint64_t)(int64_t)(int32_t)(low - (uint32_t)near);
}

#endif /* DMM_FEC_REPAIR_H */
