import { PAGE_SIZE } from "../../memory/address.js";
import type { DmaPort } from "../model.js";
import type { Commands } from "./command.js";
import { MAX_TRANSFER_BYTES } from "./limits.js";
import { STATUS } from "./spec.js";

/** Bytes of a PRP entry. */
const ENTRY = 8;
/** A transfer that begins inside a page reaches one page more. */
const MAX_PAGES = MAX_TRANSFER_BYTES / PAGE_SIZE + 1;

/**
 * The data of one command at a time: where in guest memory it is (4.3, Physical Region Page entry and list), and a buffer
 * to move it through. Methods answer a status: success, or what is wrong with the PRPs or the memory that they name.
 */
export class Transfer {
  readonly buffer = new Uint8Array(MAX_TRANSFER_BYTES);
  readonly #pages = new Float64Array(MAX_PAGES);
  readonly #list = new Uint8Array(PAGE_SIZE);
  readonly #listView = new DataView(this.#list.buffer);
  #offset = 0;

  /**
   * Finds the pages of a command's data.
   * @param bytes from 1 to MAX_TRANSFER_BYTES
   */
  describe(commands: Commands, bytes: number, dma: DmaPort): number {
    const low = commands.dword(6);
    this.#pages[0] = pageOf(low, commands.dword(7));
    this.#offset = low % PAGE_SIZE;
    if (this.#offset % 4 !== 0) return STATUS.INVALID_PRP_OFFSET;
    const count = Math.ceil((this.#offset + bytes) / PAGE_SIZE);
    if (count === 1) return STATUS.SUCCESS;
    if (count > 2) return this.#readList(commands.dword(8), commands.dword(9), count, dma);
    if (commands.dword(8) % PAGE_SIZE !== 0) return STATUS.INVALID_PRP_OFFSET;
    this.#pages[1] = pageOf(commands.dword(8), commands.dword(9));
    return STATUS.SUCCESS;
  }

  /** Moves the buffer's first bytes to the guest. */
  toGuest(bytes: number, dma: DmaPort): number {
    let offset = this.#offset;
    for (let at = 0, i = 0; at < bytes; i++) {
      const part = Math.min(PAGE_SIZE - offset, bytes - at);
      if (dma.write(this.#pages[i], offset, this.buffer, at, part) !== null) return STATUS.DATA_TRANSFER_ERROR;
      at += part;
      offset = 0;
    }
    return STATUS.SUCCESS;
  }

  /** Moves the guest's data into the buffer. */
  fromGuest(bytes: number, dma: DmaPort): number {
    let offset = this.#offset;
    for (let at = 0, i = 0; at < bytes; i++) {
      const part = Math.min(PAGE_SIZE - offset, bytes - at);
      if (dma.read(this.#pages[i], offset, this.buffer, at, part) !== null) return STATUS.DATA_TRANSFER_ERROR;
      at += part;
      offset = 0;
    }
    return STATUS.SUCCESS;
  }

  /**
   * PRP 2 points to a list, which may begin inside a page and goes on to that page's end; where it has to be longer, its
   * last entry there points to the page in which it goes on.
   */
  #readList(low: number, high: number, count: number, dma: DmaPort): number {
    let page = pageOf(low, high);
    let offset = low % PAGE_SIZE;
    if (offset % ENTRY !== 0) return STATUS.INVALID_PRP_OFFSET;
    for (let found = 1; found < count; ) {
      const here = (PAGE_SIZE - offset) / ENTRY;
      const wanted = count - found;
      const entries = Math.min(here, wanted);
      if (dma.read(page, offset, this.#list, 0, entries * ENTRY) !== null) return STATUS.DATA_TRANSFER_ERROR;
      const data = wanted > here ? here - 1 : entries;
      for (let i = 0; i < entries; i++) {
        const entryLow = this.#listView.getUint32(i * ENTRY, true);
        if (entryLow % PAGE_SIZE !== 0) return STATUS.INVALID_PRP_OFFSET;
        const entryPage = pageOf(entryLow, this.#listView.getUint32(i * ENTRY + 4, true));
        if (i < data) this.#pages[found++] = entryPage;
        else page = entryPage;
      }
      offset = 0;
    }
    return STATUS.SUCCESS;
  }
}

/** The page of a 64-bit address in two halves. */
export function pageOf(low: number, high: number): number {
  return high * 2 ** 20 + (low >>> 12);
}
