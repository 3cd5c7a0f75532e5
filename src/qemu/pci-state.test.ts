import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ConfigSpace } from "./config-space.js";
import { FakePc } from "./fake-pc.test.helper.js";
import { lookAtGuest } from "./guest.js";
import { type PciState, readPciState, restorePciState } from "./pci-state.js";
import { Qemu } from "./qmp/qemu.js";
import { SocketMonitor } from "./qmp/socket-monitor.js";

/*
 * What QEMU keeps of a device, read at one machine and restored at another, over the ports of a PC.
 */

describe.each([
  { way: "by ports alone", window: null },
  { way: "with configuration space in memory, too", window: 0x2_e000_0000n },
])("the PCI state of a device, $way", ({ window }) => {
  let source: FakePc;
  let destination: FakePc;
  const opened = new Map<FakePc, Qemu>();

  beforeEach(async () => {
    source = await FakePc.start();
    destination = await FakePc.start();
    source.function.drive();
    source.window = window;
    destination.window = window;
  });

  afterEach(async () => {
    for (const qemu of opened.values()) await qemu[Symbol.asyncDispose]();
    opened.clear();
    await source[Symbol.asyncDispose]();
    await destination[Symbol.asyncDispose]();
  });

  async function open(pc: FakePc): Promise<Qemu> {
    const qemu = opened.get(pc) ?? new Qemu(await SocketMonitor.open(pc.qemu.path));
    opened.set(pc, qemu);
    return qemu;
  }

  async function read(pc: FakePc): Promise<PciState> {
    const qemu = await open(pc);
    const { devices } = await lookAtGuest(qemu);
    await using space = await ConfigSpace.open(qemu, devices);
    return await readPciState(qemu, space, space.addresses[0]);
  }

  async function restore(saved: PciState, write = tableWriter()): Promise<void> {
    const qemu = await open(destination);
    const { devices } = await lookAtGuest(qemu);
    await using space = await ConfigSpace.open(qemu, devices);
    await restorePciState(qemu, space, space.addresses[0], { saved, server: write });
  }

  /** As the device's server: by DMA, which needs bus mastering. */
  function tableWriter() {
    const { function: its } = destination;
    return {
      async writeClientMemory(address: bigint, data: Uint8Array): Promise<void> {
        if (!its.canDma) throw new Error("no bus mastering");
        expect(address).toBe(its.tableAddress);
        its.table.set(new Uint32Array(data.slice().buffer));
      },
    };
  }

  it("is the same afterwards, and so are both guests' port addresses", async () => {
    const saved = await read(source);
    destination.latch = 0x8000_1234;
    await restore(saved);
    expect(destination.function.config).toEqual(source.function.config);
    expect(destination.function.table).toEqual(source.function.table);
    expect([source.latch, destination.latch]).toEqual([0x8000_f8a0, 0x8000_1234]);
  });

  it("is written although it reads the same: the server has it by then, and QEMU does not", async () => {
    const saved = await read(source);
    destination.function.drive();
    await restore(saved);
    const offsets = destination.function.writes.map(([offset]) => offset);
    for (const offset of [0x10, 0x14, 0x04, 0x50]) expect(offsets).toContain(offset);
    // But what is the server's alone is not.
    expect(offsets).not.toContain(0x68);
  });

  it("has its interrupts enabled last, after the table", async () => {
    const saved = await read(source);
    const { writes } = destination.function;
    const writer = tableWriter();
    await restore(saved, {
      async writeClientMemory(address, data) {
        writes.push([-1, 0]);
        await writer.writeClientMemory(address, data);
      },
    });
    // What differs is seen when it is read back, and then all is written once more.
    const [bars, table, command, msix] = [[0x10, 0x14], -1, 0x04, 0x50];
    const order = writes.map(([offset]) => offset);
    expect(order).toEqual([
      ...[...bars, command, table, command, msix],
      ...[...bars, 0x3c, 0x68, command, table, command, msix],
    ]);
  });

  it("is of a device that may do no DMA, too: it may for its table, and not afterwards", async () => {
    source.function.write(0x04, 0x2);
    await restore(await read(source));
    expect(destination.function.config[1] & 0xffff).toBe(0x2);
    expect(destination.function.table).toEqual(source.function.table);
  });

  it("never writes ones to the status register, which would clear it", async () => {
    source.function.config[1] |= 0xf900_0000;
    await restore(await read(source));
    for (const [offset, value] of destination.function.writes) if (offset === 4) expect(value >>> 16).toBe(0);
  });

  it("is restored without a table for a device that its driver does not use", async () => {
    const idle = await FakePc.start();
    idle.window = window;
    const saved = await read(idle);
    expect(saved.msixTable).toBeNull();
    await restore(saved);
    expect(destination.function.config).toEqual(idle.function.config);
    await opened.get(idle)?.[Symbol.asyncDispose]();
    opened.delete(idle);
    await idle[Symbol.asyncDispose]();
  });

  it("is not read where interrupts are on and the table is out of reach", async () => {
    source.function.write(0x04, 0x4);
    await expect(read(source)).rejects.toMatchObject({ code: "NO_MSIX_TABLE" });
  });

  it("is not given to another device, or one that takes it differently", async () => {
    const saved = await read(source);
    destination.function.config[2] ^= 1;
    await expect(restore(saved)).rejects.toMatchObject({ code: "PCI_STATE_DIFFERS" });
    destination.function.config[2] ^= 1;
    destination.function.config[0] ^= 1;
    await expect(restore(saved)).rejects.toMatchObject({ code: "PCI_STATE_DIFFERS" });
    destination.function.config[0] ^= 1;
    destination.function.config[0x2c / 4] = 7;
    await expect(restore(saved)).rejects.toMatchObject({ message: expect.stringContaining("0x2c") });
    destination.function.config[0x2c / 4] = 0;
    destination.function.table.fill(0);
    await expect(restore(saved, { writeClientMemory: async () => {} })).rejects.toMatchObject({
      message: expect.stringContaining("entry 0 of its MSI-X table"),
    });
  });

  it("is found by the bus numbers that the guest has given, once it has", async () => {
    source.secondary = 0;
    await expect(read(source)).rejects.toMatchObject({ code: "NOT_ENUMERATED" });
    source.secondary = 9;
    expect((await read(source)).config[0]).toBe(source.function.config[0]);
  });

  it("is an error where no function answers, or the monitor prints something else", async () => {
    source.function.config[0] = 0xffff_ffff;
    await expect(read(source)).rejects.toMatchObject({ code: "NO_FUNCTION" });
    source.qemu.answer("human-monitor-command", "unknown command: 'i'\r\n");
    await expect(read(source)).rejects.toMatchObject({ code: "QMP_PROTOCOL" });
  });
});
