import { copyFileSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { openStore } from "../../src/evidence/store/store.js";
import { decodeMessage } from "../../src/migration/stream/control-connection.js";
import { FrameReader } from "../../src/migration/stream/frame-reader.js";
import type { ControlMessage } from "../../src/migration/stream/messages.js";
import { connectControl } from "../../src/migration/transport/connect.js";
import { listen } from "../../src/migration/transport/listener.js";
import { defaultFeedFolder, feedSocket, ownFeedFolder } from "../../src/observe/feed/folder.js";
import { followFeed } from "../../src/observe/feed/follow.js";
import { FEED_VERSION, feedHeaderSchema } from "../../src/observe/feed/schema.js";
import { readAgreement, writeProposal } from "../../src/vfio-user/client/agreement.js";
import { readProposal, writeAgreement } from "../../src/vfio-user/server/negotiation.js";

/*
 * This version of Dirtmap meets an older one, in both roles. What the older one says was recorded by its own code, in
 * test/fixtures: it works, or one line says which side to upgrade.
 */

const fixture = (name: string) =>
  readFileSync(fileURLToPath(new URL(`../../../test/fixtures/${name}`, import.meta.url)));
const folder = mkdtempSync(join(tmpdir(), "dirtmap-versions-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** All that comes until the other side ends. */
async function read(socket: Socket): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of socket) parts.push(part as Buffer);
  return Buffer.concat(parts);
}

describe.each([1, 2])("a source of version %i of the migration protocol", (version) => {
  it("is told to be upgraded, in words that it understands", async () => {
    const refused: unknown[] = [];
    await using listener = await listen({
      endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 },
      onRefused: (error) => refused.push(error),
    });
    const accepted = listener.acceptControl();
    accepted.catch(() => {});
    const socket = connect(listener.endpoint.port, "127.0.0.1");
    // It waits for the destination's first byte before it says anything.
    await new Promise((resolve) => socket.once("readable", resolve));
    socket.write(fixture(`stream-v${version}/control-to-destination.bin`));
    socket.end();
    const said: ControlMessage[] = [];
    for (const { body } of new FrameReader(0, ["CONTROL"]).push(await read(socket))) said.push(decodeMessage(body));
    const told = {
      code: "INCOMPATIBLE",
      message: `the source speaks version ${version} of the migration protocol, and the destination version 3`,
      remedy: "upgrade Dirtmap at the source",
    };
    expect(said).toEqual([{ type: "PING" }, { type: "REFUSE", ...told }]);
    expect(refused).toMatchObject([told]);
  });
});

describe.each([1, 2])("a destination of version %i of the migration protocol", (version) => {
  it("is said to need an upgrade, before anything is offered to it", async () => {
    let heard = Buffer.alloc(0);
    const server = createServer((socket) => {
      socket
        .on("error", () => {})
        .on("data", (bytes: Buffer) => {
          heard = Buffer.concat([heard, bytes]);
        });
      socket.write(fixture(`stream-v${version}/control-to-source.bin`));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      const { port } = server.address() as { port: number };
      await expect(connectControl({ endpoint: { scheme: "tcp", host: "127.0.0.1", port } })).rejects.toMatchObject({
        code: "INCOMPATIBLE",
        message: `the destination speaks version ${version} of the migration protocol, and the source version 3`,
        remedy: "upgrade Dirtmap at the destination",
      });
      expect(heard.toString("latin1")).not.toContain("HELLO");
    } finally {
      server.close();
    }
  });
});

describe("the store", () => {
  it("of version 2 is read as it was written", () => {
    const path = join(folder, "store.db");
    copyFileSync(fileURLToPath(new URL("../../../test/fixtures/store-v2.db", import.meta.url)), path);
    using store = openStore(path);
    expect(store.run(1)).toMatchObject({
      name: "0123abcd",
      totalMs: 12.5,
      reads: [{ owners: { vf0: { heat: [1, 2, 3] } } }],
    });
    expect(store.benchmark(1)).toMatchObject({ kind: "trackers", result: { devices: [] } });
  });
});

/** A feed as another process publishes it. */
async function feedOf(lines: string): Promise<Disposable> {
  ownFeedFolder(defaultFeedFolder());
  const path = feedSocket(defaultFeedFolder(), "0123abcd");
  rmSync(path, { force: true });
  const server = createServer((socket) => socket.on("error", () => {}).end(lines));
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return { [Symbol.dispose]: () => void server.close() };
}

describe("the live feed", () => {
  const recorded = fixture("feed-v1.jsonl").toString();

  it("of version 1 is followed to its end", async () => {
    using _feed = await feedOf(recorded);
    using followed = await followFeed("0123abcd");
    const events: string[] = [];
    for await (const { type } of followed) events.push(type);
    expect(events).toEqual(["phase", "round", "phase"]);
  });

  it.each([
    [FEED_VERSION + 1, "upgrade Dirtmap at the reader"],
    [FEED_VERSION - 1, "upgrade Dirtmap at the run's process"],
  ])("of version %i says which side to upgrade", async (version, remedy) => {
    using _feed = await feedOf(recorded.replace('"schemaVersion":1', `"schemaVersion":${version}`));
    await expect(followFeed("0123abcd")).rejects.toMatchObject({ code: "INCOMPATIBLE", remedy });
  });

  it("is published with a header that a reader of version 1 accepts", () => {
    const [header] = recorded.split("\n");
    expect(feedHeaderSchema.parse(JSON.parse(header))).toMatchObject({ schemaVersion: 1, run: "0123abcd" });
  });
});

describe("vfio-user, on the device's and on the control connection,", () => {
  it("takes what an older client proposes and what an older server answers", () => {
    const proposal = fixture("vfio-user-v0.1-proposal.bin");
    const agreement = fixture("vfio-user-v0.1-agreement.bin");
    // It said nothing of Dirtmap's own commands yet.
    expect(readProposal(proposal)).toEqual({ ...readProposal(writeProposal()), dirtmap: null });
    const { dirtmap: _, ...taken } = readAgreement(agreement);
    expect(readAgreement(writeAgreement(readProposal(proposal)))).toMatchObject(taken);
  });

  it("says which versions it speaks where another is proposed or chosen", () => {
    const other = (bytes: Buffer) => {
      const changed = Buffer.from(bytes);
      changed.writeUInt16LE(1, 0);
      return changed;
    };
    const refused = { code: "EPROTONOSUPPORT", remedy: expect.stringMatching(/upgrade the (client|server)/) };
    expect(() => readProposal(other(fixture("vfio-user-v0.1-proposal.bin")))).toThrow(expect.objectContaining(refused));
    expect(() => readAgreement(other(fixture("vfio-user-v0.1-agreement.bin")))).toThrow(
      expect.objectContaining(refused),
    );
  });
});
