import { describe, expect, it } from "vitest";
import { DirtmapError } from "../errors.js";
import { type ControlLink, Peer, PeerAborted, UNTIL_LOST } from "./peer.js";
import type { ControlMessage } from "./stream/messages.js";

/** A link whose other side is the test. */
function scripted() {
  const queue: (ControlMessage | Error)[] = [];
  let wake = () => {};
  let taken = 0;
  const link: ControlLink = {
    send: async () => {},
    receive: async () => {
      for (;;) {
        const next = queue.shift();
        if (next instanceof Error) throw next;
        if (next !== undefined) {
          taken++;
          return next;
        }
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    },
    close: async () => {},
  };
  const arrives = (...messages: (ControlMessage | Error)[]) => {
    queue.push(...messages);
    wake();
  };
  return { peer: new Peer(link), arrives, taken: () => taken };
}

const go: ControlMessage = { type: "GO" };
const running: ControlMessage = { type: "RUNNING", resumeMs: 1 };
const settled = () => new Promise((resolve) => setTimeout(resolve, 5));

describe("the other side of a migration", () => {
  it("gives out messages in order, whether they are waited for or not", async () => {
    const { peer, arrives } = scripted();
    const first = peer.expect(["GO"], 1000);
    arrives(go, running);
    expect(await first).toEqual(go);
    expect(await peer.expect(["RUNNING", "RUN_FAILED"], 1000)).toEqual(running);
  });

  it("keeps a message that comes after the time is over for the next caller", async () => {
    const { peer, arrives } = scripted();
    await expect(peer.expect(["RUNNING"], 5)).rejects.toMatchObject({ code: "TIMED_OUT" });
    arrives(running);
    expect(await peer.expect(["RUNNING"], 1000)).toEqual(running);
  });

  it("notices ABORT while nobody waits, and gives it as the reason from then on", async () => {
    const { peer, arrives } = scripted();
    arrives({ type: "ABORT", code: "X", message: "no more", remedy: "rest" });
    await settled();
    expect(peer.lost.aborted).toBe(true);
    await expect(peer.expect(["GO"], UNTIL_LOST)).rejects.toBeInstanceOf(PeerAborted);
    await expect(peer.expect(["GO"], UNTIL_LOST)).rejects.toMatchObject({ code: "X", remedy: "rest" });
  });

  it("still gives out what came before the connection was lost", async () => {
    const { peer, arrives } = scripted();
    arrives(running, new DirtmapError("gone", { code: "CONNECTION_LOST" }));
    await settled();
    expect(await peer.expect(["RUNNING"], 1000)).toEqual(running);
    await expect(peer.expect(["REPORT"], 1000)).rejects.toMatchObject({ code: "CONNECTION_LOST" });
  });

  it("refuses a message out of turn", async () => {
    const { peer, arrives } = scripted();
    arrives(go);
    await expect(peer.expect(["READY"], 1000)).rejects.toMatchObject({ code: "UNEXPECTED_MESSAGE" });
  });

  it("stops waiting when told to", async () => {
    const { peer } = scripted();
    const stop = new AbortController();
    const waiting = peer.expect(["GO"], UNTIL_LOST, stop.signal);
    stop.abort(new Error("enough"));
    await expect(waiting).rejects.toThrow("enough");
  });

  it("waits for as long as the connection holds: a timer takes that time for what it is", async () => {
    const { peer, arrives } = scripted();
    const waiting = peer.expect(["GO"], UNTIL_LOST);
    await settled();
    arrives(go);
    expect(await waiting).toEqual(go);
    expect(UNTIL_LOST).toBe(2 ** 31 - 1);
  });

  it("reads no further than a bounded number of messages ahead", async () => {
    const { peer, arrives, taken } = scripted();
    arrives(...Array.from({ length: 100 }, () => go));
    await settled();
    expect(taken()).toBeLessThan(20);
    for (let i = 0; i < 100; i++) await peer.expect(["GO"], 1000);
    expect(taken()).toBe(100);
  });
});
