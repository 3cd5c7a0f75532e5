/*
 * Whose dirty bits a tracker reads. A value in memory, a name wherever it must be text: in keys of reads, reports, traces and
 * feeds, and in labels of metrics. The dashboard's page has this module, too: it imports nothing.
 */

/** The owner of a tracker's dirty bits. */
export type Owner =
  | { readonly kind: "device"; readonly device: string }
  /** The devices of a domain, of which nobody can tell the shares. */
  | { readonly kind: "domain"; readonly devices: readonly string[] }
  /** The vCPUs; or a container, whose kernel merges what all of its devices wrote. */
  | { readonly kind: "cpu" | "container" };

/** The vCPUs, as an owner. */
export const CPU_OWNER: Owner = { kind: "cpu" };
/** A container, as an owner. */
export const CONTAINER_OWNER: Owner = { kind: "container" };

const DOMAIN = "domain:";
const AND = "+";

/** Returns a device as an owner. */
export function deviceOwner(device: string): Owner {
  return { kind: "device", device };
}

/** Returns an owner's name: a device's id, `cpu`, `container`, or `domain:nic0+disk0`. {@link parseOwner} reads it. */
export function ownerName(owner: Owner): string {
  if (owner.kind === "device") return owner.device;
  if (owner.kind === "domain") return `${DOMAIN}${owner.devices.join(AND)}`;
  return owner.kind;
}

/** Returns the owner that a name stands for. A text that is no other owner's name is taken as a device's id. */
export function parseOwner(name: string): Owner {
  if (name === "cpu" || name === "container") return { kind: name };
  if (!name.startsWith(DOMAIN)) return deviceOwner(name);
  return { kind: "domain", devices: name.slice(DOMAIN.length).split(AND) };
}

/** Whether a device may be called so: a name of an owner that has it must read as that owner. */
export function isDeviceId(id: string): boolean {
  return parseOwner(id).kind === "device" && !id.includes(AND);
}

/** Returns an owner's label for people, in a column of owners. A domain is shown as its devices, `nic0+disk0`. */
export function ownerLabel(owner: Owner): string {
  // The bits of a domain of one device are called so only beside the device's own log.
  return owner.kind === "domain" && owner.devices.length > 1 ? owner.devices.join(AND) : ownerName(owner);
}

/** Whether what an owner's tracker reports can be a device's doing. */
export function covers(owner: Owner, device: string): boolean {
  if (owner.kind === "device") return owner.device === device;
  return owner.kind === "domain" ? owner.devices.includes(device) : owner.kind === "container";
}

/** The devices that an owner names; of vCPUs and a container it names none. */
export function devicesOf(owner: Owner): readonly string[] {
  if (owner.kind === "device") return [owner.device];
  return owner.kind === "domain" ? owner.devices : [];
}

/**
 * The tracker that reads an owner's bits. A domain's are the IOMMU's, also where one of its devices has a log of its own.
 * @param ofDevice the tracker of a device that is an owner itself
 */
export function trackerOf(owner: Owner, ofDevice: (device: string) => string): string {
  if (owner.kind === "device") return ofDevice(owner.device);
  return owner.kind === "domain" ? "iommu" : owner.kind;
}
