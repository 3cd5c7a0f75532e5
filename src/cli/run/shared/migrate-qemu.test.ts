import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, it } from "vitest";
import { openStore } from "../../../evidence/store/store.js";
import { FakePlaces } from "../../../qemu/fake-places.test.helper.js";
import { FakeLibvirt } from "../../../qemu/qmp/fake-libvirt.test.helper.js";

/*
 * What can't be asked of `dirtmap migrate --qmp` and `dirtmap receive --qmp`, and what is said then. The move itself, by these
 * commands, is test/interop/qemu-move.test.ts; here QEMUs are fakes.
 */

const PROGRAM = fileURLToPath(new URL("../../../../../bin/dirtmap.js", import.meta.url));

interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** The program, as an operator runs it. */
function start(args: readonly string[]): { readonly ended: Promise<Ended>; kill(): void } {
  const child = spawn(process.execPath, [PROGRAM, ...args], { stdio: ["ignore", "pipe", "pipe"], timeout: 60_000 });
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const ended = once(child, "close").then(([code]) => ({ code: code as number | null, stdout, stderr }));
  return { ended, kill: () => child.kill("SIGKILL") };
}

async function refused(...args: readonly string[]): Promise<string> {
  const { code, stderr } = await start(args).ended;
  expect(code, stderr).toBe(2);
  return stderr;
}

function migrateArgs({ source, destination, folder }: FakePlaces, ...others: readonly string[]): string[] {
  const [from, to] = [source.pc.qemu.path, destination.pc.qemu.path];
  return ["migrate", "--qmp", from, "--qmp-to", to, "--journal", folder, ...others];
}

describe("a move of a QEMU guest is refused", () => {
  it.each([
    ["without a destination", ["migrate", "--qmp", "a"], "--qmp-to PATH"],
    [
      "with two destinations",
      ["migrate", "--qmp", "a", "--to", "tcp://127.0.0.1:1", "--qmp-to", "b"],
      "two destinations",
    ],
    [
      "to another machine without an address for QEMU's stream",
      ["migrate", "--qmp", "a", "--to", "tcp://127.0.0.1:1"],
      "--qemu-address",
    ],
    ["to what is no address", ["migrate", "--qmp", "a", "--qemu-address", "exec:cat"], "tcp:HOST:PORT"],
    ["with a scenario's options", ["migrate", "--qmp", "a", "--qmp-to", "b", "--scenario", "mixed"], "--scenario"],
    ["with another tracker", ["migrate", "--qmp", "a", "--qmp-to", "b", "--tracker", "d=iommu"], "messages, device"],
    ["from two places", ["migrate", "--qmp", "a", "--libvirt", "a", "--qmp-to", "b"], "two ways to one QEMU"],
    [
      "to a socket and a domain",
      ["migrate", "--qmp", "a", "--qmp-to", "b", "--libvirt-to", "b"],
      "two ways to one QEMU",
    ],
    ["of a scenario's machine through libvirt", ["migrate", "--connect", "qemu:///system"], "--connect"],
    ["into a scenario's machine through libvirt", ["receive", "--connect", "qemu:///system"], "--connect"],
    ["from a socket that is not there", ["migrate", "--qmp", "/nowhere/qmp", "--qmp-to", "b"], "no such socket"],
    ["of a scenario's machine", ["migrate", "--keep-source"], "--keep-source"],
    ["of a scenario's device by messages", ["migrate", "--tracker", "nic0=messages"], "dma: messages"],
    ["without an address at the destination", ["receive", "--qmp", "a"], "--qemu-address"],
    [
      "with files for a scenario's machine",
      ["receive", "--qmp", "a", "--qemu-address", "unix:/s", "--file", "d=f"],
      "--file",
    ],
    ["with channels for no QEMU", ["receive", "--channels", "2"], "--channels"],
  ])("%s", async (_, args, says) => {
    expect(await refused(...args)).toContain(says);
  });
});

describe.runIf(process.platform === "linux")("a move of a QEMU guest", () => {
  it("is kept in the store, and leaves a report, as every other migration", { timeout: 60_000 }, async () => {
    await using places = await FakePlaces.start();
    const { folder } = places;
    const [store, report] = [join(folder, "evidence.db"), join(folder, "report.md")];
    const args = ["--store", store, "--report", report, "--json"];
    const { code, stdout, stderr } = await start(migrateArgs(places, ...args)).ended;
    expect(code, stderr).toBe(0);
    const { migration, conditions } = JSON.parse(stdout) as { migration: string; conditions: unknown };
    expect(conditions).toMatchObject({
      hosts: ["qemu", "vfio-user"],
      memoryBytes: 2 ** 28,
      policy: { order: "qemu", trackers: { disk: "messages" } },
      verify: null,
    });
    using kept = openStore(store);
    const [{ id, ...run }] = kept.runs({ limit: 10 });
    expect(run).toMatchObject({ name: migration, kind: "migration", host: "qemu", result: "completed" });
    expect(kept.run(id)).toMatchObject({
      header: { devices: [{ id: "disk", model: "test", tracker: "vmm" }] },
      report: { devices: [{ id: "disk", tracker: "vmm", alternatives: [{ tracker: "device" }] }] },
    });
    const text = readFileSync(report, "utf8");
    expect(text).toContain("disk: QEMU does its writes itself");
    expect(text).toContain("Memories compared | never");
  });
});

describe.runIf(process.platform === "linux")("a move of a guest of libvirt's", () => {
  const LONG = { timeout: 120_000 };
  const { PATH } = process.env;

  afterEach(() => {
    process.env.PATH = PATH;
  });

  /** The two QEMUs, as domains. */
  async function asDomains({ source, destination }: FakePlaces): Promise<FakeLibvirt> {
    const libvirt = await FakeLibvirt.start({ vm7: source.pc.qemu.path, "vm7-there": destination.pc.qemu.path });
    process.env.PATH = libvirt.path;
    return libvirt;
  }

  const args = ({ folder }: FakePlaces) => {
    const domains = ["--libvirt", "vm7", "--libvirt-to", "vm7-there", "--connect", "qemu:///session"];
    return ["migrate", ...domains, "--journal", folder, "--no-store"];
  };

  it("goes through virsh at both sides", LONG, async () => {
    await using places = await FakePlaces.start();
    await using libvirt = await asDomains(places);
    const { code, stderr } = await start(args(places)).ended;
    expect(code, stderr).toBe(0);
    expect([places.destination.running, places.source.hasQuit]).toEqual([true, true]);
    for (const [, connect] of libvirt.calls) expect(connect).toBe("--connect=qemu:///session");
  });

  it("is found again by `dirtmap resume` once its `dirtmap migrate` was killed", LONG, async () => {
    await using places = await FakePlaces.start();
    await using _libvirt = await asDomains(places);
    const { source } = places;
    const running = start(args(places));
    source.before = (next) => {
      if (next === "migrate") running.kill();
    };
    await running.ended;
    source.before = () => {};
    const [{ migration }] = await waiting(places);
    const { code, stderr } = await start(["resume", migration, "--journal", places.folder]).ended;
    expect(code, stderr).toBe(0);
    expect(source.running).toBe(true);
    expect(await waiting(places)).toEqual([]);
  });

  it("is over by `dirtmap abort` where its domain does not run any more", LONG, async () => {
    await using places = await FakePlaces.start();
    await using libvirt = await asDomains(places);
    const running = start(args(places));
    places.source.before = (next) => {
      if (next === "migrate") running.kill();
    };
    await running.ended;
    libvirt.stop("vm7");
    const [{ migration }] = await waiting(places);
    const resumed = await start(["resume", migration, "--journal", places.folder]).ended;
    expect(resumed.stderr).toContain("has ended, and the guest with it");
    const { code, stderr } = await start(["abort", migration, "--journal", places.folder]).ended;
    expect(code, stderr).toBe(0);
  });
});

/** What waits for a decision, and the commands that `dirtmap list` names. */
async function waiting({ folder }: FakePlaces) {
  const { stdout } = await start(["list", "--journal", folder, "--json"]).ended;
  const { migrations } = JSON.parse(stdout) as {
    migrations: { migration: string; side: string; standing: string; commands: string[] }[];
  };
  return migrations.filter(({ standing }) => standing === "waits");
}

describe.runIf(process.platform === "linux")("a QEMU guest whose `dirtmap migrate` was killed", () => {
  const LONG = { timeout: 120_000 };

  it.each(["migrate-set-capabilities", "migrate", "migrate-continue"])(
    "at '%s' is brought back by `dirtmap resume`, its device and its QEMU as they were",
    LONG,
    async (command) => {
      await using places = await FakePlaces.start();
      const { source, folder } = places;
      const running = start(migrateArgs(places, "--no-store"));
      source.before = (next) => {
        if (next === command) running.kill();
      };
      await running.ended;
      source.before = () => {};
      const waits = await waiting(places);
      expect(waits).toMatchObject([{ side: "source", commands: [expect.stringContaining("dirtmap resume ")] }]);
      // It was never given up: what gives it up is refused.
      const [{ migration }] = waits;
      expect((await start(["abort", migration, "--journal", folder]).ended).code).toBe(2);
      const { code, stdout, stderr } = await start(["resume", migration, "--journal", folder]).ended;
      expect(code, stderr).toBe(0);
      expect(stdout).toContain("the guest runs again");
      expect(source.running).toBe(true);
      expect([...source.capabilities.values()]).toEqual([false, false, false, false, false]);
      expect((await places.deviceStates()).source).toMatchObject({ state: "RUNNING", path: "direct", log: null });
      expect(await waiting(places)).toEqual([]);
    },
  );

  it.each([
    { decision: "resume", runs: true, quits: false },
    { decision: "abort", runs: false, quits: true },
  ])("after it was given up waits, and obeys `dirtmap $decision`", LONG, async ({ decision, runs, quits }) => {
    await using places = await FakePlaces.start();
    const { source, destination, folder } = places;
    const running = start(migrateArgs(places, "--no-store"));
    destination.before = (next) => {
      if (next !== "cont") return;
      running.kill();
      if (runs) throw new Error("it can't run here");
    };
    await running.ended;
    expect(source.running).toBe(false);
    // The device waits, too: its server has been told that the machine is given up.
    await expect.poll(async () => (await places.deviceStates()).source).toMatchObject({ notice: "committing" });
    const [{ migration, commands }] = await waiting(places);
    expect(commands).toHaveLength(2);
    const { code, stderr } = await start([decision, migration, "--journal", folder]).ended;
    expect(code, stderr).toBe(0);
    expect([source.running, source.hasQuit, destination.running]).toEqual([runs, quits, !runs]);
    const states = (await places.deviceStates()).source;
    expect(states).toMatchObject(runs ? { state: "RUNNING", path: "direct" } : { state: "STOP", notice: "gone" });
    expect(await waiting(places)).toEqual([]);
  });

  it("and whose QEMU has ended, too, is recorded as gone by `dirtmap abort`", LONG, async () => {
    await using places = await FakePlaces.start();
    const { source, folder } = places;
    const running = start(migrateArgs(places, "--no-store"));
    source.before = (next) => {
      if (next === "migrate") running.kill();
    };
    await running.ended;
    await source[Symbol.asyncDispose]();
    const [{ migration }] = await waiting(places);
    const resumed = await start(["resume", migration, "--journal", folder]).ended;
    expect(resumed.stderr).toContain("has ended, and the guest with it");
    const { code, stderr } = await start(["abort", migration, "--journal", folder]).ended;
    expect(code, stderr).toBe(0);
    expect(await waiting(places)).toEqual([]);
  });
});
