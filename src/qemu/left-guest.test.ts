import { rmSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DIRTMAP_HANDOVER } from "../uapi/vfio-user.js";
import { controlPath } from "../vfio-user/control-path.js";
import { announce, Served, setState, told } from "../vfio-user/server/served.test.helper.js";
import { FakeVm } from "./fake-vm.test.helper.js";
import { LeftGuest } from "./left-guest.js";

/*
 * A guest whose `dirtmap migrate` has ended in the pause, with two devices that are really served. What is checked is that it runs
 * again with all that can run, whatever else has ended or stands still meanwhile.
 */

const MIGRATION = "m1";

describe.runIf(process.platform === "linux")("a guest that its migration has left", () => {
  let vm: FakeVm;
  let disks: [Served, Served];
  const silent: Server[] = [];

  beforeEach(async () => {
    disks = [(await Served.start()).giveMemory(), (await Served.start()).giveMemory()];
    vm = await FakeVm.start("running", disks[0].server.path);
    vm.runState = "finish-migrate";
    vm.status = "pre-switchover";
    vm.capabilities.set("pause-before-switchover", true);
  });

  afterEach(async () => {
    for (const server of silent.splice(0)) server.close();
    for (const each of [vm, ...disks]) await each[Symbol.asyncDispose]();
  });

  function note(options: object = {}) {
    return {
      schemaVersion: 1,
      qmp: vm.pc.qemu.path,
      running: true,
      keepSource: false,
      devices: disks.map(({ server }, i) => ({ id: `disk${i}`, socket: server.path })),
      settings: { capabilities: { "pause-before-switchover": false }, parameters: {} },
      ...options,
    };
  }

  /** Leaves a device as a migration does that has said that it may have handed the machine over. */
  function handOver(disk: Served, notice: keyof typeof DIRTMAP_HANDOVER = "committing", migration = MIGRATION): void {
    using control = disk.control();
    setState(control, "STOP_COPY");
    announce(control, DIRTMAP_HANDOVER.committing, migration);
    if (notice === "gone") announce(control, DIRTMAP_HANDOVER.gone, migration);
  }

  function stateOf(device: Served) {
    using control = device.control();
    return told(control);
  }

  /** Ends a device's server as a crash does. */
  async function end(device: Served): Promise<void> {
    await device.server.close();
  }

  /** A server that stands still: the kernel takes connections for it. */
  async function standStill(device: Served): Promise<void> {
    const path = controlPath(device.server.path);
    rmSync(path);
    const server = createServer(() => {});
    silent.push(server);
    await new Promise<void>((resolve) => server.listen(path, resolve));
  }

  async function resume(options: object = {}) {
    await using guest = await LeftGuest.find(note(options), MIGRATION);
    return await guest.takeBack();
  }

  it("runs again with all its devices, and QEMU's settings as they were", async () => {
    for (const disk of disks) handOver(disk);
    expect(await resume()).toEqual({
      said: expect.stringMatching(/^the guest runs again in QEMU at \S+$/),
      isWhole: true,
    });
    expect([vm.running, vm.status, vm.capabilities.get("pause-before-switchover")]).toEqual([true, "cancelled", false]);
    for (const disk of disks) expect(stateOf(disk)).toMatchObject({ state: "RUNNING", migration: null });
  });

  it("runs again without a device whose server has ended, which is named with what brings it back", async () => {
    handOver(disks[1]);
    await end(disks[0]);
    const { said, isWhole } = await resume();
    expect(said).toContain(`'disk0' is lost: its server at ${disks[0].server.path} has ended`);
    expect(said).toContain("device_add");
    expect(isWhole).toBe(true);
    expect([vm.running, vm.capabilities.get("pause-before-switchover")]).toEqual([true, false]);
    expect(stateOf(disks[1])).toMatchObject({ state: "RUNNING" });
  });

  it("runs again where none of its devices is left", async () => {
    await Promise.all(disks.map(end));
    const { said } = await resume();
    expect(said).toContain("'disk0' is lost");
    expect(said).toContain("'disk1' is lost");
    expect(vm.running).toBe(true);
  });

  it("runs again without a device whose server stands still, and can be brought back once more", async () => {
    handOver(disks[1]);
    await standStill(disks[0]);
    const { said, isWhole } = await resume();
    expect(said).toContain("'disk0' does not answer");
    expect(said).toContain(`dirtmap resume ${MIGRATION}`);
    expect(isWhole).toBe(false);
    expect(vm.running).toBe(true);
    expect(stateOf(disks[1])).toMatchObject({ state: "RUNNING" });
  }, 30_000);

  it("is told that a server that was started anew is not the one that QEMU talks to", async () => {
    disks[0].client[Symbol.dispose]();
    await expect.poll(() => stateOf(disks[0]).mapped).toEqual([]);
    const { said } = await resume();
    expect(said).toContain(`'disk0' is lost: its server at ${disks[0].server.path} was started anew`);
    expect(vm.running).toBe(true);
  });

  it.each([
    { notice: "gone", migration: MIGRATION, code: "HANDED_OVER" },
    { notice: "committing", migration: "m2", code: "DEVICE_BUSY" },
  ] as const)("stays as it is where one device is '$notice' in $migration, whatever the others are", async (its) => {
    handOver(disks[0], its.notice, its.migration);
    await end(disks[1]);
    await expect(resume()).rejects.toMatchObject({ code: its.code });
    expect([vm.running, vm.status]).toEqual([false, "pre-switchover"]);
  });

  it("is not touched where another client holds QEMU's monitor", async () => {
    handOver(disks[0]);
    await using _other = await LeftGuest.find(note(), MIGRATION);
    await expect(resume()).rejects.toMatchObject({ code: "QMP_BUSY" });
    expect(stateOf(disks[0])).toMatchObject({ state: "STOP_COPY" });
  }, 30_000);

  it("has its devices back where QEMU does not let it run, which can be tried again", async () => {
    handOver(disks[0]);
    vm.before = (command) => {
      if (command === "migrate_cancel") throw new Error("not today");
    };
    await expect(resume()).rejects.toMatchObject({ code: "QMP_REFUSED" });
    expect(stateOf(disks[0])).toMatchObject({ state: "RUNNING" });
    vm.before = () => {};
    expect(await resume()).toMatchObject({ isWhole: true });
    expect(vm.running).toBe(true);
  });

  it("is given up with all its servers that are left, and its QEMU is told to quit", async () => {
    handOver(disks[1]);
    await end(disks[0]);
    vm.runState = "postmigrate";
    await using guest = await LeftGuest.find(note(), MIGRATION);
    expect(await guest.giveUp()).toBe("the source's guest is given up");
    expect(vm.hasQuit).toBe(true);
    expect(stateOf(disks[1])).toMatchObject({ migration: { notice: "gone" } });
  });
});
