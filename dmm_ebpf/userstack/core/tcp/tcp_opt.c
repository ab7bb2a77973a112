/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_opt.c: what a segment reports in its options of what has come: SACK blocks (RFC 2018), and
 * how much came marked (RFC 9768).
 *
 * Both want the 28 bytes that timestamps leave. When the byte counters are due in a pure ACK they
 * get 8 at least, in place of the oldest SACK block, which other ACKs report. Payload is never made
 * shorter for either.
 */
#include "tcp_int.h"

/* Bytes that options may have beside those in seg and a payload of len bytes */
static uint32_t option_room(const struct env *env, const struct tcb *t, const struct wire_seg *seg,
			    uint32_t len)
{
	uint32_t used = wire_ip_len(tcb_ends(t)->f.pair.family) + WIRE_TCP_LEN + seg->opt_len + len;
	uint32_t mtu = tcp_mtu(env, t);

	return min_u32(WIRE_TCP_OPT_MAX - seg->opt_len, mtu - min_u32(used, mtu));
}

/* SACK blocks, as many as fit in left bytes; true: nothing was left out */
static bool put_sack(struct tcb *t, struct wire_seg *seg, uint32_t left)
{
	uint32_t max = left < 12 ? 0 : min_u32((left - 4) / 8, WIRE_MAX_SACK), n = 0;
	struct wire_sack out[WIRE_MAX_SACK];
	struct range r[WIRE_MAX_SACK];

	if (!(t->flags & TF_SACK) || (!t->ooo && !t->dsack_end))
		return true;
	if (!max)
		return false;
	if (t->dsack_end) {
		out[n].start = t->irs + (uint32_t)t->dsack_start;
		out[n++].end = t->irs + (uint32_t)t->dsack_end;
		t->dsack_end = 0;
	}
	if (t->ooo) {
		uint32_t got = ranges_report(t->ooo, r, max - n);

		for (uint32_t i = 0; i < got; i++) {
			out[n].start = t->irs + (uint32_t)r[i].start;
			out[n++].end = t->irs + (uint32_t)r[i].end;
		}
	}
	wire_opt_sack(seg, out, n);
	return true;
}

bool opt_plain(const struct env *env, const struct tcb *t, uint32_t len, uint64_t now_ns)
{
	struct wire_seg seg = {.opt_len = t->flags & TF_TS ? WIRE_OPT_TS_LEN : 0};

	if (t->ooo || t->dsack_end)
		return false;
	return !(t->flags & TF_ACCECN) || !accecn_option_due(t, now_ns) ||
	       option_room(env, t, &seg, len) < WIRE_ACCECN_MIN;
}

void opt_accecn(struct env *env, struct tcb *t, struct wire_seg *seg, uint32_t len,
		uint64_t dsack_start, uint64_t now_ns)
{
	if (t->flags & TF_ACCECN)
		accecn_option(t, seg, option_room(env, t, seg, len), dsack_start, now_ns);
}

bool opt_feedback(struct env *env, struct tcb *t, struct wire_seg *seg, uint32_t len,
		  uint64_t now_ns)
{
	uint64_t dsack_start = t->dsack_end ? t->dsack_start : 0;
	uint32_t room = option_room(env, t, seg, len), ts_len = seg->opt_len;
	bool whole;

	if (!len && accecn_option_due(t, now_ns))
		room -= WIRE_ACCECN_MIN;
	whole = put_sack(t, seg, room);
	if (!(t->flags & TF_ACCECN))
		return whole;
	accecn_ace(t, seg, !len && !(seg->flags & TH_FIN) && seg->opt_len == ts_len);
	if (!len)
		opt_accecn(env, t, seg, 0, dsack_start, now_ns);
	return whole;
}
