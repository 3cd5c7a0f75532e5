import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FakePc } from "./fake-pc.test.helper.js";
import { checkObstacles, type GuestDevice, lookAtGuest, socketIn, socketOf } from "./guest.js";
import { Qemu } from "./qmp/qemu.js";
import { SocketMonitor } from "./qmp/socket-monitor.js";

/*
 * What is found out about a guest before it is moved.
 */

describe("a guest of QEMU", () => {
  let pc: FakePc;
  let qemu: Qemu;

  beforeEach(async () => {
    pc = await FakePc.start();
    qemu = new Qemu(await SocketMonitor.open(pc.qemu.path));
  });

  afterEach(async () => {
    await qemu[Symbol.asyncDispose]();
    await pc[Symbol.asyncDispose]();
  });

  /** Puts objects among those without an id. */
  function anonymous(...types: string[]): void {
    const list = pc.qemu.answers.get("qom-list");
    pc.qemu.answers.set("qom-list", (command) =>
      command.arguments.path === "/machine/peripheral-anon"
        ? types.map((type, i) => ({ name: `device[${i}]`, type: `child<${type}>` }))
        : list?.(command),
    );
  }

  it("has its vfio-user devices found, with their places and sockets", async () => {
    const { devices, obstacles } = await lookAtGuest(qemu);
    expect(devices).toEqual([
      {
        name: "disk",
        path: "/machine/peripheral/disk",
        bus: "/machine/peripheral/port1/port1",
        devfn: 0,
        bridges: [8],
        socket: "/run/a[b]",
      },
    ]);
    expect(obstacles).toEqual([]);
  });

  it("names a device without an id by its place", async () => {
    anonymous("vfio-user-pci");
    const get = pc.qemu.answers.get("qom-get");
    pc.qemu.answers.set("qom-get", (command) => {
      const { path, property } = command.arguments;
      if (path !== "/machine/peripheral-anon/device[0]") return get?.(command);
      return property === "addr" ? 0x21 : "/machine/q35/pcie.0";
    });
    expect((await lookAtGuest(qemu)).devices.map(({ name }) => name)).toEqual(["disk", "pcie.0-04.1"]);
  });

  it("is refused where a device is on a bus whose number QEMU does not tell", async () => {
    const get = pc.qemu.answers.get("qom-get");
    pc.qemu.answers.set("qom-get", (command) =>
      command.arguments.property === "parent_bus" ? "/machine/pxb/pcie.8" : get?.(command),
    );
    await expect(lookAtGuest(qemu)).rejects.toMatchObject({ code: "UNKNOWN_BUS" });
  });

  it("is refused of a QEMU without vfio-user-pci, with what would work", async () => {
    pc.qemu.answer("qom-list-types", []);
    await expect(lookAtGuest(qemu)).rejects.toMatchObject({ code: "QEMU_TOO_OLD" });
    pc.qemu.answer("query-version", { qemu: { major: 9, minor: 2, micro: 0 }, package: "" });
    await expect(lookAtGuest(qemu)).rejects.toMatchObject({
      message: expect.stringContaining("9.2"),
      remedy: expect.stringContaining("QEMU 10.1"),
    });
  });

  it("is told what keeps it from being moved: QEMU's own reasons, and a virtual IOMMU", async () => {
    anonymous("intel-iommu");
    pc.qemu.answer("query-migrate", { "blocked-reasons": ["0000:01:00.0: VFIO migration is not supported\u001b"] });
    const guest = await lookAtGuest(qemu);
    expect(guest.obstacles.map(({ what }) => what)).toEqual([
      "QEMU can't migrate this guest: 0000:01:00.0: VFIO migration is not supported\\u{1b}",
      "the guest has a virtual IOMMU (intel-iommu at /machine/peripheral-anon/device[0])",
    ]);
    expect(() => checkObstacles(guest, "source")).toThrow(
      expect.objectContaining({ code: "CANNOT_MIGRATE", further: [expect.stringContaining("virtual IOMMU")] }),
    );
  });

  it("is refused where QEMU answers in a form that it can't have", async () => {
    pc.qemu.answer("qom-list", [{ name: 5 }]);
    await expect(lookAtGuest(qemu)).rejects.toMatchObject({ code: "QMP_PROTOCOL" });
  });
});

describe("the socket in the name of a memory region", () => {
  it.each([
    ["vfio-user:\\x2ftmp\\x2fnvme base BAR 0[0]", "/tmp/nvme"],
    ["vfio-user:\\x2fa base BAR 1[0] base BAR 2[10]", "/a base BAR 1[0]"],
    ["vfio-user:\\x2fa\\x5cx base BAR 0[0]", "/a\\x"],
    ["vfio-user:nvme base BAR 0[0]", null],
    ["vfio-user:\\x2ftmp\\x2fnvme BAR 0[0]", null],
    ["msix-table[0]", null],
  ])("%s: %s", (name, socket) => {
    expect(socketIn(name)).toBe(socket);
  });

  it("can be named where QEMU does not tell it", () => {
    const device: GuestDevice = { name: "disk", path: "", bus: "", devfn: 0, bridges: [], socket: null };
    expect(() => socketOf(device)).toThrow(expect.objectContaining({ code: "NO_SOCKET" }));
    expect(socketOf(device, { disk: "/a" })).toBe("/a");
    expect(socketOf({ ...device, socket: "/b" })).toBe("/b");
  });
});
