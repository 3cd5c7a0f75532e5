import { describe, expect, it } from "vitest";
import { GiB, KiB, MiB } from "../memory/address.js";
import { fixedConfig } from "./pci-shape.js";
import { type DeviceShape, type MachineShape, shapeDifferences } from "./shape.js";
import { machineShapeSchema } from "./shape-schema.js";

/** A function with two 64-bit BARs, power management, MSI-X and PCI Express, as a guest has left it. */
function config(change: (view: DataView) => void = () => {}): Uint8Array {
  const bytes = new Uint8Array(256);
  const view = new DataView(bytes.buffer);
  view.setUint32(0x00, 0x1018_15b3, true);
  view.setUint16(0x06, 0x10, true);
  view.setUint32(0x08, 0x0200_0000, true);
  view.setUint32(0x10, 0xc, true);
  view.setUint32(0x18, 0x4, true);
  view.setUint32(0x2c, 0x0007_15b3, true);
  bytes[0x34] = 0x40;
  bytes.set([0x01, 0x50, 0x03, 0x00, 0x08], 0x40);
  bytes.set([0x11, 0x60, 0x20, 0x00, 0x00, 0x20], 0x50);
  bytes.set([0x10, 0x00, 0x02, 0x00, 0x00, 0x80, 0x00, 0x10], 0x60);
  change(view);
  return bytes;
}

function shape(more: Partial<DeviceShape> = {}): DeviceShape {
  return {
    version: 1,
    model: "nvme",
    stateVersion: 1,
    regions: [{ index: 0, name: "bar0", bytes: 16 * KiB, readable: true, writeable: true }],
    irqs: [{ index: 2, name: "msix", count: 17 }],
    config: Buffer.from(fixedConfig(config())).toString("hex"),
    facts: { capacity: { bytes: 2 * GiB } },
    ...more,
  };
}

function machine(more: Partial<DeviceShape> = {}, of: Partial<MachineShape> = {}): MachineShape {
  return {
    memory: [{ firstPage: 0, pages: 160, writeable: true }],
    vcpus: 2,
    devices: [{ id: "disk0", shape: shape(more) }],
    ...of,
  };
}

const withConfig = (change: (view: DataView) => void) =>
  machine({ config: Buffer.from(fixedConfig(config(change))).toString("hex") });

describe("two machines whose guests can't tell them apart", () => {
  it("have no difference", () => {
    expect(shapeDifferences(machine(), machine())).toEqual([]);
  });

  it.each<[string, (view: DataView) => void]>([
    ["the command register", (view) => view.setUint16(0x04, 0xffff, true)],
    ["error bits of the status register", (view) => view.setUint16(0x06, 0xf910, true)],
    ["cache line size and latency timer", (view) => view.setUint16(0x0c, 0xffff, true)],
    ["where its BAR is", (view) => view.setBigUint64(0x10, 0xfeb0_000c_feb0_000cn, true)],
    ["its interrupt line", (view) => view.setUint8(0x3c, 0xff)],
    ["its power state", (view) => view.setUint8(0x44, 0x0b)],
    ["MSI-X being on", (view) => view.setUint16(0x52, 0xc020, true)],
    ["the control and status of PCI Express", (view) => view.setUint32(0x68, 0xffff_ffff, true)],
    ["the link, which is the slot's", (view) => view.setUint32(0x6c, 0xffff_ffff, true)],
  ])("have none in %s: it is state, or the VMM's", (_what, change) => {
    expect(shapeDifferences(machine(), withConfig(change))).toEqual([]);
  });
});

describe("what a guest would find changed is named with both sides:", () => {
  it.each<[string, MachineShape]>([
    ["the source's is a nvme, the destination's a nic", machine({ model: "nic", facts: {} })],
    ["the source's state version is 1, the destination's 2", machine({ stateVersion: 2 })],
    ["the source's capacity is 2 GiB, the destination's 1 GiB", machine({ facts: { capacity: { bytes: GiB } } })],
    // A size is exact: rounded, these two would read the same.
    [
      "the source's capacity is 2 GiB, the destination's 2147484160 bytes",
      machine({ facts: { capacity: { bytes: 2 * GiB + 512 } } }),
    ],
    ["the source's capacity is 2 GiB, the destination's unknown", machine({ facts: {} })],
    [
      "the source's region 0 (bar0) is 16 KiB rw, the destination's 16 KiB r-",
      machine({ regions: [{ index: 0, name: "bar0", bytes: 16 * KiB, readable: true, writeable: false }] }),
    ],
    ["the source's region 0 (bar0) is 16 KiB rw, the destination's absent", machine({ regions: [] })],
    [
      "the source's region 2 (bar2) is absent, the destination's 1 MiB rw",
      machine({
        regions: [...shape().regions, { index: 2, name: "bar2", bytes: MiB, readable: true, writeable: true }],
      }),
    ],
    [
      "the source's number of msix interrupts is 17, the destination's 9",
      machine({ irqs: [{ index: 2, name: "msix", count: 9 }] }),
    ],
    ["the source's number of msix interrupts is 17, the destination's 0", machine({ irqs: [] })],
    ["the source's has one, the destination's no PCI configuration space", machine({ config: null })],
    [
      "the source's PCI vendor id is 0x15b3, the destination's 0x1af4",
      withConfig((view) => view.setUint16(0, 0x1af4, true)),
    ],
    [
      "the source's PCI device id is 0x1018, the destination's 0x101e",
      withConfig((view) => view.setUint16(2, 0x101e, true)),
    ],
    ["the source's PCI revision is 0x0, the destination's 0x1", withConfig((view) => view.setUint8(8, 1))],
    [
      "the source's PCI class code is 0x20000, the destination's 0x10802",
      withConfig((view) => view.setUint32(8, 0x0108_0200, true)),
    ],
    [
      "the source's PCI subsystem id is 0x7, the destination's 0x8",
      withConfig((view) => view.setUint16(0x2e, 8, true)),
    ],
    [
      "the source's PCI configuration byte 0x10 is 0xc, the destination's 0x4",
      withConfig((view) => view.setUint32(0x10, 4, true)),
    ],
    [
      "the source's PCI configuration byte 0x52 is 0x20, the destination's 0x10",
      withConfig((view) => view.setUint16(0x52, 0x10, true)),
    ],
    [
      "the source's PCI configuration byte 0x67 is 0x10, the destination's 0x0",
      withConfig((view) => view.setUint8(0x67, 0)),
    ],
  ])("%s", (expected, destination) => {
    expect(shapeDifferences(machine(), destination)).toEqual([`disk0: ${expected}`]);
  });

  it("a device that only one of them has, their memory, their vCPUs", () => {
    const other = machine(
      {},
      {
        devices: [{ id: "disk1", shape: shape() }],
        vcpus: 4,
        memory: [{ firstPage: 256, pages: 256, writeable: false }],
      },
    );
    expect(shapeDifferences(machine(), other)).toEqual([
      "the source's memory is 640 KiB at 0x0, the destination's 1 MiB at 0x100000 (read-only)",
      "the source has 2 vCPUs, the destination 4",
      "disk0: the source has it, the destination does not",
      "disk1: the destination has it, the source does not",
    ]);
  });
});

describe("a configuration space", () => {
  it("whose capabilities run in a circle, or out of it, is looked at once", () => {
    const circle = config((view) => view.setUint8(0x61, 0x40));
    expect(fixedConfig(circle)[0x61]).toBe(0x40);
    const out = config((view) => view.setUint8(0x61, 0xfc));
    expect(fixedConfig(out)).toHaveLength(256);
    expect(fixedConfig(new Uint8Array(16).fill(0xff))).toEqual(new Uint8Array(16));
  });
});

describe("a shape from another side", () => {
  it("is refused where it is larger than any, or would act on a terminal", () => {
    const check = (more: Partial<DeviceShape>) => machineShapeSchema.safeParse(machine(more)).success;
    expect(check({})).toBe(true);
    const region = shape().regions[0];
    expect(check({ regions: Array.from({ length: 257 }, (_, index) => ({ ...region, index })) })).toBe(false);
    expect(check({ config: "00".repeat(257) })).toBe(false);
    expect(check({ facts: { serial: "\u001b[2J" } })).toBe(false);
    expect(check({ model: "\u001b[2J" })).toBe(false);
    expect(check({ facts: Object.fromEntries(Array.from({ length: 33 }, (_, i) => [`f${i}`, i])) })).toBe(false);
  });

  it("has no facts but its own", () => {
    // Names that every object has.
    expect(shapeDifferences(machine({ facts: { constructor: 1 } }), machine({ facts: {} }))).toEqual([
      "disk0: the source's constructor is 1, the destination's unknown",
    ]);
  });
});
