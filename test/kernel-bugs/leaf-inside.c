/*
 * A read that begins or ends inside a leaf of one entry: record_dirty() of drivers/iommu/generic_pt/iommu_pt.h marks an entry's
 * length from where the read begins, and so beyond the range and the caller's bitmap. It cleans the whole leaf: what of it was not
 * asked for is reported by nobody.
 */
#include "mock.h"

#define HALF (512 * KiB)
#define BITS (HALF / ENTRY)

static uint8_t bitmap[4096];

/* Reads one half of a written leaf, and then the other. */
static int read_halves(const char *name, uint64_t first, uint64_t second)
{
	unsigned long inside, beyond, rest;

	device_writes(BASE);
	inside = dirty_entries(first, HALF, bitmap);
	beyond = count_bits(bitmap, BITS, sizeof(bitmap) * 8);
	rest = dirty_entries(second, HALF, bitmap);
	printf("leaf of 1 MiB, one entry, written; %s: %lu of 256 bits set, %lu beyond the bitmap's end; then the other: %lu of 256\n",
	       name, inside, beyond, rest);
	return inside + rest < 2 * BITS;
}

int main(void)
{
	int ends, begins;

	open_mock(0);
	map(BASE, MiB);
	ends = read_halves("its first half is read", BASE, BASE + HALF);
	begins = read_halves("its second half is read", BASE + HALF, BASE);
	return ends && begins ? 0 : 1;
}
