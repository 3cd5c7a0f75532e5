import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { DataStream, ResumingStream, SavingStream, VfioDevice } from "../host/host.js";
import { MiB } from "../memory/address.js";
import { UapiError } from "../uapi/errno.js";
import { checkStateSize, DeviceStateReceiver, DeviceStateSender, MAX_DEVICE_STATE_BYTES } from "./device-state.js";
import type { ControlMessageOf } from "./stream/messages.js";

type Chunk = ControlMessageOf<"DEVICE_STATE">;

/** A device's saving stream: these pieces in pre-copy, each followed by its temporary end, then those in stop-copy. */
function saving(precopy: readonly Uint8Array[], stopCopy: readonly Uint8Array[]): SavingStream & { stop(): void } {
  const queue: (Uint8Array | null)[] = precopy.flatMap((piece) => [piece, null]);
  let stopped = false;
  return {
    direction: "saving",
    stop: () => {
      stopped = true;
      queue.splice(0, queue.length, ...queue.filter((piece) => piece !== null), ...stopCopy);
    },
    read: async () => {
      const next = queue.shift();
      if (next !== undefined && next !== null) return next;
      if (stopped) return new Uint8Array(0);
      throw new UapiError("ENOMSG", { syscall: "read", attempted: "read on" });
    },
    precopyInfo: async () => ({ initialBytes: 0, dirtyBytes: 0, reinit: false }),
    [Symbol.asyncDispose]: async () => {},
  };
}

/** What a resuming device swallowed. */
async function resuming(): Promise<{ receiver: DeviceStateReceiver; data: number[]; states: string[] }> {
  const data: number[] = [];
  const states: string[] = [];
  const device: Pick<VfioDevice, "id" | "setState"> = {
    id: "dev0",
    setState: async (next): Promise<DataStream | null> => {
      states.push(next);
      if (next !== "RESUMING") return null;
      return {
        direction: "resuming",
        write: async (bytes) => void data.push(...bytes),
        [Symbol.asyncDispose]: async () => {},
      };
    },
  };
  return { receiver: await DeviceStateReceiver.open(device), data, states };
}

type Taker = Pick<VfioDevice, "id" | "setState">;

/** A device that resumes, with another stream than {@link resuming}'s. */
function takingDevice(stream: Partial<ResumingStream>): Taker {
  const whole: ResumingStream = {
    direction: "resuming",
    write: async () => {},
    [Symbol.asyncDispose]: async () => {},
    ...stream,
  };
  return { id: "dev0", setState: async (next) => (next === "RESUMING" ? whole : null) };
}

const bytesOf = (length: number) => new Uint8Array(length);
const never = new AbortController().signal;
const bytes = fc.uint8Array({ minLength: 1, maxLength: 50 });
const chunk = (fields: Partial<Chunk>): Chunk => ({
  type: "DEVICE_STATE",
  device: "dev0",
  chunk: 0,
  last: false,
  data: new Uint8Array(1),
  ...fields,
});

describe("a device's state", () => {
  it("arrives byte for byte, however it was cut, and is loaded once it is complete", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(bytes, { maxLength: 6 }), fc.array(bytes, { maxLength: 6 }), async (before, after) => {
        const stream = saving(before, after);
        const sent: Chunk[] = [];
        const sender = new DeviceStateSender("dev0", stream, async (message) => void sent.push(message));
        // Two rounds of pre-copy, whatever they find, then the rest.
        await sender.sendPrecopy(never);
        await sender.sendPrecopy(never);
        stream.stop();
        await sender.sendRest(never);
        const { receiver, data, states } = await resuming();
        for (const message of sent) await receiver.write(message);
        await receiver.finish();
        const all = [...before, ...after].flatMap((piece) => [...piece]);
        expect(data).toEqual(all);
        expect(sender.bytes).toBe(all.length);
        expect(states).toEqual(["RESUMING", "STOP"]);
      }),
      { numRuns: 50 },
    );
  });

  it("is refused with a chunk missing, repeated, or behind the last", async () => {
    const refused = async (...chunks: Chunk[]) => {
      const { receiver } = await resuming();
      for (const message of chunks.slice(0, -1)) await receiver.write(message);
      await expect(receiver.write(chunks[chunks.length - 1])).rejects.toMatchObject({ code: "BAD_DEVICE_STATE" });
    };
    await refused(chunk({ chunk: 1 }));
    await refused(chunk({}), chunk({}));
    await refused(chunk({ last: true }), chunk({ chunk: 1 }));
  });

  it("is not loaded where its end has not come", async () => {
    const { receiver, states } = await resuming();
    await receiver.write(chunk({}));
    await expect(receiver.finish()).rejects.toThrow(/not complete/);
    expect(states).toEqual(["RESUMING"]);
  });

  it("is sent no further once it was cancelled", async () => {
    const sender = new DeviceStateSender("dev0", saving([new Uint8Array(1)], []), async () => {});
    await expect(sender.sendPrecopy(AbortSignal.abort())).rejects.toThrow();
  });

  it("is sent no further once it was cancelled, in stop-copy too", async () => {
    const stream = saving([], [new Uint8Array(1)]);
    stream.stop();
    const sent: Chunk[] = [];
    const sender = new DeviceStateSender("dev0", stream, async (message) => void sent.push(message));
    await expect(sender.sendRest(AbortSignal.abort(new Error("enough")))).rejects.toThrow("enough");
    expect(sent).toEqual([]);
  });

  it("is sent up to its temporary end while the machine runs, and no more than 64 MiB a round", async () => {
    const sizes: number[] = [];
    const stream = saving([], []);
    const pieces = [64 * MiB - 1, 1, 1].map(bytesOf);
    const long = { ...stream, read: async (max: number) => pieces.shift() ?? (await stream.read(max)) };
    const sender = new DeviceStateSender("dev0", long, async ({ data }) => void sizes.push(data.length));
    expect(await sender.sendPrecopy(never)).toBe(false);
    expect(sizes).toEqual([64 * MiB - 1, 1]);
    expect(await sender.sendPrecopy(never)).toBe(true);
    expect(await sender.sendPrecopy(never)).toBe(true);
    expect(sizes).toEqual([64 * MiB - 1, 1, 1]);
  });

  it("is not at its end in pre-copy, whatever a device says, nor where reading it fails", async () => {
    const sent: Chunk[] = [];
    const send = async (message: Chunk) => void sent.push(message);
    const stream = saving([], []);
    const atEnd = { ...stream, read: async () => new Uint8Array(0) };
    expect(await new DeviceStateSender("dev0", atEnd, send).sendPrecopy(never)).toBe(true);
    const fails = {
      ...stream,
      read: () => Promise.reject(new UapiError("EIO", { syscall: "read", attempted: "read on" })),
    };
    await expect(new DeviceStateSender("dev0", fails, send).sendPrecopy(never)).rejects.toMatchObject({ code: "EIO" });
    await expect(new DeviceStateSender("dev0", fails, send).sendRest(never)).rejects.toMatchObject({ code: "EIO" });
    expect(sent).toEqual([]);
  });

  it("is read on only once the connection has taken what was read, and a lost one ends it", async () => {
    let reads = 0;
    let done = false;
    const stream = saving([], []);
    const counted = { ...stream, read: async () => new Uint8Array(reads++ === 3 ? 0 : 1) };
    const taking: (() => void)[] = [];
    const sender = new DeviceStateSender("dev0", counted, () => new Promise((resolve) => taking.push(resolve)));
    const rest = sender.sendRest(never).then(() => {
      done = true;
    });
    for (const turn of [1, 2, 3, 4]) {
      await new Promise((resolve) => setImmediate(resolve));
      expect([reads, taking.length, done]).toEqual([turn, turn, false]);
      taking[turn - 1]();
    }
    await rest;

    const lost = async () => {
      throw new Error("lost");
    };
    await expect(new DeviceStateSender("dev0", saving([bytesOf(1)], []), lost).sendPrecopy(never)).rejects.toThrow(
      "lost",
    );
    const stopped = saving([], [bytesOf(1)]);
    stopped.stop();
    await expect(new DeviceStateSender("dev0", stopped, lost).sendRest(never)).rejects.toThrow("lost");
  });

  it("may have as many bytes as the limit, and not one more, at either side", async () => {
    expect(() => checkStateSize("dev0", MAX_DEVICE_STATE_BYTES)).not.toThrow();
    expect(MAX_DEVICE_STATE_BYTES).toBe(2 ** 30);
    const tooLarge = expect.objectContaining({ code: "BAD_DEVICE_STATE", message: expect.stringContaining("larger") });
    expect(() => checkStateSize("dev0", MAX_DEVICE_STATE_BYTES + 1)).toThrow(tooLarge);

    // Never written to: it has no pages of its own.
    const all = new Uint8Array(MAX_DEVICE_STATE_BYTES);
    const swallowed: number[] = [];
    const receiver = await DeviceStateReceiver.open(
      takingDevice({ write: async ({ length }) => void swallowed.push(length) }),
    );
    await receiver.write(chunk({ data: all }));
    await expect(receiver.write(chunk({ chunk: 1, data: bytesOf(1) }))).rejects.toEqual(tooLarge);
    expect(swallowed).toEqual([MAX_DEVICE_STATE_BYTES]);

    const stream = saving([], [all, bytesOf(1)]);
    stream.stop();
    const sent: number[] = [];
    const sender = new DeviceStateSender("dev0", stream, async ({ data }) => void sent.push(data.length));
    await expect(sender.sendRest(never)).rejects.toEqual(tooLarge);
    expect(sent).toEqual([MAX_DEVICE_STATE_BYTES]);
  });

  it("is closed at both sides, at the destination once the device is in STOP", async () => {
    const events: string[] = [];
    const close = async () => {
      await new Promise((resolve) => setImmediate(resolve));
      events.push("closed");
    };
    await new DeviceStateSender("dev0", { ...saving([], []), [Symbol.asyncDispose]: close }, async () => {}).close();
    expect(events).toEqual(["closed"]);
    const device = takingDevice({ write: async () => void events.push("write"), [Symbol.asyncDispose]: close });
    const receiver = await DeviceStateReceiver.open({
      id: "dev0",
      setState: async (next) => {
        if (next === "STOP") await new Promise((resolve) => setImmediate(resolve));
        events.push(next);
        return await device.setState(next);
      },
    });
    // A device is not given nothing.
    await receiver.write(chunk({ last: true, data: bytesOf(0) }));
    await receiver.finish();
    expect(events).toEqual(["closed", "RESUMING", "STOP", "closed"]);
  });

  it("that a device does not take, or gives no stream for, is told as that device's refusal", async () => {
    const refuse = async () => {
      throw new UapiError("EINVAL", { syscall: "write", attempted: "take it" });
    };
    const refusing = (state: string): Taker => ({
      id: "dev0",
      setState: async (next) => (next === state ? refuse() : takingDevice({}).setState(next)),
    });
    const sameVersion = expect.stringContaining("same version");
    await expect(DeviceStateReceiver.open(refusing("RESUMING"))).rejects.toMatchObject({
      code: "DEVICE_FAILED",
      remedy: undefined,
      device: "dev0",
    });
    const loading = await DeviceStateReceiver.open(refusing("STOP"));
    await loading.write(chunk({ last: true }));
    const bad = { code: "BAD_DEVICE_STATE", remedy: sameVersion, device: "dev0" };
    await expect(loading.finish()).rejects.toMatchObject(bad);
    const writing = await DeviceStateReceiver.open(takingDevice({ write: refuse }));
    await expect(writing.write(chunk({ last: true }))).rejects.toMatchObject(bad);
    // Nor is it complete then.
    await expect(writing.finish()).rejects.toThrow(/not complete/);

    for (const stream of [null, saving([], [])]) {
      await expect(DeviceStateReceiver.open({ id: "dev0", setState: async () => stream })).rejects.toMatchObject({
        code: "BAD_DEVICE_STATE",
      });
    }
  });
});
