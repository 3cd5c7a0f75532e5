/*
 * The kernel's mock IOMMU (CONFIG_IOMMUFD_TEST), as the programs beside this file need it: one device, one HWPT that tracks
 * dirty pages, and memory of one huge page, so that the sizes of leaves are known.
 *
 * Declared here because the headers of a distribution may be older than the interface. Names and layouts are those of
 * include/uapi/linux/iommufd.h and drivers/iommu/iommufd/iommufd_test.h.
 *
 * A program prints what it saw. It exits with 0 if the kernel has the bug, with 1 if it doesn't, and with 2 if it could not
 * find out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define IOMMU_IOAS_ALLOC _IO(';', 0x81)
#define IOMMU_IOAS_MAP _IO(';', 0x85)
#define IOMMU_IOAS_UNMAP _IO(';', 0x86)
#define IOMMU_OPTION _IO(';', 0x87)
#define IOMMU_HWPT_ALLOC _IO(';', 0x89)
#define IOMMU_HWPT_SET_DIRTY_TRACKING _IO(';', 0x8b)
#define IOMMU_HWPT_GET_DIRTY_BITMAP _IO(';', 0x8c)
#define IOMMU_TEST_CMD _IO(';', 0xa0)

#define IOMMU_IOAS_MAP_FIXED_IOVA 1
#define IOMMU_IOAS_MAP_WRITEABLE 2
#define IOMMU_IOAS_MAP_READABLE 4
#define IOMMU_OPTION_HUGE_PAGES 1
#define IOMMU_HWPT_ALLOC_DIRTY_TRACKING 2
#define IOMMU_HWPT_DIRTY_TRACKING_ENABLE 1
#define IOMMU_HWPT_DATA_SELFTEST 0xdead
#define MOCK_IOMMUPT_HUGE 1
#define IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE 10
#define IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS 12
#define IOMMU_TEST_OP_DIRTY 13

#define KiB 1024UL
#define MiB (1024 * KiB)
/* One entry of the mock's lowest tables. At the next level it is 512 times that, 1 MiB. */
#define ENTRY (2 * KiB)
/* Where the aperture of the mock's default tables begins. */
#define BASE (16 * MiB)

static int iommufd;
static uint32_t ioas, device, mock_device, hwpt;
static uint8_t *memory;

static void fail(const char *what)
{
	perror(what);
	exit(2);
}

static inline void call(unsigned long request, void *argument, const char *what)
{
	if (ioctl(iommufd, request, argument))
		fail(what);
}

/* Makes the device and the HWPT. @huge: tables whose pages are 4 KiB and 1 MiB, and whose aperture begins at 0 */
static void open_mock(int huge)
{
	struct { uint32_t size, flags, out_ioas_id; } alloc = { .size = sizeof(alloc) };
	struct {
		uint32_t size, op, id, reserved;
		uint32_t out_stdev_id, out_hwpt_id, out_idev_id, dev_flags;
		uint64_t rest[4];
		uint64_t last;
	} add = { .size = sizeof(add), .op = IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS };
	struct {
		uint32_t size, op, id, reserved;
		uint32_t pt_id, pad;
		uint64_t rest[5];
		uint64_t last;
	} replace = { .size = sizeof(replace), .op = IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE };
	struct { uint32_t iotlb, pagetable_type; } tables = { 0, huge ? MOCK_IOMMUPT_HUGE : 0 };
	struct {
		uint32_t size, flags, dev_id, pt_id, out_hwpt_id, reserved, data_type, data_len;
		uint64_t data_uptr;
		uint32_t fault_id, reserved2;
	} make = { .size = sizeof(make), .flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING };
	struct { uint32_t size, flags, hwpt_id, reserved; } track = { .size = sizeof(track), .flags = IOMMU_HWPT_DIRTY_TRACKING_ENABLE };

	iommufd = open("/dev/iommu", O_RDWR);
	if (iommufd < 0)
		fail("/dev/iommu");
	call(IOMMU_IOAS_ALLOC, &alloc, "IOMMU_IOAS_ALLOC");
	ioas = alloc.out_ioas_id;
	add.id = ioas;
	call(IOMMU_TEST_CMD, &add, "IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS");
	mock_device = add.out_stdev_id;
	device = add.out_idev_id;
	make.dev_id = device;
	make.pt_id = ioas;
	make.data_type = IOMMU_HWPT_DATA_SELFTEST;
	make.data_len = sizeof(tables);
	make.data_uptr = (uintptr_t)&tables;
	call(IOMMU_HWPT_ALLOC, &make, "IOMMU_HWPT_ALLOC");
	hwpt = make.out_hwpt_id;
	replace.id = mock_device;
	replace.pt_id = hwpt;
	call(IOMMU_TEST_CMD, &replace, "IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE");
	track.hwpt_id = hwpt;
	call(IOMMU_HWPT_SET_DIRTY_TRACKING, &track, "IOMMU_HWPT_SET_DIRTY_TRACKING");

	memory = mmap(NULL, 2 * MiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (memory == MAP_FAILED)
		fail("no huge page of 2 MiB is free (echo 4 >/proc/sys/vm/nr_hugepages)");
	memset(memory, 1, 2 * MiB);
}

/* Maps the first @length bytes of the memory. The kernel makes the largest leaves that alignment allows. */
static inline void map(uint64_t iova, uint64_t length)
{
	struct {
		uint32_t size, flags, ioas_id, reserved;
		uint64_t user_va, length, iova;
	} map = { .size = sizeof(map), .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE };

	map.ioas_id = ioas;
	map.user_va = (uintptr_t)memory;
	map.length = length;
	map.iova = iova;
	call(IOMMU_IOAS_MAP, &map, "IOMMU_IOAS_MAP");
}

/* Sets the dirty bit of the entry that translates @iova, as a device's write does. */
static inline void device_writes(uint64_t iova)
{
	uint64_t bit = 1;
	struct {
		uint32_t size, op, id, reserved;
		uint32_t flags, pad;
		uint64_t iova, length, page_size, uptr, out_nr_dirty;
		uint64_t last;
	} dirty = { .size = sizeof(dirty), .op = IOMMU_TEST_OP_DIRTY };

	dirty.id = hwpt;
	dirty.iova = iova;
	dirty.length = dirty.page_size = ENTRY;
	dirty.uptr = (uintptr_t)&bit;
	call(IOMMU_TEST_CMD, &dirty, "IOMMU_TEST_OP_DIRTY");
}

/* IOMMU_HWPT_GET_DIRTY_BITMAP, which also cleans. Returns 0 or an errno. */
static int get_dirty_bitmap(uint64_t iova, uint64_t length, uint64_t page_size, void *bitmap)
{
	struct {
		uint32_t size, hwpt_id, flags, reserved;
		uint64_t iova, length, page_size, data;
	} get = { .size = sizeof(get) };

	get.hwpt_id = hwpt;
	get.iova = iova;
	get.length = length;
	get.page_size = page_size;
	get.data = (uintptr_t)bitmap;
	return ioctl(iommufd, IOMMU_HWPT_GET_DIRTY_BITMAP, &get) ? errno : 0;
}

static inline int get_bit(const uint8_t *bitmap, unsigned long bit)
{
	return bitmap[bit / 8] >> bit % 8 & 1;
}

/* The bits that are set in [from, end). */
static inline unsigned long count_bits(const uint8_t *bitmap, unsigned long from, unsigned long end)
{
	unsigned long count = 0;

	for (; from < end; from++)
		count += get_bit(bitmap, from);
	return count;
}

/* Reads a range into a cleared bitmap with a bit for each entry; returns how many are set. */
static inline unsigned long dirty_entries(uint64_t iova, uint64_t length, uint8_t *bitmap)
{
	int error;

	memset(bitmap, 0, 4096);
	error = get_dirty_bitmap(iova, length, ENTRY, bitmap);
	if (error) {
		errno = error;
		fail("IOMMU_HWPT_GET_DIRTY_BITMAP");
	}
	return count_bits(bitmap, 0, length / ENTRY);
}
