import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { EXIT_CODES } from "../../src/cli/exit-codes.js";
import { openStore } from "../../src/evidence/store/store.js";
import { followFeed, openFeeds } from "../../src/observe/feed/follow.js";
import type { FeedEvent } from "../../src/observe/feed/schema.js";
import { CommandLine } from "../support/command-line.js";

/* What a migration leaves besides its report: a run in the store, and a live feed meanwhile. */

const folder = mkdtempSync(join(tmpdir(), "dirtmap-recording-"));
const path = join(folder, "evidence.db");
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const commands = new CommandLine(folder);
const migrate = (...more: string[]) => commands.migrate(...more);

const SLOWLY = ["--bandwidth", "1M", "--downtime-limit", "20ms"];

function newest() {
  using store = openStore(path);
  const [{ id }] = store.runs();
  return store.run(id);
}

describe("a migration", () => {
  it("is kept in the store with its report, and with reads whose heat adds up to what was reported", async () => {
    await using source = migrate("--quiet", "--store", path);
    const { conditions, ...report } = await source.said("result");
    expect(await source.ended).toBe(EXIT_CODES.done.code);
    const run = newest();
    expect(run).toMatchObject({
      kind: "migration",
      name: report.migration,
      host: "emulated",
      result: "completed",
      report,
      conditions,
    });
    expect(run.header).toMatchObject({
      devices: [
        { id: "vf0", tracker: "device" },
        { id: "nic0", tracker: "iommu" },
      ],
    });
    const { rounds } = report as { rounds: { round: number; byDevice: Record<string, { reported: number }> }[] };
    const reads = run.reads as Extract<FeedEvent, { type: "read" }>[];
    expect(reads.map(({ round }) => round)).toEqual(rounds.map(({ round }) => round));
    for (const [index, { owners }] of reads.entries()) {
      for (const [owner, { reported, heat }] of Object.entries(owners)) {
        expect(reported).toBe(rounds[index].byDevice[owner].reported);
        expect(heat.reduce((a, b) => a + b)).toBe(reported);
      }
    }
  });

  it("can be followed while it runs, and is kept as cancelled where it was", async () => {
    await using source = migrate(...SLOWLY, "--store", path);
    await source.complained(/round 0/);
    const [header] = (await openFeeds()).filter(({ scenario }) => scenario === "tiny");
    expect(header).toMatchObject({ kind: "migration", memoryBytes: 16 * 2 ** 20, downtimeLimitMs: 20 });
    using feed = await followFeed(header.run);
    source.kill("SIGINT");
    const events: FeedEvent[] = [];
    for await (const event of feed) events.push(event);
    expect(events.map(({ type }) => type)).toEqual(expect.arrayContaining(["phase", "round", "read", "progress"]));
    expect(events.findLast(({ type }) => type === "phase")).toMatchObject({ phase: "cancelled" });
    expect(await source.ended).toBe(EXIT_CODES.cancelled.code);
    expect(newest()).toMatchObject({ name: header.run, result: "cancelled" });
    expect(await openFeeds()).not.toContainEqual(header);
  });

  it("leaves nothing with --no-store", async () => {
    const before = newest().id;
    await using source = migrate("--quiet", "--no-store");
    expect(await source.ended).toBe(EXIT_CODES.done.code);
    expect(newest().id).toBe(before);
  });

  it("is refused before anything starts where the store that was asked for can't be used", async () => {
    await using source = migrate("--quiet", "--store", commands.scenario);
    expect(await source.ended).toBe(EXIT_CODES.usage.code);
    expect(source.errors.trimEnd().split("\n")).toHaveLength(1);
    expect(source.errors).toMatch(/can't be used as a store: file is not a database; give --store a path/);
    expect(existsSync(`${commands.scenario}.lock`)).toBe(false);
  });
});
