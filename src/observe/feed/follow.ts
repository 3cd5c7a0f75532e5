import { existsSync, lstatSync, readdirSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { z } from "zod";
import { DirtmapError, UsageError } from "../../errors.js";
import { versionMismatch } from "../../version-mismatch.js";
import { defaultFeedFolder, feedSocket, ownFeedFolder, runOfFile } from "./folder.js";
import {
  FEED_VERSION,
  type FeedEvent,
  type FeedHeader,
  feedEventSchema,
  feedHeaderSchema,
  MAX_LINE_BYTES,
} from "./schema.js";

/** Until a feed has answered with its header: it does at once, unless its process stands still. */
const HEADER_MS = 1000;

/** How long a socket that nobody listens at is left alone: between bind(2) and listen(2) one looks abandoned. */
const BEGINNING_MS = 1000;

/** A feed that is being read. Iterating ends with the run; disposing ends it earlier. */
export interface FollowedFeed extends AsyncIterable<FeedEvent>, Disposable {
  readonly header: FeedHeader;
}

/**
 * The feeds of all runs of this user that are under way, the newest first. Sockets that a killed process left behind are
 * removed; feeds that don't answer, or make no sense, are left out.
 * @throws DirtmapError `FEED_FOLDER`
 */
export async function openFeeds({ folder = defaultFeedFolder() }: { folder?: string } = {}): Promise<FeedHeader[]> {
  const asked = runsWithFeed(folder).map(async (run) => {
    try {
      using feed = await followFeed(run, { folder });
      return [feed.header];
    } catch {
      return [];
    }
  });
  const headers = (await Promise.all(asked)).flat();
  return headers.sort((a, b) => (a.startedAt < b.startedAt ? 1 : -1));
}

/** The runs that have a feed, or had one when their process was killed. @throws DirtmapError `FEED_FOLDER` */
export function runsWithFeed(folder: string): string[] {
  ownFeedFolder(folder);
  return readdirSync(folder).flatMap((file) => runOfFile(file) ?? []);
}

/** Removes the sockets of feeds whose process was killed. @throws DirtmapError `FEED_FOLDER` */
export async function removeDeadFeeds({ folder = defaultFeedFolder() }: { folder?: string } = {}): Promise<void> {
  if (!existsSync(folder)) return;
  const sockets = runsWithFeed(folder).map((run) => connected(feedSocket(folder, run), run));
  for (const settled of await Promise.allSettled(sockets)) if (settled.status === "fulfilled") settled.value.destroy();
}

/**
 * Reads one run's feed.
 * @throws UsageError `NO_SUCH_RUN`; DirtmapError `INCOMPATIBLE` for another version's; DirtmapError `BAD_FEED` here and
 * while iterating, where what comes is no feed
 */
export async function followFeed(
  run: string,
  { folder = defaultFeedFolder(), signal }: { folder?: string; signal?: AbortSignal } = {},
): Promise<FollowedFeed> {
  const path = feedSocket(folder, run);
  const socket = await connected(path, run);
  const stop = () => socket.destroy();
  signal?.addEventListener("abort", stop, { once: true });
  const late = setTimeout(() => socket.destroy(badFeed(run, `it sent no header within ${HEADER_MS} ms`)), HEADER_MS);
  try {
    signal?.throwIfAborted();
    const lines = linesOf(socket, run);
    const first = await lines.next();
    if (first.done) throw badFeed(run, "it ended before its header");
    checkVersion(first.value, run);
    const header = parsed(first.value, feedHeaderSchema, run);
    return {
      header,
      async *[Symbol.asyncIterator]() {
        for await (const line of lines) yield parsed(line, feedEventSchema, run);
      },
      [Symbol.dispose]: () => {
        signal?.removeEventListener("abort", stop);
        socket.destroy();
      },
    };
  } catch (error) {
    socket.destroy();
    signal?.throwIfAborted();
    throw error;
  } finally {
    clearTimeout(late);
  }
}

async function connected(path: string, run: string): Promise<Socket> {
  const socket = connect(path);
  try {
    await new Promise<void>((resolve, reject) => socket.once("connect", resolve).once("error", reject));
    return socket;
  } catch (error) {
    // Nobody listens: its process was killed.
    if ((error as NodeJS.ErrnoException).code === "ECONNREFUSED" && ageOf(path) > BEGINNING_MS) {
      rmSync(path, { force: true });
    }
    throw new UsageError(`there is no run '${run}' under way`, {
      code: "NO_SUCH_RUN",
      remedy: "start one with `dirtmap migrate`, and follow it while it runs",
      cause: error,
    });
  }
}

function ageOf(path: string): number {
  return Date.now() - (lstatSync(path, { throwIfNoEntry: false })?.mtimeMs ?? Date.now());
}

/** The lines that come. A socket that is destroyed on purpose ends them. */
async function* linesOf(socket: Socket, run: string): AsyncGenerator<string, undefined> {
  let rest: Buffer[] = [];
  let bytes = 0;
  const chunks = socket[Symbol.asyncIterator]() as AsyncIterableIterator<Buffer>;
  while (true) {
    const { value: chunk, done } = await chunks.next().catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ERR_STREAM_PREMATURE_CLOSE" || error.code === "ECONNRESET")
        return { value: undefined, done: true };
      throw error;
    });
    if (done === true || chunk === undefined) return;
    let from = 0;
    for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, from)) {
      rest.push(chunk.subarray(from, at));
      yield Buffer.concat(rest).toString();
      rest = [];
      bytes = 0;
      from = at + 1;
    }
    rest.push(chunk.subarray(from));
    bytes += chunk.length - from;
    if (bytes > MAX_LINE_BYTES) throw badFeed(run, `a line has more than ${MAX_LINE_BYTES} bytes`);
  }
}

const versionSchema = z.looseObject({ schemaVersion: z.int().min(0) });

/** Before the rest of a header is looked at: another version's may be anything. @throws DirtmapError `INCOMPATIBLE` */
function checkVersion(line: string, run: string): void {
  const { schemaVersion: theirs } = parsed(line, versionSchema, run);
  if (theirs === FEED_VERSION) return;
  throw versionMismatch({
    what: "the live feed",
    other: "the run's process",
    here: "the reader",
    theirs,
    ours: FEED_VERSION,
  });
}

function parsed<Schema extends z.ZodType>(line: string, schema: Schema, run: string): z.output<Schema> {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    throw badFeed(run, "a line is no JSON", cause);
  }
  const { data, error } = schema.safeParse(value);
  if (error !== undefined) {
    const [{ path, message }] = error.issues;
    throw badFeed(run, `${path.join(".") || "it"}: ${message}`, error);
  }
  return data as z.output<Schema>;
}

function badFeed(run: string, why: string, cause?: unknown): DirtmapError {
  return new DirtmapError(`the feed of '${run}' makes no sense: ${why}`, {
    code: "BAD_FEED",
    remedy: "is it of another version of Dirtmap?",
    cause,
  });
}
