import { UsageError } from "../errors.js";
import { GIVEN_UP, type MigrationReport, WATCH_ENDED } from "../migration/report.js";

/** How the command ends: the one table, which `--help` prints too. */
export const EXIT_CODES = {
  done: { code: 0, means: "done" },
  failed: {
    code: 1,
    means: "failed, given up by 'dirtmap abort', or completed unverified; the report says where the machine runs",
  },
  usage: { code: 2, means: "wrong usage; nothing was started" },
  indeterminate: {
    code: 3,
    means: "indeterminate: not confirmed, and not decided within --decide; the source's memory is gone",
  },
  notConverging: { code: 4, means: "the migration that `dirtmap predict` was asked about does not converge" },
  cancelled: {
    code: 130,
    means: "cancelled (Ctrl-C): the source goes on running; forced (a second one): its memory is gone",
  },
} as const;

type Meanings = Partial<Readonly<Record<keyof typeof EXIT_CODES, string>>>;

const MEANINGS: Meanings = Object.fromEntries(Object.entries(EXIT_CODES).map(([name, { means }]) => [name, means]));

/** The table for `--help`. @param meanings those of a command that has meanings of its own, and no others */
export function exitCodesHelp(meanings: Meanings = MEANINGS): string {
  const lines = (Object.keys(EXIT_CODES) as (keyof Meanings)[]).flatMap((name) => {
    const means = meanings[name];
    return means === undefined ? [] : [`  ${String(EXIT_CODES[name].code).padStart(3)}  ${means}`];
  });
  return ["Exit codes:", ...lines].join("\n");
}

/**
 * The exit code of a migration. One that completed without the proof that no write was lost has failed, and so has one
 * whose machine the operator gave up.
 */
export function exitCodeOf({
  result,
  verified,
  error,
}: Pick<MigrationReport, "result" | "verified" | "error">): number {
  if (result === "completed") return verified === true ? EXIT_CODES.done.code : EXIT_CODES.failed.code;
  if (error?.code === GIVEN_UP) return EXIT_CODES.failed.code;
  return EXIT_CODES[result].code;
}

/** The exit code of a migration that was only watched: how it ended, which nobody could verify. */
export function exitCodeOfWatched({ result, error }: Pick<MigrationReport, "result" | "error">): number {
  if (error?.code === WATCH_ENDED) return EXIT_CODES.cancelled.code;
  if (result === "completed") return EXIT_CODES.done.code;
  return result === "indeterminate" ? EXIT_CODES.indeterminate.code : EXIT_CODES.failed.code;
}

/** The exit code of a thrown error. */
export function exitCodeOfError(error: unknown): number {
  if (error instanceof UsageError) return EXIT_CODES.usage.code;
  if (error instanceof Error && error.name === "AbortError") return EXIT_CODES.cancelled.code;
  return EXIT_CODES.failed.code;
}
