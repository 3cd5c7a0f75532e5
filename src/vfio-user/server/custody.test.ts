import { closeSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
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
