import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync, utimesSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type MigrationEvent, publish } from "../../migration/events.js";
import { feedSocket } from "./folder.js";
import { followFeed, openFeeds, removeDeadFeeds } from "./follow.js";
import { publishFeed } from "./publish.js";
import type { FeedEvent, FeedHeader } from "./schema.js";

const HEADER: Omit<FeedHeader, "schemaVersion"> = {
  run: "0123abcd",
  kind: "migration",
  scenario: "mixed",
  host: "emulated",
  startedAt: "2026-01-02T03:04:05.000Z",
  devices: [{ id: "vf0", model: "mlx5", tracker: "device", granule: 4096, domain: null }],
  memoryBytes: 2 ** 28,
  downtimeLimitMs: 300,
};

let root = "";
let folder = "";
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "dirtmap-feed-"));
  folder = join(root, "dirtmap");
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

const phase = (atMs: number): MigrationEvent => ({ type: "phase", phase: "pre-copy", atMs });
const readOf = (atMs: number, buckets = 4): MigrationEvent => ({
  type: "read",
  atMs,
  round: 0,
  elapsedMs: 10,
  owners: { vf0: { reported: 3, exclusive: 2, readMs: 0.5, heat: new Array(buckets).fill(1) } },
});

async function all(feed: AsyncIterable<FeedEvent>): Promise<FeedEvent[]> {
  const events: FeedEvent[] = [];
  for await (const event of feed) events.push(event);
  return events;
}

describe("a live feed", () => {
  it("gives each reader the header, what was told before, and what happens, until the run ends", async () => {
    const feed = await publishFeed(HEADER, { folder });
    publish(phase(1));
    const early = await followFeed(HEADER.run, { folder });
    const reading = all(early);
    publish(readOf(2));
    const late = await followFeed(HEADER.run, { folder });
    const readingLate = all(late);
    publish(phase(3));
    await feed[Symbol.asyncDispose]();
    expect(early.header).toEqual({ schemaVersion: 1, ...HEADER });
    expect(await reading).toEqual([phase(1), readOf(2), phase(3)]);
    expect(await readingLate).toEqual([phase(1), readOf(2), phase(3)]);
  });

  it("is listed while it runs, and leaves nothing behind", async () => {
    const feed = await publishFeed(HEADER, { folder });
    expect(await openFeeds({ folder })).toEqual([{ schemaVersion: 1, ...HEADER }]);
    await feed[Symbol.asyncDispose]();
    expect(await openFeeds({ folder })).toEqual([]);
    expect(existsSync(feed.path)).toBe(false);
    await expect(followFeed(HEADER.run, { folder })).rejects.toThrowError(
      expect.objectContaining({ code: "NO_SUCH_RUN" }),
    );
  });

  it("is for its user alone", async () => {
    await using feed = await publishFeed(HEADER, { folder });
    expect([statSync(folder).mode & 0o777, statSync(feed.path).mode & 0o777]).toEqual([0o700, 0o600]);
  });

  it("tells a reader that is too slow how many events it lost, and waits for nobody", async () => {
    const feed = await publishFeed(HEADER, { folder });
    const socket = connect(feed.path);
    await new Promise((resolve) => socket.once("connect", resolve));
    await new Promise((resolve) => setTimeout(resolve, 50));
    // Paused: the kernel's buffer fills, then the publisher's.
    const sent = 1000;
    for (let i = 0; i < sent; i++) publish(readOf(i, 4096));
    const reading = new Promise<string>((resolve) => {
      let text = "";
      socket.setEncoding("utf8").on("data", (data) => {
        text += data;
        // There is room again, and the next event tells what was lost.
        if (text.includes(`"atMs":100,`) && !text.includes(`"lost"`)) publish(phase(sent));
        if (text.includes(`"lost"`) && text.endsWith("\n")) resolve(text);
      });
    });
    const lines = (await reading)
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    const lost = lines.find(({ type }) => type === "lost").events;
    expect(lost).toBeGreaterThan(0);
    expect(lines.filter(({ type }) => type === "read").length + lost).toBe(sent);
    socket.destroy();
    await feed[Symbol.asyncDispose]();
  });

  it("refuses a folder that others can write to, or that is a link", async () => {
    mkdirSync(folder);
    chmodSync(folder, 0o777);
    const refusal = expect.objectContaining({ code: "FEED_FOLDER", message: expect.stringContaining(folder) });
    await expect(publishFeed(HEADER, { folder })).rejects.toThrowError(refusal);
    await expect(openFeeds({ folder })).rejects.toThrowError(refusal);
    rmSync(folder, { recursive: true });
    symlinkSync(root, folder);
    await expect(publishFeed(HEADER, { folder })).rejects.toThrowError(refusal);
  });

  it("of a process that was killed is removed", async () => {
    mkdirSync(folder, { mode: 0o700 });
    const path = feedSocket(folder, HEADER.run);
    const listen = `require("node:net").createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, "SIGKILL"))`;
    for (const look of [openFeeds, removeDeadFeeds]) {
      spawnSync(process.execPath, ["-e", listen]);
      // It may be one that another process is about to listen at.
      await look({ folder });
      expect(existsSync(path)).toBe(true);
      const old = new Date(Date.now() - 60_000);
      utimesSync(path, old, old);
      await look({ folder });
      expect(existsSync(path)).toBe(false);
    }
  });

  it("of a process that lives stays when others tidy up", async () => {
    await using feed = await publishFeed(HEADER, { folder });
    await removeDeadFeeds({ folder });
    expect(existsSync(feed.path)).toBe(true);
    await removeDeadFeeds({ folder: join(root, "none") });
  });

  const nonsense: Record<string, string> = {
    "no JSON": "hello\n",
    "no header": `${JSON.stringify({ schemaVersion: 1 })}\n`,
    "an endless line": "x".repeat(5 * 2 ** 20),
    "nothing at all": "",
  };
  for (const [what, text] of Object.entries(nonsense)) {
    it(`that says ${what} is refused by who reads it`, async () => {
      mkdirSync(folder, { mode: 0o700 });
      const server = createServer((socket) => socket.on("error", () => {}).end(text));
      await new Promise<void>((resolve) => server.listen(feedSocket(folder, HEADER.run), resolve));
      await expect(followFeed(HEADER.run, { folder })).rejects.toThrowError(
        expect.objectContaining({ code: "BAD_FEED" }),
      );
      expect(await openFeeds({ folder })).toEqual([]);
      await new Promise((resolve) => server.close(resolve));
    });
  }

  it("that never says anything is not waited for", async () => {
    mkdirSync(folder, { mode: 0o700 });
    const server = createServer(() => {});
    await new Promise<void>((resolve) => server.listen(feedSocket(folder, HEADER.run), resolve));
    await expect(followFeed(HEADER.run, { folder })).rejects.toThrowError(/no header within/);
    server.close();
  });

  it("ends for a reader that has enough", async () => {
    await using feed = await publishFeed(HEADER, { folder });
    const stop = new AbortController();
    const following = await followFeed(HEADER.run, { folder, signal: stop.signal });
    const reading = all(following);
    stop.abort();
    expect(await reading).toEqual([]);
    expect(existsSync(feed.path)).toBe(true);
  });

  it("refuses ids that would lead out of its folder", async () => {
    await expect(followFeed("../x", { folder })).rejects.toThrowError(expect.objectContaining({ code: "NO_SUCH_RUN" }));
  });
});
