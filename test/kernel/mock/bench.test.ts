import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { linuxSite } from "../../../src/cli/sites/linux/bench-machine.js";
import { vmmOptionsOf } from "../../../src/cli/sites/linux/vmm-options.js";
import { recommendationOf } from "../../../src/evidence/recommend/recommendation.js";
import { DEFAULT_LINK } from "../../../src/evidence/trackers/estimate.js";
import { readBenchmark } from "../../../src/evidence/trackers/file.js";
import { LinuxHost } from "../../../src/linux/host.js";
import { MiB } from "../../../src/memory/address.js";
import { dirtmap } from "../../support/program.js";
import { createMtty } from "../support/vfio-devices.js";

/** The program starts, and opens two machines, on an emulated processor. */
const PATIENCE_MS = 300_000;

test("trackers of this machine's devices are measured as far as they can be, and a device in use is left alone", {
  timeout: PATIENCE_MS,
}, async () => {
  await using idle = createMtty();
  await using busy = createMtty();
  await using host = new LinuxHost();
  const user = await host.openDevice(busy.name);
  await user.bind(await host.openIommufd());
  const folder = mkdtempSync(join(tmpdir(), "dirtmap-bench-"));
  try {
    const file = join(folder, "bench.json");
    const bench = ["bench", "trackers", "--host", "linux", "--memory", "8M", "--quick"];
    const { code, stdout, stderr } = await dirtmap([...bench, "--no-store", "--output", file]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: expect.stringContaining(`written to ${file}`) });
    expect(stdout).toMatch(/^ {2}measured: Linux 7\.2\.\S+, and devices that no guest drives: no DMA is done/m);
    const benchmark = readBenchmark(file);
    expect(benchmark).toMatchObject({ host: "linux", scenario: null, memoryBytes: 8 * MiB, sharing: [] });
    expect(benchmark.leftOut).toEqual([
      { id: busy.name, why: expect.stringMatching(new RegExp(`in use, by .*\\(process ${process.pid}\\)`)) },
    ]);
    expect(benchmark.devices).toMatchObject([
      {
        id: idle.name,
        model: "mtty",
        writes: null,
        trackers: [
          { tracker: "pinned", problem: null, dma: null, precision: [], start: { count: 3 }, stop: { count: 3 } },
          { tracker: "everything" },
        ],
      },
    ]);
    const [{ trackers }] = benchmark.devices;
    expect(trackers[0].reads).toMatchObject([{ memoryBytes: 8 * MiB, writtenPages: null, reportedPages: 0 }]);

    const recommendation = recommendationOf(benchmark, DEFAULT_LINK, "iommu-first");
    expect(recommendation.devices).toMatchObject([{ tracker: "pinned", margin: null, figures: { converges: null } }]);
    const options = vmmOptionsOf(benchmark, recommendation)
      ?.qemu.arguments.map(({ value }) => value)
      .join(" ");
    expect(options).toContain(`sysfsdev=/sys/bus/mdev/devices/${idle.name}`);
    const onlyBusy = linuxSite(host, { names: [busy.name], memoryBytes: 8 * MiB });
    await expect(onlyBusy).rejects.toMatchObject({ code: "NOTHING_TO_MEASURE" });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
