import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { servedSite } from "../../src/cli/sites/vfio-user/bench-machine.js";
import { benchTrackers } from "../../src/evidence/trackers/bench.js";
import { readBenchmark } from "../../src/evidence/trackers/file.js";
import type { TrackerBenchmark } from "../../src/evidence/trackers/result.js";
import { MiB } from "../../src/memory/address.js";
import { type DeviceServer, serveDevice } from "../../src/vfio-user/server/server.js";
import { dirtmap } from "../support/program.js";

/*
 * `dirtmap bench trackers`, `recommend` and `--policy measured:FILE`, as an operator runs them.
 */

/** A benchmark and a migration take seconds on an idle computer. */
const PATIENCE_MS = 300_000;

const folder = mkdtempSync(join(tmpdir(), "dirtmap-bench-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const path = (name: string) => join(folder, name);

const run = (...args: readonly string[]) => dirtmap(args, { limitMs: PATIENCE_MS });

/** One line that says what is wrong, exit code 2, and nothing on standard output. */
async function refused(...args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await run(...args);
  expect({ code, stdout, lines: stderr.trimEnd().split("\n").length }).toEqual({ code: 2, stdout: "", lines: 1 });
  return stderr.trimEnd();
}

const MACHINE = `
  memory: 32M
  fill: 0.2
  vcpus: { count: 1, rate: 1, footprint: 128K }
  iommus: [{ id: iommu0, format: amd-v1 }]
  devices:
    - { id: vf0, model: mlx5, iommu: iommu0, load: { rate: 2, footprint: 256K } }
    - { id: nic0, model: nic, iommu: iommu0, load: { rate: 2, footprint: 256K } }
    - { id: gpu0, model: vgpu, vram: 64K, load: { rate: 2, footprint: 256K } }
`;
const MIGRATION = "migration: { downtimeLimit: 5s, runAfter: 0ms }";

let benchmark: TrackerBenchmark;
const scenario = path("small.yaml");
const file = path("bench.json");
const recommendation = path("recommendation.json");
const store = path("evidence.db");

beforeAll(async () => {
  writeFileSync(scenario, `machine:${MACHINE}${MIGRATION}\n`);
  const bench = ["bench", "trackers", "--scenario", scenario, "--quick", "--store", store];
  const { code, stdout, stderr } = await run(...bench, "--output", file, "--bandwidth", "1Gbit", "--json");
  expect({ code, stderr }).toEqual({ code: 0, stderr: expect.stringContaining("kept as benchmark 1 in ") });
  benchmark = JSON.parse(stdout);
}, PATIENCE_MS);

describe("dirtmap bench trackers", () => {
  it("measures each tracker that a device has, with each granule, and says that it measured a model", () => {
    expect(benchmark).toMatchObject({
      schemaVersion: 1,
      kind: "trackers",
      host: "emulated",
      scenario: "small",
      quick: true,
    });
    expect(benchmark.measures).toMatch(/model/);
    const names = benchmark.devices.map(({ id, trackers }) => [
      id,
      ...trackers.map(({ tracker, granule }) => `${tracker} ${granule}`),
    ]);
    expect(names).toEqual([
      ["vf0", "iommu 4096", "iommu 2147483648", "device 4096", "device 65536", "device 2097152", "everything null"],
      ["nic0", "iommu 4096", "iommu 2147483648", "everything null"],
      ["gpu0", "pinned 4096", "everything null"],
    ]);
    const all = benchmark.devices.flatMap(({ trackers }) => trackers);
    for (const { problem, start, stop, reads } of all) {
      expect(problem).toBeNull();
      expect(start?.count).toBe(3);
      expect(stop?.count).toBe(3);
      expect(reads[0]).toMatchObject({ memoryBytes: 32 * MiB });
    }
  });

  it("fills the share of pages that is to be found dirty, and reads all of it", () => {
    const [{ trackers }] = benchmark.devices;
    const [, dirty] = trackers[0].reads;
    expect(dirty.dirtyShare).toBe(0.02);
    expect(dirty.writtenPages).toBeGreaterThanOrEqual(0.02 * 8192 - 1);
    expect(dirty.reportedPages).toBe(dirty.writtenPages);
  });

  it("knows how exact each tracker is: page by page, granule by granule, by what is pinned, and not at all", () => {
    const precision = (device: number, tracker: number) => {
      const { precision: figures } = benchmark.devices[device].trackers[tracker];
      const [{ writtenPages, reportedPages }] = figures;
      expect(writtenPages).toBeGreaterThan(0);
      return reportedPages / writtenPages;
    };
    expect(precision(0, 0)).toBe(1);
    expect(precision(0, 2)).toBe(1);
    expect(precision(0, 4)).toBeGreaterThan(2);
    expect(precision(2, 0)).toBeGreaterThanOrEqual(1);
    expect(benchmark.devices[0].trackers.at(-1)?.precision).toEqual([]);
  });

  it("counts the device's writes with and without tracking", () => {
    for (const { trackers } of benchmark.devices) {
      for (const { tracker, dma } of trackers) {
        if (tracker === "everything") expect(dma).toBeNull();
        else expect(dma).toMatchObject({ pairs: expect.any(Number), ratio: expect.any(Number) });
      }
    }
  });

  it("compares one HWPT for the devices that can share with one for each", () => {
    expect(benchmark.sharing).toMatchObject([
      { devices: ["vf0", "nic0"], domains: { separate: 2, shared: 1 }, granule: 4096 },
    ]);
    expect(benchmark.sharing[0].separateReads).toHaveLength(2);
  });

  it("keeps the same in its file, and prints an estimate of the migration with --json", () => {
    const { link, estimates, ...printed } = benchmark as TrackerBenchmark & { link: object; estimates: object[] };
    expect(readBenchmark(file)).toEqual(printed);
    expect(link).toEqual({ bandwidth: 125e6, downtimeLimitMs: 5000 });
    expect(estimates).toContainEqual({
      device: "vf0",
      tracker: "iommu",
      granule: 4096,
      estimate: expect.objectContaining({ converges: true, rounds: expect.any(Number) }),
    });
  });

  it("prints tables, for the device that was asked for alone", { timeout: PATIENCE_MS }, async () => {
    const { code, stdout } = await run(
      ...["bench", "trackers", "--scenario", scenario, "--device", "gpu0", "--quick", "--no-store"],
    );
    expect(code).toBe(0);
    expect(stdout).toMatch(/^trackers of scenario small, few repetitions/);
    expect(stdout).toMatch(/^gpu0 +pinned +4K .* = \d\.\d\d$/m);
    expect(stdout).toMatch(/^gpu0 +everything +- .* all 8 192$/m);
    expect(stdout).not.toMatch(/^(vf0|nic0) /m);
  });

  it.each([
    ["a device that is not there", ["--scenario", "mixed", "--device", "vf9"], /no device 'vf9'; did you mean 'vf0'/],
    ["a file that can't be written", ["--output", "/proc/no/such/b.json"], /can't write to \/proc\/no/],
    ["a bandwidth that is none", ["--bandwidth", "fast"], /'fast' is not a bandwidth/],
    [
      "a scenario for this machine's devices",
      ["--host", "linux", "--scenario", "mixed"],
      /--scenario describes a machine/,
    ],
    ["a host that is not there", ["--host", "vmware"], /there is no host 'vmware'/],
    ["an option that is not there", ["--fast"], /unknown option '--fast'/],
  ])("refuses in one line %s", async (_, args, expected) => {
    expect(await refused("bench", "trackers", ...args)).toMatch(expected);
  });

  it("refuses in one line a subcommand that is not there", async () => {
    expect(await refused("bench", "trakers")).toMatch(/unknown command 'trakers' \(Did you mean trackers\?\)/);
  });
});

describe("dirtmap recommend", () => {
  it("recommends from the store's newest benchmark, as a table and a file", { timeout: PATIENCE_MS }, async () => {
    const { code, stdout, stderr } = await run("recommend", "--store", store, "--output", recommendation);
    expect(code).toBe(0);
    expect(stderr).toContain(`to follow it: dirtmap migrate --scenario FILE --policy measured:${recommendation}`);
    expect(stdout).toMatch(/^device +model +tracker +granule +domain +downtime +total +DMA lost/m);
    expect(stdout).toMatch(/^gpu0 +vgpu +pinned +4K +- .* none$/m);
    expect(stdout).toMatch(/^nic0: 'iommu' at (4K, since 'iommu' at 2G|2G, since 'iommu' at 4K) /m);
    expect(JSON.parse(readFileSync(recommendation, "utf8"))).toMatchObject({
      schemaVersion: 1,
      kind: "recommendation",
    });
  });

  it("prints all of it as JSON, for another link", async () => {
    const { code, stdout } = await run(
      ...["recommend", "--from", file, "--bandwidth", "10Mbit", "--downtime-limit", "1ms", "--policy", "device-first"],
      "--json",
    );
    expect(code).toBe(0);
    const { schemaVersion, link, order, vmm, devices } = JSON.parse(stdout);
    expect({ schemaVersion, link, order, vmm }).toEqual({
      schemaVersion: 1,
      link: { bandwidth: 1.25e6, downtimeLimitMs: 1 },
      order: "device-first",
      vmm: null,
    });
    expect(devices).toHaveLength(3);
    for (const device of devices) {
      expect(device).toEqual({
        id: expect.any(String),
        model: expect.any(String),
        tracker: expect.stringMatching(/^(iommu|device|pinned)$/),
        granule: expect.any(Number),
        domain: expect.toSatisfy((domain) => [null, "per-device", "shared"].includes(domain)),
        figures: expect.objectContaining({ converges: false }),
        margin:
          device.id === "gpu0" ? null : expect.objectContaining({ by: expect.any(String), text: expect.any(String) }),
        alternatives: expect.any(Array),
        reason: expect.any(String),
      });
    }
  });

  it("says which device of the machine was not measured, and refuses one that is gone", async () => {
    const part = { ...readBenchmark(file), scenario: "nic-pair" };
    const one = path("one.json");
    writeFileSync(one, JSON.stringify({ ...part, devices: part.devices.slice(0, 1) }));
    const { code, stderr } = await run("recommend", "--from", one);
    expect({ code, stderr }).toEqual({
      code: 0,
      stderr: "dirtmap: nic0 was not measured; dirtmap bench trackers --scenario nic-pair measures it\n",
    });
    const gone = path("gone.json");
    writeFileSync(gone, JSON.stringify(part));
    expect(await refused("recommend", "--from", gone)).toMatch(
      /scenario nic-pair no longer has 'gpu0', which was measured; .*--no-check/,
    );
    expect((await run("recommend", "--from", gone, "--no-check")).code).toBe(0);
    const changed = path("changed.json");
    const [vf0] = part.devices;
    writeFileSync(changed, JSON.stringify({ ...part, devices: [{ ...vf0, model: "mlx4" }] }));
    expect(await refused("recommend", "--from", changed)).toMatch(/vf0 is now mlx5, and what .* measured was mlx4; /);
  });

  it.each([
    [
      "a store without a benchmark",
      ["--store", path("empty.db")],
      /there is no benchmark of trackers in .*empty\.db; take/,
    ],
    [
      "a file that is not there",
      ["--from", path("none.json")],
      /can't read the benchmark .*none\.json: .*; take one: /,
    ],
    [
      "a file that is cut short",
      ["--from", path("cut.json")],
      /cut\.json is no benchmark .*cut short; take it again: /,
    ],
    ["a file of a newer version", ["--from", path("new.json")], /new\.json has version 99, and this Dirtmap knows 1/],
    ["QEMU's options for a model", ["--from", file, "--only", "qemu"], /was taken on the host 'emulated'/],
    ["an order that is not there", ["--policy", "best-first"], /there is no policy 'best-first'/],
  ])("refuses in one line %s", async (_, args, expected) => {
    const text = readFileSync(file, "utf8");
    writeFileSync(path("cut.json"), text.slice(0, 1000));
    writeFileSync(path("new.json"), text.replace('"schemaVersion":1', '"schemaVersion":99'));
    expect(await refused("recommend", ...args)).toMatch(expected);
  });
});

describe("--policy measured:FILE", () => {
  const measured = ["--policy", `measured:${recommendation}`];

  it("is followed by a plan, which quotes the measurement", async () => {
    const { code, stdout } = await run("plan", "--scenario", scenario, ...measured, "--json");
    expect(code).toBe(0);
    const { devices, policy } = JSON.parse(stdout);
    expect(policy.measured).toMatchObject({ from: recommendation, unmeasured: "refuse" });
    const recommended = JSON.parse(readFileSync(recommendation, "utf8")).devices;
    for (const [index, { device, tracker, granule, reason }] of devices.entries()) {
      const { id, reason: why, ...figures } = recommended[index];
      expect({ device, tracker, granule, reason }).toEqual({
        device: id,
        tracker: figures.tracker,
        granule: figures.granule,
        reason: `measured: ${why}`,
      });
    }
  });

  it("is followed by a migration, which loses nothing", { timeout: PATIENCE_MS }, async () => {
    const { code, stdout } = await run(
      ...["migrate", "--scenario", scenario, ...measured, "--no-store", "--journal", path("journal"), "--json"],
    );
    expect(code).toBe(0);
    const { result, verified, policy, devices } = JSON.parse(stdout);
    expect({ result, verified, policy }).toEqual({ result: "completed", verified: true, policy: "measured" });
    const recommended: { id: string; tracker: string }[] = JSON.parse(readFileSync(recommendation, "utf8")).devices;
    for (const { id, tracker } of recommended) expect(devices).toContainEqual(expect.objectContaining({ id, tracker }));
  });

  it("can be a benchmark, and stand in a scenario, whose folder its path is relative to", async () => {
    const own = path("measured.yaml");
    writeFileSync(own, `machine:${MACHINE}migration: { policy: "measured:bench.json", unmeasured: device-first }\n`);
    const { code, stdout } = await run("plan", "--scenario", own);
    expect(code).toBe(0);
    expect(stdout).toMatch(new RegExp(`^policy measured by ${file}, else device-first, `));
    writeFileSync(own, `machine:${MACHINE}migration: { policy: "measured:" }\n`);
    expect(await refused("plan", "--scenario", own)).toMatch(
      /migration\.policy: write iommu-first, device-first, or measured:/,
    );
  });

  it("refuses a device without a benchmark, unless it may follow an order", async () => {
    expect(await refused("plan", "--scenario", "mixed", ...measured)).toMatch(
      /recommendation\.json has no benchmark of disk0; measure it with `dirtmap bench trackers --device disk0` and the same --host, or name its tracker/,
    );
    const { code, stdout } = await run("plan", "--scenario", "mixed", ...measured, "--unmeasured", "device-first");
    expect(code).toBe(0);
    expect(stdout).toMatch(/^disk0: device-first: /m);
    const named = await run("plan", "--scenario", "mixed", ...measured, "--tracker", "disk0=iommu");
    expect(named.code).toBe(0);
  });

  it.each([
    ["no file", ["--policy", "measured:"], /'measured:' names no file; write measured:FILE/],
    [
      "a file that is not there",
      ["--policy", `measured:${path("none.json")}`],
      /can't read the benchmark .*none\.json/,
    ],
    ["another order", ["--policy", "measure-first"], /there is no policy 'measure-first'; .*measured:FILE/],
    ["another fallback", [...measured, "--unmeasured", "guess"], /there is no mode 'guess'/],
  ])("refuses in one line %s", async (_, args, expected) => {
    expect(await refused("plan", ...args)).toMatch(expected);
  });

  it("refuses a recommendation that is damaged, or newer", async () => {
    const text = readFileSync(recommendation, "utf8");
    const broken = path("broken.json");
    writeFileSync(broken, text.replace('"tracker":"pinned"', '"tracker":"guessed"'));
    expect(await refused("plan", "--policy", `measured:${broken}`)).toMatch(
      /broken\.json is a damaged recommendation: devices\.2\.tracker: /,
    );
    writeFileSync(broken, text.replace('"schemaVersion":1', '"schemaVersion":2'));
    expect(await refused("plan", "--policy", `measured:${broken}`)).toMatch(
      /broken\.json has version 2, and this Dirtmap knows 1/,
    );
  });
});

describe("devices behind vfio-user sockets", () => {
  const servers: DeviceServer[] = [];
  afterAll(async () => {
    for (const server of servers) await server.close();
  });

  it("are measured at the rate that they are served with", { timeout: PATIENCE_MS }, async () => {
    for (const model of ["mlx5", "nic"]) {
      servers.push(await serveDevice({ model, path: path(model), options: { rate: 10 } }));
    }
    const site = await servedSite([path("mlx5"), path("nic")], { memoryBytes: 32 * MiB });
    const { host, devices, sharing } = await benchTrackers({ site, quick: true });
    expect(host).toBe("vfio-user");
    expect(devices.map(({ id }) => id)).toEqual(["mlx5", "nic"]);
    const [mlx5, nic] = devices;
    const [log, , , everything] = mlx5.trackers;
    expect(log).toMatchObject({ tracker: "device", granule: 4096, problem: null });
    const [{ writtenPages, reportedPages }] = log.precision;
    expect(writtenPages).toBeGreaterThan(0);
    expect(reportedPages).toBe(writtenPages);
    expect(log.dma?.pairs).toBeGreaterThan(0);
    expect(everything.tracker).toBe("everything");
    expect(nic.trackers.map(({ tracker }) => tracker)).toEqual(["everything"]);
    expect(sharing).toEqual([]);
  });
});
