/*
 * iova_bitmap_set() of drivers/iommu/iommufd/iova_bitmap.c can't say that it could not pin a page of the caller's bitmap: the
 * bits are dropped, the IOMMU's dirty bits are cleaned, and the call succeeds.
 *
 * Here the second page of the bitmap is read-only. To allocate it may fail just as well, as for a process whose memory cgroup is
 * full.
 */
#include "mock.h"

#define PAGES 128

int main(void)
{
	struct { uint32_t size, option_id; uint16_t op, reserved; uint32_t object_id; uint64_t value; } option = { .size = sizeof(option) };
	static uint8_t whole[4096];
	uint8_t *two, *bitmap;
	unsigned long first, second, again;
	int error, page;

	open_mock(0);
	/* Leaves of one page of the CPU. */
	option.option_id = IOMMU_OPTION_HUGE_PAGES;
	option.object_id = ioas;
	call(IOMMU_OPTION, &option, "IOMMU_OPTION");
	map(BASE, PAGES * 4 * KiB);
	for (page = 0; page < PAGES; page++)
		device_writes(BASE + page * 4 * KiB);

	two = mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (two == MAP_FAILED)
		fail("mmap");
	/* 64 bits at the end of one page, 64 at the start of the next. */
	bitmap = two + 4096 - 8;
	memset(bitmap, 0, PAGES / 8);
	if (mprotect(two + 4096, 4096, PROT_READ))
		fail("mprotect");

	error = get_dirty_bitmap(BASE, PAGES * 4 * KiB, 4 * KiB, bitmap);
	first = count_bits(bitmap, 0, 64);
	second = count_bits(bitmap, 64, PAGES);
	printf("128 pages written, the second page of the bitmap can't be: %s, bits 0-63: %lu set, bits 64-127: %lu set\n",
	       error ? strerror(error) : "success", first, second);
	if (get_dirty_bitmap(BASE, PAGES * 4 * KiB, 4 * KiB, whole))
		fail("IOMMU_HWPT_GET_DIRTY_BITMAP");
	again = count_bits(whole, 0, PAGES);
	printf("read again into a good bitmap: %lu set\n", again);
	return error == 0 && first == 64 && second == 0 && again == 0 ? 0 : 1;
}
