import { describe, expect, it } from "vitest";
import {
  type DestinationEffect,
  type DestinationEvent,
  type DestinationState,
  destinationStep,
  type SourceEffect,
  type SourceEvent,
  type SourceState,
  sourceStep,
} from "./handover.js";
import type { DestinationRecord, SourceRecord } from "./journal.js";

/*
 * A model checker: both sides' step functions, their disks, and the wires between them, explored through every
 * interleaving. What is volatile dies in a crash; what is on disk decides, at a restart, who runs.
 */

interface World {
  readonly source: {
    state: SourceState;
    todo: SourceEffect[];
    disk: SourceRecord;
    runs: boolean;
    crashed: boolean;
    /** What the operator's decision was, once it was recorded. */
    decided: "resume" | "abort" | null;
    /** Something else was recorded, or done, after a decision. */
    overruled: boolean;
  };
  readonly destination: {
    state: DestinationState;
    todo: DestinationEffect[];
    disk: DestinationRecord;
    runs: boolean;
    crashed: boolean;
  };
  readonly toSource: ("READY" | "RUNNING" | "ABORT")[];
  readonly toDestination: ("PREPARE" | "GO" | "ABORT")[];
  /** The connection is lost: nothing more is delivered, each side may notice at any time. */
  cut: boolean;
}

interface Rules {
  readonly sourceStep: typeof sourceStep;
  readonly destinationStep: typeof destinationStep;
  /** What a restarted source does with what it finds on its disk. */
  readonly sourceMayRun: (disk: SourceRecord) => boolean;
  /** Whether `abort` is recorded in the place of the source's process. */
  readonly recordsInItsPlace: (source: World["source"]) => boolean;
}
const rules: Rules = {
  sourceStep,
  destinationStep,
  sourceMayRun: (disk) => disk === "running",
  recordsInItsPlace: ({ crashed }) => crashed,
};

const start: World = {
  source: {
    state: "preparing",
    todo: [],
    disk: "running",
    runs: false,
    crashed: false,
    decided: null,
    overruled: false,
  },
  destination: { state: "loading", todo: [], disk: "loading", runs: false, crashed: false },
  toSource: [],
  toDestination: ["PREPARE"],
  cut: false,
};

/** The operator does what the error message says: `resume` only when the destination doesn't run and never will. */
function destinationIsOver({ destination }: World): boolean {
  return destination.crashed
    ? destination.disk !== "running"
    : destination.state === "discarded" && !destination.todo.length;
}

/** Every world that may follow, each with the name of what happened. */
function successors(
  world: World,
  { sourceStep, destinationStep, sourceMayRun, recordsInItsPlace }: Rules,
): [string, World][] {
  const found: [string, World][] = [];
  const follow = (name: string, change: (next: World) => void) => {
    const next = structuredClone(world);
    change(next);
    found.push([name, next]);
  };
  const sourceEvent = (event: SourceEvent) => (next: World) => {
    const step = sourceStep(next.source.state, event);
    next.source.state = step.state;
    next.source.todo = [...step.effects];
  };
  const destinationEvent = (event: DestinationEvent) => (next: World) => {
    const step = destinationStep(next.destination.state, event);
    next.destination.state = step.state;
    next.destination.todo = [...step.effects];
  };
  const decidedBy = (decision: "resume" | "abort") => (next: World) => {
    const before = next.source.state;
    sourceEvent(decision)(next);
    if (next.source.state !== before) next.source.decided = decision;
  };
  const { source, destination } = world;

  if (source.disk === "given-up" && source.decided === null && recordsInItsPlace(source)) {
    follow("operator: abort, in the place of a process that has ended", (next) => {
      next.source.disk = "gone";
      next.source.decided = "abort";
    });
  }
  if (!world.cut)
    follow("cut", (next) => {
      next.cut = true;
    });

  if (source.crashed) {
    if (sourceMayRun(source.disk) && !source.runs)
      follow("source restarts and runs", (next) => {
        next.source.runs = true;
      });
  } else {
    follow("source crashes", (next) => {
      next.source.crashed = true;
      next.source.runs = false;
      next.source.todo = [];
    });
    const [effect] = source.todo;
    if (effect !== undefined) {
      follow(`source: ${JSON.stringify(effect)}`, (next) => {
        next.source.todo.shift();
        if (effect.do === "send") next.toDestination.push(effect.message);
        else if (effect.do === "take-back") {
          next.source.runs = true;
          next.source.overruled ||= next.source.decided === "abort";
        } else {
          const { decided, disk } = next.source;
          next.source.overruled ||= (decided === "abort" && effect.state !== "gone") || disk === "gone";
          next.source.overruled ||= decided === "resume" && effect.state !== "running";
          next.source.disk = effect.state;
          if (next.source.state === "giving-up") sourceEvent("recorded")(next);
        }
      });
      if (effect.do === "record" && source.state === "giving-up") {
        follow("source: its disk is full", sourceEvent("failed"));
        follow("source: its disk reports an error but has the record", (next) => {
          next.source.disk = effect.state;
          sourceEvent("failed")(next);
        });
      }
    } else {
      const [message] = world.toSource;
      if (!world.cut && message !== undefined) {
        follow(`source receives ${message}`, (next) => {
          next.toSource.shift();
          sourceEvent(message === "READY" ? "ready" : message === "RUNNING" ? "running" : "discarded")(next);
        });
      }
      if (source.state === "preparing") follow("source cancels or times out", sourceEvent("failed"));
      if (source.state === "waiting") follow("source hears nothing", sourceEvent("silence"));
      // Anything may be said at any time; what the step function makes of it is its own.
      follow("operator: abort", decidedBy("abort"));
      if (destinationIsOver(world)) follow("operator: resume", decidedBy("resume"));
    }
  }

  if (destination.crashed) {
    if (destination.disk === "running" && !destination.runs) {
      follow("destination restarts and runs", (next) => {
        next.destination.runs = true;
      });
    }
  } else {
    follow("destination crashes", (next) => {
      next.destination.crashed = true;
      next.destination.runs = false;
      next.destination.todo = [];
    });
    const [effect] = destination.todo;
    if (effect !== undefined) {
      follow(`destination: ${JSON.stringify(effect)}`, (next) => {
        next.destination.todo.shift();
        if (effect.do === "send") next.toSource.push(effect.message);
        else if (effect.do === "run") next.destination.runs = true;
        else {
          next.destination.disk = effect.state;
          if (next.destination.state === "starting") destinationEvent("recorded")(next);
        }
      });
      if (effect.do === "record" && destination.state === "starting") {
        follow("destination: its disk is full", destinationEvent("failed"));
      }
    } else {
      const [message] = world.toDestination;
      if (!world.cut && message !== undefined) {
        follow(`destination receives ${message}`, (next) => {
          next.toDestination.shift();
          destinationEvent(message === "PREPARE" ? "loaded" : message === "GO" ? "go" : "failed")(next);
        });
      }
      if (destination.state === "loading" || destination.state === "ready") {
        follow("destination times out", destinationEvent("failed"));
      }
    }
  }
  return found;
}

/** All worlds that can be reached, and the way to the first in which both run. */
function explore(rules: Rules): { worlds: World[]; twoRunning: string[] | null } {
  const seen = new Map<string, { world: World; from: string | null; by: string }>();
  const queue: string[] = [];
  const visit = (world: World, from: string | null, by: string) => {
    const key = JSON.stringify(world);
    if (seen.has(key)) return;
    seen.set(key, { world, from, by });
    queue.push(key);
  };
  visit(start, null, "start");
  for (let at = 0; at < queue.length && at < 1_000_000; at++) {
    const entry = seen.get(queue[at]);
    if (entry === undefined) break;
    if (entry.world.source.runs && entry.world.destination.runs) {
      const way: string[] = [];
      for (let step: typeof entry | undefined = entry; step !== undefined; ) {
        way.unshift(step.by);
        step = step.from === null ? undefined : seen.get(step.from);
      }
      return { worlds: [], twoRunning: way };
    }
    for (const [by, world] of successors(entry.world, rules)) visit(world, queue[at], by);
  }
  return { worlds: [...seen.values()].map(({ world }) => world), twoRunning: null };
}

describe("the handover, over every interleaving of lost messages, crashes, full disks and time-outs", () => {
  it("never has two machines running", () => {
    const { worlds, twoRunning } = explore(rules);
    expect(twoRunning).toBeNull();
    expect(worlds.length).toBeGreaterThan(500);
  });

  it("can end with the machine at either side, and can end undecided", () => {
    const { worlds } = explore(rules);
    const some = (test: (world: World) => boolean) => worlds.some(test);
    expect(some(({ source, destination }) => source.state === "gone" && destination.runs)).toBe(true);
    expect(some(({ source }) => source.state === "taken-back" && source.runs)).toBe(true);
    expect(some(({ source, destination }) => source.state === "undecided" && destination.runs)).toBe(true);
    expect(some(({ source, destination }) => source.state === "undecided" && destination.disk === "discarded")).toBe(
      true,
    );
  });

  it("leaves neither side in a state that only a crash could end", () => {
    const { worlds } = explore(rules);
    for (const world of worlds) {
      const { source, destination } = world;
      const next = successors(world, rules)
        .map(([name]) => name)
        .filter((name) => !/cut|crash/.test(name));
      const sourceEnded = source.crashed || source.state === "gone" || source.state === "taken-back";
      const destinationEnded =
        destination.crashed || destination.state === "running" || destination.state === "discarded";
      if (!sourceEnded || !destinationEnded) expect(next, JSON.stringify(world)).not.toHaveLength(0);
    }
  });

  it("is bound by what the operator decided: nothing else is recorded or done afterwards", () => {
    const { worlds } = explore(rules);
    expect(worlds.filter(({ source }) => source.overruled)).toEqual([]);
    for (const decision of ["resume", "abort"]) {
      expect(worlds.some(({ source }) => source.decided === decision && !source.crashed)).toBe(true);
    }
    // Also just after GO, before the destination's time for an answer is over.
    expect(sourceStep("waiting", "abort").state).toBe("gone");
    expect(sourceStep("waiting", "resume").state).toBe("waiting");
  });

  it("never lets a source that has not given up say GO, nor a destination run without a record of it", () => {
    for (const { source, destination, toDestination } of explore(rules).worlds) {
      if (toDestination.includes("GO")) expect(["given-up", "gone", "running"]).toContain(source.disk);
      if (destination.runs) expect(destination.disk).toBe("running");
      if (source.runs && !source.crashed) expect(source.disk).toBe("running");
    }
  });
});

/** What each event leads to, by state; an event that isn't here changes nothing, and nothing is done. */
const SOURCE: Record<SourceState, Partial<Record<SourceEvent, SourceState>>> = {
  preparing: { ready: "giving-up", failed: "taken-back", discarded: "taken-back" },
  "giving-up": { recorded: "waiting", failed: "taken-back", discarded: "taken-back" },
  waiting: { running: "gone", abort: "gone", discarded: "taken-back", silence: "undecided" },
  undecided: { running: "gone", abort: "gone", discarded: "taken-back", resume: "taken-back", silence: "undecided" },
  gone: {},
  "taken-back": {},
};
const DESTINATION: Record<DestinationState, Partial<Record<DestinationEvent, DestinationState>>> = {
  loading: { loaded: "ready", failed: "discarded" },
  ready: { go: "starting", failed: "discarded" },
  starting: { recorded: "running", failed: "discarded" },
  running: {},
  discarded: { go: "discarded" },
};
const SOURCE_EVENTS = ["ready", "failed", "recorded", "running", "discarded", "silence", "resume", "abort"] as const;
const DESTINATION_EVENTS = ["loaded", "go", "failed", "recorded"] as const;
const statesOf = <State extends string>(table: Record<State, unknown>) => Object.keys(table) as State[];

describe("each side of the handover", () => {
  it.each(statesOf(SOURCE))("goes from the source's `%s` where each event leads, and nowhere else", (state) => {
    for (const event of SOURCE_EVENTS) {
      const next = SOURCE[state][event];
      if (next === undefined) expect(sourceStep(state, event), event).toEqual({ state, effects: [] });
      else expect(sourceStep(state, event).state, event).toBe(next);
    }
  });

  it.each(statesOf(DESTINATION))(
    "goes from the destination's `%s` where each event leads, and nowhere else",
    (state) => {
      for (const event of DESTINATION_EVENTS) {
        const next = DESTINATION[state][event];
        if (next === undefined) expect(destinationStep(state, event), event).toEqual({ state, effects: [] });
        else expect(destinationStep(state, event).state, event).toBe(next);
      }
    },
  );

  it("records before it says or does what the record is about, except READY, while the machine stands still", () => {
    const record = (state: string) => ({ do: "record", state });
    const send = (message: string) => ({ do: "send", message });
    expect(sourceStep("preparing", "ready").effects).toEqual([record("given-up")]);
    expect(sourceStep("giving-up", "recorded").effects).toEqual([send("GO")]);
    for (const state of ["preparing", "giving-up"] as const) {
      for (const event of ["failed", "discarded"] as const) {
        expect(sourceStep(state, event).effects).toEqual([send("ABORT"), record("running"), { do: "take-back" }]);
      }
    }
    for (const event of ["running", "abort"] as const) {
      expect(sourceStep("waiting", event).effects).toEqual([record("gone")]);
    }
    expect(sourceStep("waiting", "silence").effects).toEqual([]);
    expect(sourceStep("waiting", "discarded").effects).toEqual([record("running"), { do: "take-back" }]);
    expect(destinationStep("loading", "loaded").effects).toEqual([send("READY"), record("ready")]);
    expect(destinationStep("ready", "go").effects).toEqual([record("running")]);
    expect(destinationStep("starting", "recorded").effects).toEqual([{ do: "run" }, send("RUNNING")]);
    expect(destinationStep("discarded", "go").effects).toEqual([send("ABORT")]);
    for (const state of ["loading", "ready", "starting"] as const) {
      expect(destinationStep(state, "failed").effects).toEqual([record("discarded"), send("ABORT")]);
    }
  });
});

describe("the model checker notices a handover", () => {
  const broken: [string, Partial<Rules>][] = [
    [
      "whose source takes the machine back when GO is not confirmed",
      {
        sourceStep: (state, event) =>
          state === "waiting" && event === "silence"
            ? { state: "taken-back", effects: [{ do: "record", state: "running" }, { do: "take-back" }] }
            : sourceStep(state, event),
      },
    ],
    [
      "whose source says GO before it has given up durably",
      {
        sourceStep: (state, event) => {
          if (state === "preparing" && event === "ready")
            return { state: "waiting", effects: [{ do: "send", message: "GO" }] };
          return sourceStep(state, event);
        },
      },
    ],
    ["whose source forgets after a crash that it gave up", { sourceMayRun: (disk) => disk !== "gone" }],
    [
      "whose destination runs without being told when it waits too long",
      {
        destinationStep: (state, event) =>
          state === "ready" && event === "failed"
            ? { state: "running", effects: [{ do: "record", state: "running" }, { do: "run" }] }
            : destinationStep(state, event),
      },
    ],
    ["whose `abort` takes it for granted that the source's process has ended", { recordsInItsPlace: () => true }],
    [
      "whose source takes the machine back on ABORT although the operator gave it up",
      {
        sourceStep: (state, event) =>
          state === "gone" && event === "discarded"
            ? { state: "taken-back", effects: [{ do: "record", state: "running" }, { do: "take-back" }] }
            : sourceStep(state, event),
      },
    ],
    [
      "whose destination says ABORT and runs on GO all the same",
      {
        destinationStep: (state, event) =>
          state === "discarded" && event === "go"
            ? { state: "starting", effects: [{ do: "record", state: "running" }] }
            : destinationStep(state, event),
      },
    ],
    [
      "whose destination runs before `running` is on its disk",
      {
        destinationStep: (state, event) =>
          state === "ready" && event === "go"
            ? {
                state: "running",
                effects: [{ do: "run" }, { do: "record", state: "running" }, { do: "send", message: "RUNNING" }],
              }
            : destinationStep(state, event),
      },
    ],
  ];
  it.each(broken)("%s", (_, mutant) => {
    const { worlds, twoRunning } = explore({ ...rules, ...mutant });
    const unrecorded = worlds.some(({ destination }) => destination.runs && destination.disk !== "running");
    const overruled = worlds.some(({ source }) => source.overruled);
    expect(twoRunning !== null || unrecorded || overruled).toBe(true);
  });
});
