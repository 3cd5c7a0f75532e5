import { readdirSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { noteOf } from "../migration/outliving.js";
import { DestinationGuest } from "./destination-guest.js";
import { FakePlaces } from "./fake-places.test.helper.js";
import type { FakeVm } from "./fake-vm.test.helper.js";
import { type Moved, moveGuest } from "./move.test.helper.js";
import { Qemu } from "./qmp/qemu.js";
import { SocketMonitor } from "./qmp/socket-monitor.js";
import { SourceGuest } from "./source-guest.js";

/*
 * QEMUs from which, or to which, no guest is moved, and QEMUs that stop answering in the middle: what is said, and what becomes of
 * the guest.
 */

const LONG = { timeout: 60_000 };
/** Far longer than a fake takes. */
const ANSWER_MS = 2000;

describe.runIf(process.platform === "linux")("a move of a guest", () => {
  let places: FakePlaces;
  let source: FakeVm;
  let destination: FakeVm;

  beforeEach(async () => {
    places = await FakePlaces.start();
    ({ source, destination } = places);
  });

  afterEach(() => places[Symbol.asyncDispose]());

  const connect = async ({ pc }: FakeVm) => new Qemu(await SocketMonitor.open(pc.qemu.path, { answerMs: ANSWER_MS }));

  async function move(): Promise<Moved> {
    await using from = await connect(source);
    await using to = await connect(destination);
    const handover = { journalDirectory: places.folder, decideMs: 100 };
    return await moveGuest(from, to, { address: "unix:/nowhere", handover });
  }

  /** Nothing was asked of it but what it is. */
  function expectUntouched({ pc }: FakeVm): void {
    expect(pc.qemu.commands.map(({ execute }) => execute).filter((name) => !/^(query|qom)-/.test(name))).toEqual([]);
  }

  /** What `dirtmap resume` brings a guest back by. */
  const notes = () => readdirSync(places.folder).filter((file) => noteOf(file) !== null);

  it.each([
    ["inmigrate", "waits for one itself"],
    ["postmigrate", "dirtmap list"],
    ["finish-migrate", "is paused"],
    ["prelaunch", "cont"],
    ["suspended", "system_wakeup"],
    ["shutdown", "anew"],
    ["internal-error", "is paused"],
  ])("is refused from a QEMU in state '%s'", LONG, async (state, remedy) => {
    source.runState = state;
    await using qemu = await connect(source);
    await expect(SourceGuest.open(qemu)).rejects.toMatchObject({
      code: "WRONG_STATE",
      message: expect.stringContaining(`'${state}'`),
      remedy: expect.stringContaining(remedy),
    });
    expectUntouched(source);
  });

  it.each([
    ["running", "this one runs one"],
    ["paused", "-incoming defer"],
    ["postmigrate", "-incoming defer"],
    ["prelaunch", "-incoming defer"],
    ["io-error", "-incoming defer"],
  ])("is refused to a QEMU in state '%s'", LONG, async (state, remedy) => {
    destination.runState = state;
    await using qemu = await connect(destination);
    await expect(DestinationGuest.open(qemu)).rejects.toMatchObject({
      code: "WRONG_STATE",
      message: expect.stringContaining(`'${state}'`),
      remedy: expect.stringContaining(remedy),
    });
    expectUntouched(destination);
  });

  it("is refused to a QEMU that takes another's guest, which it goes on taking", LONG, async () => {
    destination.status = "active";
    await expect(move()).rejects.toMatchObject({ message: expect.stringContaining("takes a guest already") });
    expectUntouched(source);
    expectUntouched(destination);
    expect(source.running).toBe(true);
  });

  it("leaves a destination's QEMU that refuses to take it to another move", LONG, async () => {
    destination.before = (command) => {
      if (command === "migrate-incoming") throw new Error("the address is in use");
    };
    await expect(move()).rejects.toMatchObject({ message: expect.stringContaining("the address is in use") });
    expect([destination.hasQuit, destination.runState]).toEqual([false, "inmigrate"]);
    destination.before = () => {};
    expect((await move()).report.result).toBe("completed");
  });

  it.each(["migrate-set-capabilities", "migrate-incoming"])(
    "is refused where the destination's QEMU stops answering at '%s', and nothing is touched",
    LONG,
    async (command) => {
      destination.before = (next) => {
        destination.pc.qemu.standsStill ||= next === command;
      };
      await expect(move()).rejects.toMatchObject({ message: expect.stringContaining("has not answered") });
      expectUntouched(source);
      expect(source.running).toBe(true);
    },
  );

  it("is taken back where the destination's QEMU stops answering in the pause", LONG, async () => {
    source.before = (command) => {
      destination.pc.qemu.standsStill ||= command === "migrate-continue";
    };
    const { report, received } = await move();
    expect([report.result, received.outcome]).toEqual(["failed", "discarded"]);
    expect(source.running).toBe(true);
    expect(notes()).toEqual([]);
    await expect.poll(() => places.deviceStates()).toMatchObject({ source: { state: "RUNNING", path: "direct" } });
  });

  it.each(["migrate", "migrate-continue"])(
    "ends where the source's QEMU stops answering at '%s': its devices run, and the rest waits for `dirtmap resume`",
    LONG,
    async (command) => {
      source.before = (next) => {
        source.pc.qemu.standsStill ||= next === command;
      };
      const { report } = await move();
      expect([report.result, report.error?.code]).toEqual(["failed", "QMP_TIMED_OUT"]);
      expect(report.warnings.at(-1)).toContain(`dirtmap resume ${report.migration}`);
      expect(notes()).toHaveLength(1);
      expect(destination.running).toBe(false);
      await expect.poll(() => places.deviceStates()).toMatchObject({ source: { state: "RUNNING", path: "direct" } });
    },
  );
});
