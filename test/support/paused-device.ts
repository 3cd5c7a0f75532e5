import { workerData } from "node:worker_threads";
import { type DmaWiring, IommuDmaPort } from "../../src/emulated/iommu/dma-port.js";

/*
 * A device thread that writes one byte to each page it is told, and stops between the translation of the last one and its
 * store until it is released.
 */

/** What it is started with. */
export interface PausedDeviceData {
  readonly wiring: DmaWiring;
  readonly pages: readonly number[];
  readonly value: number;
  /** Words: {@link TRANSLATED}, {@link RELEASED}, {@link STORED}. */
  readonly control: Int32Array<SharedArrayBuffer>;
}

export const TRANSLATED = 0;
export const RELEASED = 1;
export const STORED = 2;

if (workerData !== null) {
  const { wiring, pages, value, control } = workerData as PausedDeviceData;
  const last = pages[pages.length - 1];
  let writes = 0;
  const port = new IommuDmaPort(wiring, {
    afterTranslate: (page) => {
      if (page !== last || ++writes < pages.filter((other) => other === last).length) return;
      Atomics.store(control, TRANSLATED, 1);
      Atomics.notify(control, TRANSLATED);
      Atomics.wait(control, RELEASED, 0, 20_000);
    },
  });
  for (const page of pages) port.write(page, 0, Uint8Array.of(value), 0, 1);
  Atomics.store(control, STORED, 1);
  Atomics.notify(control, STORED);
}
