import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { createConnection } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DecisionListener, decisionSocket, sendDecision } from "./decision.js";
import { Journal, readJournal } from "./journal.js";

let directory = "";
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "dirtmap-decision-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

/** Says something to the socket, and returns all that comes back. */
function say(text: string): Promise<string> {
  return new Promise((resolve) => {
    const socket = createConnection(decisionSocket(directory, "m1"), () => socket.write(text));
    let answer = "";
    socket.on("data", (data) => {
      answer += String(data);
    });
    socket.on("error", () => {});
    socket.on("close", () => resolve(answer));
  });
}

describe("the operator's decision", () => {
  it.each(["resume", "abort"] as const)(
    "%s reaches the source that waits, and its answer comes back",
    async (decision) => {
      Journal.source(directory, "m1", "there").record("given-up");
      await using listener = await DecisionListener.open(directory, "m1");
      const answer = sendDecision(directory, "m1", decision);
      const decided = await listener.decided;
      expect(decided.decision).toBe(decision);
      decided.answer({ done: true, message: "as you wish" });
      expect(await answer).toBe("as you wish");
    },
  );

  it("that the source can't follow is an error with its words", async () => {
    Journal.source(directory, "m1", "there").record("given-up");
    await using listener = await DecisionListener.open(directory, "m1");
    const answer = sendDecision(directory, "m1", "resume");
    (await listener.decided).answer({ done: false, message: "too late" });
    await expect(answer).rejects.toThrow("too late");
  });

  it("is none where something else is said", async () => {
    await using listener = await DecisionListener.open(directory, "m1");
    expect(await say("run!\n")).toContain('"done":false');
    expect(await say("x".repeat(1000))).toBe("");
    const first = await Promise.race([listener.decided, Promise.resolve("nothing")]);
    expect(first).toBe("nothing");
  });

  it("leaves no socket behind, and takes the place of one that a crash left", async () => {
    for (let i = 0; i < 2; i++) {
      await using _listener = await DecisionListener.open(directory, "m1");
      expect(existsSync(decisionSocket(directory, "m1"))).toBe(true);
    }
    expect(existsSync(decisionSocket(directory, "m1"))).toBe(false);
  });

  it("about an unknown migration is refused", async () => {
    await expect(sendDecision(directory, "m1", "resume")).rejects.toMatchObject({ code: "NO_SUCH_MIGRATION" });
  });

  it("is refused where nothing is undecided", async () => {
    Journal.source(directory, "m1", "there");
    await expect(sendDecision(directory, "m1", "resume")).rejects.toMatchObject({ code: "NOT_UNDECIDED" });
  });

  it("to resume a machine that ended with its process says where to look instead", async () => {
    Journal.source(directory, "m1", "tls://there:1").record("given-up");
    const refused = sendDecision(directory, "m1", "resume");
    await expect(refused).rejects.toMatchObject({
      code: "SOURCE_ENDED",
      remedy: expect.stringContaining("tls://there:1"),
    });
    expect(readJournal(directory, "m1", "source")?.state).toBe("given-up");
  });

  it("needs a path that a UNIX socket can have", () => {
    expect(() => decisionSocket(join(directory, "x".repeat(100)), "m1")).toThrow(/too long/);
  });
});
