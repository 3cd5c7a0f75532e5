import { type PageRuns, runsOf } from "../../bitmap/ram-runs.js";
import type { Machine } from "../../host/host.js";
import { PAGE_SIZE } from "../../memory/address.js";
import type { GuestMemory } from "../../memory/guest-memory.js";
import type { DirtyRead, DirtySource } from "../../tracking/dirty-source.js";
import { covers, parseOwner, trackerOf } from "../../tracking/owner.js";
import { isErrno } from "../../uapi/errno.js";
import type { TraceHeader } from "./format.js";
import type { TraceInterval } from "./interval.js";

/*
 * What a trace says of a machine, from the machine itself and from the reads of its trackers.
 */

/** Returns the interval that ends with a read, whose bitmaps must still be valid. @param elapsedMs since the previous read */
export function intervalOf(read: DirtyRead, elapsedMs: number): TraceInterval {
  const owners = new Map<string, PageRuns>();
  for (const [owner, pages] of read.pagesByOwner) {
    const runs = runsOf(pages);
    if (runs.length > 0) owners.set(owner, runs);
  }
  return { elapsedMs, owners };
}

/** Returns the owners that have a tracker, by the ledger's names. They are known after a read of the trackers. */
export function ownersOf(
  machine: Pick<Machine, "devices">,
  source: Pick<DirtySource, "choices" | "granuleOf">,
  read: Pick<DirtyRead, "byOwner" | "unread" | "always">,
): TraceHeader["owners"] {
  // Of bits that are only looked at nobody chose a tracker: they are an HWPT's.
  const chosen = (id: string) => source.choices.find(({ device }) => device === id)?.tracker ?? "iommu";
  return [...Object.keys(read.byOwner), ...read.unread].map((name) => {
    const owner = parseOwner(name);
    if (owner.kind === "cpu") return { owner: name, tracker: "cpu", granule: PAGE_SIZE, devices: [] };
    const devices = machine.devices.filter(({ id }) => covers(owner, id)).map(({ id, model }) => ({ id, model }));
    const all = owner.kind === "container" && read.always !== null;
    const tracker = all ? "everything" : trackerOf(owner, chosen);
    // A device of a domain may have a log of its own besides, with another granule.
    const like = devices.find(({ id }) => chosen(id) === tracker) ?? devices.at(0);
    const granule = tracker === "everything" || like === undefined ? null : source.granuleOf(like.id);
    return { owner: name, tracker, granule, devices };
  });
}

/** Returns the sum of MIG_DATA_SIZE of all devices that can migrate, in bytes; null if one of them doesn't tell. */
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
