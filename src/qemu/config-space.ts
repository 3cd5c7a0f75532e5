import { z } from "zod";
import { DirtmapError } from "../errors.js";
import { safeText } from "../safe-text.js";
import { settled } from "../settled.js";
import type { GuestDevice } from "./guest.js";
import { type PciAddress, pciAddressesOf } from "./pci-address.js";
import { isRefusal, type Qemu } from "./qmp/qemu.js";

/*
 * The configuration space of a guest's PCI functions, as the guest itself reaches it on a PC, with commands of QEMU's monitor for
 * people: `i` and `o` on the ports 0xcf8 and 0xcfc (PCI Local Bus 3.0, 3.2.2.3.2), and `xp` on ECAM, where a machine has that. They
 * work in every QEMU, and do what the guest's own accesses do.
 *
 * What holds: reading by ECAM changes nothing in the guest, so that it may happen while QEMU saves the guest's state. The ports
 * have an address register, which is part of that state.
 */

const ADDRESS_PORT = "0xcf8";
const DATA_PORT = "0xcfc";
const ENABLE = 0x8000_0000;

/** Bytes that the ports reach. */
export const PORT_CONFIG_BYTES = 256;

/** QEMU's host bridge of a Q35, its properties that say where ECAM is (hw/pci-host/q35.c), and its PCI id (82G33). */
const Q35 = "/machine/q35";
const Q35_ID = 0x29c0_8086;
/** Of ECAM, for each bus. */
const BUS_BYTES = 2 ** 20;

/** PCI Express's way to configuration space: 4 KiB of memory for each function. */
interface EcamWindow {
  readonly base: bigint;
  readonly buses: number;
}

/** What is written at a multiple of 4. */
export interface ConfigWrite {
  readonly offset: number;
  readonly value: number;
}

/**
 * A paused machine's configuration space: with any vCPU that runs, its accesses and these would meet. The guest may have been
 * stopped between its own two accesses to the ports: disposing puts its address back.
 */
export class ConfigSpace implements AsyncDisposable {
  /** Where the devices answer, in their order. */
  readonly addresses: readonly PciAddress[];
  readonly #qemu: Qemu;
  readonly #window: EcamWindow | null;
  /** The guest's own address, from this object's first access to the ports on. */
  #latch: Promise<number> | undefined;

  private constructor(qemu: Qemu, addresses: readonly PciAddress[], window: EcamWindow | null) {
    this.#qemu = qemu;
    this.addresses = addresses;
    this.#window = window;
  }

  /** @throws as {@link pciAddressesOf} does */
  static async open(qemu: Qemu, devices: readonly GuestDevice[]): Promise<ConfigSpace> {
    const [window, addresses] = await Promise.all([findWindow(qemu), pciAddressesOf(qemu, devices)]);
    return new ConfigSpace(qemu, addresses, window);
  }

  /** True where reading changes nothing in the guest, not even for a moment. */
  get readsAside(): boolean {
    return this.#window !== null;
  }

  /** A function's whole space, as far as the ports reach, by dwords: at once by the window, where there is one. */
  async readAll(at: PciAddress): Promise<number[]> {
    const { bus, slot, function: its } = at;
    if (this.#window !== null && bus < this.#window.buses) {
      const place = this.#window.base + BigInt((bus << 20) | (slot << 15) | (its << 12));
      return await readPhysical(this.#qemu, place, PORT_CONFIG_BYTES / 4);
    }
    // All accesses are sent at once: QEMU does them in order.
    this.#keepLatch();
    const steps = Array.from(
      { length: PORT_CONFIG_BYTES / 4 },
      (_, i) => [this.#select(at, i * 4), this.#in(DATA_PORT)] as const,
    );
    const [values] = await Promise.all([
      Promise.all(steps.map(([, value]) => value)),
      Promise.all(steps.map(([select]) => select)),
    ]);
    return values;
  }

  /** In this order, sent before it returns: what is sent to QEMU afterwards happens afterwards. */
  async write(at: PciAddress, writes: readonly ConfigWrite[]): Promise<void> {
    this.#keepLatch();
    await Promise.all(writes.flatMap(({ offset, value }) => [this.#select(at, offset), this.#out(DATA_PORT, value)]));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // What could not be read has been told by the accesses after it, and nothing was changed.
    const latch = await this.#latch?.catch(() => undefined);
    this.#latch = undefined;
    if (latch !== undefined) await this.#out(ADDRESS_PORT, latch);
  }

  #keepLatch(): void {
    this.#latch ??= this.#in(ADDRESS_PORT);
    this.#latch.catch(() => {});
  }

  #select({ bus, slot, function: its }: PciAddress, offset: number): Promise<void> {
    return this.#out(ADDRESS_PORT, (ENABLE | (bus << 16) | (slot << 11) | (its << 8) | offset) >>> 0);
  }

  async #in(port: string): Promise<number> {
    const answer = await this.#qemu.human(`i /w ${port}`);
    const value = /^portl\[0x[0-9a-f]+\] = 0x([0-9a-f]{1,8})\s*$/.exec(answer);
    if (value === null) throw this.#misunderstood("i", answer);
    return Number.parseInt(value[1], 16);
  }

  async #out(port: string, value: number): Promise<void> {
    const answer = await this.#qemu.human(`o /w ${port} 0x${value.toString(16)}`);
    if (answer.trim() !== "") throw this.#misunderstood("o", answer);
  }

  #misunderstood(command: string, answer: string): Error {
    return new DirtmapError(
      `QEMU at ${this.#qemu.name} answers the monitor's '${command}' with '${safeText(answer, 200)}'`,
      {
        code: "QMP_PROTOCOL",
        remedy: "use a QEMU for a PC: x86_64, with the monitor's commands `i` and `o`",
      },
    );
  }
}

/** ECAM's place in a Q35, once its firmware has switched it on; null for another machine, and before. */
async function findWindow(qemu: Qemu): Promise<EcamWindow | null> {
  const size = z.int().min(0).max(Number.MAX_SAFE_INTEGER);
  try {
    const [base, bytes] = await settled([
      qemu.qomGet(Q35, "MCFG", z.number().min(0)),
      qemu.qomGet(Q35, "mcfg_size", size),
    ]);
    // The property's value before that is where it usually is, and behind 2^53 where it has been switched off.
    if (!Number.isSafeInteger(base)) return null;
    const window = { base: BigInt(base), buses: Math.floor(bytes / BUS_BYTES) };
    const [id] = await readPhysical(qemu, window.base, 1).catch(() => [null]);
    return id === Q35_ID ? window : null;
  } catch (error) {
    if (isRefusal(error)) return null;
    throw error;
  }
}

/** Dwords of the guest's physical memory, registers included, by the monitor's `xp`. */
export async function readPhysical(qemu: Qemu, address: bigint, dwords: number): Promise<number[]> {
  const answer = await qemu.human(`xp /${dwords}xw 0x${address.toString(16)}`);
  const values = answer
    .split("\n")
    .flatMap((line) => line.slice(line.indexOf(":") + 1).match(/0x[0-9a-f]{8}/g) ?? [])
    .map((word) => Number.parseInt(word, 16));
  if (values.length === dwords) return values;
  throw new DirtmapError(`QEMU at ${qemu.name} does not read ${dwords} dwords at 0x${address.toString(16)}`, {
    code: "QMP_PROTOCOL",
    attempted: `read the guest's memory: '${safeText(answer, 200)}'`,
  });
}
