import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { MigrationEvent } from "../../migration/events.js";
import { migrationEventSchema } from "../../migration/events-schema.js";
import type { MigrationReport } from "../../migration/report.js";
import { migrationReportSchema } from "../../migration/report-schema.js";
import { FakeQemu } from "../qmp/fake-qemu.test.helper.js";
import { Qemu } from "../qmp/qemu.js";
import { SocketMonitor } from "../qmp/socket-monitor.js";
import { asGuest, BEGINS, endless, play, RECORDED, type Step } from "./recorded.test.helper.js";
import { STALL_LIMITS } from "./stall-rule.js";
import { type WatchGuestOptions, watchGuest } from "./watch-guest.js";

/*
 * Recorded migrations, told again by a fake QEMU. What is seen of a real one is test/interop/qemu-watch.test.ts.
 */

let fake: FakeQemu;
beforeEach(async () => {
  fake = asGuest(await FakeQemu.start());
});
afterEach(() => fake[Symbol.asyncDispose]());

interface Seen {
  readonly report: MigrationReport;
  readonly events: readonly MigrationEvent[];
  /** What the watch told besides events, in order. */
  readonly calls: readonly string[];
}

async function watch(options: Partial<WatchGuestOptions> = {}): Promise<Seen> {
  await using qemu = new Qemu(await SocketMonitor.open(fake.path));
  const events: MigrationEvent[] = [];
  const calls: string[] = [];
  const report = await watchGuest(qemu, {
    limits: STALL_LIMITS,
    intervalMs: 1,
    migration: "0123abcd",
    signal: new AbortController().signal,
    onWaiting: () => calls.push("waiting"),
    onBegin: async () => void calls.push("begin"),
    tell: (event) => events.push(event),
    ...options,
  });
  if (report === null) throw new Error("no migration was seen");
  for (const event of events) migrationEventSchema.parse(event);
  return { report: migrationReportSchema.parse(report), events, calls };
}

const statesOf = ({ report }: Seen) => report.watched?.devices[0].states.map(({ state }) => state);
const statusesOf = ({ report }: Seen) => report.watched?.statuses.map(({ state }) => state);
const phasesOf = ({ report }: Seen) => report.phases.map(({ phase }) => phase);

describe("a migration that completes", () => {
  it("is seen from before its beginning to its end, with QEMU's own figures", async () => {
    play(fake, RECORDED.completed);
    const seen = await watch();
    expect(seen.report).toMatchObject({ result: "completed", totalMs: 1333, downtimeMs: 312, bytes: 791_445 });
    expect(seen.report).toMatchObject({ verified: null, warnings: [], design: "vmm", policy: "watched" });
    expect(seen.report.error).toBeUndefined();
    expect(statusesOf(seen)).toEqual(["setup", "active", "device", "completed"]);
    expect(phasesOf(seen)).toEqual(["connecting", "pre-copy", "stop-copy"]);
    expect(statesOf(seen)).toEqual(["pre-copy", "pre-copy-p2p-prepare", "pre-copy-p2p", "stop-copy", "stop"]);
    expect(seen.report.watched).toMatchObject({ name: "vm7", fromBeginning: true, deviceBytes: 60, stalls: [] });
    expect(seen.calls).toEqual(["waiting", "begin"]);
  });

  it("tells its passes as rounds, what is left of the whole system, and each device's states", async () => {
    play(fake, RECORDED.completed);
    const { report, events } = await watch();
    expect(report.rounds).toMatchObject([
      { round: 0, phase: "pre-copy", pages: 12_418 - 833, remaining: 204_800 },
      { round: 1, phase: "stop-copy", pages: 51, zeroPages: 15, remaining: 0 },
    ]);
    const left = events.flatMap((event) => (event.type === "progress" ? [event.remainingBytes] : []));
    expect(left).toEqual([50_864_188, 16_773_156, 774_180, 204_860]);
    const phases = events.flatMap((event) => (event.type === "phase" ? [event.phase] : []));
    expect(phases).toEqual(["connecting", "pre-copy", "stop-copy", "completed"]);
    const states = events.flatMap((event) => (event.type === "device" ? [`${event.device} ${event.state}`] : []));
    expect(states).toContain("mtty0 stop-copy");
  });

  it("counts as completed where QEMU is gone right after it, with the downtime between its events", async () => {
    play(fake, RECORDED.completedAndGone, { ends: true });
    const { report } = await watch();
    expect(report).toMatchObject({ result: "completed", downtimeMs: 11_064 - 10_886, bytes: 636_512 });
    expect(report.error).toBeUndefined();
    expect(report.warnings).toEqual([expect.stringContaining("before it told its last figures")]);
  });

  it("is joined in its middle", async () => {
    play(fake, RECORDED.completed.slice(BEGINS.length));
    const seen = await watch();
    expect(seen.report).toMatchObject({ result: "completed", watched: { fromBeginning: false } });
    expect(seen.calls).toEqual(["begin"]);
    expect(statusesOf(seen)).toEqual(["active", "device", "completed"]);
  });

  it("is seen by questions alone where QEMU tells no events, which is warned of", async () => {
    asGuest(fake, { events: false, tellsStates: false });
    const isTold = (step: Step) => "info" in step;
    play(fake, RECORDED.completed.filter(isTold));
    const seen = await watch();
    expect(seen.report).toMatchObject({ result: "completed", downtimeMs: 312 });
    expect(seen.report.warnings).toEqual([
      expect.stringContaining("mtty0 tells no migration states"),
      expect.stringContaining("tells no migration events"),
    ]);
  });

  it("is not taken back by an answer that is older than an event", async () => {
    const { completed } = RECORDED;
    const stale = completed.findIndex((step) => "event" in step && step.event === "STOP");
    const late: Step[] = [...completed];
    // The question was under way when QEMU told that it copies the devices' states.
    late.splice(stale + 2, 0, completed[BEGINS.length + 4]);
    play(fake, late);
    expect(statusesOf(await watch())).toEqual(["setup", "active", "device", "completed"]);
  });
});

describe("a migration that does not complete", () => {
  it("is cancelled: the last sample is kept, and the device's return is no recovery", async () => {
    play(fake, RECORDED.cancelled);
    const seen = await watch();
    expect(seen.report).toMatchObject({ result: "cancelled", bytes: 212_382, downtimeMs: null, warnings: [] });
    expect(seen.report.error?.code).toBe("CANCELLED");
    expect(statusesOf(seen)?.slice(-2)).toEqual(["cancelling", "cancelled"]);
    expect(statesOf(seen)).toEqual(["pre-copy", "running"]);
  });

  it("fails: with QEMU's reason, which it tells after the event", async () => {
    play(fake, RECORDED.failed);
    const seen = await watch();
    expect(seen.report).toMatchObject({ result: "failed", bytes: 501_233, downtimeMs: null, warnings: [] });
    expect(seen.report.error).toMatchObject({
      code: "QEMU_MIGRATION_FAILED",
      message: expect.stringContaining("Unable to write to socket: Broken pipe"),
    });
    expect(statusesOf(seen)?.slice(-2)).toEqual(["failing", "failed"]);
    expect(phasesOf(seen)).toEqual(["connecting", "pre-copy", "pausing", "stop-copy"]);
  });

  it("is not known to have ended where QEMU is gone without a word", async () => {
    play(fake, RECORDED.completed.slice(0, BEGINS.length + 2), { ends: true });
    const { report } = await watch();
    expect(report).toMatchObject({ result: "indeterminate", error: { code: "QEMU_LOST" } });
    expect(report.error?.message).toContain("while its migration was 'active'");
  });

  it("goes on when the watch is ended, and is watched again from its middle", async () => {
    play(fake, RECORDED.completed.slice(0, BEGINS.length + 2));
    const end = new AbortController();
    const first = await watch({
      signal: end.signal,
      tell: (event) => {
        if (event.type === "progress") end.abort();
      },
    });
    expect(first.report).toMatchObject({ result: "indeterminate", error: { code: "WATCH_ENDED" } });
    play(fake, RECORDED.completed.slice(BEGINS.length));
    expect((await watch()).report.result).toBe("completed");
  });

  it("never ends: it is stalled, with why, and no longer once it completes", async () => {
    play(fake, [...endless(8), ...RECORDED.completed.slice(BEGINS.length + 5)]);
    const { report, events } = await watch();
    const verdicts = events.flatMap((event) => (event.type === "diagnosis" ? [event] : []));
    expect(verdicts.find(({ stalled }) => stalled)).toMatchObject({ converging: false, leftMs: null });
    expect(report.watched?.stalls).toMatchObject([{ toMs: expect.any(Number) }]);
    expect(report.result).toBe("completed");
  });
});

describe("what is no migration of this guest", () => {
  it("is an older one, however it ended", async () => {
    play(fake, [{ info: { status: "failed", "error-desc": "of yesterday" } }, ...RECORDED.completed.slice(2)]);
    const { report } = await watch();
    expect([report.result, report.error]).toEqual(["completed", undefined]);
  });

  it("is one that it receives", async () => {
    fake.answer("query-status", { running: false, status: "inmigrate" });
    await expect(watch()).rejects.toMatchObject({ code: "WRONG_SIDE" });
  });

  it("is none at all, if the watch ends before one begins", async () => {
    const end = new AbortController();
    await using qemu = new Qemu(await SocketMonitor.open(fake.path));
    const report = await watchGuest(qemu, {
      limits: STALL_LIMITS,
      intervalMs: 1,
      migration: "0123abcd",
      signal: end.signal,
      onWaiting: () => end.abort(),
      onBegin: () => Promise.reject(new Error("none has begun")),
      tell: () => {},
    });
    expect(report).toBeNull();
  });
});

it("only asks: no command that sets anything is given", async () => {
  play(fake, RECORDED.completed);
  await watch();
  const asked = new Set(fake.commands.map(({ execute }) => execute));
  expect([...asked].filter((command) => !/^(query-|qom-(get|list)$)/.test(command))).toEqual([]);
});
