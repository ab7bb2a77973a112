/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_core.c: libFuzzer target for a whole core.
 *
 * The input is a program: packets on both legs, by ways and devices that change, time, refused
 * claims. Packets are made relative to what the core said last (so that they are acceptable often),
 * then bent by the input; some are an outsider's, with numbers that the input makes up, some raw
 * bytes. Checked after each step: the core's invariants (check.h), that no packet that is not
 * acceptable changed anything (unmoved.h), and that everything the core sends is a well-formed
 * packet with a right checksum. At the end each open connection must still take what its peer would
 * send next: a stall is a fault.
 */
#include "../fuzz/fuzz.h"
#include "fec/repair.h"
#include "pull.h"
#include "unmoved.h"

enum { TUPLES = 3, MAX_STEPS = 400, MAX_OUT = 20000 };

/* What the core's peer on one leg of one tuple knows */
struct view {
	uint32_t seq, ack; /* what we would send next, what we have */
	uint8_t flags;
	bool ts;
	uint32_t tsval, tsecr;
	bool said_ts;
	uint32_t said; /* the newest timestamp in what was acceptable */
};

static struct view views[TUPLES][2];
static bool cuts;    /* the outer leg's device does */
static uint32_t mtu; /* of the outer leg's device */
static uint8_t buf[65536 + 64];

static void tuple_addr(uint32_t tuple, uint32_t who, uint8_t *a)
{
	memset(a, 0, 16);
	if (tuple == 2) {
		a[0] = 0x20;
		a[1] = 1;
	} else {
		a[10] = a[11] = 0xff;
		a[12] = 10;
	}
	a[15] = (uint8_t)(1 + who);
}

/* A packet of the leg's peer; who 0 is this host */
static void tuple_dir(uint32_t tuple, uint32_t leg, struct wire_dir *d, uint8_t addr[2][16])
{
	tuple_addr(tuple, leg, addr[0]);
	tuple_addr(tuple, !leg, addr[1]);
	*d = (struct wire_dir){.saddr = addr[0], .daddr = addr[1], .family = tuple == 2 ? 10 : 2};
	d->sport_be = (uint16_t)(leg ? 0x5000 : 0x1027 + tuple);
	d->dport_be = (uint16_t)(leg ? 0x1027 + tuple : 0x5000);
}

/* The connection whose packets go in direction d to leg */
static void pair_of(struct dmm_core_addr_pair *pair, const struct wire_dir *d, uint32_t leg)
{
	struct pkt k = {.family = d->family, .sport_be = d->sport_be, .dport_be = d->dport_be};

	memcpy(k.saddr, d->saddr, 16);
	memcpy(k.daddr, d->daddr, 16);
	unmoved_pair(pair, &k, leg == DMM_LEG_OUTER);
}

/*
 * The option by which stacks agree, as right as the input wants it: the nonce is what the
 * connection knows, the check value as tcp_agree.c says
 */
static void agree(struct input *in, const struct dmm_core *core,
		  const struct dmm_core_addr_pair *pair, struct wire_seg *s)
{
	const struct conn *c = unmoved_find(core, pair);
	uint32_t what = take(in, 1), nonce = 90;
	struct wire_agree said = {.role = what & 3,
				  .version = what & 64 ? what >> 6 : WIRE_AGREE_VERSION,
				  .features = what & 32 ? what >> 2 & 15
							: DMM_FEATURE_COPIES | DMM_FEATURE_FEC};

	if (c && c->ends.f.phase != CONN_PARKED)
		nonce = outer_of(c)->agree.nonce;
	if (said.role != WIRE_AGREE_OFFER)
		nonce = (nonce << 8 | (uint32_t)said.role << 4 | said.features) * 0x9e3779b1u >> 24;
	said.value = (uint8_t)(what & 16 ? take(in, 1) : nonce);
	if (s->opt_len + WIRE_AGREE_LEN <= WIRE_TCP_OPT_MAX)
		wire_opt_agree(s, &said);
}

/* Parity of a stream of zeros, as right as the input wants it */
static uint32_t parity(struct input *in, struct wire_seg *s, uint8_t *payload)
{
	static const uint8_t zeros[FEC_SYMBOL];
	uint32_t what = take(in, 1), n;
	uint64_t sum = 0;
	struct fec_header h = {.first = take(in, 1),
			       .place = take(in, 2),
			       .seed = take(in, 1),
			       .symbol_bytes = (uint16_t)(64 + (what & 7) * 100)};

	for (uint32_t r = 0; r <= what >> 5 && r < FEC_RUNS; r++)
		h.run[r] = (uint16_t)(take(in, 1) * 8);
	n = fec_header_symbols(&h);
	for (uint32_t i = 0; i < n && i < FEC_WINDOW; i++)
		sum += fec_hash(h.first + i, zeros, h.symbol_bytes);
	h.check = fec_check(sum) ^ (what & 8);
	fec_header_put(payload, &h);
	memset(payload + FEC_HEADER, 0, h.symbol_bytes);
	payload[FEC_HEADER] = what & 16 ? (uint8_t)take(in, 1) : 0;
	if (s->opt_len + WIRE_AGREE_LEN <= WIRE_TCP_OPT_MAX)
		wire_opt_parity(s, true, take(in, 2));
	return FEC_HEADER + h.symbol_bytes;
}

static void options(struct input *in, struct wire_seg *s, struct view *v, uint32_t bits)
{
	struct wire_sack sack[3];
	uint32_t n = bits >> 6;

	if (s->flags & TH_SYN) {
		wire_opt_mss(s, (uint16_t)take(in, 2));
		wire_opt_syn_tail(s, bits & 1, bits & 2, take(in, 1), v->tsval, bits & 4,
				  (uint8_t)(bits >> 3 & 15));
		v->ts = bits & 2;
		return;
	}
	if (bits & 1)
		wire_opt_ts(s, v->tsval + (bits & 2 ? take(in, 1) : 0), v->tsecr);
	for (uint32_t i = 0; i < n; i++) {
		sack[i].start = s->ack + (uint32_t)(int16_t)take(in, 2);
		sack[i].end = sack[i].start + (bits & 8 ? 1448 * take(in, 1) : take(in, 2));
	}
	if (n && s->opt_len + 4 + 8 * n <= WIRE_TCP_OPT_MAX)
		wire_opt_sack(s, sack, n);
	if (bits & 4 && s->opt_len + WIRE_ACCECN_FULL <= WIRE_TCP_OPT_MAX) {
		uint32_t bytes[ACCECN_COUNTERS] = {take(in, 2), take(in, 1), take(in, 2)};

		wire_opt_accecn(s, bytes, bits & 16, bits & 32);
	}
}

static struct view *view_of(const struct pkt *k, uint32_t leg, bool from_core)
{
	uint16_t port = leg == DMM_LEG_OUTER ? (from_core ? k->sport_be : k->dport_be)
					     : (from_core ? k->dport_be : k->sport_be);
	uint32_t tuple = k->family == WIRE_AF_INET6 ? 2 : port - 0x1027u;

	return tuple < TUPLES ? &views[tuple][leg] : NULL;
}

static void give(struct dmm_core *core, uint32_t leg, const uint8_t *p, uint32_t n,
		 const struct dmm_rx_meta *rx, uint64_t now)
{
	struct view *v;
	struct pkt k;

	if (unmoved_input(core, leg, p, n, rx, now) != MAY_CHANGE)
		return;
	if (wire_parse(p, n, false, &k) != WIRE_TCP || !k.has_ts)
		return;
	v = view_of(&k, leg, false);
	if (!v)
		return;
	if (!v->said_ts || (k.flags & TH_SYN) || (int32_t)(k.tsval - v->said) > 0)
		v->said = k.tsval;
	v->said_ts = true;
}

static void packet(struct dmm_core *core, struct input *in, uint64_t now)
{
	static const uint8_t flag_set[] = {
		TH_SYN,		 TH_ACK,	  TH_ACK, TH_ACK,	   TH_ACK | TH_FIN,
		TH_SYN | TH_ACK, TH_RST | TH_ACK, TH_RST, TH_ACK | TH_PSH, 0,
		TH_FIN,		 TH_ACK,	  TH_ACK, TH_SYN | TH_ACK, TH_ACK,
		TH_SYN};
	uint32_t what = take(in, 1), leg = what & 1, tuple = (what >> 1) % TUPLES, len, n, headers;
	uint32_t bend = take(in, 1), bits;
	struct view *v = &views[tuple][leg];
	struct wire_seg s = {.flags = flag_set[what >> 3 & 15]};
	struct dmm_rx_meta rx = {
		.vnet.flags = leg ? 0 : DMM_VNET_DATA_VALID, .link = what, .mtu = mtu};
	uint8_t addr[2][16];
	struct dmm_core_addr_pair pair;
	struct wire_dir d;
	static uint8_t repair[FEC_HEADER + FEC_SYMBOL];
	uint32_t repair_len = 0;

	tuple_dir(tuple, leg, &d, addr);
	s.seq = v->seq + (bend & 1 ? (uint32_t)(int16_t)take(in, 2) : 0) +
		(bend & 2 ? 1448 * take(in, 1) : 0);
	s.ack = s.flags & TH_ACK
			? v->ack - (bend & 4 ? take(in, 2) : 0) + (bend & 8 ? take(in, 1) : 0)
			: 0;
	s.wnd = (uint16_t)(bend & 16 ? take(in, 2) : 65535);
	bits = bend & 32 ? take(in, 1) : (v->ts ? 1 : 0);
	options(in, &s, v, bits);
	if (s.flags & TH_SYN ? bits & 64 : (bits & 200) == 8) {
		pair_of(&pair, &d, leg);
		agree(in, core, &pair, &s);
	}
	if (leg && s.flags == TH_ACK && (bits & 216) == 16)
		repair_len = parity(in, &s, repair);
	len = bend & 64 ? take(in, leg ? 1 : 2) * (leg ? (cuts ? 80 : 8) : 1) : 0;
	len = min_u32(len, leg && !cuts ? 1400 : 60000);
	if (repair_len) {
		len = repair_len - (bend & 64 ? len % 4 : 0);
		s.seq -= bend & 4 ? 0 : len;
	}
	if (bend & 3) /* ECN, in the handshake and in data */
		d.tos = s.seq & 3;
	else if (s.flags & TH_SYN)
		s.flags |= (uint16_t)((v->tsval & 7) * TH_ECE);
	else
		s.flags |= (uint16_t)((bend >> 3 & 7) * TH_ECE);
	headers = wire_headers(buf, &d, &s, len);
	memset(buf + headers, repair_len ? 0 : (int)s.seq, len);
	memcpy(buf + headers, repair, min_u32(len, repair_len));
	if (!(bend & 128) || !in->left)
		wire_csum_full(buf, &d, headers, len, csum_add(buf + headers, len, 0));
	n = headers + len;
	if (bend & 128) { /* break it */
		buf[take(in, 1) % n] ^= (uint8_t)take(in, 1);
		n -= min_u32(n - 1, take(in, 1) & 15);
		rx.vnet.flags = DMM_VNET_DATA_VALID;
	}
	if (leg && cuts && !(what & 128) && len > 100) { /* it came in pieces */
		rx.vnet.gso_type =
			d.family == WIRE_AF_INET ? DMM_VNET_GSO_TCPV4 : DMM_VNET_GSO_TCPV6;
		rx.vnet.gso_size = (uint16_t)(1 + len / (2 + (bend >> 2 & 7)));
	}
	give(core, leg, buf, n, &rx, now);
	if (!(bend & 3) && !repair_len)
		v->seq += len + !!(s.flags & TH_SYN) + !!(s.flags & TH_FIN);
	v->tsval++;
}

static void icmp(struct dmm_core *core, struct input *in, uint64_t now)
{
	uint32_t what = take(in, 1), leg = what & 1, tuple = (what >> 1) % TUPLES, n;
	struct wire_seg s = {.seq = views[tuple][leg].ack - take(in, 2)};
	uint8_t addr[2][16];
	struct wire_dir d;

	tuple_dir(tuple, !leg, &d, addr); /* quotes what the core sent */
	n = wire_icmp_error(buf, &d, &s, (uint8_t)take(in, 1), (uint8_t)take(in, 1));
	give(core, leg, buf, n, NULL, now);
}

/* He knows the tuple, and guesses the rest */
static void outsider(struct dmm_core *core, struct input *in, uint32_t what, uint64_t now)
{
	uint32_t leg = what & 1, tuple = (what >> 2) % TUPLES, bits = take(in, 1), len, headers;
	struct wire_seg s = {.flags = (uint16_t)(what >> 7 << 8)};
	struct dmm_rx_meta rx = {.vnet.flags = DMM_VNET_DATA_VALID};
	uint8_t addr[2][16];
	struct wire_dir d;

	tuple_dir(tuple, leg, &d, addr);
	s.flags |= (uint16_t)take(in, 1);
	s.wnd = (uint16_t)take(in, 2);
	s.seq = bits & 1 ? take(in, 4) : views[tuple][leg].seq;
	s.ack = bits & 2 ? take(in, 4) : views[tuple][leg].ack;
	s.urg = (uint16_t)(bits & 4 ? take(in, 2) : 0);
	d.tos = bits & 8 ? (uint8_t)take(in, 1) : 0;
	if (bits & 16)
		wire_opt_ts(&s, take(in, 4), 0);
	len = bits & 32 ? take(in, 1) : 0;
	headers = wire_headers(buf, &d, &s, len);
	memset(buf + headers, 0x5a, len);
	give(core, leg, buf, headers + len, &rx, now);
}

static void raw(struct dmm_core *core, struct input *in, uint64_t now)
{
	uint32_t what = take(in, 1), leg = what & 1, n;
	struct dmm_rx_meta rx = {.vnet.flags = DMM_VNET_DATA_VALID};
	uint8_t *exact;

	if (what & 2) {
		outsider(core, in, what, now);
		return;
	}
	n = (uint32_t)min_u64(take(in, 1), in->left);
	exact = malloc(n ? n : 1); /* so that AddressSanitizer sees a read past the end */
	memcpy(exact, in->p, n);
	in->p += n;
	in->left -= n;
	give(core, leg, exact, n, &rx, now);
	free(exact);
}

static void learn(uint32_t leg, const uint8_t *p, uint32_t n, const struct dmm_tx_meta *m)
{
	struct pkt k;
	enum wire_result r = wire_parse(p, n, !m->vnet.flags, &k);
	struct view *v;

	if (r == WIRE_ICMP)
		return;
	CHECK(r == WIRE_TCP);
	CHECK(leg == DMM_LEG_INNER || cuts || !m->vnet.flags);
	CHECK(!m->vnet.gso_size || n > (uint32_t)m->vnet.hdr_len + m->vnet.gso_size);
	v = view_of(&k, leg, true);
	if (!v)
		return;
	v->ack = k.seq + k.payload_len + !!(k.flags & TH_SYN) + !!(k.flags & TH_FIN);
	if (k.flags & TH_ACK)
		v->seq = k.ack;
	v->flags = k.flags;
	v->ts = k.has_ts;
	v->tsecr = k.tsval;
}

static void drain(struct dmm_core *core, uint64_t now)
{
	static struct pulled out[PULL_MOST];
	uint32_t n, count = 0;

	for (uint32_t leg = 0; leg < 2; leg++) {
		while ((n = pull_headers(core, leg, leg && !cuts ? 2040 : 65535, out, now))) {
			for (uint32_t i = 0; i < n; i++) {
				CHECK(pull_payload(&out[i]));
				learn(leg, out[i].data, out[i].len, &out[i].meta);
			}
			dmm_core_output_taken(core);
			count += n;
			CHECK(count < MAX_OUT);
		}
	}
}

static void answers(struct dmm_core *core, struct input *in, uint64_t now)
{
	struct dmm_action a;

	while (dmm_core_action(core, &a)) {
		uint32_t how = take(in, 1);

		if (a.type == DMM_ACTION_OWN && how == 255)
			dmm_core_unreachable(core, a.conn, take(in, 1), now);
		else if (a.type == DMM_ACTION_OWN && how < 254)
			mtu = 400 + how * 4;
	}
}

static void step(struct dmm_core *core, struct input *in, uint64_t *now)
{
	struct dmm_conn_info info;
	uint32_t op = take(in, 1), arg;

	switch (op & 15) {
	default:
		packet(core, in, *now);
		break;
	case 11:
		icmp(core, in, *now);
		break;
	case 12:
		raw(core, in, *now);
		break;
	case 13:
		*now += (uint64_t)take(in, 1) << (op >> 4) << 20;
		break;
	case 14:
		*now = max_u64(*now, min_u64(dmm_core_poll(core, *now), *now + 7200 * NS_PER_S));
		break;
	case 15:
		arg = take(in, 1);
		if (arg == 77)
			dmm_core_abort_all(core, *now);
		else if (arg > 127)
			mtu = 8 * arg;
		break;
	}
	if (op & 16)
		answers(core, in, *now);
	if (op & 32)
		dmm_core_poll(core, *now);
	if (op & 64)
		drain(core, *now);
	for (uint32_t i = 0; dmm_core_conn_info(core, i, &info); i++)
		CHECK(info.inner_state && info.outer_state);
	check_core(core);
}

/* What the peer of an open leg sends next is acceptable */
static void next_is_taken(struct dmm_core *core, const struct conn *c, uint32_t leg, uint64_t now)
{
	const struct tcb *t = leg_of(c, leg);
	struct wire_seg s = {.flags = TH_ACK, .wnd = 1000};
	struct dmm_rx_meta rx = {.vnet.flags = DMM_VNET_DATA_VALID};
	uint64_t refused = core->env.counters[DMM_CORE_PAWS] + core->env.counters[DMM_CORE_BAD_SEQ];
	struct wire_dir d;
	uint32_t n;

	if (t->state != TCP_ESTABLISHED)
		return;
	s.seq = t->irs + (uint32_t)t->rcv_nxt;
	s.ack = t->iss + (uint32_t)t->snd_nxt;
	ctl_dir(&c->ends.f.pair, !leg, &d);
	if (t->flags & TF_TS) {
		struct pkt k = {.family = c->ends.f.pair.family,
				.dport_be = leg ? c->ends.f.pair.lport_be : c->ends.f.pair.rport_be,
				.sport_be =
					leg ? c->ends.f.pair.rport_be : c->ends.f.pair.lport_be};
		const struct view *v = view_of(&k, leg, false);

		if (!v || !v->said_ts)
			return;
		wire_opt_ts(&s, v->said, 0);
	}
	n = wire_headers(buf, &d, &s, 1);
	buf[n] = 0x5a;
	dmm_core_input(core, leg, buf, n + 1, &rx, now);
	CHECK(core->env.counters[DMM_CORE_PAWS] + core->env.counters[DMM_CORE_BAD_SEQ] == refused);
}

static void nobody_is_stalled(struct dmm_core *core, uint64_t now)
{
	for (uint32_t i = 0; i < core->n_live; i++) {
		for (uint32_t leg = 0; leg < 2; leg++) {
			struct legs copy;

			legs_copy(&copy, core, core->slots[core->live[i]]);
			next_is_taken(core, &copy.c, leg, now);
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	struct dmm_core_config cfg = {.seed = 7, .max_connections = 2, .inner_gso_max = 65535};
	struct dmm_core *core;
	uint64_t now = 1000000000;
	uint32_t how = take(&in, 1);

	cfg.negotiate = take(&in, 1) % 3;
	if (how & 1)
		cfg.memory_bytes = 65536;
	if (how & 2)
		cfg.sndbuf_bytes = cfg.rcvbuf_bytes = 3000;
	if (how & 4)
		memcpy(cfg.congestion, "wan", 4);
	else if (how & 8)
		memcpy(cfg.congestion, "reno", 5);
	cfg.latency = how & 4 ? DMM_LATENCY_AUTO : DMM_LATENCY_LOW;
	cfg.syn_cookies = how >> 4 & 3; /* 3: as off */
	cuts = cfg.syn_cookies == 3;
	cfg.outer_gso_max = cuts ? 65535 : 0;
	cfg.outer_csum_partial = cuts;
	cfg.half_open_max = how >> 6 & 1;
	if (how >> 7)
		cfg.park_ns = NS_PER_MS;
	memset(views, 0, sizeof(views));
	mtu = 0;
	core = dmm_core_create(&cfg);
	CHECK(core);
	for (uint32_t i = 0; in.left && i < MAX_STEPS; i++)
		step(core, &in, &now);
	/* left alone, everything must come to rest, wait for something, and end */
	do
		drain(core, now);
	while (dmm_core_poll(core, now) <= now);
	check_core_rests(core);
	nobody_is_stalled(core, now);
	dmm_core_abort_all(core, now);
	drain(core, now);
	check_core(core);
	for (uint32_t i = 0; i < core->n_live; i++)
		CHECK(leg_of(core->slots[core->live[i]], DMM_LEG_OUTER)->state == TCP_CLOSE);
	CHECK(core->n_live == 0 && core->env.mem.chunk_bytes == 0);
	dmm_core_destroy(core);
	return 0;
}
