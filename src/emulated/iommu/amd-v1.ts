import { ADDRESS_LOW, LEVELS, levelOf, type PageTableFormat, READ, registers, WRITE } from "./format.js";

/*
 * AMD IOMMU host page tables ("AMD I/O Virtualization Technology (IOMMU) Specification", 48882), as Linux's AMD v1
 * format makes them.
 *
 * A leaf whose size is an entry's reach has NextLevel 0. Any other power of two has NextLevel 7, its size coded in the
 * address bits below it, and is repeated in as many consecutive entries as it is large: a walker ends at any of these
 * replicas and sets the dirty bit there, so a reader must look at them all.
 */

// Section 2.2.3, "I/O Page Tables for Host Translations": the page table entry.
const PR = 1 << 0;
const A = 1 << 5;
const D = 1 << 6;
const NEXT_LEVEL_SHIFT = 9;
const NEXT_LEVEL_MASK = 7 << NEXT_LEVEL_SHIFT;
/** NextLevel of a leaf that has its size in its address. */
const NEXT_LEVEL_SIZED = 7;
/** Bits 60 to 62, in the high half. */
const FC = 1 << 28;
const IR = 1 << 29;
const IW = 1 << 30;

// Section 2.2.2.1, "Device Table Entry Format": the first of its four quadwords; IR and IW lie as in a page table entry.
const DTE_V = 1 << 0;
const DTE_TV = 1 << 1;
/** HAD: Access and Dirty updates of the host page table. */
const DTE_HAD = 3 << 7;
/** Mode: the depth of the page table. */
const DTE_MODE = LEVELS << 9;
const DTE_ROOT_BITS = DTE_V | DTE_TV | DTE_MODE;

// MMIO offset 0030h, "IOMMU Extended Feature Register".
const EFR_IASUP = 1 << 6;
const EFR_HASUP = 1 << (49 - 32);
const EFR_HDSUP = 1 << (52 - 32);

/** Up to 2 GiB, since an arena's window of physical addresses is 4 GiB. */
const SHIFTS = Array.from({ length: 32 - 12 }, (_, index) => 12 + index);

export const amdV1: PageTableFormat = {
  name: "amd-v1",
  hwType: "amd",
  leafShifts: SHIFTS,
  reserved: [
    // The MSI window of x86, and the range that HyperTransport keeps to itself.
    { first: 0xfee00, last: 0xfeeff },
    { first: 0xfd00000, last: 0xfffffff },
  ],
  alwaysUpdates: false,
  presentMask: PR,
  dirtyMask: PR | D,
  dirtyValue: PR | D,
  cleanAnd: ~D,
  cleanOr: 0,
  sizedMask: NEXT_LEVEL_MASK,
  addressHigh: 0xfffff,

  tableEntry(table, level) {
    return { low: (table & ADDRESS_LOW) | PR | ((level - 1) << NEXT_LEVEL_SHIFT), high: IR | IW };
  },

  leafBits({ shift, readable, writeable }) {
    const high = FC | (readable ? IR : 0) | (writeable ? IW : 0);
    if (shift === 12 + 9 * (levelOf(shift) - 1)) return { low: PR, high };
    // The address bits from 12 on are ones up to, and a zero at, the bit below the size's own.
    const size = (2 ** (shift - 1) - 1) & ADDRESS_LOW;
    return { low: size | PR | (NEXT_LEVEL_SIZED << NEXT_LEVEL_SHIFT), high };
  },

  isLeaf(low) {
    const next = low & NEXT_LEVEL_MASK;
    return next === 0 || next === NEXT_LEVEL_MASK;
  },

  leafShift(low, level) {
    if ((low & NEXT_LEVEL_MASK) === 0) return 12 + 9 * (level - 1);
    const zeros = ~(low >>> 12);
    return 13 + (31 - Math.clz32(zeros & -zeros));
  },

  permissions(_low, high) {
    return (high & IR ? READ : 0) | (high & IW ? WRITE : 0);
  },

  recorded(low, write) {
    return write ? low | A | D : low | A;
  },

  deviceEntryBytes: 32,

  loadDeviceEntry(words, at) {
    const low = Atomics.load(words, at);
    return { root: (low & DTE_TV) === 0 ? 0 : (low & ADDRESS_LOW) >>> 0, updates: (low & DTE_HAD) === DTE_HAD };
  },

  storeRoot(words, at, root) {
    Atomics.store(words, at + 1, IR | IW);
    const had = Atomics.load(words, at) & DTE_HAD;
    // V without TV: the device is known, and all its DMA is aborted.
    Atomics.store(words, at, had | (root === 0 ? DTE_V : (root & ADDRESS_LOW) | DTE_ROOT_BITS));
  },

  storeUpdates(words, at, on) {
    if (on) Atomics.or(words, at, DTE_HAD);
    else Atomics.and(words, at, ~DTE_HAD);
  },

  hwInfoData(dirtyTracking) {
    // struct iommu_hw_info_amd: efr, efr2. HATS (bits 11:10) is 0: tables of up to four levels.
    return registers(EFR_IASUP, dirtyTracking ? EFR_HASUP | EFR_HDSUP : 0, 0, 0);
  },
};
