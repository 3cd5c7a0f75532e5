import { afterEach, describe, expect, it } from "vitest";
import { type Loopback, loopback } from "./loopback.js";

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

describe("a migration", () => {
  it("moves a machine that is being written to, and proves that nothing was lost", async () => {
    const pair = await started();
    const report = await pair.migrate({ runAfterMs: 20 });
    expect(report.error).toBeUndefined();
    expect(report).toMatchObject({ result: "completed", verified: true, design: "split" });
    expect(report.downtimeMs).toBeGreaterThan(0);
    expect(report.rounds.length).toBeGreaterThan(1);
    expect(report.memory).toMatchObject({ pagesDifferent: 0 });
    expect((await pair.received).outcome).toBe("running");
    expect(pair.witness.running).toEqual(["destination"]);
    expect(pair.destination?.whole).toBe(true);
  });
});
