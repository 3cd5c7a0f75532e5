import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MigrationSettings } from "./migration-settings.js";
import { MigrationWatch } from "./migration-status.js";
import { FakeQemu } from "./qmp/fake-qemu.test.helper.js";
import { Qemu } from "./qmp/qemu.js";
import { SocketMonitor } from "./qmp/socket-monitor.js";

/*
 * QEMU's own migration: its settings while one of ours lasts, and its statuses.
 */

let fake: FakeQemu;
let qemu: Qemu;
let capabilities: Record<string, boolean>;
let parameters: Record<string, unknown>;

beforeEach(async () => {
  fake = await FakeQemu.start();
  capabilities = { events: false, multifd: true, "return-path": false };
  parameters = { "downtime-limit": 300, "max-bandwidth": 1000, "tls-creds": "" };
  fake.answers.set("query-migrate-capabilities", () =>
    Object.entries(capabilities).map(([capability, state]) => ({ capability, state })),
  );
  fake.answers.set("migrate-set-capabilities", ({ arguments: { capabilities: list } }) => {
    for (const { capability, state } of list as { capability: string; state: boolean }[])
      capabilities[capability] = state;
    return {};
  });
  fake.answers.set("query-migrate-parameters", () => parameters);
  fake.answers.set("migrate-set-parameters", ({ arguments: its }) => {
    Object.assign(parameters, its);
    return {};
  });
  qemu = new Qemu(await SocketMonitor.open(fake.path));
});

afterEach(async () => {
  await qemu[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

describe("settings for a migration", () => {
  it("are changed, and put back as they were: only those that differed", async () => {
    const before = [{ ...capabilities }, { ...parameters }];
    const wanted = { capabilities: { events: true, multifd: true }, parameters: { "downtime-limit": 50 } };
    const settings = await MigrationSettings.change(qemu, wanted);
    expect([capabilities, parameters]).toMatchObject([
      { events: true, multifd: true },
      { "downtime-limit": 50, "max-bandwidth": 1000 },
    ]);
    const sets = fake.commands.filter(({ execute }) => execute.startsWith("migrate-set"));
    expect(sets.map((set) => set.arguments)).toEqual([
      { capabilities: [{ capability: "events", state: true }] },
      { "downtime-limit": 50 },
    ]);
    expect(await settings.restore()).toEqual([]);
    expect([capabilities, parameters]).toEqual(before);
  });

  it("change nothing where QEMU lacks one of them", async () => {
    const wanted = { capabilities: { events: true, teleport: true } };
    await expect(MigrationSettings.change(qemu, wanted)).rejects.toMatchObject({
      code: "NO_SUCH_SETTING",
      message: expect.stringContaining("'teleport'"),
    });
    expect(capabilities.events).toBe(false);
  });

  it("are put back where a later one is refused", async () => {
    fake.refuse("migrate-set-parameters", "out of range");
    const wanted = { capabilities: { events: true }, parameters: { "downtime-limit": 2 ** 31 } };
    await expect(MigrationSettings.change(qemu, wanted)).rejects.toMatchObject({ code: "QMP_REFUSED" });
    expect(capabilities.events).toBe(false);
  });

  it("tell what could not be put back", async () => {
    const settings = await MigrationSettings.change(qemu, { capabilities: { events: true } });
    fake.refuse("migrate-set-capabilities", "There's a migration process in progress");
    expect(await settings.restore()).toEqual([expect.stringContaining("in progress")]);
  });
});

describe("the status of a migration", () => {
  let status: Record<string, unknown>;

  beforeEach(() => {
    status = { status: "setup" };
    fake.answers.set("query-migrate", () => status);
  });

  it("is waited for, and looked at after each event", async () => {
    using watch = new MigrationWatch(qemu);
    const seen: unknown[] = [];
    const waiting = watch.until(["pre-switchover"], { onInfo: (info) => seen.push(info.status) });
    for (const next of ["active", "pre-switchover"]) {
      status = { status: next };
      fake.event("MIGRATION", status);
    }
    expect((await waiting).status).toBe("pre-switchover");
    expect(seen.at(-1)).toBe("pre-switchover");
    status = { status: "completed" };
    expect((await watch.until(["completed"])).status).toBe("completed");
  });

  it("is an error where the migration ends otherwise, with QEMU's reason", async () => {
    using watch = new MigrationWatch(qemu);
    status = { status: "failed", "error-desc": "Unable to write to socket: Broken pipe" };
    await expect(watch.until(["completed"])).rejects.toMatchObject({
      code: "QEMU_MIGRATION_FAILED",
      message: expect.stringContaining("Broken pipe"),
    });
  });

  it("is not waited for without end, nor after a signal, nor when QEMU has gone", async () => {
    using watch = new MigrationWatch(qemu);
    await expect(watch.until(["completed"], { limitMs: 0 })).rejects.toMatchObject({ code: "TIMED_OUT" });
    const abort = new AbortController();
    const waiting = watch.until(["completed"], { signal: abort.signal });
    abort.abort(new Error("enough"));
    await expect(waiting).rejects.toThrow("enough");
    const other = watch.until(["completed"]);
    fake.hangUp();
    await expect(other).rejects.toMatchObject({ code: "QMP_CLOSED" });
  });
});
