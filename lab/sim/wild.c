/* SPDX-License-Identifier: Apache-2.0 */
/* wild.c: see wild.h */
#include "wild.h"

#include "params.h"

#define NOISE_EVERY_NS (50 * NS_PER_MS)
#define NOISE_AHEAD_NS (10 * NS_PER_S)

static double chance(struct wild *w)
{
	return (double)(xorshift64(&w->rng) >> 11) / 9007199254740992.0;
}

static uint32_t below(struct wild *w, uint64_t n)
{
	return n ? (uint32_t)((xorshift64(&w->rng) >> 16) % n) : 0;
}

void wild_init(struct wild *w)
{
	*w = (struct wild){
		.rng = P.seed * 0xd1b54a32d192ed03ull | 1,
		.sack = P.wild_sack,
		.renege = P.wild_renege,
		.lie = P.wild_lie,
		.shut = P.wild_shut,
		.shrink = P.wild_shrink,
		.acks = P.wild_acks,
		.data = P.wild_data,
		.flags = P.wild_flags,
		.ts = P.wild_ts,
	};
}

bool wild_omits_ts(struct wild *w, uint32_t *tsval)
{
	if (chance(w) >= w->ts)
		return false;
	if (below(w, 2))
		return true;
	*tsval -= below(w, 100000);
	return false;
}

void wild_window(struct wild *w, struct ksock *s, struct wire_seg *seg, uint64_t now_ns)
{
	if (now_ns >= s->shut_until_ns && chance(w) < w->shut)
		s->shut_until_ns = now_ns + below(w, 2000) * NS_PER_MS;
	if (now_ns < s->shut_until_ns)
		seg->wnd = 0;
	else if (chance(w) < w->shrink)
		seg->wnd = (uint16_t)below(w, seg->wnd + 1u);
}

void wild_sack(struct wild *w, struct ksock *s, struct wire_seg *seg)
{
	struct wire_sack v[3];
	uint32_t n = 0, room = (WIRE_TCP_OPT_MAX - seg->opt_len - 4u) / 8, base = s->irs + 1;

	if (!s->peer_sack || !(seg->flags & TH_ACK) || (seg->flags & (TH_SYN | TH_RST)))
		return;
	if (chance(w) < w->lie) {
		v[n].start = seg->ack + below(w, 200000) - 100000;
		v[n].end = v[n].start + below(w, 20000) - 2000;
		n++;
	}
	for (uint32_t i = 0; i < s->n_kept && n < room && n < 3; i++, n++)
		v[n] = (struct wire_sack){base + (uint32_t)s->kept[i].start,
					  base + (uint32_t)s->kept[i].end};
	if (n)
		wire_opt_sack(seg, v, n);
}

void wild_keep(struct wild *w, struct ksock *s, uint64_t start, uint64_t end)
{
	uint32_t i = s->n_kept;

	if (!w->sack)
		return;
	if (chance(w) < w->renege) {
		s->n_kept = 0;
		return;
	}
	if (s->n_kept == KERN_KEPT)
		s->n_kept--; /* the oldest is forgotten, which is reneging as well */
	for (i = s->n_kept++; i; i--)
		s->kept[i] = s->kept[i - 1];
	s->kept[0].start = start; /* newest first (RFC 2018 section 4) */
	s->kept[0].end = end;
}

uint64_t wild_merge(struct ksock *s, uint64_t got)
{
	for (bool again = true; again;) {
		uint32_t left = 0;

		again = false;
		for (uint32_t i = 0; i < s->n_kept; i++) {
			if (s->kept[i].start > got) {
				s->kept[left++] = s->kept[i];
				continue;
			}
			again |= s->kept[i].end > got;
			got = max_u64(got, s->kept[i].end);
		}
		s->n_kept = left;
	}
	return got;
}

bool wild_drops(struct wild *w, const struct ksock *s, uint64_t now_ns)
{
	return now_ns < s->shut_until_ns && below(w, 2);
}

uint64_t wild_piece(struct wild *w, uint64_t len)
{
	return chance(w) < w->data ? min_u64(len, 1 + below(w, below(w, 2) ? 3 : 300)) : len;
}

static struct wire_seg plain(const struct ksock *s, uint8_t flags)
{
	return (struct wire_seg){
		.flags = flags,
		.seq = s->iss + 1 + (uint32_t)s->nxt + s->fin_sent,
		.ack = flags & TH_ACK ? s->irs + 1 + (uint32_t)s->got + s->fin_got : 0,
		.wnd = 100,
	};
}

static void noise_acks(struct wild *w, struct kern *k, struct ksock *s, uint64_t now_ns)
{
	struct wire_seg seg = plain(s, TH_ACK);
	uint32_t times = 1 + below(w, 4);

	switch (below(w, 3)) {
	case 0: /* beyond all that was ever allowed */
		seg.ack = s->irs + 3 + (uint32_t)s->adv + below(w, below(w, 2) ? 3000 : 2000000000);
		break;
	case 1:
		seg.ack -= 1 + below(w, below(w, 2) ? 3000 : 2000000000);
		break;
	default:
		while (times--)
			kern_emit(k, s, seg, s->got, 0, 0, now_ns);
		return;
	}
	kern_emit(k, s, seg, 0, 0, 0, now_ns);
}

/* A piece of the stream that was sent before; what was acknowledged may come with other bytes */
static void noise_data(struct wild *w, struct kern *k, struct ksock *s, uint64_t now_ns)
{
	struct wire_seg seg = plain(s, TH_ACK);
	uint64_t reach = min_u64(s->nxt, 5000), off = s->nxt - below(w, reach + 1), end;

	end = min_u64(s->nxt, off + below(w, s->peer_mss + 1u));
	seg.seq = s->iss + 1 + (uint32_t)off;
	if (end <= s->una && end > off)
		kern_emit(k, s, seg, off, (uint32_t)(end - off), below(w, 2) ? 0x5a : 0, now_ns);
	else if (end > off)
		kern_emit(k, s, seg, off, (uint32_t)(end - off), 0, now_ns);
	else if (s->una) { /* as a keep-alive with its byte of garbage */
		seg.seq = s->iss + (uint32_t)s->una;
		kern_emit(k, s, seg, s->una - 1, 1, 0x5a, now_ns);
	}
}

static void noise_flags(struct wild *w, struct kern *k, struct ksock *s, uint64_t now_ns)
{
	static const uint8_t kinds[] = {TH_SYN, TH_SYN | TH_ACK, TH_RST,	  TH_RST | TH_ACK,
					0,	TH_FIN,		 TH_PSH | TH_URG, TH_ACK | TH_ECE};
	struct wire_seg seg = plain(s, kinds[below(w, sizeof(kinds))]);

	/*
	 * An exact RST would be right to end it: always before what the core has, or ahead of
	 * all there is
	 */
	if (seg.flags & TH_RST)
		seg.seq = below(w, 2) ? s->iss - 1 - below(w, 70000)
				      : s->iss + 3 + (uint32_t)s->to_send + below(w, 70000);
	kern_emit(k, s, seg, 0, 0, 0, now_ns);
}

void wild_noise(struct wild *w, struct kern *k, struct ksock *s, uint64_t now_ns)
{
	if (w->noise_ns > now_ns + NOISE_AHEAD_NS)
		return;
	w->noise_ns = max_u64(w->noise_ns, now_ns) + NOISE_EVERY_NS;
	if (chance(w) < w->acks)
		noise_acks(w, k, s, now_ns);
	if (chance(w) < w->data)
		noise_data(w, k, s, now_ns);
	if (chance(w) < w->flags)
		noise_flags(w, k, s, now_ns);
}
