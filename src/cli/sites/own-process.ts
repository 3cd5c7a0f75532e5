import type { ChildProcess } from "node:child_process";
import { once } from "node:events";

/** Until it ends by itself once it was told to, and again until SIGKILL. */
const END_MS = 5_000;

/** Waits for a process's end; after a while asks for it, then forces it. */
export async function endChild(child: ChildProcess, patienceMs = END_MS): Promise<void> {
  for (const [signal, ms] of [
    [null, patienceMs],
    ["SIGTERM", END_MS],
    ["SIGKILL", END_MS],
  ] as const) {
    if (child.exitCode !== null || child.signalCode !== null) return;
    if (signal !== null) child.kill(signal);
    await once(child, "exit", { signal: AbortSignal.timeout(ms) }).catch(() => undefined);
  }
}
