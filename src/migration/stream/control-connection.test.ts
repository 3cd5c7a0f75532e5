import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { Duplex } from "node:stream";
import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { DirtmapError } from "../../errors.js";
import { machineSchema } from "../../host/description.js";
import {
  ControlConnection,
  type ControlConnectionOptions,
  decodeMessage,
  encodeControlFrame,
  encodeMessage,
} from "./control-connection.js";
import { encodeFrame } from "./frame.js";
import type { ControlMessage } from "./messages.js";

/** Two sockets, joined: what is written to one is read from the other. */
function joined(): [Duplex, Duplex] {
  const ends: Duplex[] = [];
  for (const other of [1, 0]) {
    ends.push(
      new Duplex({
        read() {},
        write(chunk, _, done) {
          if (!ends[other].destroyed) ends[other].push(chunk);
          done();
        },
        final(done) {
          if (!ends[other].destroyed) ends[other].push(null);
          done();
        },
      }),
    );
  }
  return [ends[0], ends[1]];
}

function connections(options: ControlConnectionOptions = {}): [ControlConnection, ControlConnection] {
  const [a, b] = joined();
  return [new ControlConnection(a, options), new ControlConnection(b, options)];
}

const data = fc.uint8Array({ maxLength: 500 });
const text = fc.string({ maxLength: 40 });
const message: fc.Arbitrary<ControlMessage> = fc.oneof(
  fc.record({ type: fc.constant("GO" as const) }),
  fc.record({ type: fc.constant("REFUSE" as const), code: text, message: text, remedy: text }),
  fc.record({
    type: fc.constant("ROUND_BEGIN" as const),
    round: fc.nat(),
    phase: fc.constant("pre-copy" as const),
    pages: fc.nat(),
  }),
  fc.record({ type: fc.constant("DEVICE_STATE" as const), device: text, chunk: fc.nat(), last: fc.boolean(), data }),
  fc.record({ type: fc.constant("VCPU_STATE" as const), data }),
);

/** A frame as another version of the protocol would send it; version 1 wrote no version. */
const otherVersion = (sequence: number, version = 1) =>
  encodeFrame(
    { type: "CONTROL", channel: 0, sequence, round: version === 1 ? 0 : version },
    new TextEncoder().encode("what only that version understands"),
  );

describe("a control connection", () => {
  it("carries any messages, in order", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(message, { maxLength: 20 }), async (messages) => {
        const [a, b] = connections();
        await Promise.all(messages.map((each) => a.send(each)));
        for (const sent of messages) expect(await b.receive()).toEqual(sent);
        await Promise.all([a.close(), b.close()]);
        await expect(b.receive()).rejects.toMatchObject({ code: "CONNECTION_CLOSED" });
      }),
      { numRuns: 30 },
    );
  });

  it("keeps a machine's description as it is", () => {
    const machine = machineSchema.parse({
      memory: 2 ** 30,
      vcpus: {},
      iommus: [{ id: "i", format: "amd-v1" }],
      devices: [{ id: "m", model: "mlx5", iommu: "i", load: { footprint: 4096 } }],
    });
    const pages = { type: "ROUND_END", round: 1, pages: 2 ** 40, zeroPages: 0, bytes: 2 ** 52 } as const;
    expect(decodeMessage(encodeMessage(pages))).toEqual(pages);
    expect(machineSchema.parse(JSON.parse(JSON.stringify(machine)))).toEqual(machine);
  });

  it("tells of a peer that falls silent, and of none that only has nothing to say", async () => {
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval", "performance"] });
    try {
      const [a, b] = connections({ silenceMs: 80 });
      const waiting = b.receive();
      for (let ms = 0; ms < 1000; ms += 10) await vi.advanceTimersByTimeAsync(10);
      await a.send({ type: "GO" });
      expect(await waiting).toEqual({ type: "GO" });
      await Promise.all([a.close(), b.close()]);

      const [socket] = joined();
      const alone = new ControlConnection(socket, { silenceMs: 80 });
      const outcome = alone.receive().catch((error: unknown) => error);
      await vi.advanceTimersByTimeAsync(100);
      expect(await outcome).toMatchObject({ code: "PEER_SILENT" });
      await expect(alone.send({ type: "GO" })).rejects.toMatchObject({ code: "PEER_SILENT" });
    } finally {
      vi.useRealTimers();
    }
  });

  it.each([
    [
      "damage",
      (end: Duplex, frame: Uint8Array) => end.write(Buffer.concat([frame, new Uint8Array(40)])),
      "FRAME_REFUSED",
    ],
    [
      "half a frame and the end",
      (end: Duplex, frame: Uint8Array) => end.end(Buffer.concat([frame, frame.subarray(0, 9)])),
      "FRAME_REFUSED",
    ],
    ["the end", (end: Duplex, frame: Uint8Array) => end.end(frame), "CONNECTION_CLOSED"],
    [
      "a frame of another version",
      (end: Duplex, frame: Uint8Array) => end.write(Buffer.concat([frame, otherVersion(1)])),
      "INCOMPATIBLE",
    ],
  ])("gives out a message that was whole before %s came right behind it", async (_, send, code) => {
    const [far, near] = joined();
    const connection = new ControlConnection(near);
    send(far, encodeControlFrame(0, { type: "RUNNING", resumeMs: 1 }));
    expect(await connection.receive()).toEqual({ type: "RUNNING", resumeMs: 1 });
    await expect(connection.receive()).rejects.toMatchObject({ code });
  });

  it("gives out a message that arrived before the connection was reset", async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const accepted = new Promise<Socket>((resolve) => server.once("connection", resolve));
    const near = connect((server.address() as AddressInfo).port, "127.0.0.1");
    const [far] = await Promise.all([accepted, once(near, "connect")]);
    const connection = new ControlConnection(near);
    far.write(encodeControlFrame(0, { type: "RUNNING", resumeMs: 1 }), () => far.resetAndDestroy());
    await once(far, "close");
    expect(await connection.receive()).toEqual({ type: "RUNNING", resumeMs: 1 });
    await expect(connection.receive()).rejects.toThrow(DirtmapError);
    server.close();
  });

  it("gives out what had arrived when an error came while reading was paused", async () => {
    const [far, near] = joined();
    const connection = new ControlConnection(near, { held: true });
    far.write(encodeControlFrame(0, { type: "PING" }));
    await connection.introduced;
    far.write(encodeControlFrame(1, { type: "RUNNING", resumeMs: 1 }));
    near.destroy(new Error("reset"));
    expect(await connection.receive()).toEqual({ type: "RUNNING", resumeMs: 1 });
  });

  it("reads no further than the first message while it is held", async () => {
    const [far, near] = joined();
    const connection = new ControlConnection(near, { held: true });
    far.write(encodeControlFrame(0, { type: "PING" }));
    await connection.introduced;
    far.write(new Uint8Array(40));
    await new Promise((resolve) => setImmediate(resolve));
    expect(connection.over).toBe(false);
    connection.begin();
    await expect(connection.receive()).rejects.toMatchObject({ code: "FRAME_REFUSED" });
    expect(connection.over).toBe(true);
  });

  it("lets a stranger's first message be small only", async () => {
    const [far, near] = joined();
    const connection = new ControlConnection(near);
    far.write(encodeControlFrame(0, { type: "VCPU_STATE", data: new Uint8Array(20_000) }));
    await expect(connection.introduced).rejects.toMatchObject({ code: "FRAME_REFUSED", message: /first frame/ });
  });

  it.each([
    [1, "source", "upgrade Dirtmap at the source"],
    [9, "source", "upgrade Dirtmap at the destination"],
    [1, "destination", "upgrade Dirtmap at the destination"],
    [9, "destination", "upgrade Dirtmap at the source"],
  ] as const)(
    "with version %i of the protocol at the %s says which side to upgrade",
    async (version, other, remedy) => {
      const [far, near] = joined();
      const connection = new ControlConnection(near, { other });
      let said = "";
      far.on("data", (bytes: Buffer) => {
        said += bytes.toString("latin1");
      });
      far.write(otherVersion(0, version));
      await expect(connection.introduced).rejects.toMatchObject({ code: "INCOMPATIBLE", remedy });
      far.end();
      await connection.close();
      // A destination answers; a source that was not answered has nothing to say.
      const refusal = JSON.stringify({ type: "REFUSE", code: "INCOMPATIBLE" }).slice(0, -1);
      expect(said.includes(refusal) && said.includes(remedy)).toBe(other === "source");
    },
  );

  it("refuses a stream that is cut at any byte, or in which any bit is flipped", async () => {
    const frame = encodeControlFrame(0, { type: "VCPU_STATE", data: Uint8Array.of(1, 2, 3) });
    const outcome = async (bytes: Uint8Array) => {
      const [far, near] = joined();
      const connection = new ControlConnection(near);
      far.end(bytes);
      return await connection.receive().catch((error: { code: string }) => error.code);
    };
    expect(await outcome(frame)).toMatchObject({ type: "VCPU_STATE" });
    expect(await outcome(frame.subarray(0, 0))).toBe("CONNECTION_CLOSED");
    for (let length = 1; length < frame.length; length++) {
      expect(await outcome(frame.subarray(0, length)), `${length} bytes`).toBe("FRAME_REFUSED");
    }
    for (let bit = 0; bit < frame.length * 8; bit++) {
      const damaged = Uint8Array.from(frame);
      damaged[bit >>> 3] ^= 1 << (bit & 7);
      expect(await outcome(damaged), `bit ${bit}`).toBe("FRAME_REFUSED");
    }
  });

  it("refuses messages that are not as the protocol has them", () => {
    const encode = (head: unknown, data = new Uint8Array(0)) => {
      const json = new TextEncoder().encode(typeof head === "string" ? head : JSON.stringify(head));
      const body = new Uint8Array(4 + json.length + data.length);
      new DataView(body.buffer).setUint32(0, json.length, true);
      body.set(json, 4);
      body.set(data, 4 + json.length);
      return body;
    };
    const bad = [
      new Uint8Array(3),
      Uint8Array.of(255, 255, 255, 255, 0),
      encode("no JSON"),
      encode({ type: "DANCE" }),
      encode({ type: "GO", extra: 1 }),
      encode({ type: "GO" }, Uint8Array.of(1)),
      encode({ type: "ACCEPT", software: "x", token: "short" }),
      encode({ type: "ROUND_BEGIN", round: -1, phase: "pre-copy", pages: 0 }),
    ];
    for (const body of bad)
      expect(() => decodeMessage(body)).toThrow(expect.objectContaining({ code: "FRAME_REFUSED" }));
  });

  it("doesn't send more than a message may hold", async () => {
    const [a, b] = connections();
    expect(() => encodeMessage({ type: "VCPU_STATE", data: new Uint8Array((1 << 20) + 1) })).toThrow(/too long/);
    await Promise.all([a.close(), b.close()]);
  });
});
