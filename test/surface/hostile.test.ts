import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { undecidedLines } from "../../src/cli/text/undecided-text.js";
import { DirtmapError } from "../../src/errors.js";
import { readDesignsResult } from "../../src/evidence/designs/result.js";
import { fakeBenchmark, fakeDevice } from "../../src/evidence/recommend/fake-benchmark.test.helper.js";
import { openStore } from "../../src/evidence/store/store.js";
import { TraceWriter } from "../../src/evidence/trace/file.js";
import { type TraceHeader, traceHeaderSchema } from "../../src/evidence/trace/format.js";
import { checkBenchmark } from "../../src/evidence/trackers/file.js";
import { receive } from "../../src/migration/destination.js";
import { Journal, journalPath } from "../../src/migration/journal.js";
import { acceptedSource } from "../../src/migration/network.js";
import { connectControl } from "../../src/migration/transport/connect.js";
import { listen } from "../../src/migration/transport/listener.js";
import { feedEventSchema, feedHeaderSchema } from "../../src/observe/feed/schema.js";
import { LabelBound } from "../../src/observe/metrics/label-bound.js";
import { safeJson } from "../../src/safe-text.js";
import { startServer } from "../../src/vfio-user/server/server.js";
import { Child } from "../support/child.js";
import { dirtmap, PROGRAM } from "../support/program.js";
import { expectSafe, HOSTILE, HOSTILE_NAME, hostile } from "./hostile-text.js";

/*
 * Whatever comes from elsewhere, and however it is shown: a terminal, a log or a page gets no control character, nothing
 * that turns text round or hides it, and no line that Dirtmap did not begin.
 */

const DESIGNS = fileURLToPath(new URL("../../../docs/figures/designs.json", import.meta.url));

const folder = mkdtempSync(join(tmpdir(), "dirtmap-hostile-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const at = (name: string) => join(folder, name);

/** Runs a command; returns what it printed. */
async function shown(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<string> {
  const { stdout, stderr } = await dirtmap(args, { env });
  const what = JSON.stringify(args);
  expectSafe(stdout, `standard output of ${what}`);
  expectSafe(stderr, `standard error of ${what}`);
  expect(stdout + stderr, what).not.toBe("");
  return stdout + stderr;
}

/** A command that is refused: with --json it says why on both streams. */
async function refused(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<void> {
  expect(await shown([...args, "--json"], env)).toContain("dirtmap: ");
}

function accepts(check: (value: unknown) => unknown): (value: unknown) => boolean {
  return (value) => {
    try {
      check(value);
      return true;
    } catch {
      return false;
    }
  };
}

function write(name: string, value: unknown): string {
  writeFileSync(at(name), typeof value === "string" ? value : safeJson(value));
  return at(name);
}

const TINY = `
machine:
  memory: 16M
  vcpus: { count: 1, rate: 0.5, footprint: 64K }
  iommus: [{ id: iommu0, format: amd-v1 }]
  devices: [{ id: nic0, model: nic, iommu: iommu0, load: { rate: 0.5, footprint: 128K } }]
migration: { downtimeLimit: 30s }
`;

describe("what the command line says is safe where it is shown:", () => {
  it.concurrent.each([
    ["an option", ["migrate", `--${HOSTILE_NAME}`]],
    ["a command", [HOSTILE_NAME]],
    ["a scenario", ["plan", "--scenario", HOSTILE_NAME]],
    ["a scenario's file", ["plan", "--scenario", `/${HOSTILE_NAME}/x.yaml`]],
    ["a tracker", ["plan", "--tracker", `nic0=${HOSTILE_NAME}`]],
    ["a device", ["plan", "--tracker", `${HOSTILE_NAME}=iommu`]],
    ["a policy's file", ["plan", "--policy", `measured:${HOSTILE_NAME}`]],
    ["a size", ["plan", "--memory", HOSTILE_NAME]],
    ["a run", ["top", "--run", HOSTILE_NAME]],
    ["an address", ["migrate", "--to", `tcp://${HOSTILE_NAME}:1`]],
    ["a trace", ["predict", "--trace", HOSTILE_NAME]],
    ["a store", ["recommend", "--store", `/proc/${HOSTILE_NAME}`]],
    ["a report's file", ["bench", "designs", "--report", HOSTILE_NAME]],
    ["a migration", ["resume", HOSTILE_NAME]],
    ["a socket", ["probe", "--host", `vfio-user:${HOSTILE_NAME}`]],
    ["a model", ["device", HOSTILE_NAME, "--socket", "x"]],
    ["a socket that is served", ["device", "mlx5", "--socket", `/proc/${HOSTILE_NAME}`]],
    ["a folder of certificates", ["certs", `/proc/${HOSTILE_NAME}`]],
  ])("%s", async (_, args) => {
    await refused(args);
  });

  it("the environment, too", async () => {
    const env = { XDG_DATA_HOME: `/proc/${HOSTILE_NAME}`, XDG_RUNTIME_DIR: `/proc/${HOSTILE_NAME}` };
    await refused(["top"], env);
    await refused(["recommend"], env);
  });
});

describe("what a file says is safe where it is shown:", () => {
  const quoted = JSON.stringify(HOSTILE);

  it.concurrent.each([
    ["a field's name", `${TINY}${quoted}: 1`],
    ["a value", TINY.replace("nic,", `${quoted},`)],
    ["a device's name", TINY.replace("nic0", quoted)],
    ["the device of a tracker", TINY.replace("downtimeLimit", `trackers: { ${quoted}: iommu }, downtimeLimit`)],
    ["a path", TINY.replace("downtimeLimit", `policy: ${JSON.stringify(`measured:${HOSTILE}`)}, downtimeLimit`)],
    ["a quantity", TINY.replace("16M", quoted)],
    ["an anchor", TINY.replace("16M", `*${HOSTILE_NAME.replaceAll(/\p{Cc}/gu, "")}`)],
    ["raw control characters", `${TINY}${HOSTILE}`],
  ])("a scenario: %s", async (what, text) => {
    await refused(["plan", "--scenario", write(`${what.replaceAll(/\W/g, "-")}.yaml`, text)]);
  });

  it("a benchmark of trackers, and the recommendation, report and policy that are made of it", async () => {
    const benchmark = fakeBenchmark(
      [
        fakeDevice("a", [{ tracker: "iommu" }, { tracker: "device", problem: "p" }]),
        fakeDevice("b", [{ tracker: "iommu", readMs: [9] }, { tracker: "device" }]),
      ],
      { leftOut: [{ id: "c", why: "w" }] },
    );
    const bad = hostile(
      benchmark,
      accepts((value) => checkBenchmark(value, "it")),
    );
    const file = write("bench.json", bad);
    expect(await shown(["recommend", "--from", file, "--output", at("recommendation.json")])).toContain("\\u{1b}");
    await shown(["plan", "--policy", `measured:${file}`, "--unmeasured", "iommu-first"]);
    await shown(["plan", "--policy", `measured:${at("recommendation.json")}`]);
    await shown(["recommend", "--from", write("linux.json", { ...bad, host: "linux" }), "--only", "qemu"]);
    await shown(["recommend", "--from", write("other.json", { ...bad, kind: HOSTILE })]);
  });

  it("a comparison of designs, its report and its figures", async () => {
    const kept = readDesignsResult(DESIGNS);
    const small = { ...kept, reads: kept.reads.slice(0, 40), crossings: [], warnings: ["w"] };
    const check = accepts((value) => readDesignsResult(write("check.json", value)));
    const file = write("designs.json", hostile(small, check));
    const made = ["--report", at("report.md"), "--figures", at("figures")];
    expect(await shown(["bench", "designs", "--from", file, "--no-store", ...made])).toContain("\\u{1b}");
    await shown(["bench", "designs", "--from", file, "--no-store", "--report", at("report.html")]);
    for (const name of [...readdirSync(folder, { recursive: true })].map(String)) {
      if (!/\.(md|html|svg)$/.test(name)) continue;
      const text = readFileSync(at(name), "utf8");
      expectSafe(text, name);
      expect(text, name).not.toContain("<b>");
    }
  });

  it("a trace, where it is predicted from, planned for and replayed", async () => {
    const header: TraceHeader = {
      memoryBytes: 16 * 2 ** 20,
      platform: "pc",
      intervalMs: 10,
      startedAt: "2026-01-02T03:04:05.000Z",
      host: "h",
      scenario: "s",
      zeroShare: 0.5,
      deviceStateBytes: 1000,
      owners: [{ owner: "a", tracker: "device", granule: 4096, devices: [{ id: "a", model: "m" }] }],
      unread: ["u"],
    };
    const bad = hostile(header, (value) => traceHeaderSchema.safeParse(value).success);
    {
      await using writer = await TraceWriter.create(at("bad.dtrc"), bad);
      for (let i = 0; i < 3; i++) {
        await writer.add({ elapsedMs: 10, owners: new Map([[bad.owners[0].owner, Uint32Array.of(i, 1)]]) });
      }
      await writer.end();
    }
    expect(await shown(["predict", "--trace", at("bad.dtrc")])).toContain("\\u{1b}");
    await shown(["plan", "--scenario", at("bad.dtrc")]);
    await shown(["replay", at("bad.dtrc"), "--once", "--interval", "50ms"]);
  });

  it("a migration's report, and a store", async () => {
    const rounds = ["pre-copy", "stop-copy"].map((phase, round) => ({
      ...{ round, phase, pages: 9, zeroPages: 0, bytes: 9, ms: 1, remaining: 0 },
      byDevice: { [HOSTILE]: { reported: 1, exclusive: 1, readMs: 1 } },
    }));
    const report = {
      schemaVersion: 1,
      result: "completed",
      downtimeMs: 1,
      phases: [{ phase: HOSTILE, ms: 1 }],
      rounds,
    };
    const trace = fileURLToPath(new URL("../../../test/fixtures/trace-v1.dtrc", import.meta.url));
    await shown(["predict", "--trace", trace, "--run", write("report.json", report)]);
    await shown(["predict", "--trace", trace, "--run", write("no-report.json", { ...report, result: HOSTILE })]);
    const bad = { kind: "trackers", host: HOSTILE, scenario: HOSTILE, takenAt: HOSTILE };
    {
      using store = openStore(at("store.db"));
      const benchmark = fakeBenchmark([fakeDevice("a", [{ tracker: "iommu" }])], {
        host: HOSTILE,
        scenario: HOSTILE.slice(0, 200),
      });
      store.saveBenchmark({ ...bad, machine: benchmark.machine, result: benchmark });
    }
    await shown(["recommend", "--store", at("store.db")]);
    await shown(["predict", "--trace", trace, "--store", write("no-store.db", HOSTILE)]);
  });
});

it("what becomes a label of a metric is safe and bounded", () => {
  const label = new LabelBound(1).label(`${HOSTILE}${"x".repeat(1000)}`);
  expectSafe(label, "a label");
  expect(label.length).toBeLessThan(1000);
});

describe("what another process says is safe where it is shown:", () => {
  it("a live feed", async () => {
    const runtime = at("runtime");
    mkdirSync(join(runtime, "dirtmap"), { recursive: true, mode: 0o700 });
    const header = hostile(
      {
        ...{ schemaVersion: 1, run: "0123abcd", kind: "migration", scenario: "s", host: "h" },
        startedAt: "2026-01-02T03:04:05.000Z",
        devices: [{ id: "a", model: "m", tracker: "device", granule: 4096, domain: "d" }],
        memoryBytes: 2 ** 28,
      },
      (value) => feedHeaderSchema.safeParse(value).success,
    );
    const read = { reported: 3, exclusive: 2, readMs: 0.5, heat: [1, 2, 3, 4] };
    const events = [
      { type: "phase", phase: "pre-copy", atMs: 1, text: HOSTILE },
      { type: "read", atMs: 2, round: 0, elapsedMs: 10, owners: { [HOSTILE]: read, [`domain:${HOSTILE}`]: read } },
    ];
    for (const event of events) feedEventSchema.parse(event);
    const server = createServer((socket) => {
      socket.on("error", () => {}).end([header, ...events].map((line) => `${JSON.stringify(line)}\n`).join(""));
    });
    await new Promise<void>((resolve) => server.listen(join(runtime, "dirtmap", "0123abcd.feed"), resolve));
    try {
      const env = { XDG_RUNTIME_DIR: runtime };
      expect(await shown(["top", "--run", "0123abcd"], env)).toContain("\\u{1b}");
      expect(await shown(["top", "--run", "0123abcd", "--once", "--interval", "5ms"], env)).toContain("\\u{1b}");
    } finally {
      server.close();
    }
  });

  it("a destination that refuses, at the source", async () => {
    const refuse = () => Promise.reject(new DirtmapError(HOSTILE, { code: "INCOMPATIBLE", remedy: HOSTILE }));
    const endpoint = { scheme: "tcp", host: "127.0.0.1", port: 0 } as const;
    await using listener = await listen({ endpoint, credentials: undefined, onRefused: () => {} });
    const abort = new AbortController();
    const taking = (async () => {
      for (;;) {
        const control = await listener.acceptControl(abort.signal);
        await receive({
          source: acceptedSource(listener, control, () => {}),
          createMachine: refuse,
          journalDirectory: folder,
        });
      }
    })().catch(() => {});
    const to = `tcp://127.0.0.1:${listener.endpoint.port}`;
    const asked = ["migrate", "--scenario", write("tiny.yaml", TINY), "--to", to, "--no-store", "--journal", folder];
    expect(await shown(asked)).toContain("\\u{1b}");
    abort.abort();
    await taking;
  });

  it("a source that gives up, at the destination", async () => {
    await using child = new Child(PROGRAM, "receive", "--listen", "tcp://127.0.0.1:0", "--once", "--journal", folder);
    const [, port] = await child.complained(/listening on tcp:\/\/127\.0\.0\.1:(\d+)/);
    await using control = await connectControl({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: Number(port) } });
    await control.send({ type: "ABORT", code: "X", message: HOSTILE, remedy: HOSTILE });
    // One that leaves before it has said which machine it brings is no migration: `--once` waits on.
    await child.complained(/FORGED/);
    expectSafe(child.errors, "the destination's standard error");
  });

  it("a journal, of what waits for a decision", async () => {
    const journals = at("journals");
    Journal.source(journals, "waits", HOSTILE).record("given-up");
    expect(await shown(["list", "--journal", journals])).toContain("\\u{1b}");
    await shown(["list", "--journal", journals, "--json"]);
    await shown(["resume", "--journal", journals]);
    writeFileSync(journalPath(journals, "other", "source"), safeJson({ schemaVersion: 99, software: HOSTILE }));
    expect(await shown(["list", "--all", "--journal", journals])).toContain("FORGED");
  });

  it("a handover that is not confirmed", () => {
    const undecided = {
      migration: "m",
      destination: HOSTILE,
      why: HOSTILE,
      resume: HOSTILE,
      abort: HOSTILE,
      until: null,
      outlives: false,
    };
    const lines = undecidedLines(undecided);
    for (const line of lines) expect(line).not.toContain("\n");
    expectSafe(lines.join("\n"), "what the source says");
  });

  it("a served device that has failed", async () => {
    const path = at("device");
    await using _server = await startServer(
      new URL("./hostile-device-thread.js", import.meta.url),
      { model: "sample", options: {}, id: HOSTILE, dma: "messages", busy: false },
      { path, log: () => {} },
    );
    expect(await shown(["probe", "--host", `vfio-user:${path}`])).toContain("\\u{1b}");
    await shown(["plan", "--host", `vfio-user:${path}`]);
    expect(await shown(["device", "status", path])).toContain("\\u{1b}");
    await shown(["device", "status", path, "--json"]);
    await shown(["device", "resume", path]);
    await shown(["top", "--host", `vfio-user:${path}`, "--once", "--interval", "5ms"]);
  });
});
