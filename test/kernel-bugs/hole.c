/*
 * iommu_read_and_clear_dirty() of drivers/iommu/iommufd/io_pagetable.c drops the error of the walk that it starts: a range with a
 * hole is read up to the hole, and the call succeeds.
 */
#include "mock.h"

static uint8_t bitmap[4096];

int main(void)
{
	unsigned long together, alone;
	int error;

	open_mock(0);
	map(BASE, 64 * KiB);
	map(BASE + 128 * KiB, 64 * KiB);
	device_writes(BASE + 128 * KiB);
	error = get_dirty_bitmap(BASE, 192 * KiB, ENTRY, bitmap);
	together = count_bits(bitmap, 0, 96);
	alone = dirty_entries(BASE + 128 * KiB, 64 * KiB, bitmap);
	printf("two mappings of 64 KiB, a hole between them, the second one written\n");
	printf("read as one range: %s, %lu bits set\n", error ? strerror(error) : "success", together);
	printf("the second one read alone: %s\n", alone ? "bits set" : "no bit set");
	return error == 0 && together == 0 && alone > 0 ? 0 : 1;
}
