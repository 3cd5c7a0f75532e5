import { chmodSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { DirtmapError } from "../../errors.js";
import { type MigrationEvent, migrationEvents } from "../../migration/events.js";
import { Backlog, lostLine } from "./backlog.js";
import { defaultFeedFolder, feedSocket, ownFeedFolder } from "./folder.js";
import { FEED_VERSION, type RunHeader } from "./schema.js";

/*
 * The live feed of a process that owns trackers: whoever wants to see asks it, since reading a tracker would take its
 * bits. It never waits for a reader.
 */

/** What a reader may be behind before it loses events. */
const MAX_BEHIND_BYTES = 4 * 2 ** 20;
/** What is kept for readers that come later. */
const MAX_KEPT_BYTES = 2 * 2 ** 20;
const MAX_READERS = 32;
/** For readers to take the end, when the run is over. */
const END_MS = 250;

/** A feed that is being published; disposing it ends it, and resolves once its readers have gone. */
export interface PublishedFeed extends AsyncDisposable {
  /** The UNIX socket that it is read at. */
  readonly path: string;
}

/**
 * Publishes what this process's migration (or watch) tells on its channel, to any number of readers: first the header,
 * then what was told before, the oldest reads left out where it is much, then what happens.
 * @throws DirtmapError `FEED_FOLDER`, `NO_FEED`: the run itself is none the worse
 */
export async function publishFeed(
  header: RunHeader,
  { folder = defaultFeedFolder() }: { folder?: string } = {},
): Promise<PublishedFeed> {
  try {
    ownFeedFolder(folder);
    const path = feedSocket(folder, header.run);
    const feed = new Feed(path, ended(JSON.stringify({ schemaVersion: FEED_VERSION, ...header })));
    await feed.listen();
    return feed;
  } catch (cause) {
    if (cause instanceof DirtmapError) throw cause;
    throw new DirtmapError(`no live feed of this run: ${(cause as Error).message}`, { code: "NO_FEED", cause });
  }
}

interface Reader {
  readonly socket: Socket;
  lost: number;
}

class Feed implements PublishedFeed {
  readonly path: string;
  readonly #header: string;
  readonly #server: Server;
  readonly #readers = new Set<Reader>();
  readonly #backlog = new Backlog(MAX_KEPT_BYTES);
  readonly #listener = (event: unknown) => this.#tell(event as MigrationEvent);

  constructor(path: string, header: string) {
    this.path = path;
    this.#header = header;
    this.#server = createServer((socket) => this.#welcome(socket));
    this.#server.maxConnections = MAX_READERS;
    this.#server.unref();
  }

  async listen(): Promise<void> {
    // A feed of that name is one of a process that was killed: ids are made anew for each run.
    rmSync(this.path, { force: true });
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", reject).listen(this.path, () => {
        // A reader that can't be accepted must not end the run.
        this.#server.off("error", reject).on("error", () => {});
        resolve();
      });
    });
    // The folder is the user's alone; this is for file systems that don't keep its mode.
    chmodSync(this.path, 0o600);
    migrationEvents.subscribe(this.#listener);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    migrationEvents.unsubscribe(this.#listener);
    rmSync(this.path, { force: true });
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const { socket } of this.#readers) socket.end();
    const late = setTimeout(() => {
      for (const { socket } of this.#readers) socket.destroy();
    }, END_MS);
    await closed;
    clearTimeout(late);
  }

  #welcome(socket: Socket): void {
    const reader = { socket, lost: 0 };
    this.#readers.add(reader);
    // Nothing that a reader says is of interest; what goes wrong with it is its end.
    socket.on("error", () => {}).once("close", () => this.#readers.delete(reader));
    socket.resume().unref();
    socket.write(this.#header + this.#backlog.lines().map(ended).join(""));
  }

  #tell(event: MigrationEvent): void {
    const line = JSON.stringify(event);
    this.#backlog.add(event.type, line);
    for (const reader of this.#readers) {
      if (reader.socket.writableLength + line.length > MAX_BEHIND_BYTES) {
        reader.lost++;
        continue;
      }
      const lost = reader.lost === 0 ? "" : ended(lostLine(reader.lost));
      reader.lost = 0;
      reader.socket.write(lost + ended(line));
    }
  }
}

function ended(line: string): string {
  return `${line}\n`;
}
