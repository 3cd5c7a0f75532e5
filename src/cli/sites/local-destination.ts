import type { MonitorPlace } from "../../qemu/qmp/monitor.js";
import type { Granted } from "../input/granted.js";
import { placeArguments } from "../input/guest-place.js";
import { type OwnProcess, startOwnProcess } from "./own-process.js";

/** Time that it waits for the source. */
const WAIT_MS = 20_000;

export interface LocalOptions {
  /** Its folder. */
  readonly journal?: string | undefined;
  /** The QEMU that takes a guest, instead of a machine of this program's. */
  readonly qemu?: { readonly place: MonitorPlace; readonly address: string; readonly tuning: readonly string[] };
}

/**
 * Starts `dirtmap receive` on loopback, for one migration.
 * @param grants the files and sockets of the machine that is to move there, which it may open
 * @returns the process; `ready` is its address: `tcp://127.0.0.1:PORT`
 * @throws DirtmapError `DESTINATION_FAILED` if it does not come up; the signal's reason
 */
export async function startLocalDestination(
  signal: AbortSignal,
  grants: Pick<Granted, "files" | "sockets">,
  { journal, qemu }: LocalOptions = {},
): Promise<OwnProcess<string>> {
  const args = ["receive", "--listen", "tcp://127.0.0.1:0", "--once", "--wait", `${WAIT_MS}ms`, "--json"];
  for (const [device, path] of Object.entries(grants.files)) args.push("--file", `${device}=${path}`);
  for (const [device, path] of Object.entries(grants.sockets)) args.push("--socket", `${device}=${path}`);
  if (journal !== undefined) args.push("--journal", journal);
  if (qemu !== undefined) args.push(...placeArguments(qemu.place), "--qemu-address", qemu.address, ...qemu.tuning);
  return await startOwnProcess({
    args,
    name: "the destination",
    code: "DESTINATION_FAILED",
    ready: ({ address }) => (typeof address === "string" ? address : undefined),
    signal,
  });
}
