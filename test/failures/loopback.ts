import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { forEachRun } from "../../src/bitmap/bits.js";
import type { RamBitmap } from "../../src/bitmap/ram-bitmap.js";
import { DirtmapError } from "../../src/errors.js";
import { type MachineDescription, machineSchema } from "../../src/host/description.js";
import { MiB, PAGE_SIZE } from "../../src/memory/address.js";
import type { GuestMemory } from "../../src/memory/guest-memory.js";
import type { PageDigests, PageReceiver, PageSender } from "../../src/migration/data-plane.js";
import { type Decision, sendDecision } from "../../src/migration/decision.js";
import { type ReceiveOptions, type ReceiveResult, receive } from "../../src/migration/destination.js";
import { listJournals } from "../../src/migration/journals.js";
import type { ControlLink } from "../../src/migration/peer.js";
import type { MigrationReport } from "../../src/migration/report.js";
import { type MigrateOptions, migrate } from "../../src/migration/source.js";
import type { ControlMessage } from "../../src/migration/stream/messages.js";
import { connectControl } from "../../src/migration/transport/connect.js";
import { listen } from "../../src/migration/transport/listener.js";
import { DEFAULT_POLICY } from "../../src/tracking/choice.js";
import { frameProxy, type Meddler, type Meddlers } from "../support/frame-proxy.js";
import { FakeMachine, type FakeOptions, Witness } from "./fake-machine.js";

/*
 * A source and a destination in one process. The control connection is a real one, over TCP, through a proxy that can
 * damage it; pages are copied from memory to memory, so that a test decides about each of them.
 */

/** What the proxy between the two does to each direction. */
export interface Damage extends Meddlers {
  /** Frames from the source that arrive; then the connection is cut. */
  readonly cutAfterToDestination?: number;
  /** Frames from the destination that arrive; then the connection is cut. */
  readonly cutAfterToSource?: number;
}

/** What a side hears in place of a message that arrives. */
export type Hearing = (message: ControlMessage) => readonly ControlMessage[];

function heardThrough(hear: Hearing, link: ControlLink): ControlLink {
  const heard: ControlMessage[] = [];
  const receive = async (): Promise<ControlMessage> => {
    for (;;) {
      const next = heard.shift();
      if (next !== undefined) return next;
      heard.push(...hear(await link.receive()));
    }
  };
  return { receive, send: (message) => link.send(message), close: () => link.close() };
}

const cutAfter =
  (limit: number | undefined): Meddler =>
  (frame, index) =>
    limit !== undefined && index >= limit ? "cut" : frame;

/** Pages that go from one memory into the other, with digests of what lies in the other. */
class DirectPages {
  #to: GuestMemory | undefined;
  #table: PageDigests = { arenas: [] };
  /** Called before each page is stored; false: the page is lost. */
  onPage: (arena: number, page: number) => boolean = () => true;
  /** Rejects the round when it resolves to an error. */
  failRound: (round: number) => Error | null = () => null;
  #break: (error: Error) => void = () => {};

  /** Breaks the destination's end. */
  breakReceiver(error: Error): void {
    this.#break(error);
  }

  receiver(memory: GuestMemory): PageReceiver {
    this.#to = memory;
    this.#table = digestsOf(memory);
    const failed = new Promise<never>((_, reject) => {
      this.#break = reject;
    });
    failed.catch(() => {});
    // What is counted of real channels; here a test decides what arrives.
    const counted = async () => {};
    const digests = () => this.#table;
    return { failed, digests, beginRound: counted, endRound: counted, seal: counted, [Symbol.asyncDispose]: counted };
  }

  sender(from: GuestMemory): PageSender {
    return {
      sendRound: async (round: number, pages: RamBitmap, signal: AbortSignal) => {
        const to = this.#to;
        if (to === undefined) throw new DirtmapError("nobody receives", { code: "CHANNEL_LOST" });
        const since = performance.now();
        // Devices and vCPUs write while a round is under way.
        await new Promise((resolve) => setTimeout(resolve, 2));
        signal.throwIfAborted();
        const failure = this.failRound(round);
        if (failure !== null) throw failure;
        let count = 0;
        pages.arenas.forEach((words, arena) => {
          forEachRun(words, words.length * 32, (first, length) => {
            for (let page = first; page < first + length; page++) {
              count++;
              if (!this.onPage(arena, page)) continue;
              const at = page * PAGE_SIZE;
              to.arenas[arena].u8.set(from.arenas[arena].u8.subarray(at, at + PAGE_SIZE), at);
              this.#table.arenas[arena][page] = digestOf(to, arena, page);
            }
          });
        });
        await new Promise((resolve) => setTimeout(resolve, 4));
        return { pages: count, zeroPages: 0, bytes: count * PAGE_SIZE, ms: performance.now() - since };
      },
      progress: () => ({ pages: 0, bytes: 0 }),
      setBandwidth: () => {},
      digest: async () => digestsOf(from),
      [Symbol.asyncDispose]: async () => {},
    };
  }
}

function digestsOf(memory: GuestMemory): PageDigests {
  return {
    arenas: memory.arenas.map(({ ramPages }, arena) => {
      const table = new BigUint64Array(new SharedArrayBuffer(ramPages * 8));
      for (let page = 0; page < ramPages; page++) table[page] = digestOf(memory, arena, page);
      return table;
    }),
  };
}

function digestOf(memory: GuestMemory, arena: number, page: number): bigint {
  const bytes = memory.arenas[arena].u8.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
  return createHash("md5").update(bytes).digest().readBigUInt64LE();
}

export const description: MachineDescription = machineSchema.parse({
  memory: 4 * MiB,
  vcpus: { count: 1 },
  devices: [],
});

export interface Loopback {
  readonly witness: Witness;
  readonly source: FakeMachine;
  /** The destination's machine, once it was made. */
  destination: FakeMachine | undefined;
  readonly pages: DirectPages;
  readonly journals: string;
  /** Frames that passed the proxy, to the destination and to the source. */
  readonly frames: readonly number[];
  migrate(options?: Partial<MigrateOptions>): Promise<MigrationReport>;
  /** How the destination's receive ended. */
  readonly received: Promise<ReceiveResult>;
  /** What `dirtmap resume` and `dirtmap abort` do, for this loopback's migration, as soon as it is given up. */
  decide(decision: Decision): Promise<string>;
  close(): Promise<void>;
}

/** Time-outs for tests: long enough for a busy machine, short enough to wait for. */
const TIMEOUTS = { acceptMs: 2000, deviceMs: 500, readyMs: 1500, runningMs: 500, goMs: 1500, peerMs: 2000 };

/** Starts a destination, and offers to migrate a running machine to it. */
export async function loopback(
  args: {
    damage?: Damage;
    sourceHears?: Hearing;
    destinationHears?: Hearing;
    machine?: Partial<FakeOptions>;
    receive?: Partial<ReceiveOptions>;
    onDestination?: (machine: FakeMachine) => void;
  } = {},
): Promise<Loopback> {
  const witness = new Witness();
  const journals = mkdtempSync(join(tmpdir(), "dirtmap-test-"));
  const source = await FakeMachine.create({ name: "source", witness, running: true, ...args.machine });
  const pages = new DirectPages();
  const listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
  const { damage = {}, sourceHears = (message) => [message], destinationHears = (message) => [message] } = args;
  const between = await frameProxy(listener.endpoint.port, {
    toDestination: damage.toDestination ?? cutAfter(damage.cutAfterToDestination),
    toSource: damage.toSource ?? cutAfter(damage.cutAfterToSource),
  });
  const endpoint = { scheme: "tcp", host: "127.0.0.1", port: between.port } as const;

  const result: Loopback = {
    witness,
    source,
    destination: undefined,
    pages,
    journals,
    // There is one connection: pages don't travel here.
    get frames() {
      return between.frames[0] ?? [0, 0];
    },
    received: (async () => {
      const control = await listener.acceptControl();
      return await receive({
        source: {
          from: "test",
          control: heardThrough(destinationHears, control),
          openReceiver: async ({ memory }) => ({ receiver: pages.receiver(memory), token: "0".repeat(64) }),
        },
        createMachine: async () => {
          result.destination = await FakeMachine.create({
            name: "destination",
            witness,
            ...args.machine,
            running: false,
          });
          args.onDestination?.(result.destination);
          return result.destination;
        },
        journalDirectory: journals,
        timeouts: TIMEOUTS,
        ...args.receive,
      });
    })(),
    migrate: (options = {}) =>
      migrate({
        machine: source,
        description,
        transport: {
          destination: `tcp://127.0.0.1:${between.port}`,
          connect: async (signal) => heardThrough(sourceHears, await connectControl({ endpoint, signal })),
          openSender: async ({ memory }) => pages.sender(memory),
        },
        policy: DEFAULT_POLICY,
        design: "split",
        downtimeLimitMs: 200,
        runAfterMs: 0,
        journalDirectory: journals,
        timeouts: TIMEOUTS,
        ...options,
      }),
    decide: async (decision) => {
      for (let tries = 0; tries < 500; tries++) {
        const waiting = listJournals(journals).find(({ standing }) => standing === "waits");
        if (waiting !== undefined) return await sendDecision(journals, waiting.migration, decision);
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
      throw new Error("nobody waits for a decision");
    },
    close: async () => {
      between.close();
      await listener[Symbol.asyncDispose]();
      source.kill();
      result.destination?.kill();
      rmSync(journals, { recursive: true, force: true });
    },
  };
  result.received.catch(() => {});
  return result;
}
