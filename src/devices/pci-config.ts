import { badState } from "./records.js";

/*
 * The configuration space of a PCI Express function, as its driver sees it through a VMM: which bits are there, and which
 * of them can be written. The VMM places BARs and keeps the interrupt's message address; a model needs neither.
 */

/** PCI Express: 4 KiB, of which models use the part that PCI has. */
export const PCI_CONFIG_BYTES = 4096;

/** Offsets of the header (PCI Local Bus 3.0, 6.1), named as in linux/pci_regs.h. */
const PCI = {
  COMMAND: 0x04,
  STATUS: 0x06,
  CLASS_REVISION: 0x08,
  BASE_ADDRESS_0: 0x10,
  BASE_ADDRESS_2: 0x18,
  SUBSYSTEM_VENDOR_ID: 0x2c,
  SUBSYSTEM_ID: 0x2e,
  CAPABILITY_LIST: 0x34,
  INTERRUPT_LINE: 0x3c,
  INTERRUPT_PIN: 0x3d,
} as const;

const COMMAND_MEMORY = 0x2;
const COMMAND_MASTER = 0x4;
const COMMAND_PARITY = 0x40;
const COMMAND_SERR = 0x100;
const COMMAND_INTX_DISABLE = 0x400;
const STATUS_INTERRUPT = 0x08;
const STATUS_CAP_LIST = 0x10;
const INTA = 1;
/** A BAR of memory with a 64-bit address, not prefetchable. */
const BAR_MEMORY_64 = 0x4;

/** Where the capabilities are, in this order; that of MSI or MSI-X, if there is one, is the second. */
const PM = 0x40;
const MSI = 0x50;
const EXP = 0x60;

const CAP_ID_PM = 0x01;
const CAP_ID_MSI = 0x05;
const CAP_ID_EXP = 0x10;
const CAP_ID_MSIX = 0x11;

/** Power Management 1.2: version 3, no state but D0 and D3hot, which keeps the function's registers. */
const PM_CAPABILITIES = 0x3;
const PM_STATE_MASK = 0x3;
const PM_NO_SOFT_RESET = 0x8;

const MSIX_WRITEABLE = 0xc000;

/** MSI with a 64-bit address, without masks (PCI Local Bus 3.0, 6.8.1): Enable and Multiple Message Enable are writeable. */
const MSI_64 = 0x80;
const MSI_WRITEABLE = 0x71;

/** PCI Express 3.0, 7.8: an endpoint's capability of version 2. */
const EXP_ENDPOINT_V2 = 0x0002;
/** Role-based error reporting, function level reset. */
const EXP_DEVCAP = 0x1000_8000;
const EXP_DEVCTL = EXP + 0x08;
const EXP_DEVCTL_WRITEABLE = 0x7fff;
const EXP_DEVCTL_FLR = 0x8000;
/** 8 GT/s, 4 lanes: what a VMM may show of a link that there isn't. */
const EXP_LINK = 0x43;

/** What a function interrupts its driver with. */
export type PciInterrupts =
  | { readonly kind: "msix"; readonly vectors: number; readonly table: number; readonly pending: number }
  /** A power of two up to 32. */
  | { readonly kind: "msi"; readonly vectors: number }
  | { readonly kind: "intx" };

/** What a function is. */
export interface PciFunction {
  readonly vendor: number;
  readonly device: number;
  readonly revision: number;
  /** Base class, subclass and interface. */
  readonly classCode: number;
  /** Of BAR 0, which holds the MSI-X table and pending bits, too, if there are any; a power of two. */
  readonly bar0Bytes: number;
  /** Of BAR 2, a power of two; absent: there is none. */
  readonly bar2Bytes?: number;
  readonly interrupts: PciInterrupts;
}

/**
 * The configuration space of a function with memory behind BAR 0 and perhaps BAR 2, one kind of interrupts, power management and
 * function level reset.
 */
export class PciConfig {
  readonly #powerOn = new Uint8Array(PCI_CONFIG_BYTES);
  readonly #bytes = new Uint8Array(PCI_CONFIG_BYTES);
  /** A bit is set where a write changes it. */
  readonly #writeable = new Uint8Array(PCI_CONFIG_BYTES);
  /** The function asserts INTx, as its status register tells. */
  intxAsserted = false;

  constructor({ vendor, device, revision, classCode, bar0Bytes, bar2Bytes, interrupts }: PciFunction) {
    const u16 = (at: number, value: number, writeable = 0): void => {
      new DataView(this.#powerOn.buffer).setUint16(at, value, true);
      new DataView(this.#writeable.buffer).setUint16(at, writeable, true);
    };
    const u32 = (at: number, value: number, writeable = 0): void => {
      u16(at, value & 0xffff, writeable & 0xffff);
      u16(at + 2, value >>> 16, writeable >>> 16);
    };
    u16(0, vendor);
    u16(2, device);
    u16(PCI.COMMAND, 0, COMMAND_MEMORY | COMMAND_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE);
    u16(PCI.STATUS, STATUS_CAP_LIST);
    u32(PCI.CLASS_REVISION, (classCode << 8) | revision);
    const bar = (at: number, bytes: number): void => {
      u32(at, BAR_MEMORY_64, ~(bytes - 1));
      u32(at + 4, 0, ~0);
    };
    bar(PCI.BASE_ADDRESS_0, bar0Bytes);
    if (bar2Bytes !== undefined) bar(PCI.BASE_ADDRESS_2, bar2Bytes);
    u16(PCI.SUBSYSTEM_VENDOR_ID, vendor);
    u16(PCI.SUBSYSTEM_ID, device);
    u16(PCI.CAPABILITY_LIST, PM);
    u16(PCI.INTERRUPT_LINE, 0, 0xff);
    if (interrupts.kind === "intx") this.#powerOn[PCI.INTERRUPT_PIN] = INTA;

    u16(PM, CAP_ID_PM | ((interrupts.kind === "intx" ? EXP : MSI) << 8));
    u16(PM + 2, PM_CAPABILITIES);
    u16(PM + 4, PM_NO_SOFT_RESET, PM_STATE_MASK);

    if (interrupts.kind === "msix") {
      u16(MSI, CAP_ID_MSIX | (EXP << 8));
      u16(MSI + 2, interrupts.vectors - 1, MSIX_WRITEABLE);
      u32(MSI + 4, interrupts.table);
      u32(MSI + 8, interrupts.pending);
    } else if (interrupts.kind === "msi") {
      u16(MSI, CAP_ID_MSI | (EXP << 8));
      u16(MSI + 2, MSI_64 | (Math.log2(interrupts.vectors) << 1), MSI_WRITEABLE);
      u32(MSI + 4, 0, ~3);
      u32(MSI + 8, 0, ~0);
      u16(MSI + 12, 0, 0xffff);
    }

    u16(EXP, CAP_ID_EXP);
    u16(EXP + 2, EXP_ENDPOINT_V2);
    u32(EXP + 4, EXP_DEVCAP);
    u16(EXP_DEVCTL, 0, EXP_DEVCTL_WRITEABLE);
    u32(EXP + 0x0c, EXP_LINK);
    u16(EXP + 0x12, EXP_LINK);

    this.reset();
  }

  /** The driver lets it do DMA, and it is not asleep. */
  get busMaster(): boolean {
    return (this.#bytes[PCI.COMMAND] & COMMAND_MASTER) !== 0 && (this.#bytes[PM + 4] & PM_STATE_MASK) === 0;
  }

  /** The driver lets it assert INTx. */
  get intxEnabled(): boolean {
    return ((this.#bytes[PCI.COMMAND + 1] << 8) & COMMAND_INTX_DISABLE) === 0;
  }

  read(offset: number, target: Uint8Array): void {
    target.set(this.#bytes.subarray(offset, offset + target.byteLength));
    const status = PCI.STATUS - offset;
    if (this.intxAsserted && status >= 0 && status < target.byteLength) target[status] |= STATUS_INTERRUPT;
  }

  /** @returns true where the write asks for a function level reset, which the caller does */
  write(offset: number, source: Uint8Array): boolean {
    let resets = false;
    for (let i = 0; i < source.byteLength; i++) {
      const at = offset + i;
      const mask = this.#writeable[at];
      this.#bytes[at] = (this.#bytes[at] & ~mask) | (source[i] & mask);
      if (at === EXP_DEVCTL + 1 && (source[i] & (EXP_DEVCTL_FLR >> 8)) !== 0) resets = true;
    }
    return resets;
  }

  reset(): void {
    this.#bytes.set(this.#powerOn);
  }

  save(): Uint8Array {
    return this.#bytes.slice();
  }

  /** @throws DirtmapError `BAD_DEVICE_STATE` for the space of another function */
  load(bytes: Uint8Array): void {
    for (let at = 0; at < PCI_CONFIG_BYTES; at++) {
      if (((bytes[at] ^ this.#powerOn[at]) & ~this.#writeable[at]) !== 0) {
        throw badState(`its configuration space differs at 0x${at.toString(16)}, where nothing can be written`);
      }
    }
    this.#bytes.set(bytes);
  }
}
