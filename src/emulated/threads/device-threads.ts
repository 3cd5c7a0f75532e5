import { MessageChannel, Worker } from "node:worker_threads";
import type { PostedDmaLog } from "../../devices/dma-log.js";
import type { ModelInfo } from "../../devices/model.js";
import { modelInfo } from "../../devices/models.js";
import type { StampTrail } from "../../devices/stamp.js";
import type { RunMode } from "../../devices/variant-driver/migration-driver.js";
import { DirtmapError } from "../../errors.js";
import type { ShapeFacts } from "../../host/shape.js";
import type { PostedTracker } from "../../iommufd/emulated-iommu.js";
import type { PageNumber } from "../../memory/address.js";
import { endThread } from "../../threads/end-thread.js";
import { RpcClient, serve } from "../../threads/rpc.js";
import { within } from "../../threads/within.js";
import type { DeviceOperations, HostOperations, PostedDevice } from "./device-protocol.js";

/** Who pins memory for an mdev, on the main thread: its driver. */
export type PinService = Pick<
  {
    [name in keyof HostOperations]: (
      args: Omit<Parameters<HostOperations[name]>[0], "device">,
    ) => ReturnType<HostOperations[name]>;
  },
  "pin" | "unpin"
>;

/** A device's disk file may have to be opened or made, its socket bound. */
const CREATE_LIMIT_MS = 10_000;
/** The longest that a request may take: a device held in the middle of a DMA goes on after 5 s. */
const REQUEST_LIMIT_MS = 15_000;

/** The main side of one device on a device thread. Requests are answered when the device's DMA has drained. */
export class DeviceClient {
  readonly id: string;
  readonly info: ModelInfo;
  /** Set by the mdev's driver once it has an access; until then pinning is refused. */
  pins: PinService | null = null;
  /** Interrupts that the device raised. */
  interrupts = 0;
  readonly #number: number;
  readonly #rpc: RpcClient<DeviceOperations>;
  readonly #onRemove: () => void;
  #failure: string | undefined;

  constructor(posted: PostedDevice, rpc: RpcClient<DeviceOperations>, onRemove: () => void) {
    this.id = posted.description.id;
    this.info = modelInfo(posted.description, posted.memory?.bytes ?? 0);
    this.#number = posted.device;
    this.#rpc = rpc;
    this.#onRemove = onRemove;
  }

  /** Why the device can't go on; undefined while it can. A reset clears it, unless its thread has ended. */
  get failure(): string | undefined {
    return this.#failure;
  }

  /** Called by its thread's side: the device was reset. */
  noteRevival(): void {
    this.#failure = undefined;
  }

  /** Called by its thread's side: the device has failed. */
  noteFailure(reason: string): void {
    this.#failure ??= reason;
  }

  async setMode(mode: RunMode): Promise<void> {
    await this.#call("setMode", { mode });
  }

  /** Closes the device, which must be stopped; nothing else can be asked of it afterwards. */
  async remove(): Promise<void> {
    await this.#call("remove", {});
    this.#onRemove();
  }

  /** The whole state; final when the device is stopped. */
  async save(): Promise<Uint8Array> {
    return this.#call("save", {});
  }

  /** @throws DirtmapError `BAD_DEVICE_STATE` */
  async load(state: Uint8Array<ArrayBuffer>): Promise<void> {
    await this.#call("load", { state }, [state.buffer]);
  }

  async reset(): Promise<void> {
    await this.#call("reset", {});
    this.#failure = undefined;
  }

  async regionRead(region: number, offset: number, bytes: number): Promise<Uint8Array> {
    return this.#call("regionRead", { region, offset, bytes });
  }

  async regionWrite(region: number, offset: number, data: Uint8Array): Promise<void> {
    await this.#call("regionWrite", { region, offset, data });
  }

  async setLog(log: PostedDmaLog | null): Promise<void> {
    await this.#call("setLog", { log });
  }

  async setTracker(tracker: PostedTracker | null): Promise<void> {
    await this.#call("setTracker", { tracker });
  }

  async dropPins(args: { page: PageNumber; pages: number; epoch: number }): Promise<void> {
    await this.#call("dropPins", args);
  }

  /** What a guest can tell it by, of its model's own. */
  async facts(): Promise<ShapeFacts> {
    return this.#call("facts", {});
  }

  async counters(): Promise<Record<string, number>> {
    return {
      ...(await this.#call("counters", {})),
      interrupts: this.interrupts,
      failed: this.#failure === undefined ? 0 : 1,
    };
  }

  /** What its stamps in memory must be; meaningful once it has stopped. null: its DMA is not stamped. */
  async trail(): Promise<StampTrail | null> {
    return this.#call("trail", {});
  }

  async #call<Name extends keyof DeviceOperations & string>(
    operation: Name,
    args: Omit<Parameters<DeviceOperations[Name]>[0], "device">,
    transfer: ArrayBuffer[] = [],
  ) {
    const argument = { ...args, device: this.#number } as unknown as Parameters<DeviceOperations[Name]>[0];
    const asked = this.#rpc.call(operation, argument, transfer).catch((cause: unknown) => {
      if (!(cause instanceof DirtmapError) || cause.code !== "THREAD_ENDED") throw cause;
      throw new DirtmapError(`the thread of ${this.id} has ended`, { code: "DEVICE_THREAD_ENDED", cause });
    });
    return within(asked, REQUEST_LIMIT_MS, `${operation} of ${this.id}`);
  }
}

/** What a device's driver has to do with, wherever the device is. */
export type DeviceSide = Omit<Pick<DeviceClient, keyof DeviceClient>, "noteFailure" | "noteRevival">;

interface Thread {
  readonly worker: Worker;
  readonly rpc: RpcClient<DeviceOperations>;
  readonly clients: Map<number, DeviceClient>;
}

/** The device threads of a machine. Devices are spread over them in turn. */
export class DeviceThreads implements AsyncDisposable {
  readonly #threads: readonly Thread[];
  #placed = 0;
  #disposed = false;

  /**
   * @param threads from 1
   * @param onDeath called when a thread ends that should not have: the machine has failed
   */
  constructor(threads: number, onDeath: (error: Error) => void) {
    this.#threads = Array.from({ length: threads }, () => this.#spawn(onDeath));
  }

  /** Makes a device on one of the threads. It is started, and stopped: mode `stopped`. */
  async place(posted: Omit<PostedDevice, "device">): Promise<DeviceClient> {
    const device = this.#placed++;
    const { rpc, clients } = this.#threads[device % this.#threads.length];
    const client = new DeviceClient({ ...posted, device }, rpc, () => clients.delete(device));
    clients.set(device, client);
    await within(rpc.call("create", { ...posted, device }), CREATE_LIMIT_MS, `start of device '${client.id}'`);
    return client;
  }

  /** For tests: a thread dies, as by running out of memory. */
  async kill(thread: number): Promise<void> {
    await this.#threads[thread].worker.terminate();
  }

  /** Ends the threads; what their devices were doing ends with them. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true;
    await Promise.all(this.#threads.map(({ worker, rpc }) => endThread(worker, rpc)));
  }

  #spawn(onDeath: (error: Error) => void): Thread {
    const { port1, port2 } = new MessageChannel();
    const worker = new Worker(new URL("./device-thread.js", import.meta.url), {
      workerData: { host: port2 },
      transferList: [port2],
    });
    const clients = new Map<number, DeviceClient>();
    const client = (device: number): DeviceClient => {
      const found = clients.get(device);
      if (found === undefined) throw new Error(`a request of unknown device ${device}`);
      return found;
    };
    const operations: HostOperations = {
      async pin({ device, ...range }) {
        return (await client(device).pins?.pin(range)) ?? { fault: "detached" };
      },
      async unpin({ device, ...range }) {
        await client(device).pins?.unpin(range);
      },
      raiseIrq({ device }) {
        client(device).interrupts++;
      },
      failed({ device, reason }) {
        client(device).noteFailure(reason);
      },
      revived({ device }) {
        client(device).noteRevival();
      },
    };
    serve(port1, operations);
    // The worker's own life keeps the process alive; this port must not outlive it.
    port1.unref();
    let over = false;
    const ended = (cause?: Error) => {
      if (this.#disposed || over) return;
      over = true;
      const ids = [...clients.values()].map(({ id }) => id).join(", ");
      const error = new DirtmapError(`the thread of ${ids} has ended`, { code: "DEVICE_THREAD_ENDED", cause });
      for (const each of clients.values()) each.noteFailure(error.message);
      onDeath(error);
    };
    worker.once("error", ended);
    worker.once("exit", () => ended());
    return { worker, clients, rpc: new RpcClient<DeviceOperations>(worker) };
  }
}
