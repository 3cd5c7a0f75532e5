import {
  type Container,
  iommufdObjects,
  isPci,
  type Placement,
  placeDevices,
  type Reads,
  type VmmHost,
} from "./containers.js";
import { noteText, qemuNotes, type VmmNote } from "./notes.js";
import {
  isLongDomain,
  mdevUuid,
  pciAddress,
  pciSysfsPath,
  type VmmAddress,
  type VmmDevice,
  vmmNames,
} from "./vmm-device.js";

/** One option of QEMU's command line with its value, and a comment on it. */
export interface QemuArgument {
  readonly option: "-object" | "-device";
  readonly value: string;
  readonly comment: string;
}

/** The options with which QEMU tracks devices as chosen. */
export interface QemuOptions {
  /** The options in an order that QEMU accepts: objects before the devices that use them. */
  readonly arguments: readonly QemuArgument[];
  /** The differences between QEMU's behaviour and the choices. */
  readonly notes: readonly VmmNote[];
  /** The oldest QEMU that supports all of it: major and minor version. */
  readonly oldest: { readonly version: string; readonly why: string };
}

const OBJECTS_FOR: Readonly<Record<Reads, string>> = {
  log: "devices whose own log is read",
  hwpt: "devices that are tracked by their HWPT",
  unknown: "devices whose tracker isn't known yet",
  everything: "devices without a tracker",
  pins: "devices whose pins are read",
};

/** What QEMU learned when (the versions stand beside the properties in its hw/vfio/pci.c). */
const SINCE = [
  {
    version: "9.1",
    why: "the first that reads the dirty bits of HWPTs",
    when: ({ container }: Placement) => container.reads === "hwpt" || container.reads === "unknown",
  },
  { version: "9.1", why: "the first with x-device-dirty-page-tracking", when: ({ logOff }: Placement) => logOff },
  {
    version: "9.0",
    why: "the first with iommufd objects",
    when: ({ container }: Placement) => container.iommufd !== null,
  },
  { version: "8.1", why: "the first with enable-migration", when: () => true },
] as const;

/**
 * Returns the options that make QEMU track each device as chosen, as closely as QEMU can. A pure function that keeps the order
 * of the devices. The caller adds the machine, the memory and the bus of each device.
 */
export function qemuOptions(devices: readonly VmmDevice[], host: VmmHost = {}): QemuOptions {
  const placements = placeDevices(devices, host);
  const ids = vmmNames(devices);
  return {
    arguments: [
      ...iommufdObjects(placements).map((object) => ({
        option: "-object" as const,
        value: `iommufd,id=${object.iommufd}`,
        comment: objectComment(placements, object),
      })),
      ...placements.map((placement, index) => ({
        option: "-device" as const,
        value: [modelOf(placement.device), `id=vfio-${ids[index]}`, ...deviceProperties(placement)].join(","),
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

/** QEMU's device for it. */
function modelOf({ address }: VmmDevice): string {
  return address.bus === "mdev" ? address.model : "vfio-pci";
}

function deviceProperties({ device, container, logOff, enableMigration }: Placement): string[] {
  return [
    placeProperty(device.address),
    ...(container.iommufd === null ? [] : [`iommufd=${container.iommufd}`]),
    ...(isPci(device) ? [`enable-migration=${enableMigration}`] : []),
    ...(logOff ? ["x-device-dirty-page-tracking=off"] : []),
  ];
}

/** Where the device is: QEMU's `host=` takes PCI domains of 16 bits (set_pci_host_devaddr), `sysfsdev=` takes all. */
function placeProperty(address: VmmAddress): string {
  if (address.bus === "mdev") return `sysfsdev=/sys/bus/mdev/devices/${mdevUuid(address.uuid)}`;
  const { text } = pciAddress(address.address);
  return isLongDomain(address) ? `sysfsdev=${pciSysfsPath(address)}` : `host=${text}`;
}

function objectComment(placements: readonly Placement[], { iommufd, reads }: Container): string {
  const users = placements.filter(({ container }) => container.iommufd === iommufd).map(({ device }) => device.choice);
  const staying = users.filter(({ suspend }) => !suspend).map(({ device }) => device);
  const leaving = users.filter(({ suspend }) => suspend).map(({ device }) => device);
  return [
    ...(staying.length > 0 ? [`${OBJECTS_FOR[reads]}: ${staying.join(", ")}`] : []),
    ...(leaving.length > 0 ? [`${leaving.join(", ")} until unplugged`] : []),
  ].join("; ");
}

/**
 * Returns the options as text, one per line, each under its comment. Without the comments (`grep -v '^#'`) the text can be put on
 * QEMU's command line unchanged, because no value has a space. Ends without a newline. Empty if there are no devices.
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
