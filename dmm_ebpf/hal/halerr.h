/* SPDX-License-Identifier: Apache-2.0 */
/*
 * halerr.h: how the C adapters tell Python what failed: the call, its errno and the step in words,
 * from which Python makes a sentence. What an errno means depends on the call, so nobody explains
 * one without it.
 *
 * Text below the guard is read by cffi, which strips lines that start with '#'.
 */
#ifndef DMM_HALERR_H
#define DMM_HALERR_H

/* Calls that have an errno whose cause is known (dmm_ebpf/userstack/halerrors.py). */
enum dmm_hal_call {
	DMM_HAL_OTHER = 0,
	DMM_HAL_TUN_OPEN,      /* open(2) of /dev/net/tun */
	DMM_HAL_TUN_MAKE,      /* TUNSETIFF */
	DMM_HAL_TUN_OFFLOAD,   /* TUNSETVNETHDRSZ, TUNSETOFFLOAD */
	DMM_HAL_MTU_SET,       /* SIOCSIFMTU */
	DMM_HAL_MTU_CHECK,     /* none: the MTU is above DMM_XSK_MAX_MTU */
	DMM_HAL_XSK_SOCKET,    /* socket(2), AF_XDP */
	DMM_HAL_XSK_UMEM,      /* XDP_UMEM_REG */
	DMM_HAL_XSK_BIND,      /* bind(2), AF_XDP */
	DMM_HAL_PACKET_SOCKET, /* socket(2), AF_PACKET */
};

struct dmm_hal_error {
	int code;	/* errno; 0: nothing failed */
	int call;	/* enum dmm_hal_call */
	char what[120]; /* the step and the device, as the rest of "cannot ..." */
};

#endif /* DMM_HALERR_H */
