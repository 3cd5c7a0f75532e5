import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DirtmapError } from "../../src/errors.js";
import { machineSchema } from "../../src/host/description.js";
import { MiB } from "../../src/memory/address.js";
import { type ReceiveResult, receive } from "../../src/migration/destination.js";
import { readJournal } from "../../src/migration/journal.js";
import { acceptedSource, sourceTransport } from "../../src/migration/network.js";
import type { MigrationReport } from "../../src/migration/report.js";
import { migrate } from "../../src/migration/source.js";
import { listen } from "../../src/migration/transport/listener.js";
import { DEFAULT_POLICY } from "../../src/tracking/choice.js";
import { FakeMachine, Witness } from "../failures/fake-machine.js";

/*
 * A whole migration in one process, with real connections, threads for the channels, journals, and something between the
 * two sides that does harm. Whatever it is, what must hold at the end is the same, and is checked here.
 */

const description = machineSchema.parse({ memory: 4 * MiB, vcpus: { count: 1 }, devices: [] });

/** Time-outs that are soon over, but not on a busy computer that does nothing wrong. */
const TIMEOUTS = { acceptMs: 15_000, deviceMs: 10_000, readyMs: 15_000, runningMs: 3000, goMs: 15_000, peerMs: 15_000 };

/** Neither side may take longer, whatever happened: a connection's silence is noticed after 10 s. */
const HANGS_MS = 90_000;

/** What lies between the two. */
export interface Between {
  /** Where the source connects. */
  readonly port: number;
  close(): void;
}

/**
 * Migrates over what lies between, and returns how it ended for the source: a result and the error's code, or `refused`.
 * @throws Error that says which of the things that must always hold does not
 */
export async function migrateThrough(
  between: (destinationPort: number) => Promise<Between>,
  { channels, verify }: { channels: number; verify: "before" | "after" },
): Promise<string> {
  const journalDirectory = mkdtempSync(join(tmpdir(), "dirtmap-stress-"));
  const witness = new Witness();
  const over = new AbortController();
  await using source = await FakeMachine.create({ name: "source", witness, running: true, devices: ["dev0"] });
  let there: FakeMachine | undefined;
  await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
  const received = (async () => {
    const control = await listener.acceptControl(over.signal);
    return await receive({
      source: acceptedSource(listener, control),
      createMachine: async () => {
        there = await FakeMachine.create({ name: "destination", witness, devices: ["dev0"] });
        return there;
      },
      journalDirectory,
      timeouts: TIMEOUTS,
    });
  })();
  received.catch(() => {});
  const proxy = await between(listener.endpoint.port);
  try {
    const migrating = migrate({
      machine: source,
      description,
      transport: sourceTransport({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: proxy.port } }),
      policy: DEFAULT_POLICY,
      design: "split",
      channels,
      verify,
      journalDirectory,
      migration: "stress",
      decideMs: 0,
      timeouts: TIMEOUTS,
    });
    const report = await inTime("the source", migrating).catch((error: unknown) => {
      if (error instanceof DirtmapError && error.code !== "HANGS") return null;
      throw error;
    });
    // A source that never came through must not be waited for.
    proxy.close();
    over.abort(new Error("it is over"));
    const result = await inTime("the destination", received).catch((error: unknown) => {
      if (error === over.signal.reason) return null;
      throw error;
    });
    const recorded = readJournal(journalDirectory, "stress", "source")?.state;
    check({ report, result, recorded, source, there, witness });
    if (report === null) return "refused";
    return report.error === undefined ? report.result : `${report.result} (${report.error.code})`;
  } finally {
    proxy.close();
    over.abort(new Error("it is over"));
    await received.catch(() => {});
    there?.kill();
    rmSync(journalDirectory, { recursive: true, force: true });
  }
}

async function inTime<T>(who: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new DirtmapError(`${who} hangs`, { code: "HANGS" })), HANGS_MS);
  });
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

function check(end: {
  report: MigrationReport | null;
  result: ReceiveResult | null;
  recorded: string | undefined;
  source: FakeMachine;
  there: FakeMachine | undefined;
  witness: Witness;
}): void {
  const { report, result, recorded, source, there, witness } = end;
  const must = (holds: boolean | undefined, what: string) => {
    if (holds === true) return;
    const told = `source: ${report?.result} ${report?.error?.message}; destination: ${result?.outcome}; journal: ${recorded}`;
    throw new Error(`${what} (${told})`);
  };
  const running = witness.running;
  must(witness.violations.length === 0, witness.violations.join("; "));
  must(running.length <= 1, "two machines run");
  const runsThere = result?.outcome === "running";
  must(!runsThere || running.includes("destination"), "the destination says that it runs, and does not");
  must(!running.includes("destination") || runsThere, "the destination runs, and does not say so");
  switch (report?.result) {
    case undefined:
      must(source.runsFreely, "nothing was started, and the source was changed");
      must(!runsThere, "it runs at the destination, and the source knows nothing of it");
      return;
    case "failed":
    case "cancelled":
      must(running.includes("source") && source.runsFreely, "it failed, and the source does not run on");
      must(source.whole, "the source has lost writes");
      must(recorded === undefined || recorded === "running", "the source runs, and its journal says otherwise");
      return;
    case "completed":
      must(runsThere, "it completed, and does not run at the destination");
      must(there?.whole, "the destination has lost writes");
      must(report.verified === true || report.error !== undefined, "it is neither verified nor said why not");
      must(recorded === "gone", "it completed, and the source's journal does not say so");
      return;
    case "indeterminate":
      must(source.vcpus.paused && !running.includes("source"), "nobody knows where it runs, and the source runs");
      must(recorded === "given-up", "the source is undecided without having given up");
  }
}
