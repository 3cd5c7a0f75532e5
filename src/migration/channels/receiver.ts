import type { Socket } from "node:net";
import { Worker } from "node:worker_threads";
import { DirtmapError } from "../../errors.js";
import { ZERO_PAGE_DIGEST } from "../../kernels/pages.js";
import type { GuestMemory } from "../../memory/guest-memory.js";
import { dup } from "../../sys/fd.js";
import { adviseHugePages } from "../../sys/hugepages.js";
import { endThread } from "../../threads/end-thread.js";
import { RpcClient } from "../../threads/rpc.js";
import type { PageReceiver, RoundSent } from "../data-plane.js";
import { within } from "../deadline.js";
import { frameRefused } from "../stream/frame.js";
import type { Listener } from "../transport/listener.js";
import { digestTable, scratchLayout } from "./layout.js";
import type { ReceiverOperations, ReceiverThreadData } from "./receiver-thread.js";

/** From the token's handing out until all channels have shown it. */
const JOIN_MS = 30_000;

/** Connections that are met at once while channels are waited for; one more makes the oldest leave. */
const MAX_STRANGERS = 64;

/** How long the threads may take over closing their descriptors. */
const CLOSE_MS = 5_000;

interface Thread {
  readonly worker: Worker;
  readonly rpc: RpcClient<ReceiverOperations>;
  /** Channels that it serves, and connections that it is meeting. */
  channels: number;
  meeting: number;
}

/**
 * Takes the channels of one migration from a listener, as they come, and serves them with as many threads. Connections
 * that don't show the token are turned away; all are met beside each other, so that none holds up a channel. Channels are
 * accepted when all have joined.
 * @param args.memory of a machine that doesn't run; all zero
 */
export function openReceiver(args: {
  memory: GuestMemory;
  listener: Listener;
  channels: number;
  token: string;
  onRefused?: (error: unknown) => void;
  /** For tests: {@link JOIN_MS}. */
  joinMs?: number;
}): PageReceiver {
  return new Receiver(args);
}

class Receiver implements PageReceiver {
  readonly failed: Promise<never>;
  readonly #tables: readonly BigUint64Array<SharedArrayBuffer>[];
  readonly #announced: number;
  readonly #threads: readonly Thread[];
  readonly #connections: Disposable;
  readonly #onRefused: (error: unknown) => void;
  readonly #late: NodeJS.Timeout;
  /** Connections that have not shown the token yet, the oldest first. */
  readonly #strangers = new Map<number, Thread>();
  /** Channels that have joined, by number. */
  readonly #joined = new Map<number, { readonly id: number; readonly thread: Thread }>();
  #complete = false;
  #closing = false;
  #nextId = 0;
  #fail: (error: unknown) => void = () => {};

  constructor({
    memory,
    listener,
    channels,
    token,
    onRefused = () => {},
    joinMs = JOIN_MS,
  }: Parameters<typeof openReceiver>[0]) {
    this.#announced = channels;
    this.#onRefused = onRefused;
    this.#tables = memory.arenas.map((arena) => digestTable(arena, scratchLayout(arena, channels)));
    for (const arena of memory.arenas) adviseHugePages(arena.u8);
    for (const table of this.#tables) table.fill(ZERO_PAGE_DIGEST);
    this.failed = new Promise<never>((_, reject) => {
      this.#fail = reject;
    });
    // A caller that doesn't look at it is told by the control connection.
    this.failed.catch(() => {});
    const { code, message, remedy } = listener.busy();
    const workerData: ReceiverThreadData = {
      arenas: memory.arenas.map((arena) => ({ memory: arena.memory, ramBytes: arena.scratch.offset })),
      channels,
      token,
      busy: { code, message, remedy },
      credentials: listener.credentials,
    };
    this.#threads = Array.from({ length: channels }, () => {
      const worker = new Worker(new URL("./receiver-thread.js", import.meta.url), { workerData });
      return { worker, rpc: new RpcClient<ReceiverOperations>(worker), channels: 0, meeting: 0 };
    });
    this.#late = setTimeout(() => this.#fail(incomplete(this.#joined.size, channels, joinMs)), joinMs);
    this.#connections = listener.takeConnections((socket) => void this.#meet(socket));
  }

  async beginRound(round: number): Promise<void> {
    if (!this.#complete)
      throw frameRefused(`round ${round} begins with ${this.#joined.size} of ${this.#announced} channels`);
    await this.#all((thread) => thread.call("beginRound", round));
  }

  async endRound(round: number, sent: RoundSent): Promise<void> {
    const carried = (await this.#all((thread) => thread.call("endRound", round))).flat();
    for (const count of ["pages", "zeroPages", "bytes"] as const) {
      const arrived = carried.reduce((sum, channel) => sum + channel[count], 0);
      if (arrived === sent[count]) continue;
      throw frameRefused(`round ${round} was sent with ${sent[count]} ${COUNTED[count]}, and ${arrived} arrived`);
    }
  }

  async seal(): Promise<void> {
    await this.#all((thread) => thread.call("seal", undefined));
  }

  digests() {
    return { arenas: this.#tables };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing = true;
    clearTimeout(this.#late);
    this.#connections[Symbol.dispose]();
    // A descriptor that is on its way to a thread is closed by nobody else.
    const closed = Promise.allSettled(this.#threads.map(({ rpc }) => rpc.call("close", undefined)));
    await within(CLOSE_MS, "the channels closed", closed).catch(() => {});
    await Promise.all(this.#threads.map(({ worker, rpc }) => endThread(worker, rpc)));
  }

  /** Has a thread find out whether the connection is a channel. */
  async #meet(socket: Socket): Promise<void> {
    const id = this.#nextId++;
    const thread = this.#leastBusy();
    this.#strangers.set(id, thread);
    thread.meeting++;
    if (this.#strangers.size > MAX_STRANGERS) this.#dropOldest();
    try {
      const channel = await thread.rpc.call("meet", { id, fd: handOver(socket) });
      this.#strangers.delete(id);
      await this.#join(channel, id, thread);
    } catch (error) {
      if (!this.#closing) this.#onRefused(error);
    } finally {
      this.#strangers.delete(id);
      thread.meeting--;
    }
  }

  /** The one with the fewest channels, so that each has one in the end, whoever else comes. */
  #leastBusy(): Thread {
    const load = ({ channels, meeting }: Thread) => channels * MAX_STRANGERS + meeting;
    return this.#threads.reduce((best, thread) => (load(thread) < load(best) ? thread : best));
  }

  #dropOldest(): void {
    for (const [id, thread] of this.#strangers) {
      this.#strangers.delete(id);
      thread.rpc.call("drop", id).catch(() => {});
      return;
    }
  }

  async #join(channel: number, id: number, thread: Thread): Promise<void> {
    if (this.#joined.has(channel)) {
      const { code, message, remedy } = frameRefused(`channel ${channel} has joined already`);
      await thread.rpc.call("refuse", { id, problem: { code, message, remedy } });
      return;
    }
    thread.channels++;
    this.#joined.set(channel, { id, thread });
    thread.rpc.call("run", id).catch((error: unknown) => {
      if (!this.#closing) this.#fail(error);
    });
    if (this.#joined.size === this.#announced) await this.#accept();
  }

  async #accept(): Promise<void> {
    this.#complete = true;
    clearTimeout(this.#late);
    this.#connections[Symbol.dispose]();
    for (const [id, thread] of this.#strangers) thread.rpc.call("drop", id).catch(() => {});
    await Promise.all([...this.#joined.values()].map(({ id, thread }) => thread.rpc.call("accept", id)));
  }

  #all<Result>(ask: (thread: RpcClient<ReceiverOperations>) => Promise<Result>): Promise<Result[]> {
    return Promise.all(this.#threads.map(({ rpc }) => ask(rpc)));
  }
}

const COUNTED = { pages: "pages", zeroPages: "zero pages", bytes: "bytes" } as const;

function incomplete(joined: number, announced: number, ms: number): DirtmapError {
  return new DirtmapError(`${joined} of ${announced} channels joined within ${ms / 1000} s`, {
    code: "CHANNEL_LOST",
    remedy: "see what the source says, and whether the network holds",
  });
}

/**
 * The descriptor of an accepted connection, for another thread. Sockets can't be posted, but descriptors are the
 * process's: a duplicate is made before this thread lets go of its own. Nothing has been read from it yet.
 * @throws UapiError where the connection has gone, or there are too many descriptors
 */
function handOver(socket: Socket): number {
  try {
    const fd = (socket as unknown as { _handle: { fd: number } | null })._handle?.fd ?? -1;
    return dup(fd);
  } finally {
    socket.destroy();
  }
}
