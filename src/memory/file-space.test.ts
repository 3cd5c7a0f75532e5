import { closeSync, readSync, writeSync } from "node:fs";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { createMemfd } from "../sys/memfd.js";
import { type FilePiece, FileSpace } from "./file-space.js";

const PAGE = 4096;
const PAGES = 256;

describe.runIf(process.platform === "linux")("a space that files are mapped in", () => {
  const fd = process.platform === "linux" ? createMemfd("file-space", PAGES * PAGE) : -1;
  afterAll(() => closeSync(fd));
  const bytesOf = ({ arena, at, bytes }: FilePiece) => arena.u8.subarray(at, at + bytes);

  it("holds each mapping's own part of the file, whatever was mapped and let go before", () => {
    const page = new Uint8Array(PAGE);
    for (let i = 0; i < PAGES; i++) writeSync(fd, page.fill(i), 0, PAGE, i * PAGE);
    const request = fc.record({
      first: fc.nat(PAGES - 1),
      pages: fc.integer({ min: 1, max: 40 }),
      // As of a file of larger pages: whole ones are mapped.
      alignment: fc.constantFrom(PAGE, 4 * PAGE, 16 * PAGE),
      drop: fc.nat(7),
    });
    fc.assert(
      fc.property(fc.array(request, { maxLength: 30 }), (requests) => {
        using space = new FileSpace();
        const mapped: { pieces: FilePiece[]; alignment: number; first: number }[] = [];
        const check = () => {
          for (const { pieces, first } of mapped) {
            let page = first;
            for (const piece of pieces) {
              const bytes = bytesOf(piece);
              for (let at = 0; at < bytes.byteLength; at += PAGE) expect(bytes[at]).toBe(page++ & 0xff);
            }
          }
        };
        for (const { first, pages, alignment, drop } of requests) {
          const bytes = Math.min(pages, PAGES - first) * PAGE;
          mapped.push({ pieces: space.map(fd, first * PAGE, bytes, alignment), alignment, first });
          check();
          if (drop < mapped.length) {
            const [gone] = mapped.splice(drop, 1);
            space.unmap(gone.pieces, gone.alignment);
            for (const piece of gone.pieces) expect(bytesOf(piece)[0]).toBe(0);
            check();
          }
        }
      }),
      { numRuns: 40 },
    );
  });

  it("is the file's memory: what is stored there is in the file, and what was let go is not", () => {
    using space = new FileSpace();
    const [piece] = space.map(fd, 8 * PAGE, PAGE, PAGE);
    const bytes = bytesOf(piece);
    bytes[5] = 99;
    const read = new Uint8Array(1);
    readSync(fd, read, 0, 1, 8 * PAGE + 5);
    expect(read[0]).toBe(99);
    space.unmap([piece], PAGE);
    bytes[5] = 1;
    readSync(fd, read, 0, 1, 8 * PAGE + 5);
    expect(read[0]).toBe(99);
  });

  it("maps nothing where a part can't be", () => {
    using space = new FileSpace();
    expect(() => space.map(-1, 0, PAGE, PAGE)).toThrow(expect.objectContaining({ code: "EBADF" }));
    const [piece] = space.map(fd, 0, PAGE, PAGE);
    expect(bytesOf(piece)[0]).toBe(0);
  });
});
