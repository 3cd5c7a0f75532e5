import { hex } from "../memory/address.js";
import {
  VFIO_DEVICE_FLAGS_PCI,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_IRQ_INFO_EVENTFD,
  VFIO_PCI_IRQ_INDEX,
  VFIO_PCI_REGION_INDEX,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
  type vfio_device_info,
  type vfio_irq_info,
  type vfio_region_info,
} from "../uapi/vfio.js";
import type { IrqInfo, RegionInfo } from "./host.js";
import { type Call, refuse } from "./iommufd-checks.js";

/*
 * What a device says of itself: VFIO_DEVICE_GET_INFO, _GET_REGION_INFO, _GET_IRQ_INFO.
 */

/** PCI has 9 regions; drivers add a handful of their own. What claims more is broken. */
export const MAX_REGIONS = 256;
/** PCI has 5 kinds of interrupt. */
const MAX_IRQS = 64;
/** Interrupts of one kind: MSI-X has 2048 at most. */
const MAX_IRQ_COUNT = 2 ** 16;

type StructOf<Layout> = Layout extends { decode(bytes: Uint8Array): infer Decoded } ? Decoded : never;

/** Asks a device: by ioctls, or by messages. */
export interface InfoTransport {
  info(): Promise<Pick<StructOf<typeof vfio_device_info>, "flags" | "num_regions" | "num_irqs">>;
  /** null: an index that this device does not have, such as VGA. */
  region(index: number): Promise<StructOf<typeof vfio_region_info> | null>;
  /** null: an index that this device does not have, such as ERR on one that is no PCI Express device. */
  irq(index: number): Promise<StructOf<typeof vfio_irq_info> | null>;
}

/** A region, and where it lies in the device's descriptor. */
export interface PlacedRegion extends RegionInfo {
  readonly offset: number;
}

export interface DeviceInfo {
  /** What it says of VFIO_DEVICE_RESET; some drivers that do reset say nothing. */
  readonly resets: boolean;
  /** Those that the device has: unimplemented ones are left out. */
  readonly regions: readonly PlacedRegion[];
  readonly irqs: readonly IrqInfo[];
  /** The kernel tells through an eventfd when it wants the device back (VFIO_PCI_REQ_IRQ_INDEX). */
  readonly asksForRelease: boolean;
}

/** @throws UapiError; EPROTO for an answer that can't be */
export async function readDeviceInfo(device: InfoTransport, id: string): Promise<DeviceInfo> {
  const broken = (syscall: string, what: string) => {
    const call: Call = { syscall, attempted: `ask what '${id}' is: it has ${what}` };
    return refuse("EPROTO", call, "mend its driver or server: no device has that much");
  };
  const { flags, num_regions, num_irqs } = await device.info();
  if (num_regions > MAX_REGIONS || num_irqs > MAX_IRQS) {
    broken("VFIO_DEVICE_GET_INFO", `${num_regions} regions and ${num_irqs} kinds of interrupt`);
  }
  const isPci = (flags & VFIO_DEVICE_FLAGS_PCI) !== 0;
  const nameOf = (names: Readonly<Record<string, number>>, index: number) =>
    isPci
      ? Object.keys(names)
          .find((name) => names[name] === index)
          ?.toLowerCase()
      : undefined;
  // All at once: a server answers them in their order.
  const [regions, irqs] = await Promise.all([
    Promise.all(Array.from({ length: num_regions }, (_, index) => device.region(index))),
    Promise.all(Array.from({ length: num_irqs }, (_, index) => device.irq(index))),
  ]);
  return {
    resets: (flags & VFIO_DEVICE_FLAGS_RESET) !== 0,
    regions: regions.flatMap((region, index) => {
      if (region === null || region.size === 0n) return [];
      const { size, offset } = region;
      if (offset + size > BigInt(Number.MAX_SAFE_INTEGER)) {
        broken("VFIO_DEVICE_GET_REGION_INFO", `region ${index} of ${size} bytes at ${hex(offset)}`);
      }
      return {
        index,
        name: nameOf(VFIO_PCI_REGION_INDEX, index) ?? `region${index}`,
        bytes: Number(size),
        readable: (region.flags & VFIO_REGION_INFO_FLAG_READ) !== 0,
        writeable: (region.flags & VFIO_REGION_INFO_FLAG_WRITE) !== 0,
        offset: Number(offset),
      };
    }),
    irqs: irqs.flatMap((irq, index) => {
      if (irq === null || irq.count === 0) return [];
      if (irq.count > MAX_IRQ_COUNT) broken("VFIO_DEVICE_GET_IRQ_INFO", `${irq.count} interrupts of kind ${index}`);
      return { index, name: nameOf(VFIO_PCI_IRQ_INDEX, index) ?? `irq${index}`, count: irq.count };
    }),
    asksForRelease: isPci && ((irqs[VFIO_PCI_IRQ_INDEX.REQ]?.flags ?? 0) & VFIO_IRQ_INFO_EVENTFD) !== 0,
  };
}
