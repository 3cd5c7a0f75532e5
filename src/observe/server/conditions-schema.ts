import { z } from "zod";
import type { RunConditions } from "../conditions.js";

const text = z.string().max(4096);
const count = z.int().min(0);
const ms = z.number().min(0);
const perDevice = <Value extends z.ZodType>(value: Value) => z.record(z.string().max(256), value);

/** The conditions of a stored run, as the API answers them. */
export const conditionsSchema: z.ZodType<RunConditions> = z
  .object({
    software: text.describe("Dirtmap and its version"),
    hosts: z.array(text).max(8).describe("whose devices: emulated, linux, vfio-user"),
    memoryBytes: count,
    design: text,
    policy: z.object({
      order: text,
      measured: text.nullable().describe("the file of measurements that went before the order; null: none did"),
      trackers: perDevice(text),
      granules: perDevice(count),
      domain: text,
      untracked: text,
      untrackedDevices: perDevice(text),
    }),
    transport: z.object({
      scheme: text,
      local: z.boolean().describe("the destination was another process on the same machine"),
    }),
    bandwidth: z.number().min(0).nullable().describe("bytes per second; null: no limit"),
    channels: count,
    downtimeLimitMs: ms,
    maxRounds: count,
    verify: text.describe("when the two memories were compared: after the destination ran, or before"),
    runAfterMs: ms,
    machine: z.object({
      cpu: text,
      cores: count,
      memoryBytes: count,
      node: text,
      kernel: text,
      load: z.number().min(0),
      stealShare: z.number().min(0).max(1).nullable(),
    }),
  })
  .describe("what its figures depend on; null: kept by a Dirtmap that did not record them");
