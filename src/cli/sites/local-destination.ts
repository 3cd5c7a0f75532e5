import type { Granted } from "../input/granted.js";
import { type OwnProcess, startOwnProcess } from "./own-process.js";

/** Time that it waits for the source. */
const WAIT_MS = 20_000;

/**
 * Starts `dirtmap receive` on loopback, for one migration.
 * @param grants the files and sockets of the machine that is to move there, which it may open
 * @returns the process; `ready` is its address: `tcp://127.0.0.1:PORT`
 * @throws DirtmapError `DESTINATION_FAILED` if it does not come up; the signal's reason
 */
export async function startLocalDestination(
  signal: AbortSignal,
  grants: Pick<Granted, "files" | "sockets">,
  journal?: string,
): Promise<OwnProcess<string>> {
  const args = ["receive", "--listen", "tcp://127.0.0.1:0", "--once", "--wait", `${WAIT_MS}ms`, "--json"];
  for (const [device, path] of Object.entries(grants.files)) args.push("--file", `${device}=${path}`);
  for (const [device, path] of Object.entries(grants.sockets)) args.push("--socket", `${device}=${path}`);
  if (journal !== undefined) args.push("--journal", journal);
  return await startOwnProcess({
    args,
    name: "the destination",
    code: "DESTINATION_FAILED",
    ready: ({ address }) => (typeof address === "string" ? address : undefined),
    signal,
  });
}
