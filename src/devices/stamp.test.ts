import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MiB, PAGE_SIZE } from "../memory/address.js";
import { createGuestMemory, type GuestMemory } from "../memory/guest-memory.js";
import { BufferRing } from "./buffers.js";
import { FlatPort } from "./flat-host.test.helper.js";
import { checkStamps, PAYLOAD_BYTES, STAMP_BYTES, StampWriter, stampsIntact } from "./stamp.js";

const FIRST_PAGE = 256;
const SLOTS = 24;

function setUp(units: number, id = "nic0", incarnation = 7): { memory: GuestMemory; writer: StampWriter } {
  const memory = createGuestMemory(4 * MiB);
  const writer = new StampWriter(id, incarnation, new BufferRing([{ firstPage: FIRST_PAGE, pages: SLOTS }]));
  writeUnits(memory, writer, units);
  return { memory, writer };
}

function writeUnits(memory: GuestMemory, writer: StampWriter, units: number): void {
  const port = new FlatPort(memory);
  for (let i = 0; i < units; i++) {
    writer.setTime(BigInt(i));
    writer.staging.fill(i, STAMP_BYTES);
    const bytes = writer.stamp(1 + ((i * 977) % PAYLOAD_BYTES));
    port.write(writer.nextPage, 0, writer.staging, 0, bytes);
    writer.commit();
  }
}

/** The guest page of a slot, as bytes of the only arena. */
function page(memory: GuestMemory, writer: StampWriter, slot: number): Uint8Array {
  const at = writer.ring.pageOf(slot) * PAGE_SIZE;
  return memory.arenas[0].u8.subarray(at, at + PAGE_SIZE);
}

describe("stamps", () => {
  it("are intact after any number of units, of any sizes", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 4 * SLOTS }), (units) => {
        const { memory, writer } = setUp(units);
        const problems = checkStamps(memory, writer.trail());
        expect(problems).toMatchObject({ checked: Math.min(units, SLOTS), lost: 0, torn: 0, reordered: 0, foreign: 0 });
        expect(stampsIntact(problems)).toBe(true);
      }),
      { numRuns: 30 },
    );
  });

  it("show a page that kept its older unit as lost", () => {
    const { memory, writer } = setUp(2 * SLOTS);
    const slot = writer.ring.slotOf(writer.lastSequence);
    const older = page(memory, writer, slot).slice();
    writeUnits(memory, writer, SLOTS);
    page(memory, writer, slot).set(older);
    const problems = checkStamps(memory, writer.trail());
    expect(problems).toMatchObject({ lost: 1, torn: 0, reordered: 0, foreign: 0 });
    expect(problems.examples[0]).toContain(`number ${2 * SLOTS}, expected ${3 * SLOTS}`);
  });

  it("show an empty page as lost", () => {
    const { memory, writer } = setUp(SLOTS);
    page(memory, writer, 5).fill(0);
    expect(checkStamps(memory, writer.trail())).toMatchObject({ lost: 1, torn: 0, reordered: 0, foreign: 0 });
  });

  it("show any flipped byte of a unit", () => {
    fc.assert(
      fc.property(
        fc.nat({ max: SLOTS - 1 }),
        fc.nat({ max: STAMP_BYTES }),
        fc.integer({ min: 1, max: 255 }),
        (slot, at, flip) => {
          const { memory, writer } = setUp(SLOTS);
          page(memory, writer, slot)[at] ^= flip;
          expect(stampsIntact(checkStamps(memory, writer.trail()))).toBe(false);
        },
      ),
      { numRuns: 40 },
    );
  });

  it("show half of one unit under half of another as torn", () => {
    const { memory, writer } = setUp(4 * SLOTS);
    const slot = writer.ring.slotOf(writer.lastSequence);
    const older = page(memory, writer, slot).slice();
    writeUnits(memory, writer, SLOTS);
    page(memory, writer, slot).set(older.subarray(64), 64);
    expect(checkStamps(memory, writer.trail())).toMatchObject({ torn: 1, lost: 0 });
  });

  it("show a unit in another's place as reordered", () => {
    const { memory, writer } = setUp(SLOTS);
    page(memory, writer, 3).set(page(memory, writer, 4).slice());
    expect(checkStamps(memory, writer.trail())).toMatchObject({ reordered: 1 });
  });

  it("show a unit written after the stop as reordered", () => {
    const { memory, writer } = setUp(SLOTS + 3);
    const stopped = writer.trail();
    writeUnits(memory, writer, 1);
    expect(checkStamps(memory, stopped)).toMatchObject({ reordered: 1, lost: 0 });
  });

  it("show another writer's unit as foreign", () => {
    const { memory, writer } = setUp(SLOTS);
    const other = setUp(SLOTS, "nic1");
    page(memory, writer, 3).set(page(other.memory, other.writer, 3));
    expect(checkStamps(memory, writer.trail())).toMatchObject({ foreign: 1 });
  });

  it("tell the machine instance that wrote: before and after a migration", () => {
    const { memory, writer } = setUp(SLOTS + 5, "nic0", 7);
    const destination = new StampWriter("nic0", 8, writer.ring);
    destination.resumeAfter(writer.lastSequence, writer.epochs);
    writeUnits(memory, destination, 10);
    expect(stampsIntact(checkStamps(memory, destination.trail()))).toBe(true);
    // The source, running on although it gave up, is what handover must never allow.
    writeUnits(memory, writer, 1);
    expect(checkStamps(memory, destination.trail())).toMatchObject({ foreign: 1 });
  });
});

describe("the ring of buffers", () => {
  it("gives each slot a page of its own, and windows stay together", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1, maxLength: 4 }),
        fc.integer({ min: 1, max: 70 }),
        (sizes, blockSlots) => {
          let next = 100;
          const spans = sizes.map((pages) => {
            const span = { firstPage: next, pages };
            next += pages + 7;
            return span;
          });
          const ring = new BufferRing(spans, blockSlots);
          const pages = new Set<number>();
          for (let slot = 0; slot < ring.slots; slot++) {
            const at = ring.pageOf(slot);
            pages.add(at);
            expect(ring.blockOf(slot).some((run) => at >= run.firstPage && at < run.firstPage + run.pages)).toBe(true);
          }
          expect(pages.size).toBe(sizes.reduce((sum, n) => sum + n, 0));
        },
      ),
      { numRuns: 60 },
    );
  });
});
