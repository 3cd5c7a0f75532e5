import { closeSync, readSync, writeSync } from "node:fs";
import type { DmaFault } from "../../devices/model.js";
import { Copier } from "../../memory/copier.js";
import type { DmaChannel } from "./dma-channel.js";

/*
 * The three ways in which a stretch of a client's memory is reached.
 */

/** A way to a stretch of memory. Offsets are bytes from its start; no access leaves it. */
export interface Backing {
  write(offset: number, source: Uint8Array, from: number, bytes: number): DmaFault | null;
  read(offset: number, target: Uint8Array, to: number, bytes: number): DmaFault | null;
}

/** Mapped into this process. */
export class MappedBacking implements Backing {
  readonly #memory: Uint8Array;
  readonly #at: number;
  readonly #copier = new Copier();

  /** @param at of the stretch in `memory` */
  constructor(memory: Uint8Array, at: number) {
    this.#memory = memory;
    this.#at = at;
  }

  write(offset: number, source: Uint8Array, from: number, bytes: number): DmaFault | null {
    this.#copier.copy(this.#memory, this.#at + offset, source, from, bytes);
    return null;
  }

  read(offset: number, target: Uint8Array, to: number, bytes: number): DmaFault | null {
    this.#copier.copy(target, to, this.#memory, this.#at + offset, bytes);
    return null;
  }
}

/** A file that another process may make shorter at any time: by pread and pwrite, where a mapping could kill us. */
export class FileBacking implements Backing {
  readonly #file: SharedFile;
  readonly #at: number;

  /** @param at of the stretch in the file */
  constructor(file: SharedFile, at: number) {
    this.#file = file;
    this.#at = at;
  }

  write(offset: number, source: Uint8Array, from: number, bytes: number): DmaFault | null {
    try {
      return writeSync(this.#file.fd, source, from, bytes, this.#at + offset) === bytes ? null : "not-mapped";
    } catch {
      return "not-mapped";
    }
  }

  read(offset: number, target: Uint8Array, to: number, bytes: number): DmaFault | null {
    try {
      return readSync(this.#file.fd, target, to, bytes, this.#at + offset) === bytes ? null : "not-mapped";
    } catch {
      return "not-mapped";
    }
  }
}

/** A descriptor that several regions use: a client that maps a file in a thousand parts sends it a thousand times. */
export class SharedFile {
  readonly fd: number;
  #users = 0;

  /** Takes the descriptor over; it is closed when the last user lets go. */
  constructor(fd: number) {
    this.fd = fd;
  }

  use(): void {
    this.#users++;
  }

  /** True when it was the last user, and the file is closed. */
  release(): boolean {
    this.#users--;
    if (this.#users > 0) return false;
    closeSync(this.fd);
    return true;
  }
}

/** Not shared with us: the client is asked to read and write it. */
export class MessageBacking implements Backing {
  readonly #channel: DmaChannel;
  readonly #address: bigint;

  /** @param address of the stretch's first byte in the client's DMA address space */
  constructor(channel: DmaChannel, address: bigint) {
    this.#channel = channel;
    this.#address = address;
  }

  write(offset: number, source: Uint8Array, from: number, bytes: number): DmaFault | null {
    return this.#channel.write(this.#address + BigInt(offset), source, from, bytes);
  }

  /** Without waiting for its answer: see {@link DmaChannel.post}. */
  post(offset: number, source: Uint8Array, from: number, bytes: number): DmaFault | null {
    return this.#channel.post(this.#address + BigInt(offset), source, from, bytes);
  }

  read(offset: number, target: Uint8Array, to: number, bytes: number): DmaFault | null {
    return this.#channel.read(this.#address + BigInt(offset), target, to, bytes);
  }
}
