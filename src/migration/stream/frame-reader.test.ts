import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { encodeFrame } from "./frame.js";
import { FrameReader } from "./frame-reader.js";

const CHANNEL = 3;
const frame = (sequence: number, body: Uint8Array, type: "ROUND_ACK" | "REFUSED" = "ROUND_ACK") =>
  encodeFrame({ type, channel: CHANNEL, sequence, round: type === "ROUND_ACK" ? 9 : 0 }, body);
const reader = (firstBody?: number) => new FrameReader(CHANNEL, ["ROUND_ACK"], firstBody);
const refused = expect.objectContaining({ code: "FRAME_REFUSED" });

describe("a connection's frames", () => {
  it("come out whole and in order, however the bytes are cut", () => {
    const bodies = fc.array(fc.uint8Array({ maxLength: 60 }), { maxLength: 6 });
    const pieces = fc.array(fc.integer({ min: 0, max: 70 }), { maxLength: 40 });
    fc.assert(
      fc.property(bodies, pieces, (bodies, pieces) => {
        const bytes = Buffer.concat(bodies.map((body, i) => frame(i, body)));
        const frames = reader();
        const found: Uint8Array[] = [];
        let at = 0;
        for (const piece of [...pieces, bytes.length]) {
          for (const { header, body } of frames.push(bytes.subarray(at, at + piece))) {
            expect(header).toMatchObject({ type: "ROUND_ACK", sequence: found.length, round: 9 });
            found.push(body);
          }
          at += piece;
        }
        expect(found).toEqual(bodies);
        expect(frames.midFrame).toBe(false);
      }),
    );
  });

  it("are known to be cut off at each point but their ends", () => {
    const bytes = Buffer.concat([frame(0, new Uint8Array(5)), frame(1, new Uint8Array(0))]);
    const frames = reader();
    expect(frames.midFrame).toBe(false);
    for (let at = 0; at < bytes.length; at++) {
      for (const _ of frames.push(bytes.subarray(at, at + 1)));
      expect(frames.midFrame, `after ${at + 1} bytes`).toBe(at + 1 !== 45 && at + 1 !== bytes.length);
    }
  });

  it("are refused by their first bytes where they are none: something else may never send a whole header", () => {
    expect(() => [...reader().push(Buffer.from("G"))]).toThrow(refused);
    expect(() => [...reader().push(Buffer.from("DMAG"))]).toThrow(refused);
    // A TLS alert, and a handshake.
    for (const first of [0x15, 0x16]) {
      expect(() => [...reader().push(Uint8Array.of(first))]).toThrow(expect.objectContaining({ code: "WRONG_SCHEME" }));
    }
    const byByte = reader();
    expect([...byByte.push(Buffer.from("DM"))]).toEqual([]);
    expect(() => [...byByte.push(Buffer.from("P"))]).toThrow(refused);
  });

  it("are refused on another channel, out of order, of another type, and with a damaged body", () => {
    const bad = [
      encodeFrame({ type: "ROUND_ACK", channel: CHANNEL + 1, sequence: 0 }, new Uint8Array(0)),
      frame(1, new Uint8Array(0)),
      frame(0, new Uint8Array(0), "REFUSED"),
      Buffer.concat([frame(0, Uint8Array.of(1)).subarray(0, 40), Uint8Array.of(2)]),
    ];
    for (const bytes of bad) expect(() => [...reader().push(bytes)]).toThrow(refused);
    const repeated = reader();
    expect([...repeated.push(frame(0, new Uint8Array(0)))]).toHaveLength(1);
    expect(() => [...repeated.push(frame(0, new Uint8Array(0)))]).toThrow(refused);
  });

  it("are given out if they were whole before damage", () => {
    const found: number[] = [];
    // A first byte of 0x16 is a TLS handshake only where a connection begins.
    const both = Buffer.concat([frame(0, Uint8Array.of(1, 2)), new Uint8Array(40).fill(0x16)]);
    expect(() => {
      for (const { body } of reader().push(both)) found.push(body.length);
    }).toThrow(refused);
    expect(found).toEqual([2]);
  });

  it("may begin with a small body only, and go on with larger ones", () => {
    const frames = reader(10);
    expect([...frames.push(frame(0, new Uint8Array(10)))]).toHaveLength(1);
    expect([...frames.push(frame(1, new Uint8Array(11)))]).toHaveLength(1);
    // The header alone says it: nothing is allocated for the body.
    expect(() => [...reader(10).push(frame(0, new Uint8Array(11)).subarray(0, 40))]).toThrow(refused);
  });
});
