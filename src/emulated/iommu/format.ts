import type { IommuFormatName } from "../../host/description.js";
import type { HwInfo } from "../../host/host.js";
import type { PageNumber } from "../../memory/address.js";

/*
 * What a page-table format is. All three formats are radix trees of four levels, 512 entries of 8 bytes in each 4 KiB
 * table, which translate 48 bits of IOVA; level 1 is the lowest. They differ in what the bits of an entry mean, in their
 * leaf sizes, and in the protocol by which hardware records that a page was written. To add one, write its file beside
 * amd-v1.ts and name it in formats.ts and in IOMMU_FORMATS of host/description.ts.
 *
 * An entry is two 32-bit words, low half first, and everything that can change while a device may look at it is in the
 * low half: present, dirty, permissions that change. A table's address fits the low half as well, since tables lie in an
 * arena of at most 4 GiB; only a leaf's physical address needs the high half (see ../physical-memory.ts).
 */

export const TABLE_BYTES = 4096;
export const ENTRIES = 512;
export const LEVELS = 4;
/** IOVAs are below 2^48. */
export const LAST_PAGE: PageNumber = 2 ** 36 - 1;

/** Bits 31:12 of an entry: the address, in all formats. */
export const ADDRESS_LOW = 0xfffff000 | 0;

/** Permissions of a leaf. */
export const READ = 1;
export const WRITE = 2;

/** What an entry says besides its address, for {@link PageTableFormat.leafBits}. */
export interface LeafKind {
  readonly shift: number;
  readonly readable: boolean;
  readonly writeable: boolean;
  /** The domain was made for dirty tracking. */
  readonly dirtyTracking: boolean;
}

/** A pair of words, for entries that are built once and stored often. */
export interface Entry {
  readonly low: number;
  readonly high: number;
}

/** What a device's entry in the device table says, as the device side reads it. */
export interface DeviceEntry {
  /** Byte offset of the root table in the arena; 0: DMA is blocked. */
  readonly root: number;
  /** The walker records accesses and writes in the page table. */
  readonly updates: boolean;
}

export interface PageTableFormat {
  readonly name: IommuFormatName;
  readonly hwType: HwInfo["type"];
  /** log2 of the leaf sizes, ascending. */
  readonly leafShifts: readonly number[];
  /** IOVAs that are never translated. */
  readonly reserved: readonly { readonly first: PageNumber; readonly last: PageNumber }[];
  /**
   * True: a domain made for dirty tracking has its devices record writes as long as they are attached, whether or not
   * tracking is on. False: starting and stopping switches it.
   */
  readonly alwaysUpdates: boolean;

  /** An entry is present if its low half has any of these bits. */
  readonly presentMask: number;
  /** A leaf is dirty if (low & dirtyMask) === dirtyValue. No empty entry is. */
  readonly dirtyMask: number;
  readonly dirtyValue: number;
  /** A leaf is cleaned by AND with cleanAnd (-1: none needed) and OR with cleanOr (0: none needed). */
  readonly cleanAnd: number;
  readonly cleanOr: number;
  /** Bits of the low half that are set only in a leaf made of several entries of the lowest table; 0: there are none. */
  readonly sizedMask: number;
  /** The bits of the high half that hold the physical address from bit 32 on. */
  readonly addressHigh: number;

  /** The entry at `level` that points to the table at byte offset `table`. */
  tableEntry(table: number, level: number): Entry;
  /** A leaf's bits, to be combined by OR with its address, which is aligned to its size. */
  leafBits(kind: LeafKind): Entry;
  /** Of a present entry. */
  isLeaf(low: number, level: number): boolean;
  /** log2 of the size of the leaf that a present leaf entry is, or is a part of. */
  leafShift(low: number, level: number): number;
  /** {@link READ} and {@link WRITE} of a present leaf; `updates` as the device's entry says. */
  permissions(low: number, high: number, updates: boolean): number;
  /** The low half of a leaf after the walker has recorded an access that is permitted. */
  recorded(low: number, write: boolean): number;

  /** Bytes of a device's entry in the device table. */
  readonly deviceEntryBytes: number;
  /** The entry at word `at` of `words`, as the device side reads it. */
  loadDeviceEntry(words: Int32Array, at: number): DeviceEntry;
  /** Points the entry to a root table, in one step for a device that reads it meanwhile; 0 blocks DMA. */
  storeRoot(words: Int32Array, at: number, root: number): void;
  /** Switches recording on or off. */
  storeUpdates(words: Int32Array, at: number, on: boolean): void;

  /** The data of IOMMU_GET_HW_INFO: the registers in which the hardware tells what it can do. */
  hwInfoData(dirtyTracking: boolean): Uint8Array;
}

/** The level whose tables hold leaves of 2^shift bytes. */
export function levelOf(shift: number): number {
  return Math.floor((shift - 12) / 9) + 1;
}

/** Entries that a leaf of 2^shift bytes takes: more than one where it isn't as large as an entry's reach. */
export function replicasOf(shift: number): number {
  return 1 << ((shift - 12) % 9);
}

/** By level, of which the lowest is 1: 512^(level - 1); and the whole tree's reach as that of an entry at level 5. */
const REACHES = [0, 1, 2 ** 9, 2 ** 18, 2 ** 27, 2 ** 36];

/** Pages that one entry at `level` (1 to 5) reaches. */
export function pagesPerEntry(level: number): number {
  return REACHES[level];
}

/** Index of a page's entry in its table at `level`, for all pages up to {@link LAST_PAGE}. */
export function indexOf(page: PageNumber, level: number): number {
  // Below level 4 the bits that count are among the low 27, which a shift keeps also of a number beyond 2^32.
  return level === LEVELS ? Math.floor(page / REACHES[LEVELS]) : (page >>> (9 * (level - 1))) & (ENTRIES - 1);
}

/** Two 32-bit words per 64-bit register, little-endian, as the uAPI's structures have them. */
export function registers(...words: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(words.length * 4);
  const view = new DataView(bytes.buffer);
  words.forEach((word, index) => {
    view.setUint32(index * 4, word >>> 0, true);
  });
  return bytes;
}
