import type { HostState } from "../../linux/obstacles/host.js";
import type { Obstacle } from "../../linux/obstacles/obstacle.js";
import type { LinuxDevice } from "../../linux/sysfs/device.js";
import type { MdevType } from "../../linux/sysfs/mdev.js";
import { table } from "../../observe/table.js";
import type { ProbedDevice, ProbedHost } from "../sites/linux/probe.js";
import { deviceText } from "./plan-text.js";

/**
 * What `dirtmap probe --host linux` prints: the host, all devices as a table, then each with what it can do, or what is
 * missing and how to get it. Ends without a newline.
 */
export function hostText({ state, devices, mdevTypes }: ProbedHost): string {
  const sections = [
    [hostLine(state), ...state.missing.flatMap((obstacle) => obstacleLines(obstacle))],
    devices.length === 0 ? ["no device of this machine is assigned, or could be"] : deviceTable(devices),
    ...deviceSections(devices),
    ...(mdevTypes.length === 0 ? [] : [mdevTypeLines(mdevTypes)]),
  ];
  return sections.map((lines) => lines.join("\n")).join("\n\n");
}

function hostLine({ kernel, iommufd, iommus }: HostState): string {
  const units = iommus.length === 0 ? "no IOMMU in use" : `IOMMUs ${iommus.join(" ")}`;
  return `Linux ${kernel}, ${iommufd ? "/dev/iommu can be opened" : "no /dev/iommu"}, ${units}`;
}

/** "missing: …" and how to get it, commands each on a line of their own, ready to be copied. */
function obstacleLines({ message, remedy, commands, warnings }: Obstacle): string[] {
  return [
    `  missing: ${message}`,
    `    ${remedy}${commands.length === 0 ? "" : asRoot()}`,
    ...warnings.map((warning) => `      careful: ${warning}`),
    ...commands.map((command) => `      ${command}`),
  ];
}

/** Who has to give the commands that follow. */
function asRoot(): string {
  return process.geteuid?.() === 0 ? ":" : "; as root:";
}

/** The table of what sysfs tells. */
export function deviceTable(devices: readonly ProbedDevice[]): string[] {
  const rows = devices.map(({ device }) => [
    device.id,
    describe(device),
    device.driver ?? "-",
    String(device.iommuGroup ?? "-"),
    device.iommu === null ? "-" : `${device.iommu.type} ${device.iommu.name}`,
    String(device.numaNode ?? "-"),
    device.vfio?.cdev ?? "-",
  ]);
  return table(
    [["device", "what", "driver", "group", "IOMMU", "NUMA", "cdev"], ...rows],
    ["left", "left", "left", "right", "left", "right"],
  );
}

/** What it is, in a few words: "ethernet VF 15b3:101e", "mtty-1 of mtty". */
function describe({ kind, pci, mdev }: LinuxDevice): string {
  if (mdev !== null) return `${mdev.type ?? "mdev"} of ${mdev.parent}`;
  if (pci === null) return kind;
  const id = [pci.vendor, pci.device].map((value) => value.toString(16).padStart(4, "0")).join(":");
  const vf = pci.sriov?.role === "vf" ? " VF" : "";
  return `${pci.function}${vf} ${id}`;
}

/**
 * Per device what it can do, or what is missing. Devices that only lack a VFIO driver, of which a machine has dozens,
 * share a section.
 */
function deviceSections(devices: readonly ProbedDevice[]): string[][] {
  const unbound = new Map<string, ProbedDevice[]>();
  for (const probed of devices.filter(({ missing }) => missing[0]?.code === "NOT_A_VFIO_DRIVER")) {
    unbound.set(probed.vfioDriver, [...(unbound.get(probed.vfioDriver) ?? []), probed]);
  }
  const shared = [...unbound.values()].filter((sharing) => sharing.length > 1);
  const alone = devices.filter((probed) => !shared.some((sharing) => sharing.includes(probed)));
  return [...alone.map(deviceSection), ...shared.map(unboundSection)];
}

function deviceSection({ device, capabilities, missing }: ProbedDevice): string[] {
  const group = groupLine(device);
  if (capabilities !== null) return [deviceText(capabilities), ...group];
  const lines = missing.length === 0 ? ["  not asked, without /dev/iommu"] : missing.flatMap(obstacleLines);
  return [`${device.id}: ${device.driver ?? "no driver"}`, ...lines, ...group];
}

/** Devices that could be bound to the same VFIO driver, with how the first of them is. */
function unboundSection(devices: readonly ProbedDevice[]): string[] {
  const warningsOf = ({ missing }: ProbedDevice) => missing[0].warnings;
  const list = devices.map((probed) => {
    const { id, driver } = probed.device;
    return `${id} (${[driver ?? "no driver", ...warningsOf(probed)].join("; ")})`;
  });
  // An example that the host can do without, if there is one.
  const {
    device: first,
    vfioDriver,
    missing,
  } = devices.find((probed) => warningsOf(probed).length === 0) ?? devices[0];
  return [
    `not on a VFIO driver, and could be bound to ${vfioDriver}: ${list.join(", ")}`,
    `  the driver that a device has, and with it the host, lose it then; for ${first.id}${asRoot()}`,
    ...missing[0].commands.map((command) => `    ${command}`),
    `  what else is missing for one of them: dirtmap probe --host linux --device ${first.id}`,
  ];
}

/** Who else is in its IOMMU group: they are assigned together. */
function groupLine({ id, group }: LinuxDevice): string[] {
  const others = group?.members.filter((member) => member.id !== id) ?? [];
  if (others.length === 0) return [];
  const list = others.map((member) => `${member.id} (${member.driver ?? "no driver"})`);
  return [`  IOMMU group ${group?.id} has also: ${list.join(", ")}`];
}

function mdevTypeLines(types: readonly MdevType[]): string[] {
  const rows = types.map(({ type, parent, name, available }) => [type, parent, String(available ?? "?"), name]);
  const first =
    types.find(({ available }) => available !== null && available > 0) ??
    types.find(({ available }) => available === null);
  return [
    ...table([["mdev type", "parent", "can be made", "name"], ...rows], ["left", "left", "right"]),
    ...(first === undefined ? [] : [`  one more of ${first.type}${asRoot()}`, `    uuidgen > ${first.create}`]),
  ];
}
