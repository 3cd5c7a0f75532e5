/*
 * update_user_bitmap() of drivers/vfio/vfio_iommu_type1.c shifts the bits of a mapping in place if its first bit is not the first
 * of a word. vfio_iova_dirty_bitmap() then clears as many bits as the mapping has pages, and not those that were shifted beyond.
 * The next read reports them, for pages after the mapping.
 *
 * usage: type1-stale GROUP DEVICE, a PCI device on vfio-pci behind an IOMMU
 */
#include "group.h"

#define PAGE 4096UL
#define FIRST 40
#define SECOND 30

static uint64_t bitmap[2];

static void map(uint8_t *memory, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)memory,
		.iova = iova,
		.size = size,
	};

	if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map))
		fail("VFIO_IOMMU_MAP_DMA");
}

/* The bits that the kernel sets after those of the two mappings. */
static int read_beyond(void)
{
	struct {
		struct vfio_iommu_type1_dirty_bitmap head;
		struct vfio_iommu_type1_dirty_bitmap_get get;
	} get = {
		.head = { .argsz = sizeof(get), .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP },
		.get = { .iova = 0, .size = (FIRST + SECOND) * PAGE,
			 .bitmap = { .pgsize = PAGE, .size = sizeof(bitmap), .data = (void *)bitmap } },
	};

	memset(bitmap, 0, sizeof(bitmap));
	if (ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &get))
		fail("VFIO_IOMMU_DIRTY_PAGES");
	return __builtin_popcountll(bitmap[1] >> (FIRST + SECOND - 64));
}

int main(int argc, char **argv)
{
	struct vfio_iommu_type1_dirty_bitmap start = { .argsz = sizeof(start), .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_START };
	uint8_t *memory;
	int first, second;

	if (argc != 3)
		return 2;
	open_device(argv[1], argv[2]);
	memory = mmap(NULL, (FIRST + SECOND) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	map(memory, 0, FIRST * PAGE);
	map(memory + FIRST * PAGE, FIRST * PAGE, SECOND * PAGE);
	if (ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &start))
		fail("VFIO_IOMMU_DIRTY_PAGES_FLAG_START");
	first = read_beyond();
	second = read_beyond();
	printf("mappings of 40 and 30 pages; bits set after those of the 70 pages: first read %d, second read %d\n", first, second);
	return first == 0 && second > 0 ? 0 : 1;
}
