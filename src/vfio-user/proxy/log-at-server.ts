import { getFeature, requestLog } from "../../host/device-feature.js";
import { LOG_IS_OFF, LOG_IS_ON, type LoggedRange } from "../../host/dma-logging-checks.js";
import type { BitmapQuery } from "../../host/host.js";
import { iovaOf, PAGE_SIZE, pageOf } from "../../memory/address.js";
import { vfio_device_feature_dma_logging_report } from "../../uapi/vfio.js";
import type { NotedMappings } from "../client/feature.js";
import type { WrittenPages } from "../client/written-pages.js";
import type { ClientMemory, DmaRegion } from "../server/client-memory.js";
import { checkLogUser, type DmaLog, type DmaLogUser } from "../server/dma-logging.js";
import { refusal } from "../server/refusal.js";
import type { ServerLink } from "./server-link.js";

const START = "VFIO_DEVICE_FEATURE_DMA_LOGGING_START";
const REPORT = "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT";
const STOP = "VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP";

/** A server whose log can be used. */
interface Logging {
  readonly server: ServerLink | null;
}

/**
 * The log that the server keeps of its device's DMA, as this proxy's clients see it. It belongs to the connection that started
 * it, whatever the server thinks of that: to the server all are one client.
 *
 * What the server may leave out is noted here and added to reports: what it wrote by messages, and all of a region that was
 * unmapped since the last report.
 */
export class LogAtServer implements DmaLog, NotedMappings {
  written: WrittenPages | null = null;
  readonly #device: Logging;
  readonly #memory: ClientMemory;
  #user: DmaLogUser | null = null;
  #granule = 0;
  #ranges: readonly LoggedRange[] = [];

  constructor(device: Logging, memory: ClientMemory) {
    this.#device = device;
    this.#memory = memory;
  }

  get mapped(): NotedMappings["mapped"] {
    return this.#memory
      .regions()
      .map(({ page, pages }) => [iovaOf(page), { span: { length: pages * PAGE_SIZE } }] as const);
  }

  get state(): DmaLog["state"] {
    if (this.#user === null) return null;
    const ranges =
      this.#ranges.length === 0
        ? this.#memory.regions()
        : this.#ranges.map(({ iova, length }) => ({ page: pageOf(iova), pages: Number(length / BigInt(PAGE_SIZE)) }));
    return { granule: this.#granule, ranges, startedBy: this.#user.name };
  }

  get isSupported(): boolean {
    return this.#device.server?.facts.log === true;
  }

  async start(pageSize: number, ranges: readonly LoggedRange[], user: DmaLogUser): Promise<number> {
    if (this.#user !== null) throw refusal("EINVAL", START, "start the log", LOG_IS_ON);
    const call = { syscall: START, attempted: `log ${ranges.length} ranges` };
    this.#granule = Number(await requestLog(this.#features, { pageSize, ranges }, call));
    this.#user = user;
    this.#ranges = ranges;
    return this.#granule;
  }

  async report({ iova, length, pageSize, into }: BitmapQuery, user: DmaLogUser): Promise<void> {
    if (this.#user === null) throw refusal("EINVAL", REPORT, "read the log", LOG_IS_OFF);
    checkLogUser(this.#user, user, "read");
    if (length === 0n) return;
    const call = { syscall: REPORT, attempted: `read the log of ${length} bytes at ${iova}` };
    const values = { iova, length, page_size: BigInt(pageSize) };
    const layout = vfio_device_feature_dma_logging_report;
    await getFeature(this.#features, "DMA_LOGGING_REPORT", layout, call, { values, bitmap: into });
  }

  async stop(user: DmaLogUser): Promise<void> {
    checkLogUser(this.#user, user, "stop");
    if (this.#user === null) return;
    const call = { syscall: STOP, attempted: "stop the log" };
    await this.#features.set("DMA_LOGGING_STOP", new Uint8Array(0), call);
    this.forget();
  }

  async release(user: DmaLogUser): Promise<void> {
    if (this.#user === user) await this.end();
  }

  /** The server may have ended its log by itself: then there is nothing to refuse. */
  async end(): Promise<void> {
    const user = this.#user;
    if (user === null) return;
    await this.stop(user).catch(() => undefined);
    this.forget();
  }

  /** The server is gone, and its log with it. */
  forget(): void {
    this.#user = null;
    this.written = null;
  }

  /** A region is about to be unmapped: what its log says of it can't be asked for afterwards. */
  lose({ page, pages }: DmaRegion): void {
    this.written?.add(iovaOf(page), pages * PAGE_SIZE);
  }

  get #features() {
    const { server } = this.#device;
    if (server === null) throw refusal("ENOTCONN", START, "use the log of a server that is gone");
    return server.features;
  }
}
