import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { EXIT_CODES } from "../../src/cli/exit-codes.js";
import { openStore } from "../../src/evidence/store/store.js";
import { SOFTWARE } from "../../src/migration/software.js";
import { Child } from "../support/child.js";
import { PROGRAM } from "../support/program.js";

const SCENARIO = `machine:
  memory: 16M
  vcpus: { count: 1, rate: 1, footprint: 128K }
  iommus:
    - { id: iommu0, format: amd-v1 }
  devices:
    - { id: vf0, model: mlx5, iommu: iommu0, load: { rate: 1, footprint: 256K } }
migration:
  trackers: { vf0: device }
  downtimeLimit: 2s
  runAfter: 0ms
`;

/** A migration takes a second or two on an idle computer. */
const PATIENCE_MS = 120_000;

const folder = mkdtempSync(join(tmpdir(), "dirtmap-predict-"));
const scenario = join(folder, "small.yaml");
const trace = join(folder, "small.dtrc");
const store = join(folder, "evidence.db");

beforeAll(() => writeFileSync(scenario, SCENARIO));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("from the command line", () => {
  it("a machine is recorded, and predicted from its trace", async () => {
    const watched = ["--interval", "50ms", "--duration", "400ms", "--output", trace];
    await using recorder = new Child(PROGRAM, "record", "--scenario", scenario, ...watched, "--json");
    expect(await recorder.said("intervals")).toMatchObject({ output: trace, intervals: 8 });
    expect(await recorder.ended).toBe(0);

    await using predictor = new Child(
      PROGRAM,
      "predict",
      "--trace",
      trace,
      "--bandwidth",
      "1Gbit",
      "--no-store",
      "--json",
    );
    const prediction = await predictor.said("converges");
    expect(prediction).toMatchObject({ schemaVersion: 1, converges: true, intervals: 8, inTheWay: [], why: null });
    expect(prediction.owners).toMatchObject([
      { owner: "cpu", suspended: null },
      { owner: "vf0", tracker: "device", devices: ["vf0"], suspended: { converges: true } },
    ]);
  });

  it("a recording that is ended with Ctrl-C is whole", async () => {
    const path = join(folder, "ended.dtrc");
    const watched = ["--interval", "50ms", "--duration", "10m", "--output", path];
    await using recorder = new Child(PROGRAM, "record", "--scenario", scenario, ...watched, "--json");
    for (const until = Date.now() + 20_000; Date.now() < until; ) {
      try {
        if (readFileSync(path).length > 0) break;
      } catch {
        // Not begun yet.
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    recorder.kill("SIGINT");
    expect(await recorder.said("intervals")).toMatchObject({ output: path });
    expect(await recorder.ended).toBe(0);
    await using reader = new Child(PROGRAM, "plan", "--scenario", path, "--json");
    expect((await reader.said("devices")).devices).toMatchObject([{ device: "vcpus" }, { device: "vf0" }]);
  });

  it("a damaged trace is refused in one line, and so are options that don't go with one", async () => {
    const damaged = join(folder, "damaged.dtrc");
    const bytes = readFileSync(trace);
    bytes[bytes.length - 1] ^= 1;
    writeFileSync(damaged, bytes);
    await using one = new Child(PROGRAM, "predict", "--trace", damaged);
    expect(await one.ended).toBe(2);
    expect(one.errors).toMatch(
      /^dirtmap: .*damaged\.dtrc: a checksum is wrong after \d+ intervals; record it again.*\n$/,
    );
    await using other = new Child(PROGRAM, "predict", "--trace", trace, "--scenario", scenario);
    expect(await other.ended).toBe(2);
    expect(other.errors).toMatch(/^dirtmap: --scenario can't be given here: .*\n$/);
  });

  it("a migration that does not converge ends with an exit code of its own", async () => {
    const hopeless = ["--tracker", "vf0=everything", "--downtime-limit", "1ms", "--duration", "200ms", "--no-store"];
    await using predictor = new Child(PROGRAM, "predict", "--scenario", scenario, ...hopeless, "--json");
    expect(await predictor.said("converges")).toMatchObject({ converges: false });
    expect(await predictor.ended).toBe(EXIT_CODES.notConverging.code);
  });

  it("a scenario is read once, so that it can come through a pipe", { timeout: PATIENCE_MS }, async () => {
    const args = ["migrate", "--scenario", "/dev/stdin", "--predict", "200ms", "--quiet", "--json", "--no-store"];
    const command = `cat "$1" | "$2" "$3" ${args.join(" ")} --journal "$4"`;
    const { stdout } = await promisify(execFile)("/bin/sh", [
      ...["-c", command, "sh", scenario, process.execPath, PROGRAM, join(folder, "journal-of-pipe")],
    ]);
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({ result: "completed", verified: true });
    expect(report.predicted).toMatchObject({ converges: true });
  });

  it("a migration that was predicted says so in its report, beside what happened", async () => {
    const keeping = ["--store", store, "--journal", join(folder, "journal")];
    const child = new Child(
      PROGRAM,
      "migrate",
      "--scenario",
      scenario,
      "--predict",
      "200ms",
      "--quiet",
      "--json",
      ...keeping,
    );
    await using _child = child;
    const report = await child.said("result");
    expect(report).toMatchObject({ result: "completed", verified: true });
    expect(report.predicted).toMatchObject({ converges: true, inTheWay: [] });
    expect((report.predicted as { rounds: number }).rounds).toBeGreaterThanOrEqual(2);
    const conditions = {
      software: SOFTWARE,
      hosts: ["emulated"],
      memoryBytes: 2 ** 24,
      policy: { order: "iommu-first", trackers: { vf0: "device" } },
      transport: { scheme: "tcp", local: true },
      bandwidth: null,
      downtimeLimitMs: 2000,
      runAfterMs: 0,
    };
    expect(report.conditions).toMatchObject(conditions);
    using kept = openStore(store);
    expect(kept.run(1).conditions).toEqual(report.conditions);
  });
});
