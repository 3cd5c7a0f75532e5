/*
 * The device that bench/vfio-user/client.c measures, served by libvfio-user: what Dirtmap's server is compared with.
 *
 * usage: libvfio-user-server SOCKET block|poll
 *
 * block: the server sleeps in the kernel between messages; poll: it never does. Serves clients, one after the other.
 */
#include <err.h>
#include <errno.h>
#include <libvfio-user.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096ull

static uint8_t bar[4096];
static dma_sg_t *entry;

static void mark(vfu_ctx_t *device)
{
	uint64_t first, step, count;

	memcpy(&first, bar + 0x10, 8);
	memcpy(&step, bar + 0x18, 8);
	memcpy(&count, bar + 0x20, 8);
	for (uint64_t i = 0; i < count; i++) {
		vfu_dma_addr_t at = (vfu_dma_addr_t)(uintptr_t)((first + i * step) * PAGE);

		if (vfu_addr_to_sgl(device, at, PAGE, entry, 1, PROT_WRITE) != 1)
			err(1, "vfu_addr_to_sgl");
		vfu_sgl_mark_dirty(device, entry, 1);
	}
}

static ssize_t access_bar(vfu_ctx_t *device, char *data, size_t count, loff_t offset, bool is_write)
{
	if (offset < 0 || count > sizeof(bar) || (size_t)offset > sizeof(bar) - count) {
		errno = EINVAL;
		return -1;
	}
	if (!is_write) {
		memcpy(data, bar + offset, count);
		return count;
	}
	memcpy(bar + offset, data, count);
	if (offset == 0x20)
		mark(device);
	return count;
}

static void mapped(vfu_ctx_t *device, vfu_dma_info_t *info)
{
	(void)device;
	(void)info;
}

static int reset(vfu_ctx_t *device, vfu_reset_type_t type)
{
	(void)device;
	(void)type;
	return 0;
}

/* Its dirty tracking is part of its migration. */
static int set_state(vfu_ctx_t *device, vfu_migr_state_t state)
{
	(void)device;
	(void)state;
	return 0;
}

static ssize_t no_data(vfu_ctx_t *device, void *data, uint64_t size)
{
	(void)device;
	(void)data;
	(void)size;
	return 0;
}

static const vfu_migration_callbacks_t migration = {
	.version = VFU_MIGR_CALLBACKS_VERS, .transition = set_state, .read_data = no_data, .write_data = no_data,
};

int main(int argc, char **argv)
{
	int polls = argc == 3 && !strcmp(argv[2], "poll");

	if (argc != 3)
		errx(2, "usage: libvfio-user-server SOCKET block|poll");
	vfu_ctx_t *device = vfu_create_ctx(VFU_TRANS_SOCK, argv[1], polls ? LIBVFIO_USER_FLAG_ATTACH_NB : 0, NULL,
					   VFU_DEV_TYPE_PCI);

	entry = malloc(dma_sg_size());
	if (!device || !entry)
		err(1, "vfu_create_ctx");
	if (vfu_pci_init(device, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) ||
	    vfu_setup_region(device, VFU_PCI_DEV_BAR0_REGION_IDX, sizeof(bar), access_bar, VFU_REGION_FLAG_RW, NULL, 0, -1,
			     0) ||
	    vfu_setup_device_reset_cb(device, reset) ||
	    vfu_setup_device_dma(device, LIBVFIO_USER_MAX_DMA_REGIONS, mapped, mapped) ||
	    vfu_setup_device_migration_callbacks(device, &migration) || vfu_realize_ctx(device))
		err(1, "setting up the device");
	puts("ready");
	fflush(stdout);
	for (;;) {
		/* One that polls rests while it has no client. */
		struct pollfd wait = { vfu_get_poll_fd(device), POLLIN, 0 };

		if (poll(&wait, 1, -1) < 0 && errno != EINTR)
			err(1, "poll");
		while (vfu_attach_ctx(device))
			if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
				err(1, "vfu_attach_ctx");
		while (vfu_run_ctx(device) >= 0 || errno == EINTR)
			;
		if (errno != ENOTCONN)
			err(1, "vfu_run_ctx");
	}
}
