/* SPDX-License-Identifier: Apache-2.0 */
/* window.c: see window.h */
#include "window.h"

#include "legs.h"
#include "params.h"
#include "path.h"

/* Bytes that it holds out of order */
static uint64_t held_ooo(const struct tcb *t)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; t->ooo && i < t->ooo->n; i++)
		sum += t->ooo->v[t->ooo->first + i].end - t->ooo->v[t->ooo->first + i].start;
	return sum;
}

/*
 * tcp_rcvbuf_grow() makes room for twice what the program read in a round trip, more when that has
 * grown, and for what waits out of order; tcp_grow_window() lets the window follow by two bytes for
 * each that arrives, as far as the free room goes.
 */
void window_as_linux(const struct dmm_core *core, uint8_t *p, uint32_t len)
{
	static uint64_t edge, room, mark_ns, mark_ack, arrived, space = 14480, threshold;
	uint32_t ip = p[0] >> 4 == 4 ? 20 : 40;
	uint64_t ack, held, extent, copied, want, left;
	const struct tcb *t;
	struct pkt k;

	if (!P.linux_window || !core->n_live || wire_parse(p, len, false, &k) != WIRE_TCP ||
	    k.flags & (TH_SYN | TH_RST))
		return;
	t = leg_of(core->slots[core->live[0]], DMM_LEG_OUTER);
	ack = t->rcv_nxt;
	held = held_ooo(t);
	extent = held ? t->ooo->v[t->ooo->first + t->ooo->n - 1].end - ack : 0;
	room = max_u64(max_u64(room, P.linux_window / 2), 2 * space + extent);
	if (now - mark_ns >= 2 * P.delay_ns) {
		copied = ack - mark_ack;
		if (copied > space) {
			want = 2 * copied + 4 * copied * (copied - space) / space;
			room = max_u64(room, want + extent);
			space = copied;
		}
		mark_ns = now;
		mark_ack = ack;
	}
	left = room > held ? room - held : 0;
	threshold =
		max_u64(max_u64(threshold, P.linux_window / 2),
			min_u64(threshold + 2 * (ack + held - min_u64(arrived, ack + held)), left));
	arrived = ack + held;
	edge = max_u64(edge, ack + min_u64(threshold, left));
	put_be16(p + ip + 14,
		 (uint16_t)min_u64((edge - ack) >> t->rcv_wscale, get_be16(p + ip + 14)));
	path_mend_csum(p, len);
}
