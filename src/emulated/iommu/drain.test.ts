import { setTimeout as sleep } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { describe, expect, it } from "vitest";
import { bitmapOf, pagesOf, TestBench } from "../../../test/support/iommu.js";
import { type PausedDeviceData, RELEASED, STORED, TRANSLATED } from "../../../test/support/paused-device.js";
import { IOMMU_FORMATS } from "../../host/description.js";
import type { EmulatedDomain } from "./domain.js";

const PAGE = 0x100;

/** Starts a device thread, waits until it has translated and not stored, and runs `test` with its release. */
async function withPausedDevice(
  bench: TestBench,
  pages: readonly number[],
  test: (release: () => Promise<void>) => Promise<void>,
): Promise<void> {
  const control = new Int32Array(new SharedArrayBuffer(12));
  const workerData: PausedDeviceData = { wiring: bench.wiring(0), pages, value: 7, control };
  const worker = new Worker(new URL("../../../test/support/paused-device.js", import.meta.url), { workerData });
  const reached = async (word: number): Promise<void> => {
    const waited = Atomics.waitAsync(control, word, 0, 10_000);
    if (waited.async) expect(await waited.value).toBe("ok");
  };
  try {
    await reached(TRANSLATED);
    await test(async () => {
      Atomics.store(control, RELEASED, 1);
      Atomics.notify(control, RELEASED);
      await reached(STORED);
    });
  } finally {
    Atomics.store(control, RELEASED, 1);
    Atomics.notify(control, RELEASED);
    await worker.terminate();
  }
}

/** Runs an operation beside a device that is paused, and sees that it waits for the release. */
async function expectWaits(
  bench: TestBench,
  pages: readonly number[],
  operation: () => Promise<unknown>,
): Promise<void> {
  await withPausedDevice(bench, pages, async (release) => {
    let resolved = false;
    const result = operation().then(() => {
      resolved = true;
    });
    await sleep(30);
    expect(resolved).toBe(false);
    expect(bench.ram.u8[0]).toBe(0);
    await release();
    await result;
    expect(bench.ram.u8[0]).toBe(7);
  });
}

describe.each(IOMMU_FORMATS)("a device paused between translation and store, behind %s", (format) => {
  const build = async (): Promise<{ bench: TestBench; domain: EmulatedDomain }> => {
    const bench = new TestBench({ format });
    const domain = bench.iommu.allocDomain({ dirtyTracking: true });
    bench.map(domain, PAGE, 0, 4, false);
    await bench.iommu.attach(0, domain);
    await domain.setDirtyTracking(true);
    return { bench, domain };
  };

  it("keeps a read that clears waiting, also where it wrote by an IOTLB entry that was dirty already", async () => {
    for (const pages of [[PAGE], [PAGE + 1, PAGE, PAGE]]) {
      const { bench, domain } = await build();
      await using _ = bench;
      if (pages.length > 1) {
        // The first write to PAGE has landed before the pause: start from what only the second one can have stored.
        await withPausedDevice(bench, pages, async (release) => {
          bench.ram.u8[0] = 0;
          const into = bitmapOf(PAGE, 4);
          let resolved = false;
          const read = domain.readDirty({ page: PAGE, pages: 4, into, clear: true }).then(() => {
            resolved = true;
          });
          await sleep(30);
          expect(resolved).toBe(false);
          await release();
          await read;
          expect(bench.ram.u8[0]).toBe(7);
          expect(pagesOf(into)).toEqual([PAGE, PAGE + 1]);
        });
      } else {
        const into = bitmapOf(PAGE, 4);
        await expectWaits(bench, pages, () => domain.readDirty({ page: PAGE, pages: 4, into, clear: true }));
        expect(pagesOf(into)).toEqual([PAGE]);
      }
    }
  });

  it("keeps an unmap waiting, and its dirty bit is not lost", async () => {
    const { bench, domain } = await build();
    await using _ = bench;
    const into = bitmapOf(PAGE, 4);
    await expectWaits(bench, [PAGE], () => domain.unmap({ page: PAGE, pages: 4, into }));
    expect(pagesOf(into)).toEqual([PAGE]);
  });

  it("keeps a detach, and a replace, waiting", async () => {
    for (const replace of [false, true]) {
      const { bench } = await build();
      await using _ = bench;
      const other = replace ? bench.iommu.allocDomain({ dirtyTracking: false }) : null;
      await expectWaits(bench, [PAGE], () => bench.iommu.attach(0, other));
    }
  });

  it("does not keep a peek waiting, which clears nothing", async () => {
    const { bench, domain } = await build();
    await using _ = bench;
    await withPausedDevice(bench, [PAGE], async (release) => {
      const into = bitmapOf(PAGE, 4);
      await domain.readDirty({ page: PAGE, pages: 4, into, clear: false });
      expect(pagesOf(into)).toEqual([PAGE]);
      await release();
    });
  });
});
