/*
 * What must not outlive the process that runs the tests.
 */

const kills = new Set<() => void>();

process.on("exit", () => {
  for (const kill of kills) kill();
});

/** Has this done when the process exits. Returns what takes that back. */
export function atExit(kill: () => void): () => void {
  kills.add(kill);
  return () => kills.delete(kill);
}
