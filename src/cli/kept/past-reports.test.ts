import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openStore } from "../../evidence/store/store.js";
import { fakeReport } from "../../migration/fake-report.test.helper.js";
import { pastReports, readReports } from "./past-reports.js";

const folder = mkdtempSync(join(tmpdir(), "dirtmap-reports-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const report = (downtimeMs: number) => fakeReport({ downtimeMs });

describe("earlier migrations' reports", () => {
  it("are read from files, and what is none is refused in one line", () => {
    const good = join(folder, "good.json");
    writeFileSync(good, JSON.stringify(report(31)));
    expect(readReports([good])).toMatchObject([{ downtimeMs: 31 }]);
    for (const text of ["", "{", "[]", JSON.stringify({ ...report(1), rounds: [{}] }), JSON.stringify(report(-1))]) {
      const bad = join(folder, "bad.json");
      writeFileSync(bad, text);
      expect(() => readReports([good, bad])).toThrow(
        expect.objectContaining({ code: "BAD_REPORT", message: expect.not.stringContaining("\n") }),
      );
    }
    expect(() => readReports([join(folder, "absent.json")])).toThrow(expect.objectContaining({ code: "BAD_REPORT" }));
  });

  it("are taken from the store: the newest that completed, of the same scenario where there are any", async () => {
    const store = join(folder, "evidence.db");
    const save = (scenario: string, result: string, downtimeMs: number) => {
      using opened = openStore(store);
      opened.saveRun({
        kind: "migration",
        name: `r${downtimeMs}`,
        scenario,
        host: "emulated",
        startedAt: "2026-01-02T03:04:05.000Z",
        result,
        header: {},
        report: report(downtimeMs),
        reads: [],
        conditions: {},
      });
    };
    save("mixed", "completed", 1);
    save("mixed", "failed", 2);
    save("case-a", "completed", 3);
    const downtimes = async (scenario: string | null) =>
      (await pastReports({ store }, scenario)).map(({ downtimeMs }) => downtimeMs);
    expect(await downtimes("mixed")).toEqual([1]);
    expect(await downtimes("p2p")).toEqual([3, 1]);
    expect(await pastReports({ store: false }, null)).toEqual([]);
  });
});
