import { afterEach, describe, expect, it } from "vitest";
import { type MigrationEvent, publish } from "../migration/events.js";
import type { RoundReport } from "../migration/report.js";
import { LiveView, type LiveViewOptions } from "./live-view.js";

const DEVICES = [
  { id: "vf0", model: "mlx5", tracker: "device", granule: 4096 },
  { id: "nic0", model: "nic", tracker: "iommu", granule: 4096 },
  { id: "disk0", model: "blk", tracker: "iommu", granule: 4096 },
];

const round = (number: number, values: Partial<RoundReport> = {}): MigrationEvent => ({
  type: "round",
  round: {
    round: number,
    phase: "pre-copy",
    pages: 65536,
    zeroPages: 30000,
    bytes: 150 * 2 ** 20,
    ms: 210,
    remaining: 4 * 2 ** 20,
    byDevice: {
      vf0: { reported: 900, exclusive: 800, readMs: 1 },
      cpu: { reported: 124, exclusive: 124, readMs: 0.5 },
    },
    ...values,
  },
});

const PROGRESS: Extract<MigrationEvent, { type: "progress" }> = {
  type: "progress",
  atMs: 400,
  round: 1,
  sentBytes: 3 * 2 ** 20,
  remainingBytes: 2 ** 20,
  bytesPerSecond: 800 * 2 ** 20,
  expectedDowntimeMs: 12,
  dirtyBytesPerSecond: {},
};

/** A read in which each owner dirtied so many bytes in a second. */
const read = (rates: Record<string, number>): MigrationEvent => ({
  type: "read",
  atMs: 400,
  round: 0,
  elapsedMs: 1000,
  owners: Object.fromEntries(
    Object.entries(rates).map(([owner, rate]) => {
      const reported = rate / 4096;
      return [owner, { reported, exclusive: reported, readMs: 1, heat: [reported] }];
    }),
  ),
});

/** A terminal: what its screen shows after all that was written to it. */
class Screen {
  readonly isTTY: boolean;
  readonly columns: number;
  readonly lines: string[] = [""];
  raw = "";
  constructor(isTTY: boolean, columns = 100) {
    this.isTTY = isTTY;
    this.columns = columns;
  }

  write(text: string): void {
    this.raw += text;
    // biome-ignore lint/suspicious/noControlCharactersInRegex: the escape sequences are what is tested
    for (const piece of text.split(/(\x1b\[\d*[AJm]|\n|\r)/)) {
      if (piece === "\n") this.#newLine();
      else if (piece === "\r") this.#column = 0;
      else if (piece.startsWith("\x1b") && piece.endsWith("A")) this.#up(Number.parseInt(piece.slice(2), 10));
      else if (!piece.startsWith("\x1b")) this.#type(piece);
    }
  }

  #column = 0;

  #newLine(): void {
    this.lines.push("");
    this.#column = 0;
  }

  /** Up, in the same column; what follows clears the rest of the screen. */
  #up(count: number): void {
    const line = this.lines[this.lines.length - 1 - count];
    this.lines.splice(-1 - count, Infinity, line.slice(0, this.#column));
  }

  #type(text: string): void {
    this.lines[this.lines.length - 1] += text;
    this.#column += text.length;
  }

  get text(): string {
    return this.lines.join("\n");
  }
}

describe("the live view", () => {
  let view: LiveView | undefined;
  afterEach(() => view?.[Symbol.dispose]());

  function watch(screen: Screen, options: Partial<LiveViewOptions> = {}): LiveView {
    view = new LiveView({ stream: screen, color: false, devices: DEVICES, downtimeLimitMs: 50, ...options });
    return view;
  }

  it("shows phase, round, remaining, throughput, expected downtime, and a row per device with its share", () => {
    const screen = new Screen(true);
    watch(screen);
    publish({ type: "phase", phase: "pre-copy", atMs: 1 });
    publish(read({ vf0: 30 * 2 ** 20, nic0: 10 * 2 ** 20 }));
    publish(PROGRESS);
    const [head, bar, columns, vf0, nic0, disk0] = screen.lines;
    expect(head).toBe("pre-copy · round 1 · remaining 1M · throughput 800M/s");
    expect(bar.trim()).toBe(`${"█".repeat(9)}░░░ 75 % of this round · expected downtime 12 ms (limit 50 ms)`);
    expect(columns.trim().split(/ {2,}/)).toEqual(["device", "tracker", "dirty rate", "share"]);
    expect(vf0).toMatch(/vf0 +device +30M\/s +█{15}░{5} +75 %/);
    expect(nic0).toMatch(/nic0 +iommu +10M\/s +█{5}░{15} +25 %/);
    expect(disk0).toMatch(/disk0 +iommu +-$/);
  });

  it("redraws in place: the block is there once, however many events came", () => {
    const screen = new Screen(true);
    watch(screen);
    for (let n = 0; n < 10; n++) {
      publish(PROGRESS);
      publish(round(n));
    }
    expect(screen.text.match(/throughput/g)).toHaveLength(1);
    expect(screen.text).toContain("round 9");
    view?.[Symbol.dispose]();
    expect(screen.text).toBe("");
  });

  it("shows a domain as one row, and its devices no more", () => {
    const screen = new Screen(true);
    watch(screen);
    publish(read({ vf0: 4096, "domain:nic0+disk0": 8192, cpu: 0 }));
    expect(screen.text).toMatch(/nic0\+disk0 +iommu +/);
    expect(screen.text).not.toMatch(/^ *nic0 /m);
    expect(screen.text).toMatch(/cpu +cpu +0B\/s +░{20} +0 %/);
  });

  it("shows of a migration that is watched why it does not end, and each device's state", () => {
    const screen = new Screen(true, 200);
    watch(screen, { watched: true });
    publish(PROGRESS);
    publish({ type: "device", atMs: 1, device: "vf0", state: "pre-copy" });
    publish({
      type: "diagnosis",
      atMs: 2,
      converging: false,
      stalled: true,
      reasons: [{ code: "downtime-limit", have: 300, need: 1000 }],
      leftMs: null,
      downtimeMs: null,
      sentBytesPerSecond: 1,
      dirtiedBytesPerSecond: 1,
      passBytes: 1,
    });
    expect(screen.text).toContain("STALLED");
    expect(screen.text).toContain("what a pass leaves takes 1.00 s, and downtime-limit is 300 ms");
    expect(screen.text).toMatch(/vf0 +mlx5 +pre-copy/);
    expect(screen.text).toMatch(/nic0 +nic +-/);
    expect(screen.text).toContain("Ctrl-C ends the watch; the migration goes on.");
  });

  it("is not displaced by the ^C that the terminal echoes", () => {
    const screen = new Screen(true);
    const shown = watch(screen);
    publish(PROGRESS);
    screen.write("^C");
    shown.note("cancelling");
    expect(screen.lines[0]).toBe("cancelling");
  });

  it("keeps notes above the block", () => {
    const screen = new Screen(true);
    watch(screen).note("cancelling");
    publish(PROGRESS);
    expect(screen.lines[0]).toBe("cancelling");
    expect(screen.lines[1]).toMatch(/^connecting/);
  });

  it("fits a terminal of 80 columns", () => {
    const screen = new Screen(true, 80);
    watch(screen);
    publish(read({ "domain:nic0+disk0": 999 * 2 ** 20, vf0: 999 * 2 ** 20 }));
    publish({ ...PROGRESS, expectedDowntimeMs: 59_994 });
    expect(screen.text).toContain("expected downtime 59.99 s (limit 50 ms)");
    expect(screen.text).toContain("of this round");
    expect(screen.text).toMatch(/50 %$/m);
  });

  it("never writes a line longer than the terminal is wide", () => {
    const screen = new Screen(true, 40);
    watch(screen);
    publish(PROGRESS);
    expect(screen.lines.filter((line) => line.length >= 40)).toEqual([]);
  });

  it("writes a line per round where there is no terminal, and no escape sequence", () => {
    const screen = new Screen(false);
    watch(screen);
    publish({ type: "phase", phase: "pre-copy", atMs: 1 });
    publish(PROGRESS);
    publish(round(0));
    publish(round(1, { phase: "stop-copy", pages: 12, bytes: 49152, remaining: 0 }));
    expect(screen.raw).not.toContain("\x1b");
    expect(screen.raw.trimEnd().split("\n")).toEqual([
      "round 0 (pre-copy) · 65 536 pages · 150M · 210 ms · remaining 4M · dirty: vf0 900, cpu 124",
      "round 1 (stop-copy) · 12 pages · 48K · 210 ms · remaining 0B · dirty: vf0 900, cpu 124",
    ]);
  });

  it("colours only when told to", () => {
    const plain = new Screen(true);
    watch(plain);
    publish(round(0));
    expect(plain.raw).not.toContain("\x1b[1m");
    view?.[Symbol.dispose]();
    const coloured = new Screen(true);
    watch(coloured, { color: true });
    publish(round(0));
    expect(coloured.raw).toContain("\x1b[1m");
    expect(coloured.lines[0]).toMatch(/^connecting · round 0/);
  });

  it("hears nothing after it was disposed", () => {
    const screen = new Screen(false);
    watch(screen)[Symbol.dispose]();
    publish(round(0));
    expect(screen.raw).toBe("");
  });
});
