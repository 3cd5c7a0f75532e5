import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { receive } from "../../src/migration/destination.js";
import type { MigrationPhase } from "../../src/migration/events.js";
import { readJournal } from "../../src/migration/journal.js";
import { acceptedSource, sourceTransport } from "../../src/migration/network.js";
import { type MigrateOptions, migrate } from "../../src/migration/source.js";
import { listen } from "../../src/migration/transport/listener.js";
import { DEFAULT_POLICY } from "../../src/tracking/choice.js";
import { FakeMachine, Witness } from "./fake-machine.js";
import { description } from "./loopback.js";

/* The other side is a process of its own, and is killed or stopped. Pages travel over the real channels. */

const program = fileURLToPath(new URL("./side-process.js", import.meta.url));

/** A side in its own process, and what it has said. */
class Side {
  readonly process: ChildProcess;
  readonly #lines: Record<string, unknown>[] = [];
  #wake: () => void = () => {};

  constructor(...args: string[]) {
    this.process = spawn(process.execPath, [program, ...args], { stdio: ["pipe", "pipe", "inherit"] });
    const { stdout } = this.process;
    if (stdout === null) throw new Error("no output");
    createInterface({ input: stdout }).on("line", (line) => {
      this.#lines.push(JSON.parse(line));
      this.#wake();
    });
  }

  /** The first line that has this field, or has it with this value. */
  async said(field: string, value?: unknown): Promise<Record<string, unknown>> {
    for (const until = Date.now() + 20_000; Date.now() < until; ) {
      const line = this.#lines.find((said) => field in said && (value === undefined || said[field] === value));
      if (line !== undefined) return line;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 500);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    throw new Error(`it never said ${field}`);
  }
}

let journals = "";
let sides: Side[] = [];
beforeEach(() => {
  journals = mkdtempSync(join(tmpdir(), "dirtmap-test-"));
});
afterEach(() => {
  for (const side of sides) side.process.kill("SIGKILL");
  sides = [];
  rmSync(journals, { recursive: true, force: true });
});

const started = (...args: string[]): Side => {
  const side = new Side(...args);
  sides.push(side);
  return side;
};

const stateOf = (side: "source" | "destination") => {
  const file = readdirSync(journals).find((name) => name.endsWith(`.${side}.json`));
  return readJournal(journals, file?.split(".")[0] ?? "", side)?.state;
};

/** Migrates to a destination in another process; `at` is called before a phase, with that process. */
async function migrateTo(
  phase: MigrationPhase,
  at: (destination: Side) => void,
  options: Partial<MigrateOptions> = {},
) {
  const destination = started("destination", journals);
  const { port } = await destination.said("port");
  const witness = new Witness();
  const machine = await FakeMachine.create({ name: "source", witness, running: true });
  const report = await migrate({
    machine,
    description,
    transport: sourceTransport({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: Number(port) } }),
    policy: DEFAULT_POLICY,
    design: "split",
    journalDirectory: journals,
    decideMs: 0,
    hooks: {
      beforePhase: (now) => {
        if (now === phase) at(destination);
      },
    },
    ...options,
  });
  const outcome = { report, runs: machine.runsFreely, whole: machine.whole, paused: machine.vcpus.paused, destination };
  machine.kill();
  return outcome;
}

describe("a destination in its own process", () => {
  it("gets a machine over the real channels", async () => {
    const { report, destination } = await migrateTo("connecting", () => {});
    expect(report.error).toBeUndefined();
    expect(report).toMatchObject({ result: "completed", verified: true });
    expect(await destination.said("outcome")).toMatchObject({ outcome: "running", running: ["destination"] });
  });

  it.each(["pre-copy", "stop-copy"] as const)(
    "that is killed in phase %s leaves the source running, and nothing lost",
    async (phase) => {
      const { report, runs, whole } = await migrateTo(phase, ({ process }) => process.kill("SIGKILL"));
      expect(report.result).toBe("failed");
      expect(report.error?.message).toBeTruthy();
      expect(runs && whole).toBe(true);
      expect(stateOf("source")).toBe("running");
      expect(["loading", "ready"]).toContain(stateOf("destination"));
    },
  );

  it("that is stopped when GO comes leaves the outcome open, and settles it when it wakes up", async () => {
    const { report, destination } = await migrateTo("handover", ({ process }) => process.kill("SIGSTOP"), {
      timeouts: { runningMs: 300 },
      decideMs: 10_000,
      hooks: {
        beforePhase: (phase) => {
          const [{ process: stopped }] = sides;
          if (phase === "handover") stopped.kill("SIGSTOP");
          if (phase === "indeterminate") stopped.kill("SIGCONT");
        },
      },
    });
    expect(report).toMatchObject({ result: "completed", verified: true });
    expect(report.downtimeMs).toBeGreaterThan(300);
    expect(await destination.said("outcome")).toMatchObject({ outcome: "running" });
  });

  it("that is stopped for good when GO comes leaves the source paused and the outcome indeterminate", async () => {
    const { report, paused } = await migrateTo("handover", ({ process }) => process.kill("SIGSTOP"), {
      timeouts: { runningMs: 300 },
    });
    expect(report).toMatchObject({ result: "indeterminate", error: { code: "GO_NOT_CONFIRMED" } });
    expect(paused).toBe(true);
    expect(stateOf("source")).toBe("given-up");
    // Stopped before or after it recorded that it is ready: it never ran, says either.
    expect(["loading", "ready"]).toContain(stateOf("destination"));
  });

  it("that is stopped while pages travel is given up once it has been silent for long", async () => {
    const { report, runs, whole } = await migrateTo("pre-copy", ({ process }) => process.kill("SIGSTOP"));
    expect(report.result).toBe("failed");
    expect(report.error?.message).toMatch(/nothing for 10 s/);
    expect(runs && whole).toBe(true);
  });
});

describe("a source in its own process", () => {
  it.each(["pre-copy", "handover"] as const)(
    "that is killed in phase %s never makes the destination run",
    async (phase) => {
      await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
      const witness = new Witness();
      const source = started("source", journals, String(listener.endpoint.port), phase);
      const receiving = listener.acceptControl().then((control) =>
        receive({
          source: acceptedSource(listener, control),
          createMachine: () => FakeMachine.create({ name: "destination", witness }),
          journalDirectory: journals,
        }),
      );
      await source.said("phase", phase);
      source.process.kill("SIGKILL");
      expect((await receiving).outcome).toBe("discarded");
      expect(witness.running).toEqual([]);
      expect(stateOf("destination")).toBe("discarded");
    },
  );
});
