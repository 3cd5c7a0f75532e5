import type { VfioDevice } from "../host/host.js";
import { iovaOf, PAGE_SIZE } from "../memory/address.js";
import { UapiError } from "../uapi/errno.js";
import type { PageSpan } from "./buffers.js";
import { BUFFER_ENTRY_BYTES, PCI_COMMAND, PCI_COMMAND_MASTER, REGION, REGISTER } from "./pci-model.js";
import type { StampTrail } from "./stamp.js";

/*
 * What a guest's driver does to one of Dirtmap's models before it uses it, and what the model tells of its workload.
 */

/** A VFIO device with a workload, in this process or another. */
export interface WorkloadDevice extends VfioDevice {
  /** Returns the stamps that it must have left in memory, once it has stopped; null: its DMA is unstamped or its stamps unknown. */
  stamps(): Promise<StampTrail | null>;
  /** Returns the device's own counters by name; empty for a device of another program's server. */
  counters(): Promise<Record<string, number>>;
}

type Registers = Pick<VfioDevice, "id" | "regionRead" | "regionWrite">;

/** Lets a device do DMA. Part of the state that migrates. */
export async function enableBusMaster(device: Registers): Promise<void> {
  const [command] = await device.regionRead(REGION.CONFIG, PCI_COMMAND, 1);
  await device.regionWrite(REGION.CONFIG, PCI_COMMAND, Uint8Array.of(command | PCI_COMMAND_MASTER));
}

/**
 * Names the buffers that a device writes to, in its buffer table. For models that write by themselves, whose DMA is stamped.
 * @throws UapiError EINVAL for more than the table has entries for
 */
export async function setBuffers(device: Registers, buffers: readonly PageSpan[]): Promise<void> {
  const table = new Uint8Array(buffers.length * BUFFER_ENTRY_BYTES);
  const view = new DataView(table.buffer);
  buffers.forEach(({ firstPage, pages }, index) => {
    view.setBigUint64(index * BUFFER_ENTRY_BYTES, iovaOf(firstPage), true);
    view.setBigUint64(index * BUFFER_ENTRY_BYTES + 8, BigInt(pages) * BigInt(PAGE_SIZE), true);
  });
  await device.regionWrite(REGION.BAR0, REGISTER.BUFFER_TABLE, table);
  const count = new Uint8Array(4);
  new DataView(count.buffer).setUint32(0, buffers.length, true);
  await device.regionWrite(REGION.BAR0, REGISTER.BUFFERS, count);
  const used = await device.regionRead(REGION.BAR0, REGISTER.BUFFERS, 4);
  if (Buffer.compare(used, count) === 0) return;
  throw new UapiError("EINVAL", {
    syscall: "pwrite",
    attempted: `have '${device.id}' use ${buffers.length} buffers`,
    remedy: "see the buffer table's rules in docs/vfio-user.md",
  });
}
