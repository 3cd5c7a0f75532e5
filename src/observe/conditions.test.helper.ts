import type { RunConditions } from "./conditions.js";

/** The conditions of a run, made up. */
export const CONDITIONS: RunConditions = {
  software: "dirtmap 0.1.0",
  hosts: ["emulated"],
  memoryBytes: 2 ** 30,
  design: "split",
  policy: {
    order: "iommu-first",
    measured: null,
    trackers: { dev0: "device" },
    granules: {},
    domain: "per-device",
    untracked: "everything",
    untrackedDevices: {},
  },
  transport: { scheme: "tcp", local: true },
  bandwidth: null,
  channels: 2,
  downtimeLimitMs: 300,
  maxRounds: 30,
  verify: "after",
  runAfterMs: 500,
  machine: {
    cpu: "a processor",
    cores: 2,
    memoryBytes: 2 ** 33,
    node: "v20.20.2",
    kernel: "Linux 6.18",
    load: 0.4,
    stealShare: 0,
  },
};
