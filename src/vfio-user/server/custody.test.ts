import { closeSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { MigState } from "../../uapi/vfio.js";
import {
  VFIO_DEVICE_FEATURE as FEATURE,
  VFIO_DEVICE_FEATURE_SET as SET,
  vfio_device_feature_dma_logging_range,
} from "../../uapi/vfio.js";
import {
  DIRTMAP_COMMAND,
  DIRTMAP_HANDOVER,
  vfio_user_dma_logging_control,
  vfio_user_mig_data,
} from "../../uapi/vfio-user.js";
import { RawClient } from "../raw-client.test.helper.js";
import { Custody, type Mover } from "./custody.js";
import { announce, dma, errnoOf, feature, mapDma, Served, setState, sharedMemory, told } from "./served.test.helper.js";
import { TEST_REGISTER } from "./test-model.test.helper.js";

/*
 * A device in a migration whose controlling client dies, or meets another client.
 */

const { committing, gone } = DIRTMAP_HANDOVER;
const PAGE = 4096n;
/** A client that is not Dirtmap's, which does not say what becomes of a machine. */
const FOREIGN = { max_msg_fds: 16 };

function startLog(client: RawClient): void {
  const { size: head } = vfio_user_dma_logging_control;
  const data = new Uint8Array(head + vfio_device_feature_dma_logging_range.size);
  vfio_user_dma_logging_control.encode({ page_size: PAGE, num_ranges: 1 }, data);
  vfio_device_feature_dma_logging_range.encode({ iova: 0n, length: 16n * PAGE }, data, head);
  feature(client, SET | FEATURE.DMA_LOGGING_START, data);
}

const ALL_STATES: readonly MigState[] = [
  "PRE_COPY",
  "PRE_COPY_P2P",
  "RUNNING_P2P",
  "STOP",
  "STOP_COPY",
  "RESUMING",
  "ERROR",
];

describe("custody of a device", () => {
  const dirtmap: Mover = { name: "control client 1", announces: true };
  const other: Mover = { name: "control client 2", announces: true };
  const foreign: Mover = { name: "control client 3", announces: false };

  /** A device that was moved through these states. */
  function moved(user: Mover, ...states: readonly MigState[]): Custody {
    const custody = new Custody();
    for (const state of states) custody.moved(user, state);
    return custody;
  }

  it("lets it run again where its mover had not given it up, and not out of ERROR", () => {
    for (const state of ALL_STATES.slice(0, 5)) {
      expect(moved(dirtmap, state).leave(dirtmap, state), state).toEqual({ what: "run" });
    }
    expect(moved(dirtmap, "STOP").leave(dirtmap, "ERROR")).toEqual({ what: "stay", stays: "error" });
  });

  it("neither resets it nor lets it run once its mover has said `committing`, in whatever state", () => {
    for (const user of [dirtmap, foreign]) {
      for (const way of [["STOP_COPY"], ["RESUMING", "STOP"], ["RESUMING"]] as const) {
        for (const state of ALL_STATES) {
          const custody = moved(user, ...way);
          custody.announce(user, "committing", "a");
          expect(custody.leave(user, state), state).toEqual({ what: "stay", stays: "undecided" });
          expect(custody.report).toMatchObject({ connected: false, notice: "committing", stays: "undecided" });

          const gone = moved(user, ...way);
          gone.announce(user, "committing", "a");
          gone.announce(user, "gone", "a");
          expect(gone.leave(user, state), state).toEqual({ what: "stay", stays: "handed-over" });
        }
      }
    }
  });

  it("resets what holds another device's state, or a part of it, whoever leaves it", () => {
    for (const user of [dirtmap, foreign]) {
      expect(moved(user, "RESUMING").leave(user, "RESUMING")).toEqual({ what: "reset" });
    }
    for (const state of ALL_STATES) {
      expect(moved(dirtmap, "RESUMING", state).leave(dirtmap, state), state).toEqual({ what: "reset" });
    }
    expect(moved(foreign, "RESUMING", "STOP").leave(foreign, "STOP")).toEqual({ what: "stay", stays: "untold" });
  });

  it("remembers that a mover has left it without a word, until it is loaded anew", () => {
    const custody = moved(foreign, "STOP_COPY");
    expect(custody.report).toMatchObject({ movedBy: foreign.name, connected: true, stays: null });
    expect(custody.leave(foreign, "STOP_COPY")).toEqual({ what: "stay", stays: "untold" });
    expect(custody.report).toMatchObject({ movedBy: foreign.name, connected: false, stays: "untold" });
    for (let again = 0; again < 2; again++) {
      custody.moved(dirtmap, "STOP");
      expect(custody.report).toMatchObject({ movedBy: dirtmap.name, connected: true, stays: null });
      expect(custody.leave(dirtmap, "STOP")).toEqual({ what: "stay", stays: "earlier" });
    }
    custody.moved(dirtmap, "RESUMING");
    expect(custody.leave(dirtmap, "STOP")).toEqual({ what: "reset" });
  });

  it("forgets everything once it runs, or was reset", () => {
    const used = () => {
      const custody = moved(foreign, "STOP");
      custody.leave(foreign, "STOP");
      custody.moved(dirtmap, "RESUMING");
      custody.announce(dirtmap, "committing", "a");
      custody.announce(dirtmap, "gone", "a");
      custody.leave(dirtmap, "STOP");
      return custody;
    };
    const ways: ((custody: Custody) => void)[] = [
      (custody) => custody.moved(dirtmap, "RUNNING"),
      (custody) => custody.clear(),
    ];
    for (const forget of ways) {
      const custody = used();
      forget(custody);
      expect(custody.report).toBeNull();
      expect(custody.leave(dirtmap, "RUNNING")).toEqual({ what: "nothing" });
      custody.check(other, "RUNNING_P2P");
      custody.moved(other, "STOP");
      expect(custody.report).toEqual({
        movedBy: other.name,
        connected: true,
        loaded: false,
        notice: null,
        migration: null,
        stays: null,
      });
      expect(custody.leave(other, "STOP")).toEqual({ what: "run" });

      // Nor is anything left of the first mover's not having said a word.
      const untold = moved(foreign, "STOP");
      untold.leave(foreign, "STOP");
      forget(untold);
      untold.moved(dirtmap, "STOP");
      expect(untold.leave(dirtmap, "STOP")).toEqual({ what: "run" });
    }
  });

  it("is one mover's at a time, until that one leaves", () => {
    const custody = moved(dirtmap, "STOP");
    expect(errnoOf(() => custody.check(other, "RUNNING"))).toBe("EBUSY");
    expect(errnoOf(() => custody.check(dirtmap, "RUNNING"))).toBe("none");
    expect(errnoOf(() => custody.announce(other, "committing", "a"))).toBe("EINVAL");
    expect(custody.leave(other, "STOP")).toEqual({ what: "nothing" });
    expect(errnoOf(() => custody.check(other, "RUNNING"))).toBe("EBUSY");
    custody.leave(dirtmap, "STOP");
    expect(errnoOf(() => custody.check(other, "RUNNING"))).toBe("none");
    expect(errnoOf(() => custody.announce(dirtmap, "committing", "a"))).toBe("EINVAL");
  });

  it("forbids all states in which a device that was handed over would run, until it is loaded anew", () => {
    const custody = moved(dirtmap, "STOP_COPY");
    custody.announce(dirtmap, "committing", "a");
    for (const state of ALL_STATES)
      expect(
        errnoOf(() => custody.check(dirtmap, state)),
        state,
      ).toBe("none");
    custody.announce(dirtmap, "gone", "a");
    const runs = ["RUNNING", "PRE_COPY", "RUNNING_P2P", "PRE_COPY_P2P"] as const;
    for (const state of runs)
      expect(
        errnoOf(() => custody.check(dirtmap, state)),
        state,
      ).toBe("EPERM");
    for (const state of ["STOP", "STOP_COPY", "RESUMING"] as const) {
      expect(
        errnoOf(() => custody.check(dirtmap, state)),
        state,
      ).toBe("none");
    }
    custody.moved(dirtmap, "STOP");
    expect(custody.report).toMatchObject({ notice: "gone", loaded: false });
    custody.moved(dirtmap, "RESUMING");
    expect(custody.report).toMatchObject({ notice: null, migration: null, loaded: true });
    for (const state of runs)
      expect(
        errnoOf(() => custody.check(dirtmap, state)),
        state,
      ).toBe("none");
  });

  it("takes `gone` of the migration that said `committing` last, and no `committing` after it", () => {
    const custody = moved(dirtmap, "STOP_COPY");
    expect(errnoOf(() => custody.announce(dirtmap, "gone", "a"))).toBe("EINVAL");
    custody.announce(dirtmap, "committing", "a");
    custody.announce(dirtmap, "committing", "b");
    expect(errnoOf(() => custody.announce(dirtmap, "gone", "a"))).toBe("EINVAL");
    expect(custody.report).toMatchObject({ notice: "committing", migration: "b" });
    custody.announce(dirtmap, "gone", "b");
    expect(errnoOf(() => custody.announce(dirtmap, "committing", "b"))).toBe("EINVAL");
    expect(custody.report).toMatchObject({ notice: "gone", migration: "b" });
  });
});

describe.runIf(process.platform === "linux")("a served device in a migration", () => {
  let served: Served;
  /** Looks on. */
  let watcher: RawClient;
  beforeEach(async () => {
    served = await Served.start();
    watcher = served.control();
  });
  afterEach(async () => {
    watcher[Symbol.dispose]();
    await served[Symbol.asyncDispose]();
  });

  it.each([
    ["PRE_COPY", ["PRE_COPY"]],
    ["PRE_COPY_P2P", ["PRE_COPY", "PRE_COPY_P2P"]],
    ["RUNNING_P2P", ["RUNNING_P2P"]],
    ["STOP", ["STOP"]],
    ["STOP_COPY", ["PRE_COPY", "PRE_COPY_P2P", "STOP_COPY"]],
  ] as const)("runs again, its log off, when its controlling client dies in %s", async (last, states) => {
    const { fd, u8 } = sharedMemory(4096);
    mapDma(served.client, { address: 0n, size: PAGE }, [fd]);
    closeSync(fd);
    const control = served.control();
    startLog(control);
    for (const state of states) setState(control, state);
    expect(told(watcher)).toMatchObject({ state: last, migration: { connected: true, loaded: false, notice: null } });
    control[Symbol.dispose]();
    expect(await served.logged(/runs again/)).toBe(
      `control client 3 has gone and left 'test' in ${last}: it runs again`,
    );
    expect(told(watcher)).toMatchObject({ state: "RUNNING", log: null, migration: null });
    // The guest's client has noticed nothing.
    expect(dma(served.client, "WRITE", { address: 0n, value: 7 })).toBe("done");
    expect(u8[0]).toBe(7);
  });

  it("runs again when its only client, which controls it too, dies", async () => {
    setState(served.client, "STOP_COPY");
    served.reconnect();
    await served.logged(/client 1 has gone and left 'test' in STOP_COPY: it runs again/);
    expect(told(watcher)).toMatchObject({ state: "RUNNING", migration: null });
  });

  it.each(["RESUMING", "STOP", "RUNNING_P2P"] as const)(
    "is reset when its controlling client dies at a destination, in %s",
    async (last) => {
      setState(watcher, "STOP_COPY");
      const { payload } = watcher.call("MIG_DATA_READ", vfio_user_mig_data, { argsz: 8 + 2 ** 20, size: 2 ** 20 });
      const { size } = vfio_user_mig_data.decode(payload);
      const data = payload.subarray(8, 8 + (last === "RESUMING" ? size / 2 : size));
      setState(watcher, "RUNNING");
      served.client.writeRegister(0, TEST_REGISTER.VALUE, 0xabc);

      const control = served.control();
      setState(control, "RESUMING");
      control.call("MIG_DATA_WRITE", vfio_user_mig_data, { argsz: 8 + data.length, size: data.length }, { data });
      if (last !== "RESUMING") setState(control, last);
      control[Symbol.dispose]();
      await served.logged(/has gone and left 'test' in \w+: it is reset, since its state is another's/);
      expect(told(watcher)).toMatchObject({ state: "RUNNING", migration: null });
      expect(served.client.readRegister(0, TEST_REGISTER.VALUE)).toBe(0);
    },
  );

  it("is not reset at a destination that has said that it is about to run it", async () => {
    setState(watcher, "STOP_COPY");
    const { payload } = watcher.call("MIG_DATA_READ", vfio_user_mig_data, { argsz: 8 + 2 ** 20, size: 2 ** 20 });
    const data = payload.subarray(8, 8 + vfio_user_mig_data.decode(payload).size);
    setState(watcher, "RUNNING");
    const control = served.control();
    setState(control, "RESUMING");
    control.call("MIG_DATA_WRITE", vfio_user_mig_data, { argsz: 8 + data.length, size: data.length }, { data });
    setState(control, "STOP");
    announce(control, committing, "a");
    setState(control, "RUNNING_P2P");
    control[Symbol.dispose]();
    await served.logged(/in RUNNING_P2P, where it stays; migration a may have handed it over/);
    expect(told(watcher)).toMatchObject({ state: "RUNNING_P2P", migration: { loaded: true, notice: "committing" } });
  });

  it("stays stopped once its controlling client has said that it gives the machine up", async () => {
    const control = served.control();
    setState(control, "STOP_COPY");
    announce(control, committing, "1f0c93ab");
    control[Symbol.dispose]();
    const line = await served.logged(/stays/);
    expect(line).toMatch(/in STOP_COPY, where it stays; migration 1f0c93ab may have handed it over: look at its other/);
    expect(line).toContain(`\`dirtmap device resume ${served.server.path}\``);
    expect(told(watcher)).toMatchObject({
      state: "STOP_COPY",
      migration: { movedBy: "control client 3", connected: false, notice: "committing", migration: "1f0c93ab" },
    });
    // The operator's word.
    setState(watcher, "RUNNING");
    expect(told(watcher)).toMatchObject({ state: "RUNNING", migration: null });
  });

  it("runs again when the client that has said so takes the machine back, or another's migration dies afterwards", async () => {
    const control = served.control();
    setState(control, "STOP_COPY");
    announce(control, committing, "a");
    setState(control, "RUNNING");
    setState(control, "STOP");
    control[Symbol.dispose]();
    await served.logged(/left 'test' in STOP: it runs again/);
  });

  it("runs here no more once it is handed over, until it is reset", async () => {
    const control = served.control();
    setState(control, "STOP_COPY");
    announce(control, committing, "a-1");
    announce(control, gone, "a-1");
    expect(errnoOf(() => setState(control, "RUNNING"))).toBe("EPERM");
    control[Symbol.dispose]();
    expect(await served.logged(/stays/)).toMatch(
      /migration a-1 has handed it over: `dirtmap device resume .* --reset` makes it usable again/,
    );
    for (const state of ["RUNNING", "RUNNING_P2P", "PRE_COPY"] as const) {
      expect(errnoOf(() => setState(watcher, state))).not.toBe("none");
    }
    expect(told(watcher)).toMatchObject({ state: "STOP_COPY", migration: { notice: "gone", migration: "a-1" } });
    served.client.request("DEVICE_RESET", null);
    expect(told(watcher)).toMatchObject({ state: "RUNNING", migration: null });
  });

  it("stays as it is when a client goes that can't tell whether it has handed over", async () => {
    const foreign = RawClient.open(served.server.controlPath, FOREIGN);
    setState(foreign, "STOP_COPY");
    foreign[Symbol.dispose]();
    expect(await served.logged(/stays/)).toMatch(/its client does not tell whether it has handed it over/);
    expect(told(watcher)).toMatchObject({ state: "STOP_COPY", migration: { connected: false, notice: null } });
    // Nor does it run because of the next client that looked after it.
    const control = served.control();
    setState(control, "STOP");
    control[Symbol.dispose]();
    await served.logged(/an earlier migration has left it so/);
    expect(told(watcher).state).toBe("STOP");
  });

  it("is moved by one client at a time", () => {
    using control = served.control();
    setState(control, "PRE_COPY");
    expect(errnoOf(() => setState(watcher, "RUNNING"))).toBe("EBUSY");
    expect(errnoOf(() => setState(served.client, "STOP"))).toBe("EBUSY");
    expect(told(watcher).state).toBe("PRE_COPY");
    setState(control, "RUNNING");
    setState(watcher, "STOP");
    setState(watcher, "RUNNING");
  });

  it("is in RUNNING, its log off, after the guest's client has reset it in the middle, and the log says so", async () => {
    using control = served.control();
    startLog(control);
    setState(control, "STOP_COPY");
    served.client.request("DEVICE_RESET", null);
    await served.logged(/client 1 has reset 'test', which ends the migration of control client 3/);
    expect(told(watcher)).toMatchObject({ state: "RUNNING", log: null, migration: null });
    expect(errnoOf(() => announce(control, committing, "a"))).toBe("EINVAL");
    setState(control, "STOP_COPY");
    expect(told(watcher).state).toBe("STOP_COPY");
  });

  it("stays where it is when the guest's client goes and comes in the middle, and the log says so", async () => {
    using control = served.control();
    setState(control, "STOP_COPY");
    const client = served.reconnect();
    expect(client.readRegister(0, TEST_REGISTER.RESULT)).toBe(0);
    await served.logged(/client 1 has gone while 'test' is in STOP_COPY, moved there by control client 3/);
    await served.logged(/client 4 has come while 'test' is in STOP_COPY, moved there by control client 3/);
    expect(told(watcher)).toMatchObject({ state: "STOP_COPY", migration: { connected: true } });
    setState(control, "RUNNING");
  });

  it("is told of a handover by the client that has moved it, in order and in the right form", () => {
    using control = served.control();
    expect(errnoOf(() => announce(control, committing, "a"))).toBe("EINVAL");
    setState(control, "STOP_COPY");
    expect(errnoOf(() => announce(watcher, committing, "a"))).toBe("EINVAL");
    expect(errnoOf(() => announce(control, gone, "a"))).toBe("EINVAL");
    for (const notice of [0, 3, 0xffffffff]) expect(errnoOf(() => announce(control, notice, "a"))).toBe("EINVAL");
    for (const id of ["", "a b", "A", "\u001b[2J", "a\0", "x".repeat(65), "x".repeat(100_000)]) {
      expect(errnoOf(() => announce(control, committing, id))).toBe("EINVAL");
    }
    for (const argsz of [0, 7, 8, 10, 0xffffffff]) {
      expect(errnoOf(() => announce(control, committing, "a", argsz))).toBe("EINVAL");
    }
    expect(errnoOf(() => control.request(DIRTMAP_COMMAND.HANDOVER, new Uint8Array(4)))).toBe("EINVAL");
    expect(told(watcher).migration).toMatchObject({ notice: null });
    announce(control, committing, "a");
    expect(errnoOf(() => announce(control, gone, "b"))).toBe("EINVAL");
    announce(control, gone, "a");
    expect(errnoOf(() => announce(control, committing, "a"))).toBe("EINVAL");
    served.client.request("DEVICE_RESET", null);
  });

  it("does not run again because its server ends", async () => {
    setState(served.client, "STOP_COPY");
    await served.server.close();
    expect(served.lines.join()).not.toMatch(/runs again/);
  });
});
