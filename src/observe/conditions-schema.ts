import { z } from "zod";
import { machineReportSchema } from "../machine-report.js";

/* The conditions of a run, field by field: their type (conditions.ts), and how those of a stored run are checked. */

const text = z.string().max(4096);
const count = z.int().min(0);
const ms = z.number().min(0);
const perDevice = <Value extends z.ZodType>(value: Value) => z.record(z.string().max(256), value);

/** What a run's figures depend on besides its scenario. */
export const runConditionsSchema = z
  .object({
    software: text.describe("Dirtmap and its version"),
    hosts: z.array(text).max(8).describe("whose devices: emulated, linux, vfio-user; qemu for a guest of it"),
    memoryBytes: count,
    design: text,
    policy: z
      .object({
        order: text,
        measured: text.nullable().describe("the file of measurements that went before the order; null: none did"),
        trackers: perDevice(text),
        granules: perDevice(count),
        domain: text.nullable().describe("null, as of untracked: the VMM tracks, and has none"),
        untracked: text.nullable(),
        untrackedDevices: perDevice(text),
      })
      .describe("what the operator wanted of trackers"),
    transport: z.object({
      scheme: text,
      local: z.boolean().describe("the destination was another process on the same machine"),
    }),
    bandwidth: z.number().min(0).nullable().describe("bytes per second; null: no limit"),
    channels: count,
    downtimeLimitMs: ms,
    maxRounds: count.nullable().describe("null: no limit, or none of ours"),
    verify: text
      .nullable()
      .describe("when the two memories were compared: after the destination ran, or before; null: never"),
    runAfterMs: ms,
    machine: machineReportSchema.describe("the machine that the source ran on"),
  })
  .describe("what its figures depend on; null: kept by a Dirtmap that did not record them");
