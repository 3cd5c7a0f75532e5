import type { IrqInfo, RegionInfo } from "../../host/host.js";
import { hex } from "../../memory/address.js";
import type { OpenFile } from "../../sys/open-file.js";
import { isErrno, UapiError } from "../../uapi/errno.js";
import {
  VFIO_DEVICE_FLAGS_PCI,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_DEVICE_GET_INFO,
  VFIO_DEVICE_GET_IRQ_INFO,
  VFIO_DEVICE_GET_REGION_INFO,
  VFIO_IRQ_INFO_EVENTFD,
  VFIO_PCI_IRQ_INDEX,
  VFIO_PCI_REGION_INDEX,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
  vfio_device_info,
  vfio_irq_info,
  vfio_region_info,
} from "../../uapi/vfio.js";

/*
 * What a bound device says of itself: VFIO_DEVICE_GET_INFO, _GET_REGION_INFO, _GET_IRQ_INFO.
 */

/** PCI has 9 regions; drivers add a handful of their own. What claims more is broken. */
const MAX_REGIONS = 256;
/** PCI has 5 kinds of interrupt. */
const MAX_IRQS = 64;
/** Interrupts of one kind: MSI-X has 2048 at most. */
const MAX_IRQ_COUNT = 2 ** 16;

/** A region, and where it lies in the device's descriptor. */
export interface LinuxRegion extends RegionInfo {
  readonly offset: number;
}

export interface DeviceInfo {
  readonly pci: boolean;
  /** What its driver says of VFIO_DEVICE_RESET; some that do reset say nothing. */
  readonly resets: boolean;
  /** Those that the device has: unimplemented ones are left out. */
  readonly regions: readonly LinuxRegion[];
  readonly irqs: readonly IrqInfo[];
  /** The kernel tells through an eventfd when it wants the device back (VFIO_PCI_REQ_IRQ_INDEX). */
  readonly asksForRelease: boolean;
}

/** @throws UapiError; EPROTO for an answer that can't be */
export function readDeviceInfo(file: OpenFile): DeviceInfo {
  const attempted = () => `ask what '${file.name}' is`;
  const argument = vfio_device_info.encode({ argsz: vfio_device_info.size });
  file.ioctl(VFIO_DEVICE_GET_INFO, argument, attempted);
  const { flags, num_regions, num_irqs } = vfio_device_info.decode(argument);
  if (num_regions > MAX_REGIONS || num_irqs > MAX_IRQS) {
    throw new UapiError("EPROTO", {
      syscall: VFIO_DEVICE_GET_INFO.name,
      attempted: `${attempted()}: ${num_regions} regions and ${num_irqs} kinds of interrupt`,
      remedy: `a driver that works has ${MAX_REGIONS} and ${MAX_IRQS} at most`,
    });
  }
  const pci = (flags & VFIO_DEVICE_FLAGS_PCI) !== 0;
  const regions: LinuxRegion[] = [];
  for (let index = 0; index < num_regions; index++) {
    const region = readRegion(file, index, pci);
    if (region !== null) regions.push(region);
  }
  const irqs: IrqInfo[] = [];
  let asksForRelease = false;
  for (let index = 0; index < num_irqs; index++) {
    const irq = readIrq(file, index, pci);
    if (irq === null) continue;
    irqs.push({ index, name: irq.name, count: irq.count });
    if (pci && index === VFIO_PCI_IRQ_INDEX.REQ) asksForRelease = irq.eventfd;
  }
  const resets = (flags & VFIO_DEVICE_FLAGS_RESET) !== 0;
  return { pci, resets, regions, irqs, asksForRelease };
}

function readRegion(file: OpenFile, index: number, pci: boolean): LinuxRegion | null {
  const argument = vfio_region_info.encode({ argsz: vfio_region_info.size, index });
  const attempted = () => `ask for region ${index} of '${file.name}'`;
  // EINVAL: an index that this device doesn't have, such as VGA.
  if (!answered(() => file.ioctl(VFIO_DEVICE_GET_REGION_INFO, argument, attempted))) return null;
  const { flags, size, offset } = vfio_region_info.decode(argument);
  if (size === 0n) return null;
  if (offset + size > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new UapiError("EPROTO", {
      syscall: VFIO_DEVICE_GET_REGION_INFO.name,
      attempted: `${attempted()}: it has ${hex(size)} bytes at ${hex(offset)}`,
      remedy: "no device has that much",
    });
  }
  return {
    index,
    name: nameOf(VFIO_PCI_REGION_INDEX, index, pci) ?? `region${index}`,
    bytes: Number(size),
    readable: (flags & VFIO_REGION_INFO_FLAG_READ) !== 0,
    writeable: (flags & VFIO_REGION_INFO_FLAG_WRITE) !== 0,
    offset: Number(offset),
  };
}

function readIrq(file: OpenFile, index: number, pci: boolean): (IrqInfo & { readonly eventfd: boolean }) | null {
  const argument = vfio_irq_info.encode({ argsz: vfio_irq_info.size, index });
  const attempted = () => `ask for interrupt ${index} of '${file.name}'`;
  // EINVAL: an index that this device doesn't have, such as ERR on one that is no PCI Express device.
  if (!answered(() => file.ioctl(VFIO_DEVICE_GET_IRQ_INFO, argument, attempted))) return null;
  const { flags, count } = vfio_irq_info.decode(argument);
  if (count === 0) return null;
  if (count > MAX_IRQ_COUNT) {
    throw new UapiError("EPROTO", {
      syscall: VFIO_DEVICE_GET_IRQ_INFO.name,
      attempted: `${attempted()}: there are ${count}`,
      remedy: `a driver that works has ${MAX_IRQ_COUNT} at most`,
    });
  }
  return {
    index,
    name: nameOf(VFIO_PCI_IRQ_INDEX, index, pci) ?? `irq${index}`,
    count,
    eventfd: (flags & VFIO_IRQ_INFO_EVENTFD) !== 0,
  };
}

function answered(call: () => void): boolean {
  try {
    call();
    return true;
  } catch (error) {
    if (isErrno(error, "EINVAL")) return false;
    throw error;
  }
}

function nameOf(names: Readonly<Record<string, number>>, index: number, pci: boolean): string | undefined {
  if (!pci) return undefined;
  return Object.entries(names)
    .find(([, value]) => value === index)?.[0]
    .toLowerCase();
}
