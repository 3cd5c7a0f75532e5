import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";

const PROGRAM = fileURLToPath(new URL("../../../../bin/dirtmap.js", import.meta.url));

/** How a run of the program ended. */
export interface ProgramRun {
  /** null: killed, which it is when it takes too long. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the command line as an operator would. Bounded: emulated CPUs need some seconds to start it. */
export function dirtmap(args: readonly string[], as: { uid?: number; gid?: number } = {}): Promise<ProgramRun> {
  return new Promise((resolve) => {
    const options = { ...as, timeout: 100_000, killSignal: "SIGKILL" as const };
    execFile(process.execPath, [PROGRAM, ...args], options, (error, stdout, stderr) => {
      const code = error === null ? 0 : error.code;
      resolve({ code: typeof code === "number" ? code : null, stdout, stderr });
    });
  });
}
