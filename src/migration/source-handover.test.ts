import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DirtmapError } from "../errors.js";
import { DEFAULT_TIMEOUTS } from "./deadline.js";
import { Journal, readJournal } from "./journal.js";
import { Peer } from "./peer.js";
import { problemOf, SourceHandover } from "./source-handover.js";
import type { ControlMessage } from "./stream/messages.js";

/*
 * The source's side of the handover with a real journal, and a destination that the test plays. What is looked at is what
 * was on disk at each moment.
 */

let directory = "";
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "dirtmap-handover-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

const onDisk = () => readJournal(directory, "m1", "source")?.state ?? "nothing";
const running = { type: "RUNNING", resumeMs: 1 } as const;
const abort = { type: "ABORT", code: "X", message: "discarded here" } as const;
const lost = new DirtmapError("the connection is lost", { code: "CONNECTION_LOST" });

function open(takeBack: () => Promise<readonly string[]> = async () => []) {
  /** What happened, each with what was on disk then. */
  const events: string[] = [];
  const note = (what: string) => void events.push(`${what} (${onDisk()})`);
  const hears: ((message: ControlMessage | Error) => void)[] = [];
  const arrived: (ControlMessage | Error)[] = [];
  const peer = new Peer({
    send: async ({ type }) => note(type),
    receive: async () => {
      const next = arrived.shift() ?? (await new Promise<ControlMessage | Error>((resolve) => hears.push(resolve)));
      if (next instanceof Error) throw next;
      return next;
    },
    close: async () => {},
  });
  const warnings: string[] = [];
  const journal = Journal.source(directory, "m1", "there");
  const handover = new SourceHandover({
    journal,
    peer,
    timeouts: { ...DEFAULT_TIMEOUTS, runningMs: 20_000 },
    takeBack: async () => {
      note("taken back");
      return await takeBack();
    },
    warn: (text) => warnings.push(text),
  });
  const says = (message: ControlMessage | Error) => {
    const waiting = hears.shift();
    if (waiting === undefined) arrived.push(message);
    else waiting(message);
  };
  const handOver = (decideMs = 0, signal = new AbortController().signal) =>
    handover.handOver({
      signal,
      decideMs,
      givenUp: () => note("given up"),
      undecided: async () => note("undecided"),
    });
  return { handover, events, warnings, says, handOver, journal };
}

/** After GO, with nothing heard: the operator is asked. */
async function undecided(takeBack?: () => Promise<readonly string[]>) {
  const opened = open(takeBack);
  const outcome = opened.handOver(Number.POSITIVE_INFINITY);
  opened.says({ type: "RUN_FAILED", code: "Y", message: "a vCPU did not start" });
  while (opened.handover.state !== "undecided" || opened.events.length < 3) {
    await new Promise((resolve) => setImmediate(resolve));
  }
  return { ...opened, outcome };
}

describe("the source's side of a handover", () => {
  it("has `given-up` on disk before it says GO, and is gone with RUNNING", async () => {
    const { handOver, events, says, handover } = open();
    const outcome = handOver();
    says(running);
    expect(await outcome).toMatchObject({ state: "gone", running: { resumeMs: 1, at: expect.any(Number) } });
    expect(events).toEqual(["GO (given-up)", "given up (given-up)"]);
    expect(handover.state).toBe("gone");
    expect(onDisk()).toBe("gone");
  });

  it("never says GO where `given-up` can't be recorded: the machine stays here", async () => {
    const { handOver, events, handover, warnings } = open();
    rmSync(directory, { recursive: true });
    expect(await handOver()).toMatchObject({ state: "taken-back", why: { code: "JOURNAL" } });
    expect(events).toEqual(["ABORT (nothing)", "taken back (nothing)"]);
    expect(handover.state).toBe("taken-back");
    // What is on disk allows it, whatever it is: that it was not brought up to date is worth a warning.
    expect(warnings).toEqual([expect.stringContaining("could not be brought up to 'running'")]);
  });

  it("says nothing and gives nothing up where it was cancelled before", async () => {
    const { handOver, events, handover } = open();
    await expect(handOver(0, AbortSignal.abort(new Error("cancelled")))).rejects.toThrow("cancelled");
    expect(events).toEqual([]);
    expect(handover.state).toBe("preparing");
    expect(onDisk()).toBe("running");
  });

  it("takes the machine back where something fails before, once, and then takes it for no handover any more", async () => {
    const { handover, handOver, events } = open();
    await handover.fail(lost);
    await handover.fail(new Error("again"));
    expect(await handOver()).toEqual({ state: "taken-back", why: lost });
    expect(events).toEqual(["ABORT (running)", "taken back (running)"]);
  });

  it("ends as the first event says, once that is carried out, whatever comes meanwhile", async () => {
    let done = () => {};
    const takingBack = new Promise<void>((resolve) => {
      done = resolve;
    });
    const { handover, handOver } = open(async () => {
      await takingBack;
      return [];
    });
    const first = handover.fail(lost);
    const outcome = handOver();
    const turn = new Promise<string>((resolve) => setImmediate(resolve, "waits"));
    expect(await Promise.race([outcome, turn])).toBe("waits");
    done();
    await first;
    expect(await outcome).toEqual({ state: "taken-back", why: lost });
  });

  it("takes the machine back on ABORT, also after GO", async () => {
    const { handOver, says, events } = open();
    const outcome = handOver();
    says(abort);
    expect(await outcome).toMatchObject({ state: "taken-back", why: { code: "X" } });
    expect(events.slice(2)).toEqual(["taken back (running)"]);
  });

  it.each([
    ["a lost connection", lost, "CONNECTION_LOST"],
    ["a destination that could not run it", { type: "RUN_FAILED", code: "Y", message: "no" } as const, "Y"],
  ])("is undecided after %s, and takes nothing back", async (_, answer, code) => {
    const { handOver, says, events } = open();
    const outcome = handOver();
    says(answer);
    expect(await outcome).toMatchObject({ state: "undecided", why: { code } });
    expect(events.slice(2)).toEqual(["undecided (given-up)"]);
    expect(onDisk()).toBe("given-up");
  });

  it.each([
    [running, "gone", "gone"],
    [abort, "taken-back", "running"],
  ] as const)("hears a late %j while the operator is waited for", async (late, state, disk) => {
    const { says, outcome } = await undecided();
    says(late);
    expect(await outcome).toMatchObject({ state });
    expect(onDisk()).toBe(disk);
  });

  it("gives the machine back to the operator who says `resume` once the destination is silent", async () => {
    const { outcome, handover, events } = await undecided();
    expect(await handover.decide("resume")).toBe("the source's machine runs again");
    expect(await outcome).toMatchObject({ state: "taken-back", why: { code: "GO_NOT_CONFIRMED" } });
    expect(events[3]).toBe("taken back (running)");
  });

  it("tells the operator who says `resume` what the machine lacks", async () => {
    const { handover } = await undecided(async () => ["disk is lost", "QEMU does not answer"]);
    expect(await handover.decide("resume")).toBe(
      "the source has taken its machine back, but disk is lost; QEMU does not answer",
    );
  });

  it("has the operator who says `resume` wait for the destination's answer", async () => {
    const { handOver, handover, says, events } = open();
    const outcome = handOver();
    const decided = handover.decide("resume");
    expect(await Promise.race([decided, "waits"])).toBe("waits");
    says(running);
    await expect(decided).rejects.toMatchObject({ code: "DECIDED" });
    expect(await outcome).toMatchObject({ state: "gone" });
    expect(events.join()).not.toContain("taken back");
  });

  it("ends at once with the operator who says `abort`, whatever the destination says later", async () => {
    const { handOver, handover, says, events } = open();
    const outcome = handOver();
    expect(await handover.decide("abort")).toContain("given up");
    expect(onDisk()).toBe("gone");
    says(abort);
    expect(await outcome).toEqual({ state: "gone", running: null });
    await expect(handover.decide("resume")).rejects.toMatchObject({ code: "DECIDED" });
    expect(await handover.decide("abort")).toContain("given up");
    await handover.fail(lost);
    expect(onDisk()).toBe("gone");
    expect(events.join()).not.toContain("taken back");
  });

  it("runs on where `abort` is said after `resume`", async () => {
    const { handover, events } = await undecided();
    await handover.decide("resume");
    await expect(handover.decide("abort")).rejects.toMatchObject({ code: "DECIDED" });
    expect(await handover.decide("resume")).toContain("runs again");
    expect(events.filter((event) => event.startsWith("taken back"))).toHaveLength(1);
    expect(onDisk()).toBe("running");
  });

  it("is bound by an `abort` that another process has recorded: neither `resume` nor ABORT brings the machine back", async () => {
    for (const end of ["resume", "ABORT"] as const) {
      const { handover, outcome, says, events, journal } = await undecided();
      journal.record("gone");
      if (end === "ABORT") says(abort);
      else await expect(handover.decide("resume")).rejects.toMatchObject({ code: "DECIDED" });
      expect(await outcome).toEqual({ state: "gone", running: null });
      expect(events.join()).not.toContain("taken back");
      expect(onDisk()).toBe("gone");
      rmSync(journal.path);
    }
  });

  it("has nothing to decide before the machine is given up", async () => {
    const { handover, events } = open();
    for (const decision of ["resume", "abort"] as const) {
      await expect(handover.decide(decision)).rejects.toMatchObject({ code: "NOT_UNDECIDED" });
    }
    expect(events).toEqual([]);
    expect(onDisk()).toBe("running");
  });

  it("warns of a machine that could not be taken back, which is this side's all the same", async () => {
    const { handover, outcome, warnings } = await undecided(async () => {
      throw new Error("a device is lost");
    });
    await handover.decide("resume");
    expect(await outcome).toMatchObject({ state: "taken-back" });
    expect(warnings).toEqual(["the machine could not be taken back: a device is lost"]);
  });
});

describe("an error for the other side", () => {
  it("has its words, cut to what a message takes", () => {
    const error = new DirtmapError("m".repeat(5000), { code: "c".repeat(100), remedy: "r".repeat(5000) });
    expect(problemOf(error)).toEqual({
      code: "c".repeat(64),
      message: "m".repeat(4096),
      remedy: "r".repeat(4096),
    });
    expect(problemOf(new DirtmapError("no", { code: "X" }))).toEqual({ code: "X", message: "no" });
    expect(problemOf(new Error("oh"))).toMatchObject({ code: "INTERNAL", message: expect.stringContaining("oh") });
  });
});
