import { PAGE_SIZE } from "../../memory/address.js";
import type { DmaPort } from "../model.js";
import { ALL_FLAGS, CHAIN_STATUS, DOORBELL_BYTES, type descriptor, FLAG, MAX_LENGTH, OPCODE } from "./spec.js";

export type Descriptor = ReturnType<typeof descriptor.decode>;

/** The last address that DMA reaches, plus one. */
const END_OF_BUS = 1n << 64n;

/** What is wrong with a descriptor; SUCCESS: nothing. @param localBytes of BAR 2 */
export function problemOf(given: Descriptor, localBytes: number): number {
  const { opcode, flags, length, source, destination } = given;
  if (opcode !== OPCODE.COPY && opcode !== OPCODE.FILL) return CHAIN_STATUS.BAD_OPCODE;
  const reserved = given.reserved !== 0 || given.reserved2 !== 0;
  const sourceIsLocal = (flags & FLAG.SOURCE_LOCAL) !== 0;
  if ((flags & ~ALL_FLAGS) !== 0 || reserved || (opcode === OPCODE.FILL && sourceIsLocal))
    return CHAIN_STATUS.BAD_FLAGS;
  if (length === 0 || length > MAX_LENGTH) return CHAIN_STATUS.BAD_LENGTH;
  const destinationIsLocal = (flags & FLAG.DESTINATION_LOCAL) !== 0;
  const fits = (start: bigint, isLocal: boolean) =>
    isLocal
      ? start >= BigInt(DOORBELL_BYTES) && start + BigInt(length) <= BigInt(localBytes)
      : start + BigInt(length) <= END_OF_BUS;
  if (!fits(destination, destinationIsLocal)) return CHAIN_STATUS.BAD_ADDRESS;
  if (opcode === OPCODE.FILL) return CHAIN_STATUS.SUCCESS;
  // What a copy onto itself leaves behind would depend on where it is interrupted.
  const distance = source < destination ? destination - source : source - destination;
  const overlaps = sourceIsLocal === destinationIsLocal && distance < BigInt(length);
  return fits(source, sourceIsLocal) && !overlaps ? CHAIN_STATUS.SUCCESS : CHAIN_STATUS.BAD_ADDRESS;
}

/** Moves a descriptor's data a piece at a time; a piece crosses no page of the bus. */
export class Transfer {
  readonly #local: Uint8Array;
  readonly #buffer = new Uint8Array(PAGE_SIZE);

  /** @param local BAR 2 */
  constructor(local: Uint8Array) {
    this.#local = local;
  }

  /**
   * Does the piece that comes after `done` bytes, of a descriptor without a {@link problemOf}.
   * @returns its bytes, from 1; or what went wrong, and nothing was written
   */
  piece(work: Descriptor, done: number, dma: DmaPort): { bytes: number } | { status: number } {
    const source = work.source + BigInt(done);
    const destination = work.destination + BigInt(done);
    const isCopy = work.opcode === OPCODE.COPY;
    const bytes = Math.min(work.length - done, restOfPage(destination), isCopy ? restOfPage(source) : PAGE_SIZE);
    if (!isCopy) this.#pattern(work.source, done, bytes);
    else if ((work.flags & FLAG.SOURCE_LOCAL) !== 0) {
      this.#buffer.set(this.#local.subarray(Number(source), Number(source) + bytes));
    } else if (dma.read(pageNumber(source), offsetIn(source), this.#buffer, 0, bytes) !== null) {
      return { status: CHAIN_STATUS.SOURCE_FAULT };
    }
    if ((work.flags & FLAG.DESTINATION_LOCAL) !== 0) {
      this.#local.set(this.#buffer.subarray(0, bytes), Number(destination));
    } else if (dma.write(pageNumber(destination), offsetIn(destination), this.#buffer, 0, bytes) !== null) {
      return { status: CHAIN_STATUS.DESTINATION_FAULT };
    }
    return { bytes };
  }

  /** Byte i of what is filled is byte i mod 8 of the pattern. */
  #pattern(pattern: bigint, done: number, bytes: number): void {
    for (let i = 0; i < Math.min(8, bytes); i++) {
      this.#buffer[i] = Number((pattern >> BigInt(((done + i) % 8) * 8)) & 0xffn);
    }
    for (let filled = 8; filled < bytes; filled *= 2) {
      this.#buffer.copyWithin(filled, 0, Math.min(filled, bytes - filled));
    }
  }
}

function restOfPage(address: bigint): number {
  return PAGE_SIZE - offsetIn(address);
}

function offsetIn(address: bigint): number {
  return Number(address & 0xfffn);
}

function pageNumber(address: bigint): number {
  return Number(address >> 12n);
}
