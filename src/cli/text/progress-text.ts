import type { BenchProgress } from "../../evidence/trackers/bench.js";
import { formatSize } from "../../observe/format.js";

/** A line of progress: what the bench is about to measure. */
export function progressText({ phase, step, of, subject }: BenchProgress): string {
  const count = `${step + 1} of ${of}`;
  switch (phase) {
    case "reads":
      return `reads: ${typeof subject === "number" ? formatSize(subject) : ""} of memory (${count}) …`;
    case "dma":
      return `DMA while tracked: ${subject} (${count}) …`;
    case "precision":
      return `what is named against what is written (${count}) …`;
    case "sharing":
      return "one HWPT for several devices …";
  }
}
