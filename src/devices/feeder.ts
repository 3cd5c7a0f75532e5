import { Worker } from "node:worker_threads";
import { endThread } from "../threads/end-thread.js";
import { RpcClient } from "../threads/rpc.js";
import { within } from "../threads/within.js";
import { feedPlan } from "./feed.js";

/** Answered by the feeder's thread. */
export type FeederOperations = {
  feed(args: { port: number; datagramsPerSecond: number }): void;
  stop(args: { port: number }): void;
  sent(args: null): number;
};

const LIMIT_MS = 10_000;

/** Whoever is at the other end of the NICs' wires: a thread that sends them datagrams over the loopback interface. */
export class Feeder implements AsyncDisposable {
  readonly #worker = new Worker(new URL("./feeder-thread.js", import.meta.url));
  readonly #rpc = new RpcClient<FeederOperations>(this.#worker);

  constructor() {
    // Unheard, an error of the feeder would end the process. Its NICs fall silent, and the next call is refused.
    this.#worker.on("error", () => undefined);
  }

  /**
   * Sends as many datagrams as a NIC needs to reach its rate.
   * @param port its UDP port: its counter `udpPort`
   * @param rate megabytes (10^6) per second that it shall write
   */
  async feed(port: number, rate: number): Promise<void> {
    const { datagramsPerSecond } = feedPlan(rate);
    await within(this.#rpc.call("feed", { port, datagramsPerSecond }), LIMIT_MS, "the feeder");
  }

  /** Sends no more to this port. */
  async stop(port: number): Promise<void> {
    await within(this.#rpc.call("stop", { port }), LIMIT_MS, "the feeder");
  }

  /** Datagrams sent so far. */
  async sent(): Promise<number> {
    return within(this.#rpc.call("sent", null), LIMIT_MS, "the feeder");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endThread(this.#worker, this.#rpc);
  }
}
