// SPDX-License-Identifier: Apache-2.0

// Node has no setsockopt() of its own, so a program in it cannot choose by itself. It can take over a
// connection for which another program has chosen, here that of choose.c:
//
//	./choose wan 203.0.113.7 80 node inherited.js
//
// A server does the same with server.listen({fd: 3}), of a socket that was bound and has chosen.
// Or a rule of the policy says it for the program: by cgroup, by user, by comm = "node".
const net = require("net");

const socket = new net.Socket({ fd: 3, readable: true, writable: true });
socket.on("error", (error) => {
  console.error(`inherited: ${error.message}`);
  process.exitCode = 1;
});
socket.pipe(process.stdout);
