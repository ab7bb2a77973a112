/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_inner.c: how fast a recovery sends on the inner leg.
 *
 * The kernel is near and has its window, so the inner leg has no congestion control. But once
 * something is lost there, what it lost may be a whole window, sent again and again: by a peer that
 * keeps nothing out of order, or has no room. So a loss leaves a window of what is still on the
 * way, one segment after a timeout, and what arrives lets it grow as slow start would (RFC 5681
 * section 3.1) until the recovery is over.
 *
 * Invariants: the window lives in the flight and ends with it or with the recovery; one segment may
 * always be on the way; without loss nothing here holds anything back. Duplicate ACKs let nothing
 * out: such a peer sends one for each segment that it throws away.
 */
#include "tcp_int.h"

void inner_lost(struct tcb *t, uint64_t acked_bytes)
{
	struct flight *fl = t->fl;
	uint64_t next = fl && fl->lost.head != FLIGHT_NIL ? flight_seg(fl, fl->lost.head)->len : 1;

	if (fl)
		fl->loss_window_bytes = max_u64(fl->inflight_bytes + acked_bytes, next);
}

void inner_acked(struct tcb *t, uint64_t acked_bytes)
{
	if (t->fl && t->fl->loss_window_bytes)
		t->fl->loss_window_bytes += acked_bytes;
}

void inner_recovered(struct tcb *t)
{
	if (t->fl)
		t->fl->loss_window_bytes = 0;
}

bool inner_allows(const struct tcb *t, uint32_t len)
{
	const struct flight *fl = t->fl;

	if (!fl || !fl->loss_window_bytes || !fl->inflight_bytes)
		return true;
	return fl->inflight_bytes + len <= fl->loss_window_bytes;
}
