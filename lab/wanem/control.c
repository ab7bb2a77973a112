// SPDX-License-Identifier: Apache-2.0
/* The control socket; see control.h for the protocol. A client that does not read its answer is
 * disconnected.
 */
#define _GNU_SOURCE
#include "control.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER_BYTES 8192

struct answer {
	char text[ANSWER_BYTES];
	size_t used;
};

__attribute__((format(printf, 2, 3))) static void put(struct answer *answer, const char *format,
						      ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(answer->text + answer->used, ANSWER_BYTES - answer->used, format, args);
	va_end(args);
	if (n > 0 && answer->used + (size_t)n < ANSWER_BYTES)
		answer->used += (size_t)n;
}

static void put_u64(struct answer *answer, const char *key, uint64_t value)
{
	put(answer, "\"%s\": %" PRIu64 ", ", key, value);
}

static void put_double(struct answer *answer, const char *key, double value)
{
	put(answer, "\"%s\": %.17g, ", key, value);
}

int control_init(struct control *control, const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	*control = (struct control){.listen_fd = -1};
	for (size_t i = 0; i < CONTROL_CLIENTS; i++)
		control->clients[i].fd = -1;
	if (strlen(path) >= sizeof(address.sun_path)) {
		fprintf(stderr, "cannot listen on %s: the path is too long\n", path);
		return -ENAMETOOLONG;
	}
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	control->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (control->listen_fd < 0 ||
	    bind(control->listen_fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    listen(control->listen_fd, CONTROL_CLIENTS) < 0) {
		int err = errno;

		fprintf(stderr, "cannot listen on %s: %s\n", path, strerror(err));
		control_deinit(control);
		return -err;
	}
	snprintf(control->path, sizeof(control->path), "%s", path);
	return 0;
}

static void disconnect(struct control_client *client)
{
	close(client->fd);
	client->fd = -1;
	client->used = 0;
}

void control_deinit(struct control *control)
{
	for (size_t i = 0; i < CONTROL_CLIENTS; i++)
		if (control->clients[i].fd >= 0)
			disconnect(&control->clients[i]);
	if (control->listen_fd >= 0)
		close(control->listen_fd);
	control->listen_fd = -1;
	if (*control->path)
		unlink(control->path);
}

void control_poll_fds(const struct control *control, struct pollfd *fds)
{
	fds[0] = (struct pollfd){.fd = control->listen_fd, .events = POLLIN};
	for (size_t i = 0; i < CONTROL_CLIENTS; i++)
		fds[1 + i] = (struct pollfd){.fd = control->clients[i].fd, .events = POLLIN};
}

static void put_params(struct answer *answer, const struct emu *emu)
{
	const struct emu_params *params = &emu->params;

	put(answer, "\"params\": {");
	put_u64(answer, "rate_bps", params->rate_bps);
	put_u64(answer, "delay_ns", params->delay_ns);
	put_u64(answer, "queue_pkts", params->queue_pkts);
	put_u64(answer, "queue_bytes", params->queue_bytes);
	put_u64(answer, "queue_ns", params->queue_ns);
	put_u64(answer, "reorder_ns", params->reorder_ns);
	put_u64(answer, "overhead_bytes", params->overhead_bytes);
	put_u64(answer, "loss_above", params->loss_above);
	put_u64(answer, "burst_step_ns", params->bursts.step_ns);
	put_u64(answer, "jitter_ns", params->jitter_ns);
	put_u64(answer, "jitter_exponential", params->jitter_exponential);
	put_u64(answer, "jitter_reorder", params->jitter_reorder);
	put_double(answer, "loss", params->loss);
	put_double(answer, "burst_p", params->bursts.p);
	put_double(answer, "burst_r", params->bursts.r);
	put_double(answer, "burst_loss_bad", params->bursts.loss_bad);
	put_double(answer, "burst_loss_good", params->bursts.loss_good);
	put_double(answer, "reorder", params->reorder);
	put_double(answer, "duplicate", params->duplicate);
	put_double(answer, "corrupt", params->corrupt);
	put(answer, "\"seed\": %" PRIu64 "}, ", emu->seed);
}

static void put_direction(struct answer *answer, struct direction *direction, const char *name,
			  uint64_t now_ns)
{
	const struct emu *emu = &direction->emu;
	const struct emu_stats *stats = &emu->stats;
	struct rx_port *rx = &direction->rx;
	struct tx_port *tx = &direction->tx;
	double span_ns = now_ns > stats->since_ns ? (double)(now_ns - stats->since_ns) : 1;

	rx_read_drops(rx);
	put(answer, "\"%s\": {", name);
	put_params(answer, emu);
	put_u64(answer, "rx_pkts", stats->rx_pkts);
	put_u64(answer, "rx_bytes", stats->rx_bytes);
	put_u64(answer, "tx_pkts", stats->tx_pkts);
	put_u64(answer, "tx_bytes", stats->tx_bytes);
	put_u64(answer, "control_pkts", stats->control_pkts);
	put_u64(answer, "queue_drops", stats->queue_drops);
	put_u64(answer, "losses", stats->losses);
	put_u64(answer, "loss_bursts", stats->loss_bursts);
	put_u64(answer, "reordered", stats->reordered);
	put_u64(answer, "duplicated", stats->duplicated);
	put_u64(answer, "corrupted", stats->corrupted);
	put_u64(answer, "queue_pkts", emu->waiting.pkts);
	put_u64(answer, "queue_bytes", emu->waiting_bytes);
	put_u64(answer, "queue_max_pkts", stats->queue_max_pkts);
	put_u64(answer, "queue_max_bytes", stats->queue_max_bytes);
	put_double(answer, "queue_mean_pkts", stats->queue_pkts_ns / span_ns);
	put_double(answer, "queue_mean_bytes", stats->queue_bytes_ns / span_ns);
	put_u64(answer, "queue_wait_max_ns", stats->queue_wait_max_ns);
	put_double(answer, "queue_wait_mean_ns",
		   stats->queue_wait_pkts
			   ? stats->queue_wait_sum_ns / (double)stats->queue_wait_pkts
			   : 0);
	put_u64(answer, "in_flight_pkts", emu->line.pkts + emu->late.pkts + emu->jittered_pkts);
	put_u64(answer, "late_max_ns", stats->late_max_ns);
	put_double(answer, "late_mean_ns",
		   stats->tx_pkts ? stats->late_sum_ns / (double)stats->tx_pkts : 0);
	put_u64(answer, "ring_drops", rx->ring_drops);
	put_u64(answer, "bad_pkts", rx->bad_pkts);
	put_u64(answer, "pool_used_max_pkts", direction->pool.fresh);
	put_u64(answer, "pool_drops", stats->pool_drops);
	put_u64(answer, "tx_drops", tx->drops);
	put_u64(answer, "tx_retries", tx->retries);
	put(answer, "\"own_drops\": %" PRIu64 "}",
	    rx->ring_drops + rx->bad_pkts + stats->pool_drops + tx->drops);
}

static uint64_t timeval_ns(const struct timeval *tv)
{
	return (uint64_t)tv->tv_sec * 1000000000ULL + (uint64_t)tv->tv_usec * 1000ULL;
}

static void put_stats(struct answer *answer, struct wanem *wanem)
{
	static const char *const names[2] = {"ab", "ba"};
	uint64_t now_ns = clock_now_ns();
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	put(answer, "{");
	put_u64(answer, "uptime_ns", now_ns - wanem->started_ns);
	put_u64(answer, "cpu_user_ns", timeval_ns(&usage.ru_utime));
	put_u64(answer, "cpu_system_ns", timeval_ns(&usage.ru_stime));
	for (unsigned int i = 0; i < 2; i++) {
		struct direction *direction = &wanem->directions[i];

		direction_lock(direction);
		put_direction(answer, direction, names[i], clock_now_ns());
		direction_unlock(direction);
		put(answer, i ? "}\n" : ", ");
	}
}

static void reset(struct wanem *wanem)
{
	for (unsigned int i = 0; i < 2; i++) {
		struct direction *direction = &wanem->directions[i];

		direction_lock(direction);
		rx_read_drops(&direction->rx);
		direction->rx.ring_drops = direction->rx.bad_pkts = 0;
		direction->tx.drops = direction->tx.retries = 0;
		emu_reset_stats(&direction->emu, clock_now_ns());
		direction_unlock(direction);
	}
}

static const char *set(struct wanem *wanem, char *arguments)
{
	struct control_target targets[2] = {0};
	char *assignments = strchr(arguments, ' ');
	unsigned int mask;
	const char *why;

	if (!assignments)
		return "set is followed by ab, ba or both, and KEY=VALUE";
	*assignments++ = '\0';
	mask = !strcmp(arguments, "ab")	    ? 1
	       : !strcmp(arguments, "ba")   ? 2
	       : !strcmp(arguments, "both") ? 3
					    : 0;
	if (!mask)
		return "a direction is ab, ba or both";
	/* Only this thread changes parameters, so they can be read without the lock. */
	for (unsigned int i = 0; i < 2; i++)
		targets[i].params = wanem->directions[i].emu.params;
	why = control_assign(targets, mask, assignments);
	for (unsigned int i = 0; i < 2 && !why; i++) {
		struct direction *direction = &wanem->directions[i];

		if (!(mask & (1U << i)))
			continue;
		direction_lock(direction);
		emu_set(&direction->emu, &targets[i].params, clock_now_ns());
		if (targets[i].new_seed)
			emu_seed(&direction->emu, targets[i].seed);
		direction_unlock(direction);
		direction_wake(direction);
	}
	return why;
}

static void obey(struct wanem *wanem, char *line, struct answer *answer)
{
	const char *why = NULL;

	if (!strcmp(line, "stats")) {
		put_stats(answer, wanem);
		return;
	}
	if (!strcmp(line, "reset"))
		reset(wanem);
	else if (!strcmp(line, "quit"))
		wanem->quit = true;
	else if (!strncmp(line, "set ", 4))
		why = set(wanem, line + 4);
	else
		why = "the commands are stats, reset, set and quit";
	if (why)
		put(answer, "{\"error\": \"%s\"}\n", why);
	else
		put(answer, "{\"ok\": true}\n");
}

static void serve_client(struct control_client *client, struct wanem *wanem)
{
	static struct answer answer;
	ssize_t n = recv(client->fd, client->line + client->used, CONTROL_LINE_BYTES - client->used,
			 MSG_DONTWAIT);
	char *end;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		disconnect(client);
		return;
	}
	client->used += (size_t)n;
	while ((end = memchr(client->line, '\n', client->used))) {
		size_t taken = (size_t)(end - client->line) + 1;

		*end = '\0';
		answer.used = 0;
		obey(wanem, client->line, &answer);
		if (send(client->fd, answer.text, answer.used, MSG_DONTWAIT | MSG_NOSIGNAL) !=
		    (ssize_t)answer.used) {
			disconnect(client);
			return;
		}
		client->used -= taken;
		memmove(client->line, client->line + taken, client->used);
	}
	if (client->used == CONTROL_LINE_BYTES)
		disconnect(client);
}

static void accept_client(struct control *control)
{
	int fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	for (size_t i = 0; i < CONTROL_CLIENTS; i++) {
		if (control->clients[i].fd < 0) {
			control->clients[i].fd = fd;
			return;
		}
	}
	close(fd);
}

void control_serve(struct control *control, const struct pollfd *fds, struct wanem *wanem)
{
	for (size_t i = 0; i < CONTROL_CLIENTS; i++)
		if (control->clients[i].fd >= 0 && fds[1 + i].revents)
			serve_client(&control->clients[i], wanem);
	if (fds[0].revents)
		accept_client(control);
}
