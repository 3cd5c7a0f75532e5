import { afterEach, describe, expect, it } from "vitest";
import { RamBitmap } from "../bitmap/ram-bitmap.js";
import { MiB } from "../memory/address.js";
import { createGuestMemory } from "../memory/guest-memory.js";
import { type MigrationEvent, migrationEvents } from "../migration/events.js";
import type { DirtyRead, DirtySource } from "../tracking/dirty-source.js";
import { Ledger } from "../tracking/ledger.js";
import { deviceOwner } from "../tracking/owner.js";
import { watch } from "./watch.js";

const memory = createGuestMemory(4 * MiB);

/** A source whose nth read finds n pages of vf0. */
class FakeSource implements DirtySource {
  readonly choices = [];
  readonly ledger = new Ledger();
  started = 0;
  reads = 0;

  granuleOf(): number | null {
    return 4096;
  }

  async start(): Promise<void> {
    this.started++;
  }

  async read(): Promise<DirtyRead> {
    this.reads++;
    const pages = new RamBitmap(memory);
    pages.addPages(0, this.reads);
    const entry = { owner: deviceOwner("vf0"), pages, readMs: 0.5 };
    return {
      dirty: pages,
      always: null,
      byOwner: this.ledger.record([entry]),
      pagesByOwner: new Map([["vf0", pages]]),
      unread: [],
      failures: [],
      ms: 0.5,
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

const heard: MigrationEvent[] = [];
const listener = (event: unknown) => heard.push(event as MigrationEvent);

afterEach(() => {
  migrationEvents.unsubscribe(listener);
  heard.length = 0;
});

describe("watching a machine's trackers", () => {
  it("starts them once, and publishes and hands over each read", async () => {
    const source = new FakeSource();
    migrationEvents.subscribe(listener);
    const seen: number[] = [];
    await watch({
      source,
      intervalMs: 1,
      signal: new AbortController().signal,
      reads: 3,
      onRead: ({ dirty }) => void seen.push(dirty.count()),
    });
    expect([source.started, source.reads]).toEqual([1, 3]);
    expect(seen).toEqual([1, 2, 3]);
    expect(heard).toMatchObject(
      [1, 2, 3].map((reported) => ({ type: "read", round: null, owners: { vf0: { reported, exclusive: reported } } })),
    );
  });

  it("ends with the signal, also in the middle of a long interval", async () => {
    const source = new FakeSource();
    const over = new AbortController();
    const watching = watch({ source, intervalMs: 3_600_000, signal: over.signal });
    over.abort();
    await watching;
    expect(source.reads).toBe(0);
  });

  it("does not start what was cancelled before", async () => {
    const source = new FakeSource();
    await watch({ source, intervalMs: 1, signal: AbortSignal.abort() });
    expect(source.started).toBe(0);
  });

  it("passes on what the reader throws", async () => {
    const onRead = () => {
      throw new Error("the disk is full");
    };
    const { signal } = new AbortController();
    await expect(watch({ source: new FakeSource(), intervalMs: 1, signal, onRead })).rejects.toThrow("disk is full");
  });
});
