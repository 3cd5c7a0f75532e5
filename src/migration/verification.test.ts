import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { GiB, MiB, PAGE_SIZE } from "../memory/address.js";
import { createGuestMemory, type GuestMemory } from "../memory/guest-memory.js";
import type { PageDigests } from "./data-plane.js";
import { compareDigests, DigestTable, digestMessages, rootDigest } from "./verification.js";

function tables(memory: GuestMemory, seed = 1): PageDigests {
  let state = BigInt(seed);
  return {
    arenas: memory.arenas.map(({ ramPages }) => {
      const table = new BigUint64Array(new SharedArrayBuffer(ramPages * 8));
      for (let page = 0; page < ramPages; page++) {
        state = BigInt.asUintN(64, state * 6364136223846793005n + 1442695040888963407n);
        table[page] = state;
      }
      return table;
    }),
  };
}

const nobody = () => [];

describe("a table of page digests", () => {
  it("arrives as it was sent, also over several arenas and messages", () => {
    // Two arenas and, at 131072 digests a message, seven messages.
    const memory = createGuestMemory(3 * GiB + 64 * MiB);
    const sent = tables(memory);
    const received = new DigestTable(memory);
    const messages = [...digestMessages(sent)];
    expect(messages.length).toBe(7);
    const lasts = messages.map((message) => received.add(message));
    expect(lasts).toEqual([...messages.slice(1).map(() => false), true]);
    expect(rootDigest(received.digests)).toBe(rootDigest(sent));
    expect(compareDigests(memory, sent, received.digests, nobody).pagesDifferent).toBe(0);
  });

  it("is refused where a message is missing, repeated, out of order, too long or the last one too early", () => {
    const memory = createGuestMemory(600 * MiB);
    const [first, second] = digestMessages(tables(memory));
    const refused = (...messages: Parameters<DigestTable["add"]>[0][]) => {
      const table = new DigestTable(memory);
      expect(() => messages.map((message) => table.add(message))).toThrow(/table of page digests/);
    };
    refused(second);
    refused(first, first);
    refused({ ...first, last: true });
    refused(first, { ...second, last: false });
    refused({ ...first, arena: 1 });
    refused({ ...first, data: first.data.subarray(1) });
    refused(first, { ...second, data: new Uint8Array(1 << 20) });
  });
});

describe("a table of page digests over several arenas", () => {
  const memory = createGuestMemory(3 * GiB + 64 * MiB);
  const messages = [...digestMessages(tables(memory))];
  const next = messages.findIndex(({ arena }) => arena === 1);

  /** A table that has taken so many messages. */
  function taken(count: number): DigestTable {
    const table = new DigestTable(memory);
    for (const message of messages.slice(0, count)) table.add(message);
    return table;
  }
  const damaged = expect.objectContaining({ code: "BAD_DIGESTS" });

  it("goes on with the next arena only once the one before is whole, and never back", () => {
    expect(() => taken(0).add(messages[next])).toThrow(damaged);
    expect(() => taken(next - 1).add(messages[next])).toThrow(damaged);
    expect(() => taken(next).add({ ...messages[next], arena: 2 })).toThrow(damaged);
    expect(() => taken(next).add({ ...messages[next], firstPage: 1 })).toThrow(damaged);
    expect(() => taken(next + 1).add(messages[0])).toThrow(damaged);
  });

  it("takes nothing after the last arena", () => {
    const last = messages[messages.length - 1];
    for (const arena of [0, 1, 2]) {
      for (const firstPage of [0, last.firstPage]) {
        expect(() => taken(messages.length).add({ ...last, arena, firstPage })).toThrow(damaged);
      }
    }
  });

  it("has another root for another digest in any arena", () => {
    const changed = tables(memory);
    const root = rootDigest(changed);
    for (const table of changed.arenas) {
      table[table.length - 1] ^= 1n;
      expect(rootDigest(changed)).not.toBe(root);
      table[table.length - 1] ^= 1n;
    }
    expect(rootDigest(changed)).toBe(root);
  });

  it("names differing pages by their guest-physical addresses, also above 4 GiB", () => {
    const theirs = tables(memory);
    theirs.arenas[0][3 * 256] ^= 1n;
    theirs.arenas[1][5] ^= 1n;
    const found = compareDigests(memory, tables(memory), theirs, (arena, page) => [`${arena}:${page}`]);
    expect(found.firstAddresses).toEqual(["0x300000", "0x100005000"]);
    expect(found.coveredBy).toEqual(["0:768", "1:5"]);
  });
});

describe("the comparison of two memories", () => {
  const memory = createGuestMemory(4 * MiB);
  const ram = memory.regions.flatMap(({ arenaPage, pages }) => Array.from({ length: pages }, (_, i) => arenaPage + i));

  it("counts exactly the pages of RAM that differ, and names their addresses", () => {
    fc.assert(
      fc.property(fc.uniqueArray(fc.constantFrom(...ram), { maxLength: 40 }), fc.boolean(), (pages, high) => {
        const ours = tables(memory);
        const theirs = tables(memory);
        for (const page of pages) theirs.arenas[0][page] ^= high ? 1n << 63n : 1n;
        const found = compareDigests(memory, ours, theirs, (_, page) => [`owner${page % 2}`]);
        expect(found.pagesCompared).toBe(ram.length);
        expect(found.pagesDifferent).toBe(pages.length);
        const addresses = pages
          .sort((a, b) => a - b)
          .slice(0, 5)
          .map((page) => `0x${(page * PAGE_SIZE).toString(16)}`);
        expect(found.firstAddresses).toEqual(addresses);
        expect(found.coveredBy).toEqual([...new Set(pages.map((page) => `owner${page % 2}`))].sort());
      }),
    );
  });

  it("leaves out what is no RAM", () => {
    const theirs = tables(memory);
    // The VGA hole: 640 KiB to 768 KiB.
    theirs.arenas[0][(640 * 1024) / PAGE_SIZE] ^= 1n;
    expect(compareDigests(memory, tables(memory), theirs, nobody).pagesDifferent).toBe(0);
  });

  it("asks for the owners of a thousand pages at most", () => {
    const larger = createGuestMemory(8 * MiB);
    const asked: number[] = [];
    const found = compareDigests(larger, tables(larger, 1), tables(larger, 2), (_, page) => {
      asked.push(page);
      return [];
    });
    expect(found.pagesDifferent).toBe(found.pagesCompared);
    expect(asked.length).toBe(1000);
  });
});
