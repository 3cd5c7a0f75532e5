import { describe, expect, test } from "vitest";
import { parseXml } from "../../evidence/plot/well-formed.test.helper.js";
import { htmlReport } from "../../evidence/report/html.js";
import type { ReadEvent } from "../../migration/events.js";
import { fakeReport } from "../../migration/fake-report.test.helper.js";
import type { MigrationReport, RoundReport } from "../../migration/report.js";
import { CONDITIONS } from "../../observe/conditions.test.helper.js";
import { migrationDocument } from "./migration-document.js";

const owners = (...names: string[]) =>
  Object.fromEntries(names.map((name, index) => [name, { reported: 100 - index, exclusive: 1, readMs: 1 }]));

const round = (number: number, byDevice: RoundReport["byDevice"]): RoundReport => ({
  round: number,
  phase: "pre-copy",
  pages: 100,
  zeroPages: 0,
  bytes: 409_600,
  ms: 10,
  remaining: 0,
  byDevice,
});

const read = (number: number, heats: Record<string, number[]>): ReadEvent => ({
  type: "read",
  atMs: 5,
  round: number,
  elapsedMs: 5,
  owners: Object.fromEntries(
    Object.entries(heats).map(([owner, heat]) => [owner, { reported: 1, exclusive: 1, readMs: 1, heat }]),
  ),
});

const REPORT = fakeReport({
  migration: "1f0c93ab",
  result: "failed",
  verified: null,
  totalMs: 10,
  downtimeMs: null,
  bytes: 1,
  phases: [{ phase: "connecting", ms: 1 }],
  rounds: [round(0, owners("vf0", "cpu"))],
  warnings: ["vf0 was slow"],
  error: { code: "DESTINATION_LOST", message: "the destination is gone", remedy: "migrate again" },
});
const CONTEXT = { scenario: "mixed", memoryBytes: 2 ** 28, reads: [], conditions: CONDITIONS };

function figures(report: MigrationReport, reads: readonly ReadEvent[] = []) {
  return migrationDocument(report, { ...CONTEXT, reads }).blocks.flatMap((block) =>
    block.kind === "figure" ? [{ ...block, svg: parseXml(block.svg) }] : [],
  );
}

describe("a migration as a document", () => {
  test("says under which conditions it ran", () => {
    const tables = migrationDocument(REPORT, CONTEXT).blocks.filter((block) => block.kind === "table");
    expect(tables.at(-1)?.rows).toContainEqual(["Bandwidth", "unlimited"]);
    expect(tables.at(-1)?.rows).toContainEqual(["Machine", "a processor, 2 cores, 8G"]);
  });

  test("says what went wrong, and what would work, before anything else", () => {
    const { blocks } = migrationDocument(REPORT, CONTEXT);
    expect(blocks.slice(0, 3)).toEqual([
      { kind: "text", text: expect.stringContaining("failed") },
      { kind: "warning", text: "the destination is gone; what would work: migrate again" },
      { kind: "warning", text: "vf0 was slow" },
    ]);
  });

  test("of one that never began has no plots", () => {
    expect(figures({ ...REPORT, rounds: [] })).toEqual([]);
  });

  test("plots the seven that reported the most, and says so where there are more", () => {
    const names = Array.from({ length: 9 }, (_, index) => `vf${index}`);
    const [plot] = figures({ ...REPORT, rounds: [round(0, owners(...names))] });
    expect(plot.caption).toContain("the 7 that reported the most, of 9");
    expect(plot.svg.children[1].text).toContain("vf6 94");
    expect(plot.svg.children[1].text).not.toContain("vf7");
  });

  test("adds up the heat of all owners, some of which have none", () => {
    const [, plot] = figures(REPORT, [
      read(0, { vf0: [0, 4], cpu: [], nic0: [1, 5] }),
      read(1, { vf0: [] }),
      read(2, {}),
    ]);
    expect(plot.name).toBe("heat");
    expect(plot.svg.children.some(({ text }) => text === "9 pages in a stretch")).toBe(true);
    expect(plot.svg.children[1].text).toContain("1 reads");
  });

  test("keeps a hostile device's name text", () => {
    const hostile = "<script>x</script>";
    const html = htmlReport(migrationDocument({ ...REPORT, rounds: [round(0, owners(hostile))] }, CONTEXT));
    expect(html).not.toContain("<script");
    expect(html).toContain("&lt;script&gt;");
  });
});
