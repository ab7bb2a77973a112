/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lwip_peer.c: one TCP endpoint by lwIP (Debian's liblwip), a stack with which we share no code and
 * no habits.
 *
 * It has an Ethernet interface of its own on a device of this network namespace, through a packet
 * socket: own MAC and addresses, which the kernel beside it does not have and so leaves alone.
 *
 *   lwip_peer DEVICE MAC IPV4 IPV6 listen PORT MODE [FILE]
 *   lwip_peer DEVICE MAC IPV4 IPV6 connect ADDRESS PORT MODE [FILE]
 *
 * MODE: echo (all that comes, back; at the end of it, close), sink (into FILE; at its end, close),
 * source (FILE, then the end; then wait for the peer's), reset (take the first bytes, then reset).
 * It says on stdout: ready, open, eof BYTES, closed, reset. It ends when its stdin does.
 *
 * Received frames go into PBUF_RAM: Debian's build gives PBUF_POOL buffers that are shorter than it
 * believes.
 */
#include <lwip/api.h>
#include <lwip/etharp.h>
#include <lwip/ethip6.h>
#include <lwip/netif.h>
#include <lwip/tcp.h>
#include <lwip/tcpip.h>
#include <netif/ethernet.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FRAME_MAX = 1514, CHUNK = 16384 };

struct mode {
	const char *name;
	void (*run)(struct netconn *conn);
};

static struct netif nif;
static int packet_fd;
static const char *file_path;

static void __attribute__((format(printf, 1, 2), noreturn)) die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static void say(const char *event)
{
	puts(event);
	fflush(stdout);
}

/* The interface */

static err_t frame_out(struct netif *n, struct pbuf *p)
{
	uint8_t frame[FRAME_MAX];

	(void)n;
	if (p->tot_len > sizeof(frame))
		return ERR_BUF;
	pbuf_copy_partial(p, frame, p->tot_len, 0);
	return send(packet_fd, frame, p->tot_len, 0) < 0 ? ERR_IF : ERR_OK;
}

static bool for_us(const uint8_t *frame)
{
	return (frame[0] & 1) || !memcmp(frame, nif.hwaddr, ETH_ALEN);
}

static void *receive(void *unused)
{
	uint8_t frame[FRAME_MAX];

	(void)unused;
	for (;;) {
		ssize_t n = recv(packet_fd, frame, sizeof(frame), 0);
		struct pbuf *p;

		if (n < 0 && errno != EINTR && errno != ENETDOWN)
			die("cannot receive from the device: %s", strerror(errno));
		if (n < ETH_HLEN || !for_us(frame))
			continue;
		p = pbuf_alloc(PBUF_RAW, (u16_t)n, PBUF_RAM);
		if (!p)
			continue;
		pbuf_take(p, frame, (u16_t)n);
		if (tcpip_input(p, &nif) != ERR_OK)
			pbuf_free(p);
	}
	return NULL;
}

static err_t interface_init(struct netif *n)
{
	n->name[0] = 'p';
	n->name[1] = 'k';
	n->mtu = 1500;
	n->hwaddr_len = ETH_ALEN;
	n->flags = NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_ETHERNET |
		   NETIF_FLAG_MLD6 | NETIF_FLAG_LINK_UP;
	n->output = etharp_output;
	n->output_ip6 = ethip6_output;
	n->linkoutput = frame_out;
	return ERR_OK;
}

static void open_device(const char *device)
{
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
	int on = 1, bytes = 8 << 20;

	at.sll_ifindex = (int)if_nametoindex(device);
	packet_fd = socket(AF_PACKET, SOCK_RAW, 0);
	if (!at.sll_ifindex || packet_fd < 0)
		die("cannot open device %s: %s", device, strerror(errno));
	setsockopt(packet_fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes));
	if (setsockopt(packet_fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on)) ||
	    bind(packet_fd, (struct sockaddr *)&at, sizeof(at)))
		die("cannot bind to device %s: %s", device, strerror(errno));
}

static void add_interface(const char *mac, const char *v4, const char *v6)
{
	ip4_addr_t addr, mask, gateway;
	ip6_addr_t addr6;

	if (sscanf(mac, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &nif.hwaddr[0], &nif.hwaddr[1],
		   &nif.hwaddr[2], &nif.hwaddr[3], &nif.hwaddr[4], &nif.hwaddr[5]) != 6)
		die("cannot use MAC address %s: it is not six bytes in hex", mac);
	if (!ip4addr_aton(v4, &addr) || !ip6addr_aton(v6, &addr6))
		die("cannot use address %s or %s: not an address", v4, v6);
	IP4_ADDR(&mask, 255, 255, 255, 0);
	ip4_addr_set_zero(&gateway);
	LOCK_TCPIP_CORE();
	if (!netif_add(&nif, &addr, &mask, &gateway, NULL, interface_init, tcpip_input))
		die("cannot add the interface: lwIP refuses");
	netif_set_default(&nif);
	netif_create_ip6_linklocal_address(&nif, 1);
	netif_ip6_addr_set_state(&nif, 0, IP6_ADDR_PREFERRED);
	netif_ip6_addr_set(&nif, 1, &addr6);
	netif_ip6_addr_set_state(&nif, 1, IP6_ADDR_PREFERRED);
	netif_set_up(&nif);
	UNLOCK_TCPIP_CORE();
}

/* What is done with a connection */

static FILE *open_file(const char *how)
{
	FILE *f = file_path ? fopen(file_path, how) : NULL;

	if (!f)
		die("cannot open %s: %s", file_path ? file_path : "FILE", strerror(errno));
	return f;
}

static void ended(err_t err, unsigned long long bytes)
{
	if (err == ERR_CLSD) {
		printf("eof %llu\n", bytes);
		fflush(stdout);
	} else {
		say(err == ERR_RST || err == ERR_ABRT ? "reset" : "error");
	}
}

/* Everything that comes, to use(); what ended it */
static err_t drain(struct netconn *conn,
		   err_t (*use)(struct netconn *, const void *, u16_t, FILE *), FILE *f)
{
	unsigned long long bytes = 0;
	struct netbuf *buf;
	err_t err;

	while ((err = netconn_recv(conn, &buf)) == ERR_OK) {
		do {
			void *data;
			u16_t len;

			netbuf_data(buf, &data, &len);
			bytes += len;
			err = use ? use(conn, data, len, f) : ERR_OK;
		} while (err == ERR_OK && netbuf_next(buf) >= 0);
		netbuf_delete(buf);
		if (err != ERR_OK)
			break;
	}
	ended(err, bytes);
	return err;
}

static err_t give_back(struct netconn *conn, const void *data, u16_t len, FILE *f)
{
	(void)f;
	return netconn_write(conn, data, len, NETCONN_COPY);
}

static err_t keep(struct netconn *conn, const void *data, u16_t len, FILE *f)
{
	(void)conn;
	return fwrite(data, 1, len, f) == len ? ERR_OK : ERR_MEM;
}

static void run_echo(struct netconn *conn)
{
	drain(conn, give_back, NULL);
}

static void run_sink(struct netconn *conn)
{
	FILE *f = open_file("wb");

	drain(conn, keep, f);
	fclose(f);
}

static void run_source(struct netconn *conn)
{
	static char chunk[CHUNK];
	FILE *f = open_file("rb");
	size_t n;
	err_t err = ERR_OK;

	while (err == ERR_OK && (n = fread(chunk, 1, sizeof(chunk), f)))
		err = netconn_write(conn, chunk, n, NETCONN_COPY);
	fclose(f);
	if (err == ERR_OK)
		err = netconn_shutdown(conn, 0, 1);
	if (err != ERR_OK)
		ended(err, 0);
	else
		drain(conn, NULL, NULL);
}

static void run_reset(struct netconn *conn)
{
	struct netbuf *buf;

	if (netconn_recv(conn, &buf) == ERR_OK)
		netbuf_delete(buf);
	LOCK_TCPIP_CORE();
	if (conn->pcb.tcp)
		tcp_abort(conn->pcb.tcp);
	UNLOCK_TCPIP_CORE();
}

static const struct mode modes[] = {
	{"echo", run_echo}, {"sink", run_sink}, {"source", run_source}, {"reset", run_reset}};
static const struct mode *mode;

static void serve(struct netconn *conn)
{
	say("open");
	mode->run(conn);
	netconn_close(conn);
	netconn_delete(conn);
	say("closed");
}

static void *serve_thread(void *conn)
{
	serve(conn);
	return NULL;
}

static void *accept_all(void *listener)
{
	struct netconn *conn;
	pthread_t thread;

	while (netconn_accept(listener, &conn) == ERR_OK) {
		if (pthread_create(&thread, NULL, serve_thread, conn))
			die("cannot start a thread");
		pthread_detach(thread);
	}
	return NULL;
}

static void do_listen(u16_t port)
{
	struct netconn *conn = netconn_new(NETCONN_TCP_IPV6);
	pthread_t thread;

	if (!conn || netconn_bind(conn, IP6_ADDR_ANY, port) != ERR_OK ||
	    netconn_listen(conn) != ERR_OK)
		die("cannot listen on port %u: lwIP refuses", port);
	if (pthread_create(&thread, NULL, accept_all, conn))
		die("cannot start a thread");
	say("ready");
}

static void do_connect(const char *address, u16_t port)
{
	struct netconn *conn;
	ip_addr_t addr;
	err_t err;

	if (!ipaddr_aton(address, &addr))
		die("cannot connect to %s: not an address", address);
	conn = netconn_new(IP_IS_V6(&addr) ? NETCONN_TCP_IPV6 : NETCONN_TCP);
	if (!conn)
		die("cannot make a connection: lwIP refuses");
	err = netconn_connect(conn, &addr, port);
	if (err != ERR_OK) {
		say(err == ERR_RST || err == ERR_ABRT ? "refused" : "unreachable");
		return;
	}
	serve(conn);
}

static const struct mode *find_mode(const char *name)
{
	for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
		if (!strcmp(modes[i].name, name))
			return &modes[i];
	}
	die("cannot do %s: a mode is echo, sink, source or reset", name);
}

int main(int argc, char **argv)
{
	bool listens = argc > 5 && !strcmp(argv[5], "listen");
	int at = listens ? 6 : 7;
	pthread_t thread;
	char byte;

	if (argc < at + 2 || (!listens && strcmp(argv[5], "connect")))
		die("usage: lwip_peer DEVICE MAC IPV4 IPV6 listen|connect ADDRESS PORT MODE "
		    "[FILE]");
	mode = find_mode(argv[at + 1]);
	file_path = argc > at + 2 ? argv[at + 2] : NULL;
	open_device(argv[1]);
	tcpip_init(NULL, NULL);
	add_interface(argv[2], argv[3], argv[4]);
	if (pthread_create(&thread, NULL, receive, NULL))
		die("cannot start a thread");
	if (listens)
		do_listen((u16_t)atoi(argv[6]));
	else
		do_connect(argv[6], (u16_t)atoi(argv[7]));
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	_exit(0);
}
