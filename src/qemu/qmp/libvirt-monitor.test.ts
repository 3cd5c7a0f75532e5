import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FakeLibvirt } from "./fake-libvirt.test.helper.js";
import { FakeQemu } from "./fake-qemu.test.helper.js";
import { LibvirtMonitor } from "./libvirt-monitor.js";
import { QmpRefusal } from "./monitor.js";

/*
 * A monitor that libvirt holds, reached through a program `virsh`. What the real one prints was seen with libvirt 12.9.
 */

describe.skipIf(process.platform === "win32")("a QMP monitor in libvirt's hands", () => {
  const { PATH } = process.env;
  // With '"' and "'": a domain may be called anything.
  const NAME = `guest "1" it's`;
  let fake: FakeQemu;
  let libvirt: FakeLibvirt;

  beforeEach(async () => {
    fake = await FakeQemu.start();
    fake.answer("query-status", { running: true, status: "running" }).answer("query-migrate", {});
    libvirt = await FakeLibvirt.start({ [NAME]: fake.path });
    process.env.PATH = libvirt.path;
  });

  afterEach(async () => {
    process.env.PATH = PATH;
    await libvirt[Symbol.asyncDispose]();
    await fake[Symbol.asyncDispose]();
  });

  const open = (connect?: string) => LibvirtMonitor.open({ libvirt: NAME, connect });

  it.each([true, false])("answers commands in order, whether virsh repeats them (%s) or not", async (repeats) => {
    libvirt.repeats = repeats;
    await using monitor = await open();
    fake.answers.set("add", ({ arguments: { a, b } }) => (a as number) + (b as number));
    const sums = await Promise.all([1, 2, 3].map((a) => monitor.execute("add", { a, b: 10 })));
    expect(sums).toEqual([11, 12, 13]);
  });

  it("passes on any text, and stays one command", async () => {
    await using monitor = await open();
    fake.answers.set("echo", ({ arguments: { text } }) => text);
    const text = `it's "a"; quit\necho dirtmap-1\t\\ \u{1f600} {`;
    await expect(monitor.execute("echo", { text })).resolves.toBe(text);
  });

  it("connects where it is told, and names the domain by number and UUID, whose name may be anything", async () => {
    await using monitor = await open("qemu:///session");
    expect(monitor.name).toBe(NAME);
    expect(monitor.place).toEqual({ libvirt: libvirt.domains.get(NAME)?.uuid, connect: "qemu:///session" });
    expect(libvirt.calls.length).toBeGreaterThan(2);
    for (const [, connect] of libvirt.calls) expect(connect).toBe("--connect=qemu:///session");
  });

  it("refuses a command with QEMU's own words, and goes on", async () => {
    await using monitor = await open();
    fake.refuse("stop", "no\u001b[31m way").answer("cont", {});
    const error = await monitor.execute("stop").catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(QmpRefusal);
    expect(error).toMatchObject({ code: "QMP_REFUSED", reason: expect.stringContaining("no\\u{1b}") });
    await expect(monitor.execute("cont")).resolves.toEqual({});
  });

  it("tells events in order, with their times, and leaves none out", async () => {
    await using monitor = await open();
    using events = monitor.events();
    for (let i = 0; i < 300; i++) fake.event("MIGRATION", { status: String(i) });
    fake.event("STOP");
    for (let i = 0; i < 300; i++) {
      expect((await events.next()).value).toEqual({ name: "MIGRATION", data: { status: String(i) }, at: 1500 });
    }
    expect((await events.next()).value).toEqual({ name: "STOP", data: {}, at: 1500 });
  });

  it("makes events of what QEMU answers where libvirt tells none", async () => {
    libvirt.tellsEvents = false;
    await using monitor = await open();
    using events = monitor.events();
    // What it is like at first is no event.
    const asked = () => fake.commands.filter(({ execute }) => execute === "query-migrate").length;
    const before = asked();
    await expect.poll(asked, { timeout: 20_000 }).toBeGreaterThan(before + 1);
    fake.answer("query-migrate", { status: "active" });
    expect((await events.next()).value).toMatchObject({ name: "MIGRATION", data: { status: "active" } });
    fake.answer("query-status", { running: false, status: "finish-migrate" });
    expect((await events.next()).value).toMatchObject({ name: "STOP" });
  });

  it("fails a command that is not answered in time, and does not send what waits behind it", async () => {
    await using monitor = await open();
    fake.ignore("stop").answer("cont", {});
    const stopped = monitor.execute("stop", {}, { limitMs: 200 });
    const continued = monitor.execute("cont", {}, { limitMs: 100 });
    await expect(continued).rejects.toMatchObject({ code: "QMP_TIMED_OUT" });
    await expect(stopped).rejects.toMatchObject({ code: "QMP_TIMED_OUT" });
    const sent = () => fake.commands.find(({ execute }) => execute === "stop");
    await expect.poll(sent, { timeout: 20_000 }).toBeDefined();
    const stop = sent();
    fake.say(JSON.stringify({ return: {}, id: stop?.id }));
    await expect(monitor.execute("query-status")).resolves.toMatchObject({ running: true });
    expect(fake.commands.map(({ execute }) => execute)).not.toContain("cont");
  });

  it("goes on after libvirt was busy with the domain", async () => {
    await using monitor = await open();
    libvirt.failing = "Timed out during operation: cannot acquire state change lock (held by monitor=x)";
    await expect(monitor.execute("query-status")).rejects.toMatchObject({
      code: "QMP_TIMED_OUT",
      remedy: expect.stringContaining("domjobinfo"),
    });
    libvirt.failing = null;
    await expect(monitor.execute("query-status")).resolves.toMatchObject({ running: true });
  });

  it.each([false, true])("is over once its QEMU has ended, also where another was started (%s)", async (again) => {
    await using monitor = await open();
    using events = monitor.events();
    libvirt.stop(NAME, { again });
    // Nobody gives a command: it is noticed by itself.
    await expect(events.next()).rejects.toMatchObject({ code: "QMP_CLOSED" });
    await expect(monitor.execute("cont")).rejects.toMatchObject({
      code: "QMP_CLOSED",
      message: expect.stringContaining("has ended"),
    });
  });

  it("takes the end of QEMU for the answer to 'quit'", async () => {
    await using monitor = await open();
    libvirt.failing = "Unable to read from monitor: Connection reset by peer";
    await expect(monitor.execute("quit")).resolves.toEqual({});
    await expect(monitor.execute("query-status")).rejects.toMatchObject({ code: "QMP_CLOSED" });
  });

  it("is over once virsh has ended", async () => {
    await using monitor = await open();
    fake.ignore("stop");
    const stopped = monitor.execute("stop");
    libvirt.hangUp();
    await expect(stopped).rejects.toMatchObject({ code: "QMP_CLOSED" });
  });

  it("leaves no virsh behind", async () => {
    const monitor = await open();
    await monitor[Symbol.asyncDispose]();
    await expect.poll(() => libvirt.running, { timeout: 20_000 }).toBe(0);
  });

  it("can't be reached where there is no domain, libvirt or virsh, with what would help", async () => {
    await expect(LibvirtMonitor.open({ libvirt: "other" })).rejects.toMatchObject({
      code: "QMP_UNREACHABLE",
      message: "libvirt has no domain 'other'",
      remedy: expect.stringContaining("virsh list"),
    });
    await expect(LibvirtMonitor.open({ libvirt: "--help" })).rejects.toMatchObject({ code: "QMP_UNREACHABLE" });
    libvirt.stop(NAME);
    await expect(open()).rejects.toMatchObject({ message: expect.stringContaining("does not run") });
    libvirt.failing = "failed to connect to the hypervisor";
    await expect(open()).rejects.toMatchObject({ remedy: expect.stringContaining("--connect") });
    process.env.PATH = "/nowhere";
    await expect(open()).rejects.toMatchObject({
      code: "NO_VIRSH",
      remedy: expect.stringContaining("libvirt-clients"),
    });
  });
});
