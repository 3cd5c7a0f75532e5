import { createHash } from "node:crypto";
import { DirtmapError } from "../errors.js";
import { hex, PAGE_SIZE } from "../memory/address.js";
import type { GuestMemory } from "../memory/guest-memory.js";
import type { PageDigests } from "./data-plane.js";
import type { MemoryComparison } from "./report.js";
import { type ControlMessageOf, MAX_MESSAGE_DATA } from "./stream/messages.js";

/*
 * The comparison that proves that no write was lost: the source, stopped, hashes its memory, and the destination sends
 * the table of what its memory held before it ran. Neither is computed from what was sent.
 */

/** Bytes per page in the table. */
const DIGEST_BYTES = 8;

/** The hash that READY carries: the SHA-256 over the tables of the arenas, in order, in hexadecimal. */
export function rootDigest({ arenas }: PageDigests): string {
  const hash = createHash("sha256");
  for (const arena of arenas) hash.update(bytesOf(arena));
  return hash.digest("hex");
}

/** A table cut into messages. */
export function* digestMessages({ arenas }: PageDigests): Generator<ControlMessageOf<"DIGESTS">> {
  const pagesPerMessage = MAX_MESSAGE_DATA / DIGEST_BYTES;
  for (let arena = 0; arena < arenas.length; arena++) {
    const table = bytesOf(arenas[arena]);
    const pages = arenas[arena].length;
    for (let firstPage = 0; firstPage < pages; firstPage += pagesPerMessage) {
      const data = table.slice(firstPage * DIGEST_BYTES, Math.min(pages, firstPage + pagesPerMessage) * DIGEST_BYTES);
      const last = arena === arenas.length - 1 && firstPage + pagesPerMessage >= pages;
      yield { type: "DIGESTS", arena, firstPage, last, data };
    }
  }
}

/** Puts a table together again. */
export class DigestTable {
  readonly digests: PageDigests;
  #arena = 0;
  #page = 0;

  constructor(memory: GuestMemory) {
    this.digests = {
      arenas: memory.arenas.map(({ ramPages }) => new BigUint64Array(new SharedArrayBuffer(ramPages * DIGEST_BYTES))),
    };
  }

  /**
   * Takes the next message; true: it was the last one.
   * @throws DirtmapError `BAD_DIGESTS` for one that is out of order, too long, or the last too early
   */
  add({ arena, firstPage, last, data }: ControlMessageOf<"DIGESTS">): boolean {
    const { arenas } = this.digests;
    if (arena !== this.#arena && arena === this.#arena + 1 && this.#page === arenas[this.#arena].length) {
      this.#arena = arena;
      this.#page = 0;
    }
    const pages = data.length / DIGEST_BYTES;
    const fits = Number.isInteger(pages) && arena < arenas.length && firstPage + pages <= arenas[arena].length;
    if (arena !== this.#arena || firstPage !== this.#page || !fits) {
      throw new DirtmapError("the destination's table of page digests is damaged", { code: "BAD_DIGESTS" });
    }
    bytesOf(arenas[arena]).set(data, firstPage * DIGEST_BYTES);
    this.#page += pages;
    const complete = arena === arenas.length - 1 && this.#page === arenas[arena].length;
    if (last !== complete) {
      throw new DirtmapError("the destination's table of page digests is not complete", { code: "BAD_DIGESTS" });
    }
    return last;
  }
}

/** Addresses that a report names. */
const ADDRESSES = 5;

/**
 * Compares two tables over the guest's RAM.
 * @param ownersOf who is asked about a page that differs: tracker owners
 */
export function compareDigests(
  memory: GuestMemory,
  source: PageDigests,
  destination: PageDigests,
  ownersOf: (arena: number, arenaPage: number) => readonly string[],
): MemoryComparison {
  const firstAddresses: string[] = [];
  const coveredBy = new Set<string>();
  let pagesCompared = 0;
  let pagesDifferent = 0;
  for (const { arena, arenaPage, firstPage, pages } of memory.regions) {
    // Compared as pairs of 32-bit words: no bigint per page.
    const ours = new Uint32Array(source.arenas[arena].buffer, source.arenas[arena].byteOffset);
    const theirs = new Uint32Array(destination.arenas[arena].buffer, destination.arenas[arena].byteOffset);
    pagesCompared += pages;
    for (let page = arenaPage; page < arenaPage + pages; page++) {
      const at = page * 2;
      if (ours[at] === theirs[at] && ours[at + 1] === theirs[at + 1]) continue;
      pagesDifferent++;
      if (firstAddresses.length < ADDRESSES) firstAddresses.push(hex((firstPage + page - arenaPage) * PAGE_SIZE));
      if (pagesDifferent <= 1000) for (const owner of ownersOf(arena, page)) coveredBy.add(owner);
    }
  }
  return { pagesCompared, pagesDifferent, firstAddresses, coveredBy: [...coveredBy].sort() };
}

function bytesOf(table: BigUint64Array<SharedArrayBuffer>): Uint8Array {
  return new Uint8Array(table.buffer, table.byteOffset, table.byteLength);
}
