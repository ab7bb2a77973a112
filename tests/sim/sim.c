/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim.c: two hosts, each with a core and a kern on its inner leg, joined by a link, in virtual time.
 *
 * usage: sim key=value...   prints key=value lines; exit code 0 unless an invariant broke:
 * every byte that an application received is the right one, and each connection ends complete or with an
 * error.
 */
#include "check.h"
#include "counters.h"
#include "heap.h"
#include "kern.h"
#include "mark.h"

#include <stdio.h>
#include <stdlib.h>

struct params {
	uint64_t seed, conns, up, down, rate_Bps, delay_ns, queue_bytes, mtu, limit_ns, start_ns, memory,
		maxconn;
	double loss, loss_back, dup, reorder, corrupt;
	uint64_t reorder_ns, strip, mss, v6, refuse, mute, unreach, sndbuf, rcvbuf, krcvbuf, gso, pause_ns;
	uint64_t abort_at, close_at, inner_drop_from_ns, inner_drop_to_ns, cut_from_ns, cut_to_ns,
		stall_from_ns, stall_to_ns, mark_bytes, ecn_off, accecn_off, ecn_drop, hole_bytes, again, isn,
		kts, kws;
	uint64_t stop_early, icmp_code, icmp_mtu, simopen, timewait_ns, abort_all_ns, keepalive_ns, synloss,
		gap_ns, check, down_after_ns, linux_window, cookies;
	char cc[16];
};

enum { STRIP_SACK = 1, STRIP_TS = 2, STRIP_WS = 4 };

struct host {
	struct dmm_core *core;
	struct kern kern;
	uint32_t index;
	uint64_t link_free_ns;
	uint64_t owned, disowned, closed;
	uint32_t last_error;
	struct parcel *in; /* inner packets to the core: FIFO */
	uint32_t n_in, cap_in;
	uint64_t kern_next, core_next;
};

static struct params P;
static struct host H[2];
static uint64_t now, rng;
static uint32_t isn_seen[2];
static uint64_t n_sent, n_lost, max_backlog_ns, syns_seen, n_marked;

static double rnd(void)
{
	return (double)(xorshift64(&rng) >> 11) / 9007199254740992.0;
}

static void refix_csum(uint8_t *p, uint32_t len)
{
	struct pkt k;
	struct wire_dir d;
	uint32_t ip = p[0] >> 4 == 4 ? 20 : 40;

	if (wire_parse(p, len, false, &k) != WIRE_TCP)
		return;
	d = (struct wire_dir){.saddr = k.saddr, .daddr = k.daddr, .family = k.family};
	memset(p + ip + 16, 0, 2);
	wire_csum_full(p, &d, len, 0, 0);
}

/* The middlebox: takes options out of SYNs */
static void middlebox(uint8_t *p, uint32_t len)
{
	uint32_t ip = p[0] >> 4 == 4 ? 20 : 40;
	uint8_t *o = p + ip + 20, *end;

	if ((p[0] >> 4 == 4 ? p[9] : p[6]) != 6 || !(p[ip + 13] & TH_SYN) || (!P.strip && !P.mss))
		return;
	end = p + ip + (p[ip + 12] >> 4) * 4;
	while (o < end && *o) {
		uint32_t n = *o == 1 ? 1 : o[1];

		if ((*o == 4 && (P.strip & STRIP_SACK)) || (*o == 8 && (P.strip & STRIP_TS)) ||
		    (*o == 3 && (P.strip & STRIP_WS)))
			memset(o, 1, n);
		else if (*o == 2 && P.mss)
			put_be16(o + 2, (uint16_t)P.mss);
		o += n;
	}
	refix_csum(p, len);
}

/* A router on the way says no, once per SYN */
static bool router_error(uint32_t from, const uint8_t *p, uint32_t len)
{
	uint8_t buf[256], *icmp;
	struct pkt k;
	struct wire_dir d;
	struct wire_seg s = {0};
	uint32_t n;
	bool syn, big;

	if (wire_parse(p, len, false, &k) != WIRE_TCP)
		return false;
	syn = P.icmp_code && (k.flags & TH_SYN);
	big = P.icmp_mtu && len > P.icmp_mtu;
	if (!syn && !big)
		return false;
	d = (struct wire_dir){k.saddr, k.daddr, k.sport_be, k.dport_be, 0, k.family, 0};
	s.seq = k.seq;
	if (syn)
		n = wire_icmp_error(buf, &d, &s, P.v6 ? 1 : 3, (uint8_t)(P.icmp_code - 1));
	else
		n = wire_icmp_error(buf, &d, &s, P.v6 ? 2 : 3, P.v6 ? 0 : 4);
	icmp = buf + (P.v6 ? 40 : 20);
	if (big) { /* the sum changes by the MTU field only */
		uint32_t c = (uint16_t)~get_be16(icmp + 2) + (uint32_t)P.icmp_mtu;

		c = (c & 0xffff) + (c >> 16);
		put_be32(icmp + 4, (uint32_t)P.icmp_mtu);
		put_be16(icmp + 2, (uint16_t)~c);
	}
	struct parcel e = {.at_ns = now + P.delay_ns, .to = from, .len = n, .data = malloc(n)};

	memcpy(e.data, buf, n);
	heap_push(e);
	return true;
}

/* Bytes that host 1 holds out of order */
static uint64_t held_ooo(const struct tcb *t)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; t->ooo && i < t->ooo->n; i++)
		sum += t->ooo->v[t->ooo->first + i].end - t->ooo->v[t->ooo->first + i].start;
	return sum;
}

/*
 * The window that a Linux 6.18 receiver would offer instead of host 1's own (linux_window=1, one connection,
 * no limit of memory): tcp_rcvbuf_grow() makes room for twice what the program read in a round trip, more
 * when that has grown, and for what waits out of order; tcp_grow_window() lets the window follow by two bytes
 * for each that arrives, as far as the free room goes.
 */
static void linux_window(uint8_t *p, uint32_t len)
{
	static uint64_t edge, room, mark_ns, mark_ack, arrived, space = 14480, threshold = 65536;
	uint32_t ip = p[0] >> 4 == 4 ? 20 : 40;
	uint64_t ack, held, extent, copied, want, left;
	const struct tcb *t;
	struct pkt k;

	if (!P.linux_window || !H[1].core->n_live || wire_parse(p, len, false, &k) != WIRE_TCP ||
	    k.flags & (TH_SYN | TH_RST))
		return;
	t = &H[1].core->slots[H[1].core->live[0]]->leg[DMM_LEG_OUTER];
	ack = t->rcv_nxt;
	held = held_ooo(t);
	extent = held ? t->ooo->v[t->ooo->first + t->ooo->n - 1].end - ack : 0;
	room = max_u64(max_u64(room, 65536), 2 * space + extent);
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
	threshold = max_u64(threshold,
			    min_u64(threshold + 2 * (ack + held - min_u64(arrived, ack + held)), left));
	arrived = ack + held;
	edge = max_u64(edge, ack + min_u64(threshold, left));
	put_be16(p + ip + 14, (uint16_t)min_u64((edge - ack) >> t->rcv_wscale, get_be16(p + ip + 14)));
	refix_csum(p, len);
}

static void link_send(uint32_t from, const uint8_t *p, uint32_t len)
{
	struct host *h = &H[from];
	uint64_t backlog = h->link_free_ns > now ? h->link_free_ns - now : 0;
	double loss = from ? P.loss_back : P.loss;
	struct parcel e = {.to = !from, .len = len};
	uint32_t copies = rnd() < P.dup ? 2 : 1;
	uint32_t ip = p[0] >> 4 == 4 ? 20 : 40;

	if (router_error(from, p, len))
		return;
	if (P.synloss && (p[ip + 13] & TH_SYN) && syns_seen++ < P.synloss)
		return;
	if (P.hole_bytes && len > P.hole_bytes)
		return;
	if (P.ecn_drop && (p[ip + 13] & (TH_SYN | TH_ECE)) == (TH_SYN | TH_ECE))
		return;
	if (now >= P.cut_from_ns && now < P.cut_to_ns)
		return;
	n_sent++;
	if (backlog * P.rate_Bps / NS_PER_S > P.queue_bytes) {
		n_lost++;
		return;
	}
	max_backlog_ns = max_u64(max_backlog_ns, backlog);
	if (now >= P.stall_from_ns && now < P.stall_to_ns) /* the link holds them, loses nothing */
		h->link_free_ns = max_u64(h->link_free_ns, P.stall_to_ns);
	h->link_free_ns = max_u64(h->link_free_ns, now) + (len + 14 + 24) * NS_PER_S / P.rate_Bps;
	for (; copies; copies--) {
		if (rnd() < loss)
			continue;
		e.at_ns = h->link_free_ns + P.delay_ns;
		if (rnd() < P.reorder)
			e.at_ns += (uint64_t)((double)P.reorder_ns * rnd());
		e.data = malloc(len);
		memcpy(e.data, p, len);
		middlebox(e.data, len);
		if (from)
			linux_window(e.data, len);
		if (P.mark_bytes && backlog * P.rate_Bps / NS_PER_S > P.mark_bytes)
			n_marked += mark_ce(e.data);
		if (rnd() < P.corrupt)
			e.data[xorshift64(&rng) % len] ^= (uint8_t)(1u << (xorshift64(&rng) % 8));
		heap_push(e);
	}
}

static void kern_send(void *arg, const uint8_t *p, uint32_t len, uint32_t gso)
{
	struct host *h = arg;
	struct parcel e = {.len = len, .data = malloc(len)};

	(void)gso;
	if (h->n_in == h->cap_in) {
		h->cap_in = h->cap_in ? h->cap_in * 2 : 64;
		h->in = realloc(h->in, h->cap_in * sizeof(*h->in));
	}
	memcpy(e.data, p, len);
	h->in[h->n_in++] = e;
}

static bool inner_dropped(void)
{
	return now >= P.inner_drop_from_ns && now < P.inner_drop_to_ns;
}

/* The outer leg's initial sequence number of the first connection */
static void note_isn(struct host *h)
{
	if (!isn_seen[h->index] && h->core->n_live)
		isn_seen[h->index] = h->core->slots[h->core->live[0]]->leg[DMM_LEG_OUTER].iss;
}

static void actions(struct host *h)
{
	struct dmm_action a;

	while (dmm_core_action(h->core, &a)) {
		if (a.type == DMM_ACTION_RESOLVE && P.unreach)
			dmm_core_unreachable(h->core, a.conn, (uint32_t)P.unreach, now);
		else if (a.type == DMM_ACTION_RESOLVE)
			dmm_core_resolved(h->core, a.conn, 7, (uint32_t)P.mtu, now);
		h->owned += a.type == DMM_ACTION_OWN;
		h->disowned += a.type == DMM_ACTION_DISOWN;
		h->closed += a.type == DMM_ACTION_CLOSED;
		if (a.type == DMM_ACTION_CLOSED && a.error)
			h->last_error = a.error;
	}
}

static void check_meta(const struct dmm_tx_meta *m, uint32_t leg, uint32_t n)
{
	if ((leg == DMM_LEG_OUTER && (m->needs_csum || m->gso_size || n > P.mtu)) ||
	    (leg == DMM_LEG_INNER && n > 1500 && !m->gso_size)) {
		printf("bad_meta=1\n");
		exit(3);
	}
}

static bool pump(struct host *h)
{
	static uint8_t buf[65536];
	struct dmm_rx_meta rx = {.csum_ok = 1};
	struct dmm_tx_meta m;
	bool did = false;
	uint32_t n;

	for (uint32_t i = 0; i < h->n_in; i++) {
		struct parcel e = h->in[i];

		if (!inner_dropped())
			dmm_core_input(h->core, DMM_LEG_INNER, e.data, e.len, &rx, now);
		free(e.data);
		did = true;
	}
	h->n_in = 0;
	actions(h);
	note_isn(h);
	while ((n = dmm_core_output(h->core, DMM_LEG_OUTER, buf, (uint32_t)P.mtu, &m, now))) {
		check_meta(&m, DMM_LEG_OUTER, n);
		link_send(h->index, buf, n);
		did = true;
	}
	while ((n = dmm_core_output(h->core, DMM_LEG_INNER, buf, P.gso ? (uint32_t)P.gso : 1500, &m, now))) {
		check_meta(&m, DMM_LEG_INNER, n);
		if (!inner_dropped())
			kern_input(&h->kern, buf, n, m.needs_csum, now);
		did = true;
	}
	if (P.check)
		check_core(h->core);
	h->kern_next = kern_run(&h->kern, now);
	h->core_next = dmm_core_poll(h->core, now);
	actions(h);
	return did || h->n_in || h->core_next <= now;
}

static void addr(uint8_t *a, uint8_t last)
{
	static const uint8_t v6[16] = {0x20, 1, 0xd, 0xb8};

	memset(a, 0, 16);
	if (P.v6) {
		memcpy(a, v6, 16);
	} else {
		a[10] = a[11] = 0xff;
		a[12] = 10;
	}
	a[15] = last;
}

static void setup_host(uint32_t i)
{
	struct host *h = &H[i];
	struct dmm_core_config cfg = {
		.seed = P.seed * 2 + i,
		.memory_bytes = P.memory,
		.max_connections = (uint32_t)P.maxconn,
		.inner_gso_max = (uint32_t)P.gso,
		.sndbuf_max_bytes = (uint32_t)P.sndbuf,
		.rcvbuf_max_bytes = (uint32_t)P.rcvbuf,
		.time_wait_ns = P.timewait_ns,
		.keepalive_ns = P.keepalive_ns,
		.ecn_off = (uint32_t)P.ecn_off,
		.accecn_off = (uint32_t)P.accecn_off,
		.syn_cookies = (uint32_t)P.cookies,
	};

	memcpy(cfg.congestion, P.cc, sizeof(cfg.congestion));
	h->index = i;
	h->core = dmm_core_create(&cfg);
	if (!h->core)
		exit(4);
	h->kern = (struct kern){.n = (uint32_t)P.conns,
				.listening = i || P.simopen,
				.refuse = i && P.refuse,
				.mute = i && P.mute,
				.options_ts = !P.kts,
				.options_ws = !P.kws,
				.mss = 1460,
				.gso_max = P.gso ? 60000 : 0,
				.send = kern_send,
				.arg = h,
				.isn_base = (uint32_t)P.isn};
	h->kern.v = calloc(P.conns, sizeof(struct ksock));
	for (uint32_t c = 0; c < P.conns; c++) {
		struct ksock *s = &h->kern.v[c];

		s->id = c;
		s->listener_side = i;
		s->to_send = i ? P.down : P.up;
		s->rcvbuf = (uint32_t)P.krcvbuf;
		s->rto_ns = NEVER;
		s->open_after_ns = i ? P.down_after_ns : 0;
		s->pause_until_ns = P.pause_ns ? P.start_ns + P.pause_ns : 0;
		s->abort_at = !i && P.abort_at ? P.abort_at - 1 : NEVER;
		s->close_at = !i && P.close_at ? P.close_at - 1 : NEVER;
		s->rst_out = i == 0 && P.stop_early;
		s->pair.family = P.v6 ? WIRE_AF_INET6 : WIRE_AF_INET;
		s->pair.proto = 6;
		addr(s->pair.laddr, (uint8_t)(1 + i));
		addr(s->pair.raddr, (uint8_t)(2 - i));
		s->pair.lport_be = __builtin_bswap16((uint16_t)(i ? 80 : 10000 + c));
		s->pair.rport_be = __builtin_bswap16((uint16_t)(i ? 10000 + c : 80));
	}
}

static bool all_over(void)
{
	if (n_heap || H[0].n_in || H[1].n_in)
		return false;
	for (uint32_t i = 0; i < P.conns; i++) {
		if (H[0].kern.v[i].state != K_DONE)
			return false;
		if (H[1].kern.v[i].state != K_DONE && H[1].kern.v[i].state != K_CLOSED)
			return false;
	}
	return dmm_core_connections(H[0].core) + dmm_core_connections(H[1].core) == 0;
}

/* The same ports once more while the stacks still hold the old connection in TIME_WAIT */
static bool once_more(void)
{
	if (!P.again)
		return false;
	for (uint32_t i = 0; i < P.conns; i++) {
		if (H[0].kern.v[i].state != K_DONE || H[1].kern.v[i].state != K_DONE)
			return false;
	}
	P.again--;
	for (uint32_t i = 0; i < P.conns; i++) {
		struct ksock *s = &H[0].kern.v[i];

		s->una = s->nxt = s->got = s->adv = s->read_until = 0;
		s->fin_sent = s->fin_acked = s->fin_got = false;
		s->tries = 0;
		H[0].kern.isn_base += 100000;
		kern_connect(&H[0].kern, s, now);
	}
	return true;
}

static void run(void)
{
	uint64_t end = now + P.limit_ns, started = 0;

	while (now < end) {
		uint64_t next;

		while (started < P.conns && now >= P.start_ns + started * P.gap_ns) {
			kern_connect(&H[0].kern, &H[0].kern.v[started], now);
			if (P.simopen)
				kern_connect(&H[1].kern, &H[1].kern.v[started], now);
			started++;
		}
		if (P.abort_all_ns && now >= P.start_ns + P.abort_all_ns) {
			dmm_core_abort_all(H[0].core, now);
			P.abort_all_ns = 0;
		}
		for (int guard = 0; (int)pump(&H[0]) + (int)pump(&H[1]); guard++) {
			if (guard > 1000000) {
				printf("livelock=1\n");
				exit(3);
			}
		}
		if (started == P.conns && once_more())
			continue;
		if (started == P.conns && all_over())
			return;
		next = min_u64(min_u64(H[0].kern_next, H[1].kern_next),
			       min_u64(H[0].core_next, H[1].core_next));
		if (n_heap)
			next = min_u64(next, heap[0].at_ns);
		if (started < P.conns)
			next = min_u64(next, P.start_ns + started * P.gap_ns);
		if (P.abort_all_ns)
			next = min_u64(next, P.start_ns + P.abort_all_ns);
		if (next == NEVER)
			return;
		now = max_u64(now, next);
		while (n_heap && heap[0].at_ns <= now) {
			struct parcel e = heap_pop();

			dmm_core_input(H[e.to].core, DMM_LEG_OUTER, e.data, e.len, NULL, now);
			free(e.data);
		}
	}
}

static uint64_t number(const char *v)
{
	return strtoull(v, NULL, 0);
}

#define U(name)                                                                                              \
	{                                                                                                    \
#name, &P.name, NULL                                                                         \
	}
#define D(name)                                                                                              \
	{                                                                                                    \
#name, NULL, &P.name                                                                         \
	}

static const struct {
	const char *name;
	uint64_t *u;
	double *d;
} keys[] = {U(seed),
	    U(conns),
	    U(up),
	    U(down),
	    U(rate_Bps),
	    U(delay_ns),
	    U(queue_bytes),
	    U(mtu),
	    U(limit_ns),
	    U(start_ns),
	    U(memory),
	    U(maxconn),
	    D(loss),
	    D(loss_back),
	    D(dup),
	    D(reorder),
	    D(corrupt),
	    U(reorder_ns),
	    U(strip),
	    U(mss),
	    U(v6),
	    U(refuse),
	    U(mute),
	    U(unreach),
	    U(sndbuf),
	    U(rcvbuf),
	    U(krcvbuf),
	    U(gso),
	    U(pause_ns),
	    U(abort_at),
	    U(close_at),
	    U(inner_drop_from_ns),
	    U(inner_drop_to_ns),
	    U(cut_from_ns),
	    U(cut_to_ns),
	    U(isn),
	    U(kts),
	    U(kws),
	    U(stop_early),
	    U(icmp_code),
	    U(icmp_mtu),
	    U(simopen),
	    U(timewait_ns),
	    U(abort_all_ns),
	    U(keepalive_ns),
	    U(synloss),
	    U(gap_ns),
	    U(stall_from_ns),
	    U(stall_to_ns),
	    U(mark_bytes),
	    U(ecn_off),
	    U(accecn_off),
	    U(ecn_drop),
	    U(hole_bytes),
	    U(again),
	    U(check),
	    U(down_after_ns),
	    U(linux_window),
	    U(cookies)};

static void parse_args(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		char *eq = strchr(argv[i], '=');
		bool known = false;

		if (!eq)
			exit(2);
		*eq = 0;
		if (!strcmp(argv[i], "cc")) {
			strncpy(P.cc, eq + 1, sizeof(P.cc) - 1);
			continue;
		}
		for (uint32_t k = 0; k < sizeof(keys) / sizeof(*keys); k++) {
			if (strcmp(keys[k].name, argv[i]))
				continue;
			known = true;
			if (keys[k].u)
				*keys[k].u = number(eq + 1);
			else
				*keys[k].d = strtod(eq + 1, NULL);
		}
		if (!known) {
			fprintf(stderr, "unknown key %s\n", argv[i]);
			exit(2);
		}
	}
}

static int report(void)
{
	uint64_t wrong = 0, complete = 0, errors = 0, last = 0, first = NEVER;

	for (uint32_t i = 0; i < P.conns; i++) {
		struct ksock *a = &H[0].kern.v[i], *b = &H[1].kern.v[i];
		bool ok = a->state == K_DONE && b->state == K_DONE && !a->error && !b->error &&
			  a->got == P.down && b->got == P.up && a->fin_got && b->fin_got;

		complete += ok;
		errors += a->error || b->error;
		wrong += a->mismatch + b->mismatch;
		last = max_u64(last, max_u64(a->done_ns, b->done_ns));
		if (a->established_ns)
			first = min_u64(first, a->established_ns);
	}
	printf("complete=%lu\nerrors=%lu\nwrong=%lu\n", complete, errors, wrong);
	printf("error_a=%u\nerror_b=%u\n", H[0].kern.v[0].error, H[1].kern.v[0].error);
	printf("got_a=%lu\ngot_b=%lu\n", H[0].kern.v[0].got, H[1].kern.v[0].got);
	printf("state_a=%u\nstate_b=%u\naccepted=%u\n", H[0].kern.v[0].state, H[1].kern.v[0].state,
	       H[1].kern.v[0].accepted);
	printf("left_a=%u\nleft_b=%u\n", dmm_core_connections(H[0].core), dmm_core_connections(H[1].core));
	printf("est_ns=%lu\ndone_ns=%lu\nend_ns=%lu\n", first == NEVER ? 0 : first - P.start_ns,
	       last > P.start_ns ? last - P.start_ns : 0, now - P.start_ns);
	printf("sent_pkts=%lu\nqueue_lost=%lu\nmax_backlog_ns=%lu\n", n_sent, n_lost, max_backlog_ns);
	for (int h = 0; h < 2; h++) {
		printf("owned_%c=%lu\ndisowned_%c=%lu\nclosed_%c=%lu\ncore_error_%c=%u\n", 'a' + h,
		       H[h].owned, 'a' + h, H[h].disowned, 'a' + h, H[h].closed, 'a' + h, H[h].last_error);
		printf("chunks_%c=%lu\nslabs_%c=%lu\n", 'a' + h, H[h].core->mem.chunk_bytes, 'a' + h,
		       mem_held_bytes(&H[h].core->mem));
		for (uint32_t c = 0; c < DMM_CORE_MAX; c++)
			printf("%s_%c=%lu\n", counter_names[c], 'a' + h, dmm_core_counter(H[h].core, c));
	}
	printf("marked=%lu\n", n_marked);
	printf("isn_a=%u\nisn_b=%u\n", isn_seen[0], isn_seen[1]);
	printf("conn_bytes=%zu\n", sizeof(struct conn));
	return wrong ? 1 : 0;
}

int main(int argc, char **argv)
{
	int rc;

	P = (struct params){.seed = 1,
			    .conns = 1,
			    .up = 1000000,
			    .down = 1000000,
			    .rate_Bps = 12500000,
			    .delay_ns = 10000000,
			    .queue_bytes = 1 << 20,
			    .mtu = 1500,
			    .limit_ns = 3600 * NS_PER_S,
			    .start_ns = NS_PER_S,
			    .krcvbuf = 1 << 20,
			    .gso = 65535,
			    .timewait_ns = NS_PER_S,
			    .loss_back = -1,
			    .reorder_ns = 5000000};
	parse_args(argc, argv);
	if (P.loss_back < 0)
		P.loss_back = P.loss;
	rng = P.seed * 0x9e3779b97f4a7c15ull | 1;
	now = P.start_ns;
	kern_pattern_init();
	setup_host(0);
	setup_host(1);
	run();
	rc = report();
	for (int h = 0; h < 2; h++) {
		dmm_core_destroy(H[h].core);
		free(H[h].kern.v);
		free(H[h].in);
	}
	while (n_heap)
		free(heap_pop().data);
	free(heap);
	return rc;
}
