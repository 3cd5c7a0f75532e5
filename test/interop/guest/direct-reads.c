/*
 * Reads from a disk straight into pages of its own (O_DIRECT), and tells which pages these are in the machine's memory:
 * what a device's log of its DMA is compared with.
 *
 * usage: direct-reads DISK PAGES SEED
 *
 * A line per page: its frame number, then "decoy" for one that nothing is read into, or "target", followed by a checksum
 * of the read, its place on the disk and its length. A read may be of part of a page, or of several pages: then each page
 * has the same rest. Ends with "done".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/fs.h>
#include <unistd.h>

#define PAGE 4096
#define SECTOR 512
#define MAX_RUN 9

static uint32_t state;

/* xorshift32 */
static uint32_t below(uint32_t limit)
{
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state % limit;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/* FNV-1a */
static uint32_t checksum(const uint8_t *data, size_t bytes)
{
	uint32_t sum = 0x811c9dc5;

	while (bytes--)
		sum = (sum ^ *data++) * 0x01000193;
	return sum;
}

/* Documentation/admin-guide/mm/pagemap.rst: bit 63 is "present", bits 0 to 54 are the frame number. */
static void frames(const uint8_t *memory, size_t pages, uint64_t *into)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd < 0)
		fail("pagemap");
	if (pread(fd, into, pages * 8, (uintptr_t)memory / PAGE * 8) != (ssize_t)(pages * 8))
		fail("read pagemap");
	close(fd);
	for (size_t i = 0; i < pages; i++) {
		if (!(into[i] >> 63)) {
			fprintf(stderr, "page %zu is not present\n", i);
			exit(1);
		}
		into[i] &= (1ull << 55) - 1;
	}
}

int main(int argc, char **argv)
{
	uint64_t size;

	if (argc != 4)
		return 2;
	size_t pages = strtoul(argv[2], NULL, 0);
	state = strtoul(argv[3], NULL, 0) | 1;
	int disk = open(argv[1], O_RDONLY | O_DIRECT);

	if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size))
		fail(argv[1]);
	uint8_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t *before = calloc(pages, 8), *after = calloc(pages, 8);

	if (memory == MAP_FAILED || !before || !after || mlock(memory, pages * PAGE))
		fail("memory");
	memset(memory, 0xee, pages * PAGE);
	frames(memory, pages, before);

	for (size_t page = 0; page < pages;) {
		size_t run = 1 + below(MAX_RUN);

		if (page + run > pages)
			run = pages - page;
		if (below(2)) {
			for (; run--; page++)
				printf("%llu decoy\n", (unsigned long long)before[page]);
			continue;
		}
		/* Of a single page a part, else all. */
		size_t from = run == 1 ? below(8) * SECTOR : 0;
		size_t bytes = run == 1 ? SECTOR * (1 + below(8 - from / SECTOR)) : run * PAGE;
		uint64_t at = (uint64_t)below((size - MAX_RUN * PAGE) / SECTOR) * SECTOR;

		if (pread(disk, memory + page * PAGE + from, bytes, at) != (ssize_t)bytes)
			fail("read");
		uint32_t sum = checksum(memory + page * PAGE + from, bytes);

		for (; run--; page++)
			printf("%llu target %u %llu %zu\n", (unsigned long long)before[page], sum,
			       (unsigned long long)at, bytes);
	}

	/* Pages that had moved meanwhile would prove nothing. */
	frames(memory, pages, after);
	if (memcmp(before, after, pages * 8)) {
		fprintf(stderr, "pages have moved\n");
		return 1;
	}
	puts("done");
	return 0;
}
