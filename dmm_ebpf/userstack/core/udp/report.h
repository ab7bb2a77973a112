/* SPDX-License-Identifier: Apache-2.0 */
/*
 * report.h: what a stack tells the other one of the datagrams that came from it: which, how many
 * times with its copies, and how long ago. From it the other one knows that it is understood, how
 * much the path loses, and its round trip.
 *
 * A report is a UDP packet on the way back of a flow, with DATAGRAM_REPORT for a checksum. Its
 * payload, in network byte order:
 *
 *	 0  32 bits  REPORT_MAGIC, which has the version
 *	 4  32 bits  who tells: chosen at random by each process; the lowest 16 bits, which are not
 *		     0, are the tag of what it sends (datagram.h)
 *	 8  16 bits  number of this report of its, to this peer
 *	10   8 bits  flags: REPORT_OVERRUN: not all that came is listed; the upper four bits: so
 *many reports before it tell nothing that it does not tell, too 11   8 bits  items behind it
 *
 * and each item: 32 bits of the datagram's id (seen.h), 16 bits: how long ago it, or its first
 * copy, came, in tenths of a millisecond, 8 bits: times that it came, 8 bits: 0.
 *
 * Pure. Refuses: another magic, a length that is not its items'.
 */
#ifndef DMM_REPORT_H
#define DMM_REPORT_H

#include "../base/util.h"

enum {
	REPORT_MAGIC = 0x44554d31, /* "DUM1" */
	REPORT_HEAD_BYTES = 12,
	REPORT_ITEM_BYTES = 8,
	REPORT_ITEMS = 64,
	REPORT_MOST_BYTES = REPORT_HEAD_BYTES + REPORT_ITEMS * REPORT_ITEM_BYTES,
	REPORT_OVERRUN = 1,
	REPORT_COVERS_SHIFT = 4,
	REPORT_COVERS_MOST = 15,
};

struct report_item {
	uint32_t id;
	uint32_t ago_us; /* in steps of 100, up to 6.5 s */
	uint32_t times;
};

struct report {
	uint32_t who;
	uint16_t number;
	uint8_t flags;
	uint8_t n;
	struct report_item item[REPORT_ITEMS];
};

/* to: room for REPORT_MOST_BYTES. Returns its bytes. */
uint32_t report_write(const struct report *r, uint8_t *to);
bool report_read(struct report *r, const uint8_t *from, uint32_t bytes);

#endif /* DMM_REPORT_H */
