// SPDX-License-Identifier: Apache-2.0
/* udp_copies.c: see udp_copies.h. */
#include "udp_copies.h"
#include "../base/csum.h"

#include <stdlib.h>

#define BEGIN_NS NS_PER_S	   /* copies of what came before nobody noted are past by then */
#define REPORT_NS (NS_PER_S / 4)   /* after something came */
#define LATE_NS (100 * NS_PER_MS)  /* a process that stood still sends no copies of then */
#define SETTLE_NS (50 * NS_PER_MS) /* after which all copies of a datagram have come */

enum { REPORT_SOON = PEER_PENDING * 3 / 4, IP4_BYTES = 20, IP6_BYTES = 40, TTL = 64 };

struct slot {
	uint64_t due_ns; /* NEVER: free */
	uint64_t gap_ns;
	uint32_t len;
	uint32_t nic;
	uint32_t leg;
	uint32_t left; /* times that it is to go */
	uint8_t frame[DMM_CORE_ETH_BYTES + DMM_CORE_DATAGRAM_MTU];
};

struct udp_copies {
	uint64_t *counters;
	uint64_t due_ns;    /* of the first slot */
	uint64_t report_ns; /* of the first peer's report */
	uint32_t who;
	struct slot slots[UDP_COPIES_SLOTS];
	struct peers peers;
	struct seen seen;
};

struct udp_copies *udp_copies_create(uint64_t seed, uint64_t *counters)
{
	struct udp_copies *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->counters = counters;
	c->due_ns = c->report_ns = NEVER;
	for (uint32_t i = 0; i < 2; i++) {
		c->peers.secret[i] = splitmix64(&seed);
		c->seen.secret[i] = splitmix64(&seed);
	}
	c->who = (uint32_t)splitmix64(&seed);
	for (uint32_t i = 0; i < UDP_COPIES_SLOTS; i++)
		c->slots[i].due_ns = NEVER;
	return c;
}

void udp_copies_destroy(struct udp_copies *c)
{
	free(c);
}

static struct slot *slot_free(struct udp_copies *c)
{
	for (uint32_t i = 0; i < UDP_COPIES_SLOTS; i++) {
		if (c->slots[i].due_ns == NEVER)
			return &c->slots[i];
	}
	return NULL;
}

static void slot_due(struct udp_copies *c, struct slot *s, uint64_t due_ns)
{
	s->due_ns = due_ns;
	c->due_ns = min_u64(c->due_ns, due_ns);
}

/* The packet, to be marked. NULL: no room. */
static struct slot *slot_of(struct udp_copies *c, const struct udp_copies_packet *p, uint32_t leg,
			    struct datagram *d)
{
	struct slot *s = d->end <= DMM_CORE_DATAGRAM_MTU ? slot_free(c) : NULL;

	if (!s)
		return NULL;
	memcpy(s->frame, p->frame, DMM_CORE_ETH_BYTES + d->end);
	d->ip = s->frame + DMM_CORE_ETH_BYTES;
	s->len = d->end;
	s->nic = p->nic;
	s->leg = leg;
	return s;
}

static void addr_of(const struct datagram *d, bool source, uint8_t addr[16])
{
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

	if (d->ip[0] >> 4 == 4) {
		memcpy(addr, mapped, 12);
		memcpy(addr + 12, d->ip + (source ? 12 : 16), 4);
	} else {
		memcpy(addr, d->ip + (source ? 8 : 24), 16);
	}
}

/* ---- towards a peer ---- */

/* Returns how many will go. */
static uint32_t plan(struct udp_copies *c, struct peer *peer, const struct udp_copies_packet *p,
		     struct datagram *d, const struct udp_copies_wanted *w, uint64_t now_ns)
{
	uint64_t *held = &c->counters[DMM_CORE_DATAGRAM_COPIES_HELD];
	uint32_t n = peer_copies(peer, w->residual_ppm, held, now_ns), left = 0;
	struct slot *s;

	while (left < n && peer_pays(peer, d->end, w->budget_Bps, now_ns))
		left++;
	s = left ? slot_of(c, p, DMM_LEG_OUTER, d) : NULL;
	if (!s || !datagram_mark_as(d, DATAGRAM_COPY))
		left = 0;
	*held += n - left;
	if (!left)
		return 0;
	s->left = left;
	s->gap_ns = peer_gap_ns(peer);
	slot_due(c, s, now_ns + s->gap_ns);
	return left;
}

void udp_copies_out(struct udp_copies *c, const struct udp_copies_packet *p,
		    const struct udp_copies_wanted *w, uint64_t now_ns)
{
	struct datagram d;
	struct peer *peer;
	uint8_t addr[16];
	uint64_t id, key;
	uint32_t n;

	if (!w->budget_Bps || p->came->gso_type ||
	    !datagram_find(p->frame + DMM_CORE_ETH_BYTES, p->len, &d))
		return;
	addr_of(&d, false, addr);
	peer = peers_get(&c->peers, addr, now_ns);
	if (peer_is_busy(&peer->out, now_ns) || (!peer->heard_ns && now_ns < peer->spared_until_ns))
		return;
	id = seen_id(&d);
	if (seen_find(&c->seen, &d, id, true, now_ns, &key))
		return;
	n = plan(c, peer, p, &d, w, now_ns);
	if (!n && !peer->heard_ns)
		return;
	seen_add(&c->seen, key, id, now_ns);
	peer_note(peer, (uint32_t)id, 1 + n, now_ns);
}

/* ---- from a peer ---- */

static void report_due(struct udp_copies *c, struct peer_way *way, uint64_t due_ns)
{
	way->report_ns = min_u64(way->report_ns, due_ns);
	c->report_ns = min_u64(c->report_ns, way->report_ns);
}

/* Of the packet's exchange, and turned as it is */
static struct peer_way *way_back(struct udp_copies *c, struct peer *peer,
				 const struct udp_copies_packet *p, const struct datagram *d)
{
	bool v4 = d->ip[0] >> 4 == 4;
	struct peer_way *way;
	uint64_t ports = 0;
	uint8_t *eth, *ip;

	memcpy(&ports, d->ip + d->at, 4);
	way = &peer->back[siphash(c->peers.secret, &ports, 1) % PEER_WAYS_BACK];
	memset(way->headers, 0, sizeof(way->headers));
	eth = way->headers;
	ip = eth + DMM_CORE_ETH_BYTES;
	way->nic = p->nic;
	way->ip_bytes = v4 ? IP4_BYTES : IP6_BYTES;
	memcpy(eth, p->frame + 6, 6);
	memcpy(eth + 6, p->frame, 6);
	memcpy(eth + 12, p->frame + 12, 2);
	ip[0] = v4 ? 0x45 : 0x60;
	if (v4) {
		ip[6] = 0x40; /* DF */
		ip[8] = TTL;
		ip[9] = DATAGRAM_PROTO;
		memcpy(ip + 12, d->ip + 16, 4);
		memcpy(ip + 16, d->ip + 12, 4);
	} else {
		ip[6] = DATAGRAM_PROTO;
		ip[7] = TTL;
		memcpy(ip + 8, d->ip + 24, 16);
		memcpy(ip + 24, d->ip + 8, 16);
	}
	memcpy(ip + way->ip_bytes, d->ip + d->at + 2, 2);
	memcpy(ip + way->ip_bytes + 2, d->ip + d->at, 2);
	return way;
}

static void pending_add(struct udp_copies *c, struct peer_way *way, const struct seen_row *row,
			uint64_t now_ns)
{
	if (way->n_pending == PEER_PENDING) {
		way->overrun = 1;
		return;
	}
	way->pending[way->n_pending++] = (uint32_t)(row - c->seen.rows);
	report_due(c, way, now_ns + (way->n_pending > REPORT_SOON ? 0 : REPORT_NS));
}

static void give(struct udp_copies *c, const struct udp_copies_packet *p, struct datagram *d,
		 struct seen_row *row, uint64_t now_ns)
{
	struct slot *s = slot_of(c, p, DMM_LEG_INNER, d);

	if (!s)
		return;
	datagram_mark_as(d, DATAGRAM_RIGHT);
	s->left = 1;
	s->gap_ns = 0;
	slot_due(c, s, now_ns);
	row->given++;
	c->counters[DMM_CORE_DATAGRAMS_REPAIRED]++;
}

static void copy_in(struct udp_copies *c, struct peer *peer, const struct udp_copies_packet *p,
		    struct datagram *d, uint64_t now_ns)
{
	struct peer_way *way = way_back(c, peer, p, d);
	struct seen_row *row;
	uint64_t id, key;

	peer_is_there(peer);
	if (!peer->noted_from_ns) {
		peer->noted_from_ns = now_ns;
		report_due(c, way, now_ns);
		return;
	}
	id = seen_id(d);
	row = seen_find(&c->seen, d, id, false, now_ns, &key);
	if (!row) {
		if (now_ns - peer->noted_from_ns < BEGIN_NS || now_ns < c->seen.blind_until_ns ||
		    now_ns < peer->blind_until_ns)
			return;
		row = seen_add(&c->seen, key, id, now_ns);
		if (!row)
			return;
		pending_add(c, way, row, now_ns);
	}
	row->at_ns = now_ns;
	row->arrivals++;
	row->has_copy = 1;
	if (!row->given)
		give(c, p, d, row, now_ns);
}

/* True: it is for the app. */
static bool original_in(struct udp_copies *c, struct peer *peer, const struct udp_copies_packet *p,
			const struct datagram *d, uint64_t now_ns)
{
	struct peer_way *way;
	struct seen_row *row;
	uint64_t id, key;

	if (peer_is_busy(&peer->in, now_ns) || p->came->gso_type) {
		peer->blind_until_ns = now_ns + SEEN_NS;
		return true;
	}
	way = way_back(c, peer, p, d);
	id = seen_id(d);
	row = seen_find(&c->seen, d, id, false, now_ns, &key);
	if (!row) {
		row = seen_add(&c->seen, key, id, now_ns);
		if (!row)
			return true;
		pending_add(c, way, row, now_ns);
	}
	row->at_ns = now_ns;
	row->arrivals++;
	if (row->originals == UINT16_MAX)
		return true;
	row->originals++;
	if (row->given >= row->originals)
		return false;
	row->given++;
	return true;
}

static void report_in(struct udp_copies *c, struct peer *peer, const struct datagram *d,
		      uint64_t now_ns)
{
	struct report r;

	if (!report_read(&r, datagram_payload(d), datagram_bytes(d)))
		return;
	c->counters[DMM_CORE_DATAGRAM_PEERS] += peer_told(peer, &r, now_ns);
}

bool udp_copies_in(struct udp_copies *c, const struct udp_copies_packet *p, uint64_t now_ns)
{
	enum datagram_mark mark = DATAGRAM_RIGHT;
	struct datagram d;
	struct peer *peer;
	uint8_t addr[16];

	if (!datagram_find(p->frame + DMM_CORE_ETH_BYTES, p->len, &d))
		return true;
	addr_of(&d, true, addr);
	if (!p->came->flags)
		mark = datagram_mark_of(&d);
	if (mark == DATAGRAM_WRONG)
		return true;
	peer = mark == DATAGRAM_COPY ? peers_get(&c->peers, addr, now_ns)
				     : peers_find(&c->peers, addr, now_ns);
	if (mark == DATAGRAM_RIGHT)
		return !peer || !peer->noted_from_ns || original_in(c, peer, p, &d, now_ns);
	if (mark == DATAGRAM_COPY)
		copy_in(c, peer, p, &d, now_ns);
	else if (peer)
		report_in(c, peer, &d, now_ns);
	return false;
}

/* ---- what is due ---- */

static void items(struct udp_copies *c, struct peer_way *way, struct report *r, uint64_t now_ns)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < way->n_pending; i++) {
		const struct seen_row *row = &c->seen.rows[way->pending[i]];
		uint64_t ago_ns = now_ns - row->first_ns;

		if (ago_ns < SETTLE_NS)
			way->pending[kept++] = way->pending[i];
		else
			r->item[r->n++] = (struct report_item){.id = (uint32_t)row->id,
							       .ago_us = (uint32_t)(ago_ns / 1000),
							       .times = row->arrivals};
	}
	way->n_pending = (uint8_t)kept;
	way->report_ns = kept ? now_ns + REPORT_NS : NEVER;
}

static void ip_lengths(uint8_t *ip, uint32_t ip_bytes, uint32_t udp_bytes)
{
	uint16_t csum;

	put_be16(ip + ip_bytes + 4, (uint16_t)udp_bytes);
	if (ip_bytes == IP6_BYTES) {
		put_be16(ip + 4, (uint16_t)udp_bytes);
		return;
	}
	put_be16(ip + 2, (uint16_t)(ip_bytes + udp_bytes));
	csum = (uint16_t)~csum_fold(csum_add(ip, ip_bytes, 0));
	memcpy(ip + 10, &csum, 2);
}

/* In its place in a slot; without a free one it is not sent, and the next one shows it. */
static void report_out(struct udp_copies *c, struct peer_way *way, uint32_t group, uint64_t now_ns)
{
	struct report r = {.who = (c->who & ~(PEER_WAYS_BACK - 1u)) | group,
			   .number = way->number++,
			   .flags = way->overrun ? REPORT_OVERRUN : 0};
	uint32_t head = way->ip_bytes + (uint32_t)DATAGRAM_HEADER_BYTES, bytes;
	struct slot *s = slot_free(c);
	struct datagram d = {.at = way->ip_bytes};

	items(c, way, &r, now_ns);
	way->overrun = 0;
	if (!s)
		return;
	memcpy(s->frame, way->headers, DMM_CORE_ETH_BYTES + head);
	d.ip = s->frame + DMM_CORE_ETH_BYTES;
	bytes = report_write(&r, d.ip + head);
	ip_lengths(d.ip, way->ip_bytes, DATAGRAM_HEADER_BYTES + bytes);
	d.end = head + bytes;
	if (!datagram_mark_as(&d, DATAGRAM_REPORT))
		return;
	s->len = d.end;
	s->nic = way->nic;
	s->leg = DMM_LEG_OUTER;
	s->left = 1;
	s->gap_ns = 0;
	slot_due(c, s, now_ns);
}

static void reports_to(struct udp_copies *c, struct peer *peer, uint64_t now_ns)
{
	for (uint32_t i = 0; i < PEER_WAYS_BACK; i++) {
		if (peer->back[i].report_ns <= now_ns)
			report_out(c, &peer->back[i], i, now_ns);
		c->report_ns = min_u64(c->report_ns, peer->back[i].report_ns);
	}
}

static void reports(struct udp_copies *c, uint64_t now_ns)
{
	c->report_ns = NEVER;
	for (uint32_t i = 0; i < PEERS; i++) {
		if (c->peers.v[i].used_ns)
			reports_to(c, &c->peers.v[i], now_ns);
	}
}

static bool is_copy(const struct slot *s)
{
	return s->gap_ns;
}

/* The first that is due, and c->due_ns as if it were none. NULL: none is. */
static struct slot *slot_next(struct udp_copies *c, uint64_t now_ns)
{
	struct slot *first = NULL;

	c->due_ns = NEVER;
	for (struct slot *s = c->slots; s < c->slots + UDP_COPIES_SLOTS; s++) {
		if (s->due_ns <= now_ns && is_copy(s) && now_ns - s->due_ns > LATE_NS) {
			c->counters[DMM_CORE_DATAGRAM_COPIES_HELD] += s->left;
			s->due_ns = NEVER;
		}
		if (s->due_ns <= now_ns && (!first || s->due_ns < first->due_ns)) {
			c->due_ns = first ? min_u64(c->due_ns, first->due_ns) : c->due_ns;
			first = s;
		} else {
			c->due_ns = min_u64(c->due_ns, s->due_ns);
		}
	}
	return first;
}

uint32_t udp_copies_next(struct udp_copies *c, uint8_t *frame, uint32_t *leg, uint32_t *nic,
			 uint64_t now_ns)
{
	struct slot *s;

	if (c->report_ns <= now_ns)
		reports(c, now_ns);
	s = c->due_ns <= now_ns ? slot_next(c, now_ns) : NULL;
	if (!s)
		return 0;
	memcpy(frame, s->frame, DMM_CORE_ETH_BYTES + s->len);
	*leg = s->leg;
	*nic = s->nic;
	c->counters[DMM_CORE_DATAGRAM_COPIES] += is_copy(s);
	s->due_ns = --s->left ? now_ns + s->gap_ns : NEVER;
	c->due_ns = min_u64(c->due_ns, s->due_ns);
	return s->len;
}

uint64_t udp_copies_due_ns(const struct udp_copies *c)
{
	return min_u64(c->due_ns, c->report_ns);
}
