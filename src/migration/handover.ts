import type { DestinationRecord, SourceRecord } from "./journal.js";

/*
 * Who may run the machine, as two state machines that know of nothing else: an event in, the next state and what must be
 * done, in that order, out. handover.test.ts runs them against each other through every interleaving of lost messages,
 * crashes and time-outs, and finds no way to two running machines. source.ts and destination.ts carry the effects out.
 *
 *   source                                          destination
 *   preparing ── PREPARE ────────────────────────▶  loading
 *             ◀─────────────────────────── READY ── ready           (all state loaded and verified)
 *   giving-up    records `given-up`: the point of no return
 *   waiting   ── GO ─────────────────────────────▶  running         (records `running`, then runs)
 *   gone      ◀───────────────────────── RUNNING ──
 *
 * A destination that gives up records `discarded` and then says ABORT: a fact, not a guess, so the source takes the
 * machine back on it even after GO. Silence after GO tells nothing: the source stays paused, `undecided`, until a late
 * RUNNING or ABORT arrives or the operator says `resume` or `abort`. The operator may say `abort` at once after GO, and
 * `resume` only once the destination has been silent for its time. What was decided is recorded and binds: no message
 * that comes later changes it.
 */

/** `gone` and `taken-back` are final. The source's machine runs in `taken-back` only (and before the handover). */
export type SourceState = "preparing" | "giving-up" | "waiting" | "undecided" | "gone" | "taken-back";

export type SourceEvent =
  /** READY arrived. */
  | "ready"
  /** Before GO: cancelled, a time-out, a lost connection, an error of any kind. */
  | "failed"
  /** `given-up` is on disk. */
  | "recorded"
  /** RUNNING arrived. */
  | "running"
  /** ABORT arrived: the destination has discarded the machine, durably, and never ran it. */
  | "discarded"
  /** After GO: the time for an answer is over, or the connection is lost. */
  | "silence"
  /** The operator knows that the destination does not run and never will. */
  | "resume"
  /** The operator gives the source's machine up for good. */
  | "abort";

export type SourceEffect =
  | { readonly do: "record"; readonly state: SourceRecord }
  | { readonly do: "send"; readonly message: "GO" | "ABORT" }
  /** Devices and vCPUs run again. */
  | { readonly do: "take-back" };

export type DestinationState = "loading" | "ready" | "starting" | "running" | "discarded";

export type DestinationEvent =
  /** All state is loaded and verified. */
  | "loaded"
  | "go"
  /** Before GO: ABORT arrived, the connection is lost, GO didn't come in time, an error of any kind. */
  | "failed"
  /** `running` is on disk. */
  | "recorded";

export type DestinationEffect =
  | { readonly do: "record"; readonly state: DestinationRecord }
  | { readonly do: "send"; readonly message: "READY" | "RUNNING" | "ABORT" }
  | { readonly do: "run" };

/** The next state, and what must be done in this order, each before the next event is looked at. */
export interface Step<State, Effect> {
  readonly state: State;
  readonly effects: readonly Effect[];
}

/** The source's side of the handover. An event that means nothing in a state changes nothing. */
export function sourceStep(state: SourceState, event: SourceEvent): Step<SourceState, SourceEffect> {
  switch (state) {
    case "preparing":
      if (event === "ready") return { state: "giving-up", effects: [{ do: "record", state: "given-up" }] };
      if (event === "failed" || event === "discarded") return tellAndTakeBack();
      break;
    case "giving-up":
      if (event === "recorded") return { state: "waiting", effects: [{ do: "send", message: "GO" }] };
      // The record could not be written, and GO was not sent: still the source's.
      if (event === "failed" || event === "discarded") return tellAndTakeBack();
      break;
    case "waiting":
    case "undecided":
      if (event === "running" || event === "abort") {
        return { state: "gone", effects: [{ do: "record", state: "gone" }] };
      }
      if (event === "discarded" || (event === "resume" && state === "undecided")) {
        return { state: "taken-back", effects: [{ do: "record", state: "running" }, { do: "take-back" }] };
      }
      if (event === "silence") return { state: "undecided", effects: [] };
      break;
    case "gone":
    case "taken-back":
      break;
  }
  return { state, effects: [] };
}

function tellAndTakeBack(): Step<SourceState, SourceEffect> {
  return {
    state: "taken-back",
    effects: [{ do: "send", message: "ABORT" }, { do: "record", state: "running" }, { do: "take-back" }],
  };
}

/** The destination's side of the handover. */
export function destinationStep(
  state: DestinationState,
  event: DestinationEvent,
): Step<DestinationState, DestinationEffect> {
  switch (state) {
    case "loading":
      if (event === "loaded") {
        return {
          state: "ready",
          // Said before it is recorded, since the machine stands still: `loading` in its place says as much, that the
          // machine never ran here.
          effects: [
            { do: "send", message: "READY" },
            { do: "record", state: "ready" },
          ],
        };
      }
      if (event === "failed") return discard();
      break;
    case "ready":
      if (event === "go") return { state: "starting", effects: [{ do: "record", state: "running" }] };
      if (event === "failed") return discard();
      break;
    case "starting":
      if (event === "recorded")
        return { state: "running", effects: [{ do: "run" }, { do: "send", message: "RUNNING" }] };
      // `running` may be on disk or not: overwritten before anything is said.
      if (event === "failed") return discard();
      break;
    case "discarded":
      if (event === "go") return { state, effects: [{ do: "send", message: "ABORT" }] };
      break;
    case "running":
      break;
  }
  return { state, effects: [] };
}

function discard(): Step<DestinationState, DestinationEffect> {
  return {
    state: "discarded",
    effects: [
      { do: "record", state: "discarded" },
      { do: "send", message: "ABORT" },
    ],
  };
}
