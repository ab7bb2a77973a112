// SPDX-License-Identifier: Apache-2.0
/* peers.c: see peers.h. */
#include "peers.h"

#define PPM 1000000u
#define SPARE_NS (300 * NS_PER_S) /* at first; doubled each time */
#define OLD_NS (600 * NS_PER_S)	  /* what was known of a peer so long ago is not believed */
#define COUNT_NS NS_PER_S	  /* after which it is known what came of a datagram */
#define TELL_NS (NS_PER_S / 2)	  /* after which a report would have told of it */
#define GAP_NS (2 * NS_PER_MS)
#define SLACK_NS (2 * NS_PER_MS)
#define RTT_NS (5 * NS_PER_S)
#define OFF_NS (10 * NS_PER_S) /* after too much loss, doubled each time */
#define RATE_NS (NS_PER_S / 10)

enum {
	OFFERS = 3,
	SPARED_SHIFT_MOST = 8, /* 21 h */
	OFF_SHIFT_MOST = 5,
	GAP_SHIFT_MOST = 3,
	UNHEARD_MOST = 64,
	UNHEARD_S = 5,
	SLOW_MOST = 2,
	BURST_GROUPS = 1024, /* datagrams with copies, after which the gap may be halved */
	BURST_PROOF = 4,     /* so many times what chance takes */
	RATE_MOST = 60,	     /* in RATE_NS */
};

static struct peer *set_of(struct peers *p, const uint8_t addr[16])
{
	return &p->v[siphash(p->secret, addr, 2) % (PEERS / PEER_WAYS) * PEER_WAYS];
}

struct peer *peers_find(struct peers *p, const uint8_t addr[16], uint64_t now_ns)
{
	struct peer *set = set_of(p, addr);

	for (uint32_t i = 0; i < PEER_WAYS; i++) {
		if (set[i].used_ns && !memcmp(set[i].addr, addr, 16)) {
			set[i].used_ns = now_ns;
			return &set[i];
		}
	}
	return NULL;
}

struct peer *peers_get(struct peers *p, const uint8_t addr[16], uint64_t now_ns)
{
	struct peer *peer = peers_find(p, addr, now_ns);

	if (peer)
		return peer;
	peer = set_of(p, addr);
	for (struct peer *other = peer + 1; other < set_of(p, addr) + PEER_WAYS; other++) {
		if (other->used_ns < peer->used_ns)
			peer = other;
	}
	memset(peer, 0, sizeof(*peer));
	memcpy(peer->addr, addr, 16);
	peer->used_ns = now_ns | 1;
	for (uint32_t i = 0; i < PEER_WAYS_BACK; i++)
		peer->back[i].report_ns = NEVER;
	peer->least_rtt_ns[0] = peer->least_rtt_ns[1] = NEVER;
	return peer;
}

static void spare(struct peer *p, uint64_t now_ns)
{
	p->heard_ns = 0;
	p->offers = 0;
	p->spared_until_ns = now_ns + (SPARE_NS << p->spared_shift);
	p->spared_shift = (uint8_t)min_u32(p->spared_shift + 1u, SPARED_SHIFT_MOST);
}

void peer_is_there(struct peer *p)
{
	if (p->heard_ns || !p->spared_until_ns)
		return;
	p->spared_until_ns = 0;
	p->spared_shift = 0;
}

/* Before the first report the peer noted nothing, maybe. */
static bool hear(struct peer *p, uint64_t now_ns)
{
	bool fresh = !p->heard_ns;

	if (fresh)
		p->gap_ns = now_ns;
	p->heard_ns = now_ns;
	p->unheard = 0;
	p->spared_shift = 0;
	p->spared_until_ns = 0;
	return fresh;
}

static bool is_heard(struct peer *p, uint64_t now_ns)
{
	if (!p->heard_ns)
		return false;
	if (now_ns - p->heard_ns > OLD_NS) {
		p->heard_ns = 0;
		p->offers = 0;
	} else if (p->unheard > UNHEARD_MOST && now_ns - p->heard_ns > UNHEARD_S * NS_PER_S) {
		spare(p, now_ns);
	}
	return p->heard_ns;
}

/* What is known of nobody is found out by one copy of each of a few datagrams. */
static uint32_t offer(struct peer *p, uint64_t now_ns)
{
	if (now_ns < p->spared_until_ns)
		return 0;
	if (p->offers == OFFERS) {
		spare(p, now_ns);
		return 0;
	}
	p->offers++;
	return 1;
}

static uint32_t loss_of(const struct peer *p)
{
	return p->loss.lost ? loss_pair_ppm(&p->loss, LOSS_PRIOR, 0) : 0;
}

uint32_t peer_copies(struct peer *p, uint32_t residual_ppm, uint64_t *held, uint64_t now_ns)
{
	uint64_t left = loss_of(p);
	uint32_t n = 0;

	if (!is_heard(p, now_ns))
		return offer(p, now_ns);
	for (; n < PEER_COPIES && left > residual_ppm; n++)
		left = left * loss_of(p) / PPM;
	if (n && n < PEER_COPIES && p->gap_shift)
		n++; /* of those in one burst all are lost */
	if (n && (p->slow >= SLOW_MOST || now_ns < p->off_until_ns)) {
		*held += n;
		n = 0;
	}
	return n;
}

uint64_t peer_gap_ns(const struct peer *p)
{
	return GAP_NS << p->gap_shift;
}

bool peer_pays(struct peer *p, uint32_t bytes, uint64_t budget_Bps, uint64_t now_ns)
{
	uint64_t more = mul_div(min_u64(now_ns - p->paid_ns, NS_PER_S), budget_Bps, NS_PER_S);

	if (more) {
		p->budget_bytes =
			(uint32_t)min_u64(p->budget_bytes + more, min_u64(budget_Bps, UINT32_MAX));
		p->paid_ns = now_ns;
	}
	if (p->budget_bytes < bytes)
		return false;
	p->budget_bytes -= bytes;
	return true;
}

static void too_much(struct peer *p, uint64_t now_ns)
{
	if (p->loss.sent < LOSS_WINDOW / 4 || loss_of(p) <= LOSS_MOST_PPM)
		return;
	p->off_until_ns = now_ns + (OFF_NS << p->off_shift);
	p->off_shift = (uint8_t)min_u32(p->off_shift + 1u, OFF_SHIFT_MOST);
	p->loss = (struct loss_pair){0, 0};
}

/* That all of them were lost: how often that was so, and how often it would be by chance */
static void count_bursts(struct peer *p, const struct peer_sent *s)
{
	uint64_t chance = PPM;
	bool bursty;

	if (s->sent < 2)
		return;
	for (uint32_t i = 0; i < s->sent; i++)
		chance = chance * loss_of(p) / PPM;
	p->gone_ppm += (uint32_t)chance;
	p->gone = (uint16_t)(p->gone + !s->came);
	p->groups++;
	bursty = p->gone >= BURST_PROOF &&
		 (uint64_t)p->gone * PPM > BURST_PROOF * (uint64_t)p->gone_ppm;
	if (!bursty && p->groups < BURST_GROUPS)
		return;
	if (bursty)
		p->gap_shift = (uint8_t)min_u32(p->gap_shift + 1u, GAP_SHIFT_MOST);
	else if (p->gap_shift && (uint64_t)p->gone * PPM <= p->gone_ppm + PPM)
		p->gap_shift--;
	p->groups = p->gone = 0;
	p->gone_ppm = 0;
}

/* What was sent a second ago, or makes room; nothing is known of it if no report would have told,
 * or one was missed. */
static void count(struct peer *p, struct peer_sent *s, uint64_t now_ns)
{
	bool told = now_ns - s->at_ns >= COUNT_NS && p->heard_ns >= s->at_ns + TELL_NS &&
		    p->gap_ns < s->at_ns;

	if (s->sent && told) {
		loss_pair_add(&p->loss, s->sent, s->sent - min_u32(s->came, s->sent));
		count_bursts(p, s);
	}
	s->sent = 0;
}

static void count_old(struct peer *p, uint64_t now_ns)
{
	for (uint32_t i = 0; i < PEER_SENT; i++) {
		struct peer_sent *s = &p->sent[i];

		if (s->sent && now_ns - s->at_ns >= COUNT_NS)
			count(p, s, now_ns);
	}
	too_much(p, now_ns);
}

void peer_note(struct peer *p, uint32_t id, uint32_t n, uint64_t now_ns)
{
	struct peer_sent *s = &p->sent[p->sent_head++];

	_Static_assert(PEER_SENT == UINT8_MAX + 1, "sent_head goes round by itself");
	if (s->sent)
		count(p, s, now_ns);
	*s = (struct peer_sent){.at_ns = now_ns, .id = id, .sent = (uint8_t)n};
	p->unheard++;
}

static void missed(struct peer *p, const struct report *r, uint64_t now_ns)
{
	uint32_t at = r->who % PEER_TELLERS;

	if (p->teller[at].known && p->teller[at].who == r->who &&
	    (uint16_t)(p->teller[at].number + 1) == r->number && !(r->flags & REPORT_OVERRUN)) {
		p->teller[at].number = r->number;
		return;
	}
	if (p->teller[at].known)
		p->gap_ns = now_ns;
	p->teller[at].known = 1;
	p->teller[at].who = r->who;
	p->teller[at].number = r->number;
}

static void round_trip(struct peer *p, uint64_t rtt_ns, uint64_t now_ns)
{
	uint64_t least_ns;

	if (now_ns - p->rtt_from_ns >= RTT_NS) {
		p->least_rtt_ns[1] = p->least_rtt_ns[0];
		p->least_rtt_ns[0] = NEVER;
		p->rtt_from_ns = now_ns;
	}
	p->least_rtt_ns[0] = min_u64(p->least_rtt_ns[0], rtt_ns);
	least_ns = min_u64(p->least_rtt_ns[0], p->least_rtt_ns[1]);
	if (rtt_ns > least_ns + least_ns / 4 + SLACK_NS)
		p->slow = (uint8_t)min_u32(p->slow + 1u, SLOW_MOST);
	else
		p->slow = 0;
}

/* The shortest of what one report tells is its round trip. A datagram of which something was lost
 * may have come by a copy, later than it was sent. */
bool peer_told(struct peer *p, const struct report *r, uint64_t now_ns)
{
	uint64_t least_ns = NEVER;
	bool fresh = hear(p, now_ns);

	missed(p, r, now_ns);
	for (uint32_t i = 0; i < r->n; i++) {
		for (uint32_t j = 0; j < PEER_SENT; j++) {
			struct peer_sent *s = &p->sent[j];
			uint64_t ago_ns = r->item[i].ago_us * 1000ull;

			if (!s->sent || s->id != r->item[i].id)
				continue;
			s->came = (uint8_t)min_u32(s->came + r->item[i].times, s->sent);
			if (s->came == s->sent && now_ns - s->at_ns > ago_ns)
				least_ns = min_u64(least_ns, now_ns - s->at_ns - ago_ns);
		}
	}
	if (least_ns != NEVER)
		round_trip(p, least_ns, now_ns);
	count_old(p, now_ns);
	return fresh;
}

bool peer_is_busy(struct peer_rate *r, uint64_t now_ns)
{
	if (now_ns - r->from_ns >= RATE_NS) {
		r->busy = r->n > RATE_MOST && now_ns - r->from_ns < 2 * RATE_NS;
		r->from_ns = now_ns;
		r->n = 0;
	}
	r->n++;
	return r->busy || r->n > RATE_MOST;
}
