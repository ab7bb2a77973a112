/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * dmm.bpf.c: the one translation unit: every BPF program of dmm-ebpf, one entry point each, and
 * every step of a loop (DMM_STEP in defs.h).
 *
 * Entry points only, on purpose: BCC rewrites the body of functions in this file, and leaves the
 * included parts alone.
 */
#include "defs.h"
#include "connect.h"
#include "bind.h"
#include "sendmsg.h"
#include "sockopt.h"
#include "sockops.h"
#include "release.h"
#include "earlier.h"
#include "protocol.h"
#include "group.h"
#include "xdp.h"
#include "tcfrom.h"
#include "tcin.h"
#include "tcout.h"
#include "ingress.h"

int dmm_release(struct bpf_sock *ctx)
{
	return released(ctx);
}

int dmm_sockops(struct bpf_sock_ops *ctx)
{
	return sockops(ctx);
}

int dmm_connect4(struct bpf_sock_addr *ctx)
{
	return connect4(ctx);
}

int dmm_connect6(struct bpf_sock_addr *ctx)
{
	return connect6(ctx);
}

int dmm_sendmsg4(struct bpf_sock_addr *ctx)
{
	return sendmsg4(ctx);
}

int dmm_sendmsg6(struct bpf_sock_addr *ctx)
{
	return sendmsg6(ctx);
}

int dmm_getsockopt(struct bpf_sockopt *ctx)
{
	return option_get_asked(ctx);
}

int dmm_setsockopt(struct bpf_sockopt *ctx)
{
	return option_set_asked(ctx);
}

int dmm_bind4(struct bpf_sock_addr *ctx)
{
	return bind_remember(ctx);
}

int dmm_bind6(struct bpf_sock_addr *ctx)
{
	return bind_remember(ctx);
}

int dmm_post_bind4(struct bpf_sock *ctx)
{
	return bound4(ctx);
}

int dmm_post_bind6(struct bpf_sock *ctx)
{
	return bound6(ctx);
}

int dmm_xdp(struct xdp_md *ctx)
{
	return xdp(ctx);
}

int dmm_tcin(struct __sk_buff *ctx)
{
	return tcin(ctx);
}

int dmm_tcfrom(struct __sk_buff *ctx)
{
	return tcfrom(ctx);
}

int dmm_tcout(struct __sk_buff *ctx)
{
	return tcout(ctx);
}

int dmm_ingress(struct __sk_buff *ctx)
{
	return ingress(ctx);
}

int dmm_listener_set(struct dmm_listener_set *ctx)
{
	return listener_set(ctx);
}

int dmm_rule_set(struct dmm_rule_set *ctx)
{
	return rule_set(ctx);
}

int dmm_earlier(struct dmm_iter_tcp *ctx)
{
	return earlier(ctx);
}

int dmm_protocol(struct dmm_protocol_arguments *ctx)
{
	return protocol_asked(ctx);
}

int dmm_group_made(struct dmm_group_made *ctx)
{
	return group_made(ctx);
}

int dmm_group_rule(struct dmm_group_search *search)
{
	return group_rule(search);
}

int dmm_rule_connect(struct dmm_search *search)
{
	return rule_connect(search);
}

int dmm_rule_listen(struct dmm_search *search)
{
	return rule_listen(search);
}

int dmm_rule_choose(struct dmm_search *search)
{
	return rule_choose(search);
}

int dmm_rule_protocol(struct dmm_search *search)
{
	return rule_protocol(search);
}

int dmm_stack_named(struct dmm_stack_search *search)
{
	return stack_named(search);
}

int dmm_forward_try(struct dmm_forward_search *search)
{
	return forward_try(search);
}

int dmm_route_walk(struct dmm_route_walk *walk)
{
	return route_walk(walk);
}

int dmm_process_try(struct dmm_process_search *search)
{
	return process_try(search);
}

int dmm_lock_try(struct dmm_lock *lock)
{
	return lock_try(lock);
}

int dmm_option_tc(struct dmm_option_search *search)
{
	return option_tc(search);
}

int dmm_option_xdp(struct dmm_option_search *search)
{
	return option_xdp(search);
}

int dmm_header_next(struct dmm_headers *headers)
{
	return header_next(headers);
}
