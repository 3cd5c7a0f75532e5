/*
 * mtty_close() of samples/vfio-mdev/mtty.c frees the files of a migration, and keeps the state that they belong to. Whoever opens the
 * device next finds it in RESUMING; the kernel dereferences a null pointer when it is to leave that (mtty_load_state()).
 *
 * Run it in a machine that may be thrown away: the device's mutex stays locked.
 *
 * usage: mtty-close GROUP UUID
 */
#include "group.h"

static void feature(uint32_t operation, struct vfio_device_feature_mig_state *state, const char *what)
{
	struct {
		struct vfio_device_feature head;
		struct vfio_device_feature_mig_state state;
	} request = { .head = { .argsz = sizeof(request), .flags = operation | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE } };

	request.state = *state;
	if (ioctl(device, VFIO_DEVICE_FEATURE, &request))
		fail(what);
	*state = request.state;
}

int main(int argc, char **argv)
{
	struct vfio_device_feature_mig_state state = { .device_state = VFIO_DEVICE_STATE_RESUMING, .data_fd = -1 };

	if (argc != 3)
		return 2;
	open_device(argv[1], argv[2]);
	feature(VFIO_DEVICE_FEATURE_SET, &state, "to RESUMING");
	close(state.data_fd);
	close(device);
	close(group);
	close(container);

	open_device(argv[1], argv[2]);
	feature(VFIO_DEVICE_FEATURE_GET, &state, "get the state");
	printf("opened again: %s\n", state.device_state == VFIO_DEVICE_STATE_RESUMING ? "RESUMING" : "another state");
	fflush(stdout);
	state.device_state = VFIO_DEVICE_STATE_STOP;
	feature(VFIO_DEVICE_FEATURE_SET, &state, "to STOP");
	printf("the kernel survived it\n");
	return 1;
}
