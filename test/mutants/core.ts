/*
 * The correctness core: what may lose a write, name the wrong page, or let two machines run. Each part names its files and
 * the tests that must notice a mistake in them, quickest first.
 */

/** Files that belong together, and their tests. */
export interface Part {
  readonly name: string;
  /** Paths below `src/`, without an extension; a folder stands for the files in it. */
  readonly files: readonly string[];
  /** Stages of tests, each a list of vitest's filters below `dist/`; a later stage runs where the one before notices nothing. */
  readonly stages: readonly (readonly string[])[];
}

export const CORE: readonly Part[] = [
  {
    name: "DMA in flight",
    files: ["memory/in-flight"],
    stages: [["src/memory/in-flight", "src/emulated/iommu/drain"], ["test/stress/iommu"]],
  },
  {
    name: "bitmaps and shared logs",
    files: ["bitmap"],
    stages: [["src/bitmap/"], ["src/devices/dma-log", "src/emulated/iommufd/", "src/emulated/vfio/", "src/tracking/"]],
  },
  {
    name: "logs of devices and mdevs",
    files: ["devices/dma-log", "devices/driver/dma-logging", "emulated/iommufd/pin-log"],
    stages: [
      ["src/devices/dma-log", "src/devices/driver/", "src/emulated/iommufd/pin-log", "src/emulated/vfio/dma-logging"],
      ["src/vfio-user/server/", "test/conformance/vfio-emulated"],
    ],
  },
  {
    name: "page tables and their dirty bits",
    files: ["emulated/iommu/scan", "emulated/iommu/walker", "emulated/iommu/domain", "emulated/iommu/dma-port"],
    stages: [["src/emulated/iommu/"], ["src/emulated/iommufd/", "test/conformance/iommufd-emulated"]],
  },
  {
    name: "trackers and the union",
    files: [
      "tracking/areas",
      "tracking/collector",
      "tracking/ledger",
      "tracking/suspension",
      "tracking/trackers/cpu",
      "tracking/trackers/dma-log",
      "tracking/trackers/everything",
      "tracking/trackers/iommu",
      "tracking/trackers/session",
    ],
    stages: [
      ["src/tracking/"],
      ["test/machine/shares", "test/machine/ledger", "test/machine/remap", "test/machine/trackers"],
    ],
  },
  {
    name: "handover and journals: the protocol",
    files: ["migration/handover", "migration/rounds"],
    stages: [["src/migration/handover", "src/migration/rounds"], ["test/failures/migration"]],
  },
  {
    name: "handover and journals: what is decided and recorded",
    files: ["migration/decision", "migration/journal", "migration/journals"],
    stages: [["src/migration/decision", "src/migration/journal"], ["test/failures/migration"]],
  },
  {
    name: "handover and journals: files and processes",
    files: ["sys/process-identity", "sys/whole-file"],
    stages: [
      ["src/sys/process-identity", "src/sys/whole-file"],
      ["src/migration/decision", "src/migration/journal"],
    ],
  },
  {
    name: "handover and journals: the two sides",
    files: [
      "migration/source",
      "migration/source-handover",
      "migration/destination",
      "migration/lock-step",
      "migration/peer",
      "migration/device-error",
      "host/shape",
    ],
    stages: [
      [
        "src/migration/lock-step",
        "src/migration/peer",
        "src/migration/source-handover",
        "src/migration/device",
        "src/host/shape",
      ],
      ["test/failures/migration"],
      ["test/failures/receiving"],
      ["test/failures/connection"],
    ],
  },
  {
    name: "handover and journals: servers of devices",
    files: ["vfio-user/server/custody", "vfio-user/replies"],
    stages: [["src/vfio-user/server/custody", "src/vfio-user/replies"], ["src/vfio-user/server/"]],
  },
  {
    name: "stream, channels and digests: the control connection",
    files: ["migration/stream/control-connection", "migration/stream/frame-reader", "migration/stream/messages"],
    stages: [["src/migration/stream/"], ["test/failures/connection"]],
  },
  {
    name: "stream, channels and digests: frames and the page sink",
    files: ["migration/stream/frame", "migration/channels/page-sink"],
    stages: [
      ["src/migration/channels/page-sink", "src/migration/stream/frame"],
      ["src/migration/channels/channels", "src/migration/stream/"],
      ["test/failures/receiving"],
    ],
  },
  {
    name: "stream, channels and digests: page channels",
    files: [
      "migration/channels/receiver",
      "migration/channels/receiver-channel",
      "migration/channels/sender",
      "migration/channels/sender-channel",
    ],
    stages: [
      ["src/migration/channels/sender-channel", "src/migration/channels/receiver"],
      ["src/migration/channels/channels"],
      ["test/failures/receiving"],
    ],
  },
  {
    name: "stream, channels and digests: digests and device state",
    files: ["migration/device-state", "migration/verification"],
    stages: [["src/migration/verification", "src/migration/device-state"], ["test/failures/migration"]],
  },
];
