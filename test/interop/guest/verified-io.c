/*
 * Reads and writes a disk past the page cache, so many at a time, and knows what each block must hold.
 *
 * usage: verified-io DISK DEPTH BLOCKS SEED STOPFILE [POOL FRAMESFILE]
 *
 * Every block of 4 KiB has a version, which each write raises, and contents that follow from its number and version. A read is
 * compared at once. Its memory is kept as long as there is room, and compared once more when it is used again and at the end: a
 * page that the device wrote, and that was lost on the way to another machine, is found there. Ends when STOPFILE exists: then
 * all blocks are read once more. With POOL it reads into so many pages, and writes to FRAMESFILE the numbers of these frames of the
 * machine's memory, after the one that tells what is in each of them (struct kept): for who wants to know what a page holds.
 *
 * Prints "wrote N" once all blocks are written, and at the end "took MEDIAN_US P999_US", of reads and writes, and
 * "done READS WRITES KEPT SLOWEST_MS".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define WORDS (BLOCK / 8)
#define MAX_DEPTH 128
/* Pages that reads go to, one after the other. */
#define POOL 4096
/* As many as are told of in a page. */
#define MAX_TOLD (BLOCK / sizeof(struct kept))
#define NOTHING UINT32_MAX
/* How long requests took is counted by steps of so many microseconds; the last step has all that took longer. */
#define STEP_US 10
#define STEPS 100000

struct kept {
	uint32_t block, version;
};

static uint64_t state;
static uint32_t *versions;
static uint8_t *busy;
static uint8_t *pool;
static struct kept *kept;
static unsigned pool_pages = POOL;
static uint32_t took_steps[STEPS];

/* xorshift64 */
static uint64_t below(uint64_t limit)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % limit;
}

/* Microseconds. */
static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000ull + at.tv_nsec / 1000;
}

/* Microseconds within which so many thousandths of all requests ended. */
static uint64_t within(uint64_t requests, unsigned thousandths)
{
	uint64_t seen = 0, step = 0;

	while (step < STEPS - 1 && (seen += took_steps[step]) * 1000 < requests * thousandths)
		step++;
	return (step + 1) * STEP_US;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t word(uint32_t block, uint32_t version, unsigned i)
{
	uint64_t x = ((uint64_t)block << 32 | version) + i * 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9ull;
	return x ^ (x >> 29);
}

static void fill(uint64_t *page, uint32_t block, uint32_t version)
{
	for (unsigned i = 0; i < WORDS; i++)
		page[i] = word(block, version, i);
}

static void check(const uint64_t *page, uint32_t block, uint32_t version, const char *when)
{
	for (unsigned i = 0; i < WORDS; i++) {
		if (page[i] == word(block, version, i))
			continue;
		printf("LOST %s: block %u version %u differs at word %u: %llx\n", when, block, version, i,
		       (unsigned long long)page[i]);
		exit(1);
	}
}

static void check_kept(unsigned slot, const char *when)
{
	if (kept[slot].block != NOTHING)
		check((uint64_t *)(pool + (size_t)slot * BLOCK), kept[slot].block, kept[slot].version, when);
	kept[slot].block = NOTHING;
}

/* Documentation/admin-guide/mm/pagemap.rst: bit 63 is "present", bits 0 to 54 are the frame number. */
static void tell_frame(FILE *file, int pagemap, const void *page)
{
	uint64_t frame;

	if (pread(pagemap, &frame, 8, (uintptr_t)page / BLOCK * 8) != 8 || !(frame >> 63))
		fail("pagemap");
	fprintf(file, "%llu\n", (unsigned long long)(frame & ((1ull << 55) - 1)));
}

static void tell_frames(const char *path)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	FILE *file = fopen(path, "w");

	if (pagemap < 0 || !file || mlock(kept, BLOCK) || mlock(pool, (size_t)pool_pages * BLOCK))
		fail(path);
	tell_frame(file, pagemap, kept);
	for (unsigned i = 0; i < pool_pages; i++)
		tell_frame(file, pagemap, pool + (size_t)i * BLOCK);
	if (fclose(file))
		fail(path);
	close(pagemap);
}

int main(int argc, char **argv)
{
	static struct iocb requests[MAX_DEPTH];
	static struct io_event events[MAX_DEPTH];
	static uint64_t since[MAX_DEPTH];
	static struct { uint32_t block, slot; int writes; } what[MAX_DEPTH];
	aio_context_t context = 0;
	uint64_t reads = 0, writes = 0, kept_pages = 0, slowest = 0;

	if (argc != 6 && argc != 8)
		return 2;
	if (argc == 8)
		pool_pages = strtoul(argv[6], NULL, 0);
	int disk = open(argv[1], O_RDWR | O_DIRECT);
	unsigned depth = strtoul(argv[2], NULL, 0);
	uint32_t blocks = strtoul(argv[3], NULL, 0);

	state = strtoull(argv[4], NULL, 0) | 1;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (depth < 1 || depth > MAX_DEPTH || blocks < 2 * depth || pool_pages < 2 * depth || pool_pages > POOL ||
	    (argc == 8 && pool_pages > MAX_TOLD))
		return 2;
	pool = mmap(NULL, (size_t)(pool_pages + depth) * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	kept = mmap(NULL, sizeof *kept * POOL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	versions = calloc(blocks, sizeof *versions);
	busy = calloc(blocks, 1);
	if (disk < 0 || pool == MAP_FAILED || kept == MAP_FAILED || !versions || !busy || syscall(SYS_io_setup, depth, &context))
		fail(argv[1]);
	memset(pool, 0xee, (size_t)(pool_pages + depth) * BLOCK);
	for (unsigned i = 0; i < pool_pages; i++)
		kept[i].block = NOTHING;
	if (argc == 8)
		tell_frames(argv[7]);
	uint64_t *writing = (uint64_t *)(pool + (size_t)pool_pages * BLOCK);

	for (uint32_t block = 0; block < blocks; block++) {
		fill(writing, block, 0);
		if (pwrite(disk, writing, BLOCK, (off_t)block * BLOCK) != BLOCK)
			fail("write");
	}
	printf("wrote %u\n", blocks);

	unsigned free_requests[MAX_DEPTH], free_count = depth, under_way = 0, next_slot = 0;
	uint64_t looked = now();
	int ends = 0;

	for (unsigned i = 0; i < depth; i++)
		free_requests[i] = i;
	while (!ends || under_way) {
		if (!ends && now() - looked >= 50000) {
			looked = now();
			ends = access(argv[5], F_OK) == 0;
		}
		while (!ends && free_count) {
			unsigned i = free_requests[--free_count];
			struct iocb *request = &requests[i], *one = request;
			uint32_t block;

			do
				block = below(blocks);
			while (busy[block]);
			busy[block] = 1;
			what[i].block = block;
			what[i].writes = below(3) == 0;
			memset(request, 0, sizeof *request);
			request->aio_fildes = disk;
			request->aio_nbytes = BLOCK;
			request->aio_offset = (uint64_t)block * BLOCK;
			request->aio_data = i;
			if (what[i].writes) {
				uint8_t *page = pool + (size_t)(pool_pages + i) * BLOCK;

				fill((uint64_t *)page, block, versions[block] + 1);
				request->aio_buf = (uintptr_t)page;
				request->aio_lio_opcode = IOCB_CMD_PWRITE;
			} else {
				what[i].slot = next_slot;
				check_kept(next_slot, "while kept");
				request->aio_buf = (uintptr_t)(pool + (size_t)next_slot * BLOCK);
				request->aio_lio_opcode = IOCB_CMD_PREAD;
				next_slot = (next_slot + 1) % pool_pages;
			}
			since[i] = now();
			if (syscall(SYS_io_submit, context, 1, &one) != 1)
				fail("io_submit");
			under_way++;
		}
		if (!under_way)
			break;
		long came = syscall(SYS_io_getevents, context, 1, (long)depth, events, NULL);

		if (came < 1)
			fail("io_getevents");
		for (long e = 0; e < came; e++) {
			unsigned i = events[e].data;
			uint32_t block = what[i].block;
			uint64_t took = now() - since[i];

			if (events[e].res != BLOCK) {
				printf("ERROR: %s of block %u ended with %lld\n", what[i].writes ? "a write" : "a read", block,
				       (long long)events[e].res);
				return 1;
			}
			if (took > slowest)
				slowest = took;
			took_steps[took / STEP_US < STEPS ? took / STEP_US : STEPS - 1]++;
			if (what[i].writes) {
				versions[block]++;
				writes++;
			} else {
				kept[what[i].slot] = (struct kept){ block, versions[block] };
				check((uint64_t *)(pool + (size_t)what[i].slot * BLOCK), block, versions[block], "at once");
				reads++;
			}
			busy[block] = 0;
			free_requests[free_count++] = i;
			under_way--;
		}
	}
	for (unsigned i = 0; i < pool_pages; i++) {
		kept_pages += kept[i].block != NOTHING;
		check_kept(i, "at the end");
	}
	for (uint32_t block = 0; block < blocks; block++) {
		if (pread(disk, writing, BLOCK, (off_t)block * BLOCK) != BLOCK)
			fail("read");
		check(writing, block, versions[block], "on the disk");
	}
	printf("took %llu %llu\n", (unsigned long long)within(reads + writes, 500),
	       (unsigned long long)within(reads + writes, 999));
	printf("done %llu %llu %llu %llu\n", (unsigned long long)reads, (unsigned long long)writes,
	       (unsigned long long)kept_pages, (unsigned long long)slowest / 1000);
	return 0;
}
