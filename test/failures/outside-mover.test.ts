import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DirtmapError } from "../../src/errors.js";
import type { MachineShape } from "../../src/host/shape.js";
import { within } from "../../src/migration/deadline.js";
import { type Decision, sendDecision } from "../../src/migration/decision.js";
import { type ReceiveResult, receive, receiveBy } from "../../src/migration/destination.js";
import type {
  MemoryArrival,
  MemoryDestination,
  MemoryMove,
  MemoryMover,
  MovedMachine,
  MovePlan,
  PrecopiedStates,
} from "../../src/migration/memory-mover.js";
import { type ControlLink, UNTIL_LOST } from "../../src/migration/peer.js";
import type { MigrationReport } from "../../src/migration/report.js";
import { type HandoverOptions, migrate, migrateBy } from "../../src/migration/source.js";
import { type ControlMessageType, PROTOCOL_VERSION } from "../../src/migration/stream/messages.js";
import { connectControl } from "../../src/migration/transport/connect.js";
import { listen } from "../../src/migration/transport/listener.js";
import { DEFAULT_POLICY } from "../../src/tracking/choice.js";
import { statesOf } from "../support/journal-states.js";
import { FakeMachine, Witness } from "./fake-machine.js";
import { description } from "./loopback.js";

/*
 * A machine whose memory somebody else moves: a VMM with a stream of its own, as QEMU has, and in QEMU's order. Dirtmap carries
 * the devices' states, hands over, keeps the journals and reports, with the parts that its own migrations are made of.
 */

const LIMITS = { acceptMs: 10_000, deviceMs: 5000, readyMs: 10_000, runningMs: 10_000, goMs: 10_000, peerMs: 10_000 };
const PCI = new TextEncoder().encode("BARs, COMMAND, MSI-X");

let journals = "";
let witness = new Witness();
let machines: FakeMachine[] = [];
beforeEach(() => {
  journals = mkdtempSync(join(tmpdir(), "dirtmap-outside-"));
  witness = new Witness();
  machines = [];
});
afterEach(() => {
  expect(witness.violations).toEqual([]);
  for (const machine of machines) machine.kill();
  rmSync(journals, { recursive: true, force: true });
});

async function machine(name: "source" | "destination"): Promise<FakeMachine> {
  const made = await FakeMachine.create({ name, witness, running: name === "source" });
  machines.push(made);
  return made;
}

async function shapeOf({ devices }: MovedMachine): Promise<MachineShape> {
  const shapes = devices.map(async ({ id, vfio }) => ({ id, shape: await vfio.shape() }));
  // Memory and vCPUs are the VMM's to compare.
  return { memory: [], vcpus: 0, devices: await Promise.all(shapes) };
}

/** The VMMs at both ends, and the stream between them. It moves all memory at once, once nothing writes it any more. */
class Stream {
  readonly source: FakeMachine;
  readonly destination: FakeMachine;
  /** What the two VMMs were told, and what they said, in order. */
  readonly log: string[] = [];
  /** What goes wrong. */
  readonly fails: { on: "migrate" | "migrate-continue" | "incoming" | "PCI state" | null } = { on: null };
  #status: "running" | "active" | "pre-switchover" | "completed" = "running";
  #arrived = () => {};
  #broken: (error: Error) => void = () => {};
  readonly arrived = new Promise<void>((resolve) => {
    this.#arrived = resolve;
  });
  readonly broken = new Promise<never>((_, reject) => {
    this.#broken = reject;
  });

  constructor(source: FakeMachine, destination: FakeMachine) {
    this.source = source;
    this.destination = destination;
    this.broken.catch(() => {});
  }

  /** Between two machines of which the source's runs. */
  static async between(): Promise<Stream> {
    return new Stream(await machine("source"), await machine("destination"));
  }

  /** One of the VMMs is told something. */
  tell(what: string): void {
    this.log.push(what);
    if (this.fails.on === what) throw new DirtmapError(`the VMM could not: ${what}`, { code: "VMM_FAILED" });
  }

  async migrate(): Promise<void> {
    this.tell("migrate");
    this.#status = "active";
  }

  async preSwitchover(): Promise<void> {
    await this.source.vcpus.pause();
    this.#status = "pre-switchover";
    this.log.push("pre-switchover");
  }

  async continue(): Promise<void> {
    this.tell("migrate-continue");
    if (this.fails.on === "incoming") {
      this.#broken(new DirtmapError("the VMM's stream broke", { code: "VMM_FAILED" }));
      await new Promise(() => {});
    }
    for (const device of this.source.fakes) expect(device.now).toBe("STOP_COPY");
    this.destination.memory.arenas[0].u8.set(this.source.memory.arenas[0].u8);
    this.destination.vcpus.counter = this.source.vcpus.counter;
    this.#status = "completed";
    this.log.push("completed");
    this.#arrived();
  }

  /** The source's guest goes on. Its devices do already. */
  async back(): Promise<void> {
    for (const device of this.source.fakes) expect(device.now).toBe("RUNNING");
    if (this.#status === "running") return;
    this.log.push(this.#status === "completed" ? "cont" : "migrate_cancel");
    await this.source.vcpus.resume();
  }
}

class OutsideMover implements MemoryMover<"qemu"> {
  readonly tracking = { design: "vmm", policy: "vmm" } as const;
  readonly #stream: Stream;
  readonly #beforeSwitchover: () => void;

  constructor(stream: Stream, beforeSwitchover: () => void) {
    this.#stream = stream;
    this.#beforeSwitchover = beforeSwitchover;
  }

  async plan(): Promise<MovePlan<"qemu">> {
    return {
      offer: { kind: "qemu" },
      shape: await shapeOf(this.#stream.source),
      open: async (_, { signal }) => new OutsideMove(this.#stream, this.#beforeSwitchover, signal),
    };
  }
}

class OutsideMove implements MemoryMove {
  readonly comparison = null;
  readonly #stream: Stream;
  readonly #beforeSwitchover: () => void;
  readonly #signal: AbortSignal;

  constructor(stream: Stream, beforeSwitchover: () => void, signal: AbortSignal) {
    this.#stream = stream;
    this.#beforeSwitchover = beforeSwitchover;
    this.#signal = signal;
  }

  async start(): Promise<ReadonlySet<string>> {
    await this.#stream.migrate();
    return new Set();
  }

  async converge(states: PrecopiedStates): Promise<void> {
    while (!(await states.send()));
    expect(await states.expectedBytes()).toBeGreaterThan(0);
    this.#beforeSwitchover();
    await this.#stream.preSwitchover();
  }

  async stop(stopDevices: () => Promise<void>): Promise<void> {
    await stopDevices();
  }

  async finish(sendStates: () => Promise<void>): Promise<{ state: Uint8Array }> {
    await sendStates();
    this.#stream.log.push("states sent");
    await within(UNTIL_LOST, "the end of the VMM's stream", this.#stream.continue(), this.#signal);
    return { state: PCI };
  }

  async takeBack(devicesBack: Promise<unknown>): Promise<void> {
    await devicesBack;
    await this.#stream.back();
  }

  async gone(): Promise<void> {
    this.#stream.log.push("quit");
  }

  conclude(): MigrationReport["devices"] {
    return this.#stream.source.devices.map(({ id, model }) => ({
      id,
      model,
      tracker: "vmm",
      granule: null,
      reason: "QEMU tracks what the device writes by messages",
      alternatives: [],
      pagesReported: null,
      pagesExclusive: null,
      readMs: 0,
      suspendedMs: 0,
    }));
  }
}

class OutsideDestination implements MemoryDestination<FakeMachine, "qemu">, MemoryArrival {
  readonly kind = "qemu";
  readonly takeRound = null;
  readonly comparison = null;
  readonly failed: Promise<never>;
  readonly #stream: Stream;

  constructor(stream: Stream) {
    this.#stream = stream;
    this.failed = stream.broken;
  }

  async build(): Promise<FakeMachine> {
    return this.#stream.destination;
  }

  async shape(built: FakeMachine): Promise<MachineShape> {
    return await shapeOf(built);
  }

  async open(): Promise<{ answer: { kind: "qemu" }; arrival: MemoryArrival }> {
    return { answer: { kind: "qemu" }, arrival: this };
  }

  async arrived(round: number | undefined): Promise<void> {
    expect(round).toBeUndefined();
    await this.#stream.arrived;
  }

  async load(state: Uint8Array, devicesLoaded: Promise<void>): Promise<undefined> {
    await devicesLoaded;
    expect(state).toEqual(PCI);
    for (const device of this.#stream.destination.fakes) expect(device.now).toBe("STOP");
    this.#stream.tell("PCI state");
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

/** A message that never arrives at the source. */
function deaf(link: ControlLink, to: ControlMessageType | undefined): ControlLink {
  return {
    send: (message) => link.send(message),
    close: () => link.close(),
    receive: async () => {
      let message = await link.receive();
      while (message.type === to) message = await link.receive();
      return message;
    },
  };
}

interface Moved {
  readonly stream: Stream;
  readonly report: MigrationReport;
  readonly received: ReceiveResult<FakeMachine>;
}

/** Moves a machine from one VMM to the other. */
async function move(
  options: HandoverOptions & {
    prepare?: (stream: Stream) => void;
    beforeSwitchover?: () => void;
    lost?: ControlMessageType;
  } = {},
): Promise<Moved> {
  const stream = await Stream.between();
  options.prepare?.(stream);
  await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
  const receiving = listener.acceptControl().then((control) =>
    receiveBy(
      () => new OutsideDestination(stream),
      { from: "test", control },
      {
        journalDirectory: journals,
        timeouts: LIMITS,
      },
    ),
  );
  const report = await migrateBy(
    new OutsideMover(stream, options.beforeSwitchover ?? (() => {})),
    stream.source,
    {
      destination: "there",
      connect: async (signal) => deaf(await connectControl({ endpoint: listener.endpoint, signal }), options.lost),
    },
    { journalDirectory: journals, timeouts: LIMITS, runAfterMs: 0, decideMs: 0, ...options },
  );
  return { stream, report, received: await receiving };
}

/** The source goes on as if nothing had been, and the destination never ran. */
function expectSourceRuns({ stream, report, received }: Moved, code: string): void {
  expect(report).toMatchObject({ error: { code }, warnings: [] });
  expect(stream.source.runsFreely).toBe(true);
  expect(stream.source.whole).toBe(true);
  expect(witness.running).toEqual(["source"]);
  expect(stream.log).not.toContain("quit");
  expect(received.outcome).toBe("discarded");
  expect(statesOf(journals, report.migration, "source").at(-1)).toBe("running");
  expect(statesOf(journals, report.migration, "destination").at(-1)).toBe("discarded");
}

describe("a machine whose memory a VMM moves", () => {
  it("is migrated with its devices' states, a handover, journals and a report", async () => {
    const phases: string[] = [];
    const moved = await move({ hooks: { beforePhase: (phase) => void phases.push(phase) } });
    const { stream, report, received } = moved;
    expect(report.error).toBeUndefined();
    expect(report).toMatchObject({ result: "completed", design: "vmm", rounds: [], memory: null, verified: null });
    expect(report.devices.map(({ id, tracker }) => [id, tracker])).toEqual([
      ["dev0", "vmm"],
      ["dev1", "vmm"],
    ]);
    expect(report.downtimeMs).toBeGreaterThan(0);
    expect(report.bytes).toBeGreaterThan(600);
    expect(report.warnings).toEqual([]);
    expect(phases).toEqual([
      ...["connecting", "pre-copy", "pausing", "stop-copy", "handover"],
      ...["running-at-destination", "auditing"],
    ]);
    expect(stream.log).toEqual([
      ...["migrate", "pre-switchover", "states sent", "migrate-continue", "completed"],
      ...["PCI state", "quit"],
    ]);
    expect(received.outcome).toBe("running");
    expect(witness.running).toEqual(["destination"]);
    expect(stream.destination.whole).toBe(true);
    const [device] = stream.destination.fakes;
    expect(device.states.slice(1)).toEqual(["RESUMING", "STOP", "RUNNING_P2P", "RUNNING"]);
    expect(device.counter).toBeGreaterThanOrEqual(stream.source.fakes[0].counter);
    expect(statesOf(journals, report.migration, "source")).toEqual(["running", "given-up", "gone"]);
    expect(statesOf(journals, report.migration, "destination")).toEqual(["loading", "ready", "running"]);
  });

  it.each([
    ["migrate", "migrate"],
    ["migrate-continue", "migrate_cancel"],
    ["incoming", "migrate_cancel"],
    ["PCI state", "cont"],
  ] as const)("stays at the source if '%s' fails before GO; the VMM hears '%s' last", async (step, last) => {
    const moved = await move({
      prepare: (stream) => {
        stream.fails.on = step;
      },
    });
    expectSourceRuns(moved, "VMM_FAILED");
    expect(moved.report.result).toBe("failed");
    expect(moved.stream.log.slice(-1)).toEqual([last]);
  });

  it("stays at the source if a device refuses its state, with the device's reason", async () => {
    const moved = await move({
      prepare: ({ destination }) => {
        destination.fakes[1].failAt = "STOP";
      },
    });
    expectSourceRuns(moved, "BAD_DEVICE_STATE");
    expect(moved.report.error).toMatchObject({
      device: { id: "dev1", side: "destination", reason: "made to fail by a test" },
    });
    expect(moved.stream.destination.fakes[1].states).toEqual(["STOP", "RESUMING", "ERROR"]);
    // The VMM had moved everything by then.
    expect(moved.stream.log.slice(-2)).toEqual(["completed", "cont"]);
  });

  it("stays at the source if it is cancelled, up to the pause", async () => {
    const cancelling = new AbortController();
    const moved = await move({
      signal: cancelling.signal,
      beforeSwitchover: () => cancelling.abort(),
    });
    expectSourceRuns(moved, "CANCELLED");
    expect(moved.report.result).toBe("cancelled");
    expect(moved.stream.log.slice(-1)).toEqual(["migrate_cancel"]);
  });

  it("runs nowhere at the source if the confirmation is lost: indeterminate", async () => {
    const { stream, report, received } = await move({ lost: "RUNNING", timeouts: { ...LIMITS, runningMs: 200 } });
    expect(report).toMatchObject({ result: "indeterminate", error: { code: "GO_NOT_CONFIRMED" } });
    expect(received.outcome).toBe("running");
    expect(witness.running).toEqual(["destination"]);
    expect(stream.source.vcpus.paused).toBe(true);
    // Its VMM is still there, with all of the machine, for an operator who says `resume`.
    expect(stream.log.slice(-1)).toEqual(["PCI state"]);
    expect(statesOf(journals, report.migration, "source")).toEqual(["running", "given-up"]);
  });

  it.each([
    ["resume", "failed", "cont"],
    ["abort", "indeterminate", "quit"],
  ] as const)("obeys the operator who says %s while nothing is confirmed", async (decision: Decision, result, last) => {
    let answer: Promise<string> | undefined;
    let stream: Stream | undefined;
    const moved = await move({
      lost: "RUNNING",
      timeouts: { ...LIMITS, runningMs: 200 },
      decideMs: 10_000,
      prepare: (made) => {
        stream = made;
      },
      onUndecided: ({ migration }) => {
        // The operator has looked, and has ended it there.
        if (decision === "resume") stream?.destination.kill();
        answer = sendDecision(journals, migration, decision);
      },
    });
    expect(moved.report.result).toBe(result);
    await answer;
    expect(moved.stream.log.slice(-1)).toEqual([last]);
    expect(witness.running).toEqual([decision === "resume" ? "source" : "destination"]);
  });
});

describe("two sides that have the memory moved by others", () => {
  it("refuse, if only the source's VMM moves it", async () => {
    const stream = await Stream.between();
    await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
    const receiving = listener.acceptControl().then((control) =>
      receive({
        source: {
          from: "test",
          control,
          openReceiver: () => Promise.reject(new Error("nothing is opened")),
        },
        createMachine: () => Promise.reject(new Error("nothing is built")),
        journalDirectory: journals,
      }),
    );
    const transport = {
      destination: "there",
      connect: (signal: AbortSignal) => connectControl({ endpoint: listener.endpoint, signal }),
    };
    const migrating = migrateBy(new OutsideMover(stream, () => {}), stream.source, transport, {
      journalDirectory: journals,
    });
    const message = "at the source QEMU moves the memory, and at the destination Dirtmap";
    await expect(migrating).rejects.toMatchObject({
      code: "INCOMPATIBLE",
      message: `there refuses the migration: ${message}`,
      remedy: "have QEMU move it on both sides, or Dirtmap",
    });
    expect(await receiving).toMatchObject({ outcome: "refused", error: { message } });
    expect(stream.log).toEqual([]);
    expect(stream.source.runsFreely).toBe(true);
  });

  it("give up, if the source sends rounds all the same", async () => {
    const stream = await Stream.between();
    await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
    const receiving = listener
      .acceptControl()
      .then((control) =>
        receiveBy(() => new OutsideDestination(stream), { from: "test", control }, { journalDirectory: journals }),
      );
    await using played = await connectControl({ endpoint: listener.endpoint });
    await played.send({
      type: "HELLO",
      protocol: PROTOCOL_VERSION,
      software: "a test",
      migration: "played",
      mover: { kind: "qemu" },
      shape: await shapeOf(stream.source),
      runAfterMs: 0,
    });
    expect(await played.receive()).toMatchObject({ type: "ACCEPT", mover: { kind: "qemu" } });
    await played.send({ type: "ROUND_BEGIN", round: 0, phase: "pre-copy", pages: 1 });
    expect(await played.receive()).toMatchObject({ type: "ABORT", code: "UNEXPECTED_MESSAGE" });
    expect(await receiving).toMatchObject({ outcome: "discarded" });
  });

  it("refuse, if only the destination's VMM would", async () => {
    const stream = await Stream.between();
    await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
    const receiving = listener
      .acceptControl()
      .then((control) =>
        receiveBy(() => new OutsideDestination(stream), { from: "test", control }, { journalDirectory: journals }),
      );
    const migrating = migrate({
      machine: stream.source,
      description,
      transport: {
        destination: "there",
        connect: (signal) => connectControl({ endpoint: listener.endpoint, signal }),
        openSender: () => Promise.reject(new Error("nothing is opened")),
      },
      policy: DEFAULT_POLICY,
      design: "split",
      journalDirectory: journals,
    });
    await expect(migrating).rejects.toMatchObject({
      code: "INCOMPATIBLE",
      message: "there refuses the migration: at the source Dirtmap moves the memory, and at the destination QEMU",
    });
    expect(await receiving).toMatchObject({ outcome: "refused" });
    expect(stream.source.runsFreely).toBe(true);
  });
});
