import { MiB, PAGE_SIZE } from "../memory/address.js";
import { createGuestMemory, type GuestMemory } from "../memory/guest-memory.js";
import { VFIO_PCI_IRQ_INDEX } from "../uapi/vfio.js";
import { FlatContext } from "./flat-host.test.helper.js";
import type { DeviceModel } from "./model.js";

/*
 * For tests of models that a guest's own driver drives: a guest with its memory, and its accesses to registers.
 */

const BAR0 = 0;
const CONFIG = 7;
const PCI_COMMAND = 0x04;
const MEMORY_AND_MASTER = 0x6;

/** Guest memory; RAM that devices may write begins at 1 MiB. */
export const MEMORY_BYTES = 16 * MiB;
const FIRST_PAGE = 256;

/** What a driver needs of its device, wherever that is. */
export type DrivenDevice = Pick<DeviceModel, "regionRead" | "regionWrite" | "run">;

/** A device's host that tells interrupts' vectors apart. */
export class VectorContext extends FlatContext {
  readonly vectors: number[] = [];
  /** INTx is asserted. */
  intx = false;

  override raiseIrq(index?: number, vector = 0): void {
    this.interrupts++;
    this.vectors.push(vector);
    if (index === VFIO_PCI_IRQ_INDEX.INTX) this.intx = true;
  }

  lowerIntx(): void {
    this.intx = false;
  }
}

/** A guest: its memory stays as it is when the device under it is replaced by another. */
export class TestGuest<Device extends DrivenDevice> {
  readonly memory: GuestMemory = createGuestMemory(MEMORY_BYTES);
  readonly context = new VectorContext(this.memory);
  device: Device;
  #nextPage = FIRST_PAGE;

  constructor(device: Device) {
    this.device = device;
  }

  /** Pages of its own; `bytes` of them. */
  allocate(bytes: number): number {
    const page = this.#nextPage;
    this.#nextPage += Math.ceil(bytes / PAGE_SIZE);
    if (this.#nextPage * PAGE_SIZE > MEMORY_BYTES) throw new Error("the test's guest has no memory left");
    return page * PAGE_SIZE;
  }

  /** The memory at an address. */
  at(address: number, bytes: number): Uint8Array {
    const region = this.memory.regions.find(
      ({ firstPage, pages }) => address >= firstPage * PAGE_SIZE && address < (firstPage + pages) * PAGE_SIZE,
    );
    if (region === undefined) throw new RangeError(`the test's guest has no memory at ${address}`);
    const from = address + (region.arenaPage - region.firstPage) * PAGE_SIZE;
    return this.memory.arenas[region.arena].u8.subarray(from, from + bytes);
  }

  view(address: number, bytes: number): DataView {
    const memory = this.at(address, bytes);
    return new DataView(memory.buffer, memory.byteOffset, bytes);
  }

  register(offset: number, region = BAR0): number {
    const bytes = new Uint8Array(4);
    this.device.regionRead(region, offset, bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  }

  setRegister(offset: number, value: number, region = BAR0): void {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, value, true);
    this.device.regionWrite(region, offset, bytes);
  }

  config(offset: number, bytes: number): number {
    const data = Buffer.alloc(bytes);
    this.device.regionRead(CONFIG, offset, data);
    return data.readUIntLE(0, bytes);
  }

  setConfig(offset: number, value: number, bytes: number): void {
    const data = Buffer.alloc(bytes);
    data.writeUIntLE(value, 0, bytes);
    this.device.regionWrite(CONFIG, offset, data);
  }

  /** Lets the device do DMA. */
  enableBusMaster(): void {
    this.setConfig(PCI_COMMAND, MEMORY_AND_MASTER, 2);
  }
}
