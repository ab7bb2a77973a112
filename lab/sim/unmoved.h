/* SPDX-License-Identifier: Apache-2.0 */
/*
 * unmoved.h: no state of a connection changes by a packet that is not acceptable: judged here,
 * apart from the core and in the words of the RFCs, before a packet goes in, and compared after. A
 * breach aborts.
 *
 * What may change all the same is named: counters; that an ACK is due (TF_ACK_NOW, the place on the
 * ready list, the time of the last limited answer, RFC 5961 section 7); for old data with an
 * acceptable ACK field the duplicate that this ACK reports (RFC 2883, and RFC 9768
 * section 3.2.3.2.2, which counts it); RSTs and ICMP errors to strangers; that a parked connection
 * is awake; that who is beyond the other leg is asked whether it is there (RFC 9293 section 3.8.4)
 * before the answer; by a packet from the inner leg, the way that the connection's packets take,
 * and what follows from another MTU of its device. That a peer repeats itself is noted, and makes
 * the core ask the app's kernel for the way; by another way than before an ACK is due again.
 */
#ifndef SIM_UNMOVED_H
#define SIM_UNMOVED_H

#include "check.h"

enum unmoved_verdict {
	MAY_CHANGE,
	ANSWER_ONLY,	/* an ACK at most */
	DUPLICATE_ONLY, /* an ACK at most, which may report it */
	SILENT,		/* not even an ACK */
};

struct unmoved_conn {
	struct legs l;
	uint64_t content; /* of what its pointers lead to */
	bool parked;
};

struct unmoved {
	enum unmoved_verdict verdict;
	uint32_t handle; /* that the packet is for */
	bool found;
	bool looked; /* v is filled */
	uint32_t leg;
	uint32_t n, cap;
	struct unmoved_conn *v;
	uint64_t globals;
};

static inline uint64_t unmoved_hash(uint64_t h, const void *data, size_t n)
{
	const uint8_t *p = data;

	for (; n >= 8; n -= 8, p += 8) {
		uint64_t w;

		memcpy(&w, p, 8);
		h = (h ^ w) * 0x9e3779b97f4a7c15ull;
		h ^= h >> 29;
	}
	while (n--)
		h = (h ^ *p++) * 0x100000001b3ull;
	return h;
}

static inline uint64_t unmoved_content(const struct tcb *t)
{
	const struct stream *st = &t->snd;
	uint64_t h = 1;

	if (t->fl) {
		h = unmoved_hash(h, t->fl, sizeof(*t->fl));
		for (uint32_t i = 0; i < t->fl->count; i++) {
			const struct seg *s = flight_seg(t->fl, flight_idx(t->fl, i));

			h = unmoved_hash(h, s, offsetof(struct seg, order) + sizeof(s->order));
		}
	}
	if (t->ooo) {
		h = unmoved_hash(h, t->ooo, sizeof(*t->ooo));
		h = unmoved_hash(h, t->ooo->v + t->ooo->first, t->ooo->n * sizeof(*t->ooo->v));
	}
	for (uint32_t i = 0; i < st->ring_cap && st->n_chunks; i++)
		h = unmoved_hash(h, &st->ring[i], sizeof(st->ring[i]));
	if (st->n_chunks == 1 && stream_held(st))
		h = unmoved_hash(h, st->ring[st->head / MEM_CHUNK_BYTES & (st->ring_cap - 1)],
				 MEM_CHUNK_BYTES);
	return h;
}

static inline void unmoved_copy(struct unmoved_conn *to, const struct dmm_core *core,
				const struct conn *c)
{
	memset(to, 0, sizeof(*to));
	to->parked = c->ends.f.phase == CONN_PARKED;
	legs_copy(&to->l, core, c);
	for (uint32_t l = 0; l < 2; l++) {
		struct tcb *t = leg_of(&to->l.c, l);

		to->content = to->content * 31 + unmoved_content(t);
		memset(&t->timer, 0, sizeof(t->timer));
	}
}

static inline uint64_t unmoved_globals(const struct dmm_core *core)
{
	uint64_t all[] = {core->n_live,	      core->n_half_open,	 core->n_time_wait,
			  core->env.rng,      core->env.mem.chunk_bytes, core->env.cookies_until_ns,
			  core->actions.count};

	return unmoved_hash(7, all, sizeof(all));
}

static inline const struct conn *unmoved_find(const struct dmm_core *core,
					      const struct dmm_core_addr_pair *pair)
{
	for (uint32_t i = 0; i < core->n_live; i++) {
		const struct conn *c = core->slots[core->live[i]];

		if (!memcmp(&c->ends.f.pair, pair, sizeof(*pair)))
			return c;
	}
	return NULL;
}

/* The pair of a packet that the leg's peer sent, or of one that an ICMP error quotes, which goes
 * the other way */
static inline void unmoved_pair(struct dmm_core_addr_pair *pair, const struct pkt *k,
				bool from_remote)
{
	memset(pair, 0, sizeof(*pair));
	memcpy(pair->laddr, from_remote ? k->daddr : k->saddr, 16);
	memcpy(pair->raddr, from_remote ? k->saddr : k->daddr, 16);
	pair->lport_be = from_remote ? k->dport_be : k->sport_be;
	pair->rport_be = from_remote ? k->sport_be : k->dport_be;
	pair->family = k->family;
	pair->proto = WIRE_PROTO_TCP;
}

/*
 * RFC 9293 section 3.10.7.4, first check, with Linux's tolerance: the left edge is what our
 * last ACK said
 */
static inline bool unmoved_in_window(const struct tcb *t, const struct pkt *k)
{
	int64_t off = (int32_t)(k->seq - (t->irs + (uint32_t)t->rcv_nxt));
	int64_t len = (int64_t)k->payload_len + !!(k->flags & TH_SYN) + !!(k->flags & TH_FIN);

	return off + len >= -(int64_t)(t->rcv_nxt - t->last_ack_sent) &&
	       off <= (int64_t)(t->rcv_adv - t->rcv_nxt);
}

/* RFC 5961 section 5.2 */
static inline bool unmoved_ack_ok(const struct tcb *t, const struct pkt *k)
{
	int64_t off = (int32_t)(k->ack - (t->iss + (uint32_t)t->snd_una));

	return off <= (int64_t)(t->snd_nxt - t->snd_una) && off >= -(int64_t)t->max_wnd;
}

/* RFC 7323 sections 3.2, 5.3 and 5.5 */
static inline bool unmoved_ts_ok(const struct tcb *t, const struct pkt *k, uint64_t now_ns)
{
	if (!(t->flags & TF_TS) || (k->flags & TH_RST))
		return true;
	if (!k->has_ts)
		return false;
	return k->tsval - t->ts_recent < 1u << 31 ||
	       now_ns / NS_PER_S - t->ts_recent_s > 24 * 86400;
}

/* Parity of those who have agreed on it stands where data stood, within a window's length */
static inline bool unmoved_parity(const struct dmm_core *core, const struct tcb *t,
				  const struct pkt *k)
{
	int32_t back = (int32_t)(t->irs + (uint32_t)t->rcv_nxt - k->seq);

	return t->leg == DMM_LEG_OUTER && k->n_agree == 1 && k->agree.role == WIRE_AGREE_PARITY &&
	       wire_parity_bears(&k->agree) && (agree_features(t) & DMM_FEATURE_FEC) &&
	       back >= (int32_t)k->payload_len && back < (int64_t)tcp_rcv_limit(&core->env, t) &&
	       !(k->flags & (TH_SYN | TH_FIN | TH_RST));
}

static inline enum unmoved_verdict unmoved_refused(const struct dmm_core *core, const struct tcb *t,
						   const struct pkt *k)
{
	int32_t back = (int32_t)(t->irs + (uint32_t)t->rcv_nxt - k->seq);

	if (k->flags & TH_RST)
		return SILENT;
	if ((k->flags & (TH_SYN | TH_ACK)) != TH_ACK || !k->payload_len || !unmoved_ack_ok(t, k))
		return ANSWER_ONLY;
	return back >= (int32_t)k->payload_len && back <= (int64_t)tcp_rcv_limit(&core->env, t)
		       ? DUPLICATE_ONLY
		       : ANSWER_ONLY;
}

/* The RST that ends a connection: exact (RFC 5961 section 3.2), in the window on the inner leg */
static inline enum unmoved_verdict unmoved_rst(const struct tcb *t, const struct pkt *k)
{
	uint32_t next = t->irs + (uint32_t)t->rcv_nxt;
	bool exact = k->seq == next || ((t->flags & TF_FIN_RCVD) && k->seq == next - 1);

	if (t->state == TCP_TIME_WAIT || (!exact && !unmoved_in_window(t, k)))
		return SILENT;
	return exact || t->leg == DMM_LEG_INNER ? MAY_CHANGE : ANSWER_ONLY;
}

static inline enum unmoved_verdict unmoved_synchronized(const struct dmm_core *core,
							const struct tcb *t, const struct pkt *k,
							uint64_t now_ns)
{
	bool syn_ack_again = k->seq == t->irs && (!(k->flags & TH_ACK) || k->ack == t->iss + 1);

	if (!unmoved_ts_ok(t, k, now_ns))
		return unmoved_refused(core, t, k);
	if (k->flags & TH_RST)
		return unmoved_rst(t, k);
	if (!unmoved_in_window(t, k) && !unmoved_parity(core, t, k))
		return unmoved_refused(core, t, k);
	if (k->flags & TH_SYN)
		return syn_ack_again ? MAY_CHANGE : ANSWER_ONLY;
	if (!(k->flags & TH_ACK))
		return SILENT;
	return unmoved_ack_ok(t, k) ? MAY_CHANGE : ANSWER_ONLY;
}

static inline enum unmoved_verdict unmoved_syn_sent(const struct tcb *t, const struct pkt *k)
{
	/* the app's kernel answers for an old connection: the SYN comes once more */
	if (t->leg == DMM_LEG_INNER && !(t->flags & TF_SYN_RTX) &&
	    (k->flags & (TH_ACK | TH_SYN | TH_RST)) == TH_ACK)
		return MAY_CHANGE;
	if (k->flags & TH_ACK)
		return k->ack == t->iss + 1 && t->snd_nxt && (k->flags & (TH_SYN | TH_RST))
			       ? MAY_CHANGE
			       : SILENT;
	return k->flags & TH_SYN ? MAY_CHANGE : SILENT;
}

/* opener: our SYN came first, the peer's only might be one */
static inline enum unmoved_verdict unmoved_syn_recv(const struct dmm_core *core,
						    const struct tcb *t, bool opener,
						    const struct pkt *in, uint64_t now_ns)
{
	bool held = t->flags & TF_HOLD,
	     acked = (in->flags & TH_ACK) && in->ack == t->iss + 1 && t->snd_nxt;
	struct pkt k = *in;
	enum unmoved_verdict v;

	if ((k.flags & (TH_SYN | TH_ACK)) == TH_SYN &&
	    (k.seq == t->irs || (held && t->leg == DMM_LEG_INNER)))
		return MAY_CHANGE;
	if (opener && acked && (k.flags & (TH_SYN | TH_RST)))
		return MAY_CHANGE;
	if (opener && (k.flags & (TH_RST | TH_ACK)) == (TH_RST | TH_ACK))
		return SILENT;
	if ((k.flags & TH_SYN) && k.seq == t->irs && t->snd_nxt) {
		k.flags &= (uint16_t)~TH_SYN;
		k.seq++;
	}
	v = unmoved_synchronized(core, t, &k, now_ns);
	if (v != MAY_CHANGE || (k.flags & (TH_RST | TH_SYN)))
		return v;
	return acked && !held ? MAY_CHANGE : SILENT;
}

/* RFC 9293 section 3.6.1, RFC 6191: a SYN that may open a connection in the place of this one */
static inline bool unmoved_may_reopen(const struct conn *c, uint32_t leg, const struct pkt *k)
{
	const struct tcb *inner = leg_of(c, DMM_LEG_INNER), *outer = leg_of(c, DMM_LEG_OUTER);
	int32_t later = (int32_t)(k->tsval - outer->ts_recent);
	bool beyond = (int32_t)(k->seq - outer->irs - (uint32_t)outer->rcv_nxt) > 0;

	if ((k->flags & (TH_SYN | TH_ACK)) != TH_SYN)
		return false;
	if (inner->state != TCP_CLOSE && inner->state != TCP_TIME_WAIT)
		return false;
	if (leg == DMM_LEG_INNER || outer->state == TCP_CLOSE)
		return true;
	if (outer->state != TCP_TIME_WAIT)
		return false;
	return !k->has_ts ? beyond : !(outer->flags & TF_TS) || later > 0 || (!later && beyond);
}

static inline enum unmoved_verdict unmoved_tcp(const struct dmm_core *core, const struct conn *c,
					       uint32_t leg, const struct pkt *k, uint64_t now_ns)
{
	const struct tcb *t = leg_of(c, leg);

	if (unmoved_may_reopen(c, leg, k))
		return MAY_CHANGE;
	if (t->state == TCP_CLOSE)
		return SILENT;
	if (t->state == TCP_TIME_WAIT && leg == DMM_LEG_INNER &&
	    (k->flags & (TH_SYN | TH_ACK)) == TH_SYN)
		return SILENT;
	if (t->state == TCP_SYN_SENT)
		return unmoved_syn_sent(t, k);
	/* the app's kernel, whose handshake waits for the peer's, answers once more */
	if (leg == DMM_LEG_INNER && (t->flags & TF_HOLD) && t->state == TCP_ESTABLISHED &&
	    (k->flags & (TH_SYN | TH_ACK | TH_RST)) == (TH_SYN | TH_ACK) && k->seq == t->irs &&
	    k->ack == t->iss + 1)
		return MAY_CHANGE;
	if (t->state == TCP_SYN_RECV)
		return unmoved_syn_recv(core, t, !c->ends.f.passive == (leg == DMM_LEG_OUTER), k,
					now_ns);
	return unmoved_synchronized(core, t, k, now_ns);
}

/* RFC 5927: only what quotes a segment that is on the way */
static inline enum unmoved_verdict unmoved_icmp(const struct conn *c, uint32_t leg,
						const struct pkt *k)
{
	const struct tcb *t = leg_of(c, leg);
	bool asked = t->snd_nxt && !t->snd_una && k->seq == t->iss;
	bool on_the_way = k->seq - t->iss - (uint32_t)t->snd_una <= t->snd_nxt - t->snd_una;

	if (k->icmp != ICMP_KIND_TOO_BIG && t->phase == END_OPEN && on_the_way &&
	    leg_of(c, leg ^ 1)->phase == END_OPEN) /* it is passed on */
		return leg == DMM_LEG_OUTER || k->icmp == ICMP_KIND_UNREACH ? MAY_CHANGE : SILENT;
	if (leg == DMM_LEG_INNER && k->icmp != ICMP_KIND_TOO_BIG)
		return c->ends.f.passive && asked && t->state == TCP_SYN_SENT &&
				       k->icmp == ICMP_KIND_UNREACH
			       ? MAY_CHANGE
			       : SILENT;
	if (k->icmp != ICMP_KIND_TOO_BIG)
		return asked && !c->ends.f.passive && t->state != TCP_CLOSE ? MAY_CHANGE : SILENT;
	for (uint32_t i = 0; t->fl && i < t->fl->count; i++) {
		if (t->iss + (uint32_t)flight_seg(t->fl, flight_idx(t->fl, i))->seq == k->seq)
			return MAY_CHANGE;
	}
	return SILENT;
}

static inline enum unmoved_verdict unmoved_judge(const struct dmm_core *core, uint32_t leg,
						 const uint8_t *p, uint32_t len, bool csum_ok,
						 uint64_t now_ns, uint32_t *handle, bool *found)
{
	struct dmm_core_addr_pair pair;
	const struct conn *c;
	struct pkt k;
	enum wire_result what = wire_parse(p, len, !csum_ok, &k);
	bool outer = leg == DMM_LEG_OUTER;

	*found = false;
	if (what != WIRE_TCP && what != WIRE_ICMP)
		return SILENT;
	unmoved_pair(&pair, &k, (what == WIRE_TCP) == outer);
	c = unmoved_find(core, &pair);
	if (!c) {
		bool syn = (k.flags & (TH_SYN | TH_ACK)) == TH_SYN;

		return what == WIRE_TCP && (syn || now_ns < core->env.cookies_until_ns) ? MAY_CHANGE
											: SILENT;
	}
	*found = true;
	*handle = c->ends.f.handle;
	c = conn_look(core, c);
	return what == WIRE_TCP ? unmoved_tcp(core, c, leg, &k, now_ns) : unmoved_icmp(c, leg, &k);
}

static inline bool unmoved_device(const struct unmoved *u, const struct dmm_core *core,
				  const struct dmm_rx_meta *meta)
{
	return u->found && u->leg == DMM_LEG_INNER && meta && meta->mtu &&
	       meta->mtu != core->slots[u->handle & ((1u << HANDLE_SLOT_BITS) - 1)]->ends.f.mtu_dev;
}

static inline void unmoved_before(struct unmoved *u, const struct dmm_core *core, uint32_t leg,
				  const uint8_t *p, uint32_t len, const struct dmm_rx_meta *meta,
				  uint64_t now_ns)
{
	u->leg = leg;
	u->n = 0;
	u->verdict = unmoved_judge(core, leg, p, len, meta && meta->vnet.flags, now_ns, &u->handle,
				   &u->found);
	u->looked = u->verdict != MAY_CHANGE && !unmoved_device(u, core, meta);
	if (!u->looked)
		return;
	if (u->cap < core->n_live) {
		u->cap = core->n_live;
		u->v = realloc(u->v, u->cap * sizeof(*u->v));
		CHECK(u->v);
	}
	for (; u->n < core->n_live; u->n++)
		unmoved_copy(&u->v[u->n], core, core->slots[core->live[u->n]]);
	u->globals = unmoved_globals(core);
}

static inline void unmoved_allow_flag(const struct conn *was, struct conn *is, uint32_t leg,
				      uint32_t flag)
{
	struct tcb *t = leg_of(is, leg);

	t->flags = (t->flags & ~flag) | (leg_of(was, leg)->flags & flag);
}

static inline void unmoved_allow_probe(const struct conn *was, struct conn *is, uint32_t leg)
{
	leg_of(is, leg)->owed = leg_of(was, leg)->owed;
	unmoved_allow_flag(was, is, leg ^ 1, TF_PROBE_DUE);
}

/* What an answer may change, made equal */
static inline void unmoved_allow(const struct unmoved *u, struct unmoved_conn *was,
				 struct unmoved_conn *is)
{
	struct tcb *a = leg_of(&was->l.c, u->leg), *b = leg_of(&is->l.c, u->leg);
	struct outer *outer = &is->l.outer.outer;

	if (u->leg == DMM_LEG_INNER && is->l.c.ends.link != was->l.c.ends.link) {
		is->l.c.ends.link = was->l.c.ends.link;
		if (was->l.outer.outer.again_ms)
			unmoved_allow_flag(&was->l.c, &is->l.c, DMM_LEG_OUTER, TF_ACK_NOW);
	}
	if (u->verdict == SILENT)
		return;
	b->flags = (b->flags & ~(uint32_t)TF_ACK_NOW) | (a->flags & TF_ACK_NOW);
	unmoved_allow_probe(&was->l.c, &is->l.c, u->leg);
	if (u->leg == DMM_LEG_OUTER) {
		outer->challenge_ms = was->l.outer.outer.challenge_ms;
		outer->again_ms = was->l.outer.outer.again_ms;
	}
	if (u->verdict != DUPLICATE_ONLY)
		return;
	b->dsack_start = a->dsack_start;
	b->dsack_end = a->dsack_end;
	if (b->flags & TF_ACCECN)
		outer->accecn.flags = (uint8_t)((outer->accecn.flags & ~ACC_OPT_OFF) |
						(was->l.outer.outer.accecn.flags & ACC_OPT_OFF));
}

static inline void unmoved_compare(const struct unmoved *u, struct unmoved_conn *was,
				   struct unmoved_conn *is)
{
	bool target = u->found && was->l.c.ends.f.handle == u->handle;
	const uint8_t *a = (const uint8_t *)&was->l, *b = (const uint8_t *)&is->l;
	size_t at;

	if (target)
		unmoved_allow(u, was, is);
	if (was->parked && !is->parked) { /* a timer looks whether it can be parked again */
		is->l.outer.t.keep_ns = was->l.outer.t.keep_ns;
		is->l.c.ends.f.phase = was->l.c.ends.f.phase;
	}
	/* an answer waits there, or is only a place further back */
	for (uint32_t l = 0; l < 2; l++)
		memset(&leg_of(&is->l.c, l)->ready, 0, sizeof(struct list));
	for (uint32_t l = 0; l < 2; l++)
		memset(&leg_of(&was->l.c, l)->ready, 0, sizeof(struct list));
	memset(&is->l.c.queued, 0, sizeof(is->l.c.queued));
	memset(&was->l.c.queued, 0, sizeof(was->l.c.queued));
	for (at = 0; at < sizeof(was->l) && a[at] == b[at]; at++)
		;
	if (at == sizeof(was->l) && was->content == is->content)
		return;
	fprintf(stderr,
		"unmoved: a refused packet on leg %u (state %u) changed a connection: byte %zu of "
		"struct "
		"conn%s\n",
		u->leg, leg_of(&was->l.c, u->leg)->state, at,
		at == sizeof(was->l) ? " (what it points to)" : "");
	if (at >= offsetof(struct legs, inner))
		fprintf(stderr, "unmoved: byte %zu of the inner end, or %zd of the outer one\n",
			at - offsetof(struct legs, inner),
			(ptrdiff_t)(at - offsetof(struct legs, outer)));
	abort();
}

static inline void unmoved_after(struct unmoved *u, const struct dmm_core *core)
{
	static struct unmoved_conn is;

	if (!u->looked)
		return;
	CHECK(unmoved_globals(core) == u->globals);
	CHECK(core->n_live == u->n);
	for (uint32_t i = 0; i < u->n; i++) {
		unmoved_copy(&is, core, core->slots[core->live[i]]);
		unmoved_compare(u, &u->v[i], &is);
	}
}

/* dmm_core_input(), watched. Returns what the packet was allowed to do. */
static inline enum unmoved_verdict unmoved_input(struct dmm_core *core, uint32_t leg,
						 const uint8_t *p, uint32_t len,
						 const struct dmm_rx_meta *meta, uint64_t now_ns)
{
	static struct unmoved u;

	unmoved_before(&u, core, leg, p, len, meta, now_ns);
	/* of a packet put together, too far from the window, the last segments may be near it; of
	 * one without ACK, which nobody answers in the window, the first may be before it */
	if (meta && meta->vnet.gso_type && u.verdict != MAY_CHANGE)
		u.verdict = u.verdict == SILENT ? ANSWER_ONLY : DUPLICATE_ONLY;
	dmm_core_input(core, leg, p, len, meta, now_ns);
	unmoved_after(&u, core);
	return u.verdict;
}

#endif /* SIM_UNMOVED_H */
