import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "vitest";
import { grantsOf, withGranted } from "../../src/cli/input/granted.js";
import { openMachine } from "../../src/cli/sites/hosts.js";
import { createEmulatedMachine, type EmulatedMachine } from "../../src/emulated/machine.js";
import type { DmaHold } from "../../src/emulated/threads/hold.js";
import type { MachineDescription } from "../../src/host/description.js";
import { type ReceiveOptions, type ReceiveResult, receive } from "../../src/migration/destination.js";
import { readJournal } from "../../src/migration/journal.js";
import { listJournals } from "../../src/migration/journals.js";
import { acceptedSource, sourceTransport } from "../../src/migration/network.js";
import type { MigrationReport } from "../../src/migration/report.js";
import { type MigrateOptions, migrate } from "../../src/migration/source.js";
import { listen } from "../../src/migration/transport/listener.js";
import { DEFAULT_POLICY, type Policy } from "../../src/tracking/choice.js";
import { type FrameProxy, frameProxy, type Meddlers } from "./frame-proxy.js";
import { pause } from "./machines.js";

/*
 * Live migrations of real emulated machines in one process, over real connections on loopback. Machines are small and
 * their devices slow, so that a busy computer keeps up; the limits are generous for the same reason.
 */

/** Time-outs that a busy computer keeps, and that a test can wait for. */
const TIMEOUTS = { acceptMs: 20_000, deviceMs: 5000, readyMs: 10_000, runningMs: 1000, goMs: 10_000, peerMs: 10_000 };

interface SendOptions extends Partial<Omit<MigrateOptions, "policy" | "transport">> {
  readonly policy?: Partial<Policy>;
}

interface MigrationOptions extends SendOptions {
  /** What happens to frames on the way. */
  readonly meddlers?: Meddlers;
  readonly receiving?: Partial<ReceiveOptions>;
  /** Called with the destination's machine before the source is accepted. */
  readonly onDestination?: (machine: EmulatedMachine) => void;
}

/** How a migration went, at both ends. */
export interface Migrated {
  readonly report: MigrationReport;
  readonly received: ReceiveResult;
  /** The destination's machine, also where it was discarded: its memory can still be looked at. */
  readonly destination: EmulatedMachine | undefined;
  readonly proxy: FrameProxy;
}

/** A running machine, which can be migrated as often as it is still there. Disposing ends all that came of it. */
export class Rig implements AsyncDisposable {
  readonly description: MachineDescription;
  readonly source: EmulatedMachine;
  readonly journals = mkdtempSync(join(tmpdir(), "dirtmap-test-"));
  readonly #opened: AsyncDisposable[] = [];
  readonly #open: typeof openMachine;

  private constructor(description: MachineDescription, source: EmulatedMachine, open: typeof openMachine) {
    this.description = description;
    this.source = source;
    this.#open = open;
    this.#opened.push(source);
  }

  /** The same with the command line's way to machines: devices may run in other processes. */
  static async startServed(description: MachineDescription): Promise<Rig> {
    return new Rig(description, await openMachine(description), openMachine);
  }

  static async start(
    description: MachineDescription,
    options: { holds?: ReadonlyMap<string, DmaHold> } = {},
  ): Promise<Rig> {
    return new Rig(description, await createEmulatedMachine(description, options), createEmulatedMachine);
  }

  /** Migrates to a destination that is made for it. */
  async migrate({ meddlers, receiving, onDestination, ...options }: MigrationOptions = {}): Promise<Migrated> {
    await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
    const proxy = await frameProxy(listener.endpoint.port, meddlers);
    const over = new AbortController();
    let destination: EmulatedMachine | undefined;
    const receiveOne = async () => {
      const control = await listener.acceptControl(over.signal);
      return await receive({
        source: acceptedSource(listener, control),
        createMachine: async (received, named) => {
          const granted = withGranted(received, named, grantsOf(this.description));
          destination = await this.#open(granted, { paused: true, side: "destination" });
          this.#opened.push(destination);
          onDestination?.(destination);
          return destination;
        },
        audit: async () => (await destination?.audit()) ?? { stamps: null, written: {} },
        journalDirectory: this.journals,
        timeouts: TIMEOUTS,
        ...receiving,
      });
    };
    const receiving_ = receiveOne();
    receiving_.catch(() => {});
    try {
      const transport = sourceTransport({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: proxy.port } });
      const report = await this.send({ transport, ...options });
      return { report, received: await receiving_, destination, proxy };
    } finally {
      over.abort(new Error("the migration is over"));
      await receiving_.catch(() => {});
      proxy.close();
    }
  }

  /** Migrates to a destination that is there already. */
  async send({ policy, ...options }: SendOptions & Pick<MigrateOptions, "transport">): Promise<MigrationReport> {
    return await migrate({
      machine: this.source,
      description: this.description,
      policy: { ...DEFAULT_POLICY, ...policy },
      design: "split",
      downtimeLimitMs: 2000,
      channels: 1,
      runAfterMs: 300,
      journalDirectory: this.journals,
      timeouts: TIMEOUTS,
      decideMs: 0,
      ...options,
    });
  }

  /** What a migration's journal says of one side. */
  journal({ migration }: Pick<MigrationReport, "migration">, side: "source" | "destination"): string | undefined {
    return readJournal(this.journals, migration, side)?.state;
  }

  /** The migration that waits for a decision, once there is one. */
  async undecided(): Promise<string> {
    for (const until = Date.now() + 10_000; Date.now() < until; ) {
      const waiting = listJournals(this.journals).find(({ standing }) => standing === "waits");
      if (waiting !== undefined) return waiting.migration;
      await pause(20);
    }
    throw new Error("no migration waits for a decision");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const each of this.#opened.reverse()) await each[Symbol.asyncDispose]();
    rmSync(this.journals, { recursive: true, force: true });
  }
}

/** Completed, proven by both the memories and the stamps, and all that writes wrote on at the destination. */
export function expectMoved({ report, received }: Migrated): void {
  expect(report.error).toBeUndefined();
  expect(report).toMatchObject({ result: "completed", verified: true, memory: { pagesDifferent: 0 } });
  expect(received.outcome).toBe("running");
  expect(report.destination?.stamps?.problems).toEqual([]);
  expect(report.destination?.stamps?.checked).toBeGreaterThan(0);
  expect(report.destination?.requests?.problems ?? []).toEqual([]);
  for (const units of Object.values(report.destination?.written ?? {})) expect(units).toBeGreaterThan(0);
}

/** The machine runs: all that writes goes on, and no write of the past is missing. */
export async function expectRunning(machine: EmulatedMachine): Promise<void> {
  expect(machine.failure).toBeUndefined();
  const before = await machine.audit();
  for (const until = Date.now() + 5000; Date.now() < until; ) {
    await pause(30);
    const now = await machine.audit();
    expect(now.stamps.problems).toEqual([]);
    expect(now.requests?.problems ?? []).toEqual([]);
    if (Object.entries(now.written).every(([writer, units]) => units > before.written[writer])) return;
  }
  throw new Error("not all of the machine's devices and vCPUs write on");
}

/** The machine stands still: nothing in its memory changes. */
export async function expectStill(machine: EmulatedMachine): Promise<void> {
  const copies = machine.memory.arenas.map(({ u8, ramPages }) => Buffer.from(u8.slice(0, ramPages * 4096)));
  await pause(100);
  machine.memory.arenas.forEach(({ u8 }, i) => {
    expect(copies[i].compare(u8.subarray(0, copies[i].length))).toBe(0);
  });
}
