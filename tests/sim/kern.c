/* SPDX-License-Identifier: Apache-2.0 */
/* kern.c: see kern.h */
#include "kern.h"

enum { PAT = 1048573, TRIES = 7 };

static uint8_t pattern[PAT + 65536];

void kern_pattern_init(void)
{
	uint64_t x = 88172645463325252ull;

	for (uint32_t i = 0; i < PAT; i++)
		pattern[i] = (uint8_t)(xorshift64(&x) >> 32);
	memcpy(pattern + PAT, pattern, 65536);
}

/* Bytes of a stream at off: direction and connection shift the pattern */
static const uint8_t *bytes_at(const struct ksock *s, bool from_listener, uint64_t off)
{
	return pattern + (off + s->id * 7919ull + from_listener * 104729ull) % PAT;
}

static uint64_t window_of(struct ksock *s)
{
	uint64_t edge = s->read_until + s->rcvbuf;

	if (edge > s->adv)
		s->adv = edge;
	return s->adv > s->got ? s->adv - s->got : 0;
}

static void transmit(struct kern *k, struct ksock *s, uint8_t flags, uint64_t off, uint32_t len,
		     uint64_t now_ns)
{
	static uint8_t buf[65536 + 128];
	struct wire_dir dir = {
		.saddr = s->pair.laddr,
		.daddr = s->pair.raddr,
		.sport_be = s->pair.lport_be,
		.dport_be = s->pair.rport_be,
		.family = s->pair.family,
	};
	struct wire_seg seg = {.flags = flags};
	uint64_t wnd = window_of(s);
	uint32_t headers, tsval = (uint32_t)(now_ns / NS_PER_MS);

	seg.seq = s->iss + (flags & TH_SYN ? 0 : 1 + (uint32_t)off);
	if (flags & TH_ACK)
		seg.ack = s->irs + 1 + (uint32_t)s->got + (s->fin_got ? 1 : 0);
	if (flags & TH_SYN) {
		bool answer = flags & TH_ACK;

		seg.wnd = (uint16_t)min_u64(wnd, 65535);
		wire_opt_mss(&seg, k->mss);
		wire_opt_syn_tail(&seg, true, answer ? s->ts : k->options_ts, tsval,
				  answer ? s->ts_recent : 0, answer ? s->my_ws != 0xff : k->options_ws, 7);
	} else {
		uint8_t ws = s->my_ws == 0xff ? 0 : s->my_ws;

		seg.wnd = (uint16_t)min_u64((wnd + (1u << ws) - 1) >> ws, 65535);
		if (wnd < (1u << ws))
			seg.wnd = 0;
		if (s->ts && !(flags & TH_RST))
			wire_opt_ts(&seg, tsval, s->ts_recent);
	}
	headers = wire_headers(buf, &dir, &seg, len);
	memcpy(buf + headers, bytes_at(s, s->listener_side, off), len);
	wire_csum_full(buf, &dir, headers, len, csum_add(buf + headers, len, 0));
	s->ack_due = false;
	k->send(k->arg, buf, headers + len, len > s->peer_mss ? s->peer_mss : 0);
}

static void done(struct ksock *s, uint32_t error, uint64_t now_ns)
{
	s->state = K_DONE;
	s->error = error;
	s->rto_ns = NEVER;
	s->done_ns = now_ns;
}

void kern_connect(struct kern *k, struct ksock *s, uint64_t now_ns)
{
	s->iss = k->isn_base + s->id * 1000003u;
	s->state = K_SYN_SENT;
	s->my_ws = k->options_ws ? 7 : 0xff;
	s->rto_ns = now_ns + NS_PER_S;
	transmit(k, s, TH_SYN, 0, 0, now_ns);
}

static struct ksock *find(struct kern *k, const struct pkt *p)
{
	/* client ports are 10000 + id, on either side */
	uint16_t port = p->sport_be == __builtin_bswap16(80) ? p->dport_be : p->sport_be;
	uint32_t id = __builtin_bswap16(port) - 10000u;

	return id < k->n ? &k->v[id] : NULL;
}

static void on_syn(struct kern *k, struct ksock *s, const struct pkt *p, uint64_t now_ns)
{
	if (k->mute)
		return;
	if (k->refuse || (s->state != K_CLOSED && s->state != K_SYN_RECV && s->state != K_DONE)) {
		s->got = 0;
		s->irs = p->seq;
		if (k->refuse)
			transmit(k, s, TH_RST | TH_ACK, 0, 0, now_ns);
		return;
	}
	s->state = K_SYN_RECV;
	s->una = s->nxt = s->got = s->adv = s->read_until = 0;
	s->fin_sent = s->fin_acked = s->fin_got = false;
	s->iss = k->isn_base + s->id * 1000033u;
	s->irs = p->seq;
	s->ts = p->has_ts && k->options_ts;
	s->ts_recent = p->tsval;
	s->my_ws = p->has_wscale && k->options_ws ? 7 : 0xff;
	s->peer_ws = p->has_wscale && k->options_ws ? p->wscale : 0;
	s->peer_mss = (p->mss ? p->mss : 536) - (s->ts ? 12 : 0);
	s->peer_wnd = p->wnd;
	s->rto_ns = now_ns + NS_PER_S;
	transmit(k, s, TH_SYN | TH_ACK, 0, 0, now_ns);
}

static void take_data(struct ksock *s, const struct pkt *p)
{
	int64_t off = (int64_t)s->got + (int32_t)(p->seq - s->irs - 1 - (uint32_t)s->got);
	const uint8_t *d = p->payload;
	uint32_t len = p->payload_len;

	if (off > (int64_t)s->got) { /* a hole: ask again */
		s->ack_due = true;
		return;
	}
	if (off + (int64_t)len > (int64_t)s->got && len) {
		uint32_t skip = (uint32_t)((int64_t)s->got - off);
		uint64_t room = s->adv > s->got ? s->adv - s->got : 0;
		uint32_t n = (uint32_t)min_u64(len - skip, room);

		if (memcmp(d + skip, bytes_at(s, !s->listener_side, s->got), n))
			s->mismatch++;
		s->got += n;
		if (n < len - skip) {
			s->ack_due = true;
			return;
		}
	}
	if (len || (p->flags & TH_FIN))
		s->ack_due = true;
	if ((p->flags & TH_FIN) && off + (int64_t)len == (int64_t)s->got)
		s->fin_got = true;
}

static void on_open(struct kern *k, struct ksock *s, const struct pkt *p, uint64_t now_ns)
{
	uint64_t end = s->nxt + (s->fin_sent ? 1 : 0);
	int64_t ack = (int64_t)s->una + (int32_t)(p->ack - s->iss - 1 - (uint32_t)s->una);

	if (p->flags & TH_SYN) {
		s->ack_due = true;
		return;
	}
	if (!(p->flags & TH_ACK) || ack > (int64_t)end)
		return;
	if (p->seq != s->irs + 1 + (uint32_t)s->got + s->fin_got && !p->payload_len)
		s->ack_due = true; /* a probe */
	if (p->has_ts)
		s->ts_recent = p->tsval;
	if (ack >= (int64_t)s->una) {
		s->peer_wnd = (uint64_t)p->wnd << s->peer_ws;
		if (ack > (int64_t)s->una) {
			s->tries = 0;
			s->rto_ns = now_ns + 300 * NS_PER_MS;
		}
		if (s->fin_sent && ack == (int64_t)end) {
			s->fin_acked = true;
			ack--;
		}
		s->una = (uint64_t)ack;
	}
	take_data(s, p);
	if (s->got >= s->abort_at) {
		transmit(k, s, TH_RST | TH_ACK, s->nxt, 0, now_ns);
		done(s, 0, now_ns);
	}
}

static void on_icmp(struct kern *k, const struct pkt *p, uint64_t now_ns)
{
	struct ksock *s = find(k, p);
	static const uint8_t v4[] = {101, 113, 92, 111};
	static const uint8_t v6[] = {101, 13, 22, 113, 111};

	if (!s || s->state != K_SYN_SENT || p->seq != s->iss)
		return;
	if (p->family == WIRE_AF_INET)
		done(s, p->icmp_code < 4 ? v4[p->icmp_code] : 113, now_ns);
	else
		done(s, p->icmp_code < 5 ? v6[p->icmp_code] : 113, now_ns);
}

static void on_rst(struct ksock *s, const struct pkt *p, uint64_t now_ns)
{
	if (s->state == K_SYN_SENT && (p->flags & TH_ACK) && p->ack == s->iss + 1)
		done(s, 111, now_ns);
	else if ((s->state == K_SYN_RECV || s->state == K_OPEN) &&
		 p->seq == s->irs + 1 + (uint32_t)s->got + s->fin_got)
		done(s, 104, now_ns);
}

void kern_input(struct kern *k, const uint8_t *b, uint32_t len, bool csum_ok, uint64_t now_ns)
{
	struct pkt p;
	enum wire_result r = wire_parse(b, len, !csum_ok, &p);
	struct ksock *s;

	if (r == WIRE_ICMP)
		on_icmp(k, &p, now_ns);
	if (r != WIRE_TCP)
		return;
	s = find(k, &p);
	if (!s)
		return;
	if (p.flags & TH_RST) {
		on_rst(s, &p, now_ns);
		return;
	}
	if ((p.flags & (TH_SYN | TH_ACK)) == TH_SYN && k->listening) {
		on_syn(k, s, &p, now_ns);
		return;
	}
	if (s->state == K_SYN_SENT && (p.flags & TH_SYN) && (p.flags & TH_ACK) && p.ack == s->iss + 1) {
		s->irs = p.seq;
		s->ts = p.has_ts;
		s->ts_recent = p.tsval;
		s->my_ws = p.has_wscale ? s->my_ws : 0xff;
		s->peer_ws = p.has_wscale ? p.wscale : 0;
		s->peer_mss = (p.mss ? p.mss : 536) - (s->ts ? 12 : 0);
		s->peer_wnd = p.wnd;
		s->state = K_OPEN;
		s->established_ns = now_ns;
		s->rto_ns = NEVER;
		s->ack_due = true;
		return;
	}
	if (s->state == K_SYN_RECV && (p.flags & TH_ACK) && p.ack == s->iss + 1) {
		s->state = K_OPEN;
		s->accepted = true;
		s->established_ns = now_ns;
		s->rto_ns = NEVER;
	}
	if (s->state == K_OPEN)
		on_open(k, s, &p, now_ns);
	else if ((s->state == K_DONE || s->state == K_CLOSED) && s->rst_out)
		transmit(k, s, TH_RST, s->nxt, 0, now_ns);
	else if (s->state == K_DONE && (p.flags & TH_FIN))
		transmit(k, s, TH_ACK, s->nxt + s->fin_sent, 0, now_ns);
}

static void timeout(struct kern *k, struct ksock *s, uint64_t now_ns)
{
	if (++s->tries >= TRIES && s->state != K_OPEN) {
		done(s, 110, now_ns);
		return;
	}
	if (s->state == K_SYN_SENT || s->state == K_SYN_RECV) {
		s->rto_ns = now_ns + (NS_PER_S << s->tries);
		transmit(k, s, s->state == K_SYN_SENT ? TH_SYN : TH_SYN | TH_ACK, 0, 0, now_ns);
		return;
	}
	if (s->tries > 100) {
		done(s, 110, now_ns);
		return;
	}
	s->nxt = s->una; /* go back */
	if (!s->peer_wnd)
		s->tries = 0; /* the peer lives */
	if (s->fin_sent && !s->fin_acked)
		s->fin_sent = false;
	s->rto_ns = now_ns + 300 * NS_PER_MS;
	if (!s->peer_wnd)
		transmit(k, s, TH_ACK, s->una - 1, 0, now_ns);
}

static void send_more(struct kern *k, struct ksock *s, uint64_t now_ns)
{
	uint64_t end = s->close_at <= s->got ? s->nxt : s->to_send;

	while (s->nxt < end) {
		uint64_t room = s->una + s->peer_wnd > s->nxt ? s->una + s->peer_wnd - s->nxt : 0;
		uint64_t len = min_u64(min_u64(room, end - s->nxt), k->gso_max ? k->gso_max : s->peer_mss);

		if (!len)
			break;
		transmit(k, s, TH_ACK | TH_PSH, s->nxt, (uint32_t)len, now_ns);
		s->nxt += len;
	}
	if (s->nxt >= end && !s->fin_sent) {
		transmit(k, s, TH_ACK | TH_FIN, s->nxt, 0, now_ns);
		s->fin_sent = true;
	}
	if (s->rto_ns == NEVER && (s->una < s->nxt || (s->fin_sent && !s->fin_acked) || s->nxt < end))
		s->rto_ns = now_ns + 300 * NS_PER_MS;
	if (s->una == s->nxt && s->nxt >= end && s->fin_acked)
		s->rto_ns = NEVER;
}

static void run_one(struct kern *k, struct ksock *s, uint64_t now_ns)
{
	uint64_t before;

	if (s->rto_ns <= now_ns)
		timeout(k, s, now_ns);
	if (s->state != K_OPEN)
		return;
	before = s->adv > s->got ? s->adv - s->got : 0;
	if (now_ns >= s->pause_until_ns)
		s->read_until = s->got;
	if (s->read_until + s->rcvbuf - s->got >= 2 * before + 1)
		s->ack_due = true;
	if (now_ns >= s->established_ns + s->open_after_ns)
		send_more(k, s, now_ns);
	if (s->ack_due)
		transmit(k, s, TH_ACK, s->nxt + s->fin_sent, 0, now_ns);
	if (s->fin_acked && s->fin_got)
		done(s, 0, now_ns);
}

uint64_t kern_run(struct kern *k, uint64_t now_ns)
{
	uint64_t next = NEVER;

	for (uint32_t i = 0; i < k->n; i++) {
		struct ksock *s = &k->v[i];

		if (s->state == K_CLOSED || s->state == K_DONE)
			continue;
		run_one(k, s, now_ns);
		next = min_u64(next, s->rto_ns);
		if (s->state == K_OPEN && s->established_ns + s->open_after_ns > now_ns)
			next = min_u64(next, s->established_ns + s->open_after_ns);
		if (s->pause_until_ns > now_ns)
			next = min_u64(next, s->pause_until_ns);
	}
	return next;
}
