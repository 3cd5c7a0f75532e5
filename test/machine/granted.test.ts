import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { EXIT_CODES } from "../../src/cli/exit-codes.js";
import { MiB } from "../../src/memory/address.js";
import { Child } from "../support/child.js";
import { PROGRAM } from "../support/program.js";

/* Real `dirtmap` processes: what a destination opens for a machine that comes. */

const LONG = { timeout: 120_000 };

const folder = mkdtempSync(join(tmpdir(), "dirtmap-granted-"));
const path = (name: string) => join(folder, name);

/** A scenario whose device is this. */
function scenario(name: string, device: string): string {
  const file = path(`${name}.yaml`);
  writeFileSync(
    file,
    `machine:
  memory: 16M
  fill: 0.1
  vcpus: { count: 1, rate: 1, footprint: 128K }
  iommus: [{ id: iommu0, format: amd-v1 }]
  devices:
    - { id: dev0, iommu: iommu0, ${device} }
migration: { downtimeLimit: 5s }
`,
  );
  return file;
}

const disk = (file: string) => `model: nvme, load: { rate: 1, footprint: 1M }, file: "${file}"`;
const blk = (file: string) => `model: blk, load: { rate: 1, footprint: 256K }, file: "${file}"`;

beforeAll(() => {
  for (const name of ["shared", "elsewhere"]) {
    mkdirSync(path(name));
    writeFileSync(path(`${name}/disk.img`), "");
    truncateSync(path(`${name}/disk.img`), 4 * MiB);
  }
  symlinkSync("../elsewhere/disk.img", path("shared/link.img"));
  writeFileSync(path("shared/text"), "here\n");
  writeFileSync(path("elsewhere/text"), "secret\n");
  execFileSync("mkfifo", [path("shared/fifo")]);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function receive(...more: string[]) {
  const args = ["receive", "--listen", "tcp://127.0.0.1:0", "--journal", path("journal"), "--json", ...more];
  const child = new Child(PROGRAM, ...args);
  const { address } = await child.said("address");
  return { child, address: String(address) };
}

const migrate = (...args: string[]) =>
  new Child(PROGRAM, "migrate", "--journal", path("journal"), "--json", "--quiet", "--no-feed", ...args);

/** However long that takes: the test's own limit bounds it. */
async function expectMoved(source: Child): Promise<void> {
  await source.ended;
  expect(await source.said("result")).toMatchObject({ result: "completed", verified: true });
}

/** Exit code 2, and the refusal. */
async function refused(scenarioFile: string, to: string): Promise<{ code: string; message: string; remedy: string }> {
  await using source = migrate("--scenario", scenarioFile, "--to", to);
  expect(await source.ended).toBe(EXIT_CODES.usage.code);
  const { error } = await source.said("error");
  return error as { code: string; message: string; remedy: string };
}

describe("`dirtmap receive`", () => {
  it("opens no file that only its source names, and does not tell whether it exists", LONG, async () => {
    const { child, address } = await receive();
    await using _child = child;
    const found = await refused(scenario("text", blk(path("elsewhere/text"))), address);
    expect(found).toMatchObject({ code: "NOT_GRANTED", remedy: expect.stringContaining("--file dev0=FILE") });
    expect(found.message).not.toContain(folder);
    expect(await child.said("message")).toMatchObject({ event: "refused" });
  });

  it("takes over on the file that its operator gives for the device", LONG, async () => {
    const { child, address } = await receive("--once", "--file", `dev0=${path("elsewhere/disk.img")}`);
    await using _child = child;
    // By another name than the source has for it.
    symlinkSync("elsewhere/disk.img", path("own-name.img"));
    await using source = migrate("--scenario", scenario("own", disk(path("own-name.img"))), "--to", address);
    await expectMoved(source);
  });

  it(
    "opens a source's own file in the folder that its operator gives, and nothing by a link out of it",
    LONG,
    async () => {
      const { child, address } = await receive("--shared-folder", path("shared"));
      await using _child = child;
      const refusals = [
        await refused(scenario("link", disk(path("shared/link.img"))), address),
        await refused(scenario("outside", blk(path("elsewhere/text"))), address),
      ];
      for (const { code } of refusals) expect(code).toBe("NOT_GRANTED");
      await using source = migrate("--scenario", scenario("inside", disk(path("shared/disk.img"))), "--to", address);
      await expectMoved(source);
    },
  );

  it("refuses a disk of another size before anything is started: both sizes are named", LONG, async () => {
    writeFileSync(path("small.img"), "");
    truncateSync(path("small.img"), 2 * MiB);
    const { child, address } = await receive("--file", `dev0=${path("small.img")}`);
    await using _child = child;
    const { code, message } = await refused(scenario("large", disk(path("elsewhere/disk.img"))), address);
    expect(code).toBe("OTHER_HARDWARE");
    expect(message).toContain("dev0: the source's capacity is 4 MiB, the destination's 2 MiB");
  });

  it("says which of its files can't be had, and what would do", LONG, async () => {
    const { child, address } = await receive("--file", `dev0=${path("nowhere.img")}`);
    await using _child = child;
    const found = await refused(scenario("missing", disk(path("elsewhere/disk.img"))), address);
    expect(found).toMatchObject({ code: "BAD_DISK_FILE", remedy: expect.stringContaining("both sides must reach it") });
    // A new one would be empty.
    expect(found.remedy).not.toContain("truncate");
  });
});

it("a folder that is none is refused before anything is listened at", LONG, async () => {
  await using child = new Child(PROGRAM, "receive", "--listen", "tcp://127.0.0.1:0", "--shared-folder", path("none"));
  expect(await child.ended).toBe(EXIT_CODES.usage.code);
  expect(child.errors).toMatch(/--shared-folder .*none: it is not a folder/);
});

it("the destination on this machine opens what the scenario names, without an option", LONG, async () => {
  await using source = migrate("--scenario", scenario("local", disk(path("elsewhere/disk.img"))));
  await expectMoved(source);
});
