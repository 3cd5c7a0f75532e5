import { clockMonotonic } from "../../devices/clock.js";
import { Containment } from "../../devices/containment.js";
import { DmaLog, type PostedDmaLog } from "../../devices/dma-log.js";
import type { DeviceContext, DeviceModel, DmaFault, DmaPort } from "../../devices/model.js";
import { createModel } from "../../devices/models.js";
import type { RunMode } from "../../devices/variant-driver/migration-driver.js";
import type { PostedTracker } from "../../iommufd/emulated-iommu.js";
import type { PageNumber } from "../../memory/address.js";
import { openArena } from "../../memory/arena.js";
import type { RpcClient } from "../../threads/rpc.js";
import { UapiError } from "../../uapi/errno.js";
import { IommuDmaPort } from "../iommu/dma-port.js";
import { PinPort } from "../vfio/pin-port.js";
import type { HostOperations, PostedDevice } from "./device-protocol.js";
import { DmaHold } from "./hold.js";

/** One device on a device thread: its model, its port, and what it may do at the moment. */
export class HostedDevice implements DeviceContext {
  readonly model: DeviceModel;
  /** The model's registers, and its work. */
  readonly contained: Containment;
  /** When it wants to run again, by performance.now(). */
  dueAt = 0;
  readonly #number: number;
  readonly #host: RpcClient<HostOperations>;
  readonly #iommuPort: IommuDmaPort | undefined;
  readonly #pinPort: PinPort | undefined;
  #mode: RunMode = "stopped";
  #dropEpoch = 0;
  /** Pinning and unpinning that the main thread has not answered yet. */
  readonly #pinning = new Set<Promise<unknown>>();

  constructor(posted: PostedDevice, host: RpcClient<HostOperations>) {
    this.#number = posted.device;
    this.#host = host;
    const hold = posted.hold === null ? undefined : new DmaHold(posted.hold);
    const pass = hold === undefined ? undefined : () => hold.pass();
    if (posted.port.kind === "iommu") {
      this.#iommuPort = new IommuDmaPort(posted.port.wiring, pass === undefined ? {} : { afterTranslate: pass });
    } else this.#pinPort = new PinPort(posted.port.wiring, pass);
    const memory = posted.memory === null ? null : openArena(posted.memory.memory).u8.subarray(0, posted.memory.bytes);
    this.model = createModel(posted.description, { ...posted.wiring, memory });
    this.contained = new Containment(this.model, {
      failed: (reason) => void host.call("failed", { device: this.#number, reason }),
      revived: () => void host.call("revived", { device: this.#number }),
    });
  }

  get dma(): DmaPort {
    const port = this.#iommuPort ?? this.#pinPort;
    if (port === undefined) throw new Error("a device without a port");
    return port;
  }

  get p2pQuiesced(): boolean {
    return this.#mode === "p2p-quiesced";
  }

  /** True if its model may be given a slice. */
  get runnable(): boolean {
    if (this.contained.failure !== undefined || !this.model.busMaster) return false;
    return this.#mode === "running" || (this.#mode === "p2p-quiesced" && this.model.info.separatesP2p);
  }

  now(): bigint {
    return clockMonotonic();
  }

  raiseIrq(index: number, vector: number): void {
    void this.#host.call("raiseIrq", { device: this.#number, index, vector });
  }

  async pin(page: PageNumber, pages: number): Promise<DmaFault | null> {
    const answer = await this.#pending(this.#host.call("pin", { device: this.#number, page, pages }));
    if ("fault" in answer) return answer.fault;
    if (answer.epoch < this.#dropEpoch) {
      // Pins were taken back while this answer was on its way; these may be among them.
      await this.unpin(page, pages);
      return "not-mapped";
    }
    for (const run of answer.runs) this.#pinPort?.add(run);
    return null;
  }

  async unpin(page: PageNumber, pages: number): Promise<void> {
    this.#pinPort?.drop(page, pages);
    await this.#pending(this.#host.call("unpin", { device: this.#number, page, pages }));
  }

  fail(reason: string): void {
    this.contained.fail(reason);
  }

  /** Does a slice of work. */
  run(budgetMs: number): void {
    this.dueAt = performance.now() + this.contained.run(budgetMs);
  }

  /** The answer to a change of mode: DMA that the new mode forbids has landed, and no pin is on its way. */
  async setMode(mode: RunMode): Promise<void> {
    this.#mode = mode;
    if (this.#iommuPort !== undefined) this.#iommuPort.p2pQuiesced = mode === "p2p-quiesced";
    if (this.runnable) {
      this.dueAt = 0;
      return;
    }
    this.model.quiesce();
    await Promise.allSettled([...this.#pinning]);
  }

  async reset(): Promise<void> {
    this.contained.reset();
    // Unpinning takes several turns: each ends in a new pending call, or in none.
    while (this.#pinning.size > 0) await Promise.allSettled([...this.#pinning]);
  }

  setLog(log: PostedDmaLog | null): void {
    if (this.#iommuPort === undefined) throw this.#notThisPort("DMA_LOGGING_START");
    this.#iommuPort.log = log === null ? null : DmaLog.open(log);
  }

  setTracker(tracker: PostedTracker | null): void {
    if (this.#pinPort === undefined) throw this.#notThisPort("attach to an emulated IOMMU");
    this.#pinPort.setTracker(tracker);
  }

  dropPins(page: PageNumber, pages: number, epoch: number): void {
    this.#dropEpoch = Math.max(this.#dropEpoch, epoch);
    this.#pinPort?.drop(page, pages);
  }

  #pending<T>(promise: Promise<T>): Promise<T> {
    this.#pinning.add(promise);
    const done = () => this.#pinning.delete(promise);
    promise.then(done, done);
    return promise;
  }

  #notThisPort(what: string): UapiError {
    return new UapiError("ENOTTY", { syscall: what, attempted: `${what} on a ${this.model.info.model}` });
  }
}
