/*
 * Answers client.c's register reads and writes and does nothing else: what the socket alone takes, in C.
 *
 * usage: bare-server SOCKET block|poll
 */
#include <err.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* docs/interop/vfio-user.rst */
enum { VERSION = 1, REGION_READ = 9, TYPE_REPLY = 1, NO_REPLY = 1 << 4 };
enum { HEADER_BYTES = 16, ACCESS_BYTES = 16, REGISTER_BYTES = 8 };

struct header { uint16_t id, command; uint32_t size, flags, error; };

static uint8_t buffer[65536];

/* Answers what is whole; returns how many bytes that was, or -1. */
static ssize_t answer(int client, size_t have)
{
	size_t done = 0;

	while (have - done >= HEADER_BYTES) {
		struct header *message = (struct header *)(buffer + done);
		uint8_t reply[HEADER_BYTES + ACCESS_BYTES + REGISTER_BYTES] = { 0 };
		uint32_t size = message->size;

		if (size < HEADER_BYTES || size > sizeof(buffer))
			return -1;
		if (have - done < size)
			break;
		done += size;
		if (message->flags & NO_REPLY)
			continue;
		uint32_t length = message->command == REGION_READ ? sizeof(reply)
				  : message->command == VERSION	 ? HEADER_BYTES
								 : HEADER_BYTES + ACCESS_BYTES;

		memcpy(reply, message, HEADER_BYTES);
		memcpy(reply + 4, &length, 4);
		reply[8] = TYPE_REPLY;
		if (send(client, reply, length, MSG_NOSIGNAL) != (ssize_t)length)
			return -1;
	}
	return done;
}

static void serve(int client, int polls)
{
	size_t have = 0;

	for (;;) {
		ssize_t came = recv(client, buffer + have, sizeof(buffer) - have, polls ? MSG_DONTWAIT : 0);

		if (came < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (came <= 0)
			return;
		have += came;
		ssize_t done = answer(client, have);

		if (done < 0)
			return;
		have -= done;
		memmove(buffer, buffer + done, have);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	if (argc != 3 || strlen(argv[1]) >= sizeof(address.sun_path))
		errx(2, "usage: bare-server SOCKET block|poll");
	strcpy(address.sun_path, argv[1]);
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);

	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 1))
		err(1, "%s", argv[1]);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int client = accept(listener, NULL, NULL);

		if (client < 0)
			err(1, "accept");
		serve(client, !strcmp(argv[2], "poll"));
		close(client);
	}
}
