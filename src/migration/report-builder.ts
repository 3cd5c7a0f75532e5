import { DirtmapError, explain } from "../errors.js";
import { PhaseClock, round as rounded } from "./clock.js";
import { within } from "./deadline.js";
import { DeviceError } from "./device-error.js";
import { publish } from "./events.js";
import { PeerAborted } from "./peer.js";
import type {
  DestinationReport,
  DeviceReport,
  MemoryComparison,
  MigrationReport,
  MigrationResult,
  RoundReport,
} from "./report.js";

/** Gathers what a migration's report says while the migration goes on. */
export class ReportBuilder {
  readonly clock = new PhaseClock();
  readonly #head: Pick<MigrationReport, "migration" | "design" | "policy" | "predicted">;
  readonly #deviceMs: number;
  readonly #rounds: RoundReport[] = [];
  readonly #warnings: string[] = [];
  #outageSince: number | undefined;
  #downtimeMs: number | null = null;
  #memory: MemoryComparison | null = null;
  #destination: DestinationReport | null = null;

  /** @param deviceMs how long {@link tried} waits */
  constructor(head: Pick<MigrationReport, "migration" | "design" | "policy" | "predicted">, deviceMs: number) {
    this.#head = head;
    this.#deviceMs = deviceMs;
  }

  get warnings(): readonly string[] {
    return this.#warnings;
  }

  warn(text: string): void {
    this.#warnings.push(text);
  }

  /** Awaits what must not keep the rest from being done: its failure becomes a warning. */
  async tried(what: string, doing: PromiseLike<void>): Promise<void> {
    await within(this.#deviceMs, what, Promise.resolve(doing)).catch((error: unknown) => {
      this.warn(`${what}: ${explain(error)}`);
    });
  }

  /** A round is over: reported, and published. */
  round(round: RoundReport): void {
    const report = { ...round, ms: rounded(round.ms) };
    this.#rounds.push(report);
    publish({ type: "round", round: report });
  }

  /** The machine stands still since `at`. */
  paused(at: number): void {
    this.#outageSince = at;
  }

  /** The machine runs again since `at`, here or there. */
  resumed(at: number): void {
    if (this.#outageSince !== undefined) this.#downtimeMs = at - this.#outageSince;
  }

  compared(memory: MemoryComparison): void {
    this.#memory = memory;
  }

  audited(destination: DestinationReport): void {
    this.#destination = destination;
  }

  /** The migration is over. Warnings that come while things are closed are still in the report that this returns. */
  end(
    result: MigrationResult,
    { devices, stateBytes }: { devices: readonly DeviceReport[]; stateBytes: number },
    error?: unknown,
  ): MigrationReport {
    const { migration, design, policy, predicted } = this.#head;
    const { stamps, requests } = this.#destination ?? {};
    const isWhole = [stamps, requests].every((found) => found == null || found.problems.length === 0);
    this.clock.end(result, error === undefined ? undefined : explain(error));
    return {
      schemaVersion: 1,
      migration,
      result,
      verified: this.#memory === null ? null : this.#memory.pagesDifferent === 0 && isWhole,
      totalMs: rounded(this.clock.elapsedMs),
      downtimeMs: this.#downtimeMs === null ? null : rounded(this.#downtimeMs),
      bytes: this.#rounds.reduce((sum, { bytes }) => sum + bytes, stateBytes),
      phases: this.clock.phases(),
      rounds: this.#rounds,
      devices,
      design,
      policy,
      memory: this.#memory,
      destination: this.#destination,
      predicted,
      warnings: this.#warnings,
      ...(error === undefined ? {} : { error: reportedError(error) }),
    };
  }
}

function reportedError(error: unknown): NonNullable<MigrationReport["error"]> {
  const code = error instanceof DirtmapError ? error.code : "INTERNAL";
  const message = error instanceof Error ? error.message : String(error);
  const remedy = error instanceof DirtmapError ? error.remedy : undefined;
  const device =
    error instanceof DeviceError
      ? { id: error.device, side: "source" as const, reason: error.reason }
      : error instanceof PeerAborted && error.device !== undefined
        ? { ...error.device, side: "destination" as const }
        : undefined;
  return {
    code,
    message: device?.side === "destination" ? `at the destination, ${message}` : message,
    ...(remedy === undefined ? {} : { remedy }),
    ...(device === undefined ? {} : { device }),
  };
}
