/* SPDX-License-Identifier: Apache-2.0 */
/* path.c: see path.h */
#include "path.h"

#include "../chance.h"
#include "heap.h"
#include "mark.h"
#include "params.h"
#include "fec/repair.h"
#include "wire/wire.h"

#include <stdlib.h>

uint64_t now;
struct path_stats path_stats;

/* One way of the link: what it remembers of chance */
struct chance {
	bool begun, bad;      /* the chain of bursts */
	uint64_t step_end_ns; /* of the slot of time that bad is about */
	uint64_t last_due_ns;
	bool last_lost;
};

static uint64_t rng, link_free_ns[2], syns_seen, data_seen, doubled;
static struct chance chances[2];

static double rnd(void)
{
	return (double)(xorshift64(&rng) >> 11) / 9007199254740992.0;
}

void path_init(void)
{
	rng = P.seed * 0x9e3779b97f4a7c15ull | 1;
}

void path_deinit(void)
{
	while (n_heap)
		free(heap_pop().data);
	free(heap);
}

static void push(struct parcel e, const uint8_t *p)
{
	e.data = malloc(e.len);
	memcpy(e.data, p, e.len);
	heap_push(e);
}

void path_mend_csum(uint8_t *p, uint32_t len)
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

/* Where our option stands; NULL: it is not there */
static uint8_t *agree_of(uint8_t *p)
{
	uint32_t ip = p[0] >> 4 == 4 ? 20 : 40;
	uint8_t *o = p + ip + 20, *end = p + ip + (p[ip + 12] >> 4) * 4;

	if ((p[0] >> 4 == 4 ? p[9] : p[6]) != 6)
		return NULL;
	for (; o + WIRE_AGREE_LEN <= end && *o; o += *o == 1 ? 1 : o[1]) {
		if (*o == WIRE_AGREE_KIND)
			return o;
	}
	return NULL;
}

/* The middlebox that does not like our option, see params.def. false: the packet is dropped */
static bool agree_box(uint8_t *p, uint32_t len)
{
	static uint8_t offer[WIRE_AGREE_LEN];
	uint8_t *o = P.agree_box ? agree_of(p) : NULL,
		flags = p[(p[0] >> 4 == 4 ? 20 : 40) + 13] & (TH_SYN | TH_ACK);

	if (!o)
		return true;
	if (flags == TH_SYN)
		memcpy(offer, o, sizeof(offer));
	switch (P.agree_box) {
	case 1:
		return !(flags & TH_SYN);
	case 2:
		memset(o, 1, WIRE_AGREE_LEN);
		break;
	case 3:
		if (flags == (TH_SYN | TH_ACK))
			memset(o, 1, WIRE_AGREE_LEN);
		break;
	case 4:
		if (!(flags & TH_SYN))
			memset(o, 1, WIRE_AGREE_LEN);
		break;
	case 5:
		if (flags == (TH_SYN | TH_ACK))
			memcpy(o, offer, sizeof(offer));
		break;
	default:
		o[7] ^= 1;
	}
	path_mend_csum(p, len);
	return true;
}

/* The middlebox that does not like parity, see params.def; *len may become less, *copies more */
static void parity_box(uint8_t *p, uint32_t *len, uint32_t *copies)
{
	uint8_t *o = P.parity_box ? agree_of(p) : NULL, *payload;
	struct pkt k;

	if (!o || wire_parse(p, *len, false, &k) != WIRE_TCP || k.n_agree != 1 ||
	    k.agree.role != WIRE_AGREE_PARITY || !wire_parity_bears(&k.agree) ||
	    k.payload_len <= FEC_HEADER)
		return;
	path_stats.parity_bent++;
	payload = p + (k.payload - p);
	switch (P.parity_box) {
	case 1:
		memset(o, 1, WIRE_AGREE_LEN);
		break;
	case 2:
		payload[k.payload_len - 1] ^= 1;
		break;
	case 3:
		*len -= k.payload_len / 2;
		if (P.v6)
			put_be16(p + 4, (uint16_t)(*len - 40));
		else
			put_be16(p + 2, (uint16_t)*len);
		break;
	case 4:
		*copies += ++doubled & 1;
		break;
	case 5:
		payload[15] ^= 1; /* the check value */
		break;
	default:
		payload[xorshift64(&rng) % FEC_HEADER] ^= (uint8_t)(1 + xorshift64(&rng) % 255);
	}
	if (!P.v6) {
		uint16_t csum;

		memset(p + 10, 0, 2);
		csum = (uint16_t)~csum_fold(csum_add(p, 20, 0));
		memcpy(p + 10, &csum, 2);
	}
	path_mend_csum(p, *len);
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
	path_mend_csum(p, len);
}

/* Damage that no checksum finds */
static void forge(uint8_t *p, uint32_t len)
{
	struct pkt k;

	if (!P.forge_every || wire_parse(p, len, false, &k) != WIRE_TCP || !k.payload_len)
		return;
	if (++data_seen % P.forge_every)
		return;
	p[len - 1] ^= 1;
	path_mend_csum(p, len);
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
	d = (struct wire_dir){.saddr = k.saddr,
			      .daddr = k.daddr,
			      .sport_be = k.sport_be,
			      .dport_be = k.dport_be,
			      .family = k.family};
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
	push((struct parcel){.at_ns = now + P.delay_ns, .to = from, .len = n}, buf);
	return true;
}

/* Packets that never reach the queue */
static bool swallowed(const uint8_t *p, uint32_t len)
{
	uint32_t ip = p[0] >> 4 == 4 ? 20 : 40;

	if (P.synloss && (p[ip + 13] & TH_SYN) && syns_seen++ < P.synloss)
		return true;
	if (P.hole_bytes && len > P.hole_bytes)
		return true;
	if (P.ecn_drop && (p[ip + 13] & (TH_SYN | TH_ECE)) == (TH_SYN | TH_ECE))
		return true;
	return now >= P.cut_from_ns && now < P.cut_to_ns;
}

static void count_resent(uint32_t from, const uint8_t *p, uint32_t len)
{
	static uint32_t highest;
	static bool any;
	struct pkt pkt;

	if (from || P.conns != 1 || wire_parse(p, len, false, &pkt) != WIRE_TCP || !pkt.payload_len)
		return;
	if (any && (int32_t)(pkt.seq - highest) < 0) {
		path_stats.resent++;
		path_stats.resent_ect += !!(pkt.tos & WIRE_ECN_MASK);
		return;
	}
	any = true;
	highest = pkt.seq + pkt.payload_len;
}

/* The chain at at_ns, when a packet leaves the queue */
static bool meets_bad(struct chance *c, const struct gilbert *g, uint64_t at_ns)
{
	uint64_t steps = 1;

	if (!c->begun) {
		c->begun = true;
		c->bad = rnd() < gilbert_bad_share(g);
		c->step_end_ns = at_ns + g->step_ns;
		return c->bad;
	}
	if (g->step_ns) {
		if (at_ns < c->step_end_ns)
			return c->bad;
		steps += (at_ns - c->step_end_ns) / g->step_ns;
		c->step_end_ns += steps * g->step_ns;
		steps = min_u64(steps, GILBERT_STEPS_MAX);
	}
	for (; steps; steps--)
		c->bad = gilbert_step(g, c->bad, rnd());
	return c->bad;
}

static bool lost(uint32_t from, uint32_t len, uint64_t at_ns)
{
	const struct gilbert g = {.p = P.burst_p,
				  .r = P.burst_r,
				  .loss_bad = P.burst_loss_bad,
				  .loss_good = P.burst_loss_good,
				  .step_ns = P.burst_step_ns};
	uint32_t way = from & 1;
	bool gone = rnd() < (way ? P.loss_back : P.loss), bad;

	/* Nothing is drawn for a chain that is not there: seeds mean what they meant before it */
	if (g.p > 0) {
		bad = meets_bad(&chances[way], &g, at_ns);
		gone |= rnd() < gilbert_loss(&g, bad);
	}
	gone &= !P.loss_above || len > P.loss_above;
	path_stats.lost += gone;
	path_stats.lost_rows += gone && !chances[way].last_lost;
	chances[way].last_lost = gone;
	return gone;
}

static uint64_t jittered(uint32_t from, uint64_t due_ns)
{
	struct chance *c = &chances[from & 1];

	if (!P.jitter_ns)
		return due_ns;
	due_ns += jitter_draw(P.jitter_ns, P.jitter_exponential, rnd());
	if (!P.jitter_reorder)
		due_ns = c->last_due_ns = max_u64(due_ns, c->last_due_ns);
	return due_ns;
}

void path_link_send(uint32_t from, const uint8_t *p, uint32_t len)
{
	uint64_t *free_ns = &link_free_ns[from & 1];
	uint64_t backlog = *free_ns > now ? *free_ns - now : 0;
	struct parcel e = {.to = from ^ 1, .len = len};
	uint32_t copies = rnd() < P.dup ? 2 : 1;

	if (router_error(from, p, len) || swallowed(p, len))
		return;
	path_stats.sent++;
	path_stats.bytes[from] += len;
	count_resent(from, p, len);
	if (backlog * P.rate_Bps / NS_PER_S > P.queue_bytes) {
		path_stats.queue_lost++;
		return;
	}
	path_stats.max_backlog_ns = max_u64(path_stats.max_backlog_ns, backlog);
	if (now >= P.stall_from_ns && now < P.stall_to_ns) /* the link holds them, loses nothing */
		*free_ns = max_u64(*free_ns, P.stall_to_ns);
	*free_ns = max_u64(*free_ns, now) + (len + 14 + 24) * NS_PER_S / P.rate_Bps;
	for (; copies; copies--) {
		if (lost(from, len, *free_ns))
			continue;
		e.at_ns = *free_ns + P.delay_ns + (now >= P.longer_from_ns ? P.longer_ns : 0);
		e.at_ns = jittered(from, e.at_ns);
		if (rnd() < P.reorder && (!P.reorder_to_ns || now < P.reorder_to_ns))
			e.at_ns += (uint64_t)((double)P.reorder_ns * rnd());
		e.len = len;
		e.data = malloc(len);
		memcpy(e.data, p, len);
		middlebox(e.data, len);
		if (!agree_box(e.data, len)) {
			free(e.data);
			continue;
		}
		parity_box(e.data, &e.len, &copies);
		forge(e.data, e.len);
		if (P.mark_bytes && backlog * P.rate_Bps / NS_PER_S > P.mark_bytes)
			path_stats.marked += mark_ce(e.data);
		if (rnd() < P.corrupt)
			e.data[xorshift64(&rng) % e.len] ^= (uint8_t)(1u << (xorshift64(&rng) % 8));
		heap_push(e);
	}
}

bool path_inner_send(uint32_t host, enum place to, const uint8_t *p, uint32_t len, bool csum_ok)
{
	struct parcel e = {.at_ns = now, .to = host, .at = to, .len = len, .csum_ok = csum_ok};

	if (now >= P.inner_drop_from_ns && now < P.inner_drop_to_ns)
		return true;
	if (P.inner_loss == 0 && P.inner_dup == 0 && P.inner_reorder == 0)
		return false;
	for (uint32_t copies = rnd() < P.inner_dup ? 2 : 1; copies; copies--) {
		if (rnd() < P.inner_loss)
			continue;
		e.at_ns = now;
		if (rnd() < P.inner_reorder)
			e.at_ns += (uint64_t)((double)P.inner_reorder_ns * rnd());
		push(e, p);
	}
	return true;
}

uint64_t path_next_ns(void)
{
	return n_heap ? heap[0].at_ns : NEVER;
}

void path_deliver(void (*input)(uint32_t host, enum place at, const uint8_t *p, uint32_t len,
				bool csum_ok))
{
	while (n_heap && heap[0].at_ns <= now) {
		struct parcel e = heap_pop();

		input(e.to, e.at, e.data, e.len, e.csum_ok);
		free(e.data);
	}
}
