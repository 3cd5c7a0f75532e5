/*
 * The correctness core: what may lose a write, name the wrong page, or let two machines run. Each part names its files and
 * the tests that must notice a mistake in them, quickest first.
 */

/** Files that belong together, and their tests. */
export interface Part {
  readonly name: string;
  /** Paths below `src/`, without an extension; a folder stands for the files in it. */
  readonly files: readonly string[];
  /**
   * Stages of tests, each a list of vitest's filters below `dist/`; a later stage runs where the one before notices nothing.
   * A file's own test, if it has one beside it, comes before them all.
   */
  readonly stages: readonly (readonly string[])[];
}

export const CORE: readonly Part[] = [
  {
    name: "DMA in flight",
    files: ["memory/in-flight"],
    stages: [["src/emulated/iommu/drain"], ["test/stress/iommu"]],
  },
  {
    name: "bitmaps and shared logs: bitmaps",
    files: [
      "bitmap/allocations",
      "bitmap/bits",
      "bitmap/dirty-bitmap",
      "bitmap/ram-bitmap",
      "bitmap/ram-runs",
      "bitmap/ranges",
    ],
    stages: [
      ["src/bitmap/dirty-bitmap", "src/bitmap/allocations"],
      ["src/bitmap/ram-bitmap", "src/bitmap/shared-log", "src/tracking/areas"],
    ],
  },
  {
    name: "bitmaps and shared logs: shared logs",
    files: ["bitmap/shared-log"],
    stages: [["src/devices/dma-log", "src/bitmap/allocations"]],
  },
  {
    name: "logs of devices and mdevs: logs",
    files: ["devices/dma-log", "devices/sparse-log"],
    stages: [["src/vfio-user/server/dma-logging"]],
  },
  {
    name: "logs of devices and mdevs: DMA logging",
    files: ["devices/variant-driver/dma-logging", "iommufd/pin-log"],
    stages: [["src/emulated/vfio/dma-logging"], ["src/iommufd/access", "test/conformance/vfio-emulated"]],
  },
  {
    name: "logs of devices and mdevs: pages written by messages",
    files: ["vfio-user/client/written-pages"],
    stages: [["src/vfio-user/client/foreign-server"]],
  },
  {
    name: "devices that fail",
    files: ["devices/containment"],
    stages: [["src/emulated/vfio/", "src/vfio-user/server/"]],
  },
  {
    name: "page tables and their dirty bits",
    files: [
      "emulated/iommu/scan",
      "emulated/iommu/walker",
      "emulated/iommu/domain",
      "emulated/iommu/dma-port",
      "emulated/iommu/iotlb",
    ],
    stages: [
      ["src/emulated/iommu/system-iommu"],
      ["src/emulated/iommu/page-table", "src/emulated/iommu/drain"],
      ["src/emulated/iommufd", "test/conformance/iommufd-emulated"],
    ],
  },
  {
    name: "trackers and the union: the union",
    files: ["tracking/areas", "tracking/collector", "tracking/ledger"],
    stages: [["src/tracking/collector", "src/tracking/no-write-lost"]],
  },
  {
    name: "trackers and the union: trackers",
    files: [
      "tracking/suspension",
      "tracking/trackers/container",
      "tracking/trackers/cpu",
      "tracking/trackers/dma-log",
      "tracking/trackers/everything",
      "tracking/trackers/iommu",
      "tracking/trackers/session",
    ],
    stages: [["src/tracking/trackers/"], ["src/tracking/collector", "src/tracking/no-write-lost"]],
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
