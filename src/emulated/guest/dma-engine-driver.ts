import { z } from "zod";
import type { PageSpan } from "../../devices/buffers.js";
import {
  CHAIN_STATUS,
  CONTROL,
  completion,
  DOORBELL,
  DOORBELL_BYTES,
  descriptor,
  FLAG,
  OPCODE,
  REGISTER,
  STATUS,
} from "../../devices/dma-engine/spec.js";
import { writerHash } from "../../devices/stamp.js";
import { PAGE_SIZE, type PageNumber } from "../../memory/address.js";
import { Driver, type DriverHost, renderPage } from "./driver.js";

const BAR0 = 0;
const BAR2 = 2;

/** Entries of the ring of descriptors, and of records. */
const ENTRIES = 64;
/** Requests that are open at a time: two descriptors each, so that the ring is never full. */
const DEPTH = 16;

/** A request moves this many pages, from one unit of its buffers through local memory to another. */
const UNIT_PAGES = 4;
const UNIT_BYTES = UNIT_PAGES * PAGE_SIZE;

const index = z.int().min(0);
const u32 = z.int().min(0).max(0xffff_ffff);

const ownSchema = z.strictObject({
  depth: z.int().min(1).max(DEPTH),
  tail: index.max(ENTRIES - 1),
  head: index.max(ENTRIES - 1),
  pass: z.int().min(1).max(2),
  nextTag: u32,
  nextUnit: index,
  open: z.array(z.strictObject({ tag: u32, from: index, to: index, local: index.max(DEPTH - 1) })).max(DEPTH),
});
type Request = z.output<typeof ownSchema>["open"][number];

/**
 * A guest's driver of the DMA engine with a workload: chains that copy a unit of memory to the engine's local memory, and from
 * there to another unit.
 */
export class DmaEngineDriver extends Driver {
  /** Pages of buffers that it takes at least. */
  static readonly minPages = UNIT_PAGES * (2 * DEPTH + 4);
  readonly #units: readonly PageNumber[];
  readonly #ring: PageNumber;
  readonly #records: PageNumber;
  readonly #owner: number;
  readonly #words = new Uint32Array(PAGE_SIZE / 4);
  readonly #bytes = new Uint8Array(this.#words.buffer);
  readonly #open = new Map<number, Request>();
  #depth = DEPTH;
  #tail = 0;
  #head = 0;
  #pass = 1;
  #nextTag = 1;
  #nextUnit = 0;

  /** @param options.buffers of {@link DmaEngineDriver.minPages} pages at least */
  constructor(options: { device: string; rate: number; buffers: readonly PageSpan[] }, host: DriverHost) {
    super({ ...options, unitBytes: UNIT_BYTES }, host);
    this.#owner = writerHash(options.device);
    const units = options.buffers.flatMap(({ firstPage, pages }) =>
      Array.from({ length: Math.floor(pages / UNIT_PAGES) }, (_, i) => firstPage + i * UNIT_PAGES),
    );
    [this.#ring] = units;
    this.#records = this.#ring + 1;
    this.#units = units.slice(1);
  }

  protected override get openRequests(): number {
    return this.#open.size;
  }

  protected override get hasRoom(): boolean {
    return this.#open.size < this.#depth;
  }

  protected override async initialise(): Promise<void> {
    const zero = new Uint8Array(PAGE_SIZE);
    for (const page of [this.#ring, this.#records]) this.host.store(page, 0, zero);
    const half = (page: number, high: boolean) =>
      high ? Math.floor((page * PAGE_SIZE) / 2 ** 32) : (page * PAGE_SIZE) >>> 0;
    const localBytes = await this.host.read(BAR0, REGISTER.LOCAL_BYTES);
    this.#depth = Math.min(DEPTH, Math.floor((localBytes - DOORBELL_BYTES) / UNIT_BYTES));
    await this.host.write(BAR0, [
      { offset: REGISTER.CONTROL, value: 0 },
      { offset: REGISTER.RING_BASE, value: half(this.#ring, false) },
      { offset: REGISTER.RING_BASE + 4, value: half(this.#ring, true) },
      { offset: REGISTER.RING_ENTRIES, value: ENTRIES },
      { offset: REGISTER.COMPLETION_BASE, value: half(this.#records, false) },
      { offset: REGISTER.COMPLETION_BASE + 4, value: half(this.#records, true) },
      { offset: REGISTER.COMPLETION_ENTRIES, value: ENTRIES },
      { offset: REGISTER.CONTROL, value: CONTROL.ENABLE },
    ]);
    await this.until("READY", async () => (await this.host.read(BAR0, REGISTER.STATUS)) === STATUS.READY);
  }

  protected override queue(): boolean {
    const from = this.#freeUnit();
    const to = this.#freeUnit(from);
    const locals = new Set(Array.from(this.#open.values(), ({ local }) => local));
    const local = Array.from({ length: this.#depth }, (_, i) => i).findIndex((i) => !locals.has(i));
    const tag = this.#nextTag;
    this.#nextTag = (tag + 1) >>> 0;
    for (let i = 0; i < UNIT_PAGES; i++) {
      renderPage(this.#words, this.#owner, i, tag);
      this.host.store(this.#units[from] + i, 0, this.#bytes);
    }
    const offset = BigInt(DOORBELL_BYTES + local * UNIT_BYTES);
    const address = (unit: number) => BigInt(this.#units[unit]) * BigInt(PAGE_SIZE);
    const copy = { opcode: OPCODE.COPY, length: UNIT_BYTES, tag };
    this.#submit({ ...copy, source: address(from), destination: offset, flags: FLAG.CHAIN | FLAG.DESTINATION_LOCAL });
    this.#submit({ ...copy, source: offset, destination: address(to), flags: FLAG.SOURCE_LOCAL });
    this.#open.set(tag, { tag, from, to, local });
    return true;
  }

  protected override take(): boolean {
    let taken = false;
    for (;;) {
      const at = this.#head * completion.size;
      const last = this.host.word(this.#records, at + completion.offsetOf("status"));
      if (last >>> 16 !== this.#pass) return taken;
      taken = true;
      this.#head = (this.#head + 1) % ENTRIES;
      if (this.#head === 0) this.#pass = 3 - this.#pass;
      this.#complete(this.host.word(this.#records, at + completion.offsetOf("tag")), last & 0xffff);
    }
  }

  protected override doorbells() {
    return {
      region: BAR2,
      writes: [
        { offset: DOORBELL.COMPLETION_HEAD, value: this.#head },
        { offset: DOORBELL.RING_TAIL, value: this.#tail },
      ],
    };
  }

  protected override executed({ chains }: Record<string, number>): number | undefined {
    return chains;
  }

  protected override saveOwn(): z.output<typeof ownSchema> {
    return {
      depth: this.#depth,
      tail: this.#tail,
      head: this.#head,
      pass: this.#pass,
      nextTag: this.#nextTag,
      nextUnit: this.#nextUnit,
      open: [...this.#open.values()],
    };
  }

  protected override loadOwn(own: unknown): void {
    const state = ownSchema.parse(own);
    if (state.open.some(({ from, to }) => Math.max(from, to) >= this.#units.length)) {
      throw new RangeError(`${this.device}: a request outside of its buffers`);
    }
    this.#depth = state.depth;
    this.#tail = state.tail;
    this.#head = state.head;
    this.#pass = state.pass;
    this.#nextTag = state.nextTag;
    this.#nextUnit = state.nextUnit % this.#units.length;
    this.#open.clear();
    for (const request of state.open) this.#open.set(request.tag, request);
  }

  /** The next unit in turn that no open request uses, and that is not `besides`: there are enough. */
  #freeUnit(besides?: number): number {
    const used = new Set([...this.#open.values()].flatMap(({ from, to }) => [from, to]));
    if (besides !== undefined) used.add(besides);
    do this.#nextUnit = (this.#nextUnit + 1) % this.#units.length;
    while (used.has(this.#nextUnit));
    return this.#nextUnit;
  }

  #complete(tag: number, status: number): void {
    const request = this.#open.get(tag);
    if (!this.#open.delete(tag) || request === undefined) this.completed("doubled");
    else if (status !== CHAIN_STATUS.SUCCESS) this.completed("failed");
    else this.completed(this.#arrived(request) ? "done" : "wrong");
  }

  #arrived({ tag, to }: Request): boolean {
    for (let i = 0; i < UNIT_PAGES; i++) {
      renderPage(this.#words, this.#owner, i, tag);
      if (Buffer.compare(this.host.page(this.#units[to] + i), this.#bytes) !== 0) return false;
    }
    return true;
  }

  #submit(fields: Parameters<typeof descriptor.encode>[0]): void {
    this.host.store(this.#ring, this.#tail * descriptor.size, descriptor.encode(fields));
    this.#tail = (this.#tail + 1) % ENTRIES;
  }
}
