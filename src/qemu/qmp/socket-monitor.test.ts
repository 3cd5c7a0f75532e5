import { writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FakeQemu } from "./fake-qemu.test.helper.js";
import { QmpRefusal } from "./monitor.js";
import { SocketMonitor } from "./socket-monitor.js";

/*
 * A monitor at a UNIX socket: QEMU's, another's, and one that misbehaves.
 */

describe("a QMP monitor at a socket", () => {
  let fake: FakeQemu;

  beforeEach(async () => {
    fake = await FakeQemu.start();
  });

  afterEach(() => fake[Symbol.asyncDispose]());

  it("answers commands, several of them under way", async () => {
    await using monitor = await SocketMonitor.open(fake.path);
    fake.answers.set("add", ({ arguments: { a, b } }) => (a as number) + (b as number));
    const sums = await Promise.all([1, 2, 3].map((a) => monitor.execute("add", { a, b: 10 })));
    expect(sums).toEqual([11, 12, 13]);
    expect(new Set(fake.commands.map(({ id }) => id)).size).toBe(3);
  });

  it("refuses a command with QEMU's own words, made harmless, and goes on", async () => {
    await using monitor = await SocketMonitor.open(fake.path);
    fake.refuse("stop", "no\u001b[31m way").answer("cont", {});
    const error = await monitor.execute("stop").catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(QmpRefusal);
    expect(error).toMatchObject({ code: "QMP_REFUSED", qemuClass: "GenericError", reason: "no\\u{1b}[31m way" });
    await expect(monitor.execute("fly")).rejects.toMatchObject({ remedy: expect.stringContaining("newer QEMU") });
    await expect(monitor.execute("cont")).resolves.toEqual({});
  });

  it("tells events in order, to each who listens, and leaves none out", async () => {
    await using monitor = await SocketMonitor.open(fake.path);
    using early = monitor.events();
    fake.answer("sync", {});
    for (let i = 0; i < 1000; i++) fake.event("MIGRATION", { status: String(i) });
    await monitor.execute("sync");
    using late = monitor.events();
    fake.event("STOP");
    for (let i = 0; i < 1000; i++) {
      expect((await early.next()).value).toEqual({ name: "MIGRATION", data: { status: String(i) }, at: 1500 });
    }
    expect((await early.next()).value).toMatchObject({ name: "STOP" });
    expect((await late.next()).value).toMatchObject({ name: "STOP" });
  });

  it("fails a command that is not answered in time, and takes its answer for nothing when that comes late", async () => {
    await using monitor = await SocketMonitor.open(fake.path);
    fake.ignore("stop").answer("cont", { late: true });
    await expect(monitor.execute("stop", {}, { limitMs: 20 })).rejects.toMatchObject({ code: "QMP_TIMED_OUT" });
    fake.say(JSON.stringify({ return: {}, id: fake.commands[0].id }));
    await expect(monitor.execute("cont")).resolves.toEqual({ late: true });
  });

  it("takes no notice of what an earlier client was owed", async () => {
    await using monitor = await SocketMonitor.open(fake.path);
    fake.answer("cont", { mine: true });
    for (const id of [1, "5f0c9e1a-1", null]) {
      fake.say(JSON.stringify({ return: {}, id }));
      fake.say(JSON.stringify({ error: { class: "GenericError", desc: "late" }, id }));
    }
    await expect(monitor.execute("cont")).resolves.toEqual({ mine: true });
  });

  it("fails everything once QEMU has gone, events that came before excepted", async () => {
    await using monitor = await SocketMonitor.open(fake.path);
    using events = monitor.events();
    fake.ignore("stop").answer("sync", {});
    fake.event("SHUTDOWN");
    await monitor.execute("sync");
    const stopped = monitor.execute("stop");
    fake.hangUp();
    await expect(stopped).rejects.toMatchObject({ code: "QMP_CLOSED" });
    await expect(monitor.execute("cont")).rejects.toMatchObject({ code: "QMP_CLOSED" });
    expect((await events.next()).value).toMatchObject({ name: "SHUTDOWN" });
    await expect(events.next()).rejects.toMatchObject({ code: "QMP_CLOSED" });
    await expect(monitor.events().next()).rejects.toMatchObject({ code: "QMP_CLOSED" });
  });

  it("says that another client holds it where it accepts and does not greet", async () => {
    await using _first = await SocketMonitor.open(fake.path);
    await expect(SocketMonitor.open(fake.path, { greetingMs: 50 })).rejects.toMatchObject({
      code: "QMP_BUSY",
      message: expect.stringContaining("another client holds the monitor"),
      remedy: expect.stringContaining("a second monitor"),
    });
  });

  it("says what a monitor is that speaks no QMP", async () => {
    fake.greeting = "QEMU 11.1.3 monitor - type 'help' for more information";
    await expect(SocketMonitor.open(fake.path)).rejects.toMatchObject({
      code: "QMP_PROTOCOL",
      message: expect.stringContaining("a monitor for people"),
    });
  });

  it.each([
    ["no JSON", "hello\u0007"],
    ["no greeting", '{"event":"STOP","timestamp":{"seconds":1,"microseconds":1}}'],
    ["an array", "[]"],
  ])("is closed at once where its greeting is %s", async (_, line) => {
    fake.greeting = line;
    const error = await SocketMonitor.open(fake.path).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: "QMP_PROTOCOL" });
    expect(String(error)).not.toContain("\u0007");
  });

  it.each([
    ["an answer that nobody asked for", '{"return":{},"id":"ID9"}'],
    ["an answer without an id", '{"return":{}}'],
    ["an error about no command", '{"error":{"class":"GenericError","desc":"Invalid JSON"}}'],
    ["an event without a time", '{"event":"STOP"}'],
    ["half a line of JSON", '{"return":'],
  ])("is over after %s", async (_, line) => {
    await using monitor = await SocketMonitor.open(fake.path);
    fake.ignore("stop");
    const stopped = monitor.execute("stop");
    await expect.poll(() => fake.commands).toHaveLength(1);
    fake.say(line.replace("ID", fake.commands[0].id));
    await expect(stopped).rejects.toMatchObject({ code: "QMP_PROTOCOL" });
  });

  it("is over after a line that does not end", async () => {
    await using monitor = await SocketMonitor.open(fake.path);
    fake.ignore("stop");
    const stopped = monitor.execute("stop");
    fake.say(`{"return":"${"x".repeat(9 * 2 ** 20)}`);
    await expect(stopped).rejects.toMatchObject({
      code: "QMP_PROTOCOL",
      message: expect.stringContaining("in a line"),
    });
  });

  it("can't be reached where there is none, with what would help", async () => {
    await expect(SocketMonitor.open(`${fake.path}-none`)).rejects.toMatchObject({
      code: "QMP_UNREACHABLE",
      remedy: expect.stringContaining("-qmp unix:"),
    });
    const file = join(fake.path, "../file");
    writeFileSync(file, "");
    await expect(SocketMonitor.open(file)).rejects.toMatchObject({ code: "QMP_UNREACHABLE" });
    const gone = join(fake.path, "../gone");
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(gone, resolve));
    await new Promise((resolve) => server.close(resolve));
    await expect(SocketMonitor.open(gone)).rejects.toMatchObject({ code: "QMP_UNREACHABLE" });
  });
});
