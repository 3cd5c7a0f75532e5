import { z } from "zod";
import type { Immutable } from "./immutable.js";

/* The machine that figures were taken on: part of benchmarks, and of a run's conditions. */

const text = z.string().max(256);

/** A {@link MachineReport}, and how one from elsewhere is checked. */
export const machineReportSchema = z
  .object({
    cpu: text,
    cores: z.int().min(1),
    memoryBytes: z.int().min(0),
    node: text.describe("version of Node.js"),
    kernel: text.describe("its system: `Linux 7.2.13`"),
    load: z.number().min(0).describe("load average of the last minute, at the end"),
    stealShare: z
      .number()
      .min(0)
      .max(1)
      .nullable()
      .describe("share of processor time that the hypervisor gave to others meanwhile; null: not known"),
  })
  .describe("the machine that the figures were taken on");

/** The machine that figures were taken on, and how much of it others took meanwhile. */
export type MachineReport = Immutable<z.output<typeof machineReportSchema>>;
