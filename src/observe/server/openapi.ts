import { z } from "zod";
import { API_DOCUMENTS, API_VERSION, type ApiSchemas, benchmarksQuery, eventsQuery, runsQuery } from "./api-schema.js";

type SchemaName = keyof ApiSchemas;

interface Operation {
  readonly path: string;
  readonly summary: string;
  /** The answer; `text` has no schema. */
  readonly answer: SchemaName | { readonly contentType: string; readonly description: string };
  readonly query?: z.ZodObject;
  readonly pathParameter?: { readonly name: string; readonly schema: object; readonly description: string };
}

const STORED = { schema: { type: "integer", minimum: 1 } };

/** All that the API has. */
export const OPERATIONS: readonly Operation[] = [
  { path: "/api/live", summary: "Runs in progress", answer: "LiveRuns" },
  {
    path: "/api/live/{run}",
    summary: "A run in progress, with what it told so far",
    answer: "LiveRun",
    pathParameter: { name: "run", schema: { type: "string" }, description: "its name" },
  },
  {
    path: "/api/events",
    summary: "Live events of all runs in progress, or of one",
    answer: {
      contentType: "text/event-stream",
      description:
        "Server-sent events: `begin` with a run's header, `event` with `{ run, event }`, `end` with `{ run, stored }`, where `stored` is its id among the runs that are over, or null. What was told before comes first. A comment each 15 s keeps the connection. A reader that is too slow gets events of type `lost`, with the number of events that were left out.",
    },
    query: eventsQuery,
  },
  { path: "/api/runs", summary: "Runs that are over", answer: "Runs", query: runsQuery },
  {
    path: "/api/runs/{id}",
    summary: "A run that is over",
    answer: "Run",
    pathParameter: { name: "id", ...STORED, description: "its id in the store" },
  },
  { path: "/api/benchmarks", summary: "Saved benchmarks", answer: "Benchmarks", query: benchmarksQuery },
  {
    path: "/api/benchmarks/{id}",
    summary: "A saved benchmark",
    answer: "Benchmark",
    pathParameter: { name: "id", ...STORED, description: "its id in the store" },
  },
  { path: "/api/recommendation", summary: "What the newest benchmark speaks for", answer: "Recommendation" },
  {
    path: "/metrics",
    summary: "Metrics for Prometheus",
    answer: { contentType: "text/plain", description: "Prometheus' text format, version 0.0.4" },
  },
];

/** The API's description as an OpenAPI 3.1 document. */
export function openApiDocument(schemas: ApiSchemas): object {
  const failure = { description: "Refused", content: { "application/json": { schema: reference("Error") } } };
  return {
    openapi: "3.1.0",
    info: {
      title: "Dirtmap",
      version: String(API_VERSION),
      description:
        "What runs in progress and past runs showed. Read only. Each answer in JSON carries schemaVersion. Where the server has a token, send it as `Authorization: Bearer TOKEN`.",
    },
    components: {
      schemas: components(schemas),
      securitySchemes: { token: { type: "http", scheme: "bearer" } },
    },
    security: [{}, { token: [] }],
    paths: Object.fromEntries(
      OPERATIONS.map(({ path, summary, answer, query, pathParameter }) => [
        path,
        {
          get: {
            summary,
            parameters: [
              ...(pathParameter === undefined ? [] : [{ ...pathParameter, in: "path", required: true }]),
              ...queryParameters(query),
            ],
            responses: { "200": success(answer, schemas), default: failure },
          },
        },
      ]),
    ),
  };
}

/** The answers, and the documents that they are made of, each once under its name. */
function components(schemas: ApiSchemas): object {
  const named = z.registry<{ id: string }>();
  for (const [id, schema] of Object.entries({ ...API_DOCUMENTS, ...schemas })) named.add(schema, { id });
  // A check of its own (of `heat`) says itself what it lets through.
  const made = z.toJSONSchema(named, {
    io: "output",
    unrepresentable: "any",
    uri: (id) => `#/components/schemas/${id}`,
  });
  // The dialect is OpenAPI's own, and a component's place is its id.
  return Object.fromEntries(Object.entries(made.schemas).map(([id, { $schema, $id, ...schema }]) => [id, schema]));
}

function success(answer: Operation["answer"], schemas: ApiSchemas): object {
  if (typeof answer !== "string") {
    return { description: answer.description, content: { [answer.contentType]: { schema: { type: "string" } } } };
  }
  const description = schemas[answer].description ?? answer;
  return { description, content: { "application/json": { schema: reference(answer) } } };
}

function queryParameters(query: z.ZodObject | undefined): object[] {
  if (query === undefined) return [];
  const { properties = {} } = z.toJSONSchema(query, { io: "output" });
  return Object.entries(properties).map(([name, schema]) => ({ name, in: "query", required: false, schema }));
}

function reference(name: SchemaName): object {
  return { $ref: `#/components/schemas/${name}` };
}
