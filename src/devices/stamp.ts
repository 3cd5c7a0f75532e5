import { PAGE_SHIFT, PAGE_SIZE, type PageNumber } from "../memory/address.js";
import type { GuestMemory } from "../memory/guest-memory.js";
import { BufferRing, type PageSpan, type SlotOrder, type StampPlaces } from "./buffers.js";
import { checksumWords } from "./checksum.js";

/*
 * What every unit that a device or vCPU writes carries, so that a lost, torn, misplaced or foreign write is visible in
 * guest memory afterwards, without trust in any tracker.
 *
 * A unit is at most a page, lies at the start of its slot's page and is a multiple of 16 bytes. Little-endian words:
 *   0 magic   1 writer's id, hashed   2 incarnation: which machine instance wrote it   3 slot
 *   4, 5 sequence number (low, high)  6, 7 CLOCK_MONOTONIC ns (low, high)   8 bytes of the unit, this header included
 *   9 checksum of all other words     10 bytes of the payload               11 zero
 * Sequence numbers start at 1, without gaps; number n is written to slot n mod slots. So, once a writer has stopped, its
 * last sequence number tells exactly what each of its slots must hold.
 */

export const STAMP_BYTES = 48;
/** The largest payload of a unit. */
export const PAYLOAD_BYTES = PAGE_SIZE - STAMP_BYTES;

const MAGIC = 0x504d5453; // "STMP"
const WORD = {
  magic: 0,
  writer: 1,
  incarnation: 2,
  slot: 3,
  sequence: 4,
  time: 6,
  bytes: 8,
  checksum: 9,
  payload: 10,
} as const;

/** From a sequence number on, units were written by this machine instance. */
export interface Epoch {
  readonly incarnation: number;
  readonly firstSequence: number;
}

/** Older epochs than this many are forgotten: their units have been overwritten long ago, or count as foreign. */
const MAX_EPOCHS = 16;

/** Where a writer's units lie and how far it came: what {@link checkStamps} checks memory against. */
export interface StampTrail {
  /** The device's id, or `vcpu0` … */
  readonly writer: string;
  readonly spans: readonly PageSpan[];
  readonly blockSlots: number;
  readonly lastSequence: number;
  /** Ascending. */
  readonly epochs: readonly Epoch[];
  /** Of a writer that doesn't go round a ring: what its slots hold. Then `spans` and `blockSlots` say nothing. */
  readonly places?: StampPlaces;
}

/** A 32-bit hash of a writer's id (FNV-1a). */
export function writerHash(id: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < id.length; i++) hash = Math.imul(hash ^ id.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/**
 * Writes units: fills a staging page, stamps it, and keeps the sequence. The caller stores the page (by DMA or as a
 * vCPU) and then commits; a store that failed is not committed, and the number is used again.
 */
export class StampWriter {
  readonly ring: SlotOrder;
  /** The unit under construction; its payload starts at {@link STAMP_BYTES}. */
  readonly staging = new Uint8Array(PAGE_SIZE);
  /** Sequence number of the last unit that was stored; 0: none. */
  lastSequence = 0;
  #epochs: Epoch[];
  readonly #id: string;
  readonly #incarnation: number;
  readonly #words = new Int32Array(this.staging.buffer);

  /** @param incarnation of the machine instance, 32 bits */
  constructor(id: string, incarnation: number, ring: SlotOrder) {
    this.#id = id;
    this.#incarnation = incarnation >>> 0;
    this.ring = ring;
    this.#epochs = [{ incarnation: this.#incarnation, firstSequence: 1 }];
    this.#words[WORD.magic] = MAGIC;
    this.#words[WORD.writer] = writerHash(id);
    this.#words[WORD.incarnation] = this.#incarnation;
  }

  get epochs(): readonly Epoch[] {
    return this.#epochs;
  }

  /** Sets the time of the units that follow; once per slice of work, so that no unit costs a bigint. */
  setTime(nowNs: bigint): void {
    this.#words[WORD.time] = Number(nowNs & 0xffffffffn);
    this.#words[WORD.time + 1] = Number((nowNs >> 32n) & 0xffffffffn);
  }

  /** The slot of the next unit. */
  get nextSlot(): number {
    return this.ring.slotOf(this.lastSequence + 1);
  }

  /** The guest page of the next unit. */
  get nextPage(): PageNumber {
    return this.ring.pageOf(this.nextSlot);
  }

  /** Stamps the staged payload of `payloadBytes` as the next unit and returns the unit's size. */
  stamp(payloadBytes: number): number {
    const bytes = STAMP_BYTES + ((payloadBytes + 15) & ~15);
    this.staging.fill(0, STAMP_BYTES + payloadBytes, bytes);
    const sequence = this.lastSequence + 1;
    const words = this.#words;
    words[WORD.slot] = this.ring.slotOf(sequence);
    words[WORD.sequence] = sequence | 0;
    words[WORD.sequence + 1] = Math.floor(sequence / 2 ** 32);
    words[WORD.bytes] = bytes;
    words[WORD.payload] = payloadBytes;
    words[WORD.checksum] = 0;
    words[WORD.checksum] = checksumWords(words, bytes >>> 2);
    return bytes;
  }

  /** The unit was stored. */
  commit(): void {
    this.lastSequence++;
  }

  /** Goes on where another instance stopped: what follows is written by this one. */
  resumeAfter(lastSequence: number, epochs: readonly Epoch[]): void {
    this.lastSequence = lastSequence;
    this.#epochs = [
      ...epochs.filter(({ firstSequence }) => firstSequence <= lastSequence),
      { incarnation: this.#incarnation, firstSequence: lastSequence + 1 },
    ].slice(-MAX_EPOCHS);
  }

  trail(): StampTrail {
    const places = this.ring.places?.(this.lastSequence);
    return {
      writer: this.#id,
      spans: this.ring.spans,
      blockSlots: this.ring.blockSlots,
      lastSequence: this.lastSequence,
      epochs: this.#epochs,
      ...(places === undefined ? {} : { places }),
    };
  }
}

/** What is wrong with a writer's units in memory. All zero but `checked`: every write is there. */
export interface StampProblems {
  readonly writer: string;
  /** Slots that must hold a unit. */
  readonly checked: number;
  /** Slots that hold an older unit, or none. */
  readonly lost: number;
  /** Units whose checksum is wrong: part of one write, part of another. */
  readonly torn: number;
  /** Units that are newer than the last one, or lie in the wrong slot. */
  readonly reordered: number;
  /** Units of another writer, or of a machine instance that may not have written them. */
  readonly foreign: number;
  /** The first few, in words. */
  readonly examples: readonly string[];
}

const MAX_EXAMPLES = 8;

/** Compares guest memory with what a stopped writer says it wrote. */
export function checkStamps(memory: GuestMemory, trail: StampTrail): StampProblems {
  const { slots, pageOf, expectedIn } = slotsOf(trail);
  const hash = writerHash(trail.writer) | 0;
  const counts = { lost: 0, torn: 0, reordered: 0, foreign: 0 };
  const examples: string[] = [];
  let checked = 0;
  const unit = new Uint8Array(PAGE_SIZE);
  const words = new Int32Array(unit.buffer);
  const note = (kind: keyof typeof counts, slot: number, page: PageNumber, what: string) => {
    counts[kind]++;
    if (examples.length < MAX_EXAMPLES) {
      examples.push(`${trail.writer}: ${kind}: slot ${slot} at guest page 0x${page.toString(16)}: ${what}`);
    }
  };

  for (let slot = 0; slot < slots; slot++) {
    const page = pageOf(slot);
    copyPage(memory, page, unit);
    const expected = expectedIn(slot);
    if (expected === 0 && (words[WORD.magic] !== MAGIC || words[WORD.writer] !== hash)) continue;
    checked++;
    if (words[WORD.magic] !== MAGIC) {
      note("lost", slot, page, `no unit; number ${expected} was written here`);
      continue;
    }
    const bytes = words[WORD.bytes];
    const found = (words[WORD.sequence] >>> 0) + words[WORD.sequence + 1] * 2 ** 32;
    if (words[WORD.writer] !== hash) {
      note("foreign", slot, page, `a unit of another writer (0x${(words[WORD.writer] >>> 0).toString(16)})`);
    } else if (bytes < STAMP_BYTES || bytes > PAGE_SIZE || bytes % 16 !== 0 || !checksumHolds(words, bytes)) {
      note("torn", slot, page, `checksum wrong in number ${found}`);
    } else if (words[WORD.slot] !== slot || found > expected) {
      note("reordered", slot, page, `number ${found} of slot ${words[WORD.slot]}, expected ${expected}`);
    } else if (found < expected) {
      note("lost", slot, page, `number ${found}, expected ${expected}`);
    } else if (words[WORD.incarnation] >>> 0 !== incarnationOf(trail.epochs, expected)) {
      note("foreign", slot, page, `number ${found} by machine instance ${words[WORD.incarnation] >>> 0}`);
    }
  }
  return { writer: trail.writer, checked, ...counts, examples };
}

/** A writer's slots: their pages, and the number of the unit that each must hold; 0: none. */
function slotsOf({ spans, blockSlots, lastSequence, places }: StampTrail) {
  if (places === undefined) {
    const ring = new BufferRing(spans, blockSlots);
    return {
      slots: ring.slots,
      pageOf: (slot: number) => ring.pageOf(slot),
      expectedIn: (slot: number) => lastSequenceOf(slot, ring.slots, lastSequence),
    };
  }
  const { pages, sequences } = places;
  return {
    slots: pages.length,
    pageOf: (slot: number) => pages[slot],
    expectedIn: (slot: number) => sequences[slot],
  };
}

/** True if nothing is wrong. */
export function stampsIntact({ lost, torn, reordered, foreign }: StampProblems): boolean {
  return lost + torn + reordered + foreign === 0;
}

/** The largest number up to `last` that belongs to `slot`; 0 where none was written yet. */
function lastSequenceOf(slot: number, slots: number, last: number): number {
  const sequence = last - ((((last - slot) % slots) + slots) % slots);
  return sequence < 1 ? 0 : sequence;
}

function incarnationOf(epochs: readonly Epoch[], sequence: number): number | undefined {
  return epochs.findLast(({ firstSequence }) => firstSequence <= sequence)?.incarnation;
}

function copyPage(memory: GuestMemory, page: PageNumber, into: Uint8Array): void {
  const region = memory.regions.find(({ firstPage, pages }) => page >= firstPage && page < firstPage + pages);
  if (region === undefined) throw new RangeError(`guest page 0x${page.toString(16)} is no RAM`);
  const at = (region.arenaPage + page - region.firstPage) * 2 ** PAGE_SHIFT;
  into.set(memory.arenas[region.arena].u8.subarray(at, at + PAGE_SIZE));
}

function checksumHolds(words: Int32Array, bytes: number): boolean {
  const stored = words[WORD.checksum];
  words[WORD.checksum] = 0;
  return checksumWords(words, bytes >>> 2) === stored;
}
