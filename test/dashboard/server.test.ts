import { once } from "node:events";
import { request } from "node:http";
import { connect, createServer } from "node:net";
import { setTimeout } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { evidenceIn } from "../../src/cli/kept/dashboard-evidence.js";
import { type NewRun, openStore } from "../../src/evidence/store/store.js";
import { publish } from "../../src/migration/events.js";
import { CONDITIONS } from "../../src/observe/conditions.test.helper.js";
import { parseMetrics } from "../../src/observe/metrics/parse.test.helper.js";
import { API_DOCUMENTS, apiSchemas, errorSchema } from "../../src/observe/server/api-schema.js";
import { OPERATIONS } from "../../src/observe/server/openapi.js";
import { BENCHMARK, header, OWNERS, pastRun, read, story } from "./evidence.js";
import { Rig } from "./rig.js";

const TOKEN = "0123456789abcdef0123456789abcdef";

const { schemas: documents } = evidenceIn(() => openStore("/nowhere"));
const schemas = apiSchemas(documents);

let rig: Rig;
beforeAll(async () => {
  rig = await Rig.start({ heartbeatMs: 100 });
  rig.keep(pastRun("past0001"), pastRun("past0002"), pastRun("past0003", { result: "cancelled", downtimeMs: null }));
  rig.keepBenchmark(BENCHMARK);
});
afterAll(() => rig[Symbol.asyncDispose]());

const get = (path: string, headers: Record<string, string> = {}) =>
  fetch(new URL(path, rig.url), { headers, redirect: "manual" });

/** Waits for what comes about by itself. */
async function until<T>(what: () => Promise<T | undefined | false> | T | undefined | false): Promise<T> {
  for (let i = 0; i < 200; i++) {
    const found = await what();
    if (found !== undefined && found !== false) return found;
    await setTimeout(50);
  }
  throw new Error("it never came about");
}

/** Reads server-sent events until one satisfies. */
async function eventsUntil(
  path: string,
  enough: (events: { event: string; data: unknown }[]) => boolean,
  signal?: AbortSignal,
) {
  const stop = new AbortController();
  const response = await fetch(new URL(path, rig.url), {
    signal: AbortSignal.any([stop.signal, ...(signal ? [signal] : [])]),
  });
  expect(response.headers.get("content-type")).toBe("text/event-stream");
  const events: { event: string; data: unknown }[] = [];
  let comments = 0;
  let rest = "";
  for await (const chunk of response.body ?? []) {
    rest += Buffer.from(chunk).toString();
    const blocks = rest.split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      const [, event, data] = /^event: (.*)\ndata: (.*)$/.exec(block) ?? [];
      if (event !== undefined) events.push({ event, data: JSON.parse(data) });
      else if (block.startsWith(":")) comments++;
    }
    if (enough(events) && comments > 0) break;
  }
  stop.abort();
  return events;
}

describe("the API", () => {
  it("describes itself, and each path that it describes answers as described", async () => {
    const document = (await (await get("/api")).json()) as ApiDocument;
    expect(document.openapi).toBe("3.1.0");
    expect(Object.keys(document.paths)).toEqual(OPERATIONS.map(({ path }) => path));
    await using _feed = await rig.begin(header("api00001", 4), story(3));
    await until(async () => (await get("/api/live/api00001")).ok);
    for (const { path, answer } of OPERATIONS) {
      if (path === "/api/events") continue;
      const response = await get(path.replace("{run}", "api00001").replace("{id}", "1"));
      expect([path, response.status]).toEqual([path, 200]);
      if (typeof answer !== "string") {
        expect(response.headers.get("content-type")).toContain(answer.contentType);
        continue;
      }
      const { error } = schemas[answer].safeParse(await response.json());
      expect([path, error]).toEqual([path, undefined]);
    }
  });

  it("names every field of every document, and leaves none open", async () => {
    const { components } = (await (await get("/api")).json()) as ApiDocument;
    expect(Object.keys(components.schemas).sort()).toEqual(
      [...Object.keys(API_DOCUMENTS), ...Object.keys(schemas)].sort(),
    );
    expect(openParts(components.schemas)).toEqual([]);
    const text = JSON.stringify(components.schemas);
    for (const field of ["verified", "byDevice", "suspendedMs", "heat", "precision", "crossings", "roundAtLeastMs"]) {
      expect(text).toContain(`"${field}":{`);
    }
    for (const [, name] of text.matchAll(/"\$ref":"#\/components\/schemas\/(\w+)"/g)) {
      expect(components.schemas).toHaveProperty(name);
    }
  });

  it("gives the whole of what is kept: report, reads, benchmark and recommendation", async () => {
    const { report, reads } = pastRun("past0001");
    expect(await (await get("/api/runs/1")).json()).toMatchObject({
      run: { header: header("past0001", 4), report, reads },
    });
    expect(await (await get("/api/benchmarks/1")).json()).toMatchObject({ benchmark: { result: BENCHMARK.result } });
    expect(await (await get("/api/recommendation")).json()).toMatchObject({
      recommendation: { kind: "recommendation", devices: [{ id: "dev0", tracker: "device", margin: { over: {} } }] },
    });
  });

  it("gives what an older Dirtmap kept as far as it goes, and null for what has another form", async () => {
    await using old = await Rig.start();
    const { memory, predicted, ...less } = pastRun("past0001").report;
    const alien = {
      header: { run: 5 },
      report: { totalMs: 1, downtimeMs: null, rounds: "many" },
      reads: [{ heat: "all" }],
      conditions: {},
    };
    const anothers = alien as unknown as Partial<NewRun>;
    const [older, other] = old.keep(
      { ...pastRun("past0001"), report: less as never },
      { ...pastRun("past0002"), ...anothers },
    );
    const benchmark = old.keepBenchmark({ ...BENCHMARK, machine: {} as never, result: { kind: "trackers" } as never });
    const ask = async (path: string) => (await fetch(new URL(path, old.url))).json();
    expect(await ask(`/api/runs/${older}`)).toMatchObject({ run: { report: less } });
    expect(await ask(`/api/runs/${other}`)).toMatchObject({
      run: { name: "past0002", header: null, report: null, reads: [], conditions: null },
    });
    expect(await ask(`/api/benchmarks/${benchmark}`)).toMatchObject({ benchmark: { machine: null, result: null } });
  });

  it("gives runs page by page", async () => {
    expect(await (await get("/api/runs?limit=1")).json()).toMatchObject({ runs: [{ id: 3 }] });
    expect(await (await get("/api/runs?before=3")).json()).toMatchObject({ runs: [{ id: 2 }, { id: 1 }] });
    expect(await (await get("/api/runs/1")).json()).toMatchObject({
      run: { name: "past0001", report: { verified: true }, conditions: CONDITIONS },
    });
    expect(await (await get("/api/benchmarks?kind=designs")).json()).toMatchObject({ benchmarks: [] });
  });

  it.each([
    ["/api/runs/99", 404, /no run 99; it has 3, 2, 1;/],
    ["/api/runs/x", 400, /'x' is no id/],
    ["/api/runs?limit=0", 400, /limit/],
    ["/api/runs?sort=up", 400, /sort/],
    ["/api/benchmarks/7", 404, /no benchmark 7/],
    ["/api/live/none", 404, /no run 'none' in progress/],
    ["/api/nothing", 404, /there is no \/api\/nothing/],
    ["/../package.json", 404, /there is no/],
    ["/%2e%2e/package.json", 404, /there is no/],
  ])("says in one line what is wrong with %s", async (path, status, message) => {
    const response = await get(path);
    expect(response.status).toBe(status);
    const { error } = errorSchema.parse(await response.json());
    expect(`${error.message}; ${error.remedy}`).toMatch(message);
  });

  it("sends nothing without the headers that keep other pages out", async () => {
    for (const path of ["/", "/main.js", "/api/runs", "/api/nothing", "/metrics"]) {
      const { headers } = await get(path);
      expect(headers.get("content-security-policy")).toMatch(
        /^default-src 'none'; script-src 'self';.*frame-ancestors 'none'$/,
      );
      expect(headers.get("x-content-type-options")).toBe("nosniff");
      expect(headers.get("access-control-allow-origin")).toBeNull();
    }
  });

  it("answers to this machine's names only", async () => {
    const { status, body } = await raw(new URL(rig.url), "/api/runs", { host: "evil.example" });
    expect(status).toBe(421);
    expect(body).toMatch(/WRONG_HOST/);
  });
});

describe("live events", () => {
  it("reach all pages: the header, what was told before, what happens, and where the run is kept", async () => {
    const feed = await rig.begin(header("live0001", 4), story(2));
    const isOver = (events: { event: string }[]) => events.some(({ event }) => event === "end");
    const pages = [1, 2, 3].map(() => eventsUntil("/api/events?run=live0001", isOver));
    await until(async () => (await get("/api/live/live0001")).ok);
    await setTimeout(200);
    publish(read(9, OWNERS));
    const [kept] = rig.keep(pastRun("live0001"));
    await setTimeout(100);
    await feed[Symbol.asyncDispose]();
    for (const events of await Promise.all(pages)) {
      expect(events[0]).toMatchObject({ event: "begin", data: { run: "live0001", schemaVersion: 1 } });
      const types = events
        .filter(({ event }) => event === "event")
        .map(({ data }) => (data as { event: { type: string } }).event.type);
      expect(types).toEqual(expect.arrayContaining(["phase", "round", "read", "progress"]));
      expect(types.filter((type) => type === "read")).toHaveLength(3);
      expect(events.at(-1)).toEqual({ event: "end", data: { run: "live0001", stored: kept } });
    }
  });

  it("are counted in the metrics, which a parser of Prometheus' format reads", async () => {
    const families = parseMetrics(await (await get("/metrics")).text());
    const labels = families
      .find(({ name }) => name === "dirtmap_dirty_pages_total")
      ?.metrics.map((sample) => sample.labels);
    expect(labels).toContainEqual({ scenario: "mixed", device: "dev0", tracker: "device" });
    expect(labels).toContainEqual({ scenario: "mixed", device: "cpu", tracker: "cpu" });
  });

  it("are left out for a page that is too slow, which is told how many, and others get them all", async () => {
    await using _feed = await rig.begin(header("slow0001", 4), []);
    await until(async () => (await get("/api/live/slow0001")).ok);
    const { hostname, port } = new URL(rig.url);
    const slow = connect(Number(port), hostname);
    slow.write(`GET /api/events?run=slow0001 HTTP/1.1\r\nHost: localhost\r\n\r\n`);
    await once(slow, "readable");
    // It doesn't read on: its part of 20 MB stays with the server, which keeps 8, and with the kernel.
    const sent = 1250;
    const text16K = "x".repeat(16_000);
    let taken = 0;
    const fast = eventsUntil("/api/events?run=slow0001", (events) => {
      taken = events.length - 1;
      return taken === sent;
    });
    for (let i = 1; i <= sent; i++) {
      publish({ type: "phase", phase: "pre-copy", atMs: i, text: text16K });
      // At the pace of the page that reads: the feed's own buffer is not what is tested.
      if (i % 50 === 0) await until(() => taken >= i);
    }
    const atFast = await fast;
    expect(atFast.filter(({ data }) => (data as { event?: { type?: string } }).event?.type === "lost")).toEqual([]);
    let text = "";
    slow.setEncoding("utf8").on("data", (data) => {
      text += data;
    });
    await until(() => {
      publish({ type: "phase", phase: "pre-copy", atMs: 1 });
      return text.includes('"type":"lost"');
    });
    const lost = Number(/"type":"lost","events":(\d+)/.exec(text)?.[1]);
    expect(lost).toBeGreaterThan(0);
    expect(lost).toBeLessThan(sent);
    slow.destroy();
  });

  it("of feeds that make no sense are left out, and the operator is told", async () => {
    await using _feed = await rig.begin(header("good0001", 1));
    await until(async () => (await get("/api/live/good0001")).ok);
    const { feedSocket } = await import("../../src/observe/feed/folder.js");
    const server = createServer((socket) => socket.on("error", () => {}).end("nonsense\n"));
    await new Promise<void>((resolve) => server.listen(feedSocket(rig.feeds, "bad00001"), resolve));
    expect(await until(() => rig.notes.find((note) => note.includes("bad00001")))).toMatch(
      /makes no sense: a line is no JSON/,
    );
    expect((await get("/api/live/bad00001")).status).toBe(404);
    server.close();
  });
});

describe("a dashboard with a token", () => {
  it("lets in who shows it, and sends browsers to the form", async () => {
    await using guarded = await Rig.start({ token: TOKEN });
    const ask = (path: string, init: RequestInit = {}) =>
      fetch(new URL(path, guarded.url), { redirect: "manual", ...init });
    expect((await ask("/api/runs")).status).toBe(401);
    expect((await ask("/metrics")).status).toBe(401);
    expect((await ask("/api/events")).status).toBe(401);
    expect((await ask("/main.js")).status).toBe(401);
    expect((await ask("/login.html")).status).toBe(200);
    const wrong = await ask("/api/runs", { headers: { authorization: `Bearer ${TOKEN.replace("0", "1")}` } });
    expect(wrong.headers.get("www-authenticate")).toBe("Bearer");
    expect(errorSchema.parse(await wrong.json()).error).toMatchObject({
      code: "WRONG_TOKEN",
      remedy: expect.stringMatching(/--token-file/),
    });
    expect((await ask("/api/runs", { headers: { authorization: `Bearer ${TOKEN}` } })).status).toBe(200);
    const page = await ask("/", { headers: { accept: "text/html" } });
    expect([page.status, page.headers.get("location")]).toEqual([303, "/login.html"]);
    const login = (token: string) => ask("/login", { method: "POST", body: new URLSearchParams({ token }) });
    expect((await login("nonsense")).headers.get("location")).toBe("/login.html#wrong");
    const cookie = (await login(TOKEN)).headers.get("set-cookie")?.split(";")[0] ?? "";
    expect((await ask("/", { headers: { cookie } })).status).toBe(200);
    expect(
      (await ask("/login", { method: "POST", body: new URLSearchParams({ token: "x".repeat(9999) }) })).status,
    ).toBe(413);
  });
});

describe("a dashboard that can't be served", () => {
  it("says that the port is in use, and names another", async () => {
    const port = Number(new URL(rig.url).port);
    await expect(Rig.start({ address: { host: "127.0.0.1", port } })).rejects.toThrowError(
      expect.objectContaining({
        code: "PORT_IN_USE",
        remedy: expect.stringContaining(`--listen 127.0.0.1:${port + 1}`),
      }),
    );
  });

  it("says that this machine has no such address", async () => {
    await expect(Rig.start({ address: { host: "192.0.2.1", port: 0 }, token: TOKEN })).rejects.toThrowError(
      expect.objectContaining({ code: "BAD_ADDRESS" }),
    );
  });
});

interface ApiDocument {
  readonly openapi: string;
  readonly paths: Readonly<Record<string, unknown>>;
  readonly components: { readonly schemas: Readonly<Record<string, unknown>> };
}

/** Where a schema says nothing of what may stand there: `{}`, but for a description. */
function openParts(schema: unknown, path = ""): string[] {
  if (typeof schema !== "object" || schema === null) return [];
  if (Array.isArray(schema)) return schema.flatMap((part, index) => openParts(part, `${path}/${index}`));
  const isSchema = /\/(items|additionalProperties|properties\/[^/]+|anyOf\/\d+|oneOf\/\d+)$/.test(path);
  if (isSchema && Object.keys(schema).every((key) => key === "description")) return [path];
  return Object.entries(schema).flatMap(([key, part]) => openParts(part, `${path}/${key}`));
}

/** A request with headers that fetch doesn't let through. */
async function raw(
  { hostname, port }: URL,
  path: string,
  headers: Record<string, string>,
): Promise<{ status: number | undefined; body: string }> {
  const asked = request({ hostname, port, path, headers }).end();
  const [response] = await once(asked, "response");
  let body = "";
  for await (const chunk of response) body += chunk;
  return { status: response.statusCode, body };
}
