/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scale.c: very many connections through two cores, in virtual time. Application 1 opens them,
 * application 2 answers; each connection carries a request and a response, idles while keep-alive
 * probes pass, carries another exchange, and is closed.
 *
 *	scale [conns=100000] [cc=cubic] [idle_s=165] [keepalive_s=60] [busy_poll_s=30]
 *
 * The path has a fixed delay and loses nothing. During the last busy_poll_s of the idle time both
 * cores are polled every millisecond whether anything is due or not. Prints key=value lines; memory
 * is what the cores tell (dmm_core_memory) when everything idles, CPU times are of the process
 * clock.
 */
#include "check.h"

#include <time.h>

enum { MTU = 1500, GSO = 60000, REQUEST_BYTES = 200, RESPONSE_BYTES = 1000, PER_ADDRESS = 50000 };

#define LINK (1ull << 48 | 0x020000000001) /* a MAC address, as a stack process has it */
#define DELAY_NS (10 * NS_PER_MS)
#define OPEN_EVERY_NS (NS_PER_MS / 20)

/* One end's socket: loss-free, so no timers and no windows to speak of */
struct sock {
	uint32_t iss;
	uint32_t irs;
	uint32_t sent; /* payload bytes, the FIN counts as one */
	uint32_t got;
	bool open;
	bool fin_got;
	bool reset;
};

struct packet {
	struct packet *next;
	uint64_t at_ns;
	uint32_t len;
	uint8_t data[];
};

struct side {
	struct dmm_core *core;
	struct sock *v;
	struct packet *first, **last; /* on their way to this side's core */
	uint64_t next_ns;
	uint64_t owned, disowned;
};

static struct side S[2];
static uint64_t now = NS_PER_S, n_conns = 100000, idle_s = 165, keepalive_s = 60, busy_poll_s = 30,
		answers;
static char cc[16] = "cubic";

static void names(uint32_t i, uint32_t side, struct wire_dir *d)
{
	static uint8_t client[16] = {[10] = 0xff, [11] = 0xff, [12] = 10};
	static const uint8_t server[16] = {[10] = 0xff, [11] = 0xff, [12] = 10, [13] = 1, [15] = 1};
	uint16_t port_be = __builtin_bswap16((uint16_t)(10000 + i % PER_ADDRESS));

	client[15] = (uint8_t)(1 + i / PER_ADDRESS);
	*d = (struct wire_dir){.family = WIRE_AF_INET};
	d->saddr = side ? server : client;
	d->daddr = side ? client : server;
	d->sport_be = side ? __builtin_bswap16(80) : port_be;
	d->dport_be = side ? port_be : __builtin_bswap16(80);
}

static void app_send(uint32_t side, uint32_t i, uint8_t flags, uint32_t len)
{
	struct dmm_rx_meta rx = {.vnet.flags = DMM_VNET_DATA_VALID, .link = LINK, .mtu = MTU};
	struct sock *k = &S[side].v[i];
	struct wire_seg seg = {.flags = flags, .wnd = 60000};
	uint8_t buf[128 + RESPONSE_BYTES];
	struct wire_dir d;
	uint32_t n;

	names(i, side, &d);
	seg.seq = k->iss + !(flags & TH_SYN) + k->sent;
	seg.ack = flags & TH_ACK ? k->irs + 1 + k->got : 0;
	if (flags & TH_SYN) {
		wire_opt_mss(&seg, 1460);
		wire_opt_syn_tail(&seg, true, true, (uint32_t)(now / NS_PER_MS), 0, true, 7);
	} else {
		wire_opt_ts(&seg, (uint32_t)(now / NS_PER_MS), 0);
	}
	n = wire_headers(buf, &d, &seg, len);
	memset(buf + n, (int)('a' + i % 26), len);
	k->sent += len + !!(flags & TH_FIN);
	dmm_core_input(S[side].core, DMM_LEG_INNER, buf, n + len, &rx, now);
}

/* A packet for the application of side */
static void app_input(uint32_t side, const uint8_t *p, uint32_t len)
{
	struct sock *k;
	struct pkt pkt;
	uint32_t i;

	CHECK(wire_parse(p, len, false, &pkt) == WIRE_TCP);
	i = __builtin_bswap16(side ? pkt.sport_be : pkt.dport_be) - 10000u;
	i += PER_ADDRESS * (side ? pkt.saddr[15] - 1u : pkt.daddr[15] - 1u);
	CHECK(i < n_conns);
	k = &S[side].v[i];
	if (pkt.flags & TH_RST) {
		k->reset = true;
		return;
	}
	if (pkt.flags & TH_SYN) {
		*k = (struct sock){.iss = side ? i * 31 : k->iss, .irs = pkt.seq, .open = true};
		app_send(side, i, side ? TH_SYN | TH_ACK : TH_ACK, 0);
		return;
	}
	CHECK((int32_t)(pkt.seq - k->irs - 1 - k->got) <= 0); /* no holes */
	if (pkt.seq - k->irs - 1 != k->got) {
		app_send(side, i, TH_ACK, 0); /* a keep-alive probe */
		return;
	}
	if (!pkt.payload_len && !(pkt.flags & TH_FIN))
		return;
	for (uint32_t b = 0; b < pkt.payload_len; b++)
		CHECK(pkt.payload[b] == 'a' + i % 26);
	k->got += pkt.payload_len + !!(pkt.flags & TH_FIN);
	k->fin_got |= !!(pkt.flags & TH_FIN);
	if (side && pkt.payload_len)
		app_send(1, i, TH_ACK, RESPONSE_BYTES);
	else
		app_send(side, i, side && k->fin_got ? TH_ACK | TH_FIN : TH_ACK, 0);
	answers += !side && pkt.payload_len;
}

static void pull(uint32_t side)
{
	static uint8_t buf[65536];
	struct side *s = &S[side];
	struct dmm_action a;
	struct dmm_tx_meta m;
	uint32_t n;

	while (dmm_core_action(s->core, &a)) {
		s->owned += a.type == DMM_ACTION_OWN;
		s->disowned += a.type == DMM_ACTION_DISOWN;
	}
	while ((n = dmm_core_output(s->core, DMM_LEG_OUTER, buf, MTU, &m, now))) {
		struct packet *p = malloc(sizeof(*p) + n);

		*p = (struct packet){.at_ns = now + DELAY_NS, .len = n};
		memcpy(p->data, buf, n);
		*S[!side].last = p;
		S[!side].last = &p->next;
	}
	while ((n = dmm_core_output(s->core, DMM_LEG_INNER, buf, GSO, &m, now)))
		app_input(side, buf, n);
	s->next_ns = dmm_core_poll(s->core, now);
}

static void arrive(struct side *s)
{
	struct dmm_rx_meta rx = {.vnet.flags = DMM_VNET_DATA_VALID, .link = LINK, .mtu = MTU};

	while (s->first && s->first->at_ns <= now) {
		struct packet *p = s->first;

		s->first = p->next;
		if (!s->first)
			s->last = &s->first;
		dmm_core_input(s->core, DMM_LEG_OUTER, p->data, p->len, &rx, now);
		free(p);
	}
}

/* Lets time pass; step_ns != 0: the cores are polled that often even if nothing is due */
static void pass(uint64_t until_ns, uint64_t step_ns)
{
	while (now < until_ns) {
		uint64_t next_ns = step_ns ? min_u64(now + step_ns, until_ns) : until_ns;

		for (uint32_t side = 0; side < 2; side++) {
			arrive(&S[side]);
			do
				pull(side);
			while (S[side].next_ns <= now);
			next_ns = min_u64(next_ns, S[side].next_ns);
		}
		for (uint32_t side = 0; side < 2; side++)
			next_ns = S[side].first ? min_u64(next_ns, S[side].first->at_ns) : next_ns;
		now = max_u64(next_ns, now + 1);
	}
}

static void each(void (*act)(uint32_t i))
{
	for (uint32_t i = 0; i < n_conns; i++) {
		act(i);
		if (i % 16 == 15)
			pass(now + 16 * OPEN_EVERY_NS, 0);
	}
	pass(now + NS_PER_S, 0);
}

static void act_open(uint32_t i)
{
	S[0].v[i].iss = i * 17;
	app_send(0, i, TH_SYN, 0);
}

static void act_ask(uint32_t i)
{
	app_send(0, i, TH_ACK, REQUEST_BYTES);
}

static void act_close(uint32_t i)
{
	app_send(0, i, TH_ACK | TH_FIN, 0);
}

static uint64_t cpu_ms(void)
{
	return (uint64_t)clock() * 1000 / CLOCKS_PER_SEC;
}

static void print_memory(const char *when)
{
	for (uint32_t side = 0; side < 2; side++) {
		struct dmm_core_memory m;

		dmm_core_memory(S[side].core, &m);
		printf("%s_%c_connections=%u\n%s_%c_parked=%u\n", when, 'a' + side, m.connections,
		       when, 'a' + side, m.parked);
		printf("%s_%c_used_bytes=%lu\n%s_%c_held_bytes=%lu\n", when, 'a' + side,
		       m.used_bytes, when, 'a' + side, m.held_bytes);
		printf("%s_%c_payload_bytes=%lu\n%s_%c_table_bytes=%lu\n", when, 'a' + side,
		       m.payload_bytes, when, 'a' + side, m.table_bytes);
		if (m.connections)
			printf("%s_%c_bytes_per_conn=%lu\n", when, 'a' + side,
			       (m.used_bytes - m.payload_bytes + m.table_bytes) / m.connections);
	}
}

static void parse_args(int argc, char **argv)
{
	static const struct {
		const char *name;
		uint64_t *to;
	} keys[] = {{"conns=", &n_conns},
		    {"idle_s=", &idle_s},
		    {"keepalive_s=", &keepalive_s},
		    {"busy_poll_s=", &busy_poll_s}};

	for (int a = 1; a < argc; a++) {
		for (uint32_t k = 0; k < sizeof(keys) / sizeof(*keys); k++) {
			if (!strncmp(argv[a], keys[k].name, strlen(keys[k].name)))
				*keys[k].to = strtoull(argv[a] + strlen(keys[k].name), NULL, 10);
		}
		if (!strncmp(argv[a], "cc=", 3))
			snprintf(cc, sizeof(cc), "%s", argv[a] + 3);
	}
}

int main(int argc, char **argv)
{
	uint64_t at_ms, in_packets, wrong = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	parse_args(argc, argv);
	for (uint32_t side = 0; side < 2; side++) {
		struct dmm_core_config cfg = {.seed = side,
					      .max_connections = (uint32_t)n_conns,
					      .inner_gso_max = GSO,
					      .keepalive_ns = keepalive_s * NS_PER_S};

		memcpy(cfg.congestion, cc, sizeof(cc));
		S[side] = (struct side){.core = dmm_core_create(&cfg),
					.v = calloc(n_conns, sizeof(struct sock))};
		S[side].last = &S[side].first;
		CHECK(S[side].core);
	}
	each(act_open);
	each(act_ask);
	printf("answers=%lu\ncpu_open_ms=%lu\n", answers, cpu_ms());
	print_memory("busy");
	pass(now + (idle_s - busy_poll_s) * NS_PER_S, 0);
	in_packets = dmm_core_counter(S[0].core, DMM_CORE_IN_PACKETS);
	at_ms = cpu_ms();
	pass(now + busy_poll_s * NS_PER_S, NS_PER_MS);
	printf("cpu_busy_poll_ms=%lu\n", cpu_ms() - at_ms);
	printf("busy_poll_packets=%lu\n",
	       dmm_core_counter(S[0].core, DMM_CORE_IN_PACKETS) - in_packets);
	printf("probes=%lu\n", in_packets);
	print_memory("idle");
	check_core(S[0].core);
	each(act_ask);
	printf("answers_after=%lu\n", answers);
	each(act_close);
	pass(now + 61 * NS_PER_S, 0);
	pull(0);
	pull(1);
	print_memory("end");
	for (uint32_t side = 0; side < 2; side++) {
		CHECK(S[side].owned == S[side].disowned);
		for (uint32_t i = 0; i < n_conns; i++) {
			const struct sock *k = &S[side].v[i];

			wrong += k->reset || !k->fin_got ||
				 k->got != 2 * (side ? REQUEST_BYTES : RESPONSE_BYTES) + 1u;
		}
		dmm_core_destroy(S[side].core);
		free(S[side].v);
	}
	printf("wrong=%lu\ncpu_ms=%lu\n", wrong, cpu_ms());
	return wrong ? 1 : 0;
}
