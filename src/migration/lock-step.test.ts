import { describe, expect, it } from "vitest";
import type { DataStream, Machine, MigrationSupport } from "../host/host.js";
import type { MigState } from "../uapi/vfio.js";
import {
  announceHandover,
  type MigratableDevice,
  migratableDevices,
  runAll,
  startPrecopy,
  stopAll,
  takeDevicesBack,
} from "./lock-step.js";

/*
 * Devices that note what they are asked for, and answer in later turns of the event loop: what is awaited is seen.
 */

interface Fake {
  readonly support?: Partial<MigrationSupport>;
  readonly state?: MigState;
  /** States that it refuses to go to; all its resets. */
  readonly refuses?: readonly (MigState | "reset")[];
  readonly silent?: boolean;
}

function machineOf(fakes: Readonly<Record<string, Fake>>) {
  const log: string[] = [];
  const devices = Object.entries(fakes).map(([id, fake]): MigratableDevice => {
    let state: MigState = fake.state ?? "RUNNING";
    const turn = () => new Promise((resolve) => setImmediate(resolve));
    const vfio = {
      state: async () => state,
      reset: async () => {
        await turn();
        if (fake.refuses?.includes("reset")) throw new Error(`${id} is stuck`);
        log.push(`${id} reset`);
        state = "RUNNING";
      },
      setState: async (next: MigState): Promise<DataStream | null> => {
        log.push(`${id} to ${next}`);
        await turn();
        if (fake.refuses?.includes(next)) throw new Error(`${id} refuses`);
        state = next;
        log.push(`${id} in ${next}`);
        return next === "PRE_COPY" || next === "STOP_COPY"
          ? ({ direction: "saving", id } as unknown as DataStream)
          : null;
      },
      announceHandover: async (notice: string, migration: string) => {
        await turn();
        if (fake.silent === true) throw new Error("no answer");
        log.push(`${id} told ${notice} of ${migration}`);
      },
    };
    const support: MigrationSupport = { stopCopy: true, p2p: true, preCopy: true, ...fake.support };
    return { id, vfio: vfio as unknown as MigratableDevice["vfio"], support };
  });
  const streams: string[] = [];
  const onStream = (device: MigratableDevice, stream: unknown) => {
    expect(stream).toMatchObject({ id: device.id });
    streams.push(device.id);
  };
  const index = (entry: string) => {
    const at = log.indexOf(entry);
    expect(at, entry).not.toBe(-1);
    return at;
  };
  return { devices, log, streams, onStream, index };
}

const none = new Set<string>();
const all = () => true;
const MS = 10_000;

describe("the devices of a machine", () => {
  it("go to PRE_COPY where they have it and are not stopped", async () => {
    const { devices, log, streams, onStream } = machineOf({ a: {}, b: { support: { preCopy: false } }, c: {} });
    await startPrecopy(devices, new Set(["c"]), MS, onStream);
    expect(log).toEqual(["a to PRE_COPY", "a in PRE_COPY"]);
    expect(streams).toEqual(["a"]);
  });

  it("are all quiescent before one stops, and those without such a state stop while the others still listen", async () => {
    const { devices, streams, onStream, index, log } = machineOf({
      a: {},
      b: { support: { preCopy: false } },
      abrupt: { support: { p2p: false } },
      stopped: { state: "STOP" },
    });
    await stopAll(devices, new Set(["stopped"]), MS, onStream);
    const quiescent = Math.max(index("a in PRE_COPY_P2P"), index("b in RUNNING_P2P"));
    expect(index("abrupt to STOP_COPY")).toBeGreaterThan(quiescent);
    for (const id of ["a", "b", "stopped"]) {
      expect(index(`${id} to STOP_COPY`)).toBeGreaterThan(index("abrupt in STOP_COPY"));
    }
    expect(log.filter((entry) => entry.startsWith("stopped"))).toEqual([
      "stopped to STOP_COPY",
      "stopped in STOP_COPY",
    ]);
    expect(log.filter((entry) => entry.includes("_P2P"))).toHaveLength(4);
    expect(streams.sort()).toEqual(["a", "abrupt", "b", "stopped"]);
  });

  it("are all quiescent before one runs", async () => {
    const { devices, index, log } = machineOf({ a: { state: "STOP" }, b: { support: { p2p: false }, state: "STOP" } });
    await runAll(devices, MS);
    for (const id of ["a", "b"]) expect(index(`${id} to RUNNING`)).toBeGreaterThan(index("a in RUNNING_P2P"));
    expect(log).toHaveLength(6);
  });

  it("are waited for, all of them, before an error is told", async () => {
    const { devices, index, log, onStream } = machineOf({ a: { refuses: ["RUNNING_P2P", "PRE_COPY_P2P"] }, b: {} });
    await expect(runAll(devices, MS)).rejects.toMatchObject({
      code: "DEVICE_FAILED",
      device: "a",
      message: "a did not go to RUNNING_P2P: a refuses",
    });
    index("b in RUNNING_P2P");
    expect(log).not.toContain("b to RUNNING");
    await expect(stopAll(devices, none, MS, onStream)).rejects.toMatchObject({ code: "DEVICE_FAILED" });
    expect(log).not.toContain("b to STOP_COPY");
  });

  it("go back to RUNNING from wherever they are, quiescent first, and stay where they run or are left out", async () => {
    const { devices, index, log } = machineOf({
      a: { state: "STOP_COPY" },
      b: { state: "PRE_COPY" },
      runs: {},
      abrupt: { state: "STOP", support: { p2p: false } },
      left: { state: "STOP" },
    });
    expect(await takeDevicesBack(devices, { mayP2p: all, deviceMs: MS, except: new Set(["left"]) })).toEqual([]);
    expect(log.filter((entry) => entry.startsWith("left") || entry.startsWith("runs"))).toEqual([]);
    expect(log.filter((entry) => entry.includes("RUNNING_P2P"))).toEqual(["a to RUNNING_P2P", "a in RUNNING_P2P"]);
    for (const id of ["a", "b", "abrupt"]) {
      expect(index(`${id} to RUNNING`)).toBeGreaterThan(index("a in RUNNING_P2P"));
      index(`${id} in RUNNING`);
    }
  });

  it("are reset where they are in ERROR or refuse, which is told, and where that fails as well", async () => {
    const { devices, log } = machineOf({
      error: { state: "ERROR" },
      refuses: { state: "STOP", refuses: ["RUNNING_P2P"] },
      late: { state: "STOP", refuses: ["RUNNING"] },
      lost: { state: "ERROR", refuses: ["reset"] },
    });
    const lost = await takeDevicesBack(devices, { mayP2p: all, deviceMs: MS });
    const of = (id: string) => lost.filter(({ device }) => device === id).map(({ text }) => text);
    expect(lost.filter(({ isLost }) => isLost).map(({ device }) => device)).toEqual(["lost"]);
    expect(of("error")).toEqual(["error was reset and its guest driver must start it anew: it had gone to ERROR"]);
    expect(of("refuses")).toEqual([expect.stringContaining("must start it anew: refuses did not go to RUNNING_P2P")]);
    expect(of("late")).toEqual([expect.stringContaining("must start it anew: late did not go to RUNNING")]);
    expect(of("lost")[0]).toBe("lost is lost: it had gone to ERROR; its reset failed: lost is stuck");
    expect(log.filter((entry) => entry.endsWith("reset")).sort()).toEqual([
      "error reset",
      "late reset",
      "refuses reset",
    ]);
  });

  it("wait, on the way back, for no other device but those that they may write into", async () => {
    const { devices, log, index } = machineOf({
      silent: { state: "STOP" },
      writer: { state: "STOP" },
      other: { state: "STOP" },
    });
    let answer: (state: MigState) => void = () => {};
    devices[0].vfio.state = () =>
      new Promise((resolve) => {
        answer = resolve;
      });
    const mayP2p = (from: string, to: string) => from === "writer" && to === "silent";
    const back = takeDevicesBack(devices, { mayP2p, deviceMs: MS });
    await expect.poll(() => log).toContain("other in RUNNING");
    expect(log).toContain("writer in RUNNING_P2P");
    expect(log).not.toContain("writer to RUNNING");
    devices[0].vfio.state = async () => "RUNNING_P2P";
    answer("STOP");
    expect(await back).toEqual([]);
    expect(index("writer to RUNNING")).toBeGreaterThan(index("silent in RUNNING_P2P"));
  });

  it("are lost at once where nobody answers for them, and asked nothing more", async () => {
    const { devices } = machineOf({ gone: { state: "STOP" } });
    let asked = 0;
    devices[0].vfio.state = async () => {
      asked++;
      throw new Error("nobody is there");
    };
    devices[0].vfio.reset = devices[0].vfio.state as () => Promise<never>;
    const lost = await takeDevicesBack(devices, { mayP2p: all, deviceMs: MS });
    expect(lost).toEqual([{ device: "gone", isLost: true, text: expect.stringContaining("nobody is there") }]);
    expect(asked).toBe(2);
  });

  it("have their servers told how far the handover is; one that can't be told is an error", async () => {
    const { devices, log } = machineOf({ a: {}, b: {} });
    const without: MigratableDevice = { ...devices[0], id: "w", vfio: { ...devices[0].vfio } };
    delete (without.vfio as { announceHandover?: unknown }).announceHandover;
    await announceHandover([...devices, without], "committing", { migration: "m1", deviceMs: MS });
    expect(log).toEqual(["a told committing of m1", "b told committing of m1"]);
    const silent = machineOf({ a: { silent: true }, b: {} });
    await expect(announceHandover(silent.devices, "gone", { migration: "m1", deviceMs: MS })).rejects.toMatchObject({
      code: "DEVICE_FAILED",
      message: expect.stringContaining("the server of a was not told about the handover ('gone')"),
    });
    expect(silent.log).toEqual(["b told gone of m1"]);
  });
});

describe("a machine's devices", () => {
  /** @param p2p pairs that may write into each other, as "from to" */
  function machine(fakes: Readonly<Record<string, Partial<MigrationSupport> | Error>>, ...p2p: string[]): Machine {
    const devices = Object.entries(fakes).map(([id, support]) => ({
      id,
      vfio: {
        migration: async () => {
          if (support instanceof Error) throw support;
          return { stopCopy: true, p2p: false, preCopy: false, ...support };
        },
      },
    }));
    const mayP2p = (from: string, to: string) => p2p.includes(`${from} ${to}`);
    return { devices, mayP2p } as unknown as Machine;
  }
  const refused = { code: "CANNOT_MIGRATE" };

  it("migrate where each can, and no two without a quiescent state may write into each other", async () => {
    const support = { p2p: true };
    const found = await migratableDevices(machine({ a: {}, b: { p2p: true } }, "a b", "b a", "a a"));
    expect(found.map(({ id, support }) => [id, support.p2p])).toEqual([
      ["a", false],
      ["b", true],
    ]);
    await expect(migratableDevices(machine({ a: {}, b: new Error("it can't") }))).rejects.toMatchObject(refused);
    await expect(migratableDevices(machine({ a: {}, b: {} }))).resolves.toHaveLength(2);
    for (const pair of ["a b", "b a"]) {
      await expect(migratableDevices(machine({ a: {}, x: support, b: {} }, pair))).rejects.toMatchObject(refused);
    }
  });
});
