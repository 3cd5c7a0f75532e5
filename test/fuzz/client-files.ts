import { execFileSync } from "node:child_process";
import { closeSync, constants, ftruncateSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { GiB, PAGE_SIZE } from "../../src/memory/address.js";
import { createArena } from "../../src/memory/arena.js";
import { EventFd } from "../../src/sys/eventfd.js";
import { createMemfd } from "../../src/sys/memfd.js";
import { mapAnonymousOver, mapFileOver } from "../../src/sys/mmap.js";
import { socketPair } from "../../src/sys/unix-socket.js";
import type { DescriptorName } from "./operation.js";

/** Pages of each file whose content is watched. */
export const WATCHED_PAGES = 64;

/** Bytes of what each descriptor opens; undefined: it is no regular file. */
export const FILE_BYTES: Readonly<Record<DescriptorName, number | undefined>> = {
  memfd: WATCHED_PAGES * PAGE_SIZE,
  "memfd-2": WATCHED_PAGES * PAGE_SIZE,
  "memfd-to-read": WATCHED_PAGES * PAGE_SIZE,
  "large-memfd": 64 * GiB,
  file: WATCHED_PAGES * PAGE_SIZE,
  "file-to-read": WATCHED_PAGES * PAGE_SIZE,
  "short-file": 6000,
  "empty-file": 0,
  fifo: undefined,
  socket: undefined,
  eventfd: undefined,
  "full-eventfd": undefined,
  directory: undefined,
  "null-device": undefined,
};

/** The file that lies behind a descriptor, of those that are watched. */
const WATCHED: Readonly<Partial<Record<DescriptorName, "memfd" | "memfd-2" | "file">>> = {
  memfd: "memfd",
  "memfd-2": "memfd-2",
  "memfd-to-read": "memfd",
  file: "file",
  "file-to-read": "file",
};

interface Watched {
  readonly memory: Uint8Array;
  /** Per page, the regions through which the server may write it now. */
  readonly writers: Int32Array;
  /** What each page holds that it may not write. */
  readonly patterns: readonly Uint8Array[];
}

/** An eventfd counts up to here, and a write then waits: 2^64 - 2. */
const FULL_COUNT = 0xffff_ffff_ffff_fffen;

/**
 * What a client sends descriptors of. Every page of its memory that the server may not write holds a pattern; whatever
 * else is found there was written by somebody who had no right to.
 */
export class ClientFiles implements Disposable {
  readonly #directory = mkdtempSync(join(tmpdir(), "dirtmap-fuzz-"));
  readonly #fds = new Map<DescriptorName, number>();
  readonly #watched = new Map<string, Watched>();
  readonly #others: Disposable[] = [];

  constructor() {
    const path = (name: string) => join(this.#directory, name);
    const file = (name: string, bytes: number) => {
      const fd = openSync(path(name), "w+");
      ftruncateSync(fd, bytes);
      return fd;
    };
    const bytes = WATCHED_PAGES * PAGE_SIZE;
    execFileSync("mkfifo", [path("fifo")]);
    const eventFd = EventFd.create();
    const full = EventFd.create();
    full.add(FULL_COUNT);
    const [socket, other] = socketPair();
    this.#others.push(eventFd, full, socket, other);
    const memfd = createMemfd("fuzz", bytes);
    const opened: readonly [DescriptorName, number][] = [
      ["memfd", memfd],
      ["memfd-2", createMemfd("fuzz-2", bytes)],
      ["memfd-to-read", openSync(`/proc/self/fd/${memfd}`, "r")],
      ["large-memfd", createMemfd("fuzz-large", FILE_BYTES["large-memfd"] ?? 0)],
      ["file", file("file", bytes)],
      ["file-to-read", openSync(path("file"), "r")],
      ["short-file", file("short", FILE_BYTES["short-file"] ?? 0)],
      ["empty-file", file("empty", 0)],
      ["fifo", openSync(path("fifo"), constants.O_RDWR | constants.O_NONBLOCK)],
      ["directory", openSync(this.#directory, "r")],
      ["null-device", openSync("/dev/null", "r+")],
    ];
    for (const [name, fd] of opened) this.#fds.set(name, fd);
    for (const [index, name] of (["memfd", "memfd-2", "file"] as const).entries()) {
      const memory = createArena(bytes).u8.subarray(0, bytes);
      mapFileOver(memory, this.#fds.get(name) as number);
      const watched: Watched = {
        memory,
        writers: new Int32Array(WATCHED_PAGES),
        patterns: Array.from({ length: WATCHED_PAGES }, (_, page) =>
          Buffer.alloc(PAGE_SIZE, Uint8Array.of(0xca, 0x7a, index, page)),
        ),
      };
      this.#watched.set(name, watched);
      for (const [page, pattern] of watched.patterns.entries()) memory.set(pattern, page * PAGE_SIZE);
    }
    this.#fds.set("eventfd", eventFd.fd);
    this.#fds.set("full-eventfd", full.fd);
    this.#fds.set("socket", socket.fd);
  }

  fd(name: DescriptorName): number {
    return this.#fds.get(name) ?? -1;
  }

  /** The server may write these pages now. */
  allow(name: DescriptorName, page: number, pages: number): void {
    this.#change(name, page, pages, 1);
  }

  /** It may no more: what it has written is overwritten by the pattern. */
  forbid(name: DescriptorName, page: number, pages: number): void {
    this.#change(name, page, pages, -1);
  }

  /** Puts bytes where the server may write; elsewhere nothing happens. */
  fill(name: DescriptorName, offset: number, bytes: Uint8Array): void {
    const watched = this.#of(name);
    if (watched === undefined || watched.writers[Math.floor(offset / PAGE_SIZE)] === 0) return;
    const page = Math.floor(offset / PAGE_SIZE) * PAGE_SIZE;
    const room = page + PAGE_SIZE - offset;
    watched.memory.set(bytes.subarray(0, room), offset);
  }

  /** The first page that was written without permission; undefined: none was. */
  trespass(): string | undefined {
    for (const [name, { memory, writers, patterns }] of this.#watched) {
      for (let page = 0; page < WATCHED_PAGES; page++) {
        if (writers[page] !== 0) continue;
        const found = memory.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
        if (Buffer.compare(found, patterns[page]) !== 0)
          return `page ${page} of '${name}' was written, and is not mapped`;
      }
    }
    return undefined;
  }

  [Symbol.dispose](): void {
    for (const { memory } of this.#watched.values()) mapAnonymousOver(memory);
    const owned = new Set(["socket", "eventfd", "full-eventfd"]);
    for (const [name, fd] of this.#fds) if (!owned.has(name)) closeSync(fd);
    for (const other of this.#others) other[Symbol.dispose]();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  #of(name: DescriptorName): Watched | undefined {
    const file = WATCHED[name];
    return file === undefined ? undefined : this.#watched.get(file);
  }

  #change(name: DescriptorName, page: number, pages: number, by: number): void {
    const watched = this.#of(name);
    if (watched === undefined) return;
    for (let i = page; i < page + pages; i++) {
      watched.writers[i] += by;
      if (by < 0 && watched.writers[i] === 0) watched.memory.set(watched.patterns[i], i * PAGE_SIZE);
    }
  }
}
