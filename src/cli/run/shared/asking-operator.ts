import { DEFAULT_TIMEOUTS } from "../../../migration/deadline.js";
import type { HandoverOptions } from "../../../migration/source.js";
import { noteEvent } from "../../output.js";
import type { Interrupts } from "../../run-command.js";
import { handingOver, undecidedEvent, undecidedLines, waitingForDecision } from "../../text/undecided-text.js";

/**
 * What a migration tells its operator about the handover, and what an interrupt means while it lasts.
 * @param to.outlives the machine does not end with this process
 * @param to.clear makes room for a line on standard error
 */
export function askingOperator(
  interrupts: Interrupts,
  {
    json,
    note,
    outlives = false,
    clear = () => {},
  }: { json: boolean; note: (text: string) => void; outlives?: boolean; clear?: () => void },
): Pick<HandoverOptions, "onGivenUp" | "onUndecided" | "onSettled"> {
  let held: Disposable | undefined;
  return {
    onGivenUp: () => {
      held = interrupts.hold(handingOver(DEFAULT_TIMEOUTS.runningMs, outlives, note));
    },
    onUndecided: (undecided) => {
      held = interrupts.hold(waitingForDecision(undecided, note));
      if (json) {
        clear();
        noteEvent(undecidedEvent(undecided));
      } else for (const line of undecidedLines(undecided)) note(line);
    },
    onSettled: () => held?.[Symbol.dispose](),
  };
}
