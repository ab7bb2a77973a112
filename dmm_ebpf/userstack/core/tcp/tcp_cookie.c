/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_cookie.c: SYN cookies (RFC 4987 section 3.6): a peer's SYN is answered without a connection,
 * and its ACK brings back all that a connection needs.
 *
 * The SYN-ACK's sequence number is the cookie: two keyed hashes, of 23 and 6 bits, and 3 bits that
 * say which MSS the peer offered, rounded down. The hashes cover addresses, ports, options, and the
 * number of the minute, which makes a cookie worthless after one to two minutes as a change of key
 * would; the longer one covers the peer's sequence number too. So a segment that arrives before the
 * peer's first one, whose sequence number is therefore not known, is still seen to answer a cookie:
 * it is dropped, for it will come again, where a RST would end a connection that merely lost its
 * ACK.
 *
 * If the peer offers timestamps, window scale, SACK and ECN go into the low bits of our timestamp,
 * which the peer echoes; without timestamps they are not agreed to. A peer that asks for accurate
 * ECN is given that of RFC 3168, which needs one bit only.
 *
 * The inner leg is opened when the ACK has come. Until the app's kernel has answered, the outer leg
 * is established and held (TF_HOLD): it takes data as far as the window of the SYN-ACK goes and
 * sends nothing.
 *
 * Not told again: the SYN-ACK is never retransmitted, and a peer whose ACK was lost and who waits
 * for us to speak first waits for its own timers. So cookies are for when there is no room
 * (halfopen.c).
 *
 * Refuses: any ACK when no cookie is out, or with another cookie than ours.
 */
#include "tcp_int.h"

#define COOKIE_MINUTE_NS (60 * NS_PER_S)

enum {
	MSS_BITS = 3,
	MSS_MASK = (1 << MSS_BITS) - 1,
	/* what the timestamp carries */
	TS_BITS = 6,
	TS_MASK = (1 << TS_BITS) - 1,
	OPT_WSCALE = 0x0f,
	OPT_WSCALE_NONE = 0x0f, /* TCP_MAX_WSCALE is smaller */
	OPT_SACK = 0x10,
	OPT_ECN = 0x20,
	/* in the hash only */
	OPT_TS = 0x40,
	WITH_IRS = 0x10000,
};

/* The bits that do not depend on the peer's sequence number */
#define PART_MASK ((1u << (MSS_BITS + 6)) - 1)

/*
 * The least that is taken, the defaults of both families, tunnels and PPPoE, Ethernet, jumbo frames
 */
static const uint16_t mss_table[MSS_MASK + 1] = {TCP_MIN_MSS, 536,  1220, 1360,
						 1400,	      1440, 1460, 8940};

static uint32_t mss_index(const struct dmm_core_addr_pair *pair, const struct pkt *syn)
{
	uint32_t mss = syn->mss ? syn->mss : (pair->family == WIRE_AF_INET ? 536 : 1220);
	uint32_t i = MSS_MASK;

	while (i && mss_table[i] > mss)
		i--;
	return i;
}

static uint32_t options_of(const struct env *env, const struct pkt *syn)
{
	uint32_t options = OPT_TS;

	if (!syn->has_ts)
		return 0;
	options |= syn->has_wscale ? syn->wscale & OPT_WSCALE : OPT_WSCALE_NONE;
	options |= syn->has_sack_perm ? OPT_SACK : 0;
	if (!env->cfg.ecn_off && (syn->flags & (TH_ECE | TH_CWR)) == (TH_ECE | TH_CWR))
		options |= OPT_ECN;
	return options;
}

static uint32_t hash(const struct env *env, const struct dmm_core_addr_pair *pair, uint64_t minute,
		     uint64_t what)
{
	struct {
		struct dmm_core_addr_pair pair;
		uint64_t when;
		uint64_t what;
	} said = {*pair, minute, what};

	return (uint32_t)siphash(env->cookie_secret, &said, 7);
}

static uint32_t make_cookie(const struct env *env, const struct dmm_core_addr_pair *pair,
			    uint32_t irs, uint64_t minute, uint32_t options, uint32_t mss)
{
	uint64_t what = options << MSS_BITS | mss;
	uint32_t whole = hash(env, pair, minute, what | WITH_IRS | (uint64_t)irs << 32);
	uint32_t part = hash(env, pair, minute, what);

	return (whole & ~PART_MASK) | (part & PART_MASK & ~(uint32_t)MSS_MASK) | mss;
}

/* Never ahead of the clock that the connection will go on with */
static uint32_t make_tsval(uint32_t clock, uint32_t options)
{
	uint32_t tsval = (clock & ~(uint32_t)TS_MASK) | (options & TS_MASK);

	return (options & TS_MASK) > (clock & TS_MASK) ? tsval - (TS_MASK + 1) : tsval;
}

/* Of the SYN-ACK; neither changes while a cookie is out */
static uint16_t first_window(const struct env *env)
{
	return (uint16_t)min_u32(env->cfg.rcvbuf_bytes, 65535);
}

static uint8_t window_scale(const struct env *env)
{
	return tcp_pick_wscale(env->cfg.rcvbuf_bytes);
}

/* The kernel is not asked, so nothing is known of its route and of rules that write another: the
 * device's MTU is the best guess, and what the kernel has said to the latest peer. */
static uint16_t first_mss(const struct env *env, const struct dmm_core_addr_pair *pair,
			  const struct pkt *syn)
{
	uint32_t said = env->listener_mss[pair->family != WIRE_AF_INET];
	uint32_t mss = pmtu_of_device(env, pair->family, syn->link_mtu) -
		       wire_ip_len(pair->family) - WIRE_TCP_LEN;

	return (uint16_t)(said ? min_u32(mss, said) : mss);
}

static void answer(struct env *env, const struct dmm_core_addr_pair *pair, const struct pkt *syn,
		   uint64_t now_ns)
{
	uint32_t clock = (uint32_t)(now_ns / NS_PER_MS) + tcp_ts_offset(env, pair, DMM_LEG_OUTER);
	uint32_t options = options_of(env, syn);
	uint64_t minute = now_ns / COOKIE_MINUTE_NS;
	struct wire_seg seg = {
		.seq = make_cookie(env, pair, syn->seq, minute, options, mss_index(pair, syn)),
		.ack = syn->seq + 1,
		.wnd = first_window(env),
		.flags = TH_SYN | TH_ACK | (options & OPT_ECN ? TH_ECE : 0),
	};
	struct wire_dir dir;

	wire_opt_mss(&seg, first_mss(env, pair, syn));
	wire_opt_syn_tail(&seg, options & OPT_SACK, options & OPT_TS, make_tsval(clock, options),
			  syn->tsval, options && (options & OPT_WSCALE) != OPT_WSCALE_NONE,
			  window_scale(env));
	ctl_dir(pair, DMM_LEG_OUTER, &dir);
	ctl_push_tcp(env, DMM_LEG_OUTER, syn->link, &dir, &seg);
	env->counters[DMM_CORE_SYN_COOKIES_SENT]++;
	env->cookies_until_ns = (minute + 2) * COOKIE_MINUTE_NS;
}

static enum end_cookie fits(const struct env *env, const struct dmm_core_addr_pair *pair,
			    const struct pkt *pkt, uint32_t options, uint64_t now_ns)
{
	uint64_t minute = now_ns / COOKIE_MINUTE_NS;
	uint32_t cookie = pkt->ack - 1;

	for (uint64_t age = 0; age < 2 && age <= minute; age++) {
		uint32_t want = make_cookie(env, pair, pkt->seq - 1, minute - age, options,
					    cookie & MSS_MASK);

		if (cookie == want)
			return COOKIE_GOOD;
		if (!((cookie ^ want) & PART_MASK))
			return COOKIE_LATER;
	}
	return COOKIE_NONE;
}

/* With COOKIE_GOOD: syn is the SYN that pkt's cookie stands for */
static enum end_cookie read_fit(const struct env *env, const struct dmm_core_addr_pair *pair,
				const struct pkt *pkt, uint64_t now_ns, struct pkt *syn)
{
	uint32_t options = pkt->has_ts ? OPT_TS | (pkt->tsecr & TS_MASK) : 0;
	enum end_cookie fit = fits(env, pair, pkt, options, now_ns);

	if (fit != COOKIE_GOOD)
		return fit;
	*syn = (struct pkt){
		.seq = pkt->seq - 1, .flags = TH_SYN, .family = pkt->family, .wnd = pkt->wnd};
	syn->mss = mss_table[(pkt->ack - 1) & MSS_MASK];
	if (!options)
		return fit;
	syn->has_ts = true;
	syn->tsval = pkt->tsval;
	syn->has_sack_perm = options & OPT_SACK;
	syn->has_wscale = (options & OPT_WSCALE) != OPT_WSCALE_NONE;
	syn->wscale = options & OPT_WSCALE;
	if (options & OPT_ECN)
		syn->flags |= TH_ECE | TH_CWR;
	return fit;
}

static enum end_cookie cookie_read(struct env *env, const struct dmm_core_addr_pair *pair,
				   const struct pkt *pkt, uint64_t now_ns, struct pkt *syn)
{
	if (now_ns >= env->cookies_until_ns || (pkt->flags & (TH_SYN | TH_RST | TH_ACK)) != TH_ACK)
		return COOKIE_NONE;
	switch (read_fit(env, pair, pkt, now_ns, syn)) {
	case COOKIE_GOOD:
		env->counters[DMM_CORE_SYN_COOKIES_VALID]++;
		return COOKIE_GOOD;
	case COOKIE_LATER:
		env->counters[DMM_CORE_BAD_SEQ]++;
		return COOKIE_LATER;
	case COOKIE_NONE:
		break;
	}
	env->counters[DMM_CORE_SYN_COOKIES_INVALID]++;
	return COOKIE_NONE;
}

static void restore(struct env *env, struct end *e, const struct pkt *syn, const struct pkt *pkt,
		    uint64_t now_ns)
{
	struct tcb *t = tcb_of(e);

	tcp_learn_syn(env, t, syn, now_ns);
	t->rcv_wscale = t->flags & TF_WS ? window_scale(env) : 0;
	t->rcv_adv = t->rcv_nxt + first_window(env);
	t->iss = pkt->ack - 1;
	t->snd_nxt = 1;
	t->flags |= TF_SYN_RTX; /* when it was sent is not known */
	tcp_event(env, t, TE_SYN, now_ns);
}

const struct end_cookies tcp_cookies = {.answer = answer, .read = cookie_read, .restore = restore};
