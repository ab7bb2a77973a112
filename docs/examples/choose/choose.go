// SPDX-License-Identifier: Apache-2.0

// choose STACK ADDR PORT: connects by a stack of the program's own choice, says on standard error who
// serves, and copies what comes to standard output.
//
//	go run choose.go wan 203.0.113.7 80
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// As in dmm.h.
const (
	solDMM   = 0x444d4d
	dmmStack = 1
)

// choose is a net.Dialer's or net.ListenConfig's Control: it is called before connect and listen.
// A refusal is told and not returned: the connection is the kernel's then.
func choose(stack string) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			if err := syscall.SetsockoptString(int(fd), solDMM, dmmStack, stack); err != nil {
				fmt.Fprintf(os.Stderr, "choose: the stack %s: %v\n", stack, err)
			}
		})
	}
}

// serving is the name of the stack that has the connection.
func serving(conn *net.TCPConn) (string, error) {
	var name [32]byte
	var errno syscall.Errno
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", err
	}
	size := uint32(len(name))
	err = raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, solDMM, dmmStack,
			uintptr(unsafe.Pointer(&name)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return string(bytes.TrimRight(name[:size], "\x00")), err
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: choose STACK ADDR PORT")
		os.Exit(2)
	}
	dialer := net.Dialer{Control: choose(os.Args[1])}
	conn, err := dialer.Dial("tcp", net.JoinHostPort(os.Args[2], os.Args[3]))
	if err != nil {
		fmt.Fprintln(os.Stderr, "choose:", err)
		os.Exit(1)
	}
	defer conn.Close()
	if name, err := serving(conn.(*net.TCPConn)); err == nil {
		fmt.Fprintln(os.Stderr, "served by", name)
	}
	if _, err := io.Copy(os.Stdout, conn); err != nil {
		fmt.Fprintln(os.Stderr, "choose:", err)
		os.Exit(1)
	}
}
