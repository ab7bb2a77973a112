/* SPDX-License-Identifier: Apache-2.0 */
/* outsider.c: see outsider.h */
#include "outsider.h"

#include "params.h"
#include "path.h"
#include "unmoved.h"

#include <stdio.h>

enum {
	TRIES = 200,
	MOST_PAYLOAD = 1400,
	MOST_PER_MS = 8, /* times: what answers him makes a core run again */
};

static const char *const state_names[] = {[TCP_ESTABLISHED] = "established",
					  [TCP_SYN_SENT] = "syn_sent",
					  [TCP_SYN_RECV] = "syn_recv",
					  [TCP_FIN_WAIT1] = "fin_wait1",
					  [TCP_FIN_WAIT2] = "fin_wait2",
					  [TCP_TIME_WAIT] = "time_wait",
					  [TCP_CLOSE] = "close",
					  [TCP_CLOSE_WAIT] = "close_wait",
					  [TCP_LAST_ACK] = "last_ack",
					  [TCP_LISTEN] = "listen",
					  [TCP_CLOSING] = "closing"};
enum { STATES = sizeof(state_names) / sizeof(*state_names) };

static uint64_t rng, sent, sent_into[2][STATES];

static uint32_t any(void)
{
	if (!rng)
		rng = P.seed * 0x9e3779b97f4a7c15ull | 1;
	return (uint32_t)(xorshift64(&rng) >> 20);
}

static uint32_t below(uint32_t n)
{
	return any() % n;
}

/* Around a number that counts, or any */
static uint32_t number(const uint32_t *near, uint32_t n)
{
	static const uint32_t steps[] = {0, 1, 2, 1000, 65535, 1 << 20, 1u << 30, 1u << 31};
	uint32_t step = steps[below(8)];

	if (P.outsider_any || below(2))
		return any();
	return near[below(n)] + (below(2) ? step : -step);
}

static uint32_t number_seq(const struct tcb *t)
{
	uint32_t near[] = {t->irs, t->irs + (uint32_t)t->rcv_nxt, t->irs + (uint32_t)t->rcv_adv,
			   t->irs + (uint32_t)t->last_ack_sent};

	return number(near, 4);
}

static uint32_t number_ack(const struct tcb *t)
{
	uint32_t near[] = {t->iss, t->iss + (uint32_t)t->snd_nxt, t->iss + (uint32_t)t->snd_una,
			   t->iss + (uint32_t)t->snd_una - t->max_wnd};

	return number(near, 4);
}

static uint32_t number_ts(const struct tcb *t)
{
	return number(&t->ts_recent, 1);
}

static void syn_options(const struct tcb *t, struct wire_seg *s)
{
	uint32_t bits = any(), tsval = number_ts(t), tsecr = any();

	wire_opt_mss(s, (uint16_t)(bits >> 16));
	wire_opt_syn_tail(s, bits & 1, bits & 2, tsval, tsecr, bits & 4, bits >> 4 & 15);
}

static void options(const struct tcb *t, struct wire_seg *s)
{
	uint32_t bytes[ACCECN_COUNTERS], n = 1 + below(3), tsval = number_ts(t);
	struct wire_sack sack[3];

	if (s->flags & TH_SYN) {
		syn_options(t, s);
		return;
	}
	for (uint32_t i = 0; i < ACCECN_COUNTERS; i++)
		bytes[i] = any();
	if (below(4))
		wire_opt_ts(s, tsval, bytes[0]);
	for (uint32_t i = 0; i < n; i++) {
		sack[i].start = number_ack(t);
		sack[i].end = sack[i].start + below(100000);
	}
	if (below(3) == 0 && s->opt_len + 4 + 8 * n <= WIRE_TCP_OPT_MAX)
		wire_opt_sack(s, sack, n);
	if (below(3) == 0 && s->opt_len + WIRE_ACCECN_FULL <= WIRE_TCP_OPT_MAX)
		wire_opt_accecn(s, bytes, bytes[1] & 1, bytes[1] & 2);
}

static uint32_t segment(const struct conn *c, uint32_t leg, uint8_t *buf)
{
	static const uint16_t usual[] = {TH_ACK, TH_ACK | TH_PSH, TH_SYN,	   TH_SYN | TH_ACK,
					 TH_RST, TH_RST | TH_ACK, TH_FIN | TH_ACK, 0};
	const struct tcb *t = leg_of(c, leg);
	uint32_t len = below(2) ? 0 : below(MOST_PAYLOAD), headers;
	struct wire_seg s = {.flags = (uint16_t)below(512)};
	struct wire_dir d;

	if (below(2))
		s.flags = usual[below(8)];
	s.seq = number_seq(t);
	s.ack = number_ack(t);
	s.wnd = (uint16_t)any();
	s.urg = (uint16_t)(below(4) ? 0 : any());
	options(t, &s);
	/* the other leg's direction: this leg's peer is the sender */
	ctl_dir(&c->ends.f.pair, !leg, &d);
	d.tos = (uint8_t)any();
	headers = wire_headers(buf, &d, &s, len);
	memset(buf + headers, 0x5a, len);
	wire_csum_full(buf, &d, headers, len, csum_add(buf + headers, len, 0));
	return headers + len;
}

static uint32_t icmp_error(const struct conn *c, uint32_t leg, uint8_t *buf)
{
	static const uint8_t kinds[2][4][2] = {{{3, 1}, {3, 3}, {3, 4}, {11, 0}},
					       {{1, 0}, {1, 4}, {2, 0}, {3, 0}}};
	const uint8_t *kind = kinds[c->ends.f.pair.family == WIRE_AF_INET6][below(4)];
	struct wire_seg s = {.seq = number_ack(leg_of(c, leg))};
	struct wire_dir d;

	ctl_dir(&c->ends.f.pair, leg, &d);
	return wire_icmp_error(buf, &d, &s, kind[0], kind[1]);
}

static void send_one(struct dmm_core *core, uint32_t nth, uint32_t leg, uint64_t now_ns)
{
	static uint8_t buf[2048];
	struct dmm_rx_meta meta = {.vnet.flags = leg == DMM_LEG_INNER ? DMM_VNET_DATA_VALID : 0,
				   .link = leg == DMM_LEG_INNER ? KERNELS_LINK : OUTSIDERS_LINK};
	struct legs copy;
	const struct conn *c = &copy.c;
	uint32_t state;

	legs_copy(&copy, core, core->slots[core->live[nth]]);
	state = leg_of(c, leg)->state;
	for (int i = 0; i < TRIES; i++) {
		uint32_t len = below(10) ? segment(c, leg, buf) : icmp_error(c, leg, buf), handle;
		bool found;

		if (!P.outsider_any && unmoved_judge(core, leg, buf, len, meta.vnet.flags, now_ns,
						     &handle, &found) == MAY_CHANGE)
			continue;
		unmoved_input(core, leg, buf, len, &meta, now_ns);
		sent++;
		sent_into[leg][state]++;
		return;
	}
	fprintf(stderr, "outsider: every number is acceptable in state %u of leg %u\n", state, leg);
	abort();
}

void outsider_sends(struct dmm_core *core, uint64_t now_ns)
{
	static uint64_t at_ms, times;

	times = at_ms == now_ns / NS_PER_MS ? times + 1 : 1;
	at_ms = now_ns / NS_PER_MS;
	if (times > MOST_PER_MS)
		return;
	for (uint64_t i = 0; i < P.outsider; i++) {
		for (uint32_t nth = 0; nth < core->n_live; nth++) {
			if (!P.outsider_any)
				send_one(core, nth, DMM_LEG_INNER, now_ns);
			if (nth < core->n_live)
				send_one(core, nth, DMM_LEG_OUTER, now_ns);
		}
	}
}

void outsider_report(void)
{
	if (!P.outsider)
		return;
	printf("forged=%lu\n", sent);
	for (uint32_t leg = 0; leg < 2; leg++) {
		for (uint32_t s = 1; s < STATES; s++)
			printf("forged_%s_%s=%lu\n", leg ? "outer" : "inner", state_names[s],
			       sent_into[leg][s]);
	}
}
