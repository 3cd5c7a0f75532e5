import { type IovaStretch, loggingRanges } from "../bitmap/ranges.js";
import { DirtmapError } from "../errors.js";
import { hex, PAGE_SIZE } from "../memory/address.js";
import { MAX_LOGGED_RANGES } from "./dma-logging-checks.js";
import type { DmaLoggingLimits, VfioDevice } from "./host.js";

/** A log that was started. */
export interface RunningDmaLog {
  /** Bytes per bit, as the device chose. */
  readonly granule: number;
  /**
   * What is logged: multiples of the granule, sorted, apart from each other. The device cleans whole granules; so a
   * reader who asks for these, and no parts of them, loses nothing.
   */
  readonly logged: readonly IovaStretch[];
  readonly readableWhen: "always" | "quiesced";
}

/**
 * Starts a device's log over at least `ranges` (VFIO_DEVICE_FEATURE_DMA_LOGGING_START): rounds them outwards to the
 * granule, and joins them outwards where there are more than the device takes.
 * @param granule bytes per bit to ask for; default: the smallest that the device has
 * @throws DirtmapError `OUT_OF_REACH` for memory beyond the log's address width; UapiError; then nothing is logged
 */
export async function startDmaLog(
  vfio: VfioDevice,
  ranges: readonly IovaStretch[],
  granule?: number,
): Promise<RunningDmaLog> {
  const limits = await vfio.dmaLoggingLimits();
  const startWith = async (pageSize: number) => {
    const logged = loggingRanges(ranges, pageSize, limits?.maxRanges ?? MAX_LOGGED_RANGES);
    if (limits !== null) checkReach(vfio.id, logged, limits);
    return { logged, granule: await vfio.startDmaLogging({ pageSize, ranges: logged }) };
  };
  const asked = granule ?? limits?.pageSizes[0] ?? PAGE_SIZE;
  let started = await startWith(asked);
  if (started.granule > asked) {
    // Two ranges may now lie in one of the device's granules, and reading one would clean the other's.
    await vfio.stopDmaLogging();
    started = await startWith(started.granule);
  }
  return { ...started, readableWhen: limits?.readableWhen ?? "always" };
}

function checkReach(id: string, logged: readonly IovaStretch[], { addressWidth }: DmaLoggingLimits): void {
  const last = logged[logged.length - 1];
  const end = last.iova + last.length;
  if (end <= 1n << BigInt(addressWidth)) return;
  throw new DirtmapError(`the log of ${id} covers ${addressWidth} bits of IOVA, memory ends at ${hex(end)}`, {
    code: "OUT_OF_REACH",
    attempted: `start the DMA log of ${id}`,
    remedy: "give the device another tracker",
  });
}
