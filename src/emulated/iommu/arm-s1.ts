import { ADDRESS_LOW, type PageTableFormat, READ, registers, WRITE } from "./format.js";

/*
 * Arm SMMUv3 stage 1 page tables: VMSAv8-64 with a 4 KiB granule ("Arm Architecture Reference Manual", DDI 0487), and
 * hardware translation table update, HTTU ("Arm System Memory Management Unit Architecture Specification, version 3",
 * IHI 0070, section 3.13).
 *
 * There is no dirty bit. A page whose DBM bit is set may be written; AP[2] says whether it was: 1 writeable-clean,
 * 0 writeable-dirty. Hardware clears AP[2] at the first write. Without DBM, AP[2] = 1 is truly read-only. As on Linux,
 * writeable pages are dirty from birth, and are cleaned when tracking starts; and HA and HD are on for as long as a
 * domain made for dirty tracking is attached, since without HD a clean page would fault.
 */

// DDI 0487, section D8.3, "Translation table descriptor formats".
const VALID = 1 << 0;
/** Bit 1: a table, or at the lowest level a page; a block has it clear. */
const TABLE_OR_PAGE = 1 << 1;
/** AttrIndx = 1: the MAIR entry that Linux makes normal, write-back memory. */
const ATTR_INDEX = 1 << 2;
/** AP[1]: accesses by unprivileged transactions, which DMA is. */
const AP_UNPRIVILEGED = 1 << 6;
const AP_READ_ONLY = 1 << 7;
const SH_INNER = 3 << 8;
const AF = 1 << 10;
const NG = 1 << 11;
/** Bit 51, in the high half. */
const DBM = 1 << (51 - 32);
/** PXN and UXN: no execution. */
const XN = 3 << (53 - 32);

// IHI 0070, section 5.4.1, "Context Descriptor": words of its first two doublewords.
/** T0SZ = 16: 48 bits of input address; TG0 = 0: 4 KiB; IR0, OR0, SH0: cacheable, inner-shareable; EPD1. */
const CD_TCR = 16 | (1 << 8) | (1 << 10) | (3 << 12) | (1 << 30);
const CD_V = 1 << 31;
/** IPS = 5: 48 bits of output address. Bits from 32 on. */
const CD_IPS_48 = 5;
const CD_AA64 = 1 << (41 - 32);
const CD_HD = 1 << (42 - 32);
const CD_HA = 1 << (43 - 32);
/** R, A, ASET: faults are recorded and aborted; the ASID is not shared with CPUs. */
const CD_RA_ASET = (1 << (45 - 32)) | (1 << (46 - 32)) | (1 << (47 - 32));
/** Index of TTB0's low half. */
const CD_TTB0 = 2;

// IHI 0070, section 6.3.1 and following, SMMU_IDR0 to SMMU_IDR5.
const IDR0_S1P = 1 << 1;
/** TTF = 2: AArch64 tables. */
const IDR0_TTF_AARCH64 = 2 << 2;
const IDR0_COHACC = 1 << 4;
/** HTTU = 2: hardware updates access flag and dirty state. */
const IDR0_HTTU_DIRTY = 2 << 6;
const IDR0_ASID16 = 1 << 12;
/** TTENDIAN = 2: little-endian. */
const IDR0_TTENDIAN_LE = 2 << 21;
/** SIDSIZE = 16 bits. */
const IDR1_SIDSIZE = 16;
/** OAS = 5: 48 bits; GRAN4K. */
const IDR5_OAS_48 = 5;
const IDR5_GRAN4K = 1 << 4;
/** Minor version of the architecture: SMMUv3.1. */
const AIDR_3_1 = 1;

export const armS1: PageTableFormat = {
  name: "arm-s1",
  hwType: "arm-smmuv3",
  leafShifts: [12, 21, 30],
  // Where Linux puts the window for MSIs, which an SMMU translates: MSI_IOVA_BASE and MSI_IOVA_LENGTH.
  reserved: [{ first: 0x8000, last: 0x80ff }],
  alwaysUpdates: true,
  presentMask: VALID,
  // DBM isn't tested, being in the high half: in a domain made for tracking all that is writeable has it, so AP[2] = 0
  // says it all, and no other domain is ever read.
  dirtyMask: VALID | AP_READ_ONLY,
  dirtyValue: VALID,
  cleanAnd: -1,
  cleanOr: AP_READ_ONLY,
  sizedMask: 0,
  addressHigh: 0xffff,

  tableEntry(table) {
    return { low: (table & ADDRESS_LOW) | VALID | TABLE_OR_PAGE, high: 0 };
  },

  // Stage 1 knows no page that can be written but not read.
  leafBits({ shift, writeable, dirtyTracking }) {
    const type = VALID | (shift === 12 ? TABLE_OR_PAGE : 0);
    const low = type | ATTR_INDEX | AP_UNPRIVILEGED | SH_INNER | AF | NG | (writeable ? 0 : AP_READ_ONLY);
    return { low, high: XN | (writeable && dirtyTracking ? DBM : 0) };
  },

  isLeaf(low, level) {
    return level === 1 || (low & TABLE_OR_PAGE) === 0;
  },

  leafShift(_low, level) {
    return 12 + 9 * (level - 1);
  },

  permissions(low, high, updates) {
    const writeable = (low & AP_READ_ONLY) === 0 || (updates && (high & DBM) !== 0);
    return writeable ? READ | WRITE : READ;
  },

  recorded(low, write) {
    return write ? low & ~AP_READ_ONLY : low;
  },

  deviceEntryBytes: 64,

  loadDeviceEntry(words, at) {
    if ((Atomics.load(words, at) & CD_V) === 0) return { root: 0, updates: false };
    // The root first: who switches to a domain that needs HD sets HD before the root.
    const root = (Atomics.load(words, at + CD_TTB0) & ADDRESS_LOW) >>> 0;
    return { root, updates: (Atomics.load(words, at + 1) & CD_HD) !== 0 };
  },

  storeRoot(words, at, root) {
    if (root === 0) {
      Atomics.store(words, at, 0);
      return;
    }
    Atomics.or(words, at + 1, CD_IPS_48 | CD_AA64 | CD_RA_ASET);
    Atomics.store(words, at + CD_TTB0, root & ADDRESS_LOW);
    Atomics.store(words, at, CD_TCR | CD_V);
  },

  storeUpdates(words, at, on) {
    if (on) Atomics.or(words, at + 1, CD_HA | CD_HD);
    else Atomics.and(words, at + 1, ~(CD_HA | CD_HD));
  },

  hwInfoData(dirtyTracking) {
    // struct iommu_hw_info_arm_smmuv3: flags, reserved, idr[6], iidr, aidr.
    const idr0 = IDR0_S1P | IDR0_TTF_AARCH64 | IDR0_COHACC | IDR0_ASID16 | IDR0_TTENDIAN_LE;
    const httu = dirtyTracking ? IDR0_HTTU_DIRTY : 0;
    return registers(0, 0, idr0 | httu, IDR1_SIDSIZE, 0, 0, 0, IDR5_OAS_48 | IDR5_GRAN4K, 0, AIDR_3_1);
  },
};
