import { DirtmapError, explain } from "../errors.js";
import { round as rounded } from "./clock.js";
import { type Decision, decisionCommand } from "./decision.js";
import { GIVEN_UP } from "./report.js";

/*
 * What is said when GO was not confirmed.
 */

/** A handover that was not confirmed, with the operator's options. */
export interface Undecided {
  readonly migration: string;
  readonly destination: string;
  /** The reason why it is unknown whether the destination runs the machine. */
  readonly why: string;
  /** The command that lets the machine run here, for the case that it does not and will never run at the destination. */
  readonly resume: string;
  /** The command that ends the machine here, for the case that it runs at the destination. */
  readonly abort: string;
  /** When the source stops waiting; null: never. */
  readonly until: Date | null;
  /** The machine does not end with the source's process: the operator may decide afterwards, too. */
  readonly outlives: boolean;
}

/** A migration, as its operator finds it. */
export interface MigrationPlace {
  readonly migration: string;
  readonly destination: string;
  /** Of its journal. */
  readonly directory: string;
  /** See {@link Undecided.outlives}. */
  readonly outlives: boolean;
}

/** What the operator is asked. @param decideMs how long; Infinity: until told */
export function undecided(
  { migration, destination, directory, outlives }: MigrationPlace,
  why: Error,
  decideMs: number,
): Undecided {
  const command = (decision: Decision) => decisionCommand(decision, migration, directory);
  return {
    migration,
    destination,
    why: explain(why),
    resume: command("resume"),
    abort: command("abort"),
    until: Number.isFinite(decideMs) ? new Date(Date.now() + decideMs) : null,
    outlives,
  };
}

/** What an operator has to do when GO was not confirmed. */
export function notConfirmed({ destination, why, resume, abort }: Undecided): DirtmapError {
  return new DirtmapError(
    `the source has given the machine up and said GO, and ${destination} has not confirmed that it runs (${why}); the source stays paused`,
    {
      code: "GO_NOT_CONFIRMED",
      attempted: "hand the machine over",
      remedy: `look at ${destination}: if the machine runs there, \`${abort}\` ends it here; if it does not and never will, \`${resume}\` lets it run here`,
    },
  );
}

/** Nobody has decided, and nobody is waited for any more. */
export function notDecided(
  { migration, destination, directory, outlives }: MigrationPlace,
  why: unknown,
  decideMs: number,
): DirtmapError {
  const [resume, abort] = (["resume", "abort"] as const).map((decision) =>
    decisionCommand(decision, migration, directory),
  );
  const end = outlives ? "the source stays paused" : "the source's memory ends with its process";
  return new DirtmapError(
    `the source has given the machine up and said GO, ${destination} has not confirmed that it runs (${explain(why)}), and nobody decided within ${rounded(decideMs)} ms; ${end}`,
    {
      code: "GO_NOT_CONFIRMED",
      attempted: "hand the machine over",
      remedy: outlives
        ? `look at ${destination}: if the machine runs there, \`${abort}\`; if it does not and never will, \`${resume}\``
        : `the machine runs at ${destination}, or nowhere once this process has ended: look there, then \`${abort}\``,
      cause: why,
    },
  );
}

/** The operator said `abort`, and RUNNING never came. */
export function givenUp(): DirtmapError {
  return new DirtmapError("the operator gave the source's machine up; the destination never confirmed that it runs", {
    code: GIVEN_UP,
  });
}
