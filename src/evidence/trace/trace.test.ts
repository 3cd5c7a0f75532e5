import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { deflateRawSync } from "node:zlib";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { UsageError } from "../../errors.js";
import { TraceDecoder } from "./decoder.js";
import { TraceEncoder } from "./encoder.js";
import { TraceFile, TraceWriter } from "./file.js";
import { FILE_HEAD_BYTES, FRAME, FRAME_HEAD_BYTES, FRAME_TAIL_BYTES, frame, type TraceHeader } from "./format.js";
import type { TraceInterval } from "./interval.js";
import { MAX_VARINT_BYTES, putVarint, VarintReader } from "./varint.js";

const HEADER: TraceHeader = {
  memoryBytes: 64 * 2 ** 20,
  platform: "pc",
  intervalMs: 100,
  startedAt: "2026-01-02T03:04:05.000Z",
  host: "emulated",
  scenario: "mixed",
  zeroShare: 0.5,
  deviceStateBytes: 1234,
  owners: [
    { owner: "cpu", tracker: "cpu", granule: 4096, devices: [] },
    { owner: "vf0", tracker: "device", granule: 4096, devices: [{ id: "vf0", model: "mlx5" }] },
    {
      owner: "domain:nic0+disk0",
      tracker: "iommu",
      granule: 2097152,
      devices: [
        { id: "nic0", model: "nic" },
        { id: "disk0", model: "blk" },
      ],
    },
  ],
  unread: [],
};

const FIXTURE = fileURLToPath(new URL("../../../../test/fixtures/trace-v1.dtrc", import.meta.url));

const runs = fc
  .array(fc.tuple(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 1, max: 300 })), { minLength: 1, maxLength: 40 })
  .map((gaps) => {
    let end = 0;
    return Uint32Array.from(
      gaps.flatMap(([gap, pages]) => {
        const first = end + gap;
        end = first + pages;
        return [first, pages];
      }),
    );
  });
const interval = fc.record({
  elapsedMs: fc.integer({ min: 1, max: 3_600_000_000 }).map((us) => us / 1000),
  owners: fc
    .record({ cpu: runs, vf0: runs, "domain:nic0+disk0": runs }, { requiredKeys: [] })
    .map((owners) => new Map(Object.entries(owners))),
});
const intervals = fc.array(interval, { maxLength: 30 });

function encode(all: readonly TraceInterval[], header = HEADER): Uint8Array {
  const encoder = new TraceEncoder(header);
  return Buffer.concat([encoder.begin(), ...all.map((each) => encoder.add(each)), encoder.end()]);
}

function decode(
  bytes: Uint8Array,
  pieces: readonly number[] = [],
): { header: TraceHeader; intervals: TraceInterval[] } {
  const decoder = new TraceDecoder("t.dtrc");
  const found: TraceInterval[] = [];
  let at = 0;
  for (const size of [...pieces, bytes.length]) {
    found.push(...decoder.push(bytes.subarray(at, at + size)));
    at += size;
  }
  return { header: decoder.finish(), intervals: found };
}

async function intervalsOf(file: TraceFile): Promise<TraceInterval[]> {
  const found: TraceInterval[] = [];
  for await (const each of file.intervals()) found.push(each);
  return found;
}

/** In the header's order, as the decoder may give owners in another. */
function plain(all: readonly TraceInterval[]) {
  return all.map(({ elapsedMs, owners }) => ({
    elapsedMs,
    owners: Object.fromEntries([...owners].sort().map(([owner, pages]) => [owner, [...pages]])),
  }));
}

function refusal(bytes: Uint8Array): UsageError {
  try {
    decode(bytes);
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    return error as UsageError;
  }
  throw new Error("it was read");
}

/** A whole file with one chunk of these bytes. */
function withChunk(raw: readonly number[]): Uint8Array {
  const whole = new TraceEncoder(HEADER).begin();
  return Buffer.concat([whole, frame(FRAME.CHUNK, deflateRawSync(Uint8Array.from(raw)))]);
}

describe("a varint", () => {
  it("is read as it was written, and one that is cut off or too large is none", () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), (value) => {
        const bytes = new Uint8Array(MAX_VARINT_BYTES);
        const end = putVarint(bytes, 0, value);
        expect(new VarintReader(bytes.subarray(0, end)).next()).toBe(value);
        expect(new VarintReader(bytes.subarray(0, end - 1)).next()).toBeUndefined();
      }),
    );
    expect(new VarintReader(new Uint8Array(9).fill(0xff)).next()).toBeUndefined();
  });
});

describe("a trace", () => {
  it("is read as it was written, in pieces of any size", () => {
    fc.assert(
      fc.property(intervals, fc.array(fc.nat({ max: 200 }), { maxLength: 20 }), (all, pieces) => {
        const read = decode(encode(all), pieces);
        expect(read.header).toEqual(HEADER);
        expect(plain(read.intervals)).toEqual(plain(all));
      }),
      { numRuns: 100 },
    );
  });

  it("spans chunks where an interval is larger than one", () => {
    const scattered = Uint32Array.from({ length: 60_000 }, (_, i) => (i % 2 === 0 ? i * 3 : 1));
    const all = [1, 2].map((elapsedMs) => ({ elapsedMs, owners: new Map([["vf0", scattered]]) }));
    const bytes = encode(all);
    expect(plain(decode(bytes).intervals)).toEqual(plain(all));
    // Compact: far fewer bytes than the 8 that a run has in memory.
    expect(bytes.length).toBeLessThan(scattered.byteLength / 20);
  });

  it("that is cut off anywhere is refused, and never taken for a shorter one", () => {
    const bytes = encode(
      [1, 2, 3].map((elapsedMs) => ({ elapsedMs, owners: new Map([["cpu", Uint32Array.of(9, 4)]]) })),
    );
    for (let length = 0; length < bytes.length; length++) {
      expect(refusal(bytes.subarray(0, length)).code).toBe("BAD_TRACE");
    }
  });

  it("in which any byte was changed is refused", () => {
    const bytes = encode(
      [1, 2, 3].map((elapsedMs) => ({ elapsedMs, owners: new Map([["cpu", Uint32Array.of(9, 4)]]) })),
    );
    for (let at = 0; at < bytes.length; at++) {
      const damaged = Uint8Array.from(bytes);
      damaged[at] ^= 0x41;
      expect(["BAD_TRACE", "TRACE_TOO_NEW"]).toContain(refusal(damaged).code);
    }
  });

  it("of random bytes behind a right head is refused in one line, whatever they are", () => {
    const head = new TraceEncoder(HEADER).begin().subarray(0, FILE_HEAD_BYTES);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), (noise) => {
        expect(refusal(Buffer.concat([head, noise])).message).not.toContain("\n");
      }),
      { numRuns: 300 },
    );
  });

  it("whose frames hold random operations under right checksums is refused or read, and nothing else", () => {
    fc.assert(
      fc.property(fc.array(fc.nat({ max: 255 }), { maxLength: 80 }), (raw) => {
        expect(refusal(withChunk(raw)).code).toBe("BAD_TRACE");
      }),
      { numRuns: 300 },
    );
  });

  it.each([
    ["an owner that the header does not name", [1, 3, 1, 0, 0]],
    ["no run", [1, 0, 0]],
    ["a run behind the end of memory", [1, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f, 0]],
    ["a run over another", [1, 0, 1, 5, 4, 1, 0, 1, 3, 0]],
    ["an interval of no length", [2, 0]],
    ["an operation that there is not", [7]],
  ])("with %s is refused", (_, raw) => {
    expect(refusal(withChunk(raw)).code).toBe("BAD_TRACE");
  });

  it("with a chunk that inflates without end is refused before it has", () => {
    const bomb = frame(FRAME.CHUNK, deflateRawSync(new Uint8Array(50 * 2 ** 20)));
    expect(refusal(Buffer.concat([new TraceEncoder(HEADER).begin(), bomb])).message).toContain("inflated");
  });

  it("with a frame that claims gigabytes is refused before they are there", () => {
    const head = new Uint8Array(FRAME_HEAD_BYTES);
    head[0] = FRAME.CHUNK;
    new DataView(head.buffer).setUint32(1, 0xffff_fff0, true);
    expect(refusal(Buffer.concat([new TraceEncoder(HEADER).begin(), head])).message).toContain("a frame of");
  });

  it("whose end tells of other sums than were read is refused", () => {
    const one = encode([{ elapsedMs: 1, owners: new Map() }]);
    const none = encode([]);
    const end = none.subarray(none.length - FRAME_HEAD_BYTES - 2 - FRAME_TAIL_BYTES);
    expect(refusal(Buffer.concat([one.subarray(0, one.length - end.length), end])).message).toContain("missing");
  });

  it("of a newer version is refused in one line that says what would work", () => {
    const bytes = Uint8Array.from(encode([]));
    bytes[4] = 2;
    expect(refusal(bytes)).toMatchObject({ code: "TRACE_TOO_NEW", message: expect.stringContaining("version 2") });
    expect(refusal(bytes).remedy).toContain("newer");
  });

  it("of version 1 is still read", () => {
    const { header, intervals } = decode(readFileSync(FIXTURE));
    expect(header).toMatchObject({ scenario: "mixed", owners: [{ owner: "cpu" }, { owner: "vf0" }, {}] });
    expect(plain(intervals)).toEqual([
      { elapsedMs: 100.25, owners: { cpu: [256, 16, 300, 1], vf0: [1024, 2, 1030, 5, 16000, 384] } },
      { elapsedMs: 99.5, owners: {} },
      { elapsedMs: 101, owners: { "domain:nic0+disk0": [4096, 512], vf0: [1025, 1] } },
    ]);
  });
});

describe("a trace file", () => {
  const folder = mkdtempSync(join(tmpdir(), "dirtmap-trace-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it("is written and read as a stream", async () => {
    const path = join(folder, "a.dtrc");
    const all = Array.from({ length: 50 }, (_, i) => ({
      elapsedMs: 100 + i,
      owners: new Map([["vf0", Uint32Array.of(256 + i, 3)]]),
    }));
    await using writer = await TraceWriter.create(path, HEADER);
    for (const each of all) await writer.add(each);
    await writer.end();
    expect(writer.bytes).toBe(readFileSync(path).length);
    await using file = await TraceFile.open(path);
    expect(file.header).toEqual(HEADER);
    expect(plain(await intervalsOf(file))).toEqual(plain(all));
  });

  it("without intervals is read too", async () => {
    const path = join(folder, "none.dtrc");
    writeFileSync(path, encode([]));
    await using file = await TraceFile.open(path);
    expect(await intervalsOf(file)).toEqual([]);
  });

  it("that was not ended is refused, and so is one that is not there or a folder", async () => {
    const path = join(folder, "cut.dtrc");
    {
      await using writer = await TraceWriter.create(path, HEADER);
      await writer.add({ elapsedMs: 1, owners: new Map() });
    }
    await expect(TraceFile.open(path)).rejects.toMatchObject({ code: "BAD_TRACE" });
    await expect(TraceFile.open(join(folder, "absent"))).rejects.toMatchObject({ code: "NO_TRACE" });
    await expect(TraceFile.open(folder)).rejects.toMatchObject({ code: "NO_TRACE" });
    await expect(TraceWriter.create(join(path, "x"), HEADER)).rejects.toMatchObject({ code: "CANNOT_WRITE" });
  });
});
