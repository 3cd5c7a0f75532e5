import type { z } from "zod";
import { GiB, KiB, MiB, PAGE_SIZE } from "../memory/address.js";
import { VFIO_PCI_IRQ_INDEX, VFIO_PCI_REGION_INDEX } from "../uapi/vfio.js";
import type { Machine, RegionInfo, VfioDevice } from "./host.js";
import { fixedConfig, PCI_SHAPE_BYTES, pciFieldAt } from "./pci-shape.js";
import type { deviceShapeSchema, machineShapeSchema } from "./shape-schema.js";

/*
 * What a guest can tell its machine by. A source sends it with its machine, and a destination compares it with what it has
 * built before it accepts: a guest must not find other hardware after a migration. What is state is no part of it: state
 * moves.
 */

/** Raised when a shape means something else; two sides of different versions don't understand each other. */
export const SHAPE_VERSION = 1;

/** The features by which a guest recognises a device. */
export type DeviceShape = z.output<typeof deviceShapeSchema>;
/** The features by which a guest recognises a machine. */
export type MachineShape = z.output<typeof machineShapeSchema>;
/** Features that only the device's model knows, by name. The name must read well in "the source's NAME is VALUE". */
export type ShapeFacts = DeviceShape["facts"];

/** A device whose registers can be read. */
type Readable = Pick<VfioDevice, "model" | "regions" | "irqs" | "regionRead">;

/** Returns the shape of an open, bound device. @throws UapiError if its configuration space can't be read */
export async function shapeOf(
  device: Readable,
  { stateVersion, facts }: Pick<DeviceShape, "stateVersion" | "facts">,
): Promise<DeviceShape> {
  const { model, regions, irqs } = device;
  const config = await configOf(device);
  // These two are between the VMM and its host: no guest sees them.
  const ofHost: readonly number[] = config === null ? [] : [VFIO_PCI_IRQ_INDEX.ERR, VFIO_PCI_IRQ_INDEX.REQ];
  return {
    version: SHAPE_VERSION,
    model,
    stateVersion,
    regions: regions.map(({ index: i, name: n, bytes: b, readable, writeable }) => ({
      index: i,
      name: n,
      bytes: b,
      readable,
      writeable,
    })),
    irqs: irqs
      .filter(({ index: i }) => !ofHost.includes(i))
      .map(({ index: i, name: n, count }) => ({ index: i, name: n, count })),
    config,
    facts,
  };
}

async function configOf(device: Readable): Promise<string | null> {
  const { CONFIG } = VFIO_PCI_REGION_INDEX;
  const region = device.regions.find(({ index: i }) => i === CONFIG);
  if (region === undefined || !region.readable) return null;
  const config = await device.regionRead(CONFIG, 0, Math.min(region.bytes, PCI_SHAPE_BYTES));
  return Buffer.from(fixedConfig(config)).toString("hex");
}

/** Returns the shape of a machine. @throws UapiError of its devices */
export async function machineShape({
  memory,
  vcpus,
  devices,
}: Pick<Machine, "memory" | "vcpus" | "devices">): Promise<MachineShape> {
  const shapes: MachineShape["devices"] = [];
  for (const { id, vfio } of devices) shapes.push({ id, shape: await vfio.shape() });
  return {
    memory: memory.regions.map(({ firstPage, pages, writeable }) => ({ firstPage, pages, writeable })),
    vcpus: vcpus.count,
    devices: shapes,
  };
}

/**
 * Returns the differences that a guest would find, one sentence each, naming both sides. Empty if there are none.
 *
 * @example
 * ```ts
 * shapeDifferences(source, destination); // ["disk0: the source's capacity is 2 GiB, the destination's 1 GiB"]
 * ```
 */
export function shapeDifferences(source: MachineShape, destination: MachineShape): string[] {
  const found: string[] = [];
  const layout = ({ memory }: MachineShape) =>
    memory
      .map(({ firstPage, pages, writeable }) => {
        const at = `0x${(firstPage * PAGE_SIZE).toString(16)}`;
        return `${sizeText(pages * PAGE_SIZE)} at ${at}${writeable ? "" : " (read-only)"}`;
      })
      .join(", ");
  if (layout(source) !== layout(destination)) {
    found.push(`the source's memory is ${layout(source)}, the destination's ${layout(destination)}`);
  }
  if (source.vcpus !== destination.vcpus) {
    found.push(`the source has ${source.vcpus} vCPUs, the destination ${destination.vcpus}`);
  }
  const ours = new Map(destination.devices.map(({ id, shape }) => [id, shape]));
  for (const { id, shape } of source.devices) {
    const other = ours.get(id);
    if (other === undefined) found.push(`${id}: the source has it, the destination does not`);
    else found.push(...deviceDifferences(shape, other).map((what) => `${id}: ${what}`));
    ours.delete(id);
  }
  for (const id of ours.keys()) found.push(`${id}: the destination has it, the source does not`);
  return found;
}

function deviceDifferences(source: DeviceShape, destination: DeviceShape): string[] {
  const found: string[] = [];
  if (source.model !== destination.model) {
    // Whatever else differs follows from it.
    return [`the source's is a ${source.model}, the destination's a ${destination.model}`];
  }
  const compare = (what: string, a: string | number, b: string | number) => {
    if (a !== b) found.push(`the source's ${what} is ${a}, the destination's ${b}`);
  };
  compare("state version", source.stateVersion ?? "unknown", destination.stateVersion ?? "unknown");
  const [facts, otherFacts] = [source, destination].map((side) => new Map(Object.entries(side.facts)));
  for (const key of new Set([...facts.keys(), ...otherFacts.keys()])) {
    compare(key, factText(facts.get(key)), factText(otherFacts.get(key)));
  }
  const regions = byIndex(destination.regions);
  for (const region of source.regions) {
    const other = regions.get(region.index);
    regions.delete(region.index);
    compare(`region ${region.index} (${region.name})`, regionText(region), regionText(other));
  }
  for (const region of regions.values()) {
    compare(`region ${region.index} (${region.name})`, regionText(undefined), regionText(region));
  }
  const irqs = byIndex(destination.irqs);
  for (const { index: i, name: n, count } of source.irqs) {
    compare(`number of ${n} interrupts`, count, irqs.get(i)?.count ?? 0);
    irqs.delete(i);
  }
  for (const { name: n, count } of irqs.values()) compare(`number of ${n} interrupts`, 0, count);
  found.push(...configDifferences(source.config, destination.config));
  return found;
}

function byIndex<T extends { readonly index: number }>(entries: readonly T[]): Map<number, T> {
  return new Map(entries.map((entry) => [entry.index, entry]));
}

function regionText(region: Omit<RegionInfo, "index"> | undefined): string {
  if (region === undefined) return "absent";
  const access = `${region.readable ? "r" : "-"}${region.writeable ? "w" : "-"}`;
  return `${sizeText(region.bytes)} ${access}`;
}

function configDifferences(source: string | null, destination: string | null): string[] {
  if (source === destination) return [];
  if (source === null || destination === null) {
    const has = (config: string | null) => (config === null ? "no PCI configuration space" : "one");
    return [`the source's has ${has(source)}, the destination's ${has(destination)}`];
  }
  const [a, b] = [Buffer.from(source, "hex"), Buffer.from(destination, "hex")];
  if (a.byteLength !== b.byteLength) {
    return [`the source's PCI configuration space has ${a.byteLength} bytes, the destination's ${b.byteLength}`];
  }
  const found: string[] = [];
  for (let at = 0; at < a.byteLength; at++) {
    if (a[at] === b[at]) continue;
    const field = pciFieldAt(at);
    const value = (config: Buffer) => `0x${config.readUIntLE(field.at, field.bytes).toString(16)}`;
    found.push(`the source's ${field.name} is ${value(a)}, the destination's ${value(b)}`);
    at = field.at + field.bytes - 1;
  }
  return found;
}

function factText(value: ShapeFacts[string] | undefined): string {
  if (value === undefined) return "unknown";
  return typeof value === "object" ? sizeText(value.bytes) : String(value);
}

/** Exact: two sizes that differ never read the same. */
function sizeText(size: number): string {
  const unit = (
    [
      ["GiB", GiB],
      ["MiB", MiB],
      ["KiB", KiB],
    ] as const
  ).find(([, each]) => size > 0 && size % each === 0);
  return unit === undefined ? `${size} bytes` : `${size / unit[1]} ${unit[0]}`;
}
