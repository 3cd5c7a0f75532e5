import type { ServerResponse } from "node:http";
import { DirtmapError } from "../../errors.js";
import { lostLine } from "../feed/backlog.js";
import type { LiveRun, LiveRuns } from "./live-runs.js";

/*
 * Server-sent events (WHATWG HTML, section 9.2): each run's header as `begin`, what it tells as `event`, its end as `end`.
 * Who comes later gets what was told before first.
 */

/** Proxies end connections that are silent; half a minute is common. */
const HEARTBEAT_MS = 15_000;
/** What a page may be behind before it loses events. */
const MAX_BEHIND_BYTES = 8 * 2 ** 20;
/** Pages that watch at a time. */
const MAX_STREAMS = 64;

/** The pages that watch. */
export class EventStreams implements Disposable {
  readonly #live: LiveRuns;
  readonly #ended: (run: LiveRun) => { stored: number | null };
  readonly #heartbeatMs: number;
  readonly #open = new Set<Disposable>();

  /**
   * @param ended what there is to say of a run that is over: where it is kept
   */
  constructor(live: LiveRuns, ended: (run: LiveRun) => { stored: number | null }, heartbeatMs = HEARTBEAT_MS) {
    this.#live = live;
    this.#ended = ended;
    this.#heartbeatMs = heartbeatMs;
  }

  /**
   * Sends the events of all runs, or of one, until the page goes away.
   * @throws DirtmapError `TOO_MANY_STREAMS`
   */
  open(response: ServerResponse, headers: Readonly<Record<string, string>>, only?: string): void {
    if (this.#open.size >= MAX_STREAMS) {
      throw new DirtmapError(`${MAX_STREAMS} pages are watching already`, {
        code: "TOO_MANY_STREAMS",
        remedy: "close some",
      });
    }
    response.writeHead(200, { ...headers, "content-type": "text/event-stream", "cache-control": "no-store" });
    // Tells the browser how long to wait before it comes again, and that the stream has begun.
    response.write("retry: 1000\n\n");
    const stream = new EventStream(response, only);
    for (const run of this.#live.runs) {
      stream.begin(run);
      for (const line of run.backlog.lines()) stream.event(run, line);
    }
    const begin = (run: LiveRun) => stream.begin(run);
    const event = (run: LiveRun, _: unknown, line: string) => stream.event(run, line);
    const end = (run: LiveRun) => stream.end(run, this.#ended(run));
    this.#live.on("begin", begin).on("event", event).on("end", end);
    const heartbeat = setInterval(() => stream.send(": heartbeat\n\n"), this.#heartbeatMs);
    const open: Disposable = {
      [Symbol.dispose]: () => {
        this.#open.delete(open);
        clearInterval(heartbeat);
        this.#live.off("begin", begin).off("event", event).off("end", end);
        response.end();
      },
    };
    this.#open.add(open);
    response.once("close", () => open[Symbol.dispose]());
  }

  /** Ends all. */
  [Symbol.dispose](): void {
    for (const open of this.#open) open[Symbol.dispose]();
  }
}

class EventStream {
  readonly #response: ServerResponse;
  readonly #only: string | undefined;
  /** Per run, events that this page was too slow for. */
  readonly #lost = new Map<string, number>();

  constructor(response: ServerResponse, only: string | undefined) {
    this.#response = response;
    this.#only = only;
  }

  begin({ header }: LiveRun): void {
    if (this.#wants(header.run)) this.send(`event: begin\ndata: ${JSON.stringify(header)}\n\n`);
  }

  event({ header: { run } }: LiveRun, line: string): void {
    if (!this.#wants(run)) return;
    const lost = this.#lost.get(run) ?? 0;
    if (this.#response.writableLength + line.length > MAX_BEHIND_BYTES) {
      this.#lost.set(run, lost + 1);
      return;
    }
    if (lost > 0) {
      this.#lost.delete(run);
      this.send(frame(run, lostLine(lost)));
    }
    this.send(frame(run, line));
  }

  end({ header: { run } }: LiveRun, more: { stored: number | null }): void {
    if (this.#wants(run)) this.send(`event: end\ndata: ${JSON.stringify({ run, ...more })}\n\n`);
  }

  send(text: string): void {
    if (!this.#response.writableEnded) this.#response.write(text);
  }

  #wants(run: string): boolean {
    return this.#only === undefined || this.#only === run;
  }
}

function frame(run: string, line: string): string {
  return `event: event\ndata: {"run":${JSON.stringify(run)},"event":${line}}\n\n`;
}
