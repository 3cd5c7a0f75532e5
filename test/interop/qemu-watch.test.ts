import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Qemu as Monitor } from "../../src/qemu/qmp/qemu.js";
import { foundOrMissing, MissingError } from "../../tools/vm/missing.js";
import { findQemu } from "../../tools/vm/qemu.js";
import { Child } from "../support/child.js";
import { PROGRAM } from "../support/program.js";
import { requireFound } from "../support/required.js";
import { connect } from "./guest-places.js";

/*
 * `dirtmap watch` of migrations between two real QEMUs under TCG. The guest is a boot sector that writes the same memory again and
 * again, so that a link that is capped never ends.
 */

const LONG = { timeout: 300_000 };

/** Writes 64 KiB in each of six segments from 0x20000 on, with another word each time; for ever. */
const WRITER = Buffer.from("fafcba00208ec231ffb90080f3ab81c2001081fa008075ed40ebe7", "hex");

const found = foundOrMissing(() => findQemu({ needs: [] }));
requireFound("QEMU", found);

describe.skipIf(found instanceof MissingError)("a migration between two QEMUs that is watched", () => {
  let folder: string;
  let source: Monitor;
  let destination: Monitor;
  let processes: ChildProcess[];
  const at = (name: string) => join(folder, name);

  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), "dirtmap-watch-"));
    const sector = Buffer.alloc(512);
    WRITER.copy(sector);
    sector.writeUInt16LE(0xaa55, 510);
    writeFileSync(at("disk"), sector);
    processes = [start("source"), start("destination", "-incoming", "defer")];
    [source, destination] = [await connect(at("source")), await connect(at("destination"))];
    await source.setCapabilities({ events: true });
    await destination.migrateIncoming(`unix:${at("stream")}`);
  }, 120_000);

  afterEach(async () => {
    for (const each of processes) each.kill("SIGKILL");
    await source?.[Symbol.asyncDispose]();
    await destination?.[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true, force: true });
  });

  /** With a second monitor for whoever watches. */
  function start(name: string, ...others: string[]): ChildProcess {
    if (found instanceof MissingError) throw found;
    const options = [
      ...["-accel", "tcg", "-M", "pc", "-m", "32M", "-nodefaults", "-display", "none", "-name", "writer"],
      ...["-drive", `file=${at("disk")},format=raw,if=ide,readonly=off,file.locking=off`],
      ...["-qmp", `unix:${at(name)},server=on,wait=off`, "-qmp", `unix:${at(`${name}-2`)},server=on,wait=off`],
    ];
    return spawn(found.program, [...found.prefix, ...options, ...others], { env: found.env, stdio: "ignore" });
  }

  /** Begins to watch, and then to migrate. @param parameters of the source */
  async function watched(parameters: object): Promise<Child> {
    await source.setParameters({ ...parameters });
    const child = new Child(PROGRAM, "watch", "--qmp", at("source-2"), "--no-store", "--json");
    await child.complained(/waiting for a migration of writer/);
    await source.migrate(`unix:${at("stream")}`);
    return child;
  }

  const NEVER = { "max-bandwidth": 2 ** 20, "downtime-limit": 1 };

  it("completes, seen from before, though QEMU is told to quit at once", LONG, async () => {
    using events = source.events();
    await using child = await watched({ "max-bandwidth": 0, "downtime-limit": 10_000 });
    for await (const { name, data } of events) if (name === "MIGRATION" && data.status === "completed") break;
    await source.quit();
    expect(await child.said("result")).toMatchObject({ result: "completed", watched: { fromBeginning: true } });
    expect(await child.ended).toBe(0);
  });

  it("is cancelled", LONG, async () => {
    await using child = await watched(NEVER);
    await child.said("type", "progress");
    await source.migrateCancel();
    const report = await child.said("result");
    expect(report).toMatchObject({ result: "cancelled", error: { code: "CANCELLED" } });
    expect(report.bytes).toBeGreaterThan(0);
    expect(await child.ended).toBe(1);
  });

  it("fails, as its destination is killed", LONG, async () => {
    await using child = await watched(NEVER);
    await child.said("type", "progress");
    processes[1].kill("SIGKILL");
    expect(await child.said("result")).toMatchObject({ result: "failed", error: { code: "QEMU_MIGRATION_FAILED" } });
    expect(await child.ended).toBe(1);
  });

  it("never converges over a capped link, which is told with why, until its limits are raised", LONG, async () => {
    await using child = await watched(NEVER);
    const { reasons } = await child.said("stalled", true);
    expect((reasons as { code: string }[]).map(({ code }) => code)).toContain("downtime-limit");
    await source.setParameters({ "max-bandwidth": 0, "downtime-limit": 10_000 });
    const report = await child.said("result");
    expect(report).toMatchObject({ result: "completed", watched: { stalls: [{ toMs: expect.any(Number) }] } });
    expect(await child.ended).toBe(0);
  });
});
