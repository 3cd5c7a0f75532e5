import { readFileSync } from "node:fs";
import { availableParallelism, cpus, loadavg, release, totalmem, type } from "node:os";
import { z } from "zod";

const text = z.string().max(256);

/** A {@link MachineReport} that is read again. */
export const machineReportSchema = z.object({
  cpu: text,
  cores: z.int().min(1),
  memoryBytes: z.int().min(0),
  node: text,
  kernel: text,
  load: z.number().min(0),
  stealShare: z.number().min(0).max(1).nullable(),
});

/** The machine that figures were taken on, and how much of it others took meanwhile. */
export interface MachineReport {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryBytes: number;
  readonly node: string;
  /** Of this machine: `Linux 7.2.13`. */
  readonly kernel: string;
  /** Load average of the last minute, at the end. */
  readonly load: number;
  /** Share of processor time that the hypervisor gave to others while the benches ran; null where /proc can't tell. */
  readonly stealShare: number | null;
}

/** Begins to watch; the answer describes the machine from then to the call. */
export function watchMachine(): () => MachineReport {
  const before = readTimes();
  return () => {
    const after = readTimes();
    const all = before === null || after === null ? 0 : after.all - before.all;
    return {
      cpu: cpus().at(0)?.model ?? "unknown",
      cores: availableParallelism(),
      memoryBytes: totalmem(),
      node: process.version,
      kernel: `${type()} ${release()}`,
      load: loadavg()[0],
      stealShare: before === null || after === null || all === 0 ? null : (after.steal - before.steal) / all,
    };
  };
}

/** The first line of /proc/stat (proc_stat(5)): user, nice, system, idle, iowait, irq, softirq, steal, … in ticks. */
function readTimes(): { all: number; steal: number } | null {
  try {
    const ticks = readFileSync("/proc/stat", "utf8").split("\n", 1)[0].trim().split(/\s+/).slice(1, 9).map(Number);
    return { all: ticks.reduce((sum, value) => sum + value, 0), steal: ticks[7] };
  } catch {
    return null;
  }
}
