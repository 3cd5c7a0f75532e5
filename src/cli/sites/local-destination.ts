import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { DirtmapError } from "../../errors.js";
import type { Granted } from "../input/granted.js";
import { endChild } from "./own-process.js";

const PROGRAM = fileURLToPath(new URL("../../../../bin/dirtmap.js", import.meta.url));

/** Until it says where it listens: Node's start, on a busy machine. */
const START_MS = 20_000;
/** What is kept of its standard error, for a message. */
const KEPT_ERROR_BYTES = 4096;

/** A destination in a process of its own on this machine; disposing waits for its end, and sees to it. */
export interface LocalDestination extends AsyncDisposable {
  /** `tcp://127.0.0.1:PORT` */
  readonly address: string;
}

/**
 * Starts `dirtmap receive` on loopback, for one migration. It runs in a session of its own, so that Ctrl-C at the
 * terminal reaches the source alone, which then tells the destination.
 * @param grants what it may open: of the machine that is to move there
 * @throws DirtmapError `DESTINATION_FAILED` where it does not come up; the signal's reason
 */
export async function startLocalDestination(
  signal: AbortSignal,
  grants: Pick<Granted, "files" | "sockets">,
  journal?: string,
): Promise<LocalDestination> {
  const args = ["receive", "--listen", "tcp://127.0.0.1:0", "--once", "--wait", `${START_MS}ms`, "--json"];
  for (const [device, path] of Object.entries(grants.files)) args.push("--file", `${device}=${path}`);
  for (const [device, path] of Object.entries(grants.sockets)) args.push("--socket", `${device}=${path}`);
  if (journal !== undefined) args.push("--journal", journal);
  const child = spawn(process.execPath, [PROGRAM, ...args], { stdio: ["ignore", "pipe", "pipe"], detached: true });
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    errors = (errors + text).slice(-KEPT_ERROR_BYTES);
  });
  const lines = createInterface({ input: child.stdout });
  const destination = { address: "", [Symbol.asyncDispose]: () => endChild(child) };
  try {
    const failed = once(child, "exit", { signal }).then(([code]) => {
      throw new DirtmapError(
        `the destination ended with ${code} before it listened: ${errors.trim().split("\n").at(-1)}`,
        {
          code: "DESTINATION_FAILED",
        },
      );
    });
    failed.catch(() => {});
    const late = AbortSignal.any([signal, AbortSignal.timeout(START_MS)]);
    const [line] = (await Promise.race([once(lines, "line", { signal: late }), failed])) as [string];
    destination.address = (JSON.parse(line) as { address: string }).address;
    return destination;
  } catch (cause) {
    await endChild(child, 0);
    signal.throwIfAborted();
    if (cause instanceof DirtmapError) throw cause;
    throw new DirtmapError(`the destination did not say where it listens within ${START_MS} ms`, {
      code: "DESTINATION_FAILED",
      cause,
    });
  }
}
