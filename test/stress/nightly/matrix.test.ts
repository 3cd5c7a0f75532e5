import { join } from "node:path";
import { expect, it, test } from "vitest";
import type { GuestTracker } from "../../../src/qemu/guest-tracking.js";
import { MissingError } from "../../../tools/vm/missing.js";
import {
  COMPLAINT,
  controllerOf,
  counts,
  endLoad,
  endWriters,
  giveCredentials,
  type Interrupts,
  interruptsOfReads,
  move,
  type Place,
  Places,
  pause,
  root,
  runDirtmap,
  SECOND,
  startLoad,
  startWriters,
} from "../../interop/guest-places.js";
import { findShellImage } from "../../interop/guest-shell.js";
import { forEachSeed } from "../../support/seed-range.js";

/*
 * Real guests of QEMU that move there, back, and there again: with each kind of interrupts, one vCPU and several, each tracker,
 * with and without multifd and TLS of QEMU's own, and with every model. A seed is one of these combinations.
 *   DIRTMAP_SEEDS=1-192 npm run test:stress -- matrix     all of them; started again, it goes on where it was
 *   DIRTMAP_SEEDS=17 npm run test:stress -- matrix        one again
 */

const FEW = 1;
const NIGHT_MS = 12 * 3_600_000;
const TEST_LIMIT_MS = 600_000;
const MOVES = 3;
/** How long the load runs before a move and after it. */
const LOAD_MS = 1500;

/** How the guest's kernel calls each kind of interrupts. */
const KINDS: Readonly<Record<Interrupts, string>> = { msix: "PCI-MSIX", msi: "PCI-MSI", intx: "IO-APIC" };

interface Way {
  readonly interrupts: Interrupts;
  readonly vcpus: number;
  readonly tracker: GuestTracker;
  readonly multifdChannels: number;
  readonly tls: boolean;
  readonly writers: readonly string[];
}

/** Of these only QEMU can track the writes, which they do by messages then. */
const WITHOUT_LOG = ["nic", "blk"];

/** The combination with this number: neighbours differ in most. */
function wayOf(seed: number): Way {
  let rest = seed - 1;
  const pick = <T>(from: readonly T[]): T => {
    const picked = from[rest % from.length];
    rest = Math.floor(rest / from.length);
    return picked;
  };
  return {
    interrupts: pick(["intx", "msi", "msix"]),
    tracker: pick(["messages", "device"]),
    vcpus: pick([4, 1]),
    writers: pick([["nic"], ["nic", "mlx5", "blk", "vgpu"], [], ["mlx5", "vgpu"]]),
    multifdChannels: pick([0, 3]),
    tls: pick([false, true]),
  };
}

const found = findShellImage(root);

async function moveAround(image: Exclude<typeof found, MissingError>, way: Way): Promise<void> {
  const { interrupts, vcpus, tracker, multifdChannels, writers } = way;
  await using places = new Places(image, { interrupts: [interrupts, interrupts], vcpus, writers, engine: true });
  const certs = join(places.folder, "certs");
  if (way.tls) await runDirtmap(["certs", certs, "--name", "localhost"]);
  let here = await places.add();
  await startLoad(here);
  if (writers.length > 0) await startWriters(here, writers);
  const ids = ["disk", SECOND, "engine", ...writers.filter((model) => !WITHOUT_LOG.includes(model))];
  const trackers = Object.fromEntries(ids.map((id) => [id, tracker]));
  let left: Place | undefined;
  for (let moves = 0; moves < MOVES; moves++) {
    await pause(LOAD_MS);
    const there = await places.add(left === undefined ? {} : { instead: left });
    if (way.tls) {
      await giveCredentials(here, certs, "client");
      await giveCredentials(there, certs, "server");
    }
    const { report, received, warnings } = await move(here, there, { trackers, multifdChannels });
    expect(report.error).toBeUndefined();
    expect([report.result, received.outcome, ...report.warnings, ...warnings]).toEqual(["completed", "running"]);
    await here[Symbol.asyncDispose]();
    left = here;
    here = there;
  }
  await pause(LOAD_MS);
  for (const { reads, writes, kept } of counts(await endLoad(here))) {
    console.log(`${JSON.stringify(way)}: ${reads} reads, ${writes} writes, ${kept} kept`);
    expect(Math.min(reads, writes, kept)).toBeGreaterThan(100);
  }
  if (writers.length > 0)
    for (const { checked } of await endWriters(here, writers)) expect(checked).toBeGreaterThan(200);
  for (const disk of ["disk0", "disk1"]) {
    const { kinds, reads, raised, counted } = await interruptsOfReads(here, disk);
    expect([kinds, raised, reads > 10]).toEqual([[KINDS[interrupts]], reads, true]);
    if (interrupts === "intx") expect(counted).toBeGreaterThanOrEqual(reads);
    else expect(counted).toBe(reads);
  }
  expect(await here.guest.run("dmesg")).not.toMatch(COMPLAINT);
}

if (found instanceof MissingError) {
  test.skip(`QEMU 10.1 or later as a client of vfio-user: ${found.message}`, () => {});
} else {
  it(
    "a guest of QEMU loses nothing, in whatever combination it moves",
    async () => {
      await forEachSeed("matrix", FEW, async (seed) => {
        const way = wayOf(seed);
        await moveAround(found, way);
        return way.interrupts;
      });
    },
    NIGHT_MS,
  );

  it(
    "an interrupt that comes while the guest has masked its vector, comes where it unmasks it",
    async () => {
      await using places = new Places(found, { vcpus: 1 });
      const here = await places.add();
      const disk = await controllerOf(here, "disk0");
      // The guest waits for longer than the move takes.
      await here.guest.run(`for i in /sys/block/nvme*/queue/io_timeout; do echo 100000 >$i; done`);
      await startLoad(here);
      await setMask(here, disk, 1);
      const there = await places.add();
      const { report } = await move(here, there);
      expect(report.error).toBeUndefined();
      await pause(LOAD_MS);
      await setMask(there, disk, 0);
      counts(await endLoad(there));
      expect(await there.guest.run("dmesg")).not.toMatch(COMPLAINT);
    },
    TEST_LIMIT_MS,
  );
}

/** Masks the vector of a controller's I/O queue, or unmasks it, in the table behind its BAR 0. */
async function setMask({ guest }: Place, controller: string, mask: 0 | 1): Promise<void> {
  const resource = await guest.run(`head -n 1 /sys/class/nvme/${controller}/device/resource`);
  const entry = BigInt(resource.split(" ")[0]) + 0x2000n + 16n;
  await guest.run(`devmem 0x${(entry + 12n).toString(16)} 32 ${mask}`);
}
