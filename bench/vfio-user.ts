import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { interleave, type Summary, summarize } from "../src/evidence/statistics.js";
import { GiB, PAGE_SIZE } from "../src/memory/address.js";
import { MissingError } from "../tools/vm/missing.js";
import { BenchClient } from "./vfio-user/client.js";
import { compile } from "./vfio-user/programs.js";
import { Servers, type Way } from "./vfio-user/servers.js";

/*
 * A vfio-user server seen from its socket: Dirtmap's, libvfio-user's, and one that does nothing, each with a thread that
 * sleeps between messages and with one that polls, under the same C client (bench/vfio-user/client.c).
 */

export interface VfioUserRow {
  readonly bench: "vfio-user";
  readonly what: string;
  readonly unit: "us" | "ms";
  /** Per server that was measured; a string where it refused: the errno. */
  readonly figures: Readonly<Partial<Record<Way, Summary | string>>>;
  /** Of the figures of the same turn, Dirtmap's over libvfio-user's: medians; null where there are none. */
  readonly ratio: number | null;
  readonly pollRatio: number | null;
}

export interface VfioUserOptions {
  readonly turns: number;
}

/** Messages in a batch, and batches of a turn: a turn's figure is the median of its batches. */
const BATCH = 300;
const BATCHES = 9;
const WARM_UP = 20_000;

const REGIONS = 1000;
const LOGGED_BYTES = 64 * GiB;
/** Of the logged bytes: what libvfio-user does not report. */
const PART_BYTES = GiB;

/** Pages that are marked before a report: one in so many; 0: none. */
const STEPS = [
  { share: "0", step: 0 },
  { share: "0.01 %", step: 10_000 },
  { share: "1 %", step: 100 },
  { share: "100 %", step: 1 },
];

/** Measures all servers that there are. Without a C compiler: nothing, with a line that says so. */
export async function run({ turns }: VfioUserOptions): Promise<VfioUserRow[]> {
  const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
  const folder = mkdtempSync(join(tmpdir(), "dirtmap-bench-"));
  try {
    const programs = compile(root, folder);
    await using servers = await Servers.start(programs, folder);
    const bench = new Bench(programs.client, servers.sockets, turns);
    await bench.warmUp();
    return [
      await bench.messages("register read", (batch) => `read ${batch} block`),
      await bench.messages("register write", (batch) => `write ${batch} block`),
      await bench.messages("register read, client polls", (batch) => `read ${batch} spin`),
      await bench.messages("register write, client polls", (batch) => `write ${batch} spin`),
      await bench.messages("posted write", (batch) => `posted ${batch}`),
      await bench.maps(),
      ...(await bench.reports()),
    ];
  } catch (error) {
    if (!(error instanceof MissingError)) throw error;
    process.stderr.write(`vfio-user skipped: ${error.message}\n`);
    return [];
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

class Bench {
  readonly #program: string;
  readonly #sockets: ReadonlyMap<Way, string>;
  readonly #turns: number;

  constructor(program: string, sockets: ReadonlyMap<Way, string>, turns: number) {
    this.#program = program;
    this.#sockets = sockets;
    this.#turns = turns;
  }

  async warmUp(): Promise<void> {
    for (const socket of this.#sockets.values()) {
      await using client = await BenchClient.connect(this.#program, socket);
      for (const kind of ["read", "write"]) await client.measure(`${kind} ${WARM_UP} block`);
    }
  }

  /** Microseconds per message. */
  messages(what: string, command: (batch: number) => string): Promise<VfioUserRow> {
    return this.#perTurn(what, [...this.#sockets.keys()], async (client) => {
      const batches: number[] = [];
      for (let i = 0; i < BATCHES; i++) batches.push((await client.measure(command(BATCH))) / BATCH);
      return summarize(batches).median;
    });
  }

  /** Microseconds per region. */
  maps(): Promise<VfioUserRow> {
    return this.#perTurn(`DMA_MAP, of ${REGIONS} regions`, this.#devices(), async (client) => {
      const us = await client.measure(`map ${REGIONS}`, REGIONS);
      await client.measure("unmap");
      return us / REGIONS;
    });
  }

  async reports(): Promise<VfioUserRow[]> {
    const clients = new Map<Way, BenchClient>();
    const rows: VfioUserRow[] = [];
    try {
      // Who polls would take a core as long as its client is there; nothing here is waited for that long.
      for (const way of this.#devices().filter((name) => !name.endsWith("-poll"))) {
        const client = await BenchClient.connect(this.#program, this.#sockets.get(way) ?? "");
        clients.set(way, client);
        await client.measure(`memory ${LOGGED_BYTES}`, 1);
        await client.measure(`log ${LOGGED_BYTES}`);
      }
      for (const { share, step } of STEPS) {
        const marks = step === 0 ? 0 : Math.floor(LOGGED_BYTES / PAGE_SIZE / step);
        const times = await interleave(
          [...clients.values()].map((client) => async () => {
            await client.measure(`mark 0 ${step} ${marks}`);
            return (await client.measure(`report 0 ${LOGGED_BYTES}`, marks)) / 1000;
          }),
          this.#turns,
        );
        rows.push(rowOf(`report over ${LOGGED_BYTES / GiB} GiB, ${share} dirty`, "ms", [...clients.keys()], times));
      }
      rows.push(await this.#partOfLog(clients));
      return rows;
    } finally {
      for (const client of clients.values()) await client[Symbol.asyncDispose]();
    }
  }

  async #partOfLog(clients: ReadonlyMap<Way, BenchClient>): Promise<VfioUserRow> {
    const figures: Partial<Record<Way, Summary | string>> = {};
    for (const [way, client] of clients) {
      const times: number[] = [];
      for (let turn = 0; turn < this.#turns; turn++) {
        const answer = await client.ask(`report ${LOGGED_BYTES / 4} ${PART_BYTES}`);
        if ("refused" in answer) figures[way] = answer.refused;
        else times.push(answer.us / 1000);
      }
      if (times.length > 0) figures[way] = summarize(times);
    }
    const what = `report over ${PART_BYTES / GiB} GiB of these`;
    return { bench: "vfio-user", what, unit: "ms", figures, ratio: null, pollRatio: null };
  }

  /** Those that are devices, not only sockets. */
  #devices(): Way[] {
    return [...this.#sockets.keys()].filter((way) => !way.startsWith("bare"));
  }

  async #perTurn(
    what: string,
    ways: readonly Way[],
    measure: (client: BenchClient) => Promise<number>,
  ): Promise<VfioUserRow> {
    const times = await interleave(
      ways.map((way) => async () => {
        await using client = await BenchClient.connect(this.#program, this.#sockets.get(way) ?? "");
        return await measure(client);
      }),
      this.#turns,
    );
    return rowOf(what, "us", ways, times);
  }
}

function rowOf(what: string, unit: "us" | "ms", ways: readonly Way[], times: readonly number[][]): VfioUserRow {
  const ratio = (ours: Way, theirs: Way) => {
    const [above, below] = [times[ways.indexOf(ours)], times[ways.indexOf(theirs)]];
    if (above === undefined || below === undefined) return null;
    return summarize(above.map((time, turn) => time / below[turn])).median;
  };
  return {
    bench: "vfio-user",
    what,
    unit,
    figures: Object.fromEntries(ways.map((way, index) => [way, summarize(times[index])])),
    ratio: ratio("dirtmap", "libvfio-user"),
    pollRatio: ratio("dirtmap-poll", "libvfio-user-poll"),
  };
}
