/*
 * A vfio-user client that measures a server: whichever, in whatever language.
 *
 * usage: client SOCKET
 *
 * Commands come by standard input, one a line, and each is answered with a line: nanoseconds and a number, or "error",
 * an errno and what failed. The device must have, in BAR 0, 8 bytes of plain register at 0, and what "mark" needs:
 *
 *   0x10 first page   0x18 pages from one mark to the next   0x20 marks: writing it marks that many pages as written
 *
 *   read N spin|block         N register reads, each awaited; spin: without sleeping in the kernel
 *   write N spin|block        the same with writes
 *   posted N                  N writes that ask for no reply, and one read behind them
 *   map N                     N regions of a page of one memfd; the number is how many were accepted
 *   unmap                     all of them
 *   memory BYTES              one region at 0
 *   log BYTES                 starts DMA logging over [0, BYTES) by 4096
 *   mark FIRST STEP COUNT     has the device mark pages
 *   report IOVA BYTES         reads and clears the log; the number is how many bits were set
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ull

/* docs/interop/vfio-user.rst */
enum { VERSION = 1, DMA_MAP = 2, DMA_UNMAP = 3, REGION_READ = 9, REGION_WRITE = 10, DEVICE_FEATURE = 16 };
enum { TYPE_REPLY = 1, NO_REPLY = 1 << 4, ERROR = 1 << 5 };
enum { MAP_READ_WRITE = 3, UNMAP_ALL = 2 };
/* include/uapi/linux/vfio.h */
enum { FEATURE_GET = 1 << 16, FEATURE_SET = 1 << 17 };
enum { DMA_LOGGING_START = 6, DMA_LOGGING_REPORT = 8 };

struct header { uint16_t id, command; uint32_t size, flags, error; };
struct access { struct header header; uint64_t offset; uint32_t region, count; uint64_t data; };
struct map { struct header header; uint32_t argsz, flags; uint64_t offset, address, size; };
struct unmap { struct header header; uint32_t argsz, flags; uint64_t address, size; };
struct feature { struct header header; uint32_t argsz, flags; };
struct start { struct feature feature; uint64_t page_size; uint32_t ranges, reserved; uint64_t iova, length; };
struct report { struct feature feature; uint64_t iova, length, page_size; };

static int sock;
static uint16_t next_id;
/* Where replies are put: as long as the longest so far. */
static uint8_t *reply;
static size_t reply_room;
static char failure[128];

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ull + at.tv_nsec;
}

static int fail(int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(failure, sizeof(failure), format, args);
	va_end(args);
	return -error;
}

static int send_message(struct header *message, int fd)
{
	struct iovec part = { message, message->size };
	union { struct cmsghdr head; char space[CMSG_SPACE(sizeof(int))]; } control;
	struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1 };

	message->id = ++next_id;
	if (fd >= 0) {
		header.msg_control = control.space;
		header.msg_controllen = sizeof(control.space);
		control.head.cmsg_len = CMSG_LEN(sizeof(int));
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		memcpy(CMSG_DATA(&control.head), &fd, sizeof(int));
	}
	ssize_t sent = sendmsg(sock, &header, MSG_NOSIGNAL);

	if (sent != (ssize_t)message->size)
		return fail(sent < 0 ? errno : EIO, "sendmsg");
	return 0;
}

/* Receives the reply to the last message; returns its size, or an errno below 0. */
static ssize_t receive(int spin)
{
	size_t have = 0, want = sizeof(struct header);

	while (have < want) {
		ssize_t came = recv(sock, reply + have, reply_room - have, spin ? MSG_DONTWAIT : 0);

		if (came < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (came <= 0)
			return fail(came < 0 ? errno : ECONNRESET, "recv");
		have += came;
		if (have < sizeof(struct header))
			continue;
		want = ((struct header *)reply)->size;
		if (want < sizeof(struct header) || want > 1u << 30)
			return fail(EPROTO, "a reply of %zu bytes", want);
		if (want > reply_room) {
			reply_room = want;
			reply = realloc(reply, reply_room);
			if (!reply)
				return fail(ENOMEM, "realloc");
		}
	}
	struct header *header = (struct header *)reply;

	if (have != want || header->id != next_id || (header->flags & 0xf) != TYPE_REPLY)
		return fail(EPROTO, "a reply to something else");
	if (header->flags & ERROR)
		return fail(header->error ? (int)header->error : EIO, "refused");
	return want;
}

static ssize_t ask(struct header *message, int fd)
{
	int error = send_message(message, fd);

	return error ? error : receive(0);
}

static int agree(void)
{
	static const char json[] = "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576}}";
	struct { struct header header; uint16_t major, minor; char json[sizeof(json)]; } message = {
		.header = { .command = VERSION, .size = sizeof(struct header) + 4 + sizeof(json) },
	};

	memcpy(message.json, json, sizeof(json));
	ssize_t size = ask(&message.header, -1);

	return size < 0 ? (int)size : 0;
}

static int write_register(uint64_t offset, uint64_t value, uint32_t flags)
{
	struct access message = {
		.header = { .command = REGION_WRITE, .size = sizeof(message), .flags = flags },
		.offset = offset, .count = 8, .data = value,
	};
	int error = send_message(&message.header, -1);

	if (error || (flags & NO_REPLY))
		return error;
	ssize_t size = receive(0);

	return size < 0 ? (int)size : 0;
}

static int64_t registers(uint16_t command, unsigned long count, int spin)
{
	struct access message = {
		.header = { .command = command, .size = sizeof(message) - (command == REGION_READ ? 8 : 0) },
		.count = 8,
	};
	ssize_t expected = command == REGION_READ ? sizeof(message) : sizeof(message) - 8;

	for (unsigned long i = 0; i < count; i++) {
		int error = send_message(&message.header, -1);

		if (error)
			return error;
		ssize_t size = receive(spin);

		if (size < 0)
			return size;
		if (size != expected)
			return fail(EPROTO, "a reply of %zd bytes", size);
		message.data++;
	}
	return 0;
}

static int64_t posted(unsigned long count)
{
	for (unsigned long i = 0; i < count; i++) {
		int error = write_register(0, i, NO_REPLY);

		if (error)
			return error;
	}
	return registers(REGION_READ, 1, 0);
}

static int64_t map(unsigned long count, uint64_t each)
{
	int fd = memfd_create("bench", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	/* As QEMU's memory-backend-memfd is: a server may map it without fear. */
	if (fd < 0 || ftruncate(fd, count * each) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK))
		return fail(errno, "memfd");
	for (unsigned long i = 0; i < count; i++) {
		struct map message = {
			.header = { .command = DMA_MAP, .size = sizeof(message) },
			.argsz = sizeof(message) - sizeof(struct header), .flags = MAP_READ_WRITE,
			.offset = i * each, .address = i * each, .size = each,
		};
		ssize_t size = ask(&message.header, fd);

		if (size < 0) {
			close(fd);
			return size;
		}
	}
	close(fd);
	return count;
}

static int64_t unmap(void)
{
	struct unmap message = {
		.header = { .command = DMA_UNMAP, .size = sizeof(message) },
		.argsz = sizeof(message) - sizeof(struct header), .flags = UNMAP_ALL,
	};
	ssize_t size = ask(&message.header, -1);

	return size < 0 ? size : 0;
}

static int64_t start_log(uint64_t bytes)
{
	struct start message = {
		.feature = {
			.header = { .command = DEVICE_FEATURE, .size = sizeof(message) },
			.argsz = sizeof(message) - sizeof(struct header), .flags = FEATURE_SET | DMA_LOGGING_START,
		},
		.page_size = PAGE, .ranges = 1, .length = bytes,
	};
	ssize_t size = ask(&message.feature.header, -1);

	return size < 0 ? size : 0;
}

static int64_t mark(uint64_t first, uint64_t step, uint64_t count)
{
	int error = write_register(0x10, first, 0);

	if (!error)
		error = write_register(0x18, step, 0);
	return error ? error : write_register(0x20, count, 0);
}

static int64_t report(uint64_t iova, uint64_t bytes, uint64_t *until)
{
	uint64_t bitmap = (bytes / PAGE + 63) / 64 * 8;
	struct report message = {
		.feature = {
			.header = { .command = DEVICE_FEATURE, .size = sizeof(message) },
			.argsz = sizeof(message) - sizeof(struct header) + bitmap, .flags = FEATURE_GET | DMA_LOGGING_REPORT,
		},
		.iova = iova, .length = bytes, .page_size = PAGE,
	};
	ssize_t size = ask(&message.feature.header, -1);

	*until = now();
	if (size < 0)
		return size;
	if ((uint64_t)size != sizeof(message) + bitmap)
		return fail(EPROTO, "a reply of %zd bytes", size);
	int64_t set = 0;

	for (uint64_t *word = (uint64_t *)(reply + sizeof(message)); bitmap; bitmap -= 8)
		set += __builtin_popcountll(*word++);
	return set;
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char line[128], name[16], how[16];
	unsigned long long a, b, c;

	if (argc != 2 || strlen(argv[1]) >= sizeof(address.sun_path)) {
		fprintf(stderr, "usage: client SOCKET\n");
		return 2;
	}
	strcpy(address.sun_path, argv[1]);
	reply_room = 4 << 20;
	reply = malloc(reply_room);
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (!reply || sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof(address)) || agree()) {
		fprintf(stderr, "%s: %s %s\n", argv[1], failure, strerror(errno));
		return 1;
	}
	/* Its pages are there before anything is measured. */
	memset(reply, 0, reply_room);
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		int64_t result = fail(EINVAL, "no such command");
		uint64_t from = now(), until = 0;

		if (sscanf(line, "read %llu %15s", &a, how) == 2)
			result = registers(REGION_READ, a, !strcmp(how, "spin"));
		else if (sscanf(line, "write %llu %15s", &a, how) == 2)
			result = registers(REGION_WRITE, a, !strcmp(how, "spin"));
		else if (sscanf(line, "posted %llu", &a) == 1)
			result = posted(a);
		else if (sscanf(line, "map %llu", &a) == 1)
			result = map(a, PAGE);
		else if (sscanf(line, "memory %llu", &a) == 1)
			result = map(1, a);
		else if (sscanf(line, "log %llu", &a) == 1)
			result = start_log(a);
		else if (sscanf(line, "mark %llu %llu %llu", &a, &b, &c) == 3)
			result = mark(a, b, c);
		else if (sscanf(line, "report %llu %llu", &a, &b) == 2)
			result = report(a, b, &until);
		else if (sscanf(line, "%15s", name) == 1 && !strcmp(name, "unmap"))
			result = unmap();
		if (!until)
			until = now();
		if (result < 0)
			printf("error %lld %s\n", -(long long)result, failure);
		else
			printf("%llu %lld\n", (unsigned long long)(until - from), (long long)result);
	}
	return 0;
}
