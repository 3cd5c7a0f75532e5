import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, it } from "vitest";
import { EXIT_CODES } from "../../src/cli/exit-codes.js";
import { readJournal } from "../../src/migration/journal.js";
import type { Child } from "../support/child.js";
import { CommandLine } from "../support/command-line.js";
import { type FrameProxy, frameProxy, says } from "../support/frame-proxy.js";
import { statesOf } from "../support/journal-states.js";
import { PROGRAM } from "../support/program.js";

/* A handover that is not confirmed, with real `dirtmap` processes and no terminal. */

/** For a test of several processes, each of which takes its time to start on a busy computer. */
const PATIENCE_MS = 300_000;

const folder = mkdtempSync(join(tmpdir(), "dirtmap-cli-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
// A name that a shell would take apart.
const journals = join(folder, "o'neil & sons");
mkdirSync(journals);
const commands = new CommandLine(folder, journals);

const opened: AsyncDisposable[] = [];
afterEach(async () => {
  for (const each of opened.splice(0).reverse()) await each[Symbol.asyncDispose]();
});
function kept<T extends AsyncDisposable>(each: T): T {
  opened.push(each);
  return each;
}

/** Starts a migration that loses one kind of message, with the connection, just after the source has given up. */
async function losing(type: "GO" | "RUNNING", ...options: string[]): Promise<{ source: Child; destination: Child }> {
  const { child, port } = await commands.receive();
  const destination = kept(child);
  const cut = (frame: Buffer) => (says(frame, type) ? ("cut" as const) : frame);
  const proxy: FrameProxy = await frameProxy(port, { toDestination: cut, toSource: cut });
  kept({ [Symbol.asyncDispose]: async () => proxy.close() });
  const source = kept(commands.migrate("--to", `tcp://127.0.0.1:${proxy.port}`, ...options));
  return { source, destination };
}

interface UndecidedEvent {
  readonly event: "undecided";
  readonly migration: string;
  readonly resume: string;
  readonly abort: string;
  readonly until: string | null;
  readonly pid: number;
}

/** The line of JSON on standard error. */
async function undecided(source: Child): Promise<UndecidedEvent> {
  const [line] = await source.complained(/^\{.*"event":"undecided".*\}$/m);
  return JSON.parse(line) as UndecidedEvent;
}

/** Types a command as it was printed, into a shell in another directory. */
function typed(command: string) {
  const dirtmap = `dirtmap() { "$NODE" "$PROGRAM" "$@"; }; ${command}`;
  return spawnSync("sh", ["-c", dirtmap], {
    cwd: "/",
    encoding: "utf8",
    env: { ...process.env, NODE: process.execPath, PROGRAM },
  });
}

async function listed(): Promise<Record<string, unknown>[]> {
  const list = kept(commands.run("list"));
  expect(await list.ended).toBe(EXIT_CODES.done.code);
  return (await list.said("migrations")).migrations as Record<string, unknown>[];
}

describe("a handover that is not confirmed, without a terminal, in quiet,", { timeout: PATIENCE_MS }, () => {
  it("is waited for without limit; interrupts don't end that, and the command that is printed does", async () => {
    const { source } = await losing("GO", "--quiet");
    const { migration, resume, until, pid } = await undecided(source);
    expect(until).toBe(null);
    expect(pid).toBe(source.process.pid);
    source.kill("SIGHUP");
    await source.complained(/still waiting for a decision: `dirtmap resume .*A second interrupt forces/);
    expect(await listed()).toMatchObject([
      { migration, side: "source", state: "given-up", standing: "waits", pid, alive: true, commands: [resume, {}] },
    ]);
    const { status, stdout } = typed(resume);
    expect([status, stdout]).toEqual([0, "the source's machine runs again\n"]);
    expect(await source.ended).toBe(EXIT_CODES.failed.code);
    expect(await source.said("result")).toMatchObject({ migration, result: "failed" });
    expect(statesOf(journals, migration, "source")).toEqual(["running", "given-up", "running"]);
  });

  it("ends as failed where the operator aborts: nothing waits for a decision then", async () => {
    const { source, destination } = await losing("RUNNING", "--quiet");
    const { migration, abort } = await undecided(source);
    expect(typed(abort).status).toBe(0);
    expect(await source.ended).toBe(EXIT_CODES.failed.code);
    expect(await source.said("result")).toMatchObject({ result: "indeterminate", error: { code: "GIVEN_UP" } });
    expect(await destination.said("event", "running")).toMatchObject({ migration });
    expect((await listed()).map(({ side, says }) => [side, says])).toContainEqual([
      "destination",
      "the machine runs here",
    ]);
  });

  it.each(["SIGINT", "SIGTERM", "SIGHUP"] as const)(
    "is forced to an end by a second %s, which says what is lost",
    async (signal) => {
      const { source } = await losing("GO");
      const { migration, resume, abort } = await undecided(source);
      source.kill(signal);
      await source.complained(/still waiting for a decision/);
      source.kill(signal);
      expect(await source.ended).toBe(EXIT_CODES.cancelled.code);
      expect(source.errors).toMatch(/forced: the source's memory is gone/);
      const { status, stderr } = typed(resume);
      expect(status).toBe(EXIT_CODES.failed.code);
      expect(stderr).toMatch(/has ended, and the machine's memory with it.*`dirtmap abort/);
      expect(readJournal(journals, migration, "source")?.state).toBe("given-up");
      expect(typed(abort).status).toBe(0);
      expect(statesOf(journals, migration, "source")).toEqual(["running", "given-up", "gone"]);
    },
  );

  it("ends with exit code 3 after a limit that was asked for, and says so before", async () => {
    const { source } = await losing("GO", "--decide", "1s");
    const { migration, until, abort } = await undecided(source);
    expect(Date.parse(until ?? "")).toBeGreaterThan(0);
    expect(await source.ended).toBe(EXIT_CODES.indeterminate.code);
    const { error } = await source.said("result", "indeterminate");
    expect(error).toMatchObject({
      code: "GO_NOT_CONFIRMED",
      message: expect.stringContaining("ends with its process"),
    });
    // The only command that can work is the only one that is shown.
    const waiting = (await listed()).find((each) => each.migration === migration && each.side === "source");
    expect(waiting).toMatchObject({ standing: "waits", alive: false, commands: [abort] });
    expect(typed(abort).status).toBe(0);
  });

  it("is waited for by a process to whose standard error nobody listens any more", async () => {
    const { source } = await losing("GO");
    const { migration, resume } = await undecided(source);
    source.process.stderr?.destroy();
    source.kill("SIGTERM");
    // It answers: so it has survived what it could not say.
    await expect.poll(() => typed(resume).status, { timeout: PATIENCE_MS }).toBe(0);
    expect(await source.ended).toBe(EXIT_CODES.failed.code);
    expect(statesOf(journals, migration, "source").at(-1)).toBe("running");
  });
});

describe("a decision without an id", { timeout: PATIENCE_MS }, () => {
  it.each(["resume", "abort"])("lists those that wait, and decides nothing: dirtmap %s", async (decision) => {
    const { source } = await losing("GO");
    const { migration } = await undecided(source);
    const asked = kept(commands.run(decision));
    expect(await asked.ended).toBe(EXIT_CODES.usage.code);
    const { migrations } = await asked.said("migrations");
    expect(migrations).toContainEqual(expect.objectContaining({ migration, standing: "waits" }));
    expect(asked.errors).toBe(`dirtmap: nothing was decided: say which migration, \`dirtmap ${decision} ID\`\n`);
    expect(readJournal(journals, migration, "source")?.state).toBe("given-up");
  });
});
