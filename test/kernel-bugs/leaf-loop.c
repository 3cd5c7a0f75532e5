/*
 * A read that begins in the last entry of a dirty contiguous leaf doesn't return: record_dirty() of
 * drivers/iommu/generic_pt/iommu_pt.h has iova_bitmap_set() of drivers/iommu/iommufd/iova_bitmap.c set a length of 0.
 *
 * Run it in a machine that may be thrown away: the process can't be killed, and one CPU is busy until the next reboot. A
 * second process unmaps another mapping of the same IOAS meanwhile.
 */
#include "mock.h"

static uint8_t bitmap[4096];

static void unmap_meanwhile(void)
{
	struct { uint32_t size, ioas_id; uint64_t iova, length; } unmap = { .size = sizeof(unmap) };

	unmap.ioas_id = ioas;
	unmap.iova = BASE + 4 * MiB;
	unmap.length = 4 * KiB;
	sleep(1);
	call(IOMMU_IOAS_UNMAP, &unmap, "IOMMU_IOAS_UNMAP");
	printf("unmapped\n");
	exit(1);
}

int main(void)
{
	pid_t child;

	open_mock(0);
	/* One leaf: two entries of 1 MiB. */
	map(BASE, 2 * MiB);
	map(BASE + 4 * MiB, 4 * KiB);
	device_writes(BASE);
	child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0)
		unmap_meanwhile();
	printf("reader %d, unmapper %d\n", getpid(), child);
	fflush(stdout);
	get_dirty_bitmap(BASE + MiB, MiB, ENTRY, bitmap);
	printf("the read returned: %lu of 512 bits\n", count_bits(bitmap, 0, 512));
	return 1;
}
