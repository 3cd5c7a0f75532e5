import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { HandoverOptions } from "../migration/source.js";
import { Served } from "../vfio-user/server/served.test.helper.js";
import { FakePlaces } from "./fake-places.test.helper.js";
import { FakeVm } from "./fake-vm.test.helper.js";
import { type Moved, type MoveOptions, moveGuest } from "./move.test.helper.js";
import { Qemu } from "./qmp/qemu.js";
import { SocketMonitor } from "./qmp/socket-monitor.js";
import { SourceGuest } from "./source-guest.js";

/*
 * A guest that moves from one QEMU to another, which tell what real ones tell, with a device that is really served. What is checked
 * is who runs in the end, and that all else is as it was.
 */

const LONG = { timeout: 60_000 };

interface TestOptions extends Partial<Omit<MoveOptions, "handover">> {
  readonly handover?: HandoverOptions;
}

describe.runIf(process.platform === "linux")("the move of a guest between two QEMUs", () => {
  let places: FakePlaces;
  let source: FakeVm;
  let destination: FakeVm;

  beforeEach(async () => {
    places = await FakePlaces.start();
    ({ source, destination } = places);
  });

  afterEach(() => places[Symbol.asyncDispose]());

  const deviceStates = () => places.deviceStates();

  async function move({ handover, ...options }: TestOptions = {}): Promise<Moved> {
    await using from = new Qemu(await SocketMonitor.open(source.pc.qemu.path));
    await using to = new Qemu(await SocketMonitor.open(destination.pc.qemu.path));
    const address = "unix:/nowhere";
    return await moveGuest(from, to, {
      ...options,
      address,
      handover: { journalDirectory: places.folder, ...handover },
    });
  }

  /** The source runs as if nothing had been, and the destination's QEMU has ended, if it had begun. */
  async function expectTakenBack(): Promise<void> {
    expect([source.running, destination.running]).toEqual([true, false]);
    expect([...source.capabilities.values()]).toEqual([false, false, false, false, false]);
    expect(destination.hasQuit || destination.runState === "inmigrate").toBe(true);
    await expect.poll(deviceStates).toMatchObject({
      source: { state: "RUNNING", path: "direct", log: null },
      destination: { state: "RUNNING", waitsForState: true },
    });
  }

  it("ends with the guest and its device at the destination, and the source's QEMU gone", LONG, async () => {
    const { report, received, warnings } = await move();
    expect(report.error).toBeUndefined();
    expect([report.result, received.outcome, report.warnings, warnings]).toEqual(["completed", "running", [], []]);
    expect([source.running, source.hasQuit, destination.running]).toEqual([false, true, true]);
    expect([...destination.capabilities.values()]).toEqual([false, false, false, false, false]);
    const states = await deviceStates();
    expect(states.destination).toMatchObject({ state: "RUNNING", waitsForState: false });
    expect(states.source).toMatchObject({ notice: "gone" });
    expect(destination.pc.function.config).toEqual(source.pc.function.config);
    expect(report.devices).toMatchObject([{ id: "disk", model: "test", tracker: "vmm" }]);
    const commands = source.pc.qemu.commands.map(({ execute }) => execute).filter((name) => /^migrate|quit/.test(name));
    expect(commands).toEqual(["migrate-set-capabilities", "migrate", "migrate-continue", "quit"]);
  });

  it("tracks by the device's log where that is asked for", LONG, async () => {
    const { report } = await move({ trackers: { disk: "device" } });
    expect(report.result).toBe("completed");
    expect(report.devices).toMatchObject([{ tracker: "device", granule: 4096 }]);
  });

  it("leaves the source's QEMU paused, with its settings as they were, where it is to be kept", LONG, async () => {
    const { report } = await move({ keepSource: true });
    expect([report.result, source.hasQuit, source.runState]).toEqual(["completed", false, "postmigrate"]);
    expect([...source.capabilities.values()]).toEqual([false, false, false, false, false]);
  });

  it("leaves a paused guest paused", LONG, async () => {
    source.runState = "paused";
    const { report } = await move();
    expect([report.result, destination.running, destination.runState]).toEqual(["completed", false, "paused"]);
  });

  it.each(["migrate-set-capabilities", "migrate", "migrate-continue"])(
    "takes the guest back where the source's QEMU refuses '%s'",
    LONG,
    async (refused) => {
      let times = 0;
      source.before = (command) => {
        if (command === refused && times++ === 0) throw new Error("not today");
      };
      const { report, received } = await move();
      expect([report.result, received.outcome]).toEqual(["failed", "discarded"]);
      expect(report.error?.message).toContain("not today");
      await expectTakenBack();
    },
  );

  it.each(["migrate-set-capabilities", "migrate-incoming"])(
    "is refused where the destination's QEMU refuses '%s', and nothing is touched",
    LONG,
    async (refused) => {
      destination.before = (command) => {
        if (command === refused) throw new Error("not here");
      };
      await expect(move()).rejects.toMatchObject({ message: expect.stringContaining("not here") });
      await expectTakenBack();
    },
  );

  it("takes the guest back where QEMU's migration fails, in pre-copy and in the pause", LONG, async () => {
    for (const step of ["migrate", "migrate-continue"]) {
      source.before = (command) => {
        if (command !== step) return;
        setImmediate(() => {
          source.status = "failed";
          source.runState = "running";
        });
      };
      const { report } = await move().catch((error: unknown) => {
        throw new Error(`${step}`, { cause: error });
      });
      expect(report.result, step).toBe("failed");
      await expectTakenBack();
      destination.runState = "inmigrate";
      destination.status = "none";
      source.status = "none";
    }
  });

  it("takes the guest back where the destination's device does not take its PCI state", LONG, async () => {
    const { report } = await move({
      hooks: {
        guestState: (state) => ({
          ...state,
          devices: new Map(
            Array.from(state.devices, ([id, pci]) => [
              id,
              { ...pci, config: pci.config.map((dword, i) => (i === 11 ? 7 : dword)) },
            ]),
          ),
        }),
      },
    });
    expect([report.result, report.error?.code]).toEqual(["failed", "PCI_STATE_DIFFERS"]);
    await expectTakenBack();
  });

  it("takes the guest back where a device's state does not come, while QEMU still sends", LONG, async () => {
    // The destination's QEMU has never got it all.
    source.to = undefined;
    const { report } = await move({ machine: () => ({ devices: [], mayP2p: () => false }) });
    expect([report.result, report.error?.code]).toEqual(["failed", "BAD_DEVICE_STATE"]);
    await expectTakenBack();
  });

  it.each(["tracking", "pre-copy", "pausing", "stop-copy", "handover"] as const)(
    "takes the guest back where it is cancelled in '%s'",
    LONG,
    async (phase) => {
      const cancel = new AbortController();
      const hooks = {
        beforePhase: (next: string) => {
          if (next === phase) cancel.abort(new Error("enough"));
        },
      };
      const { report } = await move({ handover: { signal: cancel.signal, hooks } });
      expect([report.result, report.warnings]).toEqual(["cancelled", []]);
      await expectTakenBack();
    },
  );

  it("refuses guests whose devices differ, before anything is touched", LONG, async () => {
    const list = destination.pc.qemu.answers.get("qom-list");
    destination.pc.qemu.answers.set("qom-list", (command) =>
      command.arguments.path === "/machine/peripheral" ? [] : list?.(command),
    );
    await expect(move()).rejects.toMatchObject({ message: expect.stringContaining("disk") });
    await expectTakenBack();
  });

  it("refuses a destination whose server does not wait for a state", LONG, async () => {
    await places.servers.destination[Symbol.asyncDispose]();
    places.servers.destination = await Served.start();
    await destination[Symbol.asyncDispose]();
    destination = places.destination = await FakeVm.start("inmigrate", places.servers.destination.server.path);
    await expect(move()).rejects.toMatchObject({ message: expect.stringContaining("does not wait for a state") });
    expect([source.running, source.status]).toEqual([true, "none"]);
  });

  it("refuses a guest that is migrating already, or in no state to be moved", LONG, async () => {
    source.status = "active";
    await expect(SourceGuest.open(new Qemu(await SocketMonitor.open(source.pc.qemu.path)))).rejects.toMatchObject({
      code: "WRONG_STATE",
      message: expect.stringContaining("under way"),
    });
    source.pc.qemu.hangUp();
    source.status = "none";
    source.runState = "internal-error";
    await expect
      .poll(async () => {
        try {
          await using qemu = new Qemu(await SocketMonitor.open(source.pc.qemu.path));
          await SourceGuest.open(qemu);
          return "opened";
        } catch (error) {
          return (error as { code?: string }).code;
        }
      })
      .toBe("WRONG_STATE");
  });

  it("leaves both paused, and waits for the operator, where the destination does not confirm", LONG, async () => {
    destination.before = (command) => {
      if (command === "cont") throw new Error("can't");
    };
    const { report, received } = await move({ handover: { decideMs: 100 } });
    expect([report.result, received.outcome]).toEqual(["indeterminate", "run-failed"]);
    expect([source.running, source.hasQuit, destination.running]).toEqual([false, false, false]);
    const states = await deviceStates();
    expect(states.source).toMatchObject({ state: "STOP_COPY", notice: "committing" });
  });
});
