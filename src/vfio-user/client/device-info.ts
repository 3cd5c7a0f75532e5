import type { IrqInfo, RegionInfo } from "../../host/host.js";
import { UapiError } from "../../uapi/errno.js";
import type { Fields, Struct, Values } from "../../uapi/struct.js";
import {
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_PCI_IRQ_INDEX,
  VFIO_PCI_REGION_INDEX,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
  vfio_irq_info,
  vfio_region_info,
} from "../../uapi/vfio.js";
import { VFIO_USER_COMMAND, vfio_user_device_info } from "../../uapi/vfio-user.js";
import type { Connection } from "./connection.js";

/** No device has more regions, or types of interrupts. */
const MAX_INDEX = 64;

export interface DeviceInfo {
  readonly regions: readonly RegionInfo[];
  readonly irqs: readonly IrqInfo[];
  readonly resets: boolean;
}

/** Asks a server what its device is. @throws UapiError EPROTO for what can't be */
export async function readDeviceInfo(connection: Connection): Promise<DeviceInfo> {
  const { DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO } = VFIO_USER_COMMAND;
  const ask = async <Of extends Fields & { argsz: "u32"; index: "u32" }>(
    command: number,
    name: string,
    layout: Struct<Of>,
    count: number,
  ): Promise<Values<Of>[]> => {
    // All at once: they are answered in their order.
    const answers = Array.from({ length: count }, async (_, index) => {
      const request = new Uint8Array(layout.size);
      const view = new DataView(request.buffer);
      view.setUint32(layout.offsetOf("argsz"), layout.size, true);
      view.setUint32(layout.offsetOf("index"), index, true);
      return layout.decode(await connection.call(command, name, request));
    });
    return Promise.all(answers);
  };

  const name = "VFIO_USER_DEVICE_GET_INFO";
  const request = vfio_user_device_info.encode({ argsz: vfio_user_device_info.size });
  const info = vfio_user_device_info.decode(await connection.call(DEVICE_GET_INFO, name, request));
  if (info.num_regions > MAX_INDEX || info.num_irqs > MAX_INDEX) {
    throw broken(name, `it has ${info.num_regions} regions and ${info.num_irqs} types of interrupts`);
  }
  const regions = await ask(
    DEVICE_GET_REGION_INFO,
    "VFIO_USER_DEVICE_GET_REGION_INFO",
    vfio_region_info,
    info.num_regions,
  );
  const irqs = await ask(DEVICE_GET_IRQ_INFO, "VFIO_USER_DEVICE_GET_IRQ_INFO", vfio_irq_info, info.num_irqs);
  return {
    resets: (info.flags & VFIO_DEVICE_FLAGS_RESET) !== 0,
    regions: regions.flatMap(({ size, flags }, index) => {
      if (size === 0n) return [];
      if (size > BigInt(Number.MAX_SAFE_INTEGER)) throw broken(name, `region ${index} has ${size} bytes`);
      return {
        index,
        name: nameOf(VFIO_PCI_REGION_INDEX, index, "region"),
        bytes: Number(size),
        readable: (flags & VFIO_REGION_INFO_FLAG_READ) !== 0,
        writeable: (flags & VFIO_REGION_INFO_FLAG_WRITE) !== 0,
      };
    }),
    irqs: irqs.flatMap(({ count }, index) =>
      count === 0 ? [] : { index, name: nameOf(VFIO_PCI_IRQ_INDEX, index, "irq"), count },
    ),
  };
}

function broken(syscall: string, what: string): UapiError {
  return new UapiError("EPROTO", {
    syscall,
    attempted: `understand the server's answer: ${what}`,
    remedy: "mend the server",
  });
}

function nameOf(indices: Readonly<Record<string, number>>, index: number, otherwise: string): string {
  const name = Object.keys(indices).find((candidate) => indices[candidate] === index);
  return name?.toLowerCase() ?? `${otherwise}${index}`;
}
