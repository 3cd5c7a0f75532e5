import type { Vcpus } from "./host.js";

/** The vCPUs of a machine without any: nothing writes memory but its devices. */
export const NO_VCPUS: Vcpus = {
  count: 0,
  pause: async () => {},
  resume: async () => {},
  saveState: async () => new Uint8Array(0),
  loadState: async () => {},
  startDirtyLog: async () => {},
  readAndClearDirtyLog: async () => {},
  stopDirtyLog: async () => {},
};
