import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { migrationHeader } from "../../src/cli/kept/record-run.js";
import { type MigrationEvent, migrationEvents } from "../../src/migration/events.js";
import type { RunHeader } from "../../src/observe/feed/schema.js";
import { formatRate } from "../../src/observe/format.js";
import { LiveView } from "../../src/observe/live-view.js";
import { parseMetrics } from "../../src/observe/metrics/parse.test.helper.js";
import { TopView } from "../../src/observe/top/view.js";
import { DEFAULT_POLICY } from "../../src/tracking/choice.js";
import { chooseTrackers } from "../../src/tracking/policy.js";
import { probeMachine } from "../../src/tracking/probe.js";
import { DISK, LOAD, machineOf, NIC, VF } from "../support/machines.js";
import { expectMoved, Rig as MigrationRig } from "../support/migration.js";
import { chromiumPath, openBrowser, Rig } from "./rig.js";

/*
 * One migration, seen by all who show one: the live view, `dirtmap top`, the metrics and the dashboard's page. Its devices
 * share a domain, of which one has a log of its own besides; one has no tracker, and one is suspended.
 */

const DEVICES = [
  VF,
  NIC,
  DISK,
  { id: "old0", model: "blk", iommu: "plain0", load: LOAD },
  { id: "old1", model: "blk", iommu: "plain0", load: LOAD },
] as const;
const POLICY = {
  ...DEFAULT_POLICY,
  domain: "shared",
  trackers: { vf0: "device" },
  untrackedDevices: { old0: "everything", old1: "suspend" },
} as const;

/** Whose tracker each owner has. */
const TRACKERS = [
  ["cpu", "cpu"],
  ["old0", "everything"],
  ["old1", "suspended"],
  ["vf0", "device"],
  ["vf0+nic0+disk0", "iommu"],
];

/** A row of a view: the owner, its tracker, and what it dirtied per second before the last read; `-`: nothing was read. */
type Row = readonly [owner: string, tracker: string, rate: string];

/** A terminal that keeps what was written to it last. */
class Terminal {
  readonly isTTY = true;
  readonly columns = 160;
  last = "";
  write(text: string): void {
    this.last = text;
  }
  on(): void {}
  off(): void {}
}

describe("one migration", () => {
  let rig: Rig;
  let header: RunHeader;
  let reads = 0;
  const live = new Terminal();
  const top = new Terminal();

  beforeAll(async () => {
    rig = await Rig.start();
    const iommus = [
      { id: "iommu0", format: "amd-v1" as const },
      { id: "plain0", format: "amd-v1" as const, dirtyTracking: false },
    ];
    const description = machineOf(DEVICES, { iommus });
    await using migration = await MigrationRig.start(description);
    const choices = chooseTrackers(await probeMachine(migration.source), POLICY);
    const id = { id: "live0001", scenario: "one-run", startedAt: new Date(), downtimeLimitMs: 2000 };
    header = migrationHeader(id, description, choices);
    await rig.begin(header);
    const { devices, memoryBytes, host, downtimeLimitMs = 0 } = header;
    const look = { stream: top, color: false, json: false, once: true };
    using topView = new TopView({ title: "one-run", host, memoryBytes, devices }, look);
    const show = (message: unknown) => {
      const event = message as MigrationEvent;
      if (event.type === "read") reads++;
      topView.show(event);
    };
    migrationEvents.subscribe(show);
    const view = new LiveView({ stream: live, color: false, devices, downtimeLimitMs });
    try {
      expectMoved(await migration.migrate({ policy: POLICY }));
    } finally {
      migrationEvents.unsubscribe(show);
      topView.finish();
      // What it shows in the end is erased with it.
      const shown = live.last;
      view[Symbol.dispose]();
      live.last = shown;
    }
  });
  afterAll(() => rig?.[Symbol.asyncDispose]());

  it("has the same owners, trackers and rates in the live view and in top", () => {
    const shown = rowsOf(live.last, "device", 2);
    expect(shown.map(([owner, tracker]) => [owner, tracker])).toEqual(TRACKERS);
    expect(shown.map(([, , rate]) => rate === "-")).toEqual(TRACKERS.map(([, tracker]) => tracker === "suspended"));
    expect(rowsOf(top.last, "owner", 3)).toEqual(shown);
  });

  it("has them in the metrics, as far as trackers were read", async () => {
    await expect.poll(async () => (await sample("dirtmap_tracker_reads_total")).get("cpu")?.[1], PATIENCE).toBe(reads);
    const rates = [...(await sample("dirtmap_dirty_bytes_per_second"))].map(
      ([owner, [tracker, rate]]): Row => [owner.replace("domain:", ""), tracker, formatRate(rate)],
    );
    expect(sorted(rates)).toEqual(rowsOf(live.last, "device", 2).filter(([, tracker]) => tracker !== "suspended"));
  });

  async function sample(name: string): Promise<Map<string, readonly [tracker: string, value: number]>> {
    const text = await (await fetch(`${rig.url}metrics`)).text();
    const samples = parseMetrics(text).find((family) => family.name === name)?.metrics ?? [];
    return new Map(
      samples.map(({ labels = {}, value }) => [String(labels.device), [String(labels.tracker), Number(value)]]),
    );
  }

  it.skipIf(chromiumPath === undefined)("has them in the dashboard's page", async () => {
    const browser = await openBrowser();
    try {
      const page = await browser.newPage();
      await page.goto(`${rig.url}#/live/${header.run}`);
      await expect.poll(() => pageRows(page), PATIENCE).toEqual(rowsOf(live.last, "device", 2));
    } finally {
      await browser.close();
    }
  });
});

/** For a busy computer. */
const PATIENCE = { timeout: 30_000, interval: 100 };

/** The rows of a table in text, from the line that begins with `first` to the next that is no row of it. */
function rowsOf(text: string, first: string, rateColumn: number): Row[] {
  const lines = text.split("\n").map((line) => line.trim());
  const from = lines.findIndex((line) => new RegExp(`^${first} +tracker`).test(line)) + 1;
  const rows = lines.slice(from, from + TRACKERS.length).map((line) => line.split(/ {2,}/));
  return sorted(rows.map((cells): Row => [cells[0], cells[1], cells[rateColumn]]));
}

async function pageRows(page: Page): Promise<Row[]> {
  const rows = page.getByRole("table", { name: "Devices, vCPUs and their trackers" }).locator("tbody tr");
  const texts = await rows.evaluateAll((elements) =>
    elements.map((element) => [...element.children].map((cell) => cell.textContent ?? "")),
  );
  return sorted(texts.map((cells): Row => [cells[0], cells[2], cells[4].replace("–", "-")]));
}

function sorted(rows: readonly Row[]): Row[] {
  return rows.toSorted(([a], [b]) => (a < b ? -1 : 1));
}
