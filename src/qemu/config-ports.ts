import { DirtmapError } from "../errors.js";
import { safeText } from "../safe-text.js";
import type { PciAddress } from "./pci-address.js";
import type { Qemu } from "./qmp/qemu.js";

/*
 * The configuration space of a guest's PCI functions, as the guest itself reaches it on a PC: by the ports 0xcf8 and 0xcfc (PCI
 * Local Bus 3.0, 3.2.2.3.2), with the commands `i` and `o` of QEMU's monitor for people. They work in every QEMU, and do
 * what the guest's own accesses do.
 */

const ADDRESS_PORT = "0xcf8";
const DATA_PORT = "0xcfc";
const ENABLE = 0x8000_0000;

/** Bytes that the ports reach. */
export const PORT_CONFIG_BYTES = 256;

/** The host bridge of a Q35 (82G33), and its register that says where ECAM is (Intel 3 Series datasheet, 5.1.16: PCIEXBAR). */
const Q35_ID = 0x29c0_8086;
const PCIEXBAR = 0x60;
const PCIEXBAR_ENABLE = 0x1;
/** By bits 1 and 2; 3 is reserved. */
const PCIEXBAR_SIZES = [
  { buses: 256, mask: 0xf000_0000 },
  { buses: 128, mask: 0xf800_0000 },
  { buses: 64, mask: 0xfc00_0000 },
] as const;

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
 * A paused machine's ports. The guest may have been stopped between its own two accesses: its address is put back at the end.
 */
export class ConfigPorts {
  readonly #qemu: Qemu;
  /** Where configuration space is in memory, too; null: nowhere. */
  #window: EcamWindow | null = null;

  private constructor(qemu: Qemu) {
    this.#qemu = qemu;
  }

  /** @param use with the vCPUs paused: with any that runs, its accesses and these would meet */
  static async with<T>(qemu: Qemu, use: (ports: ConfigPorts) => Promise<T>): Promise<T> {
    const ports = new ConfigPorts(qemu);
    const latch = await ports.#in(ADDRESS_PORT);
    try {
      ports.#window = await ports.#findWindow();
      return await use(ports);
    } finally {
      await ports.#out(ADDRESS_PORT, latch);
    }
  }

  /** A function's whole space, as far as the ports reach, by dwords: at once by the window, where there is one. */
  async readAll(at: PciAddress): Promise<number[]> {
    const { bus, slot, function: its } = at;
    if (this.#window !== null && bus < this.#window.buses) {
      const place = this.#window.base + BigInt((bus << 20) | (slot << 15) | (its << 12));
      return await readPhysical(this.#qemu, place, PORT_CONFIG_BYTES / 4);
    }
    return await this.#read(
      at,
      Array.from({ length: PORT_CONFIG_BYTES / 4 }, (_, i) => i * 4),
    );
  }

  /** Dwords at these offsets. All accesses are sent at once: QEMU does them in order. */
  async #read(at: PciAddress, offsets: readonly number[]): Promise<number[]> {
    const steps = offsets.map((offset) => [this.#select(at, offset), this.#in(DATA_PORT)] as const);
    const [values] = await Promise.all([
      Promise.all(steps.map(([, value]) => value)),
      Promise.all(steps.map(([select]) => select)),
    ]);
    return values;
  }

  async write(at: PciAddress, writes: readonly ConfigWrite[]): Promise<void> {
    await Promise.all(writes.flatMap(({ offset, value }) => [this.#select(at, offset), this.#out(DATA_PORT, value)]));
  }

  /** Of a machine with the host bridge of a Q35, once its firmware has switched the window on. */
  async #findWindow(): Promise<EcamWindow | null> {
    const hostBridge = { bus: 0, slot: 0, function: 0 };
    const [id, low, high] = await this.#read(hostBridge, [0, PCIEXBAR, PCIEXBAR + 4]);
    if (id !== Q35_ID || (low & PCIEXBAR_ENABLE) === 0) return null;
    const size = PCIEXBAR_SIZES[(low >>> 1) & 0x3];
    if (size === undefined) return null;
    return { base: (BigInt(high) << 32n) | BigInt((low & size.mask) >>> 0), buses: size.buses };
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
