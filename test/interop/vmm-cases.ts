import { chooseTrackers, probeMachine } from "dirtmap";
import { createEmulatedMachine } from "dirtmap/emulated";
import { readScenario } from "../../src/cli/input/scenario.js";
import { vmmDevices } from "../../src/vmm-options/fake-devices.test.helper.js";
import type { VmmAddress, VmmDevice } from "../../src/vmm-options/vmm-device.js";

/** The thread's cases a, b and c, other scenarios, and devices for which all that can be printed is printed. */
export const CASES = ["case-a", "case-b", "case-c", "mixed", "mdev-shared", "all-options"] as const;
export type CaseName = (typeof CASES)[number];

const probed = new Map<CaseName, Promise<VmmDevice[]>>();

/** A scenario's devices with what its own policy chooses for them, at addresses that no machine has. */
export function caseDevices(name: CaseName): Promise<VmmDevice[]> {
  const devices = probed.get(name) ?? probeCase(name);
  probed.set(name, devices);
  return devices;
}

async function probeCase(name: CaseName): Promise<VmmDevice[]> {
  if (name === "all-options") return allOptions();
  const { description, policy } = readScenario({ scenario: name });
  await using machine = await createEmulatedMachine(description, { paused: true });
  const capabilities = await probeMachine(machine);
  return chooseTrackers(capabilities, policy).map((choice, index) => ({
    choice,
    capabilities: capabilities[index],
    address: absentAddress(capabilities[index].mdev, index),
    iommuGroup: null,
  }));
}

/** A device in each container, one of them with a log that isn't used. */
function allOptions(): VmmDevice[] {
  const parts = { mlx0: { own: true }, mlx1: { own: true, iommu: true }, old0: {}, gpu0: { mdev: true } };
  return vmmDevices(parts).map((device, index) => ({
    ...device,
    address: absentAddress(device.capabilities.mdev, index),
  }));
}

function absentAddress(mdev: boolean, index: number): VmmAddress {
  return mdev
    ? { bus: "mdev", uuid: `00000000-0000-4000-8000-00000000000${index}`, model: "vfio-pci" }
    : { bus: "pci", address: `ffff:ff:1f.${index}` };
}
