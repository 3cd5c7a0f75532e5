import { UsageError } from "../errors.js";
import { TraceDecoder } from "../evidence/trace/decoder.js";
import {
  FILE_HEAD_BYTES,
  FRAME_HEAD_BYTES,
  MAX_PAYLOAD_BYTES,
  TRACE_MAGIC,
  type TraceHeader,
} from "../evidence/trace/format.js";
import { readStart } from "../sys/input-file.js";
import { ownerLabel, parseOwner } from "../tracking/owner.js";

/** What a trace's file is called, so that it can be given where a scenario can. */
const TRACE_SUFFIX = ".dtrc";

/** True for a file that is called like a trace. */
export function isCalledTrace(path: string): boolean {
  return path.endsWith(TRACE_SUFFIX);
}

/** True for a file's first bytes if a trace begins so. */
export function beginsTrace(head: Buffer): boolean {
  return head.length >= 4 && head.readUInt32LE() === TRACE_MAGIC;
}

/** A scenario, not checked yet, of a machine that does what a trace says. */
export interface TraceScenario {
  readonly summary: string;
  readonly machine: object;
}

/**
 * The machine of a trace: as much memory, and a device for each owner that had a tracker, which replays what that owner
 * dirtied. vCPUs are a device too. Share of zero pages as it was.
 * @throws UsageError `BAD_TRACE`, `TRACE_TOO_NEW`, `NO_TRACE`
 */
export function traceScenario(path: string): TraceScenario {
  const header = readHeader(path);
  const { memoryBytes, platform, zeroShare, owners, scenario, startedAt } = header;
  const iommu = { id: "iommu0", format: platform === "virt" ? "arm-s1" : "amd-v1" };
  return {
    summary: `a trace of ${scenario ?? "a machine"}, recorded at ${startedAt}`,
    machine: {
      memory: memoryBytes,
      fill: 1 - (zeroShare ?? 0.5),
      vcpus: { count: 0 },
      iommus: [iommu],
      devices: owners
        .filter(({ tracker }) => tracker !== "everything")
        .map(({ owner }) => ({ id: deviceIdOf(owner), model: "replay", iommu: iommu.id, trace: path, owner })),
    },
  };
}

/** A device's id that says which owner it stands for: `cpu` is `vcpus`, `domain:nic0+disk0` is `nic0-disk0`. */
function deviceIdOf(name: string): string {
  const owner = parseOwner(name);
  if (owner.kind === "cpu") return "vcpus";
  // No device may be called as the owner itself is.
  if (owner.kind === "container") return "devices";
  const id = ownerLabel(owner)
    .toLowerCase()
    .replaceAll(/[^a-z0-9._-]/g, "-")
    .slice(0, 32);
  return /^[a-z0-9]/.test(id) ? id : `d${id.slice(0, 31)}`;
}

function readHeader(path: string): TraceHeader {
  let start: Buffer;
  try {
    start = readStart(path, FILE_HEAD_BYTES + FRAME_HEAD_BYTES + MAX_PAYLOAD_BYTES + 4);
  } catch (cause) {
    throw new UsageError(`can't read ${path}: ${(cause as Error).message}`, {
      code: "NO_TRACE",
      remedy: "name a file that `dirtmap record` wrote",
      cause,
    });
  }
  const decoder = new TraceDecoder(path);
  // As far as the header's end; what comes after it is read when it is replayed.
  for (const _interval of decoder.push(start)) break;
  return decoder.header ?? decoder.finish();
}
