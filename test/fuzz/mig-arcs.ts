import type { MigrationSupport } from "../../src/host/host.js";
import type { MigState } from "../../src/uapi/vfio.js";

/** VFIO_DEVICE_STATE_*: the numbers of enum vfio_device_mig_state, by place. */
export const STATE_NUMBERS: readonly MigState[] = [
  "ERROR",
  "STOP",
  "RUNNING",
  "STOP_COPY",
  "RESUMING",
  "RUNNING_P2P",
  "PRE_COPY",
  "PRE_COPY_P2P",
];

const SAVING: ReadonlySet<MigState> = new Set(["STOP_COPY", "PRE_COPY", "PRE_COPY_P2P"]);

export function isSaving(state: MigState): boolean {
  return SAVING.has(state);
}

function isSupported(state: MigState, { p2p, preCopy }: MigrationSupport): boolean {
  if (state === "ERROR") return false;
  if (state === "RUNNING_P2P") return p2p;
  if (state === "PRE_COPY") return preCopy;
  return state === "PRE_COPY_P2P" ? p2p && preCopy : true;
}

/**
 * Whether a device goes from one state to another when asked: vfio_mig_get_next_state() of Linux, of which only the
 * outcome matters here. Every pair has a path but for those into and out of ERROR, of states that the device lacks, and
 * from STOP_COPY back to pre-copy.
 */
export function mayChange(from: MigState, to: MigState, support: MigrationSupport): boolean {
  if (!isSupported(from, support) || !isSupported(to, support)) return false;
  return !(from === "STOP_COPY" && (to === "PRE_COPY" || to === "PRE_COPY_P2P"));
}
