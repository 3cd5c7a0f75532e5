/** What every error of Dirtmap tells besides its message. */
export interface ErrorDetails {
  /** A stable, upper-case name that programs may test: `EINVAL`, `DOES_NOT_CONVERGE`, `BAD_SCENARIO` … */
  readonly code: string;
  /** What was being attempted, as a phrase: "map 2 MiB at IOVA 0x1000". */
  readonly attempted?: string | undefined;
  /** What would work instead, or how to get there, as a phrase. */
  readonly remedy?: string | undefined;
  /** Further problems of the same input, a line each, so that all can be mended at once. */
  readonly further?: readonly string[] | undefined;
  readonly cause?: unknown;
}

/** The root of all errors that Dirtmap throws on purpose; anything else that escapes is a bug. */
export class DirtmapError extends Error {
  readonly code: string;
  readonly attempted: string | undefined;
  readonly remedy: string | undefined;
  readonly further: readonly string[] | undefined;

  constructor(message: string, details: ErrorDetails) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = new.target.name;
    this.code = details.code;
    this.attempted = details.attempted;
    this.remedy = details.remedy;
    this.further = details.further;
  }
}

/**
 * The caller asked for something that can't be: an unknown device, a granule that isn't a power of two, a scenario
 * with a misspelt field. Nothing was started. The command line exits with 2.
 */
export class UsageError extends DirtmapError {}

/** The message and remedy of any thrown value, on one line. */
export function explain(error: unknown): string {
  if (error instanceof DirtmapError) {
    return error.remedy === undefined ? error.message : `${error.message}; ${error.remedy}`;
  }
  return error instanceof Error ? error.message : String(error);
}
