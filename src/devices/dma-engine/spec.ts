import { PAGE_SIZE } from "../../memory/address.js";
import { struct } from "../../uapi/struct.js";

/*
 * The programming interface of the DMA engine, as docs/dma-engine.md describes it; section numbers are that document's.
 * Everything is little-endian.
 */

/** What it is (1): ids of a vendor that emulated devices use. */
export const PCI_IDS = { vendor: 0x1234, device: 0x444d, revision: 1 } as const;
/** Base system peripheral, other: as DMA engines say that are no ISA DMA controller (PCI Code and ID Assignment, 1.9). */
export const CLASS_CODE = 0x08_80_00;

/** BAR 0 (2): registers, and pages of their own for the MSI-X table and its pending bits. */
export const BAR0_BYTES = 0x4000;
export const MSIX_TABLE = 0x2000;
export const MSIX_PENDING = 0x3000;
export const VECTORS = 2;
export const MSIX_TABLE_BYTES = VECTORS * 16;
/** Interrupts (6). */
export const VECTOR = { COMPLETION: 0, ERROR: 1 } as const;

/** Registers of BAR 0 (3). */
export const REGISTER = {
  ID: 0x00,
  VERSION: 0x04,
  CAPABILITIES: 0x08,
  LOCAL_BYTES: 0x0c,
  CONTROL: 0x10,
  STATUS: 0x14,
  ERROR: 0x18,
  RING_BASE: 0x20,
  RING_ENTRIES: 0x28,
  RING_HEAD: 0x2c,
  COMPLETION_BASE: 0x30,
  COMPLETION_ENTRIES: 0x38,
  COMPLETION_TAIL: 0x3c,
  CHAINS: 0x40,
  BYTES: 0x48,
} as const;
/** The registers' end: what is behind reads as 0. */
export const REGISTERS_BYTES = 0x50;

export const ID = 0x474e4544; // "DENG"
export const VERSION = 0x0001_0000;

/** A ring has 2 to this many entries. */
export const MAX_RING_ENTRIES = 4096;
/** A descriptor moves 1 to this many bytes. */
export const MAX_LENGTH = 16 * 2 ** 20;
/** CAPABILITIES: log2 of both. */
export const CAPABILITIES = Math.log2(MAX_RING_ENTRIES) | (Math.log2(MAX_LENGTH) << 8);

export const CONTROL = { ENABLE: 1 << 0 } as const;
export const STATUS = { READY: 1 << 0, BUSY: 1 << 1, HALTED: 1 << 2 } as const;

/** Why it has halted (7): ERROR, until it is disabled or reset. */
export const HALT = {
  NONE: 0,
  BAD_CONFIGURATION: 1,
  BAD_DOORBELL: 2,
  RING_FAULT: 3,
  COMPLETION_FAULT: 4,
  INTERNAL_ERROR: 5,
} as const;

/** BAR 2 (4): a page of doorbells, and behind it the local memory, which users may map. */
export const DOORBELL = { RING_TAIL: 0x0, COMPLETION_HEAD: 0x4 } as const;
export const DOORBELL_BYTES = PAGE_SIZE;

/** A descriptor (5.1). */
export const descriptor = struct("descriptor", {
  opcode: "u8",
  flags: "u8",
  reserved: "u16",
  length: "u32",
  /** Of a fill, the pattern's 8 bytes. */
  source: "u64",
  destination: "u64",
  tag: "u32",
  reserved2: "u32",
});
export const OPCODE = { COPY: 1, FILL: 2 } as const;
export const FLAG = {
  /** The next descriptor belongs to the same chain. */
  CHAIN: 1 << 0,
  /** Interrupt when the chain is complete. */
  INTERRUPT: 1 << 1,
  /** Source and destination are offsets in BAR 2 instead of addresses. */
  SOURCE_LOCAL: 1 << 2,
  DESTINATION_LOCAL: 1 << 3,
} as const;
export const ALL_FLAGS = 0xf;

/** A completion record (5.2). */
export const completion = struct("completion", {
  tag: "u32",
  /** Bytes that the descriptor with this tag has written. */
  bytes: "u32",
  /** Descriptors of the chain that were done. */
  descriptors: "u32",
  status: "u16",
  /** 1 and 2 in turn, each time round the ring: memory that is zero holds no record. */
  pass: "u16",
});

/** What became of a chain (5.2). */
export const CHAIN_STATUS = {
  SUCCESS: 0,
  BAD_OPCODE: 1,
  BAD_FLAGS: 2,
  BAD_LENGTH: 3,
  BAD_ADDRESS: 4,
  SOURCE_FAULT: 5,
  DESTINATION_FAULT: 6,
} as const;
