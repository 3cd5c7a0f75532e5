import { TraceWriter } from "../../evidence/trace/file.js";
import { formatMs, formatSize } from "../../observe/format.js";
import type { RecordInput } from "../commands/record.js";
import { readScenario } from "../input/scenario.js";
import { printResult, warn } from "../output.js";
import type { Run } from "../run-command.js";
import { checkMemory } from "../sites/emulated/check-memory.js";
import { openMachine } from "../sites/hosts.js";
import { observeMachine } from "./shared/observe-machine.js";

export const run: Run<RecordInput> = async ({ json = false, output, ...input }, { signal, interrupts }) => {
  interrupts.tellFirst(() => warn("ending the recording; a second Ctrl-C forces"));
  const { scenario, description, policy, design } = readScenario(input);
  checkMemory(description, 1);
  await using machine = await openMachine(description);
  let writer: TraceWriter | undefined;
  let elapsedMs = 0;
  try {
    const seen = await observeMachine({
      machine,
      policy,
      design,
      intervalMs: input.interval,
      durationMs: input.duration,
      signal,
      host: machine.host.name,
      scenario,
      onHeader: async (header) => {
        writer = await TraceWriter.create(output, header);
      },
      onInterval: async (interval) => {
        elapsedMs += interval.elapsedMs;
        await writer?.add(interval);
      },
    });
    // Cancelled before the first interval was over: nothing was written.
    if (seen === null || writer === undefined) throw signal.reason;
    await writer.end();
    for (const owner of seen.header.unread) {
      warn(`the log of ${owner} can be read only once it is stopped: it is not in the trace`);
    }
    const { intervals, bytes } = writer;
    printResult(
      { output, intervals, elapsedMs, bytes },
      {
        json,
        text: (safe) => `${safe.output}: ${intervals} intervals, ${formatMs(elapsedMs)}, ${formatSize(bytes)}`,
      },
    );
  } finally {
    await writer?.[Symbol.asyncDispose]();
  }
};
