import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { PinLog } from "./pin-log.js";

/** The pages that a read of [firstPage, firstPage + pages) reports. */
function read(log: PinLog, firstPage: number, pages: number, granule = 4096): number[] {
  const into = new DirtyBitmap({ iova: BigInt(firstPage) << 12n, length: BigInt(pages) << 12n, granule });
  log.readAndClear({ firstPage, pages, into });
  const found: number[] = [];
  into.forEachPageRun((first, count) => {
    for (let i = 0; i < count; i++) found.push(first + i);
  });
  return found;
}

describe("PinLog", () => {
  it("reports pin, read, unpin, read, read as 1, 1, 0", () => {
    const log = new PinLog();
    log.start();
    log.pin(5, 1, true);
    expect(read(log, 0, 16)).toEqual([5]);
    log.unpin(5, 1);
    expect(read(log, 0, 16)).toEqual([5]);
    expect(read(log, 0, 16)).toEqual([]);
  });

  it("counts pins for reading as clean", () => {
    const log = new PinLog();
    log.start();
    log.pin(5, 1, false);
    log.unpin(5, 1);
    expect(read(log, 0, 16)).toEqual([]);
  });

  it("reports what was pinned before it was started and still is, and forgets the past when started again", () => {
    const log = new PinLog();
    log.pin(1, 1, true);
    log.pin(2, 1, true);
    log.unpin(2, 1);
    log.start();
    expect(read(log, 0, 16)).toEqual([1]);
    log.unpin(1, 1);
    log.start();
    expect(read(log, 0, 16)).toEqual([]);
  });

  it("refuses to unpin what was pinned as another range", () => {
    const log = new PinLog();
    log.pin(1, 4, true);
    expect([log.unpin(1, 2), log.unpin(2, 4), log.unpin(1, 4), log.unpin(1, 4)]).toEqual([false, false, true, false]);
  });

  it("rounds outwards to the bitmap's granule", () => {
    const log = new PinLog();
    log.start();
    log.pin(5, 1, true);
    expect(read(log, 0, 16, 16384)).toEqual([4, 5, 6, 7]);
  });

  it("forgets no page when it merges what a slow reader has let pile up", () => {
    const log = new PinLog();
    log.start();
    const expected = new Set<number>();
    for (let i = 0; i < 20_000; i++) {
      const page = (i * 7919) % 30_011;
      log.pin(page, 2, true);
      log.unpin(page, 2);
      expected.add(page).add(page + 1);
    }
    expect(read(log, 0, 31_000)).toEqual([...expected].sort((a, b) => a - b));
    expect(read(log, 0, 31_000)).toEqual([]);
  });

  it("reports what a page-by-page model reports, over any sequence of pins, unpins and partial reads", () => {
    const page = fc.nat(31);
    const range = fc.record({ firstPage: page, pages: fc.integer({ min: 1, max: 6 }) });
    const operation = fc.oneof(
      fc.record({ op: fc.constant("pin" as const), range, write: fc.boolean() }),
      fc.record({ op: fc.constant("unpin" as const), which: fc.nat() }),
      fc.record({ op: fc.constant("wrote" as const), range }),
      fc.record({ op: fc.constant("read" as const), range }),
    );
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 50 }), (operations) => {
        const log = new PinLog();
        log.start();
        const held: { firstPage: number; pages: number }[] = [];
        const written = new Map<string, boolean>();
        const key = (r: { firstPage: number; pages: number }) => `${r.firstPage}:${r.pages}`;
        const past = new Set<number>();
        const each = (r: { firstPage: number; pages: number }, visit: (page: number) => void) => {
          for (let p = r.firstPage; p < r.firstPage + r.pages; p++) visit(p);
        };
        for (const step of operations) {
          if (step.op === "pin") {
            log.pin(step.range.firstPage, step.range.pages, step.write);
            held.push(step.range);
            written.set(key(step.range), step.write || (written.get(key(step.range)) ?? false));
          } else if (step.op === "unpin" && held.length > 0) {
            const [gone] = held.splice(step.which % held.length, 1);
            expect(log.unpin(gone.firstPage, gone.pages)).toBe(true);
            if (held.some((r) => key(r) === key(gone))) continue;
            if (written.get(key(gone))) each(gone, (p) => past.add(p));
            written.delete(key(gone));
          } else if (step.op === "wrote") {
            log.wrote(step.range.firstPage, step.range.pages);
            each(step.range, (p) => past.add(p));
          } else if (step.op === "read") {
            const { firstPage, pages } = step.range;
            const pinned = new Set<number>();
            for (const r of held) if (written.get(key(r))) each(r, (p) => pinned.add(p));
            const expected: number[] = [];
            each(step.range, (p) => {
              if (pinned.has(p) || past.has(p)) expected.push(p);
              past.delete(p);
            });
            expect(read(log, firstPage, pages)).toEqual(expected);
          }
        }
      }),
    );
  });
});
