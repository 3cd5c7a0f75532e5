import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MissingError } from "../../tools/vm/missing.js";
import { requireFound } from "../support/required.js";
import { COMPLAINT, counts, endLoad, type Place, Places, pause, root, runDirtmap, startLoad } from "./guest-places.js";
import { findShellImage } from "./guest-shell.js";

/*
 * A guest of QEMU whose disks are served by programs of which only the vfio-user socket is used: `dirtmap device proxy` stands
 * between, on both sides, and `dirtmap migrate --qmp` moves the guest by the proxies' control connections.
 */

const TEST_LIMIT_MS = 300_000;
const LOAD_MS = 1500;

const found = findShellImage(root);
requireFound("QEMU 10.1 or later as a client of vfio-user", found);

describe.skipIf(found instanceof MissingError)("a guest of QEMU whose disks are behind proxies", () => {
  let places: Places;
  let here: Place;

  beforeAll(async () => {
    if (found instanceof MissingError) return;
    places = new Places(found);
    here = await places.add({ proxied: "auto" });
    await startLoad(here);
  }, TEST_LIMIT_MS);

  afterAll(async () => {
    await places?.[Symbol.asyncDispose]();
  }, TEST_LIMIT_MS);

  it.each([
    { dma: "messages", tracker: "device", why: "the server has the memory's descriptors, and logs its DMA" },
    { dma: "auto", tracker: "vmm", why: "all of the server's DMA passes the proxy" },
  ] as const)(
    "goes on with its I/O, tracked by $tracker: $why",
    async ({ dma, tracker }) => {
      await pause(LOAD_MS);
      // The next place's mode is what the next move has at its source.
      const there = await places.add({ proxied: dma });
      const journal = join(places.folder, "journals");
      const { stdout, stderr, status } = await runDirtmap([
        ...["migrate", "--qmp", here.qmp, "--qmp-to", there.qmp],
        ...["--qemu-address", `unix:${there.qmp}-stream`, "--journal", journal, "--json"],
      ]);
      expect({ status, stderr }).toEqual({ status: 0, stderr: expect.not.stringContaining("warning") });
      const report = JSON.parse(stdout);
      expect(report.result).toBe("completed");
      for (const device of report.devices) {
        expect(device.tracker).toBe(tracker);
        expect(device.pagesReported).toBeGreaterThan(100);
      }
      await here.guest.ended();
      await here[Symbol.asyncDispose]();
      here = there;
      await pause(LOAD_MS);
    },
    TEST_LIMIT_MS,
  );

  it(
    "finds in every block what it wrote there, and its driver has noticed nothing",
    async () => {
      for (const { reads, writes, slowestMs } of counts(await endLoad(here))) {
        expect(Math.min(reads, writes)).toBeGreaterThan(100);
        console.log(`${reads} reads, ${writes} writes, the slowest in ${slowestMs} ms`);
      }
      expect(here.guest.kernelLog).not.toMatch(COMPLAINT);
    },
    TEST_LIMIT_MS,
  );
});
