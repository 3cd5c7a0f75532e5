import { PAGE_SIZE } from "../../memory/address.js";
import { SQE_BYTES } from "./spec.js";

/** Dwords of a submission queue entry. */
const DWORDS = SQE_BYTES / 4;

/**
 * Submission queue entries (4.2), read in place: a page of them, of which one is looked at. Nothing is allocated for a
 * command.
 */
export class Commands {
  readonly bytes = new Uint8Array(PAGE_SIZE);
  readonly #dwords = new Uint32Array(this.bytes.buffer);
  #at = 0;

  /** Looks at the entry with this index. */
  select(index: number): void {
    this.#at = index * DWORDS;
  }

  get opcode(): number {
    return this.#dwords[this.#at] & 0xff;
  }

  /** FUSE and PSDT: zero for a command that is not fused, whose data is described by PRPs. */
  get flags(): number {
    return (this.#dwords[this.#at] >>> 8) & 0xff;
  }

  get cid(): number {
    return this.#dwords[this.#at] >>> 16;
  }

  get nsid(): number {
    return this.#dwords[this.#at + 1];
  }

  /** A command dword: 6 to 9 are PRP 1 and PRP 2, low half first; 10 to 15 are the command's own. */
  dword(index: number): number {
    return this.#dwords[this.#at + index];
  }
}
