import { UsageError } from "../../errors.js";
import type { ReplaySchedule } from "../../host/replay-schedule.js";
import { hex, PAGE_SIZE } from "../../memory/address.js";
import type { MemoryRegion } from "../../memory/guest-memory.js";
import type { TraceHeader } from "./format.js";
import type { TraceInterval } from "./interval.js";

/** Writes of all replayed devices in one run through a trace: 128 MiB. */
const MAX_WRITES = 1 << 25;

/**
 * Returns the writes of devices that replay a trace together, per owner. If several of them dirtied a page, the first of them
 * writes it, whenever any of them did. So each interval dirties exactly the trace's pages, and each page has one writer, which its
 * stamps name.
 * @param name the name of the trace in messages: its file
 * @param regions the memory of the machine that replays it
 * @throws UsageError `TRACE_DOES_NOT_FIT` for pages that are not writeable RAM there; `NO_SUCH_OWNER`; `TRACE_TOO_LARGE`
 */
export function schedulesOf(
  name: string,
  { header, intervals }: { header: TraceHeader; intervals: readonly TraceInterval[] },
  owners: readonly string[],
  regions: readonly MemoryRegion[],
): Map<string, ReplaySchedule> {
  for (const owner of owners) checkOwner(name, header, owner);
  const ownerOf = new Map<number, number>();
  /** By page, the last interval in which its write is scheduled. */
  const scheduledIn = new Map<number, number>();
  const pages = owners.map((): number[] => []);
  const counts = owners.map((): number[] => []);
  const endsUs: number[] = [];
  let us = 0;
  let writes = 0;
  intervals.forEach((interval, now) => {
    owners.forEach((owner, index) => {
      const runs = interval.owners.get(owner) ?? new Uint32Array(0);
      for (let run = 0; run < runs.length; run += 2) {
        checkRun(name, header, regions, runs[run], runs[run + 1]);
        for (let page = runs[run]; page < runs[run] + runs[run + 1]; page++) {
          if (scheduledIn.get(page) === now) continue;
          scheduledIn.set(page, now);
          const writer = ownerOf.get(page) ?? index;
          ownerOf.set(page, writer);
          pages[writer].push(page);
          if (++writes > MAX_WRITES) throw tooLarge(name);
        }
      }
    });
    us += Math.max(1, interval.elapsedMs * 1000);
    endsUs.push(us);
    counts.forEach((count, index) => {
      count.push(pages[index].length);
    });
  });
  return new Map(
    owners.map((owner, index) => [
      owner,
      { pages: shared32(pages[index]), writes: shared32(counts[index]), endsUs: shared64(endsUs) },
    ]),
  );
}

function checkOwner(name: string, { owners }: TraceHeader, owner: string): void {
  const found = owners.find((candidate) => candidate.owner === owner);
  const there = owners.filter(({ tracker }) => tracker !== "everything").map((candidate) => candidate.owner);
  if (found === undefined) {
    throw new UsageError(`${name} has no owner '${owner}'`, {
      code: "NO_SUCH_OWNER",
      remedy: `there are: ${there.join(", ") || "none"}`,
    });
  }
  if (found.tracker !== "everything") return;
  throw new UsageError(`${name} does not know what ${owner} wrote: nothing tracked it`, {
    code: "NO_SUCH_OWNER",
    remedy: `replay another: ${there.join(", ") || "there is none"}`,
  });
}

function checkRun(
  name: string,
  { memoryBytes }: TraceHeader,
  regions: readonly MemoryRegion[],
  firstPage: number,
  pages: number,
): void {
  for (const region of regions) {
    const end = region.firstPage + region.pages;
    if (region.writeable && firstPage >= region.firstPage && firstPage + pages <= end) return;
  }
  // A run may span regions that touch; page by page, then.
  for (let page = firstPage; page < firstPage + pages; page++) {
    const in_ = regions.some((region) => {
      return region.writeable && page >= region.firstPage && page < region.firstPage + region.pages;
    });
    if (in_) continue;
    throw new UsageError(`${name} has writes at ${hex(page * PAGE_SIZE)}, which is no RAM of this machine`, {
      code: "TRACE_DOES_NOT_FIT",
      remedy: `give the machine the ${memoryBytes / 2 ** 20}M that the recorded one had`,
    });
  }
}

function tooLarge(name: string): UsageError {
  return new UsageError(`${name} has more than ${MAX_WRITES} writes`, {
    code: "TRACE_TOO_LARGE",
    remedy: "record a shorter trace, or one with longer intervals",
  });
}

function shared32(values: readonly number[]): Uint32Array<SharedArrayBuffer> {
  const shared = new Uint32Array(new SharedArrayBuffer(4 * values.length));
  shared.set(values);
  return shared;
}

function shared64(values: readonly number[]): Float64Array<SharedArrayBuffer> {
  const shared = new Float64Array(new SharedArrayBuffer(8 * values.length));
  shared.set(values);
  return shared;
}
