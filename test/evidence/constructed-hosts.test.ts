import { describe, expect, it } from "vitest";
import { emulatedSite } from "../../src/cli/sites/emulated/bench-machine.js";
import { recommend } from "../../src/evidence/recommend/recommend.js";
import { benchTrackers } from "../../src/evidence/trackers/bench.js";
import type { BenchMachine, BenchSite } from "../../src/evidence/trackers/site.js";
import type { AttachedDevice, Iommufd, Machine, VfioDevice } from "../../src/host/host.js";
import { MiB } from "../../src/memory/address.js";
import { LOAD, machineOf, NIC, pause, VF } from "../support/machines.js";

/*
 * Hosts on which one tracker of a device really is slow, imprecise, or harmful: emulated ones, with something between the
 * bench and the device. The real bench measures them, and the recommendation must avoid that tracker.
 */

/** Slow links and long limits, so that a busy computer's pauses are small beside what was constructed. */
const LINK = { bandwidth: 100e6, downtimeLimitMs: 1000 };

/** A benchmark takes seconds on an idle computer. */
const PATIENCE_MS = 300_000;

const vf = { ...VF, load: LOAD, dmaLogging: { pageSizes: [4096] } };
const description = machineOf([vf, NIC], { memory: 32 * MiB });

/** The target, but for what is given instead. Its methods keep their `this`: they have private fields. */
function instead<T extends object>(target: T, parts: Partial<T>): T {
  return new Proxy(target, {
    get(_, key) {
      if (key in parts) return parts[key as keyof T];
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** What stands between the bench and a host. */
interface Between {
  iommufd?(iommufd: Iommufd): Partial<Iommufd>;
  vfio?(vfio: VfioDevice): Partial<VfioDevice>;
}

/** The emulated site with something between the bench and device `vf0`, which alone is measured. */
function siteWith(between: Between): BenchSite {
  const site = emulatedSite("constructed", description, { only: ["vf0"] });
  return {
    ...site,
    async open(variant): Promise<BenchMachine> {
      const bench = await site.open(variant);
      const devices = bench.machine.devices.map((device): AttachedDevice => {
        if (device.id !== "vf0") return device;
        const vfio = between.vfio === undefined ? device.vfio : instead(device.vfio, between.vfio(device.vfio));
        const iommufd =
          between.iommufd === undefined ? device.iommufd : instead(device.iommufd, between.iommufd(device.iommufd));
        return { ...device, vfio, iommufd };
      });
      const machine: Machine = instead<Machine>(bench.machine, { devices });
      return { ...bench, machine, [Symbol.asyncDispose]: () => bench[Symbol.asyncDispose]() };
    },
  };
}

async function recommendedOn(between: Between) {
  const benchmark = await benchTrackers({ site: siteWith(between), quick: true });
  const [device] = recommend(benchmark, LINK);
  return {
    benchmark,
    device,
    against: (kind: string) => device.alternatives.filter(({ over }) => over.tracker === kind),
  };
}

/** Longer than what differs by chance. */
const SLOW_MS = 120;

/**
 * A device that is stopped most of the time, as long as this runs: what a tracker does that takes the device's bandwidth.
 * The bench's own stops and runs go on working.
 */
class Harm {
  readonly #vfio: VfioDevice;
  #on = false;
  #wanted = true;
  #loop: Promise<void> = Promise.resolve();

  constructor(vfio: VfioDevice) {
    this.#vfio = vfio;
  }

  async set(on: boolean): Promise<void> {
    this.#on = on;
    await this.#settle();
  }

  async setState(next: Parameters<VfioDevice["setState"]>[0]) {
    this.#wanted = next === "RUNNING";
    await this.#settle();
    return this.#vfio.setState(next);
  }

  /** Ends the loop, and begins another where the device is to run, and to be harmed. */
  async #settle(): Promise<void> {
    const { signal } = this.#renew();
    await this.#loop;
    if (this.#wanted) await this.#vfio.setState("RUNNING");
    if (!this.#on || !this.#wanted) return;
    this.#loop = (async () => {
      while (!signal.aborted) {
        await this.#vfio.setState("STOP");
        await pause(18);
        await this.#vfio.setState("RUNNING");
        await pause(2);
      }
    })();
  }

  #controller = new AbortController();

  #renew(): AbortController {
    this.#controller.abort();
    this.#controller = new AbortController();
    return this.#controller;
  }
}

describe("on a host with a slow tracker", { timeout: PATIENCE_MS }, () => {
  it("of the IOMMU, the device's log is recommended", async () => {
    const { device, against } = await recommendedOn({
      iommufd: (iommufd) => ({
        getDirtyBitmap: async (hwpt, query) => {
          await pause(SLOW_MS);
          return iommufd.getDirtyBitmap(hwpt, query);
        },
      }),
    });
    expect(device).toMatchObject({ tracker: "device", granule: 4096, figures: { converges: true } });
    for (const { by, figures } of against("iommu")) {
      expect(["converges", "downtime"]).toContain(by);
      expect(figures.readMs).toBeGreaterThanOrEqual(SLOW_MS);
    }
  });

  it("of the device, the IOMMU's is recommended", async () => {
    const { device, against } = await recommendedOn({
      vfio: (vfio) => ({
        reportDmaLogging: async (query) => {
          await pause(SLOW_MS);
          await vfio.reportDmaLogging(query);
        },
      }),
    });
    expect(device).toMatchObject({ tracker: "iommu", granule: 4096 });
    expect(against("device").map(({ by }) => by)).toEqual([expect.stringMatching(/converges|downtime/)]);
  });
});

describe("on a host with an imprecise tracker", { timeout: PATIENCE_MS }, () => {
  it("of the device, the IOMMU's is recommended", async () => {
    const { device, against } = await recommendedOn({
      vfio: (vfio) => ({
        reportDmaLogging: async (query) => {
          await vfio.reportDmaLogging(query);
          query.into.setAll();
        },
      }),
    });
    expect(device).toMatchObject({ tracker: "iommu", granule: 4096, figures: { precision: 1 } });
    const [{ by, figures }] = against("device");
    expect(["converges", "downtime", "total"]).toContain(by);
    expect(figures.precision).toBeGreaterThan(5);
  });

  it("of the IOMMU, the device's log is recommended", async () => {
    const { device } = await recommendedOn({
      iommufd: (iommufd) => ({
        getDirtyBitmap: async (hwpt, query) => {
          const found = await iommufd.getDirtyBitmap(hwpt, query);
          query.into.setAll();
          return found;
        },
      }),
    });
    expect(device).toMatchObject({ tracker: "device", granule: 4096, figures: { precision: 1 } });
  });
});

describe("on a host with a tracker that harms its device", { timeout: PATIENCE_MS }, () => {
  it("of the device's log, the IOMMU's is recommended", async () => {
    const { device, against } = await recommendedOn({
      vfio: (vfio) => {
        const harm = new Harm(vfio);
        return {
          startDmaLogging: async (args) => {
            const granule = await vfio.startDmaLogging(args);
            await harm.set(true);
            return granule;
          },
          stopDmaLogging: async () => {
            await harm.set(false);
            await vfio.stopDmaLogging();
          },
          setState: (next) => harm.setState(next),
        };
      },
    });
    expect(device).toMatchObject({ tracker: "iommu", granule: 4096 });
    const [{ by, figures }] = against("device");
    expect({ by, tracker: device.margin?.over.tracker }).toMatchObject({ by: "dma" });
    expect(figures.dmaLossAtLeast).toBeGreaterThan(0.3);
  });

  it("of the IOMMU, the device's log is recommended", async () => {
    // A machine's device is wrapped before its iommufd.
    let harm: Harm | undefined;
    const { device, against } = await recommendedOn({
      vfio: (vfio) => {
        const own = new Harm(vfio);
        harm = own;
        return { setState: (next) => own.setState(next) };
      },
      iommufd: (iommufd) => {
        const own = harm;
        return {
          setDirtyTracking: async (hwpt, on) => {
            if (!on) await own?.set(false);
            await iommufd.setDirtyTracking(hwpt, on);
            if (on) await own?.set(true);
          },
        };
      },
    });
    expect(device).toMatchObject({ tracker: "device", granule: 4096 });
    expect(against("iommu").map(({ by }) => by)).toContain("dma");
  });
});

it("a tracker that can't be used is told of, and not recommended", { timeout: PATIENCE_MS }, async () => {
  const { benchmark, device } = await recommendedOn({
    vfio: () => ({
      startDmaLogging: async () => {
        throw new Error("out of log memory");
      },
    }),
  });
  expect(device.tracker).toBe("iommu");
  const [measured] = benchmark.devices;
  const log = measured.trackers.find(({ tracker }) => tracker === "device");
  expect(log).toMatchObject({ problem: "out of log memory", reads: [], dma: null, precision: [] });
});
