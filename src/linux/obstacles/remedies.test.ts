import fc from "fast-check";
import { expect, test } from "vitest";
import { FakeSystem } from "../fake-system.test.helper.js";
import { findDevices } from "../sysfs/find.js";
import { deviceObstacles } from "./device.js";
import { FakeKernel } from "./fake-kernel.test.helper.js";
import { parseRelease } from "./kernel.js";

/*
 * Remedies are tried out, on made-up hosts: their commands are given to a model of the kernel. A remedy that can't work is a
 * fault, and so is one that takes the device away, or another device without a word.
 */

const KERNEL = parseRelease("7.2.13");
const DRIVERS = new Map([["mlx5_vfio_pci", "mlx5_vfio_pci"]]);
const MLX5 = "pci:v000015B3d0000101Esv000015B3sd00000055bc02sc00i00";

const groups = fc.integer({ min: 1, max: 4 });
const drivers = fc.constantFrom("ixgbe", "nvme", "vfio-pci", undefined);
const hosts = fc.record({
  /** A PF with VFs, each maybe in the PF's group. */
  pf: fc.record({
    driver: drivers,
    group: groups,
    vfs: fc.array(fc.record({ driver: drivers, group: groups }), { maxLength: 3 }),
  }),
  /** A VMD with what lies behind it, in its group as Linux has it. */
  vmd: fc.record({
    driver: fc.constantFrom("vmd", undefined),
    group: groups,
    disks: fc.array(drivers, { maxLength: 2 }),
  }),
  /** A bridge with a driver that is no PCI Express port's, and what lies behind it. */
  bridge: fc.record({
    driver: fc.constantFrom("pcieport", "shpchp"),
    group: groups,
    cards: fc.array(drivers, { maxLength: 2 }),
  }),
  /** A parent of mdevs, some of which have no driver. */
  gpu: fc.record({
    driver: fc.constantFrom("i915", "vfio-pci"),
    group: groups,
    mdevs: fc.array(fc.boolean(), { maxLength: 2 }),
  }),
  platform: fc.record({
    driver: fc.constantFrom("xgbe", "vfio-platform", undefined),
    group: groups,
    stuck: fc.boolean(),
  }),
  /** Modules that are installed; null: this file system has no list. */
  modules: fc.option(fc.subarray(["vfio-pci", "vfio-platform", "mlx5_vfio_pci"])),
});
type FakeHost = typeof hosts extends fc.Arbitrary<infer T> ? T : never;

function build(system: FakeSystem, host: FakeHost): void {
  let vfios = 0;
  const on = (driver: string | undefined) => ({
    ...(driver === undefined ? {} : { driver }),
    ...(driver?.startsWith("vfio") ? { vfio: `vfio${vfios++}` } : {}),
  });
  const { pf, vmd, bridge, gpu, platform, modules } = host;
  // VFIO takes no PF while its VFs are on.
  const pfDriver = pf.driver === "vfio-pci" && pf.vfs.length > 0 ? "ixgbe" : pf.driver;
  system.pci("0000:3b:00.0", { ...on(pfDriver), group: pf.group, vfs: pf.vfs.length, modalias: MLX5 });
  for (const [index, vf] of pf.vfs.entries()) {
    system.pci(`0000:3b:00.${index + 1}`, { ...on(vf.driver), group: vf.group, pf: "0000:3b:00.0", modalias: MLX5 });
  }
  system.pci("0000:5d:05.5", { ...on(vmd.driver), group: vmd.group, class: "0x010400" });
  const disks = vmd.driver === undefined ? [] : vmd.disks;
  for (const [index, driver] of disks.entries()) {
    system.pci(`10000:e${index}:00.0`, { ...on(driver), group: vmd.group, below: "0000:5d:05.5" });
  }
  system.pci("0000:00:1c.0", { ...on(bridge.driver), group: bridge.group, class: "0x060400" });
  for (const [index, driver] of bridge.cards.entries()) {
    system.pci(`0000:02:0${index}.0`, { ...on(driver), group: bridge.group, below: "0000:00:1c.0" });
  }
  system.pci("0000:00:02.0", { ...on(gpu.driver), group: gpu.group, class: "0x030000" });
  const mdevs = gpu.driver === "i915" ? gpu.mdevs : [];
  for (const [index, bound] of mdevs.entries()) {
    const fake = { parent: "0000:00:02.0", type: "t-1", group: 20 + index };
    system.mdev(
      `83b8f4f2-509f-382f-3c1e-e6bfe0fa100${index}`,
      bound ? { ...fake, driver: "mtty", vfio: `vfio${vfios++}` } : fake,
    );
  }
  const { driver, stuck } = platform;
  system.platform("9060000.ethernet", { ...on(driver), group: platform.group, stuck: stuck && driver === "xgbe" });
  system.file(
    `${system.roots.modules}/${KERNEL.release}/modules.alias`,
    "alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci\n",
  );
  if (modules !== null) {
    system.file(
      `${system.roots.modules}/${KERNEL.release}/modules.dep`,
      modules.map((name) => `kernel/drivers/vfio/${name}.ko:\n`).join(""),
    );
  }
}

const find = (system: FakeSystem, id: string) => findDevices(system.roots).find((device) => device.id === id);

function present(system: FakeSystem): string[] {
  return findDevices(system.roots).map(({ id }) => id);
}

test("after a remedy's commands its obstacle is gone, the device is there, and no other has vanished without a word", () => {
  let tried = 0;
  fc.assert(
    fc.property(hosts, fc.nat(), (host, pick) => {
      using system = new FakeSystem();
      build(system, host);
      const kernel = new FakeKernel(system, KERNEL.release, DRIVERS);
      const lacking = findDevices(system.roots).filter((device) =>
        deviceObstacles(system.roots, device, KERNEL).some(({ commands }) => commands.length > 0),
      );
      if (lacking.length === 0) return;
      const { id } = lacking[pick % lacking.length];
      // What a remedy brings to light is as much an obstacle as what was there.
      for (let steps = 0; ; steps++) {
        expect(steps).toBeLessThan(10);
        const device = find(system, id);
        if (device === undefined) throw new Error(`${id} has vanished`);
        const next = deviceObstacles(system.roots, device, KERNEL).find(({ commands }) => commands.length > 0);
        if (next === undefined) return;
        const before = present(system);
        for (const command of next.commands) kernel.run(command);
        tried++;
        const after = find(system, id);
        if (after === undefined) throw new Error(`${id} has vanished by: ${next.commands.join("; ")}`);
        const left = deviceObstacles(system.roots, after, KERNEL).map(({ code, message }) => `${code}: ${message}`);
        expect(left).not.toContain(`${next.code}: ${next.message}`);
        const now = present(system);
        for (const gone of before.filter((one) => !now.includes(one))) expect(next.warnings.join("\n")).toContain(gone);
      }
    }),
    // A host is hundreds of files: one that fails is told as it is, and not made smaller.
    { numRuns: Number(process.env.DIRTMAP_HOSTS ?? 20), endOnFailure: true },
  );
  expect(tried).toBeGreaterThan(10);
});
