import type { Command } from "commander";
import { addBenchDesigns } from "./bench-designs.js";

/** `dirtmap bench`: measurements. */
export function addBench(program: Command): void {
  const bench = program.command("bench").description("Measures designs, and keeps what it measured");
  addBenchDesigns(bench);
}
