import { IOMMUFD_CONTAINERS, type Placement, placeDevices } from "./containers.js";
import { noteText, qemuNotes, type VmmNote } from "./notes.js";
import { mdevUuid, pciAddress, type VmmDevice, vmmNames } from "./vmm-device.js";

/** One option of QEMU's command line with its value, and a comment on it. */
export interface QemuArgument {
  readonly option: "-object" | "-device";
  readonly value: string;
  readonly comment: string;
}

/** The options with which QEMU tracks devices as was chosen. */
export interface QemuOptions {
  /** In an order that QEMU takes: objects before the devices that use them. */
  readonly arguments: readonly QemuArgument[];
  /** Where QEMU does otherwise than was chosen. */
  readonly notes: readonly VmmNote[];
  /** The oldest QEMU that has all of it: major and minor version. */
  readonly oldest: { readonly version: string; readonly why: string };
}

/** The ids of the iommufd objects. */
export const IOMMUFD_IDS: Readonly<Record<(typeof IOMMUFD_CONTAINERS)[number], string>> = {
  log: "dirtmap-log",
  hwpt: "dirtmap-hwpt",
  untracked: "dirtmap-untracked",
};

const OBJECTS_FOR: Readonly<Record<(typeof IOMMUFD_CONTAINERS)[number], string>> = {
  log: "devices whose own log is read",
  hwpt: "devices that are tracked by their HWPT",
  untracked: "devices without a tracker",
};

/** What QEMU learned when (the versions stand beside the properties in its hw/vfio/pci.c). */
const SINCE = [
  {
    version: "9.1",
    why: "the first that reads the dirty bits of HWPTs",
    when: ({ container }: Placement) => container === "hwpt",
  },
  { version: "9.1", why: "the first with x-device-dirty-page-tracking", when: ({ logOff }: Placement) => logOff },
  { version: "9.0", why: "the first with iommufd objects", when: ({ container }: Placement) => container !== "type1" },
  { version: "8.1", why: "the first with enable-migration", when: () => true },
] as const;

/**
 * The options that make QEMU track each device as was chosen, as near as it can. A pure function; the order of the
 * devices is kept. The options stand for themselves: machine, memory and bus of each device are the caller's.
 */
export function qemuOptions(devices: readonly VmmDevice[]): QemuOptions {
  const placements = placeDevices(devices);
  const ids = vmmNames(devices);
  const objects = IOMMUFD_CONTAINERS.filter((kind) => placements.some(({ container }) => container === kind));
  return {
    arguments: [
      ...objects.map((kind) => ({
        option: "-object" as const,
        value: `iommufd,id=${IOMMUFD_IDS[kind]}`,
        comment: objectComment(placements, kind),
      })),
      ...placements.map((placement, index) => ({
        option: "-device" as const,
        value: ["vfio-pci", `id=vfio-${ids[index]}`, ...deviceProperties(placement)].join(","),
        comment: `${placement.device.choice.device}: ${placement.why}`,
      })),
    ],
    notes: qemuNotes(placements),
    oldest: oldestQemu(placements),
  };
}

/** The oldest QEMU that takes what these placements need. */
export function oldestQemu(placements: readonly Placement[]): QemuOptions["oldest"] {
  const { version, why } = SINCE.find(({ when }) => placements.some(when)) ?? SINCE[SINCE.length - 1];
  return { version, why };
}

function deviceProperties({ device, container, logOff, enableMigration }: Placement): string[] {
  const { address } = device;
  return [
    address.bus === "pci"
      ? `host=${pciAddress(address.address).text}`
      : `sysfsdev=/sys/bus/mdev/devices/${mdevUuid(address.uuid)}`,
    ...(container === "type1" ? [] : [`iommufd=${IOMMUFD_IDS[container]}`]),
    `enable-migration=${enableMigration}`,
    ...(logOff ? ["x-device-dirty-page-tracking=off"] : []),
  ];
}

function objectComment(placements: readonly Placement[], kind: keyof typeof IOMMUFD_IDS): string {
  const users = placements.filter(({ container }) => container === kind).map(({ device }) => device.choice);
  const staying = users.filter(({ suspend }) => !suspend).map(({ device }) => device);
  const leaving = users.filter(({ suspend }) => suspend).map(({ device }) => device);
  return [
    ...(staying.length > 0 ? [`${OBJECTS_FOR[kind]}: ${staying.join(", ")}`] : []),
    ...(leaving.length > 0 ? [`${leaving.join(", ")} until unplugged`] : []),
  ].join("; ");
}

/**
 * The options as text: one a line, each under its comment. Without the comments (`grep -v '^#'`) it can be put on QEMU's
 * command line as it is: no value has a space. Ends without a newline; empty if there are no devices.
 */
export function qemuText({ arguments: options, notes, oldest }: QemuOptions): string {
  if (options.length === 0) return "";
  const comment = (text: string) => `# ${text.replace(/\s+/g, " ")}`;
  return [
    comment(`QEMU ${oldest.version}, ${oldest.why}, or later`),
    ...options.flatMap((argument) => [comment(argument.comment), `${argument.option} ${argument.value}`]),
    ...notes.map((note) => comment(noteText(note))),
  ].join("\n");
}
