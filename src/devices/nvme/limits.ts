import { DOORBELLS } from "./spec.js";

/*
 * What this controller has, where the specification leaves it the choice.
 */

/** I/O queue pairs at most; each completion queue can have a vector of its own, and so can the admin queue. */
export const MAX_IO_QUEUES = 16;
export const VECTORS = MAX_IO_QUEUES + 1;
/** Of MSI: a power of two, and no more than a state has room for. */
export const MSI_VECTORS = 16;

/** Entries of a queue (CAP.MQES is one less). */
export const MAX_QUEUE_ENTRIES = 1024;

/** Identify's MDTS: a command transfers up to 2^MDTS memory pages of 4 KiB. */
export const MDTS = 7;
export const MAX_TRANSFER_BYTES = 4096 << MDTS;

/** Outstanding Asynchronous Event Requests (AERL is one less). */
export const MAX_ASYNC_REQUESTS = 4;

/** Entries of the error log (ELPE is one less). */
export const ERROR_LOG_ENTRIES = 16;

/** BAR 0: registers, doorbells, and pages of their own for what the VMM traps: MSI-X table and pending bits. */
export const BAR0_BYTES = 0x4000;
export const DOORBELLS_END = DOORBELLS + (MAX_IO_QUEUES + 1) * 8;
export const MSIX_TABLE = 0x2000;
export const MSIX_PENDING = 0x3000;
export const MSIX_TABLE_BYTES = VECTORS * 16;
