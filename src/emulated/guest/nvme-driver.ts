import { z } from "zod";
import { BufferRing, type PageSpan } from "../../devices/buffers.js";
import { ADMIN, CC, CNS, CQE_BYTES, CSTS, DOORBELLS, IO, NSID, REGISTER, SQE_BYTES } from "../../devices/nvme/spec.js";
import { writerHash } from "../../devices/stamp.js";
import { PAGE_SIZE, type PageNumber } from "../../memory/address.js";
import { Driver, type DriverHost, renderPage } from "./driver.js";

const BAR0 = 0;

/** Entries of each queue: submission queues fill a page. */
const ENTRIES = PAGE_SIZE / SQE_BYTES;
/** Requests that are open at a time. */
const DEPTH = 32;

/** A request moves a page: the disk is used as places of a page each, up to this many, so that they are soon all known. */
const MAX_PLACES = 256;

/** One request in this many writes to the disk; the others read. */
const WRITE_EVERY = 4;

/** Pages that the driver needs for itself, of its buffers. */
const OWN = { adminSq: 0, adminCq: 1, sq: 2, cq: 3, data: 4 } as const;
const OWN_PAGES = 5;

const u16 = z.int().min(0).max(0xffff);
const u32 = z.int().min(0).max(0xffff_ffff);

const ownSchema = z.strictObject({
  tail: u16,
  head: u16,
  phase: z.int().min(0).max(1),
  nextCid: u16,
  nextBuffer: z.int().min(0),
  random: u32,
  blocksPerPlace: z.int().min(1).max(8),
  /** Per place, how often it was written; 0: nobody knows what is there. None before the driver has started. */
  versions: z.array(u32).max(MAX_PLACES),
  open: z
    .array(
      z.strictObject({
        cid: u16,
        place: z.int().min(0),
        buffer: z.int().min(0),
        /** What is written; of a read, what must be found: 0 may be anything. */
        version: u32,
        write: z.boolean(),
      }),
    )
    .max(DEPTH),
});
type Request = z.output<typeof ownSchema>["open"][number];

/** A guest's NVMe driver with a workload: random reads and writes of a page each, whose contents are known. */
export class NvmeDriver extends Driver {
  /** Pages of buffers that it takes at least: a data buffer for each request, and one more. */
  static readonly minPages = OWN_PAGES + DEPTH + 1;
  readonly #buffers: BufferRing;
  readonly #owner: number;
  readonly #words = new Uint32Array(PAGE_SIZE / 4);
  readonly #bytes = new Uint8Array(this.#words.buffer);
  readonly #open = new Map<number, Request>();
  readonly #busyPlaces = new Set<number>();
  #versions: number[] = [];
  #blocksPerPlace = 1;
  #tail = 0;
  #head = 0;
  #phase = 1;
  #nextCid = 0;
  #nextBuffer = 0;
  #random = 1;

  /** @param options.buffers of {@link NvmeDriver.minPages} pages at least */
  constructor(options: { device: string; rate: number; buffers: readonly PageSpan[] }, host: DriverHost) {
    super({ ...options, unitBytes: PAGE_SIZE }, host);
    this.#buffers = new BufferRing(options.buffers);
    this.#owner = writerHash(options.device);
  }

  protected override get openRequests(): number {
    return this.#open.size;
  }

  protected override get hasRoom(): boolean {
    return this.#open.size < DEPTH;
  }

  protected override async initialise(): Promise<void> {
    const zero = new Uint8Array(PAGE_SIZE);
    for (const page of [OWN.adminSq, OWN.adminCq, OWN.sq, OWN.cq, OWN.data]) this.host.store(this.#page(page), 0, zero);
    const low = (page: number) => (this.#page(page) * PAGE_SIZE) >>> 0;
    const high = (page: number) => Math.floor((this.#page(page) * PAGE_SIZE) / 2 ** 32);
    await this.host.write(BAR0, [
      { offset: REGISTER.CC, value: 0 },
      { offset: REGISTER.AQA, value: ((ENTRIES - 1) << 16) | (ENTRIES - 1) },
      { offset: REGISTER.ASQ, value: low(OWN.adminSq) },
      { offset: REGISTER.ASQ + 4, value: high(OWN.adminSq) },
      { offset: REGISTER.ACQ, value: low(OWN.adminCq) },
      { offset: REGISTER.ACQ + 4, value: high(OWN.adminCq) },
      { offset: REGISTER.CC, value: CC.EN | (6 << CC.IOSQES_SHIFT) | (4 << CC.IOCQES_SHIFT) },
    ]);
    await this.until("CSTS.RDY", async () => ((await this.host.read(BAR0, REGISTER.CSTS)) & CSTS.RDY) !== 0);
    // Physically contiguous; the completion queue without interrupts.
    const size = ((ENTRIES - 1) << 16) | 1;
    await this.#admin(0, { opcode: ADMIN.CREATE_CQ, prp1: this.#page(OWN.cq), dword10: size, dword11: 1 });
    await this.#admin(1, { opcode: ADMIN.CREATE_SQ, prp1: this.#page(OWN.sq), dword10: size, dword11: (1 << 16) | 1 });
    await this.#admin(2, { opcode: ADMIN.IDENTIFY, nsid: NSID, prp1: this.#page(OWN.data), dword10: CNS.NAMESPACE });
    // NSZE, and the size of a block in the LBA format that FLBAS names (5.15.2.1).
    const namespace = Buffer.from(this.host.page(this.#page(OWN.data)));
    const format = namespace.readUInt32LE(128 + 4 * (namespace[26] & 0xf));
    this.#blocksPerPlace = PAGE_SIZE / 2 ** ((format >>> 16) & 0xff);
    const places = Math.floor(Number(namespace.readBigUInt64LE(0)) / this.#blocksPerPlace);
    if (places === 0 || this.#blocksPerPlace < 1) throw new Error(`${this.device}: its disk is too small`);
    this.#versions = new Array(Math.min(places, MAX_PLACES)).fill(0);
  }

  protected override queue(): boolean {
    const place = this.#freePlace();
    if (place === undefined) return false;
    const known = this.#versions[place];
    const write = this.#nextRandom() % WRITE_EVERY === 0;
    const version = write ? (known + 1) >>> 0 || 1 : known;
    while (this.#open.has(this.#nextCid)) this.#nextCid = (this.#nextCid + 1) & 0xffff;
    const cid = this.#nextCid;
    this.#nextCid = (cid + 1) & 0xffff;
    const buffer = this.#freeBuffer();
    const page = this.#page(buffer);
    if (write) {
      renderPage(this.#words, this.#owner, place, version);
      this.host.store(page, 0, this.#bytes);
    }
    this.#submit(OWN.sq, this.#tail, {
      opcode: write ? IO.WRITE : IO.READ,
      cid,
      nsid: NSID,
      prp1: page,
      dword10: place * this.#blocksPerPlace,
      dword12: this.#blocksPerPlace - 1,
    });
    this.#tail = (this.#tail + 1) % ENTRIES;
    this.#open.set(cid, { cid, place, buffer, version, write });
    this.#busyPlaces.add(place);
    return true;
  }

  protected override take(): boolean {
    let taken = false;
    for (;;) {
      const last = this.host.word(this.#page(OWN.cq), this.#head * CQE_BYTES + 12);
      if (((last >>> 16) & 1) !== this.#phase) return taken;
      taken = true;
      this.#head = (this.#head + 1) % ENTRIES;
      if (this.#head === 0) this.#phase ^= 1;
      this.#complete(last & 0xffff, last >>> 17);
    }
  }

  protected override doorbells() {
    return {
      region: BAR0,
      writes: [
        { offset: DOORBELLS + 12, value: this.#head },
        { offset: DOORBELLS + 8, value: this.#tail },
      ],
    };
  }

  protected override executed({ reads, writes }: Record<string, number>): number | undefined {
    return reads === undefined || writes === undefined ? undefined : reads + writes;
  }

  protected override saveOwn(): z.output<typeof ownSchema> {
    return {
      tail: this.#tail,
      head: this.#head,
      phase: this.#phase,
      nextCid: this.#nextCid,
      nextBuffer: this.#nextBuffer,
      random: this.#random,
      blocksPerPlace: this.#blocksPerPlace,
      versions: this.#versions,
      open: [...this.#open.values()],
    };
  }

  protected override loadOwn(own: unknown): void {
    const state = ownSchema.parse(own);
    this.#tail = state.tail % ENTRIES;
    this.#head = state.head % ENTRIES;
    this.#phase = state.phase;
    this.#nextCid = state.nextCid;
    this.#nextBuffer = state.nextBuffer % this.#dataBuffers;
    this.#blocksPerPlace = state.blocksPerPlace;
    this.#versions = [...state.versions];
    this.#random = state.random;
    this.#open.clear();
    this.#busyPlaces.clear();
    for (const request of state.open) {
      this.#open.set(request.cid, request);
      this.#busyPlaces.add(request.place);
    }
  }

  get #dataBuffers(): number {
    return this.#buffers.slots - OWN_PAGES;
  }

  #page(index: number): PageNumber {
    return this.#buffers.pageOf(index);
  }

  /** A place that no open request is about: those on the same could be done in any order. */
  #freePlace(): number | undefined {
    const places = this.#versions.length;
    const first = this.#nextRandom() % places;
    for (let tries = 0; tries < places; tries++) {
      const place = (first + tries) % places;
      if (!this.#busyPlaces.has(place)) return place;
    }
    return undefined;
  }

  /** 24 bits: the same sequence of requests on any machine. */
  #nextRandom(): number {
    this.#random = (Math.imul(this.#random, 1664525) + 1013904223) >>> 0;
    return this.#random >>> 8;
  }

  /** The next buffer in turn that no open request uses: there are more than requests. */
  #freeBuffer(): number {
    for (;;) {
      this.#nextBuffer = (this.#nextBuffer + 1) % this.#dataBuffers;
      const buffer = OWN_PAGES + this.#nextBuffer;
      let used = false;
      for (const request of this.#open.values()) used ||= request.buffer === buffer;
      if (!used) return buffer;
    }
  }

  #complete(cid: number, status: number): void {
    const request = this.#open.get(cid);
    if (request === undefined) {
      this.completed("doubled");
      return;
    }
    this.#open.delete(cid);
    this.#busyPlaces.delete(request.place);
    const { place, version, write, buffer } = request;
    if (write) this.#versions[place] = status === 0 ? version : 0;
    if (status !== 0) this.completed("failed");
    else this.completed(write || this.#holds(buffer, place, version) ? "done" : "wrong");
  }

  #holds(buffer: number, place: number, version: number): boolean {
    if (version === 0) return true;
    renderPage(this.#words, this.#owner, place, version);
    return Buffer.compare(this.host.page(this.#page(buffer)), this.#bytes) === 0;
  }

  /** Does an admin command, the `index`-th since the controller was enabled. */
  async #admin(index: number, command: Omit<Command, "cid">): Promise<void> {
    this.#submit(OWN.adminSq, index, { ...command, cid: index });
    await this.host.write(BAR0, [{ offset: DOORBELLS, value: index + 1 }]);
    const last = () => this.host.word(this.#page(OWN.adminCq), index * CQE_BYTES + 12);
    await this.until(`admin command ${command.opcode}`, () => ((last() >>> 16) & 1) === 1);
    if (last() >>> 17 !== 0) throw new Error(`${this.device}: admin command ${command.opcode} failed`);
    await this.host.write(BAR0, [{ offset: DOORBELLS + 4, value: index + 1 }]);
  }

  #submit(queue: number, index: number, command: Command): void {
    const entry = new Uint8Array(SQE_BYTES);
    const view = new DataView(entry.buffer);
    view.setUint32(0, (command.opcode | (command.cid << 16)) >>> 0, true);
    view.setUint32(4, command.nsid ?? 0, true);
    view.setBigUint64(24, BigInt(command.prp1) * BigInt(PAGE_SIZE), true);
    view.setUint32(40, command.dword10, true);
    view.setUint32(44, command.dword11 ?? 0, true);
    view.setUint32(48, command.dword12 ?? 0, true);
    this.host.store(this.#page(queue), index * SQE_BYTES, entry);
  }
}

interface Command {
  readonly opcode: number;
  readonly cid: number;
  readonly nsid?: number;
  /** A page. */
  readonly prp1: PageNumber;
  readonly dword10: number;
  readonly dword11?: number;
  readonly dword12?: number;
}
