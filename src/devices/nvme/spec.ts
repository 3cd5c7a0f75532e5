/*
 * Numbers of the NVM Express Base Specification, revision 1.4c; section numbers are its own.
 */

/** Controller registers in BAR 0 (3.1). */
export const REGISTER = {
  CAP: 0x00,
  VS: 0x08,
  INTMS: 0x0c,
  INTMC: 0x10,
  CC: 0x14,
  CSTS: 0x1c,
  NSSR: 0x20,
  AQA: 0x24,
  ASQ: 0x28,
  ACQ: 0x30,
} as const;

/** Of the registers that there are; what lies behind, up to the doorbells, reads as 0. */
export const REGISTERS_BYTES = 0x40;

/** Where the doorbells begin; CAP.DSTRD is 0: 4 bytes each, a queue's tail and then its head. */
export const DOORBELLS = 0x1000;

/** VS: 1.4.0. */
export const VERSION = 0x0001_0400;

/** CC (3.1.5). */
export const CC = {
  EN: 1 << 0,
  CSS: 7 << 4,
  MPS: 15 << 7,
  AMS: 7 << 11,
  SHN: 3 << 14,
  /** Log2 of the entry sizes. */
  IOSQES_SHIFT: 16,
  IOCQES_SHIFT: 20,
  WRITEABLE: 0x00ff_fff1,
} as const;

/** CSTS (3.1.6). */
export const CSTS = {
  RDY: 1 << 0,
  CFS: 1 << 1,
  SHST: 3 << 2,
  SHST_COMPLETE: 2 << 2,
  /** NVM Subsystem Reset Occurred: written with 1 to clear. */
  NSSRO: 1 << 4,
} as const;

/** What, written to NSSR, resets the subsystem: "NVMe". */
export const NSSR_RESET = 0x4e56_4d65;

export const SQE_SHIFT = 6;
export const SQE_BYTES = 1 << SQE_SHIFT;
export const CQE_SHIFT = 4;
export const CQE_BYTES = 1 << CQE_SHIFT;

/** Admin commands (5). */
export const ADMIN = {
  DELETE_SQ: 0x00,
  CREATE_SQ: 0x01,
  GET_LOG_PAGE: 0x02,
  DELETE_CQ: 0x04,
  CREATE_CQ: 0x05,
  IDENTIFY: 0x06,
  ABORT: 0x08,
  SET_FEATURES: 0x09,
  GET_FEATURES: 0x0a,
  ASYNC_EVENT_REQUEST: 0x0c,
} as const;

/** NVM commands (6). */
export const IO = { FLUSH: 0x00, WRITE: 0x01, READ: 0x02, WRITE_ZEROES: 0x08 } as const;

/** Force Unit Access, in command dword 12. */
export const FUA = 1 << 30;

/** Identify's data structures (5.15). */
export const CNS = { NAMESPACE: 0, CONTROLLER: 1, ACTIVE_NAMESPACES: 2, NAMESPACE_DESCRIPTORS: 3 } as const;

/** Features (5.21.1). */
export const FEATURE = {
  ARBITRATION: 0x01,
  POWER_MANAGEMENT: 0x02,
  TEMPERATURE_THRESHOLD: 0x04,
  ERROR_RECOVERY: 0x05,
  VOLATILE_WRITE_CACHE: 0x06,
  NUMBER_OF_QUEUES: 0x07,
  INTERRUPT_COALESCING: 0x08,
  INTERRUPT_VECTOR: 0x09,
  WRITE_ATOMICITY: 0x0a,
  ASYNC_EVENT: 0x0b,
} as const;

/** Log pages (5.14.1). */
export const LOG = { ERROR: 0x01, SMART: 0x02, FIRMWARE_SLOT: 0x03 } as const;

/** Do Not Retry, in the status field (4.6.1). */
const DNR = 1 << 14;
const COMMAND_SPECIFIC = 1 << 8;
const MEDIA = 2 << 8;

/** Status field values (4.6.1): status code and type, and whether it is of use to try again. */
export const STATUS = {
  SUCCESS: 0,
  INVALID_OPCODE: 0x01 | DNR,
  INVALID_FIELD: 0x02 | DNR,
  DATA_TRANSFER_ERROR: 0x04,
  ABORT_REQUESTED: 0x07,
  INVALID_NAMESPACE: 0x0b | DNR,
  COMMAND_SEQUENCE_ERROR: 0x0c | DNR,
  INVALID_PRP_OFFSET: 0x13 | DNR,
  LBA_OUT_OF_RANGE: 0x80 | DNR,
  COMPLETION_QUEUE_INVALID: COMMAND_SPECIFIC | 0x00 | DNR,
  INVALID_QUEUE_IDENTIFIER: COMMAND_SPECIFIC | 0x01 | DNR,
  INVALID_QUEUE_SIZE: COMMAND_SPECIFIC | 0x02 | DNR,
  ASYNC_EVENT_LIMIT: COMMAND_SPECIFIC | 0x05 | DNR,
  INVALID_INTERRUPT_VECTOR: COMMAND_SPECIFIC | 0x08 | DNR,
  INVALID_LOG_PAGE: COMMAND_SPECIFIC | 0x09 | DNR,
  INVALID_QUEUE_DELETION: COMMAND_SPECIFIC | 0x0c | DNR,
  FEATURE_NOT_SAVEABLE: COMMAND_SPECIFIC | 0x0d | DNR,
  WRITE_FAULT: MEDIA | 0x80,
  UNRECOVERED_READ_ERROR: MEDIA | 0x81,
} as const;

/** The only namespace. */
export const NSID = 1;
export const NSID_ALL = 0xffff_ffff;
