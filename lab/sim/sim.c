/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim.c: two hosts, each with a core and a kern on its inner leg, joined by a link, in virtual
 * time. With direct=1 the second host has no core: its kern stands on the link, and may be a wild
 * peer (wild.h). With rival=NAME two more share the link, with a bulk flow of their own; with
 * bulk=1 the first two have one, beside what they are judged by.
 *
 * usage: sim key=value...   keys: params.h; prints key=value lines.
 * Exit code 1 if an application received a wrong byte, or the end of a stream before the end
 * (verdict.h).
 */
#include "check.h"
#include "counters.h"
#include "gro.h"
#include "kern.h"
#include "nic.h"
#include "params.h"
#include "outsider.h"
#include "path.h"
#include "pull.h"
#include "transport.h"
#include "trips.h"
#include "tuple.h"
#include "unmoved.h"
#include "verdict.h"
#include "wild.h"
#include "window.h"

#include <stdio.h>
#include <stdlib.h>

struct waiting {
	uint8_t *data;
	uint32_t len;
};

struct host {
	struct dmm_core *core; /* NULL: kern stands on the link */
	struct kern kern;
	struct wild wild;
	uint32_t index;
	uint64_t owned, disowned, closed;
	uint64_t plain;	     /* connections whose outer leg is TCP's */
	uint64_t peak_bytes; /* of payload that the core held at a time */
	uint32_t last_error;
	struct waiting *in; /* inner packets to the core: FIFO */
	uint32_t n_in, cap_in;
	uint64_t kern_next, core_next;
	struct gro gro;
	uint8_t *buffer; /* of its core, for the next packet */
};

const struct end_ops *sim_transport;
static struct host H[SIM_HOSTS];
static uint32_t n_hosts = 2; /* with a rival, two more */
static uint32_t isn_seen[2];
static bool has_isn[2];
/* of all that the cores put on the link, and when; and how many packets the device had to cut */
static uint64_t wire_hash, super_segments, merged;

static void kern_send(void *arg, const uint8_t *p, uint32_t len, uint32_t gso)
{
	struct host *h = arg;

	(void)gso;
	if (!h->core) {
		path_link_send(h->index, p, len);
		return;
	}
	if (path_inner_send(h->index, AT_CORE, p, len, true))
		return;
	if (h->n_in == h->cap_in) {
		h->cap_in = h->cap_in ? h->cap_in * 2 : 64;
		h->in = realloc(h->in, h->cap_in * sizeof(*h->in));
	}
	h->in[h->n_in] = (struct waiting){.len = len, .data = malloc(len)};
	memcpy(h->in[h->n_in++].data, p, len);
}

/* As a stack process does it: what it has read into a buffer of the core's */
static void core_input(struct host *h, uint32_t leg, const uint8_t *p, uint32_t len,
		       const struct dmm_rx_meta *rx)
{
	struct dmm_rx_meta meta = *rx;

	if (!h->buffer)
		h->buffer = dmm_core_buffer(h->core);
	CHECK(h->buffer && len <= DMM_CORE_BUFFER_BYTES);
	memcpy(h->buffer, p, len);
	meta.lent = 1;
	if (P.check)
		unmoved_input(h->core, leg, h->buffer, len, &meta, now);
	else
		dmm_core_input(h->core, leg, h->buffer, len, &meta, now);
	h->buffer = dmm_core_buffer_next(h->core, h->buffer);
}

static void split_input(uint32_t host, const uint8_t *p, uint32_t len)
{
	struct dmm_rx_meta rx = {.link = PEERS_LINK, .mtu = (uint32_t)P.mtu};

	core_input(&H[host], DMM_LEG_OUTER, p, len, &rx);
}

static void gro_flush(struct host *h)
{
	struct dmm_rx_meta rx = {.link = PEERS_LINK, .mtu = (uint32_t)P.mtu};
	uint32_t len;

	if (!h->gro.n)
		return;
	merged += h->gro.n > 1;
	len = gro_take(&h->gro, &rx.vnet);
	if (P.gro_split && rx.vnet.gso_type) {
		rx.vnet.csum_start = h->gro.data[0] >> 4 == 4 ? 20 : 40;
		nic_cut(h->index, h->gro.data, len, &rx.vnet, split_input);
		return;
	}
	core_input(h, DMM_LEG_OUTER, h->gro.data, len, &rx);
}

static void link_input(struct host *h, const uint8_t *p, uint32_t len)
{
	struct pkt k;
	bool waits = P.gro_ns && gro_may_wait(p, len, &k);

	if (waits && gro_joins(&h->gro, p, &k)) {
		gro_add(&h->gro, p, &k);
		return;
	}
	gro_flush(h);
	if (waits)
		gro_begin(&h->gro, p, len, &k, now + P.gro_ns);
	else
		split_input(h->index, p, len);
}

static void input(uint32_t host, enum place at, const uint8_t *p, uint32_t len, bool csum_ok)
{
	struct host *h = &H[host];
	struct dmm_rx_meta rx = {
		.vnet.flags = DMM_VNET_DATA_VALID, .link = KERNELS_LINK, .mtu = (uint32_t)P.mtu};

	if (at == AT_CORE)
		core_input(h, DMM_LEG_INNER, p, len, &rx);
	else if (at == AT_KERN || !h->core)
		kern_input(&h->kern, p, len, csum_ok, now);
	else
		link_input(h, p, len);
}

/* The outer leg's initial sequence number of the first connection */
static void note_isn(struct host *h)
{
	if (h->index > 1 || has_isn[h->index] || !h->core->n_live || !transport_is_plain())
		return;
	has_isn[h->index] = true;
	isn_seen[h->index] = leg_of(h->core->slots[h->core->live[0]], DMM_LEG_OUTER)->iss;
}

static void actions(struct host *h)
{
	struct dmm_action a;

	while (dmm_core_action(h->core, &a)) {
		if (a.type == DMM_ACTION_OWN && P.unreach)
			dmm_core_unreachable(h->core, a.conn, (uint32_t)P.unreach, now);
		h->owned += a.type == DMM_ACTION_OWN;
		h->plain += a.type == DMM_ACTION_OWN && transport_is_tcp(h->core, a.conn);
		h->disowned += a.type == DMM_ACTION_DISOWN;
		h->closed += a.type == DMM_ACTION_CLOSED;
		if (a.type == DMM_ACTION_CLOSED && a.error)
			h->last_error = a.error;
	}
}

static void check_meta(const struct dmm_tx_meta *m, uint32_t leg, uint32_t n)
{
	bool offload = m->vnet.flags || m->vnet.gso_type;
	uint32_t longest = m->vnet.gso_type ? (uint32_t)m->vnet.hdr_len + m->vnet.gso_size : n;

	if ((leg == DMM_LEG_OUTER && ((offload && !P.tso) || longest > P.mtu || !m->link)) ||
	    (leg == DMM_LEG_INNER && n > 1500 && !m->vnet.gso_size)) {
		printf("bad_meta=1\n");
		exit(3);
	}
}

static void to_link(uint32_t from, const uint8_t *p, uint32_t len)
{
	static uint8_t q[65536];
	uint64_t head[] = {now, from, len};

	memcpy(q, p, len);
	if (from == 1)
		window_as_linux(H[1].core, q, len);
	wire_hash = unmoved_hash(unmoved_hash(wire_hash, head, sizeof(head)), q, len);
	path_link_send(from, q, len);
}

static struct pulled out[PULL_MOST];

static uint32_t pull(struct dmm_core *core, uint32_t leg, uint32_t cap)
{
	uint32_t n = pull_headers(core, leg, cap, out, now);

	for (uint32_t i = 0; i < n; i++) {
		check_meta(&out[i].meta, leg, out[i].len);
		if (!pull_payload(&out[i])) {
			printf("bad_payload=1\n");
			exit(3);
		}
	}
	dmm_core_output_taken(core);
	return n;
}

static bool pump(struct host *h)
{
	bool did = false;
	uint32_t n;

	h->core_next = NEVER;
	if (!h->core) {
		h->kern_next = kern_run(&h->kern, now);
		return false;
	}
	for (uint32_t i = 0; i < h->n_in; i++) {
		input(h->index, AT_CORE, h->in[i].data, h->in[i].len, true);
		free(h->in[i].data);
		did = true;
	}
	h->n_in = 0;
	h->peak_bytes = max_u64(h->peak_bytes, h->core->env.mem.chunk_bytes);
	if (P.outsider)
		outsider_sends(h->core, now);
	actions(h);
	note_isn(h);
	while ((n = pull(h->core, DMM_LEG_OUTER, P.tso ? 65535 : (uint32_t)P.mtu))) {
		for (uint32_t i = 0; i < n; i++) {
			super_segments += !!out[i].meta.vnet.gso_type;
			nic_send(h->index, out[i].data, out[i].len, &out[i].meta.vnet, to_link);
		}
		did = true;
	}
	while ((n = pull(h->core, DMM_LEG_INNER, P.gso ? (uint32_t)P.gso : 1500))) {
		for (uint32_t i = 0; i < n; i++) {
			uint8_t flags = out[i].meta.vnet.flags;

			if (!path_inner_send(h->index, AT_KERN, out[i].data, out[i].len, flags))
				input(h->index, AT_KERN, out[i].data, out[i].len, flags);
		}
		did = true;
	}
	if (P.check)
		check_core(h->core);
	h->kern_next = kern_run(&h->kern, now);
	h->core_next = dmm_core_poll(h->core, now);
	actions(h);
	return did || h->n_in || h->core_next <= now;
}

static void setup_core(struct host *h)
{
	struct dmm_core_config cfg = {
		.seed = P.seed * 2 + h->index,
		.memory_bytes = P.memory,
		.max_connections = (uint32_t)P.maxconn,
		.inner_gso_max = (uint32_t)P.gso,
		.outer_gso_max = (uint32_t)P.tso,
		.outer_csum_partial = !!P.tso,
		.sndbuf_bytes = (uint32_t)P.sndbuf,
		.rcvbuf_bytes = (uint32_t)P.rcvbuf,
		.time_wait_ns = P.timewait_ns,
		.keepalive_ns = P.keepalive_ns,
		.ecn_off = (uint32_t)P.ecn_off,
		.accecn_off = (uint32_t)P.accecn_off,
		.syn_cookies = (uint32_t)P.syn_cookies,
		.negotiate =
			(uint32_t)(h->index && P.negotiate_b ? P.negotiate_b - 1 : P.negotiate),
		.half_open_max = (uint32_t)P.half_open,
		.latency = (uint32_t)(h->index ? P.latency_b : P.latency),
		.redundancy_budget_ppm = (uint32_t)P.budget_ppm,
		.redundancy_residual_ppm = (uint32_t)P.residual_ppm,
		.parity_most_ppm = (uint32_t)P.parity_ppm,
	};

	memcpy(cfg.congestion, P.cc, sizeof(cfg.congestion));
	if (h->index > 1) {
		memcpy(cfg.congestion, P.rival, sizeof(cfg.congestion));
		cfg.latency = DMM_LATENCY_NORMAL;
		cfg.negotiate = 0;
	}
	transport_config(&cfg);
	h->core = dmm_core_create(&cfg);
	if (!h->core)
		exit(4);
}

static void setup_app(struct ksock *s, uint32_t i, uint32_t c)
{
	tuple_of(s, i, c);
	s->to_send = i && !P.echo ? P.down : P.up;
	s->rcvbuf = (uint32_t)P.krcvbuf;
	s->rto_ns = NEVER;
	s->open_after_ns = i ? P.down_after_ns : 0;
	s->pause_until_ns = P.pause_ns ? P.start_ns + P.pause_ns : 0;
	s->abort_at = i ? P.abort_at_b : P.abort_at;
	s->abort_at = s->abort_at ? s->abort_at - 1 : NEVER;
	s->close_at = !i && P.close_at ? P.close_at - 1 : NEVER;
	s->echoes = i && P.echo;
	s->asks = !i && P.asks;
	s->write_bytes = P.write_bytes;
	s->write_gap_ns = s->echoes ? 0 : P.write_gap_ns;
	s->echo_due = (i ? P.one_way : P.echo && !P.asks) ? P.write_bytes : NEVER;
	s->writer = &H[0].kern.v[c];
	s->read_bytes = P.read_bytes;
	s->read_gap_ns = P.read_gap_ns;
	s->rst_out = i == 0 && P.stop_early;
}

static struct kern plain_kern(struct host *h)
{
	return (struct kern){.n = 1,
			     .listening = h->index & 1,
			     .options_sack = true,
			     .options_ts = true,
			     .options_ws = true,
			     .mss = (uint16_t)(P.mtu - (P.v6 ? 60 : 40)),
			     .gso_max = 60000,
			     .send = kern_send,
			     .arg = h};
}

/* Who sends as much as the path takes, for as long as it is watched */
static void setup_bulk(struct ksock *s, uint32_t side, uint32_t c)
{
	*s = (struct ksock){.rcvbuf = 1 << 30,
			    .to_send = side ? 0 : 1ull << 40,
			    .rto_ns = NEVER,
			    .abort_at = NEVER,
			    .close_at = NEVER,
			    .echo_due = NEVER,
			    .open_after_ns = side ? NEVER / 2 : 0};
	tuple_of(s, side, c);
}

static void setup_rival(void)
{
	for (uint32_t i = 2; i < SIM_HOSTS; i++) {
		struct host *h = &H[i];

		h->index = i;
		setup_core(h);
		h->kern = plain_kern(h);
		h->kern.v = calloc(1, sizeof(struct ksock));
		setup_bulk(h->kern.v, i & 1, 0);
	}
	n_hosts = SIM_HOSTS;
	kern_connect(&H[2].kern, &H[2].kern.v[0], now);
}

static void setup_host(uint32_t i)
{
	struct host *h = &H[i];
	bool on_link = i == 1 && P.direct;
	/* A reset can get lost where this kern stands, or come before what it follows, so the kern
	 * asks after a silent peer as a real one would */
	bool lossy = on_link || P.inner_loss > 0 || P.inner_reorder > 0 || P.inner_drop_to_ns ||
		     P.wild_a;

	h->index = i;
	if (!on_link)
		setup_core(h);
	h->kern = (struct kern){.n = (uint32_t)(P.conns + P.bulk),
				.listening = i || P.simopen,
				.refuse = i && P.refuse,
				.mute = i && P.mute,
				.options_sack = !P.ksack,
				.options_ts = !P.kts,
				.options_ws = !P.kws,
				.mss = (uint16_t)(P.mtu - (P.v6 ? 60 : 40)),
				.gso_max = P.gso && !on_link ? 60000 : 0,
				.keepalive_ns = lossy ? 75 * NS_PER_S : 0,
				.send = kern_send,
				.arg = h,
				.isn_base = (uint32_t)P.isn};
	if (i ? P.direct : P.wild_a) {
		wild_init(&h->wild);
		h->kern.wild = &h->wild;
	}
	h->kern.v = calloc(h->kern.n, sizeof(struct ksock));
	for (uint32_t c = 0; c < P.conns; c++)
		setup_app(&h->kern.v[c], i, c);
	if (P.bulk)
		setup_bulk(&h->kern.v[P.conns], i, (uint32_t)P.conns);
}

static uint32_t connections(const struct host *h)
{
	return h->core ? dmm_core_connections(h->core) : 0;
}

static bool all_over(void)
{
	if (H[0].gro.n || H[1].gro.n || path_next_ns() != NEVER || H[0].n_in || H[1].n_in)
		return false;
	for (uint32_t i = 0; i < P.conns; i++) {
		if (!verdict_is_over(&H[0].kern.v[i], &H[1].kern.v[i]))
			return false;
	}
	return connections(&H[0]) + connections(&H[1]) == 0;
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

		kern_reset(s);
		H[1].kern.v[i].stale = true;
		H[0].kern.isn_base += 100000;
		kern_connect(&H[0].kern, s, now);
	}
	return true;
}

static void pump_all(void)
{
	for (int guard = 0, did = 1; did; guard++) {
		did = 0;
		for (uint32_t i = 0; i < n_hosts; i++)
			did |= pump(&H[i]);
		if (guard > 1000000) {
			printf("livelock=1\n");
			exit(3);
		}
	}
}

static void run(void)
{
	uint64_t end = now + P.limit_ns, started = 0;

	while (now < end) {
		uint64_t next =
			min_u64(transport_switch(H[0].core, now), transport_switch(H[1].core, now));

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
		pump_all();
		for (uint32_t i = 0; P.check && i < n_hosts; i++) {
			if (H[i].core)
				check_core_rests(H[i].core);
		}
		if (started == P.conns && once_more())
			continue;
		if (started == P.conns && all_over())
			return;
		next = min_u64(next, path_next_ns());
		for (uint32_t i = 0; i < n_hosts; i++) {
			next = min_u64(next, min_u64(H[i].kern_next, H[i].core_next));
			next = min_u64(next, H[i].gro.n ? H[i].gro.due_ns : NEVER);
		}
		if (started < P.conns)
			next = min_u64(next, P.start_ns + started * P.gap_ns);
		if (P.abort_all_ns)
			next = min_u64(next, P.start_ns + P.abort_all_ns);
		if (next == NEVER)
			return;
		now = max_u64(now, next);
		if (now >= P.jump_from_ns && now < P.jump_to_ns)
			now = P.jump_to_ns;
		path_deliver(input);
		for (uint32_t i = 0; i < n_hosts; i++) {
			if (H[i].gro.n && H[i].gro.due_ns <= now)
				gro_flush(&H[i]);
		}
	}
}

/* Connections that hold the order of the network for unreliable (RFC 8985 section 6.2 step 4) */
static uint32_t reordered(const struct dmm_core *core)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < core->n_live && transport_is_plain(); i++) {
		const struct conn *c = core->slots[core->live[i]];

		n += c->ends.f.phase != CONN_PARKED && leg_of(c, DMM_LEG_OUTER)->flags & TF_REORD;
	}
	return n;
}

static void report_core(const struct host *h)
{
	int side = 'a' + (int)h->index;

	printf("left_%c=%u\nowned_%c=%lu\ndisowned_%c=%lu\nclosed_%c=%lu\ncore_error_%c=%u\n", side,
	       connections(h), side, h->owned, side, h->disowned, side, h->closed, side,
	       h->last_error);
	if (!h->core)
		return;
	printf("plain_%c=%lu\nchunks_%c=%lu\npeak_%c=%lu\nslabs_%c=%lu\nreordered_%c=%u\n", side,
	       h->plain, side, h->core->env.mem.chunk_bytes, side, h->peak_bytes, side,
	       mem_held_bytes(&h->core->env.mem), side, reordered(h->core));
	for (uint32_t c = 0; c < DMM_CORE_MAX; c++)
		printf("%s_%c=%lu\n", counter_names[c], side, dmm_core_counter(h->core, c));
}

static int report(void)
{
	const struct ksock *a0 = H[0].kern.v, *b0 = H[1].kern.v;
	uint64_t last = 0, first = NEVER;
	struct verdicts n = {0};

	for (uint32_t i = 0; i < P.conns; i++) {
		const struct ksock *a = &a0[i], *b = &b0[i];

		verdict_add(&n, a, b);
		last = max_u64(last, max_u64(a->done_ns, b->done_ns));
		if (a->established_ns)
			first = min_u64(first, a->established_ns);
	}
	verdict_print(&n);
	printf("error_a=%u\nerror_b=%u\n", a0->error, b0->error);
	printf("got_a=%lu\ngot_b=%lu\n", a0->got, b0->got);
	printf("state_a=%u\nstate_b=%u\naccepted=%u\n", a0->state, b0->state, b0->accepted);
	printf("est_ns=%lu\ndone_ns=%lu\nend_ns=%lu\n", first == NEVER ? 0 : first - P.start_ns,
	       last > P.start_ns ? last - P.start_ns : 0, now - P.start_ns);
	printf("parity_bent=%lu\n", path_stats.parity_bent);
	printf("bytes_a=%lu\nbytes_b=%lu\n", path_stats.bytes[0], path_stats.bytes[1]);
	printf("sent_pkts=%lu\nqueue_lost=%lu\nmax_backlog_ns=%lu\n", path_stats.sent,
	       path_stats.queue_lost, path_stats.max_backlog_ns);
	printf("lost=%lu\nlost_rows=%lu\n", path_stats.lost, path_stats.lost_rows);
	report_core(&H[0]);
	report_core(&H[1]);
	if (*P.rival)
		printf("rival_got=%lu\nrival_bytes=%lu\n", H[3].kern.v[0].got, path_stats.bytes[2]);
	if (P.bulk)
		printf("bulk_got=%lu\n", H[1].kern.v[P.conns].got);
	outsider_report();
	lives_report(H[0].kern.v);
	trips_report(P.skip, P.late_ns);
	printf("marked=%lu\nresent=%lu\nresent_ect=%lu\n", path_stats.marked, path_stats.resent,
	       path_stats.resent_ect);
	printf("wire=%lu\nsuper_segments=%lu\nmerged=%lu\n", wire_hash, super_segments, merged);
	printf("isn_a=%u\nisn_b=%u\n", isn_seen[0], isn_seen[1]);
	printf("conn_bytes=%zu\n", sizeof(struct legs));
	return n.wrong || n.truncated ? 1 : 0;
}

int main(int argc, char **argv)
{
	int rc;

	params_parse(argc, argv);
	now = P.start_ns;
	path_init();
	kern_pattern_init();
	setup_host(0);
	setup_host(1);
	if (*P.rival)
		setup_rival();
	if (P.bulk)
		kern_connect(&H[0].kern, &H[0].kern.v[P.conns], now);
	run();
	rc = report();
	for (uint32_t h = 0; h < n_hosts; h++) {
		if (H[h].core)
			dmm_core_destroy(H[h].core);
		free(H[h].kern.v);
		free(H[h].in);
	}
	path_deinit();
	return rc;
}
