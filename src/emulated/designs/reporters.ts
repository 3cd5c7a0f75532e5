import type { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import { type IovaStretch, overlap } from "../../bitmap/ranges.js";
import type { ContainerMember } from "../../host/designs.js";
import type { Iommufd, ObjectId, VfioDevice } from "../../host/host.js";
import { type RunningDmaLog, startDmaLog } from "../../host/running-dma-log.js";
import { PAGE_SIZE } from "../../memory/address.js";
import { settled } from "../../settled.js";

/** A tracker as the kernel's own code would call it: what both aggregating designs have underneath. */
export interface Reporter {
  readonly readableWhen: "always" | "quiesced";
  /** Bytes per bit; known once started. */
  readonly granule: number;
  start(mapped: readonly IovaStretch[]): Promise<void>;
  /** What has to be read, whole, to learn of the writes to a mapped area. */
  reads(area: IovaStretch): readonly IovaStretch[];
  /** Reads and clears one of {@link reads}, into a bitmap of that stretch with that granule. */
  report(stretch: IovaStretch, into: DirtyBitmap): Promise<void>;
  stop(): Promise<void>;
}

/** One reporter per domain that tracks, and one per log; a domain that devices share reports once. */
export function reportersOf(members: readonly ContainerMember[]): Reporter[] {
  const reporters: Reporter[] = [];
  const domains: { iommufd: Iommufd; id: ObjectId }[] = [];
  for (const { device, tracker, domain, granule } of members) {
    if (tracker === null) continue;
    if (tracker !== "iommu") {
      reporters.push(new LogReporter(device.vfio, granule));
    } else if (domain !== null && !domains.some(({ iommufd, id }) => iommufd === domain.iommufd && id === domain.id)) {
      domains.push(domain);
      reporters.push(new DomainReporter(domain.iommufd, domain.id));
    }
  }
  return reporters;
}

/** Switches all on, or none. */
export async function startAll(reporters: readonly Reporter[], mapped: readonly IovaStretch[]): Promise<void> {
  const started: Reporter[] = [];
  try {
    for (const reporter of reporters) {
      await reporter.start(mapped);
      started.push(reporter);
    }
  } catch (error) {
    await stopAll(started).catch(() => undefined);
    throw error;
  }
}

/** Switches all off, then throws the first failure. */
export async function stopAll(reporters: readonly Reporter[]): Promise<void> {
  await settled(reporters.map((reporter) => reporter.stop()));
}

class DomainReporter implements Reporter {
  readonly readableWhen = "always";
  readonly granule = PAGE_SIZE;
  readonly #iommufd: Iommufd;
  readonly #id: ObjectId;

  constructor(iommufd: Iommufd, id: ObjectId) {
    this.#iommufd = iommufd;
    this.#id = id;
  }

  start(): Promise<void> {
    return this.#iommufd.setDirtyTracking(this.#id, true);
  }

  reads(area: IovaStretch) {
    return [area];
  }

  async report({ iova, length }: IovaStretch, into: DirtyBitmap): Promise<void> {
    await this.#iommufd.getDirtyBitmap(this.#id, { iova, length, pageSize: PAGE_SIZE, into, clear: true });
  }

  stop(): Promise<void> {
    return this.#iommufd.setDirtyTracking(this.#id, false);
  }
}

class LogReporter implements Reporter {
  readonly #vfio: VfioDevice;
  readonly #asked: number | null;
  #log: RunningDmaLog = { granule: PAGE_SIZE, logged: [], readableWhen: "always" };

  constructor(vfio: VfioDevice, granule: number | null) {
    this.#vfio = vfio;
    this.#asked = granule;
  }

  get readableWhen() {
    return this.#log.readableWhen;
  }

  get granule() {
    return this.#log.granule;
  }

  async start(mapped: readonly IovaStretch[]): Promise<void> {
    this.#log = await startDmaLog(this.#vfio, mapped, this.#asked ?? undefined);
  }

  reads(area: IovaStretch) {
    return this.#log.logged.filter((range) => overlap(range, area));
  }

  report({ iova, length }: IovaStretch, into: DirtyBitmap): Promise<void> {
    return this.#vfio.reportDmaLogging({ iova, length, pageSize: this.granule, into });
  }

  stop(): Promise<void> {
    return this.#vfio.stopDmaLogging();
  }
}
