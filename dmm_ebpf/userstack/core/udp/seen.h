/* SPDX-License-Identifier: Apache-2.0 */
/*
 * seen.h: the datagrams of the last SEEN_NS by what is in them, so that none comes to an app more
 * often than it was sent, whether it or a copy of it arrives first.
 *
 * Of what came: a copy tells that the datagram was sent once at least, each original that it was
 * sent once more. So it is given to the app while it was given less often than there were
 * originals, or than once if a copy came. Of what goes: only the first of those that are alike has
 * copies, so a copy proves no second one.
 *
 * Pure, of a fixed size. What the table has no room for is never guessed: `blind` says that it has
 * forgotten something which a copy may come of, and until when copies are refused. A datagram that
 * was given to the app by a copy alone is never forgotten before its time.
 *
 * A hash stands for a datagram: 64 bits of SipHash under a key of the table's own over both
 * addresses, both ports and an id, which is 64 bits of SipHash of the payload under a key that both
 * hosts know. Two datagrams of one flow that have one id are taken for one: by chance that does not
 * happen, and who looks for such a pair loses a datagram of his own.
 */
#ifndef DMM_SEEN_H
#define DMM_SEEN_H

#include "../base/util.h"
#include "datagram.h"

#define SEEN_NS (4 * NS_PER_S)

enum { SEEN_SETS = 1024, SEEN_WAYS = 8 };

struct seen_row {
	uint64_t key;	/* 0: free */
	uint64_t at_ns; /* of the latest; it is forgotten SEEN_NS later */
	uint64_t first_ns;
	uint64_t id;
	uint16_t arrivals; /* copies too */
	uint16_t originals;
	uint16_t given; /* to the app */
	uint16_t has_copy;
};

struct seen {
	uint64_t secret[2];
	uint64_t blind_until_ns;
	struct seen_row rows[SEEN_SETS * SEEN_WAYS];
};

/* Of the payload; the same at both hosts */
uint64_t seen_id(const struct datagram *d);
/* The row of a datagram that goes, or came (was is NULL: it was not seen). Its id is id. */
struct seen_row *seen_find(struct seen *s, const struct datagram *d, uint64_t id, bool goes,
			   uint64_t now_ns, uint64_t *key);
/* A new row, all 0 but for key, id and time; NULL: none is to be had. */
struct seen_row *seen_add(struct seen *s, uint64_t key, uint64_t id, uint64_t now_ns);

#endif /* DMM_SEEN_H */
