import type { Undecided } from "../../migration/undecided.js";
import { formatMs } from "../../observe/format.js";
import { safeStrings } from "../../safe-text.js";

/*
 * What `dirtmap migrate` says while it waits for a decision, on standard error: for people, and with `--json` as one event
 * in a line of its own. Standard output stays the report's.
 */

/** What the operator has to know, and what they may type: safe lines. */
export function undecidedLines(undecided: Undecided): string[] {
  const { destination, why, resume, abort, until, outlives } = safeStrings(undecided);
  return [
    `NOT CONFIRMED: the source has given the machine up and said GO, and ${destination} has not said that it runs: ${why}.`,
    "The source stays paused and waits for a decision. Look at the destination, for example with `dirtmap list` there.",
    `  If it does not run there, and never will:  ${resume}`,
    `  If it runs there:                          ${abort}`,
    until === null
      ? `It waits until someone decides. If its process ends first, ${endOf(outlives)}.`
      : `If nobody has decided by ${until.toISOString()}, this process ends with exit code 3: ${endOf(outlives)}.`,
  ];
}

/** What becomes of the source's machine when its process ends. */
function endOf(outlives: boolean): string {
  return outlives ? "the guest stays paused, and can be decided about as before" : "the source's memory is gone";
}

/** The same as an event. */
export function undecidedEvent({ until, outlives: _, ...undecided }: Undecided) {
  return { event: "undecided", ...undecided, until: until?.toISOString() ?? null, pid: process.pid };
}

/** What an interrupt does once the machine is given up, and the destination may still answer. */
export function handingOver(
  runningMs: number,
  outlives: boolean,
  note: (text: string) => void,
): { first(): void; forced(): void } {
  return {
    first: () =>
      note(
        `the machine is being handed over, which can't be cancelled: the destination has ${formatMs(runningMs)} to say that it runs; a second interrupt forces: ${endOf(outlives)}`,
      ),
    forced: () => note(`forced: ${endOf(outlives)}; the machine runs at the destination, or nowhere`),
  };
}

/** What an interrupt does while a decision is waited for. */
export function waitingForDecision(
  { resume, abort, destination, outlives }: Undecided,
  note: (text: string) => void,
): { first(): void; forced(): void } {
  return {
    first: () =>
      note(
        `still waiting for a decision: \`${resume}\` or \`${abort}\`. A second interrupt forces: the process ends, and ${endOf(outlives)}`,
      ),
    forced: () => note(`forced: ${endOf(outlives)}; the machine runs at ${destination}, or nowhere`),
  };
}
