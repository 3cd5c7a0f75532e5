import type { Vcpus } from "../../../src/host/host.js";
import {
  createPassthroughMachine,
  type PassthroughMachine,
  type PassthroughMachineOptions,
} from "../../../src/host/passthrough-machine.js";
import { LinuxHost } from "../../../src/linux/host.js";
import { PAGE_SIZE } from "../../../src/memory/address.js";
import type { GuestMemory } from "../../../src/memory/guest-memory.js";
import type { TestDevice } from "./vfio-devices.js";

/** A machine with one mtty, which it calls `serial0`. */
export function machineWith(
  mtty: TestDevice,
  options: Pick<PassthroughMachineOptions, "memory" | "vcpus">,
): Promise<PassthroughMachine> {
  return createPassthroughMachine({
    ...options,
    host: new LinuxHost(),
    devices: [{ id: "serial0", hostId: mtty.name }],
  });
}

/**
 * What a VMM would bring: one vCPU, which writes a page of RAM every few milliseconds, keeps a dirty log of that, and has a
 * register, the number of its writes.
 */
export class WritingVcpu implements Vcpus {
  readonly count = 1;
  /** Its register. */
  writes = 0;
  readonly #memory: GuestMemory;
  readonly #dirty = new Set<number>();
  #logging = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  async pause(): Promise<void> {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  async resume(): Promise<void> {
    this.#timer ??= setInterval(() => this.#write(), 5);
  }

  async saveState(): Promise<Uint8Array> {
    return new Uint8Array(Uint32Array.of(this.writes).buffer);
  }

  async loadState(state: Uint8Array): Promise<void> {
    this.writes = new DataView(state.buffer, state.byteOffset, state.byteLength).getUint32(0, true);
  }

  async startDirtyLog(): Promise<void> {
    this.#dirty.clear();
    this.#logging = true;
  }

  async readAndClearDirtyLog({ firstPage, pages, into }: Parameters<Vcpus["readAndClearDirtyLog"]>[0]): Promise<void> {
    for (const page of this.#dirty) {
      if (page < firstPage || page >= firstPage + pages) continue;
      into.set(page - firstPage);
      this.#dirty.delete(page);
    }
  }

  async stopDirtyLog(): Promise<void> {
    this.#logging = false;
  }

  #write(): void {
    const ram = this.#memory.regions.find(({ name }) => name === "ram-low");
    if (ram === undefined) throw new Error("no RAM");
    const page = (this.writes * 7) % ram.pages;
    const at = ((ram.arenaPage + page) * PAGE_SIZE) / 4;
    this.#memory.arenas[ram.arena].u32[at] = ++this.writes;
    if (this.#logging) this.#dirty.add(ram.firstPage + page);
  }
}
