import type { MigrationSupport } from "../../host/host.js";
import type { Roots } from "../roots.js";
import { readBytes } from "../sysfs/files.js";
import { type KernelVersion, MAX_MODULE_LIST } from "./kernel.js";

/** What a VFIO driver of the kernel offers to user space, where the device's firmware plays along. */
export interface VfioDriverFacts {
  readonly migration: MigrationSupport | null;
  /** VFIO_DEVICE_FEATURE_DMA_LOGGING_*. */
  readonly dmaLogging: boolean;
}

const STOP_COPY_P2P = { stopCopy: true, p2p: true, preCopy: false } as const;
const ALL_PHASES = { stopCopy: true, p2p: true, preCopy: true } as const;

/**
 * The drivers of Linux 7.2, by `migration_flags` and `log_ops` under drivers/vfio, and those of mdevs (samples/vfio-mdev,
 * drivers/gpu/drm/i915/gvt, drivers/s390).
 * What is known of a device before it can be opened is what its driver can do.
 */
const DRIVERS: ReadonlyMap<string, VfioDriverFacts> = new Map([
  ["vfio-pci", { migration: null, dmaLogging: false }],
  ["vfio-platform", { migration: null, dmaLogging: false }],
  ["mlx5_vfio_pci", { migration: ALL_PHASES, dmaLogging: true }],
  ["pds_vfio_pci", { migration: STOP_COPY_P2P, dmaLogging: true }],
  ["hisi_acc_vfio_pci", { migration: { stopCopy: true, p2p: false, preCopy: true }, dmaLogging: false }],
  ["qat_vfio_pci", { migration: ALL_PHASES, dmaLogging: false }],
  ["virtio_vfio_pci", { migration: ALL_PHASES, dmaLogging: false }],
  ["xe-vfio-pci", { migration: STOP_COPY_P2P, dmaLogging: false }],
  ["nvgrace_gpu_vfio_pci", { migration: null, dmaLogging: false }],
  ["ism_vfio_pci", { migration: null, dmaLogging: false }],
  ["mtty", { migration: ALL_PHASES, dmaLogging: true }],
  ["mdpy", { migration: null, dmaLogging: false }],
  ["mbochs", { migration: null, dmaLogging: false }],
  ["intel_vgpu_mdev", { migration: null, dmaLogging: false }],
  ["vfio_ap_mdev", { migration: null, dmaLogging: false }],
  ["vfio_ccw_mdev", { migration: null, dmaLogging: false }],
]);

/** What a driver offers, or null for one that is not known. */
export function factsOf(driver: string): VfioDriverFacts | null {
  return DRIVERS.get(driver) ?? null;
}

/** Drivers whose name is not their module's. */
const NAMES: ReadonlyMap<string, string> = new Map([
  ["vfio_pci", "vfio-pci"],
  ["xe_vfio_pci", "xe-vfio-pci"],
]);

/** A VFIO driver, and the module that it comes in. */
export interface DriverChoice {
  readonly driver: string;
  readonly module: string;
}

const VFIO_PCI: DriverChoice = { driver: "vfio-pci", module: "vfio-pci" };

/** The fields of a PCI device's alias (Documentation/PCI and scripts/mod/file2alias.c), each a number or `*`. */
const ALIAS =
  /^(?:vfio_)?pci:v(\*|[0-9A-F]{8})d(\*|[0-9A-F]{8})sv(\*|[0-9A-F]{8})sd(\*|[0-9A-F]{8})bc(\*|[0-9A-F]{2})sc(\*|[0-9A-F]{2})i(\*|[0-9A-F]{2})$/;

/**
 * The VFIO driver for a PCI device: the one made for it, where the kernel has one, by the aliases `vfio_pci:…` that
 * modules declare; the most specific of several. With it a device may migrate and log its DMA; with vfio-pci, which takes
 * every device, it can do neither.
 * @param modalias the device's own: `pci:v000015B3d0000101Esv…`
 */
export function chooseVfioDriver(roots: Roots, kernel: KernelVersion, modalias: string): DriverChoice {
  const device = ALIAS.exec(modalias)?.slice(1);
  if (device === undefined) return VFIO_PCI;
  const list = readBytes(`${roots.modules}/${kernel.release}/modules.alias`, MAX_MODULE_LIST)?.toString("latin1") ?? "";
  let best = { module: "vfio_pci", fixed: 0 };
  for (const [, alias, module] of list.matchAll(/^alias (vfio_pci:\S{1,200}) ([A-Za-z0-9_-]{1,64})$/gm)) {
    const fields = ALIAS.exec(alias)?.slice(1);
    if (fields === undefined || !fields.every((field, index) => field === "*" || field === device[index])) continue;
    const fixed = fields.filter((field) => field !== "*").length;
    if (fixed > best.fixed) best = { module, fixed };
  }
  return best.fixed === 0 ? VFIO_PCI : { driver: NAMES.get(best.module) ?? best.module, module: best.module };
}
