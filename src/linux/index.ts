/**
 * `dirtmap/linux`: the host that is this machine's kernel, for a VMM. Needs Linux, koffi, and rights to the device files.
 *
 * `createPassthroughMachine` of `dirtmap` makes a machine of devices at an iommufd ({@link LinuxHost}), or in a container
 * ({@link Type1Host}).
 * What the kernel refuses is a `UapiError`.
 * @module
 */

export { LinuxHost } from "./host.js";
export type { LinuxDevice } from "./sysfs/device.js";
export { Type1Host, type Type1HostOptions } from "./type1/host.js";
