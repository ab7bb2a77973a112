// SPDX-License-Identifier: Apache-2.0
/* udp_copies.c: see udp_copies.h. */
#include "udp_copies.h"

#include <stdlib.h>

#define BEGIN_NS NS_PER_S	   /* copies of what came before nobody noted are past by then */
#define REPORT_NS (NS_PER_S / 4)   /* after something came, and from report to report */
#define LATE_NS (100 * NS_PER_MS)  /* a process that stood still sends no copies of then */
#define SETTLE_NS (50 * NS_PER_MS) /* after which all copies of a datagram have come */

enum {
	REPORT_SOON = PEER_PENDING * 3 / 4,
	TELL_TIMES = 3,
	TELL_AGAIN = 2,
	WIRE_LEAST_BYTES = 60,
	CREDIT_MOST_BYTES = 1 << 16,
};

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

static uint16_t tag_of(uint32_t who)
{
	return (uint16_t)who;
}

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
	if (tag_of(c->who) == WAY_NO_TAG)
		c->who++;
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
	if (s)
		datagram_tag(d, tag_of(c->who));
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

static void report_due(struct udp_copies *c, struct peer *peer, uint64_t due_ns)
{
	peer->report_ns = min_u64(peer->report_ns, due_ns);
	c->report_ns = min_u64(c->report_ns, peer->report_ns);
}

/* What so long a packet takes on a wire at least, so that an offer pays for the answer */
static uint32_t wire_bytes(uint32_t ip_bytes)
{
	return max_u32(ip_bytes + DMM_CORE_ETH_BYTES, WIRE_LEAST_BYTES);
}

static void came_from(struct peer *peer, const struct udp_copies_packet *p,
		      const struct datagram *d, uint16_t tag, uint64_t now_ns)
{
	ways_renew(&peer->ways, d, p->nic, tag, now_ns);
	peer->credit_bytes = min_u32(peer->credit_bytes + wire_bytes(d->end), CREDIT_MOST_BYTES);
}

/* The one that was told of the most times gives way. NULL: none was told of at all. */
static struct peer_pending *pending_told(struct peer *peer)
{
	struct peer_pending *most = NULL;

	for (struct peer_pending *one = peer->pending; one < peer->pending + PEER_PENDING; one++) {
		if (one->told && (!most || one->told > most->told))
			most = one;
	}
	return most;
}

static void pending_drop(struct peer *peer, const struct peer_pending *one)
{
	if ((int16_t)(one->first - peer->dropped) > 0)
		peer->dropped = one->first;
}

static struct peer_pending *pending_room(struct peer *peer)
{
	struct peer_pending *one;

	if (peer->n_pending < PEER_PENDING)
		return &peer->pending[peer->n_pending++];
	one = pending_told(peer);
	if (one)
		pending_drop(peer, one);
	return one;
}

static void pending_add(struct udp_copies *c, struct peer *peer, const struct seen_row *row,
			uint64_t now_ns)
{
	struct peer_pending *one = pending_room(peer);

	if (!one) {
		peer->overrun = 1;
		return;
	}
	*one = (struct peer_pending){.row = (uint32_t)(row - c->seen.rows)};
	report_due(c, peer, now_ns + (++peer->n_untold > REPORT_SOON ? 0 : REPORT_NS));
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
	struct seen_row *row;
	uint64_t id, key;

	peer_is_there(peer);
	came_from(peer, p, d, datagram_tag_of(d), now_ns);
	if (!peer->noted_from_ns) {
		peer->noted_from_ns = now_ns;
		report_due(c, peer, now_ns);
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
		pending_add(c, peer, row, now_ns);
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
	struct seen_row *row;
	uint64_t id, key;

	if (peer_is_busy(&peer->in, now_ns) || p->came->gso_type) {
		peer->blind_until_ns = now_ns + SEEN_NS;
		return true;
	}
	came_from(peer, p, d, WAY_NO_TAG, now_ns);
	id = seen_id(d);
	row = seen_find(&c->seen, d, id, false, now_ns, &key);
	if (!row) {
		row = seen_add(&c->seen, key, id, now_ns);
		if (!row)
			return true;
		pending_add(c, peer, row, now_ns);
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

static void report_in(struct udp_copies *c, struct peer *peer, const struct udp_copies_packet *p,
		      const struct datagram *d, uint64_t now_ns)
{
	struct report r;

	if (!report_read(&r, datagram_payload(d), datagram_bytes(d)))
		return;
	ways_renew(&peer->ways, d, p->nic, tag_of(r.who), now_ns);
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
		report_in(c, peer, p, &d, now_ns);
	return false;
}

/* ---- what is due ---- */

static struct report_item item_of(const struct seen_row *row, uint64_t now_ns)
{
	return (struct report_item){.id = (uint32_t)row->id,
				    .ago_us = (uint32_t)((now_ns - row->first_ns) / 1000),
				    .times = row->arrivals};
}

/* True: it is to be told of again, if something else is, or soon. */
static bool tell(struct peer *peer, struct peer_pending *one, uint16_t number)
{
	if (!one->told++) {
		one->first = number;
		peer->n_untold--;
	}
	if (one->told < TELL_TIMES)
		return true;
	pending_drop(peer, one);
	return false;
}

/* What has settled. Where copies come the path may lose reports, too: then they are told again
 * even if nothing else is. */
static void items(struct udp_copies *c, struct peer *peer, struct report *r, uint64_t now_ns)
{
	uint32_t n = peer->n_pending;
	bool again = false;

	peer->n_pending = 0;
	for (uint32_t i = 0; i < n; i++) {
		struct peer_pending one = peer->pending[i];
		const struct seen_row *row = &c->seen.rows[one.row];
		bool settled = one.told || now_ns - row->first_ns >= SETTLE_NS;

		if (settled)
			r->item[r->n++] = item_of(row, now_ns);
		if (settled && !tell(peer, &one, r->number))
			continue;
		again |= !settled || (row->has_copy && one.told < TELL_AGAIN);
		peer->pending[peer->n_pending++] = one;
	}
	peer->report_ns = again ? now_ns + REPORT_NS : NEVER;
}

static uint8_t report_flags(const struct peer *peer, uint16_t number)
{
	uint32_t covers = min_u32((uint16_t)(number - 1 - peer->dropped), REPORT_COVERS_MOST);

	return (uint8_t)(covers << REPORT_COVERS_SHIFT | (peer->overrun ? REPORT_OVERRUN : 0));
}

/* In its place in a slot; without a free one it is not sent, and the next one shows it. */
static void report_by(struct udp_copies *c, struct peer *peer, const struct way *way,
		      const struct report *r, uint64_t now_ns)
{
	uint32_t bytes = REPORT_HEAD_BYTES + r->n * (uint32_t)REPORT_ITEM_BYTES;
	struct slot *s = slot_free(c);
	struct datagram d;

	if (!s)
		return;
	way_write(way, s->frame, bytes, &d);
	if (wire_bytes(d.end) > peer->credit_bytes)
		return;
	peer->credit_bytes -= wire_bytes(d.end);
	report_write(r, datagram_payload(&d));
	if (!datagram_mark_as(&d, DATAGRAM_REPORT))
		return;
	s->len = d.end;
	s->nic = way->nic;
	s->leg = DMM_LEG_OUTER;
	s->left = 1;
	s->gap_ns = 0;
	slot_due(c, s, now_ns);
}

/* Each process is told of all; what is not its own it does not know. Who is first takes turns, for
 * there may not be credit for all. */
static void report_out(struct udp_copies *c, struct peer *peer, uint64_t now_ns)
{
	struct report r = {.who = c->who, .number = peer->number++};

	/* Before what this one drops, for it tells of that */
	r.flags = report_flags(peer, r.number);
	items(c, peer, &r, now_ns);
	peer->overrun = 0;
	ways_count(&peer->ways, now_ns);
	for (uint32_t i = 0; i < WAYS; i++) {
		const struct way *way = &peer->ways.v[(i + r.number) % WAYS];

		if (way->fresh_ns)
			report_by(c, peer, way, &r, now_ns);
	}
}

static void reports(struct udp_copies *c, uint64_t now_ns)
{
	c->report_ns = NEVER;
	for (struct peer *peer = c->peers.v; peer < c->peers.v + PEERS; peer++) {
		if (!peer->used_ns)
			continue;
		if (peer->report_ns <= now_ns)
			report_out(c, peer, now_ns);
		c->report_ns = min_u64(c->report_ns, peer->report_ns);
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
