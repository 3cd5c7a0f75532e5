import { readFileSync } from "node:fs";
import { availableParallelism, cpus, loadavg, release, totalmem, type } from "node:os";
import type { MachineReport } from "../machine-report.js";

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
