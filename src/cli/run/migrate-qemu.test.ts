import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { openStore } from "../../evidence/store/store.js";
import { FakePlaces } from "../../qemu/fake-places.test.helper.js";

/*
 * What can't be asked of `dirtmap migrate --qmp` and `dirtmap receive --qmp`, and what is said then. The move itself, by these
 * commands, is test/interop/qemu-move.test.ts; here QEMUs are fakes.
 */

const PROGRAM = fileURLToPath(new URL("../../../../bin/dirtmap.js", import.meta.url));

async function refused(...args: readonly string[]): Promise<string> {
  const child = spawn(process.execPath, [PROGRAM, ...args], { stdio: ["ignore", "ignore", "pipe"], timeout: 60_000 });
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const [code] = await once(child, "close");
  expect(code, stderr).toBe(2);
  return stderr;
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
    const { source, destination, folder } = places;
    const [store, report] = [join(folder, "evidence.db"), join(folder, "report.md")];
    const child = spawn(
      process.execPath,
      [
        ...[PROGRAM, "migrate", "--qmp", source.pc.qemu.path, "--qmp-to", destination.pc.qemu.path],
        ...["--journal", folder, "--store", store, "--report", report, "--json"],
      ],
      { stdio: ["ignore", "pipe", "pipe"], timeout: 60_000 },
    );
    let [stdout, stderr] = ["", ""];
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    const [code] = await once(child, "close");
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
