import { createHash } from "node:crypto";
import { ERROR_LOG_ENTRIES, MAX_ASYNC_REQUESTS, MDTS } from "./limits.js";
import { CNS, CQE_SHIFT, NSID, SQE_SHIFT, VERSION } from "./spec.js";

/*
 * Who the controller and its namespace are (5.15): what a guest knows its disk by. It moves with the device.
 */

/** PCI ids: of a vendor that emulated devices use, which Linux has no quirks for. */
export const PCI_IDS = { vendor: 0x1234, device: 0x4e56, revision: 1 } as const;

export const IDENTIFY_BYTES = 4096;
export const SERIAL_BYTES = 20;
const MODEL_BYTES = 40;
const FIRMWARE_BYTES = 8;
const NQN_BYTES = 256;

const MODEL = "Dirtmap NVMe";
/** Revision of the model, not of the package: a guest's view must not change with an update. */
export const FIRMWARE = "1";

const CONTROLLER_ID = 1;

/** Kelvin: 70 and 100 degrees Celsius. */
export const WARNING_TEMPERATURE = 343;
const CRITICAL_TEMPERATURE = 373;

/** What of it differs between disks. */
export interface DiskIdentity {
  /** Printable ASCII, up to 20 characters. */
  readonly serial: string;
  readonly blocks: number;
  readonly blockBytes: number;
}

/** The data structure for a CNS value, or null for one that there isn't. @param nsid for a list: those above it */
export function identify(cns: number, nsid: number, disk: DiskIdentity): Uint8Array | null {
  switch (cns) {
    case CNS.NAMESPACE:
      return identifyNamespace(disk);
    case CNS.CONTROLLER:
      return identifyController(disk);
    case CNS.ACTIVE_NAMESPACES:
      return identifyNamespaces(nsid);
    case CNS.NAMESPACE_DESCRIPTORS:
      return namespaceDescriptors(disk);
    default:
      return null;
  }
}

/** The identity's UUID, made from the serial number: RFC 9562, version 8. */
function uuidOf(serial: string): Buffer {
  const uuid = createHash("sha256").update(`dirtmap nvme ${serial}`).digest().subarray(0, 16);
  uuid[6] = (uuid[6] & 0x0f) | 0x80;
  uuid[8] = (uuid[8] & 0x3f) | 0x80;
  return uuid;
}

function identifyController({ serial }: DiskIdentity): Uint8Array {
  const data = Buffer.alloc(IDENTIFY_BYTES);
  data.writeUInt16LE(PCI_IDS.vendor, 0); // VID
  data.writeUInt16LE(PCI_IDS.vendor, 2); // SSVID
  padded(data, 4, SERIAL_BYTES, serial); // SN
  padded(data, 24, MODEL_BYTES, MODEL); // MN
  padded(data, 64, FIRMWARE_BYTES, FIRMWARE); // FR
  data[77] = MDTS;
  data.writeUInt16LE(CONTROLLER_ID, 78); // CNTLID
  data.writeUInt32LE(VERSION, 80); // VER
  data[111] = 1; // CNTRLTYPE: an I/O controller
  data[258] = 3; // ACL: 4 Aborts at a time
  data[259] = MAX_ASYNC_REQUESTS - 1; // AERL
  data[260] = (1 << 1) | 1; // FRMW: one firmware slot, which can only be read
  data[261] = 1 << 2; // LPA: Get Log Page takes an offset and a 32-bit length
  data[262] = ERROR_LOG_ENTRIES - 1; // ELPE
  data.writeUInt16LE(WARNING_TEMPERATURE, 266); // WCTEMP
  data.writeUInt16LE(CRITICAL_TEMPERATURE, 268); // CCTEMP
  data[512] = (SQE_SHIFT << 4) | SQE_SHIFT; // SQES: required and largest
  data[513] = (CQE_SHIFT << 4) | CQE_SHIFT; // CQES
  data.writeUInt32LE(NSID, 516); // NN
  data.writeUInt16LE(1 << 3, 520); // ONCS: Write Zeroes
  data[525] = (3 << 1) | 1; // VWC: a volatile write cache; Flush may name all namespaces
  const uuid = uuidOf(serial)
    .toString("hex")
    .replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
  data.write(`nqn.2014-08.org.nvmexpress:uuid:${uuid}`, 768, NQN_BYTES, "ascii"); // SUBNQN
  return data;
}

function identifyNamespace({ blocks, blockBytes }: DiskIdentity): Uint8Array {
  const data = Buffer.alloc(IDENTIFY_BYTES);
  for (const at of [0, 8, 16]) data.writeBigUInt64LE(BigInt(blocks), at); // NSZE, NCAP, NUSE
  // LBAF0, the only format, is in use: no metadata; LBADS
  data[130] = Math.log2(blockBytes);
  return data;
}

function identifyNamespaces(above: number): Uint8Array {
  const data = Buffer.alloc(IDENTIFY_BYTES);
  if (above < NSID) data.writeUInt32LE(NSID, 0);
  return data;
}

function namespaceDescriptors({ serial }: DiskIdentity): Uint8Array {
  const data = Buffer.alloc(IDENTIFY_BYTES);
  data[0] = 3; // NIDT: a UUID
  data[1] = 16; // NIDL
  uuidOf(serial).copy(data, 4);
  return data;
}

/** ASCII strings are padded with spaces (1.6). */
export function padded(data: Buffer, at: number, bytes: number, text: string): void {
  data.write(text.padEnd(bytes), at, bytes, "ascii");
}
