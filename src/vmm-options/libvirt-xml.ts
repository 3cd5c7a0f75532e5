import { element, type XmlElement, type XmlNode, xmlText } from "../xml.js";
import { iommufdObjects, isPci, type Placement, placeDevices, type VmmHost } from "./containers.js";
import { noteText, qemuNotes, type VmmNote } from "./notes.js";
import { oldestQemu } from "./qemu-command-line.js";
import { isLongDomain, mdevUuid, pciAddress, pciSysfsPath, type VmmDevice, vmmNames } from "./vmm-device.js";

/** The namespace of what libvirt hands on to QEMU without looking at it. */
export const QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0";

/** The elements that a domain's XML needs so that QEMU tracks its devices as chosen. */
export interface LibvirtXml {
  /** Elements for `<devices>`. */
  readonly hostdevs: readonly XmlElement[];
  /** Elements for `<domain>`, which needs `xmlns:qemu` for them. */
  readonly qemu: readonly XmlElement[];
  readonly notes: readonly VmmNote[];
  /** The oldest versions that support all of it. */
  readonly oldest: { readonly libvirt: string; readonly qemu: string };
}

/**
 * Returns the domain XML that makes QEMU track each device as chosen, as closely as QEMU can. A pure function. libvirt has one
 * iommufd object per domain and no notion of dirty trackers, so further objects and QEMU's switches are passed through to QEMU.
 */
export function libvirtXml(devices: readonly VmmDevice[], host: VmmHost = {}): LibvirtXml {
  const placements = placeDevices(devices, { ...host, mdevs: "type1" });
  const aliases = vmmNames(devices).map((name) => `ua-${name}`);
  // libvirt's object serves the first container; each further one gets an object beside it.
  const [first, ...others] = iommufdObjects(placements).map(({ iommufd }) => iommufd);
  const overrides = placements.flatMap((placement, index) => override(placement, aliases[index], others));
  return {
    hostdevs: placements.map((placement, index) => hostdev(placement, aliases[index])),
    qemu: [
      ...(others.length === 0 ? [] : [element("qemu:commandline", {}, others.flatMap(objectArguments))]),
      ...(overrides.length === 0 ? [] : [element("qemu:override", {}, overrides)]),
    ],
    notes: [...qemuNotes(placements), ...libvirtNotes(others).map((text) => ({ devices: [], text }))],
    oldest: {
      // 8.2.0 has <qemu:override>, 12.1.0 iommufd for PCI devices.
      libvirt: first === undefined ? "8.2.0" : "12.1.0",
      qemu: oldestQemu(placements).version,
    },
  };
}

function objectArguments(id: string): XmlElement[] {
  return ["-object", `iommufd,id=${id}`].map((value) => element("qemu:arg", { value }));
}

function hostdev({ device: { address }, container }: Placement, name: string): XmlElement {
  const alias = element("alias", { name });
  if (address.bus === "mdev") {
    const source = element("source", {}, [element("address", { uuid: mdevUuid(address.uuid) })]);
    return element("hostdev", { mode: "subsystem", type: "mdev", model: address.model }, [source, alias]);
  }
  const { domain, bus, slot, func } = pciAddress(address.address);
  return element("hostdev", { mode: "subsystem", type: "pci", managed: "yes" }, [
    element("driver", { name: "vfio", ...(container.iommufd === null ? {} : { iommufd: "yes" }) }),
    element("source", {}, [
      element("address", { domain: `0x${domain}`, bus: `0x${bus}`, slot: `0x${slot}`, function: `0x${func}` }),
    ]),
    alias,
  ]);
}

/** What libvirt doesn't model of a device; nothing for one that QEMU has no switches for. */
function override(placement: Placement, alias: string, others: readonly string[]): XmlNode[] {
  const { device, container, logOff, enableMigration, why } = placement;
  if (!isPci(device)) return [];
  const { address } = device;
  const other = others.find((id) => id === container.iommufd);
  const properties = element("qemu:frontend", {}, [
    // libvirt takes long domains and hands them to QEMU's `host=`, which does not.
    ...(address.bus === "pci" && isLongDomain(address)
      ? [element("qemu:property", { name: "host", type: "remove" }), property("sysfsdev", pciSysfsPath(address))]
      : []),
    ...(other === undefined ? [] : [property("iommufd", other)]),
    property("enable-migration", enableMigration),
    ...(logOff ? [property("x-device-dirty-page-tracking", "off")] : []),
  ]);
  return [element("qemu:device", { alias }, [{ comment: `${device.choice.device}: ${why}` }, properties])];
}

/** OnOffAuto and links are strings to libvirt. */
function property(name: string, value: string): XmlElement {
  return element("qemu:property", { name, type: "string", value });
}

function libvirtNotes(others: readonly string[]): string[] {
  const notes = [
    "libvirt calls a domain with <qemu:override> tainted, and does not apply it to what is plugged in later.",
  ];
  if (others.length > 0) {
    notes.push(
      `libvirt opens /dev/iommu for one object a domain; for ${others.join(" and ")} QEMU does. Put /dev/iommu into cgroup_device_acl of ` +
        "/etc/libvirt/qemu.conf, let the user of QEMU read and write it, and raise the hard_limit of <memtune>.",
    );
  }
  return notes;
}

/** Returns the XML as text: a domain with only the elements to merge into your own. Empty if there are no devices. */
export function libvirtText({ hostdevs, qemu, notes, oldest }: LibvirtXml): string {
  if (hostdevs.length === 0) return "";
  const header = `libvirt ${oldest.libvirt} and QEMU ${oldest.qemu}, or later. To be merged into a domain's XML.`;
  return xmlText(
    element("domain", { type: "kvm", "xmlns:qemu": QEMU_NAMESPACE }, [
      { comment: header },
      ...notes.map((note) => ({ comment: noteText(note) })),
      element("devices", {}, hostdevs),
      ...qemu,
    ]),
  );
}
