import { readdirSync, readlinkSync } from "node:fs";

/** This process's open descriptors, as the system names them: `socket:[123]`, `pipe:[5]`, a path. */
export function openDescriptors(): string[] {
  return readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)];
    } catch {
      // The descriptor of this very listing.
      return [];
    }
  });
}

/** Resolves with the descriptors that are open now and were not before, once there are none, or after five seconds. */
export async function leakedDescriptors(before: readonly string[]): Promise<string[]> {
  const known = new Set(before);
  for (const until = Date.now() + 5000; ; ) {
    const leaked = openDescriptors().filter((name) => !known.has(name));
    if (leaked.length === 0 || Date.now() > until) return leaked;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
