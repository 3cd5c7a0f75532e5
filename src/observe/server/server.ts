import fastify, { type FastifyError, type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import type { z } from "zod";
import { DirtmapError, UsageError } from "../../errors.js";
import { machineReportSchema } from "../../machine-report.js";
import { RunMetrics } from "../metrics/metrics.js";
import {
  API_VERSION,
  apiSchemas,
  benchmarksQuery,
  eventsQuery,
  type PastRun,
  type PastRunSummary,
  pastRunSchema,
  runsQuery,
} from "./api-schema.js";
import { EventStreams } from "./event-stream.js";
import type { EvidenceSource, KeptBenchmark, KeptRun } from "./evidence-source.js";
import { Guard, type Verdict } from "./guard.js";
import { checkExposure, type ListenAddress, urlOf } from "./listen-address.js";
import { type LiveRun, LiveRuns } from "./live-runs.js";
import { openApiDocument } from "./openapi.js";
import { readStaticFiles } from "./static-files.js";

/*
 * The dashboard's server: the page, the API, live events and metrics. It only reads: from the feeds of runs in progress
 * and from where past runs are kept.
 */

/** A login form's body: a token and its name. */
const MAX_BODY_BYTES = 4096;
/** For a request to arrive. */
const REQUEST_MS = 10_000;
/** Of the newest runs, how many are looked at for the one that has just ended. */
const RECENT_RUNS = 64;

const HEADERS = {
  // Nothing from elsewhere, nothing inline, and nobody's frame.
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
} as const;

export interface ServeOptions {
  readonly address: ListenAddress;
  /** Needed where others than this machine reach the address. */
  readonly token?: string | undefined;
  readonly evidence: EvidenceSource;
  /** Where runs in progress have their feeds. */
  readonly feedFolder: string;
  /** Where the page's files are. */
  readonly page: string;
  /** Told of what went wrong without ending the server, in one line. */
  readonly note?: (text: string) => void;
  /** Of live events; for tests. Default 15 s. */
  readonly heartbeatMs?: number;
}

/** A dashboard that is being served; disposing closes the port and ends all connections. */
export interface DashboardServer extends AsyncDisposable {
  readonly url: string;
}

/**
 * Serves the dashboard.
 * @throws UsageError `TOKEN_MISSING`, `PORT_IN_USE`, `BAD_ADDRESS`, `PORT_FORBIDDEN`
 */
export async function serveDashboard(options: ServeOptions): Promise<DashboardServer> {
  const { address, token, evidence, note = () => {} } = options;
  checkExposure(address, token);
  const files = readStaticFiles(options.page);
  const live = new LiveRuns(options.feedFolder);
  const metrics = new RunMetrics();
  const kept = new Map<string, number | null>();
  live.on("problem", note);
  live.on("begin", ({ header }) => metrics.begin(header));
  live.on("event", ({ header }, event) => metrics.note(header, event));
  live.on("end", ({ header }) => {
    const past = pastOf(evidence, header.run);
    kept.set(header.run, past?.id ?? null);
    metrics.end(header, past);
    // The streams, which ask next, are told in the same turn.
    setImmediate(() => kept.delete(header.run));
  });
  const streams = new EventStreams(
    live,
    ({ header }) => ({ stored: kept.get(header.run) ?? null }),
    options.heartbeatMs,
  );

  const app = fastify({ bodyLimit: MAX_BODY_BYTES, requestTimeout: REQUEST_MS, forceCloseConnections: true });
  guard(app, new Guard(token));
  app.setErrorHandler<FastifyError>(answerError);
  app.setNotFoundHandler((request, reply) => {
    refuse(reply, 404, { code: "NOT_FOUND", message: `there is no ${request.url}`, remedy: "see /api" });
  });
  for (const [path, { type, body }] of files) {
    app.get(path, (_, reply) => reply.header("cache-control", "no-cache").type(type).send(body));
    if (path === "/index.html")
      app.get("/", (_, reply) => reply.header("cache-control", "no-cache").type(type).send(body));
  }
  const api = (path: string, answer: (request: FastifyRequest) => object) =>
    app.get(path, (request, reply) => {
      const body = JSON.stringify({ schemaVersion: API_VERSION, ...answer(request) });
      return reply.header("cache-control", "no-store").type("application/json").send(body);
    });
  const document = openApiDocument(apiSchemas(evidence.schemas));
  app.get("/api", () => document);
  api("/api/live", () => ({ runs: live.runs.map(({ header }) => header) }));
  api("/api/live/:run", (request) => liveRun(live, (request.params as { run: string }).run));
  api("/api/runs", ({ query }) => {
    const { limit, before } = parsed(runsQuery, query);
    return { runs: evidence.runs({ limit, ...(before === undefined ? {} : { before }) }) };
  });
  api("/api/runs/:id", ({ params }) => ({ run: knownOf(evidence.run(storedId(params))) }));
  api("/api/benchmarks", ({ query }) => {
    const { limit, kind } = parsed(benchmarksQuery, query);
    return { benchmarks: evidence.benchmarks({ limit, ...(kind === undefined ? {} : { kind }) }) };
  });
  api("/api/benchmarks/:id", ({ params }) => ({
    benchmark: knownBenchmark(evidence.benchmark(storedId(params)), evidence.schemas.benchmark),
  }));
  api("/api/recommendation", () => ({ recommendation: evidence.recommendation() }));
  app.get("/api/events", (request, reply) => {
    const { run } = parsed(eventsQuery, request.query);
    streams.open(reply.raw, HEADERS, run);
    reply.hijack();
  });
  app.get("/metrics", async (_, reply) => {
    return reply
      .header("cache-control", "no-store")
      .type(metrics.registry.contentType)
      .send(await metrics.registry.metrics());
  });

  const close = async () => {
    streams[Symbol.dispose]();
    await Promise.all([app.close(), live[Symbol.asyncDispose]()]);
  };
  try {
    await app.listen({ host: address.host, port: address.port });
  } catch (error) {
    await close();
    throw cantListen(error, address);
  }
  const bound = app.server.address();
  const port = typeof bound === "object" && bound !== null ? bound.port : address.port;
  return { url: urlOf({ ...address, port }), [Symbol.asyncDispose]: close };
}

/** Lets in who may come in, and shows browsers that have yet to say the token the form. */
function guard(app: FastifyInstance, guard: Guard): void {
  const open = new Set(["/login", "/login.html", "/style.css", "/icon.svg"]);
  app.addContentTypeParser("application/x-www-form-urlencoded", { parseAs: "string" }, (_, body, done) => {
    done(null, new URLSearchParams(String(body)));
  });
  app.addHook("onRequest", async (request, reply) => {
    reply.headers(HEADERS);
    const { host, authorization, cookie } = request.headers;
    const verdict = guard.judge({ host, authorization, cookie });
    if (verdict === "welcome" || (guard.needsToken && open.has(new URL(request.url, "http://x").pathname))) return;
    const isPage = request.headers.accept?.includes("text/html") === true;
    if (verdict === "no-token" && isPage) return reply.redirect("/login.html", 303);
    if (verdict !== "wrong-host") reply.header("www-authenticate", "Bearer");
    return refuse(reply, verdict === "wrong-host" ? 421 : 401, REFUSALS[verdict]);
  });
  app.post("/login", (request, reply) => {
    const token = request.body instanceof URLSearchParams ? (request.body.get("token") ?? "") : "";
    const cookie = guard.login(token.trim());
    if (cookie === null) return reply.redirect("/login.html#wrong", 303);
    return reply.header("set-cookie", cookie).redirect("/", 303);
  });
}

const REFUSALS: Readonly<Record<Exclude<Verdict, "welcome">, { code: string; message: string; remedy: string }>> = {
  "wrong-host": {
    code: "WRONG_HOST",
    message: "this dashboard answers only to this machine's own names",
    remedy: "ask for localhost or 127.0.0.1, or serve with --token-file",
  },
  "no-token": {
    code: "TOKEN_MISSING",
    message: "this dashboard needs a token",
    remedy: "send `Authorization: Bearer TOKEN`, or open it in a browser and log in",
  },
  "wrong-token": {
    code: "WRONG_TOKEN",
    message: "this is not the dashboard's token",
    remedy: "it is in the file that `dirtmap serve --token-file` was given",
  },
};

function liveRun(live: LiveRuns, name: string): object {
  const run: LiveRun | undefined = live.run(name);
  if (run !== undefined) return { run: run.header, events: run.backlog.lines().map((line) => JSON.parse(line)) };
  throw new UsageError(`there is no run '${name}' in progress`, {
    code: "NO_SUCH_RUN",
    remedy: "see /api/live; those that are over are in /api/runs",
  });
}

/** A kept run with those of its parts that have a form that is known. */
function knownOf(run: KeptRun): PastRun {
  const { header, report, reads, conditions } = pastRunSchema.shape;
  return {
    ...run,
    header: known(header, run.header),
    report: known(report, run.report),
    reads: known(reads, run.reads) ?? [],
    conditions: known(conditions, run.conditions),
  };
}

function knownBenchmark(benchmark: KeptBenchmark, schema: z.ZodType): object {
  const { machine, result } = benchmark;
  return { ...benchmark, machine: known(machineReportSchema, machine), result: known(schema, result) };
}

/** null: it is of another form. */
function known<Schema extends z.ZodType>(schema: Schema, value: unknown): z.output<Schema> | null {
  return schema.safeParse(value).data ?? null;
}

/** What was kept of a run that has just ended; null: nothing, or the store can't say. */
function pastOf(evidence: EvidenceSource, name: string): PastRunSummary | null {
  try {
    return evidence.runs({ limit: RECENT_RUNS }).find((run) => run.name === name) ?? null;
  } catch {
    return null;
  }
}

function storedId(params: unknown): number {
  const { id } = params as { id: string };
  if (/^[1-9]\d{0,14}$/.test(id)) return Number(id);
  throw new UsageError(`'${id}' is no id`, { code: "BAD_REQUEST", remedy: "ids are whole numbers from 1 up" });
}

function parsed<Schema extends z.ZodType>(schema: Schema, query: unknown): z.output<Schema> {
  const { data, error } = schema.safeParse(query);
  if (error === undefined) return data as z.output<Schema>;
  const [{ path, message }] = error.issues;
  throw new UsageError(`${path.join(".") || "the query"}: ${message}`, { code: "BAD_REQUEST", remedy: "see /api" });
}

/** The HTTP status of an error's code; all others are the server's fault. */
const STATUS: Readonly<Record<string, number>> = {
  BAD_REQUEST: 400,
  NO_SUCH_RUN: 404,
  NO_SUCH_BENCHMARK: 404,
  STORE_BUSY: 503,
  TOO_MANY_STREAMS: 503,
};

function answerError(error: FastifyError, _: FastifyRequest, reply: FastifyReply): void {
  if (error instanceof DirtmapError) {
    const { code, message, remedy } = error as DirtmapError;
    refuse(reply, STATUS[code] ?? 500, { code, message, remedy });
    return;
  }
  const status = error.statusCode ?? 500;
  refuse(reply, status, { code: status < 500 ? "BAD_REQUEST" : "INTERNAL", message: error.message });
}

function refuse(
  reply: FastifyReply,
  status: number,
  error: { code: string; message: string; remedy?: string | undefined },
): FastifyReply {
  return reply.code(status).header("cache-control", "no-store").send({ schemaVersion: API_VERSION, error });
}

function cantListen(error: unknown, { host, port }: ListenAddress): unknown {
  const { code } = error as NodeJS.ErrnoException;
  const why: Readonly<Record<string, readonly [code: string, text: string, remedy: string]>> = {
    EADDRINUSE: [
      "PORT_IN_USE",
      "the port is in use",
      `choose another: --listen ${host}:${port + 1}, or port 0 for any`,
    ],
    EACCES: ["PORT_FORBIDDEN", "this user may not listen there", "choose a port above 1023"],
    EADDRNOTAVAIL: ["BAD_ADDRESS", "this machine has no such address", "listen on an address of this machine"],
    ENOTFOUND: ["BAD_ADDRESS", "there is no host of this name", "listen on an address of this machine"],
  };
  const [name, text, remedy] = why[code ?? ""] ?? [];
  if (name === undefined) return error;
  return new UsageError(`can't listen on ${host}:${port}: ${text}`, { code: name, remedy, cause: error });
}
