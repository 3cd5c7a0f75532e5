import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { encodeRecord, encodeRecords, writeRecordHeader } from "./records.js";
import { StateDecoder, StateEncoder } from "./state-stream.js";

const IDENTITY = { model: "nic", stateVersion: 1 };
const BAD = expect.objectContaining({ code: "BAD_DEVICE_STATE" });
const LIMIT = 1 << 20;

const runs = fc
  .array(fc.record({ words: fc.integer({ min: 0, max: 3000 }), byte: fc.constantFrom(0, 0, 1, 255) }), { maxLength: 4 })
  .map((parts) => Buffer.concat(parts.map(({ words, byte }) => Buffer.alloc(words * 4, byte))));

/** Images whose last record grows and shrinks, and whose layout changes at times. */
const image = fc
  .tuple(fc.constantFrom(100, 100, 100, 8000), runs)
  .map(([head, tail]) => imageOf(new Uint8Array(head).fill(9), new Uint8Array(tail)));

function imageOf(head: Uint8Array, tail: Uint8Array): Uint8Array {
  return encodeRecords([
    { tag: 1, optional: false, data: head },
    { tag: 2, optional: false, data: tail },
  ]);
}

function streamOf(images: readonly Uint8Array[]): Uint8Array {
  const encoder = new StateEncoder(IDENTITY);
  const parts = images.map((each) => {
    const size = encoder.sizeOf(each);
    const bytes = encoder.encode(each);
    expect(bytes.byteLength).toBe(size);
    return bytes;
  });
  return new Uint8Array(Buffer.concat([...parts, encoder.encodeStopCopySize(1), encoder.end()]));
}

function decode(stream: Uint8Array, piece = stream.byteLength): Uint8Array {
  const decoder = new StateDecoder(IDENTITY, LIMIT);
  for (let at = 0; at < stream.byteLength; at += piece) decoder.write(stream.subarray(at, at + piece));
  return decoder.finish();
}

describe("a state stream", () => {
  it("ends in the last of its images, however it is cut into pieces", () => {
    fc.assert(
      fc.property(
        fc.array(image, { minLength: 1, maxLength: 4 }),
        fc.integer({ min: 1, max: 9000 }),
        (images, piece) => {
          expect(Buffer.compare(decode(streamOf(images), piece), images[images.length - 1])).toBe(0);
        },
      ),
      { numRuns: 60 },
    );
  });

  it("sends only blocks that changed", () => {
    const first = new Uint8Array(40 * 4096).fill(1);
    const second = first.slice();
    second[7 * 4096 + 5] = 2;
    const encoder = new StateEncoder(IDENTITY);
    encoder.encode(first);
    expect(encoder.restartsWith(second)).toBe(false);
    expect(encoder.encode(second).byteLength).toBeLessThan(4096 + 64);
    expect(encoder.encode(second).byteLength).toBe(0);
  });

  it("goes on where the last record of the image grows, and begins anew where another one does", () => {
    const encoder = new StateEncoder(IDENTITY);
    const head = new Uint8Array(100);
    encoder.encode(imageOf(head, new Uint8Array(40_000).fill(1)));
    const grown = imageOf(head, new Uint8Array(44_000).fill(1));
    expect(encoder.restartsWith(grown)).toBe(false);
    expect(encoder.encode(grown).byteLength).toBeLessThan(4 * 4096);
    const other = imageOf(new Uint8Array(104), new Uint8Array(44_000).fill(1));
    expect(encoder.restartsWith(other)).toBe(true);
    expect(encoder.encode(other).byteLength).toBeGreaterThan(44_000);
  });

  it("is refused wherever it is cut off", () => {
    const stream = streamOf([new Uint8Array(9000).fill(3), new Uint8Array(9000).fill(4)]);
    fc.assert(
      fc.property(fc.nat({ max: stream.byteLength - 1 }), (length) => {
        expect(() => decode(stream.subarray(0, length))).toThrow(BAD);
      }),
      { numRuns: 80 },
    );
  });

  it("is refused, or comes to the same image, whichever bit is flipped", () => {
    const last = new Uint8Array(9000).fill(4);
    const stream = streamOf([new Uint8Array(9000).fill(3), last]);
    fc.assert(
      fc.property(fc.nat({ max: stream.byteLength * 8 - 1 }), (bit) => {
        const spoilt = stream.slice();
        spoilt[bit >>> 3] ^= 1 << (bit & 7);
        let decoded: Uint8Array;
        try {
          decoded = decode(spoilt);
        } catch (error) {
          expect(error).toEqual(BAD);
          return;
        }
        expect(Buffer.compare(decoded, last)).toBe(0);
      }),
      { numRuns: 200 },
    );
  });

  it("of a length beyond what the device can have is refused before anything is allocated", () => {
    const encoder = new StateEncoder(IDENTITY);
    const identity = encoder.encode(new Uint8Array(0));
    const length = new Uint8Array(8);
    new DataView(length.buffer).setBigUint64(0, 1n << 60n, true);
    const decoder = new StateDecoder(IDENTITY, LIMIT);
    decoder.write(identity);
    expect(() => decoder.write(encodeRecord({ tag: 2 ** 1, optional: false, data: length }))).toThrow(BAD);

    const huge = new Uint8Array(16);
    writeRecordHeader(new DataView(huge.buffer), 0, { tag: 0, optional: true, size: 2 ** 40 });
    expect(() => new StateDecoder(IDENTITY, LIMIT).write(huge)).toThrow(BAD);
  });

  it("may have optional records that a destination does not know, and no mandatory ones", () => {
    const encoder = new StateEncoder(IDENTITY);
    const head = encoder.encode(new Uint8Array(64).fill(1));
    const unknown = (optional: boolean) => encodeRecord({ tag: 77, optional, data: Uint8Array.of(1, 2, 3) });
    expect(decode(new Uint8Array(Buffer.concat([head, unknown(true), encoder.end()]))).byteLength).toBe(64);
    expect(() => decode(new Uint8Array(Buffer.concat([head, unknown(false), encoder.end()])))).toThrow(BAD);
  });

  it("of another model or state version is refused at its first record", () => {
    const stream = streamOf([new Uint8Array(64)]);
    for (const identity of [
      { model: "blk", stateVersion: 1 },
      { model: "nic", stateVersion: 2 },
    ]) {
      expect(() => new StateDecoder(identity, LIMIT).write(stream.subarray(0, 60))).toThrow(BAD);
    }
  });
});
