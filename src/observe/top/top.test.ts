import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { ReadEvent } from "../../migration/events.js";
import { topJson, topLine, topLines } from "./render.js";
import { after, byTracker, startOf, type TopEvent, type TopHeader, type TopState } from "./state.js";
import { TopView } from "./view.js";

const HEADER: TopHeader = {
  title: "mixed",
  host: "emulated",
  memoryBytes: 512 * 2 ** 20,
  devices: [
    { id: "vf0", model: "mlx5", tracker: "device", granule: 4096 },
    { id: "nic0", model: "nic", tracker: "iommu", granule: 4096 },
    { id: "disk0", model: "blk", tracker: "iommu", granule: 4096 },
    { id: "gpu0", model: "vgpu", tracker: "pinned", granule: 4096 },
  ],
};

/** Pages per owner, all in one bucket each. */
function read(owners: Record<string, number>, { elapsedMs = 1000, atMs = 1000 } = {}): ReadEvent {
  return {
    type: "read",
    atMs,
    round: null,
    elapsedMs,
    owners: Object.fromEntries(
      Object.entries(owners).map(([owner, reported], i) => {
        const heat = Array.from({ length: 256 }, (_, bucket) => (bucket === i * 60 ? reported : 0));
        return [owner, { reported, exclusive: Math.floor(reported / 2), readMs: 2, heat }];
      }),
    ),
  };
}

const stateAfter = (events: readonly TopEvent[]): TopState => events.reduce(after, startOf(HEADER));
const PLAIN = { columns: 120, rows: 60, color: false };

describe("what top knows", () => {
  it("is a rate for each owner, its peak, and what only it reported", () => {
    const state = stateAfter([
      read({ vf0: 1000, cpu: 100 }),
      read({ vf0: 500, cpu: 100 }, { elapsedMs: 500, atMs: 1500 }),
    ]);
    const [vf0, cpu] = state.run.owners;
    expect(vf0).toMatchObject({
      tracker: "device",
      last: { bytesPerSecond: 4096e3, exclusive: 250 },
      peakBytesPerSecond: 4096e3,
    });
    expect(cpu).toMatchObject({ tracker: "cpu", last: { bytesPerSecond: 819_200 }, peakBytesPerSecond: 819_200 });
    expect(state.run).toMatchObject({ reads: 2, atMs: 1500, elapsedMs: 500 });
  });

  it("is a sum for each kind of tracker; a domain is the IOMMU's", () => {
    const state = stateAfter([read({ vf0: 10, "domain:nic0+disk0": 20, gpu0: 5 })]);
    expect(byTracker(state).map(({ tracker, readMs }) => [tracker, readMs])).toEqual([
      ["device", 2],
      ["iommu", 2],
      ["pinned", 2],
    ]);
  });

  it("cools down where nothing is written any more", () => {
    const hot = stateAfter([read({ vf0: 1000 })]);
    expect(hot.heat[0]).toBe(1000);
    const cold = Array.from({ length: 15 }, () => read({ vf0: 0 })).reduce(after, hot);
    expect(cold.heat.every((pages) => pages === 0)).toBe(true);
  });

  it("counts what a feed left out, and follows a migration's phases and rounds", () => {
    const state = stateAfter([
      { type: "phase", phase: "pre-copy", atMs: 3 },
      { type: "lost", events: 4 },
      { type: "lost", events: 3 },
      { ...read({ vf0: 1 }), round: 2 },
    ]);
    expect(state.run).toMatchObject({ phase: "pre-copy", lost: 7, round: 2 });
    expect(topLines(state, PLAIN)[0]).toBe(
      "mixed on emulated · pre-copy · round 2 · 1.00 s · last interval 1.00 s · 7 events lost: this reader is too slow",
    );
  });

  it("takes a device's own counters as rates", () => {
    const state = stateAfter([{ type: "written", atMs: 500, elapsedMs: 500, bytes: { vf0: 1e6, vcpu0: 2e6 } }]);
    expect(state.written).toEqual({ vf0: 2e6, vcpu0: 4e6 });
  });
});

describe("top's lines", () => {
  const state = stateAfter([read({ cpu: 500, vf0: 1000, "domain:nic0+disk0": 250 })]);

  it("have whoever dirties the most first, devices that share a domain as one, and those without a read last", () => {
    const lines = topLines(state, PLAIN);
    const from = lines.findIndex((line) => line.startsWith("owner"));
    expect(lines.slice(from + 1, from + 5).map((line) => line.split(/ +/).slice(0, 4))).toEqual([
      ["vf0", "device", "4K", "3.91M/s"],
      ["cpu", "cpu", "4K", "1.95M/s"],
      ["nic0+disk0", "iommu", "4K", "1000K/s"],
      ["gpu0", "pinned", "4K", "-"],
    ]);
    expect(lines[from + 1]).toMatch(/█{9}░{7} +57 % +50 % +2\.0 ms/);
  });

  it("show where memory is written: a cell for each stretch, in four lines with the address at which each begins", () => {
    const lines = topLines(state, PLAIN).slice(-4);
    expect(lines.map((line) => line.slice(0, 5))).toEqual(["  0B ", "128M ", "256M ", "384M "]);
    expect(lines.map((line) => [...line.slice(5)].filter((cell) => cell !== "·").length)).toEqual([2, 1, 0, 0]);
  });

  it("fit any terminal, whatever is shown", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 200 }), fc.integer({ min: 1, max: 60 }), (columns, rows) => {
        const lines = topLines(state, { columns, rows, color: false });
        expect(lines.length).toBeLessThanOrEqual(rows);
        for (const line of lines) expect(line.length).toBeLessThanOrEqual(columns);
      }),
    );
  });

  it("have colours only when asked for, and say the same without", () => {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: escape sequences are what is looked for
    const escapes = /\x1b\[[0-9;]*m/g;
    const plain = topLines(state, PLAIN);
    const coloured = topLines(state, { ...PLAIN, color: true });
    expect(plain.join("")).not.toContain("\x1b");
    expect(coloured.join("")).toContain("\x1b[38;5;");
    expect(coloured.map((line) => line.replaceAll(escapes, ""))).toEqual(plain);
  });

  it("say so where nothing was read yet", () => {
    expect(topLines(startOf(HEADER), PLAIN)).toEqual([
      "mixed on emulated · watching · 0.0 ms",
      "",
      "nothing was read yet",
    ]);
  });

  it("are one where there is no terminal", () => {
    expect(topLine(state)).toBe("1.00 s · cpu 1.95M/s · vf0 3.91M/s · nic0+disk0 1000K/s");
  });

  it("are an object as JSON, with the devices behind each owner", () => {
    expect(topJson(state)).toMatchObject({
      elapsedMs: 1000,
      owners: [{ owner: "cpu", devices: [] }, { devices: ["vf0"] }, { devices: ["nic0", "disk0"], tracker: "iommu" }],
    });
  });
});

/** A stream that keeps what is written, and can be resized. */
class Screen {
  readonly isTTY: boolean;
  columns = 100;
  rows = 30;
  text = "";
  readonly listeners = new Set<() => void>();

  constructor(isTTY: boolean) {
    this.isTTY = isTTY;
  }

  write(text: string): void {
    this.text += text;
  }

  on(_event: "resize", listener: () => void): void {
    this.listeners.add(listener);
  }

  off(_event: "resize", listener: () => void): void {
    this.listeners.delete(listener);
  }
}

describe("top's view", () => {
  const look = { color: false, json: false, once: false };

  it("is redrawn in place on a terminal: it goes back as many lines as it had", () => {
    const screen = new Screen(true);
    using view = new TopView(HEADER, { stream: screen, ...look });
    view.show(read({ vf0: 10 }));
    const lines = screen.text.split("\n").length - 1;
    screen.text = "";
    view.show(read({ vf0: 20 }));
    expect(screen.text.startsWith(`\r\x1b[${lines}A\x1b[J`)).toBe(true);
  });

  it("is drawn anew when the terminal's size changes, and listens no more once it is over", () => {
    const screen = new Screen(true);
    const view = new TopView(HEADER, { stream: screen, ...look });
    view.show(read({ vf0: 10 }));
    screen.text = "";
    screen.columns = 30;
    for (const resized of screen.listeners) resized();
    expect(screen.text.startsWith("\x1b[2J\x1b[H")).toBe(true);
    for (const line of screen.text.split("\n").slice(1)) expect(line.length).toBeLessThan(30);
    view[Symbol.dispose]();
    expect(screen.listeners.size).toBe(0);
  });

  it("is a line a read where there is no terminal, and no escape sequence", () => {
    const screen = new Screen(false);
    using view = new TopView(HEADER, { stream: screen, ...look });
    view.show({ type: "written", atMs: 1000, elapsedMs: 1000, bytes: { vf0: 1024 } });
    view.show(read({ vf0: 10 }));
    view.show({ type: "phase", phase: "pre-copy", atMs: 1 });
    view.show(read({ vf0: 20 }, { atMs: 2000 }));
    expect(screen.text).toBe("1.00 s · vf0 40K/s · vf0 1K/s written\n2.00 s · vf0 80K/s · vf0 1K/s written\n");
  });

  it("is JSON lines, also on a terminal, where that was asked for", () => {
    const screen = new Screen(true);
    using view = new TopView(HEADER, { stream: screen, ...look, json: true });
    view.show(read({ vf0: 10 }));
    view.show(read({ vf0: 20 }));
    const lines = screen.text.trimEnd().split("\n");
    expect(lines.map((line) => JSON.parse(line).owners[0].bytesPerSecond)).toEqual([40_960, 81_920]);
    expect(JSON.parse(lines[0]).schemaVersion).toBe(1);
  });

  it("is shown once where that was asked for", () => {
    const screen = new Screen(true);
    using view = new TopView(HEADER, { stream: screen, ...look, once: true });
    view.show(read({ vf0: 10 }));
    expect(screen.text).toBe("");
    view.finish();
    expect(screen.text).toMatch(/^mixed on emulated/);
    expect(screen.text).not.toContain("\x1b");
  });

  it("shows what is counted where no tracker is read", () => {
    const screen = new Screen(false);
    using view = new TopView({ ...HEADER, memoryBytes: null }, { stream: screen, ...look });
    view.show({ type: "written", atMs: 1000, elapsedMs: 1000, bytes: { vf0: 2 ** 20 } });
    expect(screen.text).toBe("1.00 s · vf0 1M/s written\n");
  });
});
