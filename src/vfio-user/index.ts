/**
 * `dirtmap/vfio-user` is for devices in another process. {@link serveDevice} serves a model at a socket, to QEMU or any other
 * client. {@link VfioUserHost} is a host of devices that any server serves (docs/vfio-user.md). Requires Linux and koffi.
 * @module
 */

export type { Feed, ModelOption, ModelOptions, OptionValue, ServableModel } from "../devices/servable.js";
export { SERVABLE_MODELS } from "../devices/servable-models.js";
export type { ServerCounters } from "./client/counters.js";
export { VfioUserDevice, type VfioUserDeviceOptions } from "./client/device.js";
export { VfioUserHost, type VfioUserPlace } from "./client/host.js";
export { VfioUserIommufd } from "./client/iommufd.js";
export { ServedDevices, type ServedPlace } from "./client/served-devices.js";
export { controlPath } from "./control-path.js";
export type { DmaMode } from "./server/client-memory.js";
export { type DeviceServer, type ServeDeviceOptions, serveDevice } from "./server/server.js";
