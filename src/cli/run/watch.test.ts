import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openStore } from "../../evidence/store/store.js";
import { migrationEventSchema } from "../../migration/events-schema.js";
import { migrationReportSchema } from "../../migration/report-schema.js";
import { FakeQemu } from "../../qemu/qmp/fake-qemu.test.helper.js";
import { asGuest, BEGINS, play, RECORDED } from "../../qemu/watch/recorded.test.helper.js";

/*
 * `dirtmap watch`, as an operator runs it, of a QEMU that is a fake. What is seen of each migration is
 * qemu/watch/watch-guest.test.ts.
 */

const PROGRAM = fileURLToPath(new URL("../../../../bin/dirtmap.js", import.meta.url));
const LONG = { timeout: 60_000 };

let fake: FakeQemu;
let folder: string;
beforeEach(async () => {
  fake = asGuest(await FakeQemu.start());
  folder = mkdtempSync(join(tmpdir(), "dirtmap-watch-"));
});
afterEach(async () => {
  await fake[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** @param onNote called with standard error, as it grows */
async function dirtmap(
  args: readonly string[],
  onNote: (stderr: string, interrupt: () => void) => void = () => {},
): Promise<Ended> {
  const env = { ...process.env, XDG_DATA_HOME: folder, XDG_RUNTIME_DIR: folder };
  const child = spawn(process.execPath, [PROGRAM, ...args], { stdio: ["ignore", "pipe", "pipe"], env });
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
    onNote(stderr, () => child.kill("SIGINT"));
  });
  const [code] = await once(child, "close");
  return { code: code as number | null, stdout, stderr };
}

const watch = (...args: string[]) => dirtmap(["watch", "--qmp", fake.path, ...args]);

describe.runIf(process.platform === "linux")("dirtmap watch", () => {
  it("keeps what it saw in the store, beside Dirtmap's own runs, and in a report", LONG, async () => {
    play(fake, RECORDED.completed);
    const [store, file] = [join(folder, "evidence.db"), join(folder, "report.md")];
    const { code, stdout, stderr } = await watch("--store", store, "--report", file);
    expect(code, stderr).toBe(0);
    expect(stderr).toContain("waiting for a migration of vm7 (mtty0)");
    expect(stderr).toContain("mtty0: stop-copy");
    expect(stdout).toMatch(/^completed · downtime 312 ms · total 1\.33 s/);
    expect(stdout).toContain("watched: guest vm7, from the beginning; QEMU was told nothing");
    using kept = openStore(store);
    const [{ id, ...run }] = kept.runs({ limit: 10 });
    expect(run).toMatchObject({ kind: "migration", host: "qemu", result: "completed" });
    const { header, report } = kept.run(id) ?? {};
    expect(header).toMatchObject({ devices: [{ id: "mtty0", model: "vfio-pci", tracker: "vmm" }] });
    expect(report).toMatchObject({ policy: "watched", watched: { name: "vm7" } });
    expect(readFileSync(file, "utf8")).toContain("mtty0: pre-copy");
  });

  it("prints events and the report as JSON, by the schemas of every other migration", LONG, async () => {
    play(fake, RECORDED.failed);
    const { code, stdout } = await watch("--json", "--quiet", "--no-store");
    expect(code).toBe(1);
    const lines = stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as { schemaVersion: number });
    expect(lines.every(({ schemaVersion }) => schemaVersion === 1)).toBe(true);
    const report = migrationReportSchema.parse(lines.at(-1));
    expect(report.error?.message).toContain("Broken pipe");
    const events = lines.slice(0, -1).map((line) => migrationEventSchema.parse(line));
    expect(new Set(events.map(({ type }) => type))).toEqual(new Set(["phase", "device", "progress", "diagnosis"]));
  });

  it("ends with 0 where QEMU is gone right after it completed", LONG, async () => {
    play(fake, RECORDED.completedAndGone, { ends: true });
    expect((await watch("--quiet", "--no-store")).code).toBe(0);
  });

  it("ends with 1 where the migration is cancelled", LONG, async () => {
    play(fake, RECORDED.cancelled);
    const { code, stdout } = await watch("--quiet", "--no-store");
    expect([code, stdout]).toEqual([1, expect.stringMatching(/^cancelled · .*\n {2}the migration was cancelled\n/)]);
  });

  it("ends with 3 where QEMU is gone without a word", LONG, async () => {
    play(fake, RECORDED.completed.slice(0, BEGINS.length + 2), { ends: true });
    const { code, stdout } = await watch("--quiet", "--no-store");
    expect([code, stdout]).toEqual([3, expect.stringContaining("lost sight of while its migration was 'active'")]);
  });

  it("ends with 130 by Ctrl-C, while it waits or watches: the migration goes on", LONG, async () => {
    const args = ["watch", "--qmp", fake.path, "--no-store"];
    let asked = false;
    const once = (word: string) => (stderr: string, interrupt: () => void) => {
      if (!asked && stderr.includes(word)) interrupt();
      asked ||= stderr.includes(word);
    };
    expect((await dirtmap(args, once("waiting for"))).code).toBe(130);
    play(fake, RECORDED.completed.slice(0, BEGINS.length + 2));
    asked = false;
    const { code, stdout, stderr } = await dirtmap(args, once("mtty0: pre-copy"));
    expect(code).toBe(130);
    expect(stderr).toContain("the migration goes on");
    expect(stdout).toContain("the watch was ended while the migration was 'active'");
    expect(fake.commands.filter(({ execute }) => !/^(query-|qom-)/.test(execute))).toEqual([]);
  });

  it.each([
    ["without a QEMU", ["watch"], "give --qmp PATH"],
    ["of two", ["watch", "--qmp", "a", "--libvirt", "b"], "two ways to one QEMU"],
    ["at a socket that is not there", ["watch", "--qmp", "/nowhere/qmp"], "no such socket"],
  ])("is refused %s", LONG, async (_, args, says) => {
    const { code, stderr } = await dirtmap(args);
    expect(code, stderr).toBe(2);
    expect(stderr).toContain(says);
  });

  it("is refused at the destination", LONG, async () => {
    fake.answer("query-status", { running: false, status: "inmigrate" });
    const { code, stderr } = await watch();
    expect([code, stderr]).toEqual([2, expect.stringContaining("watch the QEMU that the guest runs in")]);
  });
});
