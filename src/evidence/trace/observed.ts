import { type PageRuns, runsOf } from "../../bitmap/ram-runs.js";
import type { Machine } from "../../host/host.js";
import type { GuestMemory } from "../../memory/guest-memory.js";
import type { TrackerChoice } from "../../tracking/choice.js";
import type { DirtyRead, DirtySource } from "../../tracking/dirty-source.js";
import { isErrno } from "../../uapi/errno.js";
import type { TraceHeader } from "./format.js";
import type { TraceInterval } from "./interval.js";

/*
 * What a trace says of a machine, from the machine itself and from the reads of its trackers.
 */

/** The interval that a read ends. The read's bitmaps must still be valid. */
export function intervalOf(read: DirtyRead, elapsedMs: number): TraceInterval {
  const owners = new Map<string, PageRuns>();
  for (const [owner, pages] of read.pagesByOwner) {
    const runs = runsOf(pages);
    if (runs.length > 0) owners.set(owner, runs);
  }
  return { elapsedMs, owners };
}

/** Who has a tracker, as the ledger names it; known once the trackers were read. */
export function ownersOf(
  machine: Pick<Machine, "devices">,
  source: Pick<DirtySource, "choices" | "granuleOf">,
  read: Pick<DirtyRead, "byOwner" | "unread" | "always">,
): TraceHeader["owners"] {
  const devicesOf = (ids: readonly string[]) =>
    machine.devices.filter(({ id }) => ids.includes(id)).map(({ id, model }) => ({ id, model }));
  const granuleOf = (ids: readonly string[]) => (ids.length === 0 ? null : source.granuleOf(ids[0]));
  return [...Object.keys(read.byOwner), ...read.unread].map((owner) => {
    if (owner === "cpu") return { owner, tracker: "cpu", granule: 4096, devices: [] };
    const ids = owner === "container" ? source.choices.map(({ device }) => device) : membersOf(owner);
    const tracker = owner === "container" ? (read.always === null ? owner : "everything") : trackerOf(source, ids);
    return { owner, tracker, granule: tracker === "everything" ? null : granuleOf(ids), devices: devicesOf(ids) };
  });
}

/** The devices that an owner stands for: `domain:nic0+disk0` has two. */
export function membersOf(owner: string): string[] {
  return owner.replace(/^domain:/, "").split("+");
}

function trackerOf({ choices }: { readonly choices: readonly TrackerChoice[] }, ids: readonly string[]): string {
  // A domain is tracked by the IOMMU, also where one of its devices has a log of its own besides.
  if (ids.length > 1) return "iommu";
  return choices.find(({ device }) => device === ids[0])?.tracker ?? "iommu";
}

/** MIG_DATA_SIZE of all devices that can migrate, together; null where one of them doesn't say. */
export async function deviceStateBytes({ devices }: Pick<Machine, "devices">): Promise<number | null> {
  let bytes = 0;
  for (const { vfio } of devices) {
    try {
      bytes += await vfio.dataSize();
    } catch (error) {
      if (isErrno(error, "ENOTTY")) continue;
      return null;
    }
  }
  return bytes;
}

/** How guest-physical addresses are laid out: a `virt` machine has no RAM below 1 GiB. */
export function platformOfMemory({ regions }: GuestMemory): TraceHeader["platform"] {
  return regions.some(({ name }) => name === "flash") ? "virt" : "pc";
}
