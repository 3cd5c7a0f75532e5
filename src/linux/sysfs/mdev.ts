import { realpathSync } from "node:fs";
import { basename, dirname } from "node:path";
import type { Roots } from "../roots.js";
import type { LinuxDevice } from "./device.js";
import { entries, linkName, readNumber, readValue } from "./files.js";
import { DEVICE_NAME, readGroup, readNumaNode } from "./group.js";
import { readVfioNode } from "./vfio-node.js";

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** A kind of mdev that a parent can make. */
export interface MdevType {
  readonly parent: string;
  /** Its folder's name: `mtty-1`, `nvidia-471`. */
  readonly type: string;
  /** What the driver calls it, for people: "Single port serial". */
  readonly name: string;
  /** How many more of it could be made now; null where the driver doesn't say. */
  readonly available: number | null;
  /** Writing a UUID to it makes one. */
  readonly create: string;
}

/** All mdevs. An mdev exists only to be assigned. */
export function findMdevs(roots: Roots): LinuxDevice[] {
  const bus = `${roots.sys}/bus/mdev/devices`;
  return entries(bus, UUID).flatMap((id) => readMdev(roots, id) ?? []);
}

function readMdev(roots: Roots, id: string): LinuxDevice | null {
  const path = `${roots.sys}/bus/mdev/devices/${id}`;
  const parent = parentOf(path);
  if (parent === null) return null;
  const driver = linkName(`${path}/driver`);
  const group = readGroup(roots, path);
  return {
    id,
    model: driver ?? "no driver",
    kind: "mdev",
    iommuGroup: group?.id ?? null,
    path,
    driver,
    group,
    iommu: null,
    // The node is the parent's: the mdev itself has no memory and no bus.
    numaNode: readNumaNode(dirname(realpathOr(path))),
    vfio: readVfioNode(roots, path, driver),
    pci: null,
    mdev: { parent, type: linkName(`${path}/mdev_type`), deviceApi: readValue(`${path}/mdev_type/device_api`) },
  };
}

/** An mdev's folder lies in its parent's. null where it is gone. */
function parentOf(path: string): string | null {
  const real = realpathOr(path);
  const parent = basename(dirname(real));
  return real === path || !DEVICE_NAME.test(parent) ? null : parent;
}

function realpathOr(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return path;
  }
}

/** Every type of mdev that some device could make. */
export function findMdevTypes(roots: Roots): MdevType[] {
  const parents = `${roots.sys}/class/mdev_bus`;
  return entries(parents, DEVICE_NAME).flatMap((parent) => {
    const types = `${parents}/${parent}/mdev_supported_types`;
    return entries(types, DEVICE_NAME).map((type) => ({
      parent,
      type,
      name: readValue(`${types}/${type}/name`) || type,
      available: readNumber(`${types}/${type}/available_instances`, { min: 0, max: 2 ** 32 - 1 }),
      create: `${types}/${type}/create`,
    }));
  });
}
