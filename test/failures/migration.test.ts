import { afterEach, describe, expect, it } from "vitest";
import { UsageError } from "../../src/errors.js";
import { sendDecision } from "../../src/migration/decision.js";
import type { MigrationPhase } from "../../src/migration/events.js";
import { Journal, readJournal } from "../../src/migration/journal.js";
import { listJournals } from "../../src/migration/journals.js";
import type { MigrationReport } from "../../src/migration/report.js";
import type { Undecided } from "../../src/migration/undecided.js";
import { DEFAULT_POLICY } from "../../src/tracking/choice.js";
import { statesOf } from "../support/journal-states.js";
import { type Hearing, type Loopback, loopback } from "./loopback.js";

let open: Loopback[] = [];
const started: typeof loopback = async (args) => {
  const made = await loopback(args);
  open.push(made);
  return made;
};
afterEach(async () => {
  for (const made of open) {
    expect(made.witness.violations).toEqual([]);
    await made.close();
  }
  open = [];
});

/** The source goes on as if nothing had been, and what it says names the cause. */
function expectSourceRuns(
  pair: Loopback,
  report: MigrationReport,
  result: "failed" | "cancelled",
  code?: string,
): void {
  expect(report).toMatchObject({ result, error: code === undefined ? {} : { code } });
  expect(pair.source.runsFreely).toBe(true);
  expect(pair.source.whole).toBe(true);
  expect(pair.witness.running).toEqual(["source"]);
  expect(readJournal(pair.journals, report.migration, "source")?.state).toBe("running");
}

describe("a migration", () => {
  it("moves a machine that is being written to, and proves that nothing was lost", async () => {
    const pair = await started();
    const report = await pair.migrate({ runAfterMs: 20 });
    expect(report.error).toBeUndefined();
    expect(report).toMatchObject({ result: "completed", verified: true, design: "split", warnings: [] });
    expect(report.downtimeMs).toBeGreaterThan(0);
    expect(report.rounds.length).toBeGreaterThan(1);
    expect(report.rounds.at(-1)?.phase).toBe("stop-copy");
    expect(report.memory).toMatchObject({ pagesDifferent: 0 });
    expect(report.devices.map(({ tracker }) => tracker)).toEqual(["device", "device"]);
    expect((await pair.received).outcome).toBe("running");
    expect(pair.witness.running).toEqual(["destination"]);
    expect(pair.destination?.whole).toBe(true);
    expect(readJournal(pair.journals, report.migration, "source")?.state).toBe("gone");
    expect(readJournal(pair.journals, report.migration, "destination")?.state).toBe("running");
  });

  it("takes devices without P2P and PRE_COPY states as well, when they can't reach each other", async () => {
    const support = { stopCopy: true, p2p: false, preCopy: false };
    const pair = await started({ machine: { devices: ["dev0"], support } });
    const report = await pair.migrate();
    expect(report).toMatchObject({ result: "completed", verified: true });
    expect(pair.source.fakes[0].states).toEqual(["RUNNING", "STOP_COPY"]);
  });

  it("refuses two devices that could write into each other after one has stopped, before anything is started", async () => {
    const pair = await started({ machine: { support: { stopCopy: true, p2p: false, preCopy: false } } });
    await expect(pair.migrate()).rejects.toMatchObject({ code: "CANNOT_MIGRATE" });
    expect(pair.source.fakes[0].states).toEqual(["RUNNING"]);
  });

  it("leads all devices through the P2P-quiescent states, there and back", async () => {
    const pair = await started();
    await pair.migrate();
    const states = ["PRE_COPY", "PRE_COPY_P2P", "STOP_COPY"];
    expect(pair.source.fakes.map((device) => device.states.slice(1))).toEqual([states, states]);
    const there = ["RESUMING", "STOP", "RUNNING_P2P", "RUNNING"];
    expect(pair.destination?.fakes.map((device) => device.states.slice(1))).toEqual([there, there]);
  });

  it("suspends a device that nothing tracks, and reports its outage", async () => {
    const pair = await started({ machine: { untracked: ["dev1"] } });
    const report = await pair.migrate({ policy: { ...DEFAULT_POLICY, untracked: "suspend" } });
    expect(report).toMatchObject({ result: "completed", verified: true });
    expect(report.devices[0].suspendedMs).toBe(0);
    expect(report.devices[1].suspendedMs).toBeGreaterThan(report.downtimeMs ?? 0);
    expect(pair.source.fakes[1].states).toEqual(["RUNNING", "STOP", "STOP_COPY"]);
  });

  it("moves everything twice where a device has no tracker, and no oftener", async () => {
    const pair = await started({ machine: { untracked: ["dev1"] } });
    const report = await pair.migrate({ downtimeLimitMs: 5000 });
    expect(report).toMatchObject({ result: "completed", verified: true });
    expect(report.rounds).toHaveLength(2);
  });

  it("names the device in the way, and what would work, when it can't converge", async () => {
    const pair = await started({ machine: { untracked: ["dev1"] } });
    const report = await pair.migrate({ downtimeLimitMs: 9 });
    expectSourceRuns(pair, report, "failed", "DOES_NOT_CONVERGE");
    expect(report.error?.message).toContain("dev1");
    expect(report.error?.remedy).toMatch(/--untracked suspend.*--downtime-limit/);
  });

  it("refuses before anything is started what the policy forbids", async () => {
    const pair = await started({ machine: { untracked: ["dev1"] } });
    await expect(pair.migrate({ policy: { ...DEFAULT_POLICY, untracked: "refuse" } })).rejects.toBeInstanceOf(
      UsageError,
    );
    expect(pair.source.runsFreely).toBe(true);
  });
});

describe("verification", () => {
  const dropABit = (pair: Loopback) => ({
    hooks: {
      // What dev0 wrote, as a tracker would lose it.
      afterRead: (_: number, dirty: { arenas: readonly Uint32Array[] }) => {
        for (const page of pair.source.fakes[0].ring) dirty.arenas[0][page >>> 5] &= ~(1 << (page & 31));
      },
    },
  });

  it("finds a page whose dirty bit was dropped, and names who tracked it", async () => {
    const pair = await started();
    const report = await pair.migrate(dropABit(pair));
    expect(report).toMatchObject({ result: "completed", verified: false });
    expect(report.memory?.pagesDifferent).toBeGreaterThan(0);
    expect(report.memory?.firstAddresses[0]).toMatch(/^0x[0-9a-f]+000$/);
    expect(report.memory?.coveredBy).toContain("dev0");
  });

  it("fails the migration with the source running when it comes before GO", async () => {
    const pair = await started();
    const report = await pair.migrate({ ...dropABit(pair), verify: "before" });
    expectSourceRuns(pair, report, "failed", "MEMORY_DIFFERS");
    expect(report.verified).toBe(false);
    expect((await pair.received).outcome).toBe("discarded");
  });

  it("can come before GO and pass", async () => {
    const pair = await started();
    expect(await pair.migrate({ verify: "before" })).toMatchObject({ result: "completed", verified: true });
  });

  it("does not believe a destination whose devices' stamps are torn", async () => {
    const problems = [{ owner: "dev0", kind: "torn", count: 1 }];
    const pair = await started({ receive: { audit: async () => ({ stamps: { checked: 9, problems }, written: {} }) } });
    expect(await pair.migrate()).toMatchObject({
      result: "completed",
      verified: false,
      destination: { stamps: { problems } },
    });
  });
});

describe("cancelling", () => {
  const phases: MigrationPhase[] = ["suspending", "tracking", "pre-copy", "pausing", "stop-copy", "handover"];
  it.each(phases)("in phase %s leaves the source running, and says so", async (cancelIn) => {
    const pair = await started({ machine: { untracked: ["dev1"] } });
    const cancel = new AbortController();
    const report = await pair.migrate({
      signal: cancel.signal,
      policy: { ...DEFAULT_POLICY, untracked: "suspend" },
      hooks: {
        beforePhase: (phase) => {
          if (phase === cancelIn) cancel.abort();
        },
      },
    });
    expectSourceRuns(pair, report, "cancelled", "CANCELLED");
    expect(report.error?.message).toContain("goes on running");
    expect((await pair.received).outcome).toBe("discarded");
  });
});

describe("a device that goes to ERROR", () => {
  it.each(["PRE_COPY", "PRE_COPY_P2P", "STOP_COPY"] as const)(
    "at the source in %s ends the migration, and is reset",
    async (state) => {
      const pair = await started();
      pair.source.fakes[0].failAt = state;
      const report = await pair.migrate();
      expectSourceRuns(pair, report, "failed", "DEVICE_FAILED");
      expect(report.error?.message).toContain(`dev0 did not go to ${state}`);
      expect(report.error?.device).toEqual({ id: "dev0", side: "source", reason: "made to fail by a test" });
      expect(pair.source.fakes[0].resets).toBe(1);
      expect(report.warnings.join()).toContain("dev0 was reset");
      expect((await pair.received).outcome).toBe("discarded");
    },
  );

  it.each(["RESUMING", "STOP"] as const)(
    "at the destination in %s ends the migration, and the source runs on",
    async (state) => {
      const pair = await started({ onDestination: (machine) => (machine.fakes[1].failAt = state) });
      const report = await pair.migrate();
      expectSourceRuns(pair, report, "failed");
      expect(report.error?.message).toContain("dev1");
      expect(report.error?.device).toEqual({
        id: "dev1",
        side: "destination",
        reason: "made to fail by a test",
      });
      const before = state === "RESUMING" ? ["STOP"] : ["STOP", "RESUMING"];
      expect(pair.destination?.fakes[1].states).toEqual([...before, "ERROR"]);
      expect(await pair.received).toMatchObject({ outcome: "discarded" });
    },
  );

  it.each(["RUNNING_P2P", "RUNNING"] as const)(
    "at the destination in %s, after GO, leaves the outcome to the operator",
    async (state) => {
      const pair = await started({ onDestination: (machine) => (machine.fakes[1].failAt = state) });
      const told: Undecided[] = [];
      const report = await pair.migrate({ decideMs: 0, onUndecided: (undecided) => told.push(undecided) });
      expect(report).toMatchObject({ result: "indeterminate", error: { code: "GO_NOT_CONFIRMED" } });
      expect(report.error?.message).toContain("dev1");
      expect(told[0].why).toContain("dev1");
      // The machine's memory is the caller's still; the command is for when it is not.
      expect(report.error?.remedy).toContain(`dirtmap abort ${report.migration}`);
      expect(pair.witness.running).toEqual([]);
      expect(pair.source.vcpus.paused).toBe(true);
      expect((await pair.received).outcome).toBe("run-failed");
      // Nothing that was started there goes on.
      expect(pair.destination?.vcpus.paused).toBe(true);
      expect(pair.destination?.fakes.map(({ now }) => now)).toEqual(["STOP", "ERROR"]);
    },
  );

  it.each(["PRE_COPY_P2P", "STOP_COPY"] as const)(
    "or hangs at the source in %s is not waited for without bound",
    async (state) => {
      const pair = await started();
      pair.source.fakes[1].hangAt = state;
      const report = await pair.migrate();
      expectSourceRuns(pair, report, "failed", "DEVICE_FAILED");
    },
  );
});

it("a device whose state is larger than any that is moved is refused while the machine runs", async () => {
  const pair = await started();
  pair.source.fakes[1].stateBytes = 2 ** 30;
  const report = await pair.migrate();
  expectSourceRuns(pair, report, "failed", "BAD_DEVICE_STATE");
  expect(report.error?.message).toContain("dev1");
  expect(report.downtimeMs).toBeNull();
});

describe("a destination whose device", () => {
  it("is another by what a guest can see of it is refused before anything is started", async () => {
    const pair = await started({
      onDestination: ({ fakes }) => {
        fakes[1].facts = { capacity: { bytes: 2 ** 30 } };
      },
    });
    pair.source.fakes[1].facts = { capacity: { bytes: 2 ** 31 } };
    await expect(pair.migrate()).rejects.toMatchObject({
      name: "UsageError",
      code: "OTHER_HARDWARE",
      message: expect.stringContaining("dev1: the source's capacity is 2 GiB, the destination's 1 GiB"),
    });
    expect(pair.source.fakes.map(({ states }) => states)).toEqual([["RUNNING"], ["RUNNING"]]);
    expect(pair.source.runsFreely).toBe(true);
    expect(await pair.received).toMatchObject({ outcome: "refused", error: { code: "OTHER_HARDWARE" } });
  });
});

describe("a tracker that fails", () => {
  it.each([0, 1, 2])("in read %i counts as all dirty, and nothing is lost", async (read) => {
    const pair = await started();
    const report = await pair.migrate({
      downtimeLimitMs: 60_000,
      hooks: {
        beforePhase: (phase) => {
          if (read === 0 && phase === "pre-copy") pair.source.fakes[0].vfio.script.fail("reportDmaLogging", "EIO");
          const failures = Array.from({ length: read }, () => "EIO" as const);
          if (phase === "pausing") pair.source.fakes[0].vfio.script.fail("reportDmaLogging", ...failures);
        },
      },
    });
    expect(report).toMatchObject({ result: "completed", verified: true });
    expect(report.warnings.join()).toContain("dev0");
  });
});

describe("a broken page channel", () => {
  it.each([0, 1])("in round %i ends the migration with the source running", async (round) => {
    const pair = await started();
    pair.pages.failRound = (at) => (at === round ? new Error("the channel broke") : null);
    const report = await pair.migrate();
    expectSourceRuns(pair, report, "failed");
    expect(report.error?.message).toContain("the channel broke");
    expect((await pair.received).outcome).toBe("discarded");
  });

  it("noticed by the destination alone ends it, too", async () => {
    const pair = await started();
    pair.pages.onPage = () => {
      pair.pages.breakReceiver(new Error("a frame was not whole"));
      return true;
    };
    const report = await pair.migrate();
    expectSourceRuns(pair, report, "failed");
    expect(report.error?.message).toContain("a frame was not whole");
  });
});

describe("a destination that refuses", () => {
  it("says why, before anything is started at the source", async () => {
    const pair = await started({
      receive: {
        createMachine: async () => {
          throw new UsageError("it has no memory for that", { code: "MEMORY_DOES_NOT_FIT", remedy: "buy some" });
        },
      },
    });
    await expect(pair.migrate()).rejects.toMatchObject({ code: "MEMORY_DOES_NOT_FIT", remedy: "buy some" });
    expect(pair.source.runsFreely).toBe(true);
    expect((await pair.received).outcome).toBe("refused");
  });

  it("tells its own operator what is its own affair, and the source that there is something", async () => {
    const pair = await started({
      receive: {
        createMachine: async () => {
          throw new Error("ENOENT: no such file or directory, open '/root/secret'");
        },
      },
    });
    const told = await pair.migrate().catch((error: unknown) => error);
    expect(told).toMatchObject({ code: "INTERNAL", remedy: "see what the destination itself says" });
    expect((told as Error).message).not.toContain("/root");
    expect(await pair.received).toMatchObject({ error: { message: expect.stringContaining("/root/secret") } });
  });
});

describe("the servers of devices", () => {
  it("are told before either side's journal says that the machine may run at the destination, and afterwards", async () => {
    const told: string[] = [];
    const pair = await started({
      onDestination: (machine) => {
        machine.fakes[0].onHandover = (notice, migration) => {
          told.push(`destination: ${notice}, ${readJournal(pair.journals, migration, "destination")?.state}`);
        };
      },
    });
    pair.source.fakes[1].onHandover = (notice, migration) => {
      told.push(`source: ${notice}, ${readJournal(pair.journals, migration, "source")?.state}`);
    };
    expect(await pair.migrate()).toMatchObject({ result: "completed", verified: true });
    expect(told).toEqual(["source: committing, running", "destination: committing, ready", "source: gone, gone"]);
  });

  it("of which one can't be told keep the source from giving up: it runs on", async () => {
    const pair = await started();
    pair.source.fakes[1].onHandover = () => {
      throw new Error("its server is gone");
    };
    const report = await pair.migrate();
    expectSourceRuns(pair, report, "failed", "DEVICE_FAILED");
    expect(report.error?.message).toMatch(/the server of dev1 was not told about the handover.*its server is gone/);
    expect((await pair.received).outcome).toBe("discarded");
  });

  it("of which one can't be told at the destination keep it from running: the source takes the machine back", async () => {
    const pair = await started({
      onDestination: (machine) => {
        machine.fakes[0].onHandover = () => {
          throw new Error("its server is gone");
        };
      },
    });
    const report = await pair.migrate();
    expectSourceRuns(pair, report, "failed");
    expect((await pair.received).outcome).toBe("discarded");
    expect(pair.destination?.fakes.map(({ now }) => now)).not.toContain("RUNNING");
  });

  it("that can't be told that it is over are a warning: the machine runs at the destination", async () => {
    const pair = await started();
    pair.source.fakes[0].onHandover = (notice) => {
      if (notice === "gone") throw new Error("its server is gone");
    };
    const report = await pair.migrate();
    expect(report).toMatchObject({ result: "completed", verified: true });
    expect(report.warnings.join()).toContain("the server of dev0 was not told");
  });
});

describe("GO that is not confirmed", () => {
  /** RUNNING never arrives. */
  const noAnswer = { toSource: (frame: Buffer) => (frame.includes('"RUNNING"') ? ("stuck" as const) : frame) };

  it("leaves the source paused, and tells the operator what to do", async () => {
    const pair = await started({ damage: noAnswer });
    const report = await pair.migrate({ decideMs: 0 });
    expect(report).toMatchObject({ result: "indeterminate", verified: null, downtimeMs: null });
    expect(report.error).toMatchObject({ code: "GO_NOT_CONFIRMED" });
    expect(pair.witness.running).toEqual(["destination"]);
    expect(pair.source.vcpus.paused).toBe(true);
    expect(readJournal(pair.journals, report.migration, "source")?.state).toBe("given-up");
    // The process lives, and has the machine: nobody decides in its place.
    for (const decision of ["resume", "abort"] as const) {
      await expect(sendDecision(pair.journals, report.migration, decision)).rejects.toMatchObject({
        code: "SOURCE_NOT_LISTENING",
      });
    }
    expect(readJournal(pair.journals, report.migration, "source")?.state).toBe("given-up");
  });

  it("is waited for without limit unless one is asked for, also where the caller cancels", async () => {
    const pair = await started({ damage: noAnswer });
    const cancel = new AbortController();
    const told: Undecided[] = [];
    let ended = false;
    const migrating = pair.migrate({
      signal: cancel.signal,
      onUndecided: (undecided) => {
        told.push(undecided);
        cancel.abort();
        throw new Error("a caller's mistake");
      },
    });
    void migrating.finally(() => {
      ended = true;
    });
    while (told.length === 0) await turn();
    for (let turns = 0; turns < 100; turns++) await turn();
    expect(ended).toBe(false);
    const [{ migration, resume, abort, until }] = told;
    expect(until).toBe(null);
    expect(resume).toBe(`dirtmap resume ${migration} --journal ${pair.journals}`);
    expect(abort).toBe(`dirtmap abort ${migration} --journal ${pair.journals}`);
    await pair.decide("abort");
    expect((await migrating).error?.code).toBe("GIVEN_UP");
  });

  it("is waited for as long as was asked, which may be longer than a timer can be", async () => {
    const pair = await started({ damage: noAnswer });
    const days = 30 * 86_400_000;
    let told: Undecided | undefined;
    const migrating = pair.migrate({
      decideMs: days,
      onUndecided: (undecided) => {
        told = undecided;
      },
    });
    while (told === undefined) await turn();
    expect((told.until?.getTime() ?? 0) - Date.now()).toBeGreaterThan(days - 3_600_000);
    await pair.decide("abort");
    expect((await migrating).error?.code).toBe("GIVEN_UP");
  });

  const noGo = { toDestination: (frame: Buffer) => (frame.includes('"GO"') ? ("stuck" as const) : frame) };

  it("and an operator who says abort just after GO is obeyed, whatever the destination says later", async () => {
    const pair = await started({ damage: noGo });
    let answer: Promise<string> | undefined;
    const migrating = pair.migrate({
      // The destination gives up, and says so, long before the source would.
      timeouts: { ...QUICK, runningMs: 20_000 },
      onGivenUp: () => {
        answer = pair.decide("abort");
      },
    });
    const report = await migrating;
    expect(await answer).toContain("given up");
    expect(report).toMatchObject({ result: "indeterminate", error: { code: "GIVEN_UP" } });
    expect((await pair.received).outcome).toBe("discarded");
    expect(pair.source.vcpus.paused).toBe(true);
    expect(statesOf(pair.journals, report.migration, "source")).toEqual(["running", "given-up", "gone"]);
  });

  it("and an abort that another process has recorded binds: ABORT doesn't bring the machine back", async () => {
    const pair = await started({ damage: noGo });
    const report = await pair.migrate({
      timeouts: { ...QUICK, runningMs: 20_000 },
      onGivenUp: () => {
        const [{ record }] = listJournals(pair.journals).filter(({ standing }) => standing === "waits");
        if (record === null) throw new Error("no record");
        Journal.reopenSource(pair.journals, record).record("gone");
      },
    });
    expect(report).toMatchObject({ result: "indeterminate", error: { code: "GIVEN_UP" } });
    expect(pair.source.vcpus.paused).toBe(true);
    expect(statesOf(pair.journals, report.migration, "source")).toEqual(["running", "given-up", "gone"]);
  });

  it("and an operator who says resume while the destination starts the machine is refused once it runs", async () => {
    let answer: Promise<unknown> | undefined;
    const pair = await started({
      onDestination: (machine) => {
        const resume = machine.vcpus.resume.bind(machine.vcpus);
        machine.vcpus.resume = async () => {
          answer = pair.decide("resume").catch((error: unknown) => error);
          await new Promise((resolve) => setTimeout(resolve, 100));
          await resume();
        };
      },
    });
    const report = await pair.migrate({ timeouts: { ...QUICK, runningMs: 20_000 } });
    expect(report).toMatchObject({ result: "completed", verified: true });
    expect(await answer).toMatchObject({
      code: "DECISION_REFUSED",
      message: expect.stringContaining("given up for good"),
    });
    expect(pair.witness.running).toEqual(["destination"]);
  });

  it("and an operator who says resume just after GO has the machine when the destination has discarded its own", async () => {
    const pair = await started({ damage: noGo });
    let answer: Promise<string> | undefined;
    const report = await pair.migrate({
      timeouts: { ...QUICK, runningMs: 20_000 },
      onGivenUp: () => {
        answer = pair.decide("resume");
      },
    });
    expectSourceRuns(pair, report, "failed");
    expect(await answer).toContain("runs again");
    expect((await pair.received).outcome).toBe("discarded");
  });

  const whenUndecided = (decide: () => void) => (phase: MigrationPhase) => {
    if (phase === "indeterminate") decide();
  };

  it("and an operator who says resume gets the source's machine back, whole", async () => {
    const pair = await started({
      damage: { toDestination: (frame) => (frame.includes('"GO"') ? ("stuck" as const) : frame) },
    });
    let answer: Promise<string> | undefined;
    const report = await pair.migrate({
      // The destination's own time is over only after the operator has looked.
      timeouts: { ...QUICK, runningMs: 100 },
      decideMs: 5000,
      hooks: {
        beforePhase: whenUndecided(() => {
          pair.destination?.kill();
          answer = pair.decide("resume");
        }),
      },
    });
    expectSourceRuns(pair, report, "failed", "GO_NOT_CONFIRMED");
    expect(await answer).toContain("runs again");
  });

  it("and an operator who says abort ends the source's machine", async () => {
    const pair = await started({ damage: noAnswer });
    let answer: Promise<string> | undefined;
    const report = await pair.migrate({
      decideMs: 5000,
      hooks: { beforePhase: whenUndecided(() => (answer = pair.decide("abort"))) },
    });
    expect(report).toMatchObject({ result: "indeterminate", error: { code: "GIVEN_UP" } });
    expect(await answer).toContain("given up");
    expect(pair.witness.running).toEqual(["destination"]);
    expect(readJournal(pair.journals, report.migration, "source")?.state).toBe("gone");
  });

  it("is confirmed by a RUNNING that comes late, while the operator is waited for", async () => {
    const pair = await started({
      onDestination: (machine) => {
        const resume = machine.vcpus.resume.bind(machine.vcpus);
        machine.vcpus.resume = async () => {
          await new Promise((resolve) => setTimeout(resolve, 300));
          await resume();
        };
      },
    });
    const report = await pair.migrate({ decideMs: 5000, timeouts: { ...QUICK, runningMs: 50 } });
    expect(report).toMatchObject({ result: "completed", verified: true });
    expect(pair.witness.running).toEqual(["destination"]);
  });

  it("is no doubt where the destination says that it has discarded the machine", async () => {
    // GO is held up until the destination's time is over.
    const pair = await started({
      damage: { toDestination: (frame) => (frame.includes('"GO"') ? ("stuck" as const) : frame) },
    });
    const report = await pair.migrate({ timeouts: { ...QUICK, runningMs: 4000 } });
    expectSourceRuns(pair, report, "failed");
    expect((await pair.received).outcome).toBe("discarded");
  });
});

/** Long enough for a busy machine, short enough to wait for. */
const QUICK = { acceptMs: 2000, deviceMs: 500, readyMs: 1500, runningMs: 500, goMs: 1500, peerMs: 2000 };

/** One turn of the event loop. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

describe("a message of the handover at the wrong time", () => {
  /** Hears these right behind the first message of a type. */
  const behind =
    (type: string, ...more: ReturnType<Hearing>): Hearing =>
    (message) => [message, ...(message.type === type ? more : [])];
  const READY = { type: "READY", rootDigest: "0".repeat(64) } as const;

  it("READY before PREPARE is refused by the source", async () => {
    // Without pre-copied state, about which the source would ask before that.
    const support = { stopCopy: true, p2p: true, preCopy: false };
    const pair = await started({ sourceHears: behind("ACCEPT", READY), machine: { support } });
    const report = await pair.migrate();
    expectSourceRuns(pair, report, "failed", "UNEXPECTED_MESSAGE");
    expect(report.error?.message).toContain("READY arrived before PREPARE was sent");
    expect((await pair.received).outcome).toBe("discarded");
  });

  it("RUNNING before GO is refused by the source, before it gives up", async () => {
    const pair = await started({ sourceHears: behind("READY", { type: "RUNNING", resumeMs: 1 }) });
    const report = await pair.migrate();
    expectSourceRuns(pair, report, "failed", "UNEXPECTED_MESSAGE");
    expect(report.error?.message).toContain("RUNNING arrived before GO was sent");
    expect(statesOf(pair.journals, report.migration, "source")).toEqual(["running", "running"]);
    expect((await pair.received).outcome).toBe("discarded");
  });

  it("GO before READY is refused by the destination", async () => {
    const pair = await started({ destinationHears: behind("PREPARE", { type: "GO" }) });
    const report = await pair.migrate();
    expectSourceRuns(pair, report, "failed", "UNEXPECTED_MESSAGE");
    expect(report.error?.message).toContain("GO arrived before READY was sent");
    expect(await pair.received).toMatchObject({ outcome: "discarded" });
  });

  it.each([-1, 1])("PREPARE for another round, %d off, is refused by the destination", async (off) => {
    const pair = await started({
      destinationHears: (message) => [
        message.type === "PREPARE" ? { ...message, round: (message.round ?? 0) + off } : message,
      ],
    });
    const report = await pair.migrate();
    expectSourceRuns(pair, report, "failed", "UNEXPECTED_MESSAGE");
    expect(report.error?.message).toMatch(/round \d+ is to be the last, and \d+ was/);
    expect(await pair.received).toMatchObject({ outcome: "discarded" });
  });

  it("PREPARE that names no round is refused by a destination that took rounds", async () => {
    const pair = await started({
      destinationHears: (message) => [message.type === "PREPARE" ? { type: "PREPARE" } : message],
    });
    const report = await pair.migrate();
    expectSourceRuns(pair, report, "failed", "UNEXPECTED_MESSAGE");
    expect(report.error?.message).toContain("PREPARE names no round");
    expect(await pair.received).toMatchObject({ outcome: "discarded" });
  });

  it("PREPARE at the source is refused", async () => {
    const pair = await started({ sourceHears: behind("ACCEPT", { type: "PREPARE", round: 0 }) });
    expectSourceRuns(pair, await pair.migrate(), "failed", "UNEXPECTED_MESSAGE");
  });

  it("GO that came too late, by the destination's clock, is refused, although it is there before the time-out fires", async () => {
    const goMs = 200;
    const pair = await started({
      receive: { timeouts: { ...QUICK, goMs } },
      destinationHears: (message) => {
        // The process stands still, as under SIGSTOP: its timer is due, and GO is what it sees first.
        if (message.type === "GO") Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, goMs + 50);
        return [message];
      },
    });
    const report = await pair.migrate({ timeouts: { ...QUICK, runningMs: 20_000 } });
    expectSourceRuns(pair, report, "failed");
    expect(report.error?.message).toContain(`GO came later than ${goMs} ms after READY`);
    expect(await pair.received).toMatchObject({ outcome: "discarded" });
  });

  it("RUNNING after the operator's decision changes nothing", async () => {
    let answer: Promise<string> | undefined;
    const pair = await started({
      onDestination: (machine) => {
        const resume = machine.vcpus.resume.bind(machine.vcpus);
        machine.vcpus.resume = async () => {
          answer = pair.decide("abort");
          await answer;
          await resume();
        };
      },
    });
    const report = await pair.migrate({ timeouts: { ...QUICK, runningMs: 20_000 } });
    expect(await answer).toContain("given up");
    expect(report).toMatchObject({ result: "indeterminate", error: { code: "GIVEN_UP" } });
    expect((await pair.received).outcome).toBe("running");
    expect(pair.witness.running).toEqual(["destination"]);
    expect(statesOf(pair.journals, report.migration, "source")).toEqual(["running", "given-up", "gone"]);
  });
});
