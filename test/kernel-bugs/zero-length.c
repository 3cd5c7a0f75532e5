/*
 * iommufd_check_iova_range() of drivers/iommu/iommufd/io_pagetable.c takes a length of 0 at IOVA 0 for the whole address space:
 * the kernel cleans what is mapped from there on, and writes its bits to a bitmap that need not have any.
 */
#include "mock.h"

static uint8_t bitmap[4096];

int main(void)
{
	int at_zero, elsewhere;
	unsigned long set;

	open_mock(1);
	map(0, 512 * KiB);
	device_writes(256 * KiB);
	at_zero = get_dirty_bitmap(0, 0, 4 * KiB, bitmap);
	set = count_bits(bitmap, 0, sizeof(bitmap) * 8);
	elsewhere = get_dirty_bitmap(4 * KiB, 0, 4 * KiB, bitmap);
	printf("length 0 at IOVA 4096: %s\n", elsewhere ? strerror(elsewhere) : "success");
	printf("length 0 at IOVA 0: %s, %s written\n", at_zero ? strerror(at_zero) : "success", set ? "bits" : "no bit");
	return at_zero == 0 && set > 0 ? 0 : 1;
}
