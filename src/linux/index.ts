/**
 * `dirtmap/linux` gives a VMM this machine's kernel as a host. It requires Linux, koffi, and rights to the device files.
 *
 * `createPassthroughMachine` of `dirtmap` makes a machine of devices at an iommufd ({@link LinuxHost}), or in a container
 * ({@link Type1Host}). A refusal of the kernel is a `UapiError`.
 * @module
 */

export { LinuxHost } from "./host.js";
export type { LinuxDevice } from "./sysfs/device.js";
export { Type1Host, type Type1HostOptions } from "./type1/host.js";
