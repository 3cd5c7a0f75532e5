import { PAGE_SIZE } from "../memory/address.js";
import { badState } from "./records.js";

/** A page in a saved state: its number (u32) and its contents. */
export const SAVED_PAGE_BYTES = 4 + PAGE_SIZE;

/**
 * Memory is searched for pages in use a chunk at a time: this is done while the machine stands still, most of the memory
 * is zero, and one comparison of many pages costs little more than one of a page.
 */
const CHUNK_PAGES = 64;
const ZEROES = new Uint8Array(CHUNK_PAGES * PAGE_SIZE);
const ZERO_PAGE = ZEROES.subarray(0, PAGE_SIZE);

/**
 * The memory on a device: video memory, or what it has for peers to write to. Its state has only pages that were ever
 * found to be in use, in the order in which they were found: so the state of a large memory is small while little of it
 * is used, and grows at its end.
 */
export class DeviceMemory {
  readonly bytes: Uint8Array;
  readonly #used: number[] = [];
  readonly #isUsed: Uint8Array;

  /** @param bytes whole pages; peers write to it at any time before the device is P2P-quiescent */
  constructor(bytes: Uint8Array) {
    if (bytes.byteLength % PAGE_SIZE !== 0) throw new RangeError(`device memory of ${bytes.byteLength} bytes`);
    this.bytes = bytes;
    this.#isUsed = new Uint8Array(bytes.byteLength / PAGE_SIZE);
  }

  save(): Uint8Array {
    this.#findUsed();
    const data = new Uint8Array(this.#used.length * SAVED_PAGE_BYTES);
    const view = new DataView(data.buffer);
    this.#used.forEach((page, index) => {
      const at = index * SAVED_PAGE_BYTES;
      view.setUint32(at, page, true);
      data.set(this.#page(page), at + 4);
    });
    return data;
  }

  /** @throws DirtmapError `BAD_DEVICE_STATE`; then nothing has changed */
  load(data: Uint8Array): void {
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    const pages = new Set<number>();
    if (data.byteLength % SAVED_PAGE_BYTES !== 0) throw badState("its memory is malformed");
    for (let at = 0; at < data.byteLength; at += SAVED_PAGE_BYTES) {
      const page = view.getUint32(at, true);
      if (page >= this.#isUsed.length || pages.has(page)) throw badState(`page ${page} of its memory is not possible`);
      pages.add(page);
    }
    this.clear();
    [...pages].forEach((page, index) => {
      const from = index * SAVED_PAGE_BYTES + 4;
      this.#page(page).set(data.subarray(from, from + PAGE_SIZE));
      this.#use(page);
    });
  }

  /** All zero, as after power-on. */
  clear(): void {
    this.#findUsed();
    for (const page of this.#used) this.#page(page).fill(0);
    this.#used.length = 0;
    this.#isUsed.fill(0);
  }

  #findUsed(): void {
    for (let chunk = 0; chunk < this.#isUsed.length; chunk += CHUNK_PAGES) {
      const end = Math.min(chunk + CHUNK_PAGES, this.#isUsed.length);
      const bytes = this.bytes.subarray(chunk * PAGE_SIZE, end * PAGE_SIZE);
      if (Buffer.compare(bytes, ZEROES.subarray(0, bytes.byteLength)) === 0) continue;
      for (let page = chunk; page < end; page++) {
        if (this.#isUsed[page] === 0 && Buffer.compare(this.#page(page), ZERO_PAGE) !== 0) this.#use(page);
      }
    }
  }

  #use(page: number): void {
    this.#isUsed[page] = 1;
    this.#used.push(page);
  }

  #page(page: number): Uint8Array {
    return this.bytes.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
  }
}
