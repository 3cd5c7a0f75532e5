import { DirtmapError } from "../errors.js";
import { hex } from "../memory/address.js";
import { type ConfigSpace, type ConfigWrite, PORT_CONFIG_BYTES, readPhysical } from "./config-space.js";
import type { PciAddress } from "./pci-address.js";
import type { Qemu } from "./qmp/qemu.js";

/*
 * What QEMU itself keeps of a vfio-user device and does not migrate: where its BARs are, whether it may be reached and do DMA,
 * which interrupts it uses, and the MSI-X table, which lies in QEMU and which the device's server never sees.
 *
 * Reading the configuration space answers mostly with the server's bits, and the writes go to both. So after the server was
 * given its state, what is read says nothing about QEMU's own part: that is written whether or not it differs.
 */

/** Offsets in the header and in capabilities, and their bits (linux/pci_regs.h). */
const ID = 0x00;
const COMMAND = 0x04;
const COMMAND_MEMORY = 0x2;
const COMMAND_MASTER = 0x4;
const COMMAND_BITS = 0xffff;
const STATUS_CAP_LIST = 0x10_0000;
const BARS = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24];
const BAR_IO = 0x1;
const BAR_64 = 0x4;
const ROM = 0x30;
const CAPABILITIES = 0x34;
const INTERRUPT_LINE = 0x3c;
const INTERRUPT_PIN_SHIFT = 8;
const CAP = { MSI: 0x05, EXP: 0x10, MSIX: 0x11 } as const;
const MSI_ENABLE = 0x1_0000;
const MSI_64 = 0x80_0000;
const MSI_MASKS = 0x100_0000;
const MSIX_ENABLE = 0x8000_0000;
const MSIX_ENTRY_DWORDS = 4;

const OFFSETS = Array.from({ length: PORT_CONFIG_BYTES / 4 }, (_, i) => i * 4);

/** More than a capability list has: one that goes round in a circle ends here. */
const MAX_CAPABILITIES = 48;

/** The state of a device's PCI function. */
export interface PciState {
  /** The configuration space by dwords, as far as the ports reach. */
  readonly config: readonly number[];
  /** The MSI-X table by dwords; null for a device without one, or whose table can't be reached: its driver does not use it. */
  readonly msixTable: readonly number[] | null;
}

/** A capability's place, by its id. */
type Capabilities = ReadonlyMap<number, number>;

/** The part of QEMU's client that writes the MSI-X table, in the device's name: by DMA to the device's own BAR. */
export interface TableWriter {
  writeClientMemory(address: bigint, data: Uint8Array): Promise<void>;
}

/** Reads a paused machine's device. @throws DirtmapError `NO_FUNCTION` where nothing answers there, `NO_MSIX_TABLE` */
export async function readPciState(qemu: Qemu, space: ConfigSpace, at: PciAddress): Promise<PciState> {
  const config = await space.readAll(at);
  checkPresent(config, at);
  const table = msixTableOf(config);
  if (table !== null) return { config, msixTable: await readPhysical(qemu, table.address, table.dwords) };
  const msix = capabilitiesOf(config).get(CAP.MSIX);
  if (msix !== undefined && (config[msix / 4] & MSIX_ENABLE) !== 0) {
    throw new DirtmapError("the device has MSI-X on, and its table can't be reached: its memory is switched off", {
      code: "NO_MSIX_TABLE",
      remedy: "move the guest when its driver has begun to use the device, or has let it go",
    });
  }
  return { config, msixTable: null };
}

/**
 * Makes a device of a paused machine what `saved` says, by the accesses that a driver makes; interrupts are enabled last. The
 * device's server has its own part of the state by then, so that seldom more is to be written than what QEMU keeps itself.
 * @throws DirtmapError `PCI_STATE_DIFFERS` for another device, or one that does not read back as it was written
 */
export async function restorePciState(
  qemu: Qemu,
  space: ConfigSpace,
  at: PciAddress,
  { saved, server }: { saved: PciState; server: TableWriter },
): Promise<void> {
  const { config, msixTable } = saved;
  const capabilities = capabilitiesOf(config);
  const table = msixTableOf(config);
  const its = (offset: number): ConfigWrite => ({ offset, value: config[offset / 4] });
  const command = config[COMMAND / 4] & COMMAND_BITS;
  const last = interruptWrites(config, capabilities);
  const apart = new Set([COMMAND, ROM, ...BARS, ...last.map(({ offset }) => offset)]);

  /** @param others to be written besides what QEMU keeps. Returns what is read afterwards */
  const write = async (others: readonly number[]): Promise<PciState> => {
    await space.write(at, [
      // After a reset they are 0.
      ...[...BARS, ROM].map(its).filter(({ value }) => value !== 0),
      ...others.map(its),
      // The table is written by DMA, and the device is stopped.
      { offset: COMMAND, value: table === null ? command : command | COMMAND_MASTER },
    ]);
    if (table !== null && msixTable !== null) {
      await server.writeClientMemory(table.address, new Uint8Array(Uint32Array.from(msixTable).buffer));
    }
    // QEMU does one after the other: what is read is what was written before.
    const [, now, read] = await Promise.all([
      space.write(at, [{ offset: COMMAND, value: command }, ...last]),
      space.readAll(at),
      table === null ? null : readPhysical(qemu, table.address, table.dwords),
    ]);
    checkPresent(now, at);
    checkSameDevice(config, now, capabilities);
    return { config: now, msixTable: read };
  };

  let now = await write([]);
  const others = OFFSETS.filter(
    (offset) => !apart.has(offset) && isState(offset, capabilities) && config[offset / 4] !== now.config[offset / 4],
  );
  if (others.length > 0) now = await write(others);
  compare(saved, now, capabilities);
}

/**
 * Has QEMU let go the INTx that it asserts for a device, which has stopped and asserts none: QEMU takes any access to a BAR for the
 * end of the interrupt. It migrates how many devices assert each line of a bus, not which: one that was left would be asserted at
 * the destination for good, and its guest would be flooded until it disables the line.
 */
export async function endIntx(qemu: Qemu, { config }: PciState): Promise<void> {
  const bar = memoryBarAt(config, BARS[0]);
  if (bar !== null) await readPhysical(qemu, bar, 1);
}

/** True for a device whose driver has it use INTx: QEMU does so while neither MSI nor MSI-X is on. */
export function usesIntx({ config }: PciState): boolean {
  if (((config[INTERRUPT_LINE / 4] >>> INTERRUPT_PIN_SHIFT) & 0xff) === 0) return false;
  const capabilities = capabilitiesOf(config);
  const isOn = (id: number, enable: number) => {
    const at = capabilities.get(id);
    return at !== undefined && (config[at / 4] & enable) !== 0;
  };
  return !isOn(CAP.MSI, MSI_ENABLE) && !isOn(CAP.MSIX, MSIX_ENABLE);
}

/** Where the MSI-X table lies in the guest's physical memory; null where there is none, or it can't be reached there. */
function msixTableOf(config: readonly number[]): { readonly address: bigint; readonly dwords: number } | null {
  const at = capabilitiesOf(config).get(CAP.MSIX);
  if (at === undefined) return null;
  const vectors = ((config[at / 4] >>> 16) & 0x7ff) + 1;
  const place = config[at / 4 + 1];
  const base = memoryBarAt(config, BARS[place & 0x7]);
  return base === null ? null : { address: base + BigInt((place & ~0x7) >>> 0), dwords: vectors * MSIX_ENTRY_DWORDS };
}

/** The address in a BAR of memory that the driver has enabled; null for another, or one that has none. */
function memoryBarAt(config: readonly number[], bar: number): bigint | null {
  if ((config[COMMAND / 4] & COMMAND_MEMORY) === 0) return null;
  const low = config[bar / 4];
  const high = (low & BAR_64) === 0 ? 0 : config[bar / 4 + 1];
  const base = (BigInt(high) << 32n) | BigInt((low & ~0xf) >>> 0);
  return base === 0n || (low & BAR_IO) !== 0 ? null : base;
}

function capabilitiesOf(config: readonly number[]): Capabilities {
  const found = new Map<number, number>();
  if ((config[COMMAND / 4] & STATUS_CAP_LIST) === 0) return found;
  let at = config[CAPABILITIES / 4] & 0xfc;
  for (let i = 0; i < MAX_CAPABILITIES && at >= 0x40; i++) {
    const id = config[at / 4] & 0xff;
    if (!found.has(id)) found.set(id, at);
    at = (config[at / 4] >>> 8) & 0xfc;
  }
  return found;
}

/** What switches interrupts on: addresses and data of MSI first, then the control registers. */
function interruptWrites(config: readonly number[], capabilities: Capabilities): ConfigWrite[] {
  const writes: ConfigWrite[] = [];
  const add = (offset: number) => writes.push({ offset, value: config[offset / 4] });
  const msi = capabilities.get(CAP.MSI);
  if (msi !== undefined) {
    const control = config[msi / 4];
    const bytes = ((control & MSI_64) === 0 ? 12 : 16) + ((control & MSI_MASKS) === 0 ? 0 : 8);
    for (let offset = msi + 4; offset < msi + bytes; offset += 4) add(offset);
    add(msi);
  }
  const msix = capabilities.get(CAP.MSIX);
  if (msix !== undefined) add(msix);
  return writes;
}

/** Dwords that are state which moves: no identity, and no status that tells of the link, or that is cleared by writing ones. */
function isState(offset: number, capabilities: Capabilities): boolean {
  return offset > COMMAND && maskOf(offset, capabilities) !== 0;
}

/** The bits of a dword that have to be the same at the destination. */
function maskOf(offset: number, capabilities: Capabilities): number {
  const express = capabilities.get(CAP.EXP);
  if (offset === COMMAND) return COMMAND_BITS;
  if (offset === INTERRUPT_LINE) return 0xffff;
  if (express === undefined) return 0xffff_ffff;
  // Device, link and slot status, of the first and the second half of the capability.
  const isStatus = [0x08, 0x10, 0x18, 0x28, 0x30].some((status) => offset === express + status);
  return isStatus ? 0xffff : 0xffff_ffff;
}

/** @throws DirtmapError `NO_FUNCTION` */
function checkPresent(config: readonly number[], { bus, slot, function: its }: PciAddress): void {
  if (config[ID] !== 0xffff_ffff) return;
  throw new DirtmapError(`no PCI function answers at ${bus}:${slot}.${its}`, {
    code: "NO_FUNCTION",
    remedy: "see whether the guest has the device, and its server still runs",
  });
}

/** @throws DirtmapError `PCI_STATE_DIFFERS` */
function checkSameDevice(saved: readonly number[], found: readonly number[], capabilities: Capabilities): void {
  const places = [...capabilities].join(" ");
  if (saved[ID] === found[ID] && saved[2] === found[2] && places === [...capabilitiesOf(found)].join(" ")) return;
  throw differs(
    `it is ${hex(found[ID])} of class ${hex(found[2])}, the source's ${hex(saved[ID])} of ${hex(saved[2])}`,
  );
}

function compare(saved: PciState, now: PciState, capabilities: Capabilities): void {
  for (const offset of OFFSETS) {
    const mask = maskOf(offset, capabilities);
    const [was, is] = [saved, now].map(({ config }) => (config[offset / 4] & mask) >>> 0);
    if (was !== is) throw differs(`its configuration space has ${hex(is)} at ${hex(offset)} instead of ${hex(was)}`);
  }
  const entry = (saved.msixTable ?? []).findIndex((dword, i) => now.msixTable?.[i] !== dword);
  if (entry >= 0)
    throw differs(`entry ${Math.floor(entry / MSIX_ENTRY_DWORDS)} of its MSI-X table is not what was written`);
}

function differs(what: string): DirtmapError {
  return new DirtmapError(`the PCI state of the destination's device is not the source's: ${what}`, {
    code: "PCI_STATE_DIFFERS",
    remedy: "serve the same model in the same version on both sides, to QEMUs of the same version",
  });
}
