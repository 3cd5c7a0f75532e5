import fc from "fast-check";
import { expect, test } from "vitest";
import { RamBitmap } from "../bitmap/ram-bitmap.js";
import { createGuestMemory } from "../memory/guest-memory.js";
import { Ledger } from "./ledger.js";
import { CONTAINER_OWNER, CPU_OWNER, deviceOwner } from "./owner.js";

const memory = createGuestMemory(4 * 2 ** 20);

function pagesOf(pages: Iterable<number>): RamBitmap {
  const bitmap = new RamBitmap(memory);
  for (const page of pages) bitmap.addPages(256 + page, 1);
  return bitmap;
}

test("counts what each owner reported and what only it reported, as sets would", () => {
  const owners = fc.array(fc.uniqueArray(fc.integer({ min: 0, max: 99 })), { minLength: 1, maxLength: 5 });
  fc.assert(
    fc.property(owners, (reported) => {
      const ledger = new Ledger();
      const entries = reported.map((pages, index) => ({
        owner: deviceOwner(`dev${index}`),
        pages: pagesOf(pages),
        readMs: 1,
      }));
      const counts = ledger.record(entries);
      reported.forEach((pages, index) => {
        const others = new Set(reported.flatMap((other, i) => (i === index ? [] : other)));
        expect(counts[`dev${index}`].reported).toBe(pages.length);
        expect(counts[`dev${index}`].exclusive).toBe(pages.filter((page) => !others.has(page)).length);
      });
    }),
  );
});

test("sums over reads, in which a page counts once per read", () => {
  const ledger = new Ledger();
  ledger.record([{ owner: deviceOwner("nic0"), pages: pagesOf([1, 2]), readMs: 2 }]);
  ledger.record([
    { owner: deviceOwner("nic0"), pages: pagesOf([2, 3]), readMs: 3 },
    { owner: CPU_OWNER, pages: pagesOf([3]), readMs: 1 },
  ]);
  expect(ledger.totals()).toEqual({
    nic0: { reported: 4, exclusive: 3, readMs: 5 },
    cpu: { reported: 1, exclusive: 0, readMs: 1 },
  });
  expect(ledger.device("nic0")).toEqual({ pagesReported: 4, pagesExclusive: 3, readMs: 5 });
});

test("devices that share a domain are reported as the domain, and have no share of their own", () => {
  const ledger = new Ledger();
  ledger.record([
    { owner: { kind: "domain", devices: ["nic0", "nic1"] }, pages: pagesOf([1, 2]), readMs: 2 },
    { owner: deviceOwner("nic1"), pages: pagesOf([2]), readMs: 1 },
  ]);
  expect(ledger.reads[0]["domain:nic0+nic1"]).toEqual({ reported: 2, exclusive: 1, readMs: 2 });
  expect(ledger.device("nic0")).toEqual({ pagesReported: null, pagesExclusive: null, readMs: 2 });
  // It has a log of its own besides, which tells its share.
  expect(ledger.device("nic1")).toEqual({ pagesReported: 1, pagesExclusive: 0, readMs: 1 });
  expect(ledger.device("nic")).toEqual({ pagesReported: 0, pagesExclusive: 0, readMs: 0 });
});

test("knows who ever reported a page, at the edges of words", () => {
  const ledger = new Ledger();
  ledger.record([
    { owner: deviceOwner("nic0"), pages: pagesOf([0, 31, 32]), readMs: 1 },
    { owner: CPU_OWNER, pages: pagesOf([32, 63]), readMs: 1 },
  ]);
  ledger.record([{ owner: deviceOwner("nic0"), pages: pagesOf([33, 64]), readMs: 1 }]);
  const { arena, arenaPage } = memory.regions.find(({ firstPage }) => firstPage === 256) ?? memory.regions[0];
  const owners = (page: number) => ledger.ownersOf(arena, arenaPage + page);
  expect([0, 1, 30, 31, 32, 33, 62, 63, 64, 65].map((page) => owners(page))).toEqual([
    ["nic0"],
    [],
    [],
    ["nic0"],
    ["nic0", "cpu"],
    ["nic0"],
    [],
    ["cpu"],
    ["nic0"],
    [],
  ]);
});

test("a read of nobody counts nothing, and a container is nobody's own", () => {
  const ledger = new Ledger();
  expect(ledger.record([])).toEqual({});
  ledger.record([{ owner: CONTAINER_OWNER, pages: pagesOf([1]), readMs: 4 }]);
  expect(ledger.device("nic0")).toEqual({ pagesReported: null, pagesExclusive: null, readMs: 4 });
  expect(ledger.reads).toHaveLength(2);
});
