import { existsSync, rmSync } from "node:fs";
import { release } from "node:os";
import { type Behaviour, fakeHost } from "../../src/cli/sites/linux/fake-host.test.helper.js";
import { type HostPlan, planHost } from "../../src/cli/sites/linux/plan.js";
import { UsageError } from "../../src/errors.js";
import { FakeSystem } from "../../src/linux/fake-system.test.helper.js";
import { findDevices } from "../../src/linux/sysfs/find.js";
import { DEFAULT_POLICY, type DeviceTracker, type Policy, UNTRACKED } from "../../src/tracking/choice.js";
import { Random } from "../../tools/random.js";

/*
 * Hosts of every kind that `probe` can list, made up, with what `plan` makes of them: PCI functions at all addresses that
 * Linux allows, mdevs of every device_api, platform devices; IOMMUs and drivers known and unknown; with and without
 * iommufd; devices that can be asked, that are in use, or on another driver.
 */

/** A made-up host's plan. */
interface GeneratedPlan {
  readonly seed: number;
  readonly plan: HostPlan;
}

const IOMMUS: readonly (readonly [string, Readonly<Record<string, string>>])[] = [
  ["dmar0", { "intel-iommu/ecap": "280000000000\n" }],
  ["dmar1", { "intel-iommu/ecap": "200000000000\n" }],
  ["ivhd0", { "amd-iommu/features": "12000000000000:0\n" }],
  ["smmu3.0x0000000009050000", {}],
  ["vendor,iommu@40", {}],
];

const PCI_DRIVERS = [
  "vfio-pci",
  "mlx5_vfio_pci",
  "qat_vfio_pci",
  "xe-vfio-pci",
  "vendor_vfio_pci",
  "nvme",
  "ixgbe",
  null,
];
const MDEV_DRIVERS = ["mtty", "vfio_ap_mdev", "vfio_ccw_mdev", "nvidia-vgpu-vfio", null];
const DEVICE_APIS = ["vfio-pci", "vfio-pci", "vfio-ap", "vfio-ccw", "vfio-platform", "vfio-amba", null];
const TRACKERS = ["iommu", "device", "pinned", "everything"] as const satisfies readonly DeviceTracker[];

/**
 * The plan of one host, or null where its policy is refused, as it may be. The same seed, the same plan.
 * @throws what `planHost` throws besides UsageError: that is a fault
 */
async function generatedPlan(seed: number): Promise<GeneratedPlan | null> {
  const random = new Random(seed);
  using system = new FakeSystem();
  const behaviours = fillHost(system, random);
  const found = findDevices(system.roots);
  const chosen = found.filter(() => random.chance(70)).map(({ id }) => id);
  const policy: Policy = {
    ...DEFAULT_POLICY,
    order: random.pick(["iommu-first", "device-first"]),
    domain: random.pick(["per-device", "shared"]),
    untracked: random.weighted([
      [6, "everything"],
      [2, "suspend"],
      [1, "refuse"],
    ]),
    untrackedDevices: pickSome(random, chosen, 10, () => random.pick(UNTRACKED)),
    trackers: pickSome(random, chosen, 8, () => random.pick(TRACKERS)),
  };
  try {
    return { seed, plan: await planHost(fakeHost(system, behaviours).host, policy, { ids: chosen }) };
  } catch (error) {
    if (error instanceof UsageError) return null;
    throw error;
  }
}

/** Where the seeds of this run begin: DIRTMAP_SEED, or another one each time. */
export const FIRST_SEED = Number(process.env.DIRTMAP_SEED ?? Date.now() % 2 ** 31);

/** What the tests' names say of it. */
export const SEEDS = `from seed ${FIRST_SEED} on (DIRTMAP_SEED=${FIRST_SEED} repeats it)`;

/** Hosts that a test run looks at: some seconds' worth; any number with DIRTMAP_HOSTS. */
const COUNT = Number(process.env.DIRTMAP_HOSTS ?? 16);

let made: Promise<GeneratedPlan[]> | undefined;

/** Plans of hosts that have devices for a VMM; made once, for all tests of a file. */
export function generatedPlans(): Promise<GeneratedPlan[]> {
  made ??= makePlans();
  return made;
}

async function makePlans(): Promise<GeneratedPlan[]> {
  const plans: GeneratedPlan[] = [];
  for (let seed = FIRST_SEED; plans.length < COUNT; seed++) {
    const one = await generatedPlan(seed);
    if (one !== null && one.plan.qemu.arguments.length > 0) plans.push(one);
  }
  return plans;
}

function pickSome<T>(random: Random, ids: readonly string[], percent: number, value: () => T): Record<string, T> {
  return Object.fromEntries(ids.filter(() => random.chance(percent)).map((id) => [id, value()]));
}

function fillHost(system: FakeSystem, random: Random): Record<string, Behaviour> {
  const { roots } = system;
  for (const [name, files] of IOMMUS) system.iommu(name, files);
  // With iommufd, without it for lack of a module, without it in the kernel; and with it, but without nodes for devices.
  const kind = random.pick(["iommufd", "iommufd", "not loaded", "not built", "no cdevs"]);
  const config = { "not loaded": "CONFIG_IOMMUFD=m", "not built": "# no", "no cdevs": "# no" }[kind as string];
  if (config !== undefined) system.file(`${roots.boot}/config-${release()}`, `${config}\n`);
  system.file(`${roots.dev}/iommu`, "");
  if (kind.startsWith("not ")) rmSync(`${roots.dev}/iommu`);
  const cdev = kind !== "no cdevs";
  const behaviours: Record<string, Behaviour> = {};
  const count = random.weighted([
    [14, random.between(1, 8)],
    [1, random.between(20, 40)],
  ]);
  for (let index = 0; index < count; index++) {
    const vfio = `vfio${index}`;
    const id = random.weighted([
      [7, addPci(system, random, vfio, cdev)],
      [3, addMdev(system, random, vfio, cdev)],
      [1, addPlatform(system, random, index, cdev)],
    ])();
    behaviours[id] = random.chance(50) ? { refusesBind: "EBUSY" } : behaviour(random);
  }
  return behaviours;
}

function behaviour(random: Random): Behaviour {
  const migration = { stopCopy: true, p2p: random.chance(80), preCopy: true };
  return {
    iommuTracks: random.chance(50),
    migration: random.chance(80) ? migration : null,
    ...(random.chance(50) ? { log: {} } : {}),
  };
}

/** A device that is on a VFIO driver has a node for it. */
function node(driver: string | null, vfio: string, cdev: boolean) {
  return {
    ...(driver === null ? {} : { driver }),
    ...(driver !== null && /vfio|mtty/.test(driver) ? { vfio, cdev } : {}),
  };
}

function addPci(system: FakeSystem, random: Random, vfio: string, cdev: boolean): () => string {
  return () => {
    const hex = (value: number, digits: number) => value.toString(16).padStart(digits, "0");
    // VMD numbers its domains from 10000 on; 32 bits is what Linux allows.
    const domain = random.weighted([
      [5, 0],
      [1, random.below(0x1_0000)],
      [2, 0x1_0000 + random.below(8)],
      [1, random.below(0xffff) * 0x1_0000 + random.below(0x1_0000)],
    ]);
    const id = `${hex(domain, 4)}:${hex(random.below(256), 2)}:${hex(random.below(32), 2)}.${random.below(8)}`;
    // What this machine has may not be opened by a test.
    if (existsSync(`/sys/bus/pci/devices/${id}`) || existsSync(`${system.roots.sys}/bus/pci/devices/${id}`)) {
      return addPci(system, random, vfio, cdev)();
    }
    const driver = random.pick(PCI_DRIVERS);
    const [iommu] = random.pick(IOMMUS);
    const grouped = random.chance(92) ? { group: random.below(12), ...(random.chance(90) ? { iommu } : {}) } : {};
    system.pci(id, { ...node(driver, vfio, cdev), ...grouped });
    return id;
  };
}

function addMdev(system: FakeSystem, random: Random, vfio: string, cdev: boolean): () => string {
  return () => {
    const number = random
      .below(2 ** 24)
      .toString(16)
      .padStart(12, "0");
    const id = `00000000-0000-4000-8000-${number}`;
    if (existsSync(`${system.roots.sys}/bus/mdev/devices/${id}`)) return addMdev(system, random, vfio, cdev)();
    const api = random.pick(DEVICE_APIS);
    const driver = random.pick(MDEV_DRIVERS);
    const group = { group: 100 + random.below(2 ** 16) };
    system.mdev(id, { parent: `parent-${number}`, type: "type-1", api, ...group, ...node(driver, vfio, cdev) });
    return id;
  };
}

function addPlatform(system: FakeSystem, random: Random, index: number, cdev: boolean): () => string {
  return () => {
    const id = `${(0x900_0000 + index).toString(16)}.ethernet`;
    const driver = random.pick(["vfio-platform", "xgbe"]);
    system.platform(id, {
      ...node(driver, `vfio${index}`, cdev),
      group: 200 + index,
      iommu: "smmu3.0x0000000009050000",
    });
    return id;
  };
}
