import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { Duplex } from "node:stream";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
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
import { FrameReader } from "./frame-reader.js";
import { type ControlMessage, MAX_MESSAGE_DATA } from "./messages.js";

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

  it("carries as much as a message may hold, and takes no more from the other side", () => {
    const most = { type: "VCPU_STATE", data: new Uint8Array(MAX_MESSAGE_DATA).fill(3) } as const;
    const body = encodeMessage(most);
    const decoded = decodeMessage(body);
    expect(decoded.type === "VCPU_STATE" && Buffer.compare(decoded.data, most.data)).toBe(0);
    const more = new Uint8Array(body.length + 1);
    more.set(body);
    const refused = expect.objectContaining({ code: "FRAME_REFUSED" });
    expect(() => decodeMessage(more)).toThrow(refused);
    expect(() => encodeMessage({ ...most, data: new Uint8Array(MAX_MESSAGE_DATA + 1) })).toThrow(
      expect.objectContaining({ code: "MESSAGE_TOO_LONG" }),
    );
  });

  it("reads on as the messages are asked for: no more than 16 MiB wait in it", async () => {
    const [far, near] = joined();
    const connection = new ControlConnection(near);
    const data = new Uint8Array(MAX_MESSAGE_DATA);
    far.write(encodeControlFrame(0, { type: "PING" }));
    let sequence = 1;
    const fill = async () => {
      far.write(encodeControlFrame(sequence++, { type: "VCPU_STATE", data }));
      await turn();
      return near.isPaused();
    };
    while (!(await fill()) && sequence < 30);
    // 16 of them are 16 MiB and their heads.
    expect(sequence).toBe(17);
    expect(await connection.receive()).toMatchObject({ type: "VCPU_STATE" });
    expect(near.isPaused()).toBe(false);
    expect(await fill()).toBe(true);
    for (let i = 0; i < 16; i++) await connection.receive();
    expect(near.isPaused()).toBe(false);
    for (let i = 0; i < 15; i++) expect(await fill()).toBe(false);
    far.end();
    await connection.close();
  });

  it("has one caller at a time waiting for a message", async () => {
    const [far, near] = joined();
    const connection = new ControlConnection(near);
    const waiting = connection.receive();
    expect(() => connection.receive()).toThrow(/waiting already/);
    far.write(encodeControlFrame(0, { type: "GO" }));
    expect(await waiting).toEqual({ type: "GO" });
    const next = connection.receive();
    far.write(encodeControlFrame(1, { type: "ABORT", code: "X", message: "y" }));
    expect(await next).toMatchObject({ type: "ABORT" });
    far.end();
    await connection.close();
  });

  it.each([undefined, "wait"])("refuses a stranger once, with its remedy (%s), and ends", async (remedy) => {
    const [far, near] = joined();
    const said = heard(far);
    const connection = new ControlConnection(near, { other: "source" });
    connection.refuse({ code: "BUSY", message: "not now", remedy });
    connection.refuse({ code: "AGAIN", message: "not now" });
    expect(connection.over).toBe(true);
    await expect(connection.receive()).rejects.toMatchObject({ code: "BUSY", remedy });
    await expect(connection.introduced).rejects.toMatchObject({ code: "BUSY" });
    // What it still says is dropped, and its end ends the connection.
    far.write(encodeControlFrame(0, { type: "GO" }));
    far.end();
    await once(near, "close");
    const refusal = { type: "REFUSE", code: "BUSY", message: "not now", ...(remedy === undefined ? {} : { remedy }) };
    expect(said).toEqual([{ type: "PING" }, refusal]);
    await expect(connection.receive()).rejects.toMatchObject({ code: "BUSY" });
  });

  it("rejects what is sent when the connection breaks with the transport's words", async () => {
    const near = new Duplex({ read() {}, write: (_chunk, _encoding, done) => done(new Error("EPIPE")) });
    const explain = (cause: unknown) => new DirtmapError("explained", { code: "CONNECTION_LOST", cause });
    const connection = new ControlConnection(near, { explain });
    await expect(connection.send({ type: "GO" })).rejects.toMatchObject({ code: "CONNECTION_LOST" });
    await expect(connection.send({ type: "GO" })).rejects.toMatchObject({ message: "explained" });
    expect(connection.over).toBe(true);
  });
});

/** Lets what was written arrive. */
const turn = () => new Promise((resolve) => setImmediate(resolve));

/** What a connection says from now on, PINGs too. */
function heard(far: Duplex): ControlMessage[] {
  const messages: ControlMessage[] = [];
  const reader = new FrameReader(0, ["CONTROL"]);
  far.on("data", (bytes: Uint8Array) => {
    for (const { body } of reader.push(bytes)) messages.push(decodeMessage(body));
  });
  return messages;
}

describe("a control connection, by the clock", () => {
  beforeEach(
    () =>
      void vi.useFakeTimers({ toFake: ["setInterval", "clearInterval", "setTimeout", "clearTimeout", "performance"] }),
  );
  afterEach(() => void vi.useRealTimers());

  it("speaks at least four times in the time after which it would be taken for gone, by a PING if need be", async () => {
    const [far, near] = joined();
    const said = heard(far);
    const connection = new ControlConnection(near, { silenceMs: 8000 });
    // The other side is heard all the time.
    const steps = async (count: number, talk: boolean) => {
      for (let i = 0; i < count; i++) {
        far.write(encodeControlFrame(sequence++, { type: "PING" }));
        if (talk) await connection.send({ type: "GO" });
        await vi.advanceTimersByTimeAsync(1000);
      }
    };
    let sequence = 0;
    await steps(24, false);
    // One at once, then one each 3 s: the first look after 2 s is later than that.
    expect(said.length).toBe(9);
    expect(said.every(({ type }) => type === "PING")).toBe(true);
    await steps(10, true);
    expect(said.slice(9).filter(({ type }) => type === "PING")).toEqual([]);
  });

  it("does not take a peer for gone that it does not read from", async () => {
    const [far, near] = joined();
    const connection = new ControlConnection(near, { held: true, silenceMs: 8000 });
    far.write(encodeControlFrame(0, { type: "PING" }));
    await connection.introduced;
    await vi.advanceTimersByTimeAsync(60_000);
    expect(connection.over).toBe(false);
    connection.begin();
    await vi.advanceTimersByTimeAsync(8000);
    expect(connection.over).toBe(false);
    await vi.advanceTimersByTimeAsync(1000);
    await expect(connection.receive()).rejects.toMatchObject({ code: "PEER_SILENT" });
    expect(near.destroyed).toBe(true);
  });

  it.each([
    ["that is closed", (connection: ControlConnection) => void connection.close()],
    ["that was refused", (connection: ControlConnection) => connection.refuse({ code: "BUSY", message: "no" })],
  ])("ends after 2 s with a peer %s and does not end it, and sends no more PINGs", async (_, end) => {
    const [far, near] = joined();
    const said = heard(far);
    const connection = new ControlConnection(near, { silenceMs: 100 });
    end(connection);
    await vi.advanceTimersByTimeAsync(1999);
    expect(near.destroyed).toBe(false);
    expect(said.filter(({ type }) => type === "PING")).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(1);
    expect(near.destroyed).toBe(true);
    expect(connection.over).toBe(true);
  });
});
