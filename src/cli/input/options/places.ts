import type { Command } from "commander";
import { reportPath } from "../../../evidence/report/report-path.js";
import { argument } from "./values.js";

/*
 * Where things are kept: the store, journals, reports.
 */

/** Where runs and benchmarks are kept; `store` is false with `--no-store`. */
export interface StoreOption {
  readonly store?: string | false;
}

/**
 * Adds `--store PATH`.
 * @param optional also `--no-store`, for commands that do something else in the first place
 */
export function addStoreOption(command: Command, { optional = false } = {}): Command {
  const where = "$XDG_DATA_HOME/dirtmap/evidence.db, or below ~/.local/share";
  command.option("--store <path>", `use this file as the store of runs and benchmarks (default: ${where})`);
  return optional ? command.option("--no-store", "keep nothing") : command;
}

/** Where it is recorded which side may run a machine. */
export interface JournalOption {
  readonly journal?: string;
}

/** Adds `--journal`. */
export function addJournalOption(command: Command): Command {
  const where = "$XDG_STATE_HOME/dirtmap, or ~/.local/state/dirtmap";
  return command.option(
    "--journal <folder>",
    `use this folder for the records of which side may run a machine (default: ${where})`,
  );
}

/** Where a report with plots is written. */
export interface ReportOption {
  readonly report?: string;
}

/** Adds `--report`. */
export function addReportOption(command: Command): Command {
  return command.option("--report <file>", "write a report with plots: FILE.md or FILE.html", argument(reportPath));
}
