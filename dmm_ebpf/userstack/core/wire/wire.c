/* SPDX-License-Identifier: Apache-2.0 */
/* wire.c: see wire.h. Sums are taken over native words: one's complement does not mind byte order
 * (RFC 1071).
 */
#include "wire.h"

static const uint8_t v4_mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static const uint8_t accecn_order[2][ACCECN_COUNTERS] = {{ECN_ECT0, ECN_CE, ECN_ECT1},
							 {ECN_ECT1, ECN_CE, ECN_ECT0}};

/*
 * RFC 9768 section 3.2.3: whole counters are taken from an option of any length, the
 * rest is skipped
 */
static void opt_accecn(struct pkt *pkt, const uint8_t *o, uint32_t len)
{
	const uint8_t *order = accecn_order[o[0] == 174];

	if (pkt->has_accecn)
		return;
	pkt->has_accecn = true;
	for (uint32_t i = 0; i < ACCECN_COUNTERS && 5 + 3 * i <= len; i++) {
		const uint8_t *p = o + 2 + 3 * i;

		pkt->accecn[order[i] - 1] = (uint32_t)p[0] << 16 | get_be16(p + 1);
		pkt->accecn_fields |= (uint8_t)(1 << order[i]);
	}
}

static void opt_agree(struct pkt *pkt, const uint8_t *o, uint32_t len)
{
	if (len < 6 || get_be32(o + 2) != DMM_CORE_AGREE_EXID)
		return;
	if (pkt->n_agree || len != WIRE_AGREE_LEN) {
		pkt->n_agree = 2;
		return;
	}
	pkt->n_agree = 1;
	pkt->agree = (struct wire_agree){
		.role = o[6] >> 6, .version = o[6] >> 4 & 3, .features = o[6] & 15, .value = o[7]};
}

static void opt_one(struct pkt *pkt, const uint8_t *o, uint32_t len)
{
	switch (o[0]) {
	case 2:
		if (len == 4)
			pkt->mss = get_be16(o + 2);
		break;
	case 3:
		if (len == 3) {
			pkt->has_wscale = true;
			pkt->wscale = o[2] > 14 ? 14 : o[2]; /* RFC 7323 section 2.3 */
		}
		break;
	case 4:
		if (len == 2)
			pkt->has_sack_perm = true;
		break;
	case 5:
		if ((len - 2) % 8)
			break;
		for (uint32_t i = 2; i + 8 <= len && pkt->n_sack < WIRE_MAX_SACK; i += 8) {
			struct wire_sack *s = &pkt->sack[pkt->n_sack++];

			s->start = get_be32(o + i);
			s->end = get_be32(o + i + 4);
		}
		break;
	case 8:
		if (len == 10) {
			pkt->has_ts = true;
			pkt->tsval = get_be32(o + 2);
			pkt->tsecr = get_be32(o + 6);
		}
		break;
	case 172:
	case 174:
		opt_accecn(pkt, o, len);
		break;
	case WIRE_AGREE_KIND:
		opt_agree(pkt, o, len);
		break;
	default: /* RFC 9293 section 3.1: unknown options are skipped */
		break;
	}
}

/* A bad option length ends the parse, not the packet, as Linux does */
static void parse_options(struct pkt *pkt, const uint8_t *o, uint32_t left)
{
	/* the layout nearly every segment has: NOP NOP timestamps */
	if (left == 12 && get_be32(o) == 0x0101080a) {
		pkt->has_ts = true;
		pkt->tsval = get_be32(o + 4);
		pkt->tsecr = get_be32(o + 8);
		return;
	}
	while (left) {
		uint32_t len;

		if (o[0] == 0)
			return;
		if (o[0] == 1) {
			o++;
			left--;
			continue;
		}
		if (left < 2 || o[1] < 2 || o[1] > left)
			return;
		len = o[1];
		opt_one(pkt, o, len);
		o += len;
		left -= len;
	}
}

static bool addr_ok(uint8_t family, const uint8_t *a)
{
	if (family == WIRE_AF_INET)
		/* not "this network", multicast, class E or broadcast */
		return a[12] && a[12] < 224;
	if (a[0] == 0xff)
		return false;
	for (int i = 0; i < 16; i++) {
		if (a[i])
			return true;
	}
	return false;
}

static void ports_of(struct pkt *pkt, const uint8_t *tcp)
{
	memcpy(&pkt->sport_be, tcp, 2);
	memcpy(&pkt->dport_be, tcp + 2, 2);
	pkt->seq = get_be32(tcp + 4);
}

static uint64_t pseudo_sum(uint8_t family, const uint8_t *saddr, const uint8_t *daddr,
			   uint32_t l4_len, uint8_t proto)
{
	uint32_t skip = family == WIRE_AF_INET ? 12 : 0;
	uint8_t tail[8] = {0};
	uint64_t sum = csum_add(saddr + skip, 16 - skip, 0);

	sum = csum_add(daddr + skip, 16 - skip, sum);
	put_be32(tail, l4_len);
	tail[7] = proto;
	return csum_add(tail, 8, sum);
}

static enum wire_result parse_tcp(const uint8_t *p, uint32_t len, bool check_csum, struct pkt *pkt)
{
	uint32_t off;

	if (len < WIRE_TCP_LEN)
		return WIRE_MALFORMED;
	off = (p[12] >> 4) * 4u;
	if (off < WIRE_TCP_LEN || off > len)
		return WIRE_MALFORMED;
	if (check_csum) {
		uint64_t sum = pseudo_sum(pkt->family, pkt->saddr, pkt->daddr, len, WIRE_PROTO_TCP);

		if (csum_fold(csum_add(p, len, sum)) != 0xffff)
			return WIRE_BAD_CSUM;
	}
	if (!addr_ok(pkt->family, pkt->saddr) || !addr_ok(pkt->family, pkt->daddr))
		return WIRE_MALFORMED;
	ports_of(pkt, p);
	pkt->ack = get_be32(p + 8);
	pkt->flags = (uint16_t)((p[12] & 1) << 8 | p[13]);
	pkt->wnd = get_be16(p + 14);
	pkt->urg = get_be16(p + 18);
	if ((pkt->flags & TH_SYN) && (pkt->flags & (TH_FIN | TH_RST)))
		return WIRE_MALFORMED;
	parse_options(pkt, p + WIRE_TCP_LEN, off - WIRE_TCP_LEN);
	pkt->payload = p + off;
	pkt->payload_len = len - off;
	return WIRE_TCP;
}

/*
 * The packet an ICMP error quotes: IP header and at least 8 bytes of TCP (RFC 792, RFC
 * 4443 section 2.4)
 */
static enum wire_result parse_quote(const uint8_t *p, uint32_t len, struct pkt *pkt)
{
	uint32_t ihl = WIRE_IP6_LEN;

	if (pkt->family == WIRE_AF_INET) {
		if (len < WIRE_IP4_LEN || p[0] >> 4 != 4)
			return WIRE_MALFORMED;
		ihl = (p[0] & 0xf) * 4u;
		if (ihl < WIRE_IP4_LEN || len < ihl + 8 || p[9] != WIRE_PROTO_TCP)
			return WIRE_MALFORMED;
		memcpy(pkt->saddr, v4_mapped, 12);
		memcpy(pkt->saddr + 12, p + 12, 4);
		memcpy(pkt->daddr, v4_mapped, 12);
		memcpy(pkt->daddr + 12, p + 16, 4);
	} else {
		if (len < WIRE_IP6_LEN + 8 || p[0] >> 4 != 6 || p[6] != WIRE_PROTO_TCP)
			return WIRE_MALFORMED;
		memcpy(pkt->saddr, p + 8, 16);
		memcpy(pkt->daddr, p + 24, 16);
		if (!memcmp(pkt->saddr, v4_mapped, 12) || !memcmp(pkt->daddr, v4_mapped, 12))
			return WIRE_MALFORMED;
	}
	ports_of(pkt, p + ihl);
	return WIRE_ICMP;
}

static enum wire_result parse_icmp4(const uint8_t *p, uint32_t len, struct pkt *pkt)
{
	if (len < 8 || csum_fold(csum_add(p, len, 0)) != 0xffff)
		return len < 8 ? WIRE_MALFORMED : WIRE_BAD_CSUM;
	pkt->icmp_type = p[0];
	pkt->icmp_code = p[1];
	if (p[0] == 3 && p[1] == 4) {
		pkt->icmp = ICMP_KIND_TOO_BIG;
		pkt->icmp_mtu = get_be16(p + 6);
	} else if (p[0] == 3) {
		pkt->icmp = ICMP_KIND_UNREACH;
	} else if (p[0] == 11) {
		pkt->icmp = ICMP_KIND_TIME;
	} else {
		return WIRE_MALFORMED;
	}
	return parse_quote(p + 8, len - 8, pkt);
}

static enum wire_result parse_icmp6(const uint8_t *p, uint32_t len, struct pkt *pkt)
{
	uint64_t sum;

	if (len < 8)
		return WIRE_MALFORMED;
	sum = pseudo_sum(WIRE_AF_INET6, pkt->saddr, pkt->daddr, len, 58);
	if (csum_fold(csum_add(p, len, sum)) != 0xffff)
		return WIRE_BAD_CSUM;
	pkt->icmp_type = p[0];
	pkt->icmp_code = p[1];
	if (p[0] == 2) {
		pkt->icmp = ICMP_KIND_TOO_BIG;
		pkt->icmp_mtu = get_be32(p + 4);
	} else if (p[0] == 1) {
		pkt->icmp = ICMP_KIND_UNREACH;
	} else if (p[0] == 3) {
		pkt->icmp = ICMP_KIND_TIME;
	} else {
		return WIRE_MALFORMED;
	}
	return parse_quote(p + 8, len - 8, pkt);
}

static enum wire_result parse_ip4(const uint8_t *p, uint32_t len, bool check_csum, struct pkt *pkt)
{
	uint32_t ihl, total;

	if (len < WIRE_IP4_LEN)
		return WIRE_MALFORMED;
	ihl = (p[0] & 0xf) * 4u;
	total = get_be16(p + 2);
	if (ihl < WIRE_IP4_LEN || total < ihl || total > len)
		return WIRE_MALFORMED;
	if (get_be16(p + 6) & 0x3fff) /* more fragments, or an offset */
		return WIRE_MALFORMED;
	if (csum_fold(csum_add(p, ihl, 0)) != 0xffff)
		return WIRE_BAD_CSUM;
	pkt->family = WIRE_AF_INET;
	pkt->tos = p[1];
	pkt->ttl = p[8];
	pkt->may_cut = !(p[6] & WIRE_IP4_DF);
	memcpy(pkt->saddr, v4_mapped, 12);
	memcpy(pkt->saddr + 12, p + 12, 4);
	memcpy(pkt->daddr, v4_mapped, 12);
	memcpy(pkt->daddr + 12, p + 16, 4);
	if (p[9] == WIRE_PROTO_TCP)
		return parse_tcp(p + ihl, total - ihl, check_csum, pkt);
	if (p[9] == 1)
		return parse_icmp4(p + ihl, total - ihl, pkt);
	return WIRE_MALFORMED;
}

static enum wire_result parse_ip6(const uint8_t *p, uint32_t len, bool check_csum, struct pkt *pkt)
{
	uint32_t plen;

	if (len < WIRE_IP6_LEN)
		return WIRE_MALFORMED;
	plen = get_be16(p + 4);
	if (plen > len - WIRE_IP6_LEN)
		return WIRE_MALFORMED;
	pkt->family = WIRE_AF_INET6;
	pkt->tos = (uint8_t)(get_be16(p) >> 4);
	pkt->ttl = p[7];
	pkt->flow_label = get_be32(p) & WIRE_FLOW_LABEL_MASK;
	memcpy(pkt->saddr, p + 8, 16);
	memcpy(pkt->daddr, p + 24, 16);
	if (!memcmp(pkt->saddr, v4_mapped, 12) || !memcmp(pkt->daddr, v4_mapped, 12))
		/* would be taken for an IPv4 connection (RFC 4291: never on the wire) */
		return WIRE_MALFORMED;
	if (p[6] == WIRE_PROTO_TCP)
		return parse_tcp(p + WIRE_IP6_LEN, plen, check_csum, pkt);
	if (p[6] == 58)
		return parse_icmp6(p + WIRE_IP6_LEN, plen, pkt);
	return WIRE_MALFORMED;
}

enum wire_result wire_parse(const uint8_t *p, uint32_t len, bool check_csum, struct pkt *pkt)
{
	memset(pkt, 0, sizeof(*pkt));
	if (!len)
		return WIRE_MALFORMED;
	if (p[0] >> 4 == 4)
		return parse_ip4(p, len, check_csum, pkt);
	if (p[0] >> 4 == 6)
		return parse_ip6(p, len, check_csum, pkt);
	return WIRE_MALFORMED;
}

void wire_csum_full(uint8_t *buf, const struct wire_dir *dir, uint32_t headers_len,
		    uint32_t payload_len, uint64_t payload_sum)
{
	uint32_t ip_len = wire_ip_len(dir->family);
	uint32_t tcp_len = headers_len - ip_len;
	uint64_t sum = pseudo_sum(dir->family, dir->saddr, dir->daddr, tcp_len + payload_len,
				  WIRE_PROTO_TCP);
	uint16_t csum;

	sum = csum_add(buf + ip_len, tcp_len, sum);
	csum = (uint16_t)~csum_fold(csum_join(sum, csum_fold(payload_sum)));
	memcpy(buf + ip_len + WIRE_CSUM_OFFSET, &csum, 2);
}

void wire_csum_partial(uint8_t *buf, const struct wire_dir *dir, uint32_t headers_len,
		       uint32_t payload_len)
{
	uint32_t ip_len = wire_ip_len(dir->family);
	uint16_t csum = csum_fold(pseudo_sum(dir->family, dir->saddr, dir->daddr,
					     headers_len - ip_len + payload_len, WIRE_PROTO_TCP));

	memcpy(buf + ip_len + WIRE_CSUM_OFFSET, &csum, 2);
}

static uint32_t ip_header(uint8_t *buf, const struct wire_dir *dir, uint8_t proto, uint32_t l4_len)
{
	uint16_t csum;

	if (dir->family == WIRE_AF_INET) {
		memset(buf, 0, WIRE_IP4_LEN);
		buf[0] = 0x45;
		buf[1] = dir->tos;
		put_be16(buf + 2, (uint16_t)(WIRE_IP4_LEN + l4_len));
		put_be16(buf + 4, dir->id);
		buf[6] = dir->may_cut ? 0 : WIRE_IP4_DF; /* path MTU discovery, RFC 1191 */
		buf[8] = dir->ttl ? dir->ttl : WIRE_TTL;
		buf[9] = proto;
		memcpy(buf + 12, dir->saddr + 12, 4);
		memcpy(buf + 16, dir->daddr + 12, 4);
		csum = (uint16_t)~csum_fold(csum_add(buf, WIRE_IP4_LEN, 0));
		memcpy(buf + 10, &csum, 2);
		return WIRE_IP4_LEN;
	}
	put_be32(buf, 6u << 28 | (uint32_t)dir->tos << 20 | dir->flow_label);
	put_be16(buf + 4, (uint16_t)l4_len);
	buf[6] = proto;
	buf[7] = dir->ttl ? dir->ttl : WIRE_TTL;
	memcpy(buf + 8, dir->saddr, 16);
	memcpy(buf + 24, dir->daddr, 16);
	return WIRE_IP6_LEN;
}

static void tcp_header(uint8_t *p, const struct wire_dir *dir, const struct wire_seg *seg)
{
	memcpy(p, &dir->sport_be, 2);
	memcpy(p + 2, &dir->dport_be, 2);
	put_be32(p + 4, seg->seq);
	put_be32(p + 8, seg->ack);
	p[12] = (uint8_t)((WIRE_TCP_LEN + seg->opt_len) / 4 << 4 | (seg->flags & TH_AE) >> 8);
	p[13] = (uint8_t)seg->flags;
	put_be16(p + 14, seg->wnd);
	put_be16(p + 16, 0);
	put_be16(p + 18, seg->urg);
}

uint32_t wire_headers(uint8_t *buf, const struct wire_dir *dir, const struct wire_seg *seg,
		      uint32_t payload_len)
{
	uint32_t tcp_len = WIRE_TCP_LEN + seg->opt_len;
	uint32_t ip_len = ip_header(buf, dir, WIRE_PROTO_TCP, tcp_len + payload_len);

	tcp_header(buf + ip_len, dir, seg);
	memcpy(buf + ip_len + WIRE_TCP_LEN, seg->opt, seg->opt_len);
	return ip_len + tcp_len;
}

uint32_t wire_icmp_error(uint8_t *buf, const struct wire_dir *dir, const struct wire_seg *seg,
			 uint8_t type, uint8_t code)
{
	struct wire_dir back = *dir;
	uint32_t ip_len = wire_ip_len(dir->family);
	uint32_t icmp_len = 8 + ip_len + WIRE_TCP_LEN;
	uint8_t *icmp = buf + ip_len;
	uint64_t sum = 0;
	uint16_t csum;

	back.saddr = dir->daddr;
	back.daddr = dir->saddr;
	ip_header(buf, &back, dir->family == WIRE_AF_INET ? 1 : 58, icmp_len);
	memset(icmp, 0, 8);
	icmp[0] = type;
	icmp[1] = code;
	ip_header(icmp + 8, dir, WIRE_PROTO_TCP, WIRE_TCP_LEN);
	tcp_header(icmp + 8 + ip_len, dir, seg);
	icmp[8 + ip_len + 12] = WIRE_TCP_LEN / 4 << 4;
	if (dir->family == WIRE_AF_INET6)
		sum = pseudo_sum(WIRE_AF_INET6, back.saddr, back.daddr, icmp_len, 58);
	csum = (uint16_t)~csum_fold(csum_add(icmp, icmp_len, sum));
	memcpy(icmp + 2, &csum, 2);
	return ip_len + icmp_len;
}

static uint8_t *opt_more(struct wire_seg *seg, uint8_t n)
{
	uint8_t *p = seg->opt + seg->opt_len;

	seg->opt_len = (uint8_t)(seg->opt_len + n);
	return p;
}

void wire_opt_mss(struct wire_seg *seg, uint16_t mss)
{
	uint8_t *p = opt_more(seg, 4);

	p[0] = 2;
	p[1] = 4;
	put_be16(p + 2, mss);
}

void wire_opt_ts(struct wire_seg *seg, uint32_t tsval, uint32_t tsecr)
{
	uint8_t *p = opt_more(seg, 12);

	put_be32(p, 0x0101080a);
	put_be32(p + 4, tsval);
	put_be32(p + 8, tsecr);
}

/*
 * Linux's order, which middleboxes have seen most: SACK permitted and timestamps, NOP, window scale
 */
void wire_opt_syn_tail(struct wire_seg *seg, bool sack, bool ts, uint32_t tsval, uint32_t tsecr,
		       bool ws, uint8_t wscale)
{
	uint8_t *p;

	if (ts) {
		wire_opt_ts(seg, tsval, tsecr);
		if (sack)
			put_be16(seg->opt + seg->opt_len - 12, 0x0402);
	} else if (sack) {
		put_be32(opt_more(seg, 4), 0x01010402);
	}
	if (ws) {
		p = opt_more(seg, 4);
		put_be32(p, 0x01030300u | wscale);
	}
}

void wire_opt_sack(struct wire_seg *seg, const struct wire_sack *sack, uint32_t n)
{
	uint8_t *p = opt_more(seg, (uint8_t)(4 + 8 * n));

	put_be32(p, 0x01010500u | (2 + 8 * n));
	for (uint32_t i = 0; i < n; i++) {
		put_be32(p + 4 + 8 * i, sack[i].start);
		put_be32(p + 8 + 8 * i, sack[i].end);
	}
}

void wire_opt_accecn(struct wire_seg *seg, const uint32_t bytes[ACCECN_COUNTERS], bool ect1_first,
		     bool all)
{
	const uint8_t *order = accecn_order[ect1_first];
	uint8_t n = all ? 3 : 2, *p = opt_more(seg, all ? 12 : 8);

	p[0] = ect1_first ? 174 : 172;
	p[1] = (uint8_t)(2 + 3 * n);
	for (uint8_t i = 0; i < n; i++) {
		uint32_t count = bytes[order[i] - 1];

		p[2 + 3 * i] = (uint8_t)(count >> 16);
		put_be16(p + 3 + 3 * i, (uint16_t)count);
	}
	if (all)
		p[11] = 1;
}

void wire_opt_agree(struct wire_seg *seg, const struct wire_agree *agree)
{
	uint8_t *p = opt_more(seg, WIRE_AGREE_LEN);

	p[0] = WIRE_AGREE_KIND;
	p[1] = WIRE_AGREE_LEN;
	put_be32(p + 2, DMM_CORE_AGREE_EXID);
	p[6] = (uint8_t)(agree->role << 6 | (agree->version & 3) << 4 | (agree->features & 15));
	p[7] = agree->value;
}
