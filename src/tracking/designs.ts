import { UsageError } from "../errors.js";
import type { ContainerDesign, ContainerMember } from "../host/designs.js";
import type { AttachedDevice, Machine } from "../host/host.js";
import { writeableAreas } from "./areas.js";
import { type ArrangedDomain, arrange } from "./arrangement.js";
import type { TrackerChoice, TrackingDesign, Untracked } from "./choice.js";
import { Collector, type CollectorHooks, type TrackerRequest } from "./collector.js";
import type { DirtySource } from "./dirty-source.js";
import { CONTAINER_OWNER, deviceOwner, type Owner, ownerName } from "./owner.js";
import type { DirtyTracker } from "./tracker.js";
import { containerTracker } from "./trackers/container.js";
import { cpuTracker } from "./trackers/cpu.js";
import { deviceTracker } from "./trackers/device.js";
import { everythingTracker } from "./trackers/everything.js";
import { iommuTracker } from "./trackers/iommu.js";
import { pinnedTracker } from "./trackers/pinned.js";
import { UndoStack } from "./undo.js";

/**
 * Opens the chosen trackers on a running machine. Tracking begins with {@link DirtySource.start}. Disposing the source switches
 * the trackers off and attaches the devices to the objects that they were attached to before.
 * @throws UsageError `NO_SUCH_DESIGN` if the machine's host lacks the design; UapiError. Nothing is changed then
 */
export async function openDesign(
  design: TrackingDesign,
  machine: Machine,
  choices: readonly TrackerChoice[],
  { hooks, signal }: { hooks?: CollectorHooks; signal?: AbortSignal } = {},
): Promise<DirtySource> {
  const undo = new UndoStack();
  try {
    return design === "split"
      ? await openSplit(machine, choices, undo, hooks, signal)
      : await openContained(design, machine, choices, undo, hooks, signal);
  } catch (error) {
    return undo.undoBecauseOf(error);
  }
}

async function openSplit(
  machine: Machine,
  choices: readonly TrackerChoice[],
  undo: UndoStack,
  hooks?: CollectorHooks,
  signal?: AbortSignal,
): Promise<DirtySource> {
  const arrangement = await arrange(machine, choices, signal);
  undo.add("restore the devices' domains", () => arrangement[Symbol.asyncDispose]());
  const requests = [...cpuRequests(machine), ...deviceRequests(machine, choices, arrangement.domains)];
  const collector = collect(machine, requests, undo, hooks);
  return source(collector, choices, undo, (id) => {
    const shared = arrangement.domains.find(({ dirtyTracking, devices }) => dirtyTracking && devices.includes(id));
    return (
      collector.granuleOf(id) ??
      (shared === undefined ? null : collector.granuleOf(ownerName(ownerOf(shared, choices))))
    );
  });
}

async function openContained(
  design: ContainerDesign,
  machine: Machine,
  chosen: readonly TrackerChoice[],
  undo: UndoStack,
  hooks?: CollectorHooks,
  signal?: AbortSignal,
): Promise<DirtySource> {
  const { designs } = machine;
  if (designs === undefined) {
    throw new UsageError(`this host's kernel has no design '${design}'`, {
      code: "NO_SUCH_DESIGN",
      remedy: "use the design 'split', or the emulated host",
    });
  }
  const choices = choicesUnder(design, chosen, machine);
  const arrangement = await arrange(machine, choices, signal);
  undo.add("restore the devices' domains", () => arrangement[Symbol.asyncDispose]());
  const members = choices.map((choice) => memberOf(choice, machine, arrangement.domains));
  const mapped = writeableAreas(machine.memory);
  const container = await designs.openContainer({ design, members, mapped });
  undo.add("close the container", () => container[Symbol.asyncDispose]());
  const requests = [...cpuRequests(machine), { tracker: containerTracker(container), granule: null }];
  const collector = collect(machine, requests, undo, hooks);
  return source(collector, choices, undo, (id) => {
    const everything = choices.some(({ device, tracker }) => device === id && tracker === "everything");
    return everything ? null : collector.granuleOf(ownerName(CONTAINER_OWNER));
  });
}

function source(
  collector: Collector,
  choices: readonly TrackerChoice[],
  undo: UndoStack,
  granuleOf: DirtySource["granuleOf"],
): DirtySource {
  return {
    choices,
    ledger: collector.ledger,
    granuleOf,
    start: (signal) => collector.start(signal),
    read: (args) => collector.read(args),
    [Symbol.asyncDispose]: () => undo.undo(),
  };
}

function collect(
  machine: Machine,
  requests: readonly TrackerRequest[],
  undo: UndoStack,
  hooks: CollectorHooks = {},
): Collector {
  const collector = new Collector(machine.memory, requests, { hooks });
  undo.add("switch the trackers off", () => collector[Symbol.asyncDispose]());
  return collector;
}

function cpuRequests({ vcpus }: Machine): TrackerRequest[] {
  return vcpus.count === 0 ? [] : [{ tracker: cpuTracker(vcpus), granule: null }];
}

/** One tracker per domain that tracks, per device log, and per device that nothing tracks and that goes on running. */
export function deviceRequests(
  machine: Machine,
  choices: readonly TrackerChoice[],
  domains: readonly ArrangedDomain[],
): TrackerRequest[] {
  const requests: TrackerRequest[] = domains
    .filter(({ dirtyTracking }) => dirtyTracking)
    .map((domain) => ({
      tracker: iommuTracker({ ...domain, hwpt: domain.id, owner: ownerOf(domain, choices) }),
      granule: null,
    }));
  for (const { device: id, tracker, granule, suspend } of choices) {
    if (tracker === "iommu" || suspend) continue;
    requests.push({ tracker: ownTracker(findDevice(machine, id), tracker), granule });
  }
  return requests;
}

function ownTracker(device: AttachedDevice, kind: "device" | "pinned" | "everything"): DirtyTracker {
  switch (kind) {
    case "device":
      return deviceTracker(device.vfio, device.id);
    case "pinned":
      return pinnedTracker(device.vfio, device.id);
    case "everything":
      return everythingTracker(device.id);
  }
}

/**
 * The dirty bits of a domain are of all devices that are attached to it, also of one that has a log of its own. Of one that is
 * alone there the domain's bits are its own, unless it has that log: then there are two owners, which count each.
 */
function ownerOf({ devices }: ArrangedDomain, choices: readonly TrackerChoice[]): Owner {
  const [only] = devices;
  const isTracker = choices.some(({ device, tracker }) => device === only && tracker === "iommu");
  return devices.length === 1 && isTracker ? deviceOwner(only) : { kind: "domain", devices };
}

/** What the operator asks by name. What is left out is not asked for. */
export interface AskedPolicy {
  readonly order?: unknown;
  readonly trackers?: Readonly<Record<string, unknown>> | undefined;
  readonly granules?: Readonly<Record<string, unknown>> | undefined;
  readonly domain?: unknown;
  readonly untracked?: Untracked | undefined;
  readonly untrackedDevices?: Readonly<Record<string, Untracked>> | undefined;
}

/**
 * Refuses what an operator asks for where the design would not heed it: type1 asks no device, and counts a suspended one's
 * pages as dirty all the same.
 * @throws UsageError `NO_EFFECT`
 */
export function refuseWithoutEffect(design: TrackingDesign, asked: AskedPolicy): void {
  if (design !== "type1") return;
  const named = (option: string, devices: object = {}) => Object.keys(devices).map((id) => `${option} for ${id}`);
  const [first] = [
    ...(asked.order === undefined ? [] : ["the policy"]),
    ...named("the tracker", asked.trackers),
    ...named("the granule", asked.granules),
    ...(asked.domain === undefined ? [] : ["the domain"]),
    ...(asked.untracked === "suspend" ? ["the suspension of untracked devices"] : []),
    ...named("what happens untracked", asked.untrackedDevices),
  ];
  if (first === undefined) return;
  throw new UsageError(`${first} has no effect under the design type1, which asks no device for its dirty pages`, {
    code: "NO_EFFECT",
    remedy: "leave it out, or use another design (--design split)",
  });
}

/** The choices as a design follows them: type1 heeds none, and says what it does instead. */
export function choicesUnder(
  design: TrackingDesign,
  choices: readonly TrackerChoice[],
  machine: Pick<Machine, "devices">,
): readonly TrackerChoice[] {
  return design === "type1" ? asType1Sees(choices, machine) : choices;
}

/**
 * type1 consults no device's log and no IOMMU's dirty bits. It knows what mdevs pin, and falls back to all that is mapped
 * where one device is in the container that pins nothing.
 */
function asType1Sees(choices: readonly TrackerChoice[], { devices }: Pick<Machine, "devices">): TrackerChoice[] {
  const unpinned = devices.filter(({ mdev }) => !mdev).map(({ id }) => id);
  const what =
    unpinned.length === 0
      ? "it follows what the mdevs pin"
      : `with a device in the container that pins nothing (${unpinned.join(", ")}), all that is mapped counts as dirty`;
  return choices.map((choice) => ({
    ...choice,
    tracker: unpinned.length === 0 ? "pinned" : "everything",
    granule: null,
    domain: null,
    reason: `type1 consults no device's log and no IOMMU's dirty bits: ${what}`,
    alternatives: [],
  }));
}

function memberOf(
  { device: id, tracker, granule, suspend }: TrackerChoice,
  machine: Machine,
  domains: readonly ArrangedDomain[],
): ContainerMember {
  const domain = tracker === "iommu" ? domains.find(({ devices }) => devices.includes(id)) : undefined;
  return {
    device: findDevice(machine, id),
    tracker: tracker === "everything" ? null : tracker,
    domain: domain === undefined ? null : { iommufd: domain.iommufd, id: domain.id },
    granule,
    optOut: suspend,
  };
}

function findDevice(machine: Machine, id: string): AttachedDevice {
  const device = machine.devices.find((candidate) => candidate.id === id);
  if (device !== undefined) return device;
  throw new UsageError(`there is no device '${id}'`, {
    code: "UNKNOWN_DEVICE",
    remedy: `there are: ${machine.devices.map((candidate) => candidate.id).join(", ") || "none"}`,
  });
}
