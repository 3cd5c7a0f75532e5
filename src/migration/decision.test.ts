import { existsSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { createConnection, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DirtmapError } from "../errors.js";
import type { ProcessIdentity } from "../sys/process-identity.js";
import { type Decision, DecisionListener, decisionCommand, decisionSocket, sendDecision } from "./decision.js";
import { Journal, journalPath, readJournal } from "./journal.js";
import { ELSEWHERE, ENDED, pretendWriter } from "./journal.test.helper.js";
import { notePath, writeNote } from "./outliving.js";

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

/** A journal that says `given-up`, as a process wrote it that is not this one. */
function givenUpBy(other: Partial<ProcessIdentity>): void {
  pretendWriter(journalOf("given-up").path, other);
}

function journalOf(...states: ("given-up" | "gone")[]) {
  const journal = Journal.source(directory, "m1", "tls://there:1");
  for (const state of states) journal.record(state);
  return journal;
}

const nobody = async (): Promise<string> => {
  throw new Error("nobody was to decide");
};

describe("the operator's decision", () => {
  it.each(["resume", "abort"] as const)("%s reaches the source, and its answer comes back", async (decision) => {
    journalOf("given-up");
    const heard: Decision[] = [];
    await using _listener = await DecisionListener.open(directory, "m1", async (said) => {
      heard.push(said);
      return "as you wish";
    });
    expect(await sendDecision(directory, "m1", decision)).toBe("as you wish");
    expect(heard).toEqual([decision]);
  });

  it("that the source can't follow is an error with its words", async () => {
    journalOf("given-up");
    await using _listener = await DecisionListener.open(directory, "m1", async () => {
      throw new DirtmapError("too late", { code: "DECIDED" });
    });
    await expect(sendDecision(directory, "m1", "resume")).rejects.toMatchObject({
      code: "DECISION_REFUSED",
      message: "too late",
    });
  });

  it("is none where something else is said", async () => {
    await using _listener = await DecisionListener.open(directory, "m1", nobody);
    expect(await say("run!\n")).toContain('"done":false');
    expect(await say("x".repeat(1000))).not.toContain("done");
  });

  it("is for the user's own processes alone", async () => {
    await using _listener = await DecisionListener.open(directory, "m1", nobody);
    expect(statSync(decisionSocket(directory, "m1")).mode & 0o777).toBe(0o600);
  });

  it("leaves no socket behind, and takes the place of one that a crash left", async () => {
    for (let i = 0; i < 2; i++) {
      await using _listener = await DecisionListener.open(directory, "m1", nobody);
      expect(existsSync(decisionSocket(directory, "m1"))).toBe(true);
    }
    expect(existsSync(decisionSocket(directory, "m1"))).toBe(false);
  });

  it.each(["0000", "../m1", ""])("about the unknown migration '%s' is refused", async (id) => {
    await expect(sendDecision(directory, id, "resume")).rejects.toMatchObject({ code: "NO_SUCH_MIGRATION" });
  });

  it("is refused where nothing is undecided", async () => {
    journalOf();
    await expect(sendDecision(directory, "m1", "resume")).rejects.toMatchObject({ code: "NOT_UNDECIDED" });
    expect(readJournal(directory, "m1", "source")?.state).toBe("running");
  });

  it.each(["resume", "abort"] as const)(
    "%s is not made in the place of a process that lives and doesn't listen",
    async (decision) => {
      journalOf("given-up");
      await expect(sendDecision(directory, "m1", decision)).rejects.toMatchObject({ code: "SOURCE_NOT_LISTENING" });
      expect(readJournal(directory, "m1", "source")?.state).toBe("given-up");
    },
  );

  it("is not made in the place of a process on another computer, which can't be seen from here", async () => {
    givenUpBy(ELSEWHERE);
    const refused = sendDecision(directory, "m1", "abort");
    await expect(refused).rejects.toMatchObject({ code: "SOURCE_ELSEWHERE", remedy: /decide on elsewhere/ });
    expect(readJournal(directory, "m1", "source")?.state).toBe("given-up");
  });

  it("to abort is recorded where the process has ended, also if another process has its pid now", async () => {
    givenUpBy(ENDED);
    expect(await sendDecision(directory, "m1", "abort")).toContain("had ended already");
    expect(readJournal(directory, "m1", "source")?.state).toBe("gone");
  });

  it("to resume a machine that ended with its process says where to look instead", async () => {
    givenUpBy(ENDED);
    const refused = sendDecision(directory, "m1", "resume");
    await expect(refused).rejects.toMatchObject({
      code: "SOURCE_ENDED",
      remedy: expect.stringContaining("tls://there:1"),
    });
    expect(readJournal(directory, "m1", "source")?.state).toBe("given-up");
  });

  it("is not said to a process that stands still, which would find it when it wakes up", {
    timeout: 30_000,
  }, async () => {
    journalOf("given-up");
    let heard = "";
    const silent = createServer((socket) => socket.on("data", (data) => (heard += String(data))));
    await new Promise<void>((resolve) => silent.listen(decisionSocket(directory, "m1"), resolve));
    await expect(sendDecision(directory, "m1", "resume", 200)).rejects.toMatchObject({
      code: "SOURCE_SILENT",
      remedy: expect.stringContaining(`kill -CONT ${process.pid}`),
    });
    expect(heard).toBe("");
    silent.close();
  });

  it("needs a path that a UNIX socket can have", () => {
    expect(() => decisionSocket(join(directory, "x".repeat(100)), "m1")).toThrow(/too long/);
  });
});

describe("the command for a decision", () => {
  it.each([
    ["/var/lib/dirtmap", "dirtmap resume 1f0c --journal /var/lib/dirtmap"],
    ["/home/o'neil/my journals", "dirtmap resume 1f0c --journal '/home/o'\\''neil/my journals'"],
  ])("names the journals in %s so that a shell takes it", (folder, command) => {
    expect(decisionCommand("resume", "1f0c", folder)).toBe(command);
  });

  it("can be typed in any directory", () => {
    expect(decisionCommand("abort", "1f0c", "journals")).toBe(`dirtmap abort 1f0c --journal ${process.cwd()}/journals`);
  });
});

describe("a decision about a machine that outlives its process", () => {
  /** Notes what is done, and which state the journal had then. */
  function machine(isWhole = () => true) {
    const done: string[] = [];
    const doing = (what: string) => async () => {
      done.push(`${what} in '${readJournal(directory, "m1", "source")?.state}'`);
      return what;
    };
    const find = async (note: unknown) => {
      expect(note).toEqual({ of: "a guest" });
      return {
        takeBack: async () => ({ said: await doing("taken back")(), isWhole: isWhole() }),
        giveUp: doing("given up"),
        [Symbol.asyncDispose]: async () => {},
      };
    };
    writeNote(directory, "m1", { of: "a guest" });
    return { done, find };
  }

  it.each([
    { decision: "resume", said: "taken back", state: "running" },
    { decision: "abort", said: "given up", state: "gone" },
  ] as const)("$decision is recorded first, and then carried out", async ({ decision, said, state }) => {
    givenUpBy(ENDED);
    const { done, find } = machine();
    expect(await sendDecision(directory, "m1", decision, undefined, find)).toBe(said);
    expect(done).toEqual([`${said} in '${state}'`]);
    expect(existsSync(notePath(directory, "m1"))).toBe(false);
  });

  it("is `resume` alone where it was never given up", async () => {
    pretendWriter(journalOf().path, ENDED);
    const { done, find } = machine();
    await expect(sendDecision(directory, "m1", "abort", undefined, find)).rejects.toMatchObject({
      code: "NOT_UNDECIDED",
    });
    expect(await sendDecision(directory, "m1", "resume", undefined, find)).toBe("taken back");
    expect(done).toEqual(["taken back in 'running'"]);
  });

  it("can be said again where it could not be carried out", async () => {
    givenUpBy(ENDED);
    const { find } = machine();
    const stuck = async (note: unknown) => ({
      ...(await find(note)),
      takeBack: async () => {
        throw new Error("stuck");
      },
    });
    await expect(sendDecision(directory, "m1", "resume", undefined, stuck)).rejects.toThrow("stuck");
    pretendWriter(journalPath(directory, "m1", "source"), ENDED);
    expect(await sendDecision(directory, "m1", "resume", undefined, find)).toBe("taken back");
  });

  it("can be said again where the machine lacks what may still come back", async () => {
    givenUpBy(ENDED);
    let times = 0;
    const { find } = machine(() => ++times > 1);
    for (const isOver of [false, true]) {
      expect(await sendDecision(directory, "m1", "resume", undefined, find)).toBe("taken back");
      expect(existsSync(notePath(directory, "m1"))).toBe(!isOver);
      pretendWriter(journalPath(directory, "m1", "source"), ENDED);
    }
  });

  it.each([ELSEWHERE, {}])("is not carried out while its process may live: %j", async (writer) => {
    givenUpBy(writer);
    const { done, find } = machine();
    await expect(sendDecision(directory, "m1", "resume", undefined, find)).rejects.toThrow(DirtmapError);
    expect(done).toEqual([]);
  });
});
