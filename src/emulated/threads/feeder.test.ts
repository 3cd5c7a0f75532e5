import { afterEach, describe, expect, it } from "vitest";
import { Feeder } from "../../devices/feeder.js";
import { checkStamps, stampsIntact } from "../../devices/stamp.js";
import { enableBusMaster } from "../../devices/workload.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { describeMachine, eventually, openBench, stampsOf } from "../vfio/bench.test.helper.js";

const open: AsyncDisposable[] = [];
afterEach(async () => {
  for (const each of open.splice(0).reverse()) await each[Symbol.asyncDispose]();
});

describe("the feeder", () => {
  it("lets two NICs write at about their rates, from real datagrams", async () => {
    const load = { rate: 10, footprint: 400 * PAGE_SIZE };
    const bench = await openBench(
      describeMachine([
        { model: "nic", id: "nic0", iommu: "iommu0", load },
        { model: "mlx5", id: "mlx0", iommu: "iommu0", load: { ...load, rate: 30 } },
      ]),
    );
    open.push(bench);
    const feeder = new Feeder();
    open.push(feeder);
    for (const [id, rate] of [
      ["nic0", 10],
      ["mlx0", 30],
    ] as const) {
      const device = bench.device(id);
      await enableBusMaster(device);
      await feeder.feed((await device.counters()).udpPort, rate);
      await eventually(async () => (await device.counters()).units > 20);
    }
    const before = [await bench.device("nic0").counters(), await bench.device("mlx0").counters()];
    const from = performance.now();
    await new Promise((resolve) => setTimeout(resolve, 700));
    const seconds = (performance.now() - from) / 1000;
    const after = [await bench.device("nic0").counters(), await bench.device("mlx0").counters()];
    const megabytes = after.map(({ units }, i) => ((units - before[i].units) * PAGE_SIZE) / 1e6 / seconds);
    // The rate is a limit; how near a NIC comes to it depends on who else uses the cores.
    expect(megabytes[0]).toBeLessThan(14);
    expect(megabytes[1]).toBeLessThan(40);
    for (const id of ["nic0", "mlx0"]) {
      await bench.device(id).setState("STOP");
      expect((await bench.device(id).counters()).datagrams).toBeGreaterThan(10);
      expect(stampsIntact(checkStamps(bench.memory, await stampsOf(bench.device(id))))).toBe(true);
    }
    expect(await feeder.sent()).toBeGreaterThan(50);
  });

  it("stops sending to a port, and ends", async () => {
    const feeder = new Feeder();
    open.push(feeder);
    await feeder.feed(9, 1);
    await eventually(async () => (await feeder.sent()) > 3);
    await feeder.stop(9);
    const sent = await feeder.sent();
    await new Promise((resolve) => setTimeout(resolve, 40));
    expect(await feeder.sent()).toBe(sent);
  });
});
