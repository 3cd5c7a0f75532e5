/*
 * The part of a PCI function's configuration space that is what the function is. The rest is state, or the VMM's: what a
 * guest's driver or firmware writes, what hardware counts, where BARs were put.
 */

/** Bytes that PCI itself defines; PCI Express's extended capabilities, of which many count or are a slot's, lie behind them. */
export const PCI_SHAPE_BYTES = 256;
/** Bytes of the header, before the first capability. */
const HEADER_BYTES = 64;

/** Offsets and bits of the header (PCI Local Bus 3.0, 6.1), named as in linux/pci_regs.h. */
const PCI_STATUS = 0x06;
const PCI_STATUS_CAP_LIST = 0x10;
const PCI_HEADER_TYPE = 0x0e;
const PCI_BASE_ADDRESS_0 = 0x10;
const PCI_BASE_ADDRESS_END = 0x28;
const PCI_BASE_ADDRESS_IO = 0x1;
const PCI_BASE_ADDRESS_MEM_TYPE_MASK = 0x6;
const PCI_BASE_ADDRESS_MEM_TYPE_64 = 0x4;
const PCI_CAPABILITY_LIST = 0x34;
const PCI_INTERRUPT_PIN = 0x3d;

/** Per capability, by its id: bytes from its third on of which these bits never change. What is not listed may. */
const FIXED_BITS: Readonly<Record<number, readonly number[]>> = {
  // Power management: its capabilities, and of the control register No_Soft_Reset.
  1: [0xff, 0xff, 0x08],
  // MSI: Multiple Message Capable, 64 bit, Per-vector Masking.
  5: [0x8e, 0x01],
  // Vendor-specific: its length; what it holds only the vendor knows.
  9: [0xff],
  // PCI Express: its version and kind, and Device Capabilities. The link's are the slot's.
  16: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
  // MSI-X: Table Size, and where the table and the pending bits are.
  17: [0xff, 0x07, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
};

/**
 * Which bits of a configuration space are what the function is: a set bit never changes.
 * @param config its first bytes; of these {@link PCI_SHAPE_BYTES} are looked at
 */
export function fixedBits(config: Uint8Array): Uint8Array {
  const bits = new Uint8Array(Math.min(config.byteLength, PCI_SHAPE_BYTES));
  const keep = (at: number, mask = 0xff) => {
    if (at < bits.byteLength) bits[at] |= mask;
  };
  if (bits.byteLength < HEADER_BYTES) return bits;
  // Vendor and device; revision and class; subsystem.
  for (const from of [0x00, 0x08, 0x2c]) for (let at = from; at < from + 4; at++) keep(at);
  keep(PCI_STATUS, PCI_STATUS_CAP_LIST);
  keep(PCI_HEADER_TYPE);
  keep(PCI_INTERRUPT_PIN);
  for (let at = PCI_BASE_ADDRESS_0; at < PCI_BASE_ADDRESS_END; at += 4) {
    const isIo = (config[at] & PCI_BASE_ADDRESS_IO) !== 0;
    keep(at, isIo ? 0x3 : 0xf);
    // The upper half of a 64-bit address is no BAR.
    if (!isIo && (config[at] & PCI_BASE_ADDRESS_MEM_TYPE_MASK) === PCI_BASE_ADDRESS_MEM_TYPE_64) at += 4;
  }
  if ((config[PCI_STATUS] & PCI_STATUS_CAP_LIST) === 0) return bits;
  keep(PCI_CAPABILITY_LIST, 0xfc);
  const seen = new Set<number>();
  for (let at = config[PCI_CAPABILITY_LIST] & 0xfc; isCapability(at, bits) && !seen.has(at); ) {
    seen.add(at);
    keep(at);
    keep(at + 1, 0xfc);
    (FIXED_BITS[config[at]] ?? []).forEach((mask, index) => {
      keep(at + 2 + index, mask);
    });
    at = config[at + 1] & 0xfc;
  }
  return bits;
}

/** A configuration space with all that may change set to zero: equal for two functions that a guest can't tell apart by it. */
export function fixedConfig(config: Uint8Array): Uint8Array {
  return fixedBits(config).map((bits, at) => config[at] & bits);
}

function isCapability(at: number, config: Uint8Array): boolean {
  return at >= HEADER_BYTES && at + 2 <= config.byteLength;
}

/** Fields that have a name; the first byte of each, and how many it has. */
const FIELDS: readonly { readonly at: number; readonly bytes: number; readonly name: string }[] = [
  { at: 0x00, bytes: 2, name: "PCI vendor id" },
  { at: 0x02, bytes: 2, name: "PCI device id" },
  { at: 0x08, bytes: 1, name: "PCI revision" },
  { at: 0x09, bytes: 3, name: "PCI class code" },
  { at: PCI_HEADER_TYPE, bytes: 1, name: "PCI header type" },
  { at: 0x2c, bytes: 2, name: "PCI subsystem vendor id" },
  { at: 0x2e, bytes: 2, name: "PCI subsystem id" },
  { at: PCI_CAPABILITY_LIST, bytes: 1, name: "PCI capability list" },
  { at: PCI_INTERRUPT_PIN, bytes: 1, name: "PCI interrupt pin" },
];

/** The field of a configuration space that the byte at `at` belongs to: its name, where it begins and how long it is. */
export function pciFieldAt(at: number): { readonly at: number; readonly bytes: number; readonly name: string } {
  const field = FIELDS.find((candidate) => candidate.at <= at && at < candidate.at + candidate.bytes);
  return field ?? { at, bytes: 1, name: `PCI configuration byte 0x${at.toString(16)}` };
}
