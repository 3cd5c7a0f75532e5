import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Child } from "../support/child.js";
import { PROGRAM } from "../support/program.js";

const SCENARIO = `machine:
  memory: 16M
  vcpus: { count: 1, rate: 1, footprint: 128K }
  iommus:
    - { id: iommu0, format: amd-v1 }
  devices:
    - { id: vf0, model: mlx5, iommu: iommu0, load: { rate: 1, footprint: 256K } }
    - { id: nic0, model: nic, iommu: iommu0, load: { rate: 1, footprint: 256K } }
migration:
  trackers: { vf0: device }
`;

const folder = mkdtempSync(join(tmpdir(), "dirtmap-top-"));
const scenario = join(folder, "small.yaml");
const runtime = process.env.XDG_RUNTIME_DIR;

beforeAll(() => {
  writeFileSync(scenario, SCENARIO);
  // Feeds of their own: nobody else's run is followed.
  process.env.XDG_RUNTIME_DIR = folder;
});

afterAll(() => {
  if (runtime === undefined) delete process.env.XDG_RUNTIME_DIR;
  else process.env.XDG_RUNTIME_DIR = runtime;
  rmSync(folder, { recursive: true, force: true });
});

interface Shown {
  readonly owners: { readonly owner: string; readonly tracker: string; readonly bytesPerSecond: number }[];
  readonly writtenBytesPerSecond: Readonly<Record<string, number>>;
  readonly heat: readonly number[];
}

/** The first that shows everybody writing. */
async function shownBy(child: Child): Promise<Shown> {
  return (await child.said("owners")) as unknown as Shown;
}

describe("dirtmap top", () => {
  it("shows a scenario's trackers, and another one shows the same through the first one's feed", async () => {
    await using owner = new Child(PROGRAM, "top", "--scenario", scenario, "--interval", "200ms", "--json");
    const own = await shownBy(owner);
    expect(own.owners.map(({ owner: name, tracker }) => [name, tracker]).sort()).toEqual([
      ["cpu", "cpu"],
      ["nic0", "iommu"],
      ["vf0", "device"],
    ]);
    expect(Object.keys(own.writtenBytesPerSecond).sort()).toEqual(["nic0", "vcpu0", "vf0"]);
    expect(own.heat.length).toBe(256);

    await using follower = new Child(PROGRAM, "top", "--json", "--interval", "200ms");
    const followed = await shownBy(follower);
    expect(followed.owners.map(({ owner: name }) => name).sort()).toEqual(["cpu", "nic0", "vf0"]);
    // Not its reader: it knows what the feed says, and asks no device.
    expect(followed.writtenBytesPerSecond).toEqual({});

    owner.kill("SIGINT");
    expect(await owner.ended).toBe(0);
    // The run is over, and so is what followed it.
    expect(await follower.ended).toBe(0);
  });

  it("says in one line that there is no run to follow, and what would work", async () => {
    await using child = new Child(PROGRAM, "top");
    expect(await child.ended).toBe(2);
    expect(child.errors).toMatch(/^dirtmap: no run is under way .*--scenario mixed\n$/);
  });

  it("shows what a served device counts, whoever has its log, and leaves the log alone", async () => {
    const socket = join(folder, "vf.sock");
    await using device = new Child(PROGRAM, "device", "mlx5", "--socket", socket, "--json");
    await device.said("socket");
    await using child = new Child(
      PROGRAM,
      "top",
      "--host",
      `vfio-user:${socket}`,
      "--once",
      "--interval",
      "50ms",
      "--json",
    );
    const { owners, writtenBytesPerSecond } = await shownBy(child);
    expect(owners).toEqual([]);
    // Nobody drives it: it writes nothing.
    expect(Object.values(writtenBytesPerSecond)).toEqual([0]);
    expect(await child.ended).toBe(0);
  });

  it("does not look into a guest's devices on this machine, whose trackers have a reader", async () => {
    await using child = new Child(PROGRAM, "top", "--host", "linux");
    expect(await child.ended).toBe(2);
    expect(child.errors).toMatch(/^dirtmap: .* belong to its VMM, and have one reader; /);
  });
});
