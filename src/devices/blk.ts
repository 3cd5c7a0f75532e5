import { fstatSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { explain, UsageError } from "../errors.js";
import type { DeviceDescription } from "../host/description.js";
import type { ShapeFacts } from "../host/shape.js";
import { openRegularFile } from "../sys/input-file.js";
import { OpenFile } from "../sys/open-file.js";
import { cannotWrite, ELSEWHERE_TEMPORARY } from "../sys/output-file.js";
import { temporaryFolder } from "../sys/temporary-folder.js";
import type { ModelInfo } from "./model.js";
import { FIRST_MODEL_TAG, type ModelWiring, PciModel, pciRegions } from "./pci-model.js";
import { badState, type StateRecord } from "./records.js";
import { PAYLOAD_BYTES, STAMP_BYTES } from "./stamp.js";

type BlkDescription = Extract<DeviceDescription, { model: "blk" }>;

/** A request: as many pages' payloads at once. */
const REQUEST_UNITS = 16;
const REQUEST_BYTES = REQUEST_UNITS * PAYLOAD_BYTES;
/** Requests that are read ahead of the DMA. */
const QUEUE_DEPTH = 8;

/** Size of the disk that is made where the description names no file. */
const MADE_DISK_BYTES = 8 * 2 ** 20;

const POSITION_TAG = FIRST_MODEL_TAG;
const IDLE_MS = 1;
const UNITS_PER_LOOK = 8;

/** @param memoryBytes behind BAR 2; 0: none */
export function blkInfo(memoryBytes: number): ModelInfo {
  return {
    model: "blk",
    stateVersion: 1,
    mdev: false,
    regions: pciRegions(memoryBytes),
    irqs: [{ index: 2, name: "msix", count: 2 }],
    migration: { stopCopy: true, p2p: true, preCopy: false },
    tracking: { tracksInternally: false, tracksThroughContainer: false },
    dmaLogging: null,
    separatesP2p: true,
  };
}

/** A block of the file that was read, and how much of it has gone to guest memory. */
interface Request {
  readonly data: Uint8Array;
  readonly bytes: number;
  /** Where in the file it begins. */
  readonly position: number;
  done: number;
}

/**
 * A disk: reads a file from its beginning to its end, over and over, into guest memory. Reading is asynchronous, ahead
 * of the DMA. Its state is the position in the file up to which data has gone to memory; what was read ahead is read
 * again at the destination.
 */
export class Blk extends PciModel {
  readonly #path: string | undefined;
  readonly #within: string | undefined;
  readonly #seed: number;
  #file: OpenFile | undefined;
  #size = 0;
  /** The next byte of the file that goes to memory. */
  #position = 0;
  /** The next byte of the file that is asked for. */
  #readFrom = 0;
  #ready: Request[] = [];
  #reading = false;
  /** Raised when what is being read is no longer wanted. */
  #generation = 0;
  #requests = 0;

  constructor({ id, load, file, within }: BlkDescription, wiring: ModelWiring) {
    super(blkInfo(wiring.memory?.byteLength ?? 0), { vendor: 0x1af4, device: 0x1042, classCode: 0x010000 }, wiring, {
      id,
      rate: load.rate,
    });
    this.#path = file;
    this.#within = within;
    this.#seed = wiring.seed;
  }

  protected override async open(): Promise<void> {
    const path = this.#path;
    if (path === undefined) {
      this.#file = new OpenFile(makeDisk(this.#seed), "the disk that was made");
      this.#size = MADE_DISK_BYTES;
      return;
    }
    const fd = openDisk(path, this.#within);
    this.#file = new OpenFile(fd, path);
    this.#size = fstatSync(fd).size;
    if (this.#size === 0) {
      throw new UsageError(`the disk's file '${path}' is empty`, {
        code: "BAD_DISK_FILE",
        remedy: "name another file",
      });
    }
  }

  protected override work(budgetMs: number): number {
    const { dma } = this;
    dma.beginSlice();
    const until = performance.now() + budgetMs;
    this.#readAhead();
    for (let units = 1; ; units++) {
      const request = this.#ready[0];
      if (request === undefined) return IDLE_MS;
      const bytes = Math.min(PAYLOAD_BYTES, request.bytes - request.done);
      dma.staging.set(request.data.subarray(request.done, request.done + bytes), STAMP_BYTES);
      if (!dma.write(bytes)) return dma.wait(IDLE_MS);
      // The driver has reset the device meanwhile.
      if (this.#ready[0] !== request) return IDLE_MS;
      request.done += bytes;
      this.#position = (request.position + request.done) % this.#size;
      if (request.done === request.bytes) {
        this.#ready.shift();
        this.#readAhead();
      }
      if (units % UNITS_PER_LOOK === 0 && performance.now() > until) return 0;
    }
  }

  override quiesce(): void {
    super.quiesce();
    this.#dropReads();
  }

  override reset(): void {
    super.reset();
    this.#position = 0;
    this.#dropReads();
  }

  facts(): ShapeFacts {
    return { capacity: { bytes: this.#size } };
  }

  override counters(): Record<string, number> {
    return { ...super.counters(), requests: this.#requests, filePosition: this.#position };
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.#dropReads();
    // Nothing is left to be lost by an error: the file was only read.
    void this.#file?.[Symbol.asyncDispose]().catch(() => undefined);
    this.#file = undefined;
  }

  protected override ownRecords(): StateRecord[] {
    const data = new Uint8Array(8);
    new DataView(data.buffer).setBigUint64(0, BigInt(this.#position), true);
    return [{ tag: POSITION_TAG, optional: false, data }];
  }

  protected override loadOwn(take: (tag: number, bytes: number) => Uint8Array): void {
    const data = take(POSITION_TAG, 8);
    const position = new DataView(data.buffer, data.byteOffset).getBigUint64(0, true);
    if (position >= BigInt(this.#size)) {
      throw badState(`it is at byte ${position} of a disk that here has ${this.#size}`);
    }
    this.#position = Number(position);
    this.#dropReads();
  }

  #dropReads(): void {
    this.#generation++;
    this.#ready = [];
    this.#reading = false;
    this.#readFrom = this.#position;
  }

  #readAhead(): void {
    const file = this.#file;
    if (this.#reading || file === undefined || this.#ready.length >= QUEUE_DEPTH) return;
    this.#reading = true;
    const generation = this.#generation;
    const position = this.#readFrom;
    const data = new Uint8Array(REQUEST_BYTES);
    file.read(data, position).then(
      (bytesRead) => {
        if (generation !== this.#generation) return;
        this.#reading = false;
        if (bytesRead === 0) {
          this.context.fail("the disk's file became shorter while it was read");
          return;
        }
        this.#requests++;
        this.#readFrom = (position + bytesRead) % this.#size;
        this.#ready.push({ data, bytes: bytesRead, position, done: 0 });
        this.#readAhead();
      },
      (error: Error) => {
        if (generation === this.#generation) this.context.fail(`the disk's file can't be read: ${error.message}`);
      },
    );
  }
}

function openDisk(path: string, within: string | undefined): number {
  try {
    return openRegularFile(path, { within });
  } catch (cause) {
    if (cause instanceof UsageError && cause.code === "NOT_GRANTED") throw cause;
    throw new UsageError(`the disk's file '${path}' can't be read: ${explain(cause)}`, {
      code: "BAD_DISK_FILE",
      remedy: "name a readable file, or none to have one made",
      cause,
    });
  }
}

/**
 * A disk of its own, without a name once it is open: it is gone with the device, however that ends.
 * @throws UsageError `CANNOT_WRITE`
 */
function makeDisk(seed: number): number {
  using folder = temporaryFolder("disk");
  const words = new Uint32Array(MADE_DISK_BYTES / 4);
  // xorshift32: the same disk at the source and at the destination.
  let x = (seed ^ 0x9e3779b9) >>> 0 || 1;
  for (let i = 0; i < words.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = x;
  }
  const path = join(folder.path, "disk.img");
  try {
    writeFileSync(path, words, { flag: "wx", mode: 0o600 });
  } catch (cause) {
    throw cannotWrite(folder.path, cause, ELSEWHERE_TEMPORARY);
  }
  return openRegularFile(path);
}
