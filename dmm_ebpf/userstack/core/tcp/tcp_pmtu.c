/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_pmtu.c: the path MTU, first of the outer leg: the device's and the route's, ICMP (RFC 1191,
 * RFC 8201) and, for paths that drop long packets without a word, black-hole detection (RFC 4821,
 * RFC 8899).
 *
 * Each packet from this host's kernel says the MTU of the device that it would have gone by, and
 * the path MTU follows, down and up. A route that allows less than its device shows in the MSS that
 * the kernel offers. Neither that nor what a router said is exceeded later. What a firewall of this
 * host's writes into the SYN or SYN-ACK that the kernel gets shows in the segments that it cuts.
 *
 * Two timeouts in a row of a full-size segment shorten the segments, in steps. A path that was
 * merely dead looks the same: so as soon as something has passed again, one segment of the old size
 * goes as a probe, later ones after PROBE_MIN_S, doubled up to PROBE_MAX_S. A probe that arrives
 * brings the old MTU back; one that is lost is cut and sent again, and the congestion control is
 * told that it was for nothing.
 *
 * The inner leg has one as well where the app is behind this host, which forwards: a device or a
 * router on the way to it may take less. ICMP alone tells of it, sent to the peer; it is kept from
 * going there, since the peer's segments are not those that are too long.
 *
 * Invariants: conn.mtu <= conn.mtu_dev, unless a device's least MTU is larger, and <=
 * conn.mtu_most, unless a path's is; equal but for a black hole; outer.mtu_full != 0 only while a
 * black hole is suspected, and is then larger than conn.mtu; at most one segment with SEG_PROBE is
 * in flight; nothing else is longer than the MTU.
 */
#include "tcp_int.h"
#include "tcp_parity.h"

enum { HOLE_STEP_V4 = 1260, HOLE_LEAST_V4 = 576, PROBE_MIN_S = 30, PROBE_MAX_S = 600 };

uint32_t pmtu_of_device(const struct env *env, uint8_t family, uint32_t mtu)
{
	return wire_link_mtu(family, mtu ? mtu : env->cfg.inner_mtu);
}

/* mtu as the path's: no less than every path has, no more than the device takes */
static uint16_t path_mtu(const struct ends *e, uint32_t mtu)
{
	uint8_t family = e->f.pair.family;

	return (uint16_t)min_u32(wire_path_mtu(family, mtu), wire_link_mtu(family, e->f.mtu_dev));
}

/* Next lower of RFC 1191's plateaus, for routers that do not tell the MTU */
static uint32_t plateau(uint32_t mtu)
{
	static const uint16_t steps[] = {8166, 4352, 2002, 1492, 1280, 1006, 576};

	for (uint32_t i = 0; i < sizeof(steps) / sizeof(*steps); i++) {
		if (steps[i] < mtu)
			return steps[i];
	}
	return WIRE_MTU_MIN_V4;
}

static void change(struct env *env, struct tcb *t, uint16_t mtu)
{
	tcb_ends(t)->f.mtu = mtu;
	tcp_set_mss(env, t);
	tcb_outer(t)->cc.mss = t->mss;
}

/* true: it is smaller than before */
static bool shrink(struct env *env, struct tcb *t, uint32_t mtu)
{
	const struct ends *e = tcb_ends(t);
	uint16_t less = path_mtu(e, mtu);

	if (less >= e->f.mtu)
		return false;
	change(env, t, less);
	tcb_outer(t)->mtu_probing = 0; /* a probe in flight is cut with the rest */
	if (t->fl && flight_resegment(&env->mem, t->fl, t->mss)) {
		t->flags |= TF_FORCE_RTX;
		tcp_ready(env, t);
	}
	return true;
}

void pmtu_follow(struct env *env, struct tcb *t)
{
	const struct ends *e = tcb_ends(t);
	struct outer *o = tcb_outer(t);
	uint16_t mtu = path_mtu(e, e->f.mtu_most);

	if (o->mtu_full && mtu > e->f.mtu) {
		o->mtu_full = mtu; /* a probe finds out */
		return;
	}
	o->mtu_full = 0;
	if (mtu > e->f.mtu)
		change(env, t, mtu);
	else
		shrink(env, t, mtu);
}

void pmtu_device(struct env *env, struct ends *e, uint32_t mtu)
{
	e->f.mtu_dev = (uint16_t)mtu;
	ends_path(env, e, END_PATH_MTU);
}

void pmtu_route(struct env *env, struct ends *e, uint32_t mss)
{
	uint32_t mtu = mss + wire_ip_len(e->f.pair.family) + WIRE_TCP_LEN;

	if (mtu >= e->f.mtu_dev)
		return;
	if (mtu < path_mtu(e, mtu))
		e->mss_most = (uint16_t)max_u64(mss, TCP_MIN_MSS);
	e->f.mtu_most = (uint16_t)min_u32(e->f.mtu_most, mtu);
	ends_path(env, e, END_PATH_MTU);
}

void pmtu_app_segment(struct env *env, struct ends *e, uint32_t bytes)
{
	e->app_segment = (uint16_t)bytes;
	ends_path(env, e, END_PATH_SEGMENT);
}

void pmtu_follow_segment(struct env *env, struct tcb *t)
{
	uint16_t before = t->mss;

	change(env, t, tcb_ends(t)->f.mtu);
	if (t->fl && t->mss < before && flight_resegment(&env->mem, t->fl, t->mss))
		tcb_outer(t)->mtu_probing = 0;
}

/* What of a packet is no payload */
static uint32_t headers_len(const struct tcb *t)
{
	if (tcb_is_outer(t))
		return tcb_ends(t)->f.mtu - t->mss;
	return wire_ip_len(tcb_ends(t)->f.pair.family) + WIRE_TCP_LEN +
	       (t->flags & TF_TS ? WIRE_OPT_TS_LEN : 0u);
}

/* Whether a segment that begins at seq is in flight and longer than mtu: a router quotes what it
 * could not pass on, and who has not seen it does not guess where it begins (RFC 5927 section 7).
 * What went as one to be cut on its way begins at each piece. */
static bool was_too_big(const struct tcb *t, uint64_t seq, uint32_t mtu)
{
	uint32_t nth = t->fl ? flight_lower_bound(t->fl, seq + 1) : 0, len;
	const struct seg *s;

	if (!nth)
		return false;
	s = flight_seg(t->fl, flight_idx(t->fl, nth - 1));
	len = s->len - !!(s->flags & SEG_FIN);
	if (seq - s->seq >= len || (seq - s->seq) % t->mss)
		return false;
	return headers_len(t) + (uint32_t)(len - (seq - s->seq)) > mtu;
}

static void app_too_big(struct env *env, struct tcb *t, uint64_t seq, uint32_t mtu)
{
	struct ends *e = tcb_ends(t);
	uint32_t now = headers_len(t) + t->mss;
	uint16_t path = wire_path_mtu(e->f.pair.family, mtu ? mtu : plateau(now));

	if (path >= now || !was_too_big(t, seq, path))
		return;
	e->app_path = path;
	tcp_set_mss(env, t);
	if (flight_resegment(&env->mem, t->fl, t->mss)) {
		t->flags |= TF_FORCE_RTX;
		tcp_ready(env, t);
	}
}

void pmtu_too_big(struct env *env, struct tcb *t, uint64_t seq, uint32_t mtu)
{
	struct ends *e = tcb_ends(t);

	if (!tcb_is_outer(t)) {
		app_too_big(env, t, seq, mtu);
		return;
	}
	if (!mtu)
		mtu = plateau(e->f.mtu);
	if (!was_too_big(t, seq, mtu) || !shrink(env, t, mtu))
		return;
	tcb_outer(t)->mtu_full = 0; /* a router that tells is better than a guess */
	e->f.mtu_most = (uint16_t)min_u32(e->f.mtu_most, e->f.mtu);
}

/* As long as segments are made; where the ends have agreed some leave room for an option or parity
 */
static bool is_full(const struct tcb *t, const struct seg *s)
{
	uint32_t spare = tcb_is_outer(t) && agree_features(t) ? PARITY_EXTRA : 0;

	return s->len + spare >= t->mss;
}

void pmtu_on_timeout(struct env *env, struct tcb *t)
{
	struct ends *e = tcb_ends(t);
	struct outer *o = tcb_outer(t);
	uint32_t old = e->f.mtu, next = WIRE_MTU_MIN_V6;

	if (e->f.pair.family == WIRE_AF_INET)
		next = old > HOLE_STEP_V4 ? HOLE_STEP_V4 : HOLE_LEAST_V4;
	if (t->retries < 2 || t->retries % 2 || !is_full(t, flight_seg(t->fl, t->fl->head)))
		return;
	if (!shrink(env, t, next))
		return;
	env->counters[DMM_CORE_MTU_HOLES]++;
	if (!o->mtu_full)
		o->mtu_full = (uint16_t)old;
	o->mtu_probe_ns = 0;
	o->mtu_probe_wait_s = PROBE_MIN_S;
}

/* Payload of a probe that may go now; 0: none */
uint32_t pmtu_probe_len(const struct env *env, const struct tcb *t, uint32_t cap, uint64_t now_ns)
{
	const struct ends *e = tcb_ends(t);
	const struct outer *o = tcb_outer(t);
	uint64_t room = t->snd_una + t->snd_wnd;
	uint32_t len;

	if (!tcb_is_outer(t) || !o->mtu_full || o->mtu_probing || now_ns < o->mtu_probe_ns)
		return 0;
	if ((t->flags & (TF_RECOVERY | TF_FIN_SENT)) || cap < o->mtu_full)
		return 0;
	len = t->mss + o->mtu_full - e->f.mtu;
	if (len > tcp_peer_takes(env, t) || t->snd.tail + 1 < t->snd_nxt + 4ull * len ||
	    room < t->snd_nxt + len)
		return 0; /* a few segments behind it let its loss show */
	return len;
}

void pmtu_probe_sent(struct tcb *t)
{
	flight_seg(t->fl, flight_idx(t->fl, t->fl->count - 1))->flags |= SEG_PROBE;
	tcb_outer(t)->mtu_probing = 1;
}

void pmtu_probe_arrived(struct env *env, struct tcb *t)
{
	struct outer *o = tcb_outer(t);

	o->mtu_probing = 0;
	if (!o->mtu_full)
		return;
	change(env, t, o->mtu_full);
	o->mtu_full = 0;
}

/* false: no memory, it stays whole */
bool pmtu_probe_lost(struct env *env, struct tcb *t, struct seg *s, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	bool alone = t->fl->lost_bytes == s->len && (t->flags & TF_RECOVERY) && !o->undo_timeout;

	s->flags &= (uint16_t)~SEG_PROBE;
	if (!flight_resegment(&env->mem, t->fl, t->mss)) {
		s->flags |= SEG_PROBE;
		return false;
	}
	o->mtu_probing = 0;
	o->mtu_probe_ns = now_ns + o->mtu_probe_wait_s * NS_PER_S;
	o->mtu_probe_wait_s = (uint16_t)min_u32(2u * o->mtu_probe_wait_s, PROBE_MAX_S);
	if (alone && o->undo_una)
		undo_reduction(env, t, now_ns);
	return true;
}
