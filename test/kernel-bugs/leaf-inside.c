/*
 * A read that begins inside a leaf of one entry: record_dirty() of drivers/iommu/generic_pt/iommu_pt.h marks an entry's length from
 * where the read begins, and so beyond the leaf, the range and the caller's bitmap. The part before the read is cleaned, and
 * reported by nobody.
 */
#include "mock.h"

static uint8_t bitmap[4096];

int main(void)
{
	unsigned long inside, beyond, before;

	open_mock(0);
	/* One leaf: one entry of 1 MiB. */
	map(BASE, MiB);
	device_writes(BASE);
	inside = dirty_entries(BASE + 512 * KiB, 512 * KiB, bitmap);
	beyond = count_bits(bitmap, 256, sizeof(bitmap) * 8);
	before = dirty_entries(BASE, 512 * KiB, bitmap);
	printf("leaf of 1 MiB, one entry, written; its second half is read: %lu of 256 bits set, %lu beyond the bitmap's end\n",
	       inside, beyond);
	printf("then its first half is read: %lu of 256 bits set\n", before);
	return beyond > 0 || inside == 0 || before == 0 ? 0 : 1;
}
