/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * abi.h: every struct, enum and limit that the BPF programs, the C core and Python share.
 *
 * This is the only definition, with that of dmm.h, which programs have, too; so it is in one file,
 * however long. BPF C includes it after its own u8..u64 types are known, the C core includes it as
 * it is, and Python feeds the same text to cffi (dmm_ebpf/abi.py), which strips every line that
 * starts with '#'. Therefore: no macros with values, no attributes, no bit fields, padding spelled
 * out, constants as enums, and a struct's size is the same for every compiler.
 *
 * Byte order: a field named *_be is in network byte order, every other integer is in host order.
 * Addresses are always 16 bytes; IPv4 is v4-mapped (::ffff:a.b.c.d, RFC 4291 section 2.5.5.2).
 * Units are in the names: _ns, _us, _bytes, _Bps (bytes per second).
 */
#ifndef DMM_ABI_H
#define DMM_ABI_H

#ifndef __BPF_DMM__
#include <linux/types.h>
#endif
#include "dmm.h"

enum dmm_limits {
	DMM_ABI_VERSION = 23,
	DMM_MAX_STACKS = 64,	  /* stack ids 0..63; 0 is the kernel's stack, untouched */
	DMM_MAX_RULES = 64,	  /* per policy */
	DMM_MAX_CHECKS = 240,	  /* in rules[], of one policy; counted in a byte */
	DMM_MAX_PROCESSES = 16,	  /* of one user stack */
	DMM_MAX_NICS = 16,	  /* served */
	DMM_MAX_DEVICES = 256,	  /* that have our programs */
	DMM_MAX_QUEUES = 64,	  /* receive queues per NIC */
	DMM_NEAR_FLOWS = 2048,	  /* in flows[]; a power of two */
	DMM_RECENT_ROUTES = 1024, /* a power of two */
	DMM_MAX_FLOWS = 262144,	  /* in more_flows[] */
	DMM_MAX_XDP_FLOWS = 1048576,
	DMM_MAX_LISTENERS = 65536,
	DMM_MAX_EARLIER = 65536,
	/* live[] and live_ports[]: prefixes in all places together, and blocks of ports */
	DMM_MAX_LIVE = 655360,
	DMM_LIVE_PLACES = 8, /* in live[], each for a generation; a power of two */
	DMM_LIVE_TABLE_BITS = 28,
	DMM_NODE_PARTS = 8,	  /* of a node of routes[]: its first line of cache says which */
	DMM_ROUTE_DIGITS = 3,	  /* of a destination, with the table, at most */
	DMM_MAX_ADAPTIVE = 16384, /* prefixes that adaptive routes know of, in both halves */
	/* per policy: rules with direction "forward" times their source prefixes */
	DMM_MAX_FORWARDS = 64,
	DMM_MAX_INSIDE = 1024,	   /* devices by which packets of others come in */
	DMM_MAX_NOTES = 4096,	   /* SYNs on their way through the host */
	DMM_MAX_FORWARDED = 16384, /* flows of others that are told of; more are carried, too */
	/* exchanges of datagrams that are remembered, and for how long, as conntrack does */
	DMM_MAX_DATAGRAMS = 16384,
	DMM_DATAGRAM_ONE_WAY_S = 30,	/* nf_conntrack_udp_timeout */
	DMM_DATAGRAM_BOTH_WAYS_S = 120, /* nf_conntrack_udp_timeout_stream */
	/* packets of owned flows of which a fragment has come of late */
	DMM_MAX_FRAGMENTS = 4096,
	DMM_BEAT_MAX_NS = 1000000000, /* a process that was not heard of for longer hangs */
	DMM_EVENTS_BYTES = 4194304,
	DMM_WAKE_NS = 20000000, /* a reader of events[] is woken no more often */
	DMM_MAX_WAITED = 512,  /* cgroups that rules name, in both halves, and the instance's own */
	DMM_WAITED_PATH = 256, /* bytes of a path there; at least one is a NUL */
	DMM_MAX_GLOBS = 64,    /* patterns of cgroups, of one policy; each has a bit */
	DMM_MAX_GLOBBED = 16384, /* cgroups that they match */
	DMM_COMM_LEN = 16,	 /* TASK_COMM_LEN */
	DMM_CC_LEN = 16,	 /* TCP_CA_NAME_MAX */
	DMM_NO_DSCP = 64,	 /* of a datagram whose socket was not asked */
};

enum dmm_mark {
	/* skb->mark of what tc gives to a TAP device, and of nothing else there */
	DMM_TCIN_MARK = 0x646d6d,
	/*
	 * of what a stack process sends to the app, until the first of our programs at the NIC
	 * takes it off and says so to the others in skb->cb
	 */
	DMM_INNER_MARK = 0x646d6e,
	/*
	 * of what a stack process sends to the wire of a device that it does not serve, until our
	 * program there gives it the app's mark
	 */
	DMM_AWAY_MARK = 0x646d6f,
};

/*
 * The experiment (RFC 6994) of the TCP option by which two stacks of ours agree, "DMM1"; of 32
 * bits, since it is registered with nobody
 */
enum { DMM_AGREE_EXID = 0x444d4d31 };

enum dmm_control_flag {
	/* somebody reads the ring events; otherwise nothing is put there */
	DMM_CONTROL_EVENTS = 1,
	/* sockets of other network namespaces that connect are meant, too */
	DMM_CONTROL_CONTAINERS = 2,
	/* flows of others may be a user stack's: rules or containers say so */
	DMM_CONTROL_FORWARD = 4,
	/* datagrams may be a user stack's: a route says so, or a program may choose one */
	DMM_CONTROL_DATAGRAMS = 8,
	/* a policy of the instance has let programs choose; stays */
	DMM_CONTROL_CHOICE = 16,
	DMM_CONTROL_DSCP = 32, /* a rule asks for it */
	/* a route is adaptive: how its flows end is put in the ring, whoever reads */
	DMM_CONTROL_ADAPTIVE = 64,
	/* the hooks are on a cgroup above the instance's, whose sockets alone are meant; stays */
	DMM_CONTROL_GATE = 128,
};

/*
 * control[0]: written by the RD. generation selects the half of every policy map by
 * (generation & 1).
 */
struct dmm_control {
	__u32 abi_version;
	__u32 generation;   /* 0: no policy yet, programs only observe */
	__u64 netns_cookie; /* sockets of other network namespaces are left alone, but see flags */
	__u32 flags;	    /* enum dmm_control_flag */
	__u32 cgroup_level; /* of the instance's cgroup, as in struct dmm_rule */
};

/*
 * own_group[0]: the id of the instance's cgroup, as in struct dmm_rule; one that no cgroup has:
 * it is not there.
 *
 * waited[path]: a cgroup, by its path from the root of the hierarchy, zero padded, whose id is
 * wanted as soon as it is made (group.h). It says where to write it: own_group[0], and cgroup_id of
 * rules. Written by the RD alone. The ids themselves have two writers, dmm_group_made and, for the
 * RD, dmm_rule_set, which changes what it has seen and nothing newer.
 */
struct dmm_waited_key {
	__u8 path[256];
};

struct dmm_waited {
	/* bit i of word half * 4 + n: rules[half * DMM_MAX_CHECKS + n * 64 + i] */
	__u64 rules[8];
	__u64 own; /* 1: own_group[0] */
};

/*
 * globbed[cgroup id]: which patterns of rules (DMM_RULE_GLOB) match that cgroup itself, by the half
 * that they are of. Written by the RD alone, which follows cgroups that are made and removed.
 */
struct dmm_globbed {
	__u64 globs[2];
};

/* What a policy may say of datagrams, so that each has to be looked at */
enum dmm_datagrams {
	DMM_DATAGRAMS_REJECT = 1, /* a route names a stack that refuses */
	DMM_DATAGRAMS_USER = 2,	  /* a route for UDP names a user stack that carries it */
	DMM_DATAGRAMS_SERVED = 4, /* such a route is in a table for what peers begin */
};

/* heads[generation & 1] */
struct dmm_policy_head {
	__u32 n_rules;	 /* checks in rules[] */
	__u32 n_routes;	 /* for listings only */
	__u32 datagrams; /* bit set of enum dmm_datagrams */
	__u32 n_forwards;
};

enum dmm_rule_flag {
	DMM_RULE_CGROUP = 1,
	DMM_RULE_UID = 2,
	DMM_RULE_COMM = 4,
	DMM_RULE_MARK = 8,
	DMM_RULE_NETNS = 16,
	DMM_RULE_DSCP = 32,
	DMM_RULE_LPORT = 64,
	DMM_RULE_DEVICE = 128,
	DMM_RULE_EXECUTABLE = 256,
	/* asks for nothing: routes of its table lead to stacks with MPTCP (protocol.h) */
	DMM_RULE_MPTCP = 512,
	DMM_RULE_GID = 1024,
	DMM_RULE_GLOB = 2048, /* never with DMM_RULE_CGROUP */
};

enum dmm_direction {
	DMM_DIR_CONNECT = 1,
	DMM_DIR_LISTEN = 2,
	/* never with the others, and matched by nothing in rules[], see forwards[] */
	DMM_DIR_FORWARD = 4,
};

/*
 * rules[(generation & 1) * DMM_MAX_CHECKS + i], i < n_rules, in policy order; first match wins. A
 * rule of the policy has one check, or several that follow each other: first what it excepts, then
 * one for each value of its lists.
 */
struct dmm_rule {
	__u32 flags;	  /* enum dmm_rule_flag: which of the fields below must match */
	__u32 directions; /* bit set of enum dmm_direction */
	/* chosen when everything matches; no route there, or 0: the next rule is tried */
	__u32 table;
	__u16 cgroup_level; /* depth of the cgroup below the root (root = 0), */
	__u16 dscp;	    /* 0..63 */
	/* compared with bpf_get_current_ancestor_cgroup_id(cgroup_level); with DMM_RULE_GLOB the
	 * bit of the pattern in what globbed[] has of that one
	 */
	__u64 cgroup_id;
	__u32 uid_first;
	__u32 uid_last;
	__u32 gid_first; /* of the process's own group, not of those that it is in besides */
	__u32 gid_last;
	__u32 mark;
	__u32 mark_mask;
	__u64 netns_cookie;
	char comm[DMM_COMM_LEN]; /* compared whole, zero padded */
	__u64 choose;		 /* bit i: programs that match may choose stack i (dmm.h) */
	__u16 number;		 /* of the policy's rule, 1-based */
	/* what matches is excepted: so many that come next, the rest of its rule, are passed over
	 */
	__u16 skip;
	__u32 device; /* ifindex that the socket is bound to */
	__u16 lport_first;
	__u16 lport_last;
	/* the file that the process executes: s_dev and i_ino, as the kernel has them */
	__u32 exe_device;
	__u64 exe_inode;
};

enum {
	DMM_OWN_GROUP = 0xffffffff,
};

/*
 * What the program dmm_rule_set is given: what the names in rules[rule] stand for now, or in place
 * of a rule DMM_OWN_GROUP: cgroup_was and cgroup_id alone, of own_group[0].
 */
struct dmm_rule_set {
	__u32 rule;
	__u32 device;
	__u64 exe_inode;
	__u32 exe_device;
	__u32 pad;
	__u64 cgroup_was; /* if it is another by now, that one stays */
	__u64 cgroup_id;
};

/*
 * forwards[(generation & 1) * DMM_MAX_FORWARDS + i], i < n_forwards: a rule with direction
 * "forward" and one of its source prefixes, in policy order; first match whose table has a route
 * wins. By which devices it holds is said by inside[].
 */
struct dmm_forward {
	__u8 source[16];
	__u32 prefixlen; /* bits of source that count */
	__u32 family;	 /* AF_INET or AF_INET6; 0: both, source does not matter */
	__u32 table;
	__u32 rule; /* 1-based */
	/* 1: it names its devices, so it holds for what this host translates or has itself, too */
	__u32 named;
	__u32 pad;
};

/*
 * inside[ifindex]: a device by which packets of others come in: the host's end of a container's
 * veth, a bridge, a gateway's LAN; or a NIC of a user stack. Written by the RD.
 */
struct dmm_inside {
	__u64 forwards[2]; /* by generation & 1: bit i: forwards[i] of that half holds here */
	__u32 bare;	   /* as in struct dmm_nic */
	__u32 pad;
};

enum dmm_stack_kind {
	DMM_STACK_KERNEL = 1,
	DMM_STACK_USER = 2,
	/* connect() and sendto() fail; bind(), listen() and accept() are never refused */
	DMM_STACK_REJECT = 3,
};

enum dmm_stack_flag {
	DMM_SET_CONGESTION = 1,
	DMM_SET_DSCP = 2,
	DMM_SET_MARK = 4,
	DMM_SET_PACING = 8,
	DMM_SET_PRIORITY = 16,
	DMM_SET_USER_TIMEOUT = 32,
	DMM_SET_KEEPALIVE = 64, /* SO_KEEPALIVE, with those of struct dmm_patience that are not 0 */
	DMM_CARRIES_UDP = 128,	/* a user stack that relays datagrams, too */
};

/* When a peer that is silent is taken for dead; 0: not set */
struct dmm_patience {
	__u32 user_timeout_ms;	 /* TCP_USER_TIMEOUT */
	__u32 keepalive_time_s;	 /* TCP_KEEPIDLE */
	__u32 keepalive_intvl_s; /* TCP_KEEPINTVL */
	__u32 keepalive_probes;	 /* TCP_KEEPCNT */
};

/* stacks[(generation & 1) * DMM_MAX_STACKS + id]; ids are stable by name for an instance's life */
struct dmm_stack {
	__u32 kind;	/* enum dmm_stack_kind; 0: no such stack */
	__u32 flags;	/* enum dmm_stack_flag */
	__u32 fallback; /* stack id that serves new flows while this user stack is down or full */
	__u32 mark;
	__u32 mark_mask; /* bits of the socket's mark that are replaced; the others stay */
	__u32 priority;	 /* SO_PRIORITY */
	__u32 max_pacing_rate_Bps;
	__u32 dscp;    /* 0..63 */
	__u32 refusal; /* the errno of a stack that rejects */
	/* for a user stack: what the app's kernel socket uses on the inner leg, */
	char congestion[DMM_CC_LEN];
	/* if it has this one, the namespace's, and so has chosen none; all 0: in any case */
	char usual[DMM_CC_LEN];
	struct dmm_patience patience;
	struct dmm_patience usual_patience; /* of a socket whose program has set nothing */
	char name[32];			    /* there also where kind is 0; all 0: forgotten */
};

/* stack_state[id]: runtime, not policy; written by the RD */
struct dmm_stack_state {
	/* bit i: process i of the stack takes new flows; 0: they take the fallback */
	__u32 up;
	__u32 pid; /* of the first that is up */
	/* new flows are spread over numbers 0 .. processes - 1, those of them that are up */
	__u32 processes;
	__u32 datagrams; /* 1: they relay them */
	/* 1: the policy names no devices for it, so its flows begin wherever a default route leads:
	 * see dmm_nic.home
	 */
	__u32 follows;
	__u32 pad;
	__u32 seats[16]; /* of process i, as in dmm_xdp_flow */
};

/* Why a process of a user stack takes no new flow now */
enum dmm_full {
	DMM_FULL_CONNECTIONS = 1, /* max_connections is reached */
	DMM_FULL_MEMORY = 2,
	DMM_FULL_FRAMES = 4, /* the NIC has not taken a frame for long, and none is free */
	/* a flow had to be refused: no memory of the system's, or no claim on it */
	DMM_FULL_REFUSED = 8,
};

/*
 * stack_load[id * DMM_MAX_PROCESSES + process]: runtime; written by dmm_ingress for that process.
 * While full is not 0, or beat_ns is longer ago than DMM_BEAT_MAX_NS, new flows go elsewhere; the
 * open ones stay.
 */
struct dmm_stack_load {
	__u32 full; /* bit set of enum dmm_full */
	__u32 pad;
	/* when it was heard of last, CLOCK_MONOTONIC_COARSE; 0: nobody waits for that */
	__u64 beat_ns;
};

/* A key of live[]; prefixlen counts from table's first bit */
struct dmm_route6_key {
	__u32 prefixlen; /* 32 + prefix length */
	__u32 table;
	__u8 addr[16];
};

enum dmm_route_value_flag {
	DMM_ROUTE_NONE = 0xffffffff, /* route: nothing here, go on with the next rule */
	/* stack: with the number of an adaptive route's candidates, see adaptive[] */
	DMM_STACK_ADAPTIVE = 0x80,
	/* route: beside the policy; the rest is its number among such, and no other's ever */
	DMM_ROUTE_LIVE = 0x80000000,
	/* stack, in ports[]: route counts from that of the prefix */
	DMM_PORT_OWN = 0x80000000,
};

/*
 * The bits of stack above the stack's own eight: of two routes that match, the one for which they
 * are more counts. The longest prefix, an exact port (2), a range (1), every port (0); one that
 * names the protocol; one that was put in beside the policy, the policy's, an element's.
 */
enum dmm_route_rank {
	DMM_RANK_SHIFT = 8,
	DMM_RANK_POLICY = 1,
	DMM_RANK_LIVE = 2, /* 0: an element's */
	DMM_RANK_PROTO_SHIFT = 2,
	DMM_RANK_PORTS_SHIFT = 3,
	DMM_RANK_LENGTH_SHIFT = 5,
};

/*
 * What a prefix of live[] says. Python has pushed the routes of shorter prefixes down, so that one
 * look-up here and at most one in live_ports[] decide: longest prefix, then exact port, then range,
 * then any.
 */
struct dmm_route_value {
	/* as flow records have it, or DMM_ROUTE_NONE; unused when portset != 0 */
	__u32 route;
	__u32 stack;
	/* 0: every protocol and port goes to stack; else look (portset, proto, port) up */
	__u32 portset;
};

enum dmm_node_value_flag {
	DMM_NODE_PORTS = 0x80000000, /* stack: the rest is a portset, and route that of the first */
	DMM_NODE_DEEPER = 0x40000000, /* stack: the next digit decides, from node route on */
};

/* What the longest prefix says, with the routes of shorter ones pushed down as in live[]. */
struct dmm_node_value {
	__u32 route; /* index of the route in the policy, or DMM_ROUTE_NONE */
	__u32 stack; /* every protocol and port goes to it */
};

/*
 * routes[generation & 1]: an array of nodes, trees of what prefixes say, one for each digit of 63
 * bits. An IPv6 address has its upper two bits behind the table and a 0, then 63, then the last 63;
 * an IPv4 address has a 4 behind the table, and then the lower half of its v4-mapped form.
 *
 * A digit that is above lasts[i] is behind part i. Part i is the node children + i, or, where
 * children is 0, what holds for these digits. Node 0 is the first digit's root.
 * Two lines of cache, the second of which is read of leaves alone.
 */
struct dmm_route_node {
	__u64 lasts[7]; /* those that are not there are all ones, but for the highest bit */
	__u32 children;
	__u32 pad;
	struct dmm_node_value values[DMM_NODE_PARTS];
};

/*
 * ports[generation & 1]: LPM trie over aligned blocks of ports, nested so that there are as few as
 * can be: a longer prefix cuts its part out of a shorter one. A hole in a block is an entry with
 * route DMM_ROUTE_NONE; that, and a miss, mean no route.
 */
struct dmm_port_key {
	__u32 prefixlen; /* 48 + leading bits of port_be that count */
	__u32 portset;
	__u8 proto; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 pad;
	__u16 port_be;
};

struct dmm_port_value {
	__u32 route;
	__u32 stack;
};

/*
 * live[key]: LPM trie, struct dmm_route6_key to struct dmm_route_value: routes beside the policy.
 * table is place << DMM_LIVE_TABLE_BITS | table, and place (generation >> 1) &
 * (DMM_LIVE_PLACES - 1): a change of single routes keeps the half, and is a generation of its own.
 * A v4-mapped prefix has 96 bits more; its ports are in live_ports[], as in ports[].
 *
 * adaptive[key]: LPM trie, written by the RD: which stack serves new flows of an adaptive route, by
 * peer. A v4-mapped prefix has 96 bits more.
 */
struct dmm_adaptive_key {
	__u32 prefixlen; /* 32 + prefix length */
	__u32 route;	 /* (generation & 1) * DMM_MAX_STACKS + the number in the route's stack */
	__u8 addr[16];
};

struct dmm_adaptive {
	__u32 chosen;
	__u32 explores; /* that is tried by */
	__u32 share;	/* so many of 2^32 that connect(); 0: none */
};

/* recent_routes[hash of destination]: written and read by the programs alone, see bpf/recent.h */
struct dmm_recent_route {
	__u64 addr[2];
	__u64 policy; /* from the highest bit: generation (32), table (32) */
	__u64 found;  /* from the highest bit: route (32), port_be (16), proto (8), stack (8) */
	__u64 sum;
};

/*
 * What was decided for a socket, and from what facts. Part of each flow record. In socket storage
 * only where a socket is no flow: listeners (decisions), those with SO_REUSEPORT once more for
 * their accepted children (shared_facts, cloned).
 */
struct dmm_decision {
	__u32 generation; /* 0: decided without a policy */
	__u32 stack;	  /* the stack that serves; after fallback */
	__u32 rule;	  /* 1-based index of the rule; 0: no rule matched */
	__u32 table;	  /* 0: none */
	__u32 route;	  /* index, or DMM_ROUTE_NONE */
	__u32 direction;  /* enum dmm_direction */
	__u64 cgroup_id;
	__u32 pid; /* thread group id */
	__u32 uid;
	__u32 listening; /* 1: this socket is counted in listeners */
	__u32 wanted;	 /* the stack the route names; differs from stack after fallback */
	__u32 process;	 /* of a user stack: which one serves */
	__u32 taken;	 /* 1: that process has it; 0: it was asked for, or the kernel serves */
	/* enum dmm_why, where wanted is a user stack and stack another; 0: none is known */
	__u32 why;
	__u16 choice; /* enum dmm_choice_state */
	__u16 chosen; /* the stack that the program asked for, if choice is not 0 */
	char comm[DMM_COMM_LEN];
};

/*
 * choices: socket storage: what a program has chosen by DMM_STACK (dmm.h). It holds for directions
 * by rule, of generation; under another one the rules are asked again.
 */
struct dmm_choice {
	char name[32];
	__u32 state; /* enum dmm_choice_state */
	__u32 stack;
	__u32 rule;	  /* 1-based */
	__u32 directions; /* bit set of enum dmm_direction */
	__u32 generation;
	__u32 pad;
};

/* Of the frame of a packet that is away (struct dmm_xdp_flow), as a process gets it: the first byte
 * of its source; the last two of both addresses are the MTU. */
enum dmm_away {
	DMM_AWAY_SOURCE = 1, /* a group's, so nobody's */
	DMM_AWAY_BYTES = 12, /* of both addresses */
};

enum dmm_way_state {
	DMM_WAY_ASKED = 0, /* by the connect hook; the SYN has not been seen at a device */
	DMM_WAY_TAKEN = 1, /* the process has it */
};

/*
 * ways: socket storage of a socket that a user stack is to serve, or serves; stack 0:
 * the kernel does.
 */
struct dmm_way {
	__u32 stack;
	__u32 process; /* its number among the stack's */
	__u32 seat;    /* as in struct dmm_xdp_flow */
	__u32 state;   /* enum dmm_way_state */
	__u32 mark;    /* of the SYN, as in struct dmm_xdp_flow */
	__u32 priority;
	__u32 away; /* likewise */
	__u8 addresses[DMM_AWAY_BYTES];
};

struct dmm_addr_pair {
	__u8 laddr[16];
	__u8 raddr[16];
	__u16 lport_be;
	__u16 rport_be;
	__u8 family; /* AF_INET or AF_INET6: of the packets, not of the socket */
	__u8 proto;  /* IPPROTO_TCP or IPPROTO_UDP */
	__u16 pad;
};

/*
 * Every open TCP socket of the instance's cgroups and namespace has one, in flows[] or, when its
 * place there is taken, in more_flows[socket cookie]; never evicted while open. A connecting
 * socket's record is made by connect(), before its local address is chosen: laddr, lport_be and
 * state are zero until somebody follows events or the connection begins to end; inet_diag has them,
 * as it has newer figures.
 */
struct dmm_flow {
	__u64 cookie;
	__u64 netns_cookie;
	__u64 opened_ns; /* CLOCK_MONOTONIC */
	__u64 updated_ns;
	__u64 bytes_sent; /* acknowledged by the peer of the app's socket */
	__u64 bytes_received;
	struct dmm_addr_pair pair;
	__u32 state; /* kernel TCP state, TCP_ESTABLISHED = 1 ..; 0: inet_diag knows */
	__u32 srtt_us;
	__u32 retransmits; /* segments, total */
	__u32 adaptive;	   /* 1: its route is, so it is told how it ends */
	struct dmm_decision decision;
};

/*
 * flows[socket cookie % DMM_NEAR_FLOWS] or its neighbour (the index with its lowest bit turned
 * over). An array, since connect() waits for it: a place costs it one compare-and-swap, a hash
 * table's element two locks. Small, so that it stays in the processor's cache.
 */
struct dmm_near_flow {
	__u64 owner;	      /* socket cookie; 0: free */
	struct dmm_flow flow; /* whole if flow.cookie is owner, else being written */
};

/* datagrams[key]: what was decided for the datagrams of a UDP socket to that peer, as the socket
 * names it */
struct dmm_datagram_key {
	__u64 cookie;
	__u8 raddr[16];
	__u16 rport_be;
	__u16 pad;
	__u32 pad_end;
};

/*
 * udp_flows[struct dmm_addr_pair]: exchanges of datagrams that a user stack is to carry, as a NIC
 * has them, behind whatever the host translates; laddr is this host. udp_blank[0] is one, all 0.
 * While peers may begin some, those that the kernel carries are there, too, with stack 0: which end
 * has begun says what decides.
 */
struct dmm_udp_flow {
	/*
	 * As its socket has it. decision.stack is the user stack, which carries the latest datagram
	 * if decision.taken; state is the socket's: 1 connected, 7 not. decision.direction says who
	 * has begun: DMM_DIR_LISTEN: the peer, whose socket here is known from its first answer on
	 */
	struct dmm_flow flow;
	__u64 out_ns; /* of the latest datagram each way, CLOCK_MONOTONIC_COARSE; 0: none yet */
	__u64 in_ns;
	__u64 packets_out;
	__u64 packets_in;
	__u32 seat; /* as in struct dmm_xdp_flow */
	__u32 mark; /* likewise */
	__u32 priority;
	__u32 generation; /* when it was last held against datagrams[] */
};

enum dmm_event_type {
	DMM_EVENT_CONNECT = 1, /* SYN about to be sent */
	DMM_EVENT_ESTABLISHED = 2,
	DMM_EVENT_CLOSE = 3,
	DMM_EVENT_LISTEN = 4,
	DMM_EVENT_UNLISTEN = 5,
};

enum {
	DMM_ERROR_UNTOLD = 0xffff,
};

/* records of the ring buffer events */
struct dmm_event {
	__u32 type;
	/* DMM_EVENT_CLOSE: the state it was closed from, as in struct dmm_flow */
	__u8 before;
	__u8 process_gone; /* and whether the process of a user stack that had it takes no flows */
	/* and what its socket reports, an errno; DMM_ERROR_UNTOLD: this kernel does not say */
	__u16 error;
	__u64 time_ns; /* CLOCK_MONOTONIC */
	struct dmm_flow flow;
};

/* listeners[key]: what the programs at a NIC and the RD know of an address at which peers may
 * begin: of a listening TCP socket, and of a UDP socket that its program has bound */
struct dmm_listener_key {
	__u8 addr[16]; /* 0.0.0.0 is ::ffff:0.0.0.0; :: serves both families */
	__u16 port_be;
	__u8 proto; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 pad;
};

/*
 * bounds: socket storage of a UDP socket that its program binds: what its own fields said before
 * its port was known, and under which key it is counted in listeners[].
 */
struct dmm_bound_socket {
	struct dmm_listener_key key;
	__u32 counted; /* 1: it is there */
	__u32 mark;    /* the three as in struct dmm_listener */
	__u32 device;
	__u32 dscp;
	__u32 exe_device; /* these three of a TCP socket alone, where listen() cannot tell them */
	__u32 gid;
	__u32 pad;
	__u64 exe_inode;
};

struct dmm_listener {
	__u32 count; /* sockets on it (SO_REUSEPORT); withdrawn when it falls to 0 */
	/* by generation & 1: the table its peers are looked up in; 0: none, kernel */
	__u32 tables[2];
	__u32 rules[2];	 /* 1-based; 0: none */
	__u32 chosen[2]; /* the stack, plus 1, that is its program's choice for all peers; 0: none
			  */
	__u16 wish;	 /* that choice, also while the policy does not let it */
	__u16 dscp;	 /* the socket's own */
	__u32 uid;
	__u32 gid;
	__u32 pid;
	__u32 mark; /* the socket's own mark, for rules on mark */
	/* ifindex it is bound to; such a one is the kernel's, whatever rules say; 0: none */
	__u32 device;
	__u32 exe_device; /* both as in struct dmm_rule; 0: none is known */
	__u64 exe_inode;
	__u64 cgroup_id;
	__u64 netns_cookie;
	char comm[DMM_COMM_LEN];
};

/* What the program dmm_listener_set is given: tables, rules and chosen[half] of listeners[key]. */
struct dmm_listener_set {
	struct dmm_listener_key key;
	__u32 half;
	__u32 table;
	__u32 rule;
	__u32 chosen;
};

/*
 * earlier[socket cookie]: a TCP socket of the instance's cgroup that was there before the hooks
 * were; written by the RD. A connection stays while it is open, for listings: the kernel serves it.
 * A listener stays until dmm_earlier has put it in listeners[]; flow.pair has its address,
 * flow.decision who listens.
 */
struct dmm_earlier {
	struct dmm_flow flow;
	__u32 mark;
	__u32 device;	  /* as in struct dmm_listener */
	__u32 mptcp;	  /* 1: a listener of MPTCP's, whose end no release hook tells of */
	__u32 exe_device; /* these three as in struct dmm_listener */
	__u32 gid;
	__u32 pad;
	__u64 exe_inode;
};

/*
 * nics[ifindex]. outer_devs[(seat - 1) * DMM_MAX_NICS + slot] is the ifindex of the TAP device by
 * which a process gets what comes from the wire of that NIC by tc, or 0; written by the RD.
 */
struct dmm_nic {
	/* xsks index = slot * DMM_MAX_QUEUES + receive queue; DMM_MAX_NICS: no stack serves it */
	__u32 slot;
	/* the user stack whose process 0 gets its frames from XDP, by AF_XDP sockets; 0: none */
	__u32 stack;
	__u32 bare; /* 1: its packets have no link header, as those of a tunnel or of WireGuard */
	/* 1: a filter of others may keep packets from our programs, so no flow begins here */
	__u32 behind;
	/* Of one that no stack serves: slot, plus 1, of a NIC through which flows of stacks that
	 * follow default routes begin here, away (away.h); 0: they do not, and are the kernel's
	 */
	__u32 home;
	__u8 mac[6];   /* its own; 0 where it is bare */
	__u16 generic; /* 1: XDP is generic there, and leaves SYNs to tc, see xdp.h */
};

/*
 * seats[ifindex of a TAP device of a process]: whose it is, and for which NIC: nobody else can
 * send there. The other way, inner_devs[(seat - 1) * DMM_MAX_NICS + slot] is the ifindex of that of
 * the inner leg, or 0.
 */
struct dmm_seat {
	__u32 stack;
	__u32 process; /* its number among the stack's */
	__u32 seat;    /* as in struct dmm_xdp_flow */
	__u32 nic;     /* ifindex */
	__u32 home;    /* as in struct dmm_xdp_flow */
	__u32 outer;   /* 1: of the outer leg, for what its NIC does not send: see away.h */
};

enum dmm_ask_op {
	DMM_ASK_CLAIM = 1,  /* packets of pair are to be given to me from now on */
	DMM_ASK_DISOWN = 2, /* no longer, if they still are */
	DMM_ASK_STATE = 3,  /* I live; full and cookies_until_ns are so */
	/* the answers to a claim that is not granted; there is none to others */
	DMM_ASK_REFUSED = 4, /* xdp_flows[] has no room */
	DMM_ASK_TAKEN = 5,   /* the kernel has a connection of this pair, or another process */
};

enum dmm_ask_type {
	/* EtherType for local experiments (IEEE 802): never leaves the device */
	DMM_ASK_TYPE = 0x88b5,
};

/*
 * What a stack process asks of dmm_ingress: a frame that it writes to the TAP device of an inner
 * leg of its own. A process has no map itself: what it says here is weighed, and concerns itself
 * alone.
 */
struct dmm_ask {
	__u8 eth[14]; /* an Ethernet header, of which the type counts */
	__u16 pad;
	__u32 op;   /* enum dmm_ask_op */
	__u32 conn; /* the asker's own, comes back with a refusal */
	__u64 cookies_until_ns;
	__u32 full; /* bit set of enum dmm_full */
	struct dmm_addr_pair pair;
	__u32 pad_end;
};

/*
 * xdp_flows[struct dmm_addr_pair]: the flows of user stacks as a NIC has them, behind whatever the
 * host translates; laddr is this host. Added and deleted by dmm_ingress.
 */
struct dmm_xdp_flow {
	__u32 stack;
	__u32 seat;    /* the process, by a number of its own in the namespace, from 1 */
	__u32 process; /* among the stack's */
	/* Of the app's latest packet; packets to the wire bear them, too, for qdiscs and filters of
	 * the NIC
	 */
	__u32 mark;
	__u32 priority;
	/* 1: a flow of others whose process has died: the next one resets it, both ways */
	__u32 orphan;
	/*
	 * home: slot, plus 1, of the latest NIC that the process serves by which it left; 0: none
	 * is known. away: ifindex of a device that it does not serve and by which the app's latest
	 * packet left; 0: none. Packets of both legs then go by that device, and through the
	 * process's devices for its home. addresses: of that packet's Ethernet header; 0 where
	 * there was none.
	 */
	__u32 home;
	__u32 away;
	__u8 addresses[DMM_AWAY_BYTES];
	__u32 own; /* 1: a socket of this host's has sent for it; it is not forwarded */
};

enum dmm_forwarded_state {
	DMM_FORWARDED_NOTED = 0,  /* its SYN has come in */
	DMM_FORWARDED_TAKEN = 1,  /* a process has been given its SYN */
	DMM_FORWARDED_LET_GO = 2, /* the SYN has gone on to the wire, and with it the flow */
	DMM_FORWARDED_GONE =
		3, /* the process has given it up: what comes yet has numbers that no peer knows */
};

/*
 * A flow of others, which has no socket of this namespace. notes[sequence number of its SYN, as in
 * the packet]: from the device where it comes in to the NIC where it leaves: nothing else of it is
 * the same on both sides of every translation. Then, forwarded[struct dmm_addr_pair, as in
 * xdp_flows].
 */
struct dmm_forwarded {
	/* of a container's socket, whose connect() has decided; 0: rule did */
	__u64 cookie;
	__u64 opened_ns;	   /* CLOCK_MONOTONIC_COARSE */
	struct dmm_addr_pair pair; /* as it came in: laddr is who opened it */
	__u32 ifindex;		   /* by which it came in */
	__u32 state;		   /* enum dmm_forwarded_state */
	__u32 seq_be;
	__u32 stack;
	__u32 process;
	__u32 seat;
	__u32 generation;
	__u32 rule; /* the four below as in struct dmm_decision */
	__u32 table;
	__u32 route;
	__u32 mark; /* of the SYN, as in struct dmm_xdp_flow */
	__u32 priority;
	__u32 away; /* likewise */
	__u8 addresses[DMM_AWAY_BYTES];
};

enum dmm_fragments_of {
	DMM_FRAGMENTS_IN = 0,  /* from the wire */
	DMM_FRAGMENTS_OUT = 1, /* of this host, or passing through */
	DMM_FRAGMENTS_OF_PEER =
		2, /* the latest one from the wire between these two addresses, whatever its id */
};

/* fragments[key]: of which flow the first fragment of a packet is; of owned flows, and of others
 * between two addresses that one has. */
struct dmm_fragment_key {
	__u8 laddr[16];
	__u8 raddr[16];
	__u32 id_be; /* identification, as it stands in the header */
	__u32 of;    /* enum dmm_fragments_of */
};

struct dmm_fragment {
	struct dmm_addr_pair pair; /* as in xdp_flows */
	__u64 seen_ns;		   /* CLOCK_MONOTONIC_COARSE */
};

/*
 * cookie_state[stack id], written by dmm_ingress for the stack's processes: until when an ACK of no
 * flow may carry a SYN cookie of their making, CLOCK_MONOTONIC. 0: they have made none. It only
 * grows, so that the latest is not lost. cookie_state[0]: the same for all stacks.
 */
struct dmm_cookie_state {
	__u64 until_ns;
};

/* counters[enum]: per CPU __u64 */
enum dmm_counter {
	DMM_CNT_CONNECT = 0,	  /* connect hook runs in the instance's namespace */
	DMM_CNT_CONNECT_FALLBACK, /* user stack down, fallback taken */
	DMM_CNT_CONNECT_FULL,	  /* user stack full, fallback taken */
	DMM_CNT_CONNECT_REJECT,
	DMM_CNT_DATAGRAM_REJECT, /* of sockets that are not connected */
	DMM_CNT_SOCKOPT_FAILED,	 /* a stack's socket option was refused by the kernel */
	DMM_CNT_FLOWS_FULL,	 /* flow record not kept: map full */
	DMM_CNT_EVENTS_LOST,	 /* ring buffer full */
	DMM_CNT_LISTENERS_FULL,
	DMM_CNT_XDP_FLOW,     /* packets given to a stack: known flow */
	DMM_CNT_XDP_LISTENER, /* SYNs given to a stack */
	DMM_CNT_XDP_FULL,     /* SYNs left to the kernel because the stack is full */
	DMM_CNT_XDP_COOKIE,   /* ACKs given to a stack that may carry a SYN cookie */
	DMM_CNT_XDP_ICMP,
	DMM_CNT_XDP_NO_SOCKET, /* from the wire, owned flow, but its process has no device */
	/* SYNs of this host left to the kernel: no process could take them any more */
	DMM_CNT_SYN_LET_GO,
	DMM_CNT_INNER_DROPPED, /* from the app, owned flow, but its process is gone */
	DMM_CNT_FORWARD_IN,    /* SYNs of others given to a stack, as they came from the wire */
	DMM_CNT_FORWARD_OUT,   /* SYNs of others given to a stack, as they were to leave */
	DMM_CNT_FORWARD_LET_GO,
	/* SYNs left to the kernel for what they ask: of this host, let go, too; of others */
	DMM_CNT_SYN_OPTION,
	DMM_CNT_FRAGMENT_IN,  /* fragments from the wire given to a stack */
	DMM_CNT_FRAGMENT_OUT, /* fragments of this host's given to a stack */
	/* that came before the first of their packet, which may be a stack's */
	DMM_CNT_FRAGMENT_COPIED,
	DMM_CNT_DATAGRAM_OUT,	 /* of this host, given to a stack; many that go as one are one */
	DMM_CNT_DATAGRAM_IN,	 /* from the wire, likewise */
	DMM_CNT_DATAGRAM_LET_GO, /* left to the kernel: no process could take it now */
	DMM_CNT_MAX,
};

#endif /* DMM_ABI_H */
