// SPDX-License-Identifier: Apache-2.0
/* peers.c: see peers.h. */
#include "peers.h"

#define PPM 1000000u
#define SPARE_NS (300 * NS_PER_S) /* at first; doubled each time */
#define OLD_NS (600 * NS_PER_S)	  /* what was known of a peer so long ago is not believed */
#define COUNT_NS NS_PER_S	  /* after which it is known what came of a datagram */
#define TELL_NS (NS_PER_S / 2)	  /* after which a report would have told of it */
#define KNOWN_NS NS_PER_S
#define GAP_NS (2 * NS_PER_MS)
#define RTT_NS (5 * NS_PER_S)
#define RATE_NS (NS_PER_S / 10)

enum {
	OFFERS = 3,
	SPARED_SHIFT_MOST = 8, /* 21 h */
	GAP_SHIFT_MOST = 3,
	UNHEARD_SOME = 8,
	UNHEARD_MOST = 64,
	UNHEARD_S = 5,
	SLOW_MOST = 2,
	DOUBTED_MOST = 32,
	REPORTS_LATE = 64,   /* behind the latest of their teller: they are no news */
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
	peer->report_ns = NEVER;
	peer->dropped = UINT16_MAX; /* before the first report */
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

/* It tells, but not of what this process sends. */
static bool is_to_be_known(struct peer *p, uint64_t now_ns)
{
	if (p->unheard < UNHEARD_SOME || now_ns - p->heard_ns < KNOWN_NS ||
	    now_ns - p->known_ns < KNOWN_NS)
		return false;
	p->known_ns = now_ns;
	return true;
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
	if (!n && is_to_be_known(p, now_ns))
		return 1;
	if (n && (p->slow >= SLOW_MOST || now_ns < p->off.until_ns)) {
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
	loss_was_too_much(&p->off, &p->loss, now_ns);
}

void peer_note(struct peer *p, uint32_t id, uint32_t n, uint64_t now_ns)
{
	struct peer_sent *s = &p->sent[p->sent_head++ % PEER_SENT];

	if (s->sent)
		count(p, s, now_ns);
	*s = (struct peer_sent){.at_ns = now_ns, .id = id, .sent = (uint8_t)n};
	p->unheard++;
}

/* Its own place, or the one that was not told by for longest */
static struct peer_teller *teller_of(struct peer *p, uint32_t who)
{
	struct peer_teller *teller = p->teller;

	for (uint32_t i = 0; i < PEER_TELLERS; i++) {
		if (p->teller[i].told_ns && p->teller[i].who == who)
			return &p->teller[i];
		if (p->teller[i].told_ns < teller->told_ns)
			teller = &p->teller[i];
	}
	return teller;
}

/* What went to it before its first report it may not have noted: that was counted as lost. */
static void is_introduced(struct peer *p)
{
	p->off = (struct loss_off){0};
	while (p->loss.sent > DOUBTED_MOST) {
		p->loss.sent /= 2;
		p->loss.lost /= 2;
	}
}

/* False: it came before. */
static bool is_new(struct peer *p, const struct report *r, uint64_t now_ns)
{
	struct peer_teller *teller = teller_of(p, r->who);
	bool same = teller->told_ns && teller->who == r->who;
	uint16_t ahead = (uint16_t)(r->number - teller->number);
	uint32_t covers = r->flags >> REPORT_COVERS_SHIFT;

	if (same && (!ahead || ahead > UINT16_MAX - REPORTS_LATE))
		return false;
	if (!same || ahead - 1u > covers || (r->flags & REPORT_OVERRUN))
		p->gap_ns = now_ns;
	if (!same)
		is_introduced(p);
	*teller = (struct peer_teller){.told_ns = now_ns | 1, .who = r->who, .number = r->number};
	return true;
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
	if (loss_is_calm(rtt_ns, least_ns))
		p->slow = 0;
	else
		p->slow = (uint8_t)min_u32(p->slow + 1u, SLOW_MOST);
}

/* The shortest of what one report tells is its round trip. A datagram of which something was lost
 * may have come by a copy, later than it was sent. */
bool peer_told(struct peer *p, const struct report *r, uint64_t now_ns)
{
	uint64_t least_ns = NEVER;
	bool fresh;

	if (!is_new(p, r, now_ns))
		return false;
	fresh = hear(p, now_ns);
	for (uint32_t i = 0; i < r->n; i++) {
		for (uint32_t j = 0; j < PEER_SENT; j++) {
			struct peer_sent *s = &p->sent[j];
			uint64_t ago_ns = r->item[i].ago_us * 1000ull;

			if (!s->sent || s->id != r->item[i].id)
				continue;
			s->came = (uint8_t)min_u32(max_u32(s->came, r->item[i].times), s->sent);
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
