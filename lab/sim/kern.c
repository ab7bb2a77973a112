/* SPDX-License-Identifier: Apache-2.0 */
/* kern.c: see kern.h */
#include "kern.h"

#include "trips.h"
#include "wild.h"

enum { PAT = 1048573, TRIES = 7, KEEPALIVE_PROBES = 9, KERN_MIN_MSS = 64 };

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

void kern_emit(struct kern *k, struct ksock *s, struct wire_seg seg, uint64_t off, uint32_t len,
	       uint8_t garbage, uint64_t now_ns)
{
	static uint8_t buf[65536 + 128];
	struct wire_dir dir = {
		.saddr = s->pair.laddr,
		.daddr = s->pair.raddr,
		.sport_be = s->pair.lport_be,
		.dport_be = s->pair.rport_be,
		.family = s->pair.family,
	};
	uint32_t headers, tsval = (uint32_t)(now_ns / NS_PER_MS);

	if (s->ts && !(seg.flags & (TH_RST | TH_SYN)) &&
	    !(k->wild && wild_omits_ts(k->wild, &tsval)))
		wire_opt_ts(&seg, tsval, s->ts_recent);
	if (k->wild)
		wild_sack(k->wild, s, &seg);
	headers = wire_headers(buf, &dir, &seg, len);
	memcpy(buf + headers, bytes_at(s, s->listener_side, off), len);
	for (uint32_t i = 0; garbage && i < len; i++)
		buf[headers + i] ^= garbage;
	wire_csum_full(buf, &dir, headers, len, csum_add(buf + headers, len, 0));
	k->send(k->arg, buf, headers + len, len > s->peer_mss ? s->peer_mss : 0);
}

static void syn_options(const struct kern *k, const struct ksock *s, struct wire_seg *seg,
			uint64_t now_ns)
{
	bool answer = seg->flags & TH_ACK;

	wire_opt_mss(seg, k->mss);
	wire_opt_syn_tail(seg, k->options_sack, answer ? s->ts : k->options_ts,
			  (uint32_t)(now_ns / NS_PER_MS), answer ? s->ts_recent : 0,
			  answer ? s->my_ws != 0xff : k->options_ws, 7);
}

static void transmit(struct kern *k, struct ksock *s, uint8_t flags, uint64_t off, uint32_t len,
		     uint64_t now_ns)
{
	struct wire_seg seg = {.flags = flags};
	uint64_t wnd = window_of(s);

	seg.seq = s->iss + (flags & TH_SYN ? 0 : 1 + (uint32_t)off);
	if (flags & TH_ACK)
		seg.ack = s->irs + 1 + (uint32_t)s->got + (s->fin_got ? 1 : 0);
	if (flags & TH_SYN) {
		seg.wnd = (uint16_t)min_u64(wnd, 65535);
		syn_options(k, s, &seg, now_ns);
	} else {
		uint8_t ws = s->my_ws == 0xff ? 0 : s->my_ws;

		seg.wnd = (uint16_t)min_u64((wnd + (1u << ws) - 1) >> ws, 65535);
		if (wnd < (1u << ws))
			seg.wnd = 0;
	}
	if (k->wild)
		wild_window(k->wild, s, &seg, now_ns);
	s->ack_due = false;
	kern_emit(k, s, seg, off, len, 0, now_ns);
}

static void done(struct ksock *s, uint32_t error, uint64_t now_ns)
{
	s->state = K_DONE;
	s->error = error;
	s->rto_ns = NEVER;
	s->done_ns = now_ns;
}

void kern_reset(struct ksock *s)
{
	s->una = s->nxt = s->sent = s->got = s->adv = s->read_until = s->written = 0;
	s->write_ns = s->read_ns = s->shut_until_ns = 0;
	s->fin_sent = s->fin_acked = s->fin_got = s->fin_put = s->aborted = s->stale = false;
	s->tries = s->probes = s->n_kept = 0;
}

static void note_options(struct kern *k, struct ksock *s, const struct pkt *p)
{
	bool ws = p->has_wscale && k->options_ws;

	s->irs = p->seq;
	s->ts = p->has_ts && k->options_ts;
	s->ts_recent = p->tsval;
	s->my_ws = ws ? 7 : 0xff;
	s->peer_ws = ws ? p->wscale : 0;
	s->peer_mss = p->mss ? p->mss : 536;
	if (s->peer_mss < KERN_MIN_MSS) /* an option that no stack follows; as the core has it */
		s->peer_mss = KERN_MIN_MSS;
	s->peer_mss -= s->ts ? 12 : 0;
	s->peer_sack = p->has_sack_perm;
	s->peer_wnd = p->wnd;
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
	if (k->refuse) {
		s->got = 0;
		s->irs = p->seq;
		transmit(k, s, TH_RST | TH_ACK, 0, 0, now_ns);
		return;
	}
	if (s->state != K_CLOSED && s->state != K_SYN_RECV && s->state != K_DONE)
		return;
	/* an old one that comes late opens nothing (RFC 9293 section 3.6.1), whatever number the
	 * core before us gave it: both streams were whole, and nobody begins anew */
	if (s->state == K_DONE && ((int32_t)(p->seq - s->irs - (uint32_t)s->got) <= 0 ||
				   (s->fin_got && s->fin_acked && !s->stale)))
		return;
	s->state = K_SYN_RECV;
	kern_reset(s);
	s->iss = k->isn_base + s->id * 1000033u;
	note_options(k, s, p);
	s->rto_ns = now_ns + NS_PER_S;
	transmit(k, s, TH_SYN | TH_ACK, 0, 0, now_ns);
}

static void take_data(struct kern *k, struct ksock *s, const struct pkt *p, uint64_t now_ns)
{
	int64_t off = (int64_t)s->got + (int32_t)(p->seq - s->irs - 1 - (uint32_t)s->got);
	const uint8_t *d = p->payload;
	uint32_t len = p->payload_len;

	if (k->wild && len && wild_drops(k->wild, s, now_ns)) {
		s->ack_due = true;
		return;
	}
	if (off > (int64_t)s->got) { /* a hole: ask again */
		s->ack_due = true;
		if (k->wild && len && (uint64_t)off + len <= s->adv) {
			s->mismatch +=
				!!memcmp(d, bytes_at(s, !s->listener_side, (uint64_t)off), len);
			wild_keep(k->wild, s, (uint64_t)off, (uint64_t)off + len);
		}
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
	else
		s->got = wild_merge(s, s->got);
}

static void on_open(struct kern *k, struct ksock *s, const struct pkt *p, uint64_t now_ns)
{
	uint64_t end = s->sent + s->fin_put;
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
		if (s->fin_put && ack == (int64_t)end) {
			s->fin_acked = s->fin_sent = true;
			ack--;
		}
		s->una = (uint64_t)ack;
		s->nxt = max_u64(s->nxt, s->una);
	}
	take_data(k, s, p, now_ns);
	for (; s->echo_due <= s->got; s->echo_due += s->write_bytes)
		trips_add(now_ns - s->writer->wrote_ns -
			  (s->echo_due / s->write_bytes - 1) * s->writer->write_gap_ns);
	if (s->got >= s->abort_at) {
		transmit(k, s, TH_RST | TH_ACK, s->nxt, 0, now_ns);
		s->aborted = true;
		done(s, 0, now_ns);
	} else if (k->wild) {
		wild_noise(k->wild, k, s, now_ns);
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
	else if (s->state == K_OPEN)
		/* RFC 5961 section 3.2: whoever means it answers with an exact one */
		s->ack_due = true;
}

/* RFC 9293 section 3.10.7.3: an ACK of what was never sent, so of an older connection: the far end
 * is rid of it */
static void refuse_ack(struct kern *k, struct ksock *s, uint32_t ack, uint64_t now_ns)
{
	struct wire_seg rst = {.seq = ack, .flags = TH_RST};

	kern_emit(k, s, rst, 0, 0, 0, now_ns);
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
	s->heard_ns = now_ns;
	s->probes = 0;
	if (p.flags & TH_RST) {
		on_rst(s, &p, now_ns);
		return;
	}
	if ((p.flags & (TH_SYN | TH_ACK)) == TH_SYN && k->listening) {
		on_syn(k, s, &p, now_ns);
		return;
	}
	if (s->state == K_SYN_SENT && (p.flags & TH_SYN) && (p.flags & TH_ACK) &&
	    p.ack == s->iss + 1) {
		note_options(k, s, &p);
		s->state = K_OPEN;
		s->established_ns = now_ns;
		s->rto_ns = NEVER;
		s->ack_due = true;
		return;
	}
	if (s->state == K_SYN_SENT && (p.flags & TH_ACK) && p.ack != s->iss + 1) {
		refuse_ack(k, s, p.ack, now_ns);
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
	/* RFC 9293 section 3.10.7.4: what comes again is acknowledged, its FIN with it or not */
	else if (s->state == K_DONE && ((p.flags & TH_FIN) || p.payload_len))
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

/* What the app does with its end: writes, closes before it has written all, reads */
static void run_app(struct ksock *s, uint64_t now_ns)
{
	if (s->echoes) {
		s->written = min_u64(s->to_send, s->got);
	} else if (s->asks) {
		s->written = min_u64(s->to_send, (s->got / s->write_bytes + 1) * s->write_bytes);
	} else if (!s->write_gap_ns) {
		s->written = s->to_send;
	} else if (now_ns >= s->write_ns) {
		s->wrote_ns = s->written ? s->wrote_ns : now_ns;
		s->written = min_u64(s->to_send, s->written + s->write_bytes);
		s->write_ns = s->written < s->to_send ? now_ns + s->write_gap_ns : NEVER;
	}
	if (s->close_at <= s->got) {
		s->to_send = s->written = s->sent;
		s->close_at = NEVER;
	}
}

static void read_app(struct ksock *s, uint64_t now_ns)
{
	if (now_ns < s->pause_until_ns)
		return;
	if (!s->read_gap_ns) {
		s->read_until = s->got;
	} else if (now_ns >= s->read_ns && s->read_until < s->got) {
		s->read_until = min_u64(s->got, s->read_until + s->read_bytes);
		s->read_ns = now_ns + s->read_gap_ns;
	}
}

static void send_more(struct kern *k, struct ksock *s, uint64_t now_ns)
{
	run_app(s, now_ns);
	while (s->nxt < s->written) {
		uint64_t room = s->una + s->peer_wnd > s->nxt ? s->una + s->peer_wnd - s->nxt : 0;
		uint64_t len = min_u64(min_u64(room, s->written - s->nxt),
				       k->gso_max ? k->gso_max : s->peer_mss);

		if (!len)
			break;
		if (k->wild)
			len = wild_piece(k->wild, len);
		transmit(k, s, TH_ACK | TH_PSH, s->nxt, (uint32_t)len, now_ns);
		s->nxt += len;
		s->sent = max_u64(s->sent, s->nxt);
	}
	if (s->nxt >= s->to_send && !s->fin_sent) {
		transmit(k, s, TH_ACK | TH_FIN, s->nxt, 0, now_ns);
		s->fin_sent = s->fin_put = true;
		s->fin_at = s->nxt;
	}
	if (s->rto_ns == NEVER &&
	    (s->una < s->nxt || (s->fin_sent && !s->fin_acked) || s->nxt < s->written))
		s->rto_ns = now_ns + 300 * NS_PER_MS;
	if (s->una == s->nxt && s->nxt >= s->written && (s->fin_acked || !s->fin_sent))
		s->rto_ns = NEVER;
}

/* Asks whether a peer that said nothing for long is still there (RFC 9293 section 3.8.4) */
static void keepalive(struct kern *k, struct ksock *s, uint64_t now_ns)
{
	if (!k->keepalive_ns || now_ns < s->heard_ns + (1 + s->probes) * k->keepalive_ns)
		return;
	if (++s->probes > KEEPALIVE_PROBES) {
		done(s, 110, now_ns);
		return;
	}
	transmit(k, s, TH_ACK, s->nxt + s->fin_sent - 1, 0, now_ns);
}

static void run_one(struct kern *k, struct ksock *s, uint64_t now_ns)
{
	uint64_t before;

	if (s->rto_ns <= now_ns)
		timeout(k, s, now_ns);
	if (s->state == K_OPEN)
		keepalive(k, s, now_ns);
	if (s->state != K_OPEN)
		return;
	before = s->adv > s->got ? s->adv - s->got : 0;
	read_app(s, now_ns);
	if (s->read_until + s->rcvbuf - s->got >= 2 * before + 1)
		s->ack_due = true;
	if (s->shut_until_ns && now_ns >= s->shut_until_ns) {
		s->shut_until_ns = 0;
		s->ack_due = true;
	}
	if (now_ns >= s->established_ns + s->open_after_ns)
		send_more(k, s, now_ns);
	if (s->ack_due)
		transmit(k, s, TH_ACK, s->nxt + s->fin_sent, 0, now_ns);
	if (s->fin_acked && s->fin_got)
		done(s, 0, now_ns);
}

static uint64_t next_of(const struct kern *k, const struct ksock *s, uint64_t now_ns)
{
	uint64_t next = s->rto_ns;

	if (s->pause_until_ns > now_ns)
		next = min_u64(next, s->pause_until_ns);
	if (s->state != K_OPEN)
		return next;
	if (s->established_ns + s->open_after_ns > now_ns)
		next = min_u64(next, s->established_ns + s->open_after_ns);
	else if (s->write_gap_ns && s->write_ns > now_ns)
		next = min_u64(next, s->write_ns);
	if (s->read_gap_ns && s->read_until < s->got && s->read_ns > now_ns)
		next = min_u64(next, s->read_ns);
	if (s->shut_until_ns > now_ns)
		next = min_u64(next, s->shut_until_ns);
	if (k->keepalive_ns)
		next = min_u64(next, s->heard_ns + (1 + s->probes) * k->keepalive_ns);
	return next;
}

uint64_t kern_run(struct kern *k, uint64_t now_ns)
{
	uint64_t next = NEVER;

	for (uint32_t i = 0; i < k->n; i++) {
		struct ksock *s = &k->v[i];

		if (s->state == K_CLOSED || s->state == K_DONE)
			continue;
		run_one(k, s, now_ns);
		if (s->state != K_DONE)
			next = min_u64(next, next_of(k, s, now_ns));
	}
	return next;
}
