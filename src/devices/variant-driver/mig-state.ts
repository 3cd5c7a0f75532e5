import type { MigrationSupport } from "../../host/host.js";
import { type MigState, SAVING_GROUP } from "../../uapi/vfio.js";

/*
 * The device state machine of enum vfio_device_mig_state (include/uapi/linux/vfio.h), as data: the arcs that the header
 * names, and its rule for all other transitions.
 */

/** A step of the state machine. */
export interface Arc {
  readonly from: MigState;
  readonly to: MigState;
}

/** The arcs that drivers implement, in the header's order; "any -> ERROR" can't be asked for. */
export const ARCS: readonly (readonly [from: MigState, to: MigState])[] = [
  ["RUNNING_P2P", "STOP"],
  ["STOP_COPY", "STOP"],
  ["RESUMING", "STOP"],
  ["PRE_COPY", "RUNNING"],
  ["RUNNING_P2P", "RUNNING"],
  ["PRE_COPY_P2P", "RUNNING_P2P"],
  ["RUNNING", "RUNNING_P2P"],
  ["STOP", "RUNNING_P2P"],
  ["RUNNING", "PRE_COPY"],
  ["RUNNING_P2P", "PRE_COPY_P2P"],
  ["STOP", "STOP_COPY"],
  ["PRE_COPY", "PRE_COPY_P2P"],
  ["PRE_COPY_P2P", "PRE_COPY"],
  ["PRE_COPY_P2P", "STOP_COPY"],
  ["STOP", "RESUMING"],
];

/** Transitions that the header forbids, although there would be a path. */
const FORBIDDEN: readonly (readonly [MigState, MigState])[] = [
  ["STOP_COPY", "PRE_COPY"],
  ["STOP_COPY", "PRE_COPY_P2P"],
];

/** States in which the device does DMA as it likes. */
export const RUNNING_STATES: ReadonlySet<MigState> = new Set(["RUNNING", "PRE_COPY"]);

/** States in which it does no peer-to-peer DMA. */
export const P2P_STATES: ReadonlySet<MigState> = new Set(["RUNNING_P2P", "PRE_COPY_P2P"]);

/** True for states that a device with this support can be in, by request. */
export function stateSupported(state: MigState, support: MigrationSupport): boolean {
  if (state === "ERROR") return false;
  if (P2P_STATES.has(state) && !support.p2p) return false;
  if ((state === "PRE_COPY" || state === "PRE_COPY_P2P") && !support.preCopy) return false;
  return true;
}

/**
 * The arcs that lead from one state to another, by the header's rule: the shortest path, on which no state of the saving
 * group is passed through, except on the way from one of them to another. States that the device lacks are skipped: it
 * behaves as though they were fully running. Empty for no change; null for what must be refused with EINVAL.
 */
export function migrationPath(from: MigState, to: MigState, support: MigrationSupport): Arc[] | null {
  if (!stateSupported(from, support) || !stateSupported(to, support)) return null;
  if (FORBIDDEN.some(([a, b]) => a === from && b === to)) return null;
  const states = shortest(from, to);
  if (states === null) return null;
  const kept = states.filter((state) => stateSupported(state, support));
  return kept.slice(1).map((state, index) => ({ from: kept[index], to: state }));
}

function shortest(from: MigState, to: MigState): MigState[] | null {
  const sameSession = SAVING_GROUP.has(from) && SAVING_GROUP.has(to);
  const before = new Map<MigState, MigState | null>([[from, null]]);
  const queue: MigState[] = [from];
  for (let state = queue.shift(); state !== undefined; state = queue.shift()) {
    if (state === to) {
      const path: MigState[] = [];
      for (let at: MigState | null = to; at !== null; at = before.get(at) ?? null) path.unshift(at);
      return path;
    }
    for (const [arcFrom, arcTo] of ARCS) {
      if (arcFrom !== state || before.has(arcTo)) continue;
      if (arcTo !== to && SAVING_GROUP.has(arcTo) && !sameSession) continue;
      before.set(arcTo, state);
      queue.push(arcTo);
    }
  }
  return null;
}
