/** The fields of every Dirtmap error besides its message. */
export interface ErrorDetails {
  /** A stable, upper-case name that programs may test: `EINVAL`, `DOES_NOT_CONVERGE`, `BAD_SCENARIO` … */
  readonly code: string;
  /** The attempted operation, as a phrase: "map 2 MiB at IOVA 0x1000". */
  readonly attempted?: string | undefined;
  /** An action that would work instead, or make this one work, as a phrase. */
  readonly remedy?: string | undefined;
  /** Further problems of the same input, one per line, so that all can be fixed at once. */
  readonly further?: readonly string[] | undefined;
  readonly cause?: unknown;
}

/** The root of all errors that Dirtmap throws on purpose. Any other error that escapes is a bug. */
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
 * The caller asked for something impossible: an unknown device, a granule that isn't a power of two, a scenario with a
 * misspelt field. Nothing was started. The command line exits with 2.
 */
export class UsageError extends DirtmapError {}

/** Returns the message of any thrown value, with the remedy of a DirtmapError, on one line. */
export function explain(error: unknown): string {
  if (error instanceof DirtmapError) {
    return error.remedy === undefined ? error.message : `${error.message}; ${error.remedy}`;
  }
  return error instanceof Error ? error.message : String(error);
}
