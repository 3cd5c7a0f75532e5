import { describe, expect, it } from "vitest";
import {
  compareConditions,
  conditionRows,
  type KnownConditions,
  NOT_RECORDED,
  type RunConditions,
} from "./conditions.js";
import { CONDITIONS } from "./conditions.test.helper.js";
import { runConditionsSchema } from "./conditions-schema.js";

/** What two runs differ in. */
function differing(left: KnownConditions, right: KnownConditions): string[] {
  return compareConditions(left, right).flatMap(({ name, differs }) => (differs === true ? [name] : []));
}

const machine = (more: Partial<RunConditions["machine"]>) => ({
  ...CONDITIONS,
  machine: { ...CONDITIONS.machine, ...more },
});

describe("the conditions of a run", () => {
  it("are told as text, all of them", () => {
    expect(Object.fromEntries(conditionRows(CONDITIONS).map(({ name, value }) => [name, value]))).toEqual({
      Dirtmap: "dirtmap 0.1.0",
      Host: "emulated",
      "Guest memory": "1G",
      Design: "split",
      Policy: "iommu-first, dev0=device, domains per-device, untracked everything",
      Transport: "tcp, to a process on the same machine",
      Bandwidth: "unlimited",
      Channels: "2",
      "Downtime limit": "300 ms",
      "Rounds at most": "30",
      "Memories compared": "after the destination runs",
      "Checked after running on for": "500 ms",
      Machine: "a processor, 2 cores, 8G",
      System: "Linux 6.18, Node v20.20.2",
      Load: "0.4, stolen 0 %",
    });
  });

  it("are told as far as they were recorded", () => {
    const rows = conditionRows({ design: "type1", memoryBytes: 2 ** 29 });
    expect(rows.filter(({ value }) => value !== NOT_RECORDED)).toEqual([
      { name: "Guest memory", value: "512M" },
      { name: "Design", value: "type1" },
    ]);
    expect(conditionRows({}).every(({ value }) => value === NOT_RECORDED)).toBe(true);
  });

  it("are read back as they were kept, and nothing else is taken for them", () => {
    expect(runConditionsSchema.parse(JSON.parse(JSON.stringify(CONDITIONS)))).toEqual(CONDITIONS);
    for (const other of [null, {}, { ...CONDITIONS, channels: "2" }, { ...CONDITIONS, machine: null }]) {
      expect(runConditionsSchema.safeParse(other).success).toBe(false);
    }
  });
});

describe("two runs", () => {
  it.each<[string, KnownConditions, string[]]>([
    ["the same", CONDITIONS, []],
    ["another bandwidth and design", { ...CONDITIONS, bandwidth: 1e9, design: "type1" }, ["Design", "Bandwidth"]],
    ["another tracker", { ...CONDITIONS, policy: { ...CONDITIONS.policy, trackers: {} } }, ["Policy"]],
    ["measurements", { ...CONDITIONS, policy: { ...CONDITIONS.policy, measured: "r.json" } }, ["Policy"]],
    ["a served device", { ...CONDITIONS, hosts: ["emulated", "vfio-user"] }, ["Host"]],
    ["a destination elsewhere", { ...CONDITIONS, transport: { scheme: "tls", local: false } }, ["Transport"]],
    ["another processor", machine({ cpu: "another" }), ["Machine"]],
    ["a newer kernel", machine({ kernel: "Linux 7.2" }), ["System"]],
    ["a busy machine", machine({ load: 28.5 }), ["Load"]],
    ["a busy hypervisor", machine({ stealShare: 0.3 }), ["Load"]],
    ["a load that varies as loads do", machine({ load: 0.7, stealShare: null }), []],
  ])("with %s differ in that", (_, other, names) => {
    expect(differing(CONDITIONS, other)).toEqual(names);
    expect(differing(other, CONDITIONS)).toEqual(names);
  });

  it("of which one was not recorded are neither equal nor different, but for what its report says", () => {
    const rows = compareConditions({ design: "type1" }, CONDITIONS);
    expect(rows.filter(({ differs }) => differs !== null)).toEqual([
      { name: "Design", values: ["type1", "split"], differs: true },
    ]);
    expect(rows.find(({ name }) => name === "Bandwidth")?.values).toEqual([NOT_RECORDED, "unlimited"]);
  });
});
