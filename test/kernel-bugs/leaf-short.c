/*
 * record_dirty() of drivers/iommu/generic_pt/iommu_pt.h reports a dirty contiguous leaf one entry short, and cleans all of it.
 */
#include "mock.h"

static uint8_t bitmap[4096];

/* One leaf of @length bytes in entries of @entry bytes, whose last page is written. */
static int is_short(uint64_t iova, uint64_t length, uint64_t entry)
{
	unsigned long reported, entries = length / entry, per_entry = entry / ENTRY;
	int last;

	map(iova, length);
	device_writes(iova + length - ENTRY);
	reported = dirty_entries(iova, length, bitmap) / per_entry;
	last = get_bit(bitmap, length / ENTRY - 1);
	printf("leaf of %lu KiB, %lu entries of %lu KiB, the last one written: %lu reported, %s the written one\n",
	       length / KiB, entries, entry / KiB, reported, last ? "with" : "without");
	printf("read again: %lu reported\n", dirty_entries(iova, length, bitmap) / per_entry);
	return reported == entries - 1 && !last;
}

int main(void)
{
	int many, two;

	open_mock(0);
	many = is_short(BASE, 64 * KiB, ENTRY);
	two = is_short(BASE + 2 * MiB, 2 * MiB, MiB);
	return many && two ? 0 : 1;
}
