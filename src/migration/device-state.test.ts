import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { DataStream, SavingStream, VfioDevice } from "../host/host.js";
import { UapiError } from "../uapi/errno.js";
import { DeviceStateReceiver, DeviceStateSender } from "./device-state.js";
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
});
