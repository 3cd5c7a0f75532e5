import { z } from "zod";
import { explain, UsageError } from "../../errors.js";
import { machineReportSchema } from "../../machine-report.js";
import { safeJson } from "../../safe-text.js";
import { readTextInput } from "../../sys/input-file.js";
import { TRACKING_DESIGNS } from "../../tracking/choice.js";
import { summarySchema } from "../statistics.js";
import { WORKLOADS } from "./workload-names.js";

/*
 * What `dirtmap bench designs --json` prints and --output keeps: its form, which is checked where it is read again.
 */

const count = z.int().min(0);
const amount = z.number().min(0);

const calls = z.strictObject({
  /** Calls that the reader makes: system calls, on a kernel. */
  calls: count,
  /** Calls that a design makes of trackers and devices on its own side, below one of the reader's. */
  innerCalls: count,
  /** Reads of a device's log, or of a domain's dirty bits, whoever made them. */
  trackerReads: count,
  /** Bytes of bitmaps that the reader's calls fill. */
  bitmapBytes: count,
});

const memory = z.strictObject({
  /** Logs that devices, and objects that devices share, mark. */
  logs: count,
  /** On the kernel's side of the calls. */
  kernel: count,
  /** The reader's. */
  reader: count,
});

const readRow = z.strictObject({
  workload: z.enum(WORKLOADS),
  devices: z.int().min(1),
  design: z.enum(TRACKING_DESIGNS),
  /** Pages that devices had written before a read, each once. */
  pagesWritten: count,
  /** Pages that a read named. */
  pagesReported: count,
  /** Processor time of a read, of the whole process, in milliseconds: per repetition, the mean of its reads. */
  cpuMs: summarySchema,
  /** From a read's start to its end: per repetition, the mean of its reads. */
  wallMs: summarySchema,
  /** The same of the last read, when all is stopped and the trackers are read at once. */
  lastReadMs: summarySchema,
  /** Processor time from opening the design until tracking runs. */
  startCpuMs: summarySchema,
  /** From a read's start to its end, while calls are counted, and the part of it that passes in the reader's calls. */
  countedReadMs: summarySchema,
  inCallsMs: summarySchema,
  /** Of a read. */
  perRead: calls,
  /** From opening the design until tracking runs. */
  perStart: calls,
  /** Memory for dirty bits that is held between reads, in bytes. */
  held: memory,
  /** Memory for dirty bits that is taken during a read and given back. */
  duringRead: memory,
});

const migrationRow = z.strictObject({
  workload: z.enum(WORKLOADS),
  devices: z.int().min(1),
  design: z.enum(TRACKING_DESIGNS),
  downtimeMs: summarySchema,
  /** From the first page until the destination runs. */
  movingMs: summarySchema,
  /** Bytes sent. */
  bytes: summarySchema,
  /** Pages sent while the machine was stopped. */
  lastRoundPages: summarySchema,
  rounds: summarySchema,
});

/** What is compared, over the number of devices. `moved` and `downtime` are what follows from the last read. */
export const MEASURES = ["cpu", "memory", "calls", "copied", "moved", "downtime"] as const;

const crossing = z.strictObject({
  workload: z.enum(WORKLOADS),
  measure: z.enum(MEASURES),
  design: z.enum(TRACKING_DESIGNS),
  rival: z.enum(TRACKING_DESIGNS),
  /**
   * Numbers of devices at which the curves cross, each between two measured ones at which the middle halves are apart, one way
   * and the other way.
   */
  crossings: z.array(z.strictObject({ at: amount, between: z.tuple([z.int(), z.int()]) })),
  /** The number of devices from which on they stay apart the same way, as far as was measured; null: at the most they aren't. */
  settledFrom: z.int().nullable(),
  /** What the design's measure is of the rival's, at the fewest and the most devices. */
  ratioFirst: amount.nullable(),
  ratioLast: amount.nullable(),
  /** The middle halves are apart there. */
  decidedFirst: z.boolean(),
  decidedLast: z.boolean(),
});

export const designsResultSchema = z.object({
  schemaVersion: z.literal(1),
  kind: z.literal("designs"),
  /** What was measured: never hardware. */
  measures: z.string(),
  host: z.string(),
  takenAt: z.string(),
  machine: machineReportSchema,
  settings: z.strictObject({
    /** Of the guest whose trackers are read. */
    memoryBytes: count,
    /** Pages that each device writes before a read. */
    footprintPages: count,
    devices: z.array(z.int().min(1)).min(1),
    repetitions: z.int().min(1),
    /** Of each repetition, besides the last one. */
    reads: z.int().min(1),
    /** null: no machine was migrated. */
    migrations: z
      .strictObject({
        memoryBytes: count,
        devices: z.array(z.int().min(1)).min(1),
        repetitions: z.int().min(1),
        /** Bytes per second. */
        bandwidth: amount,
        downtimeLimitMs: amount,
        /** Megabytes (10^6) per second that each device writes. */
        rate: amount,
      })
      .nullable(),
  }),
  reads: z.array(readRow).max(10_000),
  migrations: z.array(migrationRow).max(10_000),
  crossings: z.array(crossing).max(10_000),
  warnings: z.array(z.string()),
});

export type ReadRow = Readonly<z.output<typeof readRow>>;
export type MigrationRow = Readonly<z.output<typeof migrationRow>>;
export type CrossingRow = Readonly<z.output<typeof crossing>>;
export type CallCounts = Readonly<z.output<typeof calls>>;
export type BitmapMemory = Readonly<z.output<typeof memory>>;
/** What was measured of the designs. */
export type DesignsResult = Readonly<z.output<typeof designsResultSchema>>;

/** Results are some hundred kilobytes. */
const MAX_FILE_BYTES = 64 * 2 ** 20;

/**
 * Reads a result that was kept.
 * @throws UsageError `BAD_RESULT` for a file that can't be read, or holds no result of this version
 */
export function readDesignsResult(path: string): DesignsResult {
  const refuse = (why: string, cause?: unknown): never => {
    throw new UsageError(`${path} holds no result of \`bench designs\`: ${why}`, {
      code: "BAD_RESULT",
      remedy: "give a file that `dirtmap bench designs --output FILE` wrote",
      cause,
    });
  };
  let value: unknown;
  try {
    value = JSON.parse(readTextInput(path, MAX_FILE_BYTES));
  } catch (error) {
    if (error instanceof UsageError) throw error;
    return refuse(explain(error), error);
  }
  const parsed = designsResultSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  return refuse(`${issue.path.join(".") || "the whole"}: ${issue.message}`);
}

/** The result as text: a row a line, numbers to five digits that count, so that it can be kept beside a document. */
export function resultText(result: DesignsResult): string {
  const short = (_: string, value: unknown) =>
    typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(5)) : value;
  const lines = Object.entries(result).map(([key, value]) => {
    const isRows = Array.isArray(value) && value.length > 0 && typeof value[0] === "object";
    const text = isRows ? `[\n${value.map((row) => safeJson(row, short)).join(",\n")}\n]` : safeJson(value, short);
    return `${safeJson(key)}: ${text}`;
  });
  return `{\n${lines.join(",\n")}\n}\n`;
}
