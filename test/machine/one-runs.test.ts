import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { createEmulatedMachine, type EmulatedMachine } from "../../src/emulated/machine.js";
import { sendDecision } from "../../src/migration/decision.js";
import { receive } from "../../src/migration/destination.js";
import { readJournal } from "../../src/migration/journal.js";
import { acceptedSource, sourceTransport } from "../../src/migration/network.js";
import { listen } from "../../src/migration/transport/listener.js";
import { Child } from "../support/child.js";
import { says } from "../support/frame-proxy.js";
import { machineOf, NIC, pause, VF } from "../support/machines.js";
import { expectMoved, expectRunning, expectStill, Rig } from "../support/migration.js";
import { writings } from "../support/stamps.js";

/*
 * Never two machines run. Each unit that a device or vCPU writes says which machine instance wrote it, and when, by a
 * clock that all processes of a computer share: so the stamps tell whether two instances ever wrote at the same time.
 */

const PROGRAM = fileURLToPath(new URL("../support/machine-process.js", import.meta.url));
const description = machineOf([VF, NIC]);
const policy = { trackers: { vf0: "device" } } as const;

/** When the last unit in a machine's memory was written, by whomever. */
function lastWrite(machine: EmulatedMachine): bigint {
  let last = 0n;
  for (const { lastNs } of writings(machine.memory).values()) if (lastNs > last) last = lastNs;
  return last;
}

/** A source here, and a destination in its own process; the transport that leads there. */
async function apart() {
  const rig = await Rig.start(description);
  const destination = new Child(PROGRAM, "destination", rig.journals);
  const { port } = await destination.said("port");
  const endpoint = { scheme: "tcp", host: "127.0.0.1", port: Number(port) } as const;
  const end = async () => {
    await destination[Symbol.asyncDispose]();
    await rig[Symbol.asyncDispose]();
  };
  return { rig, destination, transport: sourceTransport({ endpoint }), [Symbol.asyncDispose]: end };
}

describe("in one process", () => {
  it("the destination writes its first unit after the source has written its last one", async () => {
    await using rig = await Rig.start(description);
    const moved = await rig.migrate({ policy });
    expectMoved(moved);
    const { destination } = moved;
    if (destination === undefined) throw new Error("there is no destination");
    const last = lastWrite(rig.source);
    const inherited = new Set(writings(rig.source.memory).keys());
    const own = [...writings(destination.memory)].filter(([incarnation]) => !inherited.has(incarnation));
    expect(own).toHaveLength(1);
    expect(own[0][1].firstNs).toBeGreaterThan(last);
    await expectStill(rig.source);
  });

  it("a GO that gets lost leaves the source paused; told to resume, it alone has ever run", async () => {
    await using rig = await Rig.start(description);
    const deciding = rig.undecided().then(async (migration) => {
      // Nobody runs while the operator thinks.
      await expectStill(rig.source);
      return await sendDecision(rig.journals, migration, "resume");
    });
    const { report, destination } = await rig.migrate({
      policy,
      decideMs: 10_000,
      meddlers: { toDestination: (frame) => (says(frame, "GO") ? "cut" : frame) },
    });
    expect(await deciding).toBeTruthy();
    expect(report.result).toBe("failed");
    if (destination === undefined) throw new Error("there is no destination");
    const instances = [...writings(rig.source.memory).keys()];
    expect(instances).toHaveLength(1);
    for (const writer of writings(destination.memory).keys()) expect(instances).toContain(writer);
    await expectRunning(rig.source);
  });

  it("a confirmation that gets lost leaves the source paused while the destination runs; told to abort, it ends", async () => {
    await using rig = await Rig.start(description);
    const deciding = rig.undecided().then(async (migration) => {
      await expectStill(rig.source);
      return await sendDecision(rig.journals, migration, "abort");
    });
    const { report, received, destination } = await rig.migrate({
      policy,
      decideMs: 10_000,
      meddlers: { toSource: (frame) => (says(frame, "RUNNING") ? "cut" : frame) },
    });
    expect(await deciding).toBeTruthy();
    expect(report).toMatchObject({ result: "indeterminate", error: { code: "GIVEN_UP" } });
    expect(received.outcome).toBe("running");
    expect(rig.journal(report, "source")).toBe("gone");
    if (destination === undefined) throw new Error("there is no destination");
    await expectRunning(destination);
    await expectStill(rig.source);
  });
});

describe("a destination in its own process", () => {
  it.each(["pre-copy", "stop-copy"] as const)(
    "that is killed in phase %s leaves the source running, whole",
    async (at) => {
      await using pair = await apart();
      const { rig, destination, transport } = pair;
      const report = await rig.send({
        policy,
        transport,
        hooks: { beforePhase: (phase) => void (phase === at && destination.kill("SIGKILL")) },
      });
      expect(report.result).toBe("failed");
      expect(report.error?.message).toMatch(/127\.0\.0\.1|channel|destination/);
      await expectRunning(rig.source);
      expectMoved(await rig.migrate({ policy }));
    },
  );

  it("that is stopped at GO, and then killed, leaves the source paused until the operator resumes it", async () => {
    await using pair = await apart();
    const { rig, destination, transport } = pair;
    const deciding = rig.undecided().then(async (migration) => {
      await expectStill(rig.source);
      // Before it decides, the operator makes sure that the other side never runs.
      await destination[Symbol.asyncDispose]();
      return await sendDecision(rig.journals, migration, "resume");
    });
    const report = await rig.send({
      policy,
      transport,
      decideMs: 10_000,
      timeouts: { runningMs: 300 },
      hooks: { beforePhase: (phase) => void (phase === "handover" && destination.kill("SIGSTOP")) },
    });
    expect(report.result).toBe("failed");
    expect(await deciding).toBeTruthy();
    await expectRunning(rig.source);
  });

  it("that is stopped (SIGSTOP) at GO and wakes up runs the machine, and both never ran at a time", async () => {
    await using pair = await apart();
    const { rig, destination, transport } = pair;
    const report = await rig.send({
      policy,
      transport,
      decideMs: 10_000,
      timeouts: { runningMs: 300 },
      hooks: {
        beforePhase: async (phase) => {
          if (phase === "handover") destination.kill("SIGSTOP");
          if (phase !== "indeterminate") return;
          await expectStill(rig.source);
          destination.kill("SIGCONT");
        },
      },
    });
    expect(report.error).toBeUndefined();
    expect(report).toMatchObject({ result: "completed", verified: true });
    const { outcome, units, firstNs } = await destination.said("outcome");
    expect(outcome).toBe("running");
    expect(units).toBeGreaterThan(0);
    expect(BigInt(String(firstNs))).toBeGreaterThan(lastWrite(rig.source));
  });
});

describe("a source in its own process", () => {
  it.each(["pre-copy", "handover"] as const)(
    "that is killed in phase %s never makes the destination write",
    async (at) => {
      await using rig = await Rig.start(machineOf([]));
      await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
      let machine: EmulatedMachine | undefined;
      const receiving = listener.acceptControl().then((control) =>
        receive({
          source: acceptedSource(listener, control),
          createMachine: async (received) => {
            machine = await createEmulatedMachine(received, { paused: true, incarnation: 2 });
            return machine;
          },
          journalDirectory: rig.journals,
        }),
      );
      await using source = new Child(PROGRAM, "source", rig.journals, String(listener.endpoint.port), at);
      await source.said("phase", at);
      await pause(50);
      source.kill("SIGKILL");
      expect((await receiving).outcome).toBe("discarded");
      const [journal] = readdirSync(rig.journals).filter((name) => name.endsWith(".destination.json"));
      expect(readJournal(rig.journals, journal.split(".")[0], "destination")?.state).toBe("discarded");
      if (machine === undefined) throw new Error("no machine was made");
      // What came from the source is there, and nothing else.
      for (const writer of writings(machine.memory).keys()) expect(writer).toBe(1);
    },
  );
});
