import { ADDRESS_LOW, type PageTableFormat, READ, registers, WRITE } from "./format.js";

/*
 * Intel VT-d second-stage page tables ("Intel Virtualization Technology for Directed I/O", D51397), in scalable mode:
 * accessed and dirty flags exist there only, and are enabled in the PASID-table entry (SSADE). A DMA without a PASID
 * uses the entry of RID_PASID, which is the one kept here for each device.
 */

// Section 9.8, "Second-Stage Paging Entries".
const R = 1 << 0;
const W = 1 << 1;
/** Page size: the entry of a 2 MiB or 1 GiB page. */
const PS = 1 << 7;
const A = 1 << 8;
const D = 1 << 9;

// Section 9.6, "Scalable-Mode PASID-Table Entry": bits of the first quadword.
const PE_P = 1 << 0;
/** AW = 2: 48 bits, four levels. */
const PE_AW_48 = 2 << 2;
/** PGTT = 2: second-stage translation only. */
const PE_PGTT_SECOND_STAGE = 2 << 6;
const PE_SSADE = 1 << 9;

// Section 11.4.2, "Capability Register".
/** ND = 6: 16-bit domain ids. */
const CAP_ND = 6;
/** SAGAW bit 2: four levels. */
const CAP_SAGAW_48 = 1 << (8 + 2);
/** MGAW = 47: addresses of 48 bits. */
const CAP_MGAW_48 = 47 << 16;
/** SSLPS, bits 34 and 35: pages of 2 MiB and 1 GiB. */
const CAP_SSLPS = 3 << (34 - 32);

// Section 11.4.3, "Extended Capability Register".
/** C: page walks are coherent. */
const ECAP_C = 1 << 0;
const ECAP_QI = 1 << 1;
const ECAP_SMTS = 1 << (43 - 32);
const ECAP_SSADS = 1 << (45 - 32);
const ECAP_SSTS = 1 << (46 - 32);
/** SMPWC: page walks are coherent in scalable mode too. */
const ECAP_SMPWC = 1 << (48 - 32);

export const vtdSs: PageTableFormat = {
  name: "vtd-ss",
  hwType: "intel-vtd",
  leafShifts: [12, 21, 30],
  reserved: [{ first: 0xfee00, last: 0xfeeff }],
  alwaysUpdates: false,
  presentMask: R | W,
  dirtyMask: D,
  dirtyValue: D,
  cleanAnd: ~D,
  cleanOr: 0,
  sizedMask: 0,
  addressHigh: 0xfffff,

  tableEntry(table) {
    return { low: (table & ADDRESS_LOW) | R | W, high: 0 };
  },

  leafBits({ shift, readable, writeable }) {
    return { low: (readable ? R : 0) | (writeable ? W : 0) | (shift > 12 ? PS : 0), high: 0 };
  },

  isLeaf(low, level) {
    return level === 1 || (low & PS) !== 0;
  },

  leafShift(_low, level) {
    return 12 + 9 * (level - 1);
  },

  permissions(low) {
    return (low & R ? READ : 0) | (low & W ? WRITE : 0);
  },

  recorded(low, write) {
    return write ? low | A | D : low | A;
  },

  deviceEntryBytes: 64,

  loadDeviceEntry(words, at) {
    const low = Atomics.load(words, at);
    return { root: (low & PE_P) === 0 ? 0 : (low & ADDRESS_LOW) >>> 0, updates: (low & PE_SSADE) !== 0 };
  },

  storeRoot(words, at, root) {
    const ssade = Atomics.load(words, at) & PE_SSADE;
    const entry = root === 0 ? 0 : (root & ADDRESS_LOW) | PE_P | PE_AW_48 | PE_PGTT_SECOND_STAGE;
    Atomics.store(words, at, entry | ssade);
  },

  storeUpdates(words, at, on) {
    if (on) Atomics.or(words, at, PE_SSADE);
    else Atomics.and(words, at, ~PE_SSADE);
  },

  hwInfoData(dirtyTracking) {
    // struct iommu_hw_info_vtd: flags, reserved, cap_reg, ecap_reg.
    const ecapHigh = ECAP_SMTS | ECAP_SSTS | ECAP_SMPWC | (dirtyTracking ? ECAP_SSADS : 0);
    return registers(0, 0, CAP_ND | CAP_SAGAW_48 | CAP_MGAW_48, CAP_SSLPS, ECAP_C | ECAP_QI, ecapHigh);
  },
};
