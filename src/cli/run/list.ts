import type { ListInput } from "../commands/list.js";
import { tidyUp } from "../kept/tidy.js";
import type { Run } from "../run-command.js";
import { printJournals } from "./shared/print-journals.js";

export const run: Run<ListInput> = async ({ journal, all = false, json = false }) => {
  await tidyUp(journal);
  printJournals(journal, { show: all ? () => true : ({ standing }) => standing !== "over", json });
};
