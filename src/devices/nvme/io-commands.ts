import type { DmaPort } from "../model.js";
import type { Commands } from "./command.js";
import type { Disk } from "./disk.js";
import type { Features } from "./features.js";
import { MAX_TRANSFER_BYTES } from "./limits.js";
import type { Logs } from "./logs.js";
import { FUA, IO, NSID, NSID_ALL, STATUS } from "./spec.js";
import type { Transfer } from "./transfer.js";

const ZEROES = new Uint8Array(MAX_TRANSFER_BYTES);

/** The NVM command set (6), done at once. */
export class IoCommands {
  readonly #disk: Disk;
  readonly #transfer: Transfer;
  readonly #features: Features;
  readonly #logs: Logs;

  constructor(parts: { disk: Disk; transfer: Transfer; features: Features; logs: Logs }) {
    this.#disk = parts.disk;
    this.#transfer = parts.transfer;
    this.#features = parts.features;
    this.#logs = parts.logs;
  }

  /** Does the command that `commands` looks at; returns its status. */
  execute(commands: Commands, dma: DmaPort): number {
    const { opcode } = commands;
    if (opcode === IO.FLUSH) return this.#flush(commands);
    if (opcode !== IO.READ && opcode !== IO.WRITE && opcode !== IO.WRITE_ZEROES) return STATUS.INVALID_OPCODE;
    if (commands.flags !== 0) return STATUS.INVALID_FIELD;
    if (commands.nsid !== NSID) return STATUS.INVALID_NAMESPACE;
    // Exact up to 2^53, far behind the end of any disk.
    const block = commands.dword(11) * 2 ** 32 + commands.dword(10);
    const blocks = (commands.dword(12) & 0xffff) + 1;
    if (opcode !== IO.WRITE_ZEROES && blocks * this.#disk.blockBytes > MAX_TRANSFER_BYTES) return STATUS.INVALID_FIELD;
    if (block + blocks > this.#disk.blocks) return STATUS.LBA_OUT_OF_RANGE;
    if (opcode === IO.READ) return this.#read(commands, block, blocks, dma);
    const status = opcode === IO.WRITE ? this.#write(commands, block, blocks, dma) : this.#writeZeroes(block, blocks);
    if (status !== STATUS.SUCCESS) return status;
    const durable = (commands.dword(12) & FUA) === 0 && this.#features.writeCache;
    return durable || this.#disk.flush() ? STATUS.SUCCESS : this.#mediaError(STATUS.WRITE_FAULT);
  }

  #flush(commands: Commands): number {
    if (commands.flags !== 0) return STATUS.INVALID_FIELD;
    if (commands.nsid !== NSID && commands.nsid !== NSID_ALL) return STATUS.INVALID_NAMESPACE;
    return this.#disk.flush() ? STATUS.SUCCESS : this.#mediaError(STATUS.WRITE_FAULT);
  }

  #read(commands: Commands, block: number, blocks: number, dma: DmaPort): number {
    const bytes = blocks * this.#disk.blockBytes;
    const status = this.#transfer.describe(commands, bytes, dma);
    if (status !== STATUS.SUCCESS) return status;
    if (!this.#disk.read(block, this.#transfer.buffer, bytes)) return this.#mediaError(STATUS.UNRECOVERED_READ_ERROR);
    this.#logs.counts.reads++;
    this.#logs.counts.bytesRead += bytes;
    return this.#transfer.toGuest(bytes, dma);
  }

  #write(commands: Commands, block: number, blocks: number, dma: DmaPort): number {
    const bytes = blocks * this.#disk.blockBytes;
    const status = this.#transfer.describe(commands, bytes, dma) || this.#transfer.fromGuest(bytes, dma);
    if (status !== STATUS.SUCCESS) return status;
    if (!this.#disk.write(block, this.#transfer.buffer, bytes)) return this.#mediaError(STATUS.WRITE_FAULT);
    this.#logs.counts.writes++;
    this.#logs.counts.bytesWritten += bytes;
    return STATUS.SUCCESS;
  }

  #writeZeroes(block: number, blocks: number): number {
    const { blockBytes } = this.#disk;
    const most = MAX_TRANSFER_BYTES / blockBytes;
    for (let done = 0; done < blocks; done += most) {
      const bytes = Math.min(most, blocks - done) * blockBytes;
      if (!this.#disk.write(block + done, ZEROES, bytes)) return this.#mediaError(STATUS.WRITE_FAULT);
    }
    this.#logs.counts.writes++;
    return STATUS.SUCCESS;
  }

  #mediaError(status: number): number {
    this.#logs.counts.mediaErrors++;
    return status;
  }
}

/** The first block of a Read, Write or Write Zeroes, exactly, for the log. */
export function lbaOf(commands: Commands): bigint {
  return (BigInt(commands.dword(11)) << 32n) | BigInt(commands.dword(10));
}
