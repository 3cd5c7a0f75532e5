/*
 * Drives one of the workload's models (src/devices/pci-model.ts): gives the device pages of its own memory to write to, and checks
 * all the time what is in them. Each unit tells its slot and its number: number n is in slot n mod slots, so the register with
 * the last number tells what each page must hold at least, and exactly once the device has stopped.
 *
 * usage: stamped-pages DEVICE PAGES STOPFILE
 *
 * DEVICE is a folder of /sys/bus/pci/devices. Prints "driving N pages" once every page holds a unit, and when STOPFILE exists "done UNITS CHECKED".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define WORDS (PAGE / 4)
/* Entries of the device's buffer table. */
#define MAX_PAGES 240
/* A unit that is being written is looked at again. */
#define LOOKS 1000000

/* Registers of BAR 0. */
#define SEQUENCE_LOW (0x00 / 4)
#define SEQUENCE_HIGH (0x04 / 4)
#define BUFFERS (0x40 / 4)
#define BUFFER_TABLE (0x100 / 4)

#define PCI_COMMAND 0x04
#define PCI_COMMAND_MEMORY 0x2
#define PCI_COMMAND_MASTER 0x4

/* Words of a unit. */
#define MAGIC 0x504d5453u
#define WRITER 1
#define SLOT 3
#define SEQUENCE 4
#define BYTES 8
#define CHECKSUM 9

static volatile uint32_t *registers;
static uint32_t pages, writer;
/* By page: the slot that it is, once it is known. */
static int64_t slots[MAX_PAGES];
static uint64_t checked;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void wrong(uint32_t page, const char *format, ...)
{
	va_list rest;

	printf("LOST: page %u: ", page);
	va_start(rest, format);
	vprintf(format, rest);
	va_end(rest);
	putchar('\n');
	exit(1);
}

static uint64_t last_number(void)
{
	uint32_t high, low;

	do {
		high = registers[SEQUENCE_HIGH];
		low = registers[SEQUENCE_LOW];
	} while (high != registers[SEQUENCE_HIGH]);
	return (uint64_t)high << 32 | low;
}

static uint32_t rotated(uint32_t x, int by)
{
	return x << by | x >> (32 - by);
}

/* As src/devices/checksum.ts does it, over a unit whose own checksum counts as 0. */
static uint32_t checksum(const uint32_t *unit, uint32_t count)
{
	uint32_t lanes[4] = { 0x811c9dc5, 0x9dc5811c, 0x1c9dc581, 0xc5811c9d };

	for (uint32_t i = 0; i < count; i++) {
		uint32_t *lane = &lanes[i < (count & ~3u) ? i & 3 : 0];

		*lane = (*lane ^ (i == CHECKSUM ? 0 : unit[i])) * 0x01000193;
	}
	return lanes[0] ^ rotated(lanes[1], 7) ^ rotated(lanes[2], 14) ^ rotated(lanes[3], 21);
}

static int is_whole(const uint32_t *unit)
{
	uint32_t bytes = unit[BYTES];

	return unit[0] == MAGIC && bytes >= 48 && bytes <= PAGE && bytes % 16 == 0 &&
	       checksum(unit, bytes / 4) == unit[CHECKSUM];
}

/* The largest number up to `last` that belongs to a slot; 0 where none was written yet. */
static uint64_t last_of(uint32_t slot, uint64_t last)
{
	uint64_t behind = (last + pages - slot) % pages;

	return behind >= last ? 0 : last - behind;
}

/* Returns whether the page holds a unit. */
static int check(uint8_t *memory, uint32_t page)
{
	uint32_t unit[WORDS];
	uint64_t before = last_number();
	int looks = 0;

	for (;;) {
		memcpy(unit, memory + (size_t)page * PAGE, PAGE);
		if (is_whole(unit))
			break;
		if (slots[page] < 0 && before < 2 * pages)
			return 0;
		if (++looks == LOOKS)
			wrong(page, "no whole unit, or none of its own: magic %x, %u bytes", unit[0], unit[BYTES]);
	}
	uint64_t number = (uint64_t)unit[SEQUENCE + 1] << 32 | unit[SEQUENCE];

	if (slots[page] < 0) {
		slots[page] = unit[SLOT];
		writer = writer ? writer : unit[WRITER];
	}
	if (unit[SLOT] != slots[page] || unit[SLOT] != number % pages || unit[WRITER] != writer)
		wrong(page, "slot %u instead of %lld, number %llu", unit[SLOT], (long long)slots[page], (unsigned long long)number);
	if (number < last_of(unit[SLOT], before))
		wrong(page, "number %llu, and %llu was written", (unsigned long long)number,
		      (unsigned long long)last_of(unit[SLOT], before));
	checked++;
	return 1;
}

static void set_command(const char *device, int set, int clear)
{
	char path[256];
	uint16_t command;

	snprintf(path, sizeof path, "%s/config", device);
	int config = open(path, O_RDWR);

	if (config < 0 || pread(config, &command, 2, PCI_COMMAND) != 2)
		fail(path);
	command = (command | set) & ~clear;
	if (pwrite(config, &command, 2, PCI_COMMAND) != 2)
		fail(path);
	close(config);
}

int main(int argc, char **argv)
{
	char path[256];

	if (argc != 4)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	pages = strtoul(argv[2], NULL, 0);
	if (pages < 1 || pages > MAX_PAGES)
		return 2;
	set_command(argv[1], PCI_COMMAND_MEMORY, 0);
	snprintf(path, sizeof path, "%s/resource0", argv[1]);
	int bar = open(path, O_RDWR);

	if (bar < 0)
		fail(path);
	registers = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, bar, 0);
	uint8_t *memory = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (registers == MAP_FAILED || memory == MAP_FAILED || mlock(memory, (size_t)pages * PAGE))
		fail("memory");
	memset(memory, 0xee, (size_t)pages * PAGE);

	/* Documentation/admin-guide/mm/pagemap.rst: bit 63 is "present", bits 0 to 54 are the frame number. */
	int pagemap = open("/proc/self/pagemap", O_RDONLY);

	for (uint32_t page = 0; page < pages; page++) {
		uint64_t frame;

		if (pagemap < 0 || pread(pagemap, &frame, 8, ((uintptr_t)memory / PAGE + page) * 8) != 8 || !(frame >> 63))
			fail("pagemap");
		frame = (frame & ((1ull << 55) - 1)) * PAGE;
		registers[BUFFER_TABLE + page * 4] = frame;
		registers[BUFFER_TABLE + page * 4 + 1] = frame >> 32;
		registers[BUFFER_TABLE + page * 4 + 2] = PAGE;
		registers[BUFFER_TABLE + page * 4 + 3] = 0;
		slots[page] = -1;
	}
	registers[BUFFERS] = pages;
	if (registers[BUFFERS] != pages) {
		fprintf(stderr, "the device takes no table of %u pages\n", pages);
		return 1;
	}
	set_command(argv[1], PCI_COMMAND_MASTER, 0);

	int told = 0, looks = 0;

	while (access(argv[3], F_OK)) {
		uint32_t full = 0;

		for (uint32_t page = 0; page < pages; page++)
			full += check(memory, page);
		if (full == pages && !told++)
			printf("driving %u pages\n", pages);
		/* The registers are asked all the time: others want to be served, too. */
		usleep(2000);
	}
	/* What the device has begun it ends. Then each page holds the very number that the last one tells. */
	set_command(argv[1], 0, PCI_COMMAND_MASTER);
	for (uint32_t page = 0; page < pages;) {
		uint64_t last = last_number();
		const uint32_t *unit = (uint32_t *)(memory + (size_t)page * PAGE);

		check(memory, page);
		if (last != last_number()) {
			page = 0;
			continue;
		}
		uint64_t number = (uint64_t)unit[SEQUENCE + 1] << 32 | unit[SEQUENCE];

		if (number == last_of(unit[SLOT], last)) {
			page++;
			looks = 0;
		} else if (++looks == LOOKS)
			wrong(page, "number %llu at the end, not %llu", (unsigned long long)number,
			      (unsigned long long)last_of(unit[SLOT], last));
	}
	printf("done %llu %llu\n", (unsigned long long)last_number(), (unsigned long long)checked);
	return 0;
}
