/*
 * Random reads of 4 KiB from a disk, past the page cache, so many at a time, for some seconds.
 *
 * usage: random-reads DISK DEPTH SECONDS
 *
 * Prints how many were done, and in how many nanoseconds.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define MAX_DEPTH 256

static uint64_t state = 88172645463325252ull;

/* xorshift64 */
static uint64_t below(uint64_t limit)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % limit;
}

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ull + at.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	static struct iocb requests[MAX_DEPTH];
	static struct io_event events[MAX_DEPTH];
	struct iocb *wanted[MAX_DEPTH];
	aio_context_t context = 0;
	uint64_t bytes;

	if (argc != 4)
		return 2;
	unsigned depth = strtoul(argv[2], NULL, 0);
	int disk = open(argv[1], O_RDONLY | O_DIRECT);
	uint8_t *memory = aligned_alloc(BLOCK, (size_t)MAX_DEPTH * BLOCK);

	if (depth < 1 || depth > MAX_DEPTH)
		return 2;
	if (disk < 0 || ioctl(disk, BLKGETSIZE64, &bytes) || !memory || syscall(SYS_io_setup, depth, &context))
		fail(argv[1]);
	for (unsigned i = 0; i < depth; i++) {
		requests[i].aio_lio_opcode = IOCB_CMD_PREAD;
		requests[i].aio_fildes = disk;
		requests[i].aio_buf = (uintptr_t)(memory + (size_t)i * BLOCK);
		requests[i].aio_nbytes = BLOCK;
		requests[i].aio_offset = below(bytes / BLOCK) * BLOCK;
		wanted[i] = &requests[i];
	}
	uint64_t from = now(), until = from + strtoull(argv[3], NULL, 0) * 1000000000ull, done = 0;
	unsigned waiting = depth, under_way = 0;

	while (waiting || under_way) {
		if (waiting && syscall(SYS_io_submit, context, waiting, wanted) != (long)waiting)
			fail("io_submit");
		under_way += waiting;
		waiting = 0;
		long came = syscall(SYS_io_getevents, context, 1, (long)depth, events, NULL);

		if (came < 1)
			fail("io_getevents");
		int ends = now() >= until;

		for (long i = 0; i < came; i++) {
			struct iocb *request = (struct iocb *)(uintptr_t)events[i].obj;

			if (events[i].res != BLOCK) {
				fprintf(stderr, "a read ended with %lld\n", (long long)events[i].res);
				return 1;
			}
			request->aio_offset = below(bytes / BLOCK) * BLOCK;
			if (!ends)
				wanted[waiting++] = request;
		}
		under_way -= came;
		done += came;
	}
	printf("%llu %llu\n", (unsigned long long)done, (unsigned long long)(now() - from));
	return 0;
}
