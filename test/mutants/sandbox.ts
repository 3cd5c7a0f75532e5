import { spawn } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";

/** How a run of tests ended. */
export type Verdict = "passed" | "failed" | "timed out";

/** A copy of the built project in which files may be broken. Disposing ends the tests that run in it, and removes it. */
export class Sandbox implements Disposable {
  readonly #folder: string;
  readonly root: string;
  /** Ends the tests that run. */
  #end = () => {};

  constructor(project: string) {
    this.#folder = realpathSync(mkdtempSync(join(tmpdir(), "dirtmap-mutants-")));
    this.root = join(this.#folder, basename(project));
    const linked = ["node_modules"];
    const left = [".git", "docs", ...linked];
    for (const name of readdirSync(project)) {
      if (!left.includes(name)) cpSync(join(project, name), join(this.root, name), { recursive: true });
    }
    for (const name of linked) symlinkSync(realpathSync(join(project, name)), join(this.root, name));
    const shared = join(project, "..", "shared");
    if (existsSync(shared)) symlinkSync(realpathSync(shared), join(this.#folder, "shared"));
  }

  /** Runs the tests with a file's text exchanged, and puts it back. */
  async runWith(path: string, text: string, run: () => Promise<Verdict>): Promise<Verdict> {
    const file = join(this.root, path);
    const before = readFileSync(file);
    writeFileSync(file, text);
    try {
      return await run();
    } finally {
      writeFileSync(file, before);
    }
  }

  /** Runs vitest on the files that a filter names, until the first failure. */
  async test(filters: readonly string[], limitMs: number): Promise<Verdict> {
    const vitest = join(this.root, "node_modules", "vitest", "vitest.mjs");
    const child = spawn(
      process.execPath,
      [vitest, "run", "--bail=1", "--reporter=dot", ...filters.map((filter) => `dist/${filter}`)],
      // A group of its own, so that what tests start ends with them.
      { cwd: this.root, stdio: "ignore", detached: true, env: { ...process.env, CI: "true" } },
    );
    let timedOut = false;
    const end = () => {
      try {
        if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
      } catch {
        // The group has ended.
      }
    };
    this.#end = end;
    const timer = setTimeout(() => {
      timedOut = true;
      end();
    }, limitMs);
    const code = await new Promise<number | null>((resolve, reject) => {
      child.once("error", reject);
      child.once("close", resolve);
    });
    clearTimeout(timer);
    end();
    this.#end = () => {};
    if (timedOut) return "timed out";
    return code === 0 ? "passed" : "failed";
  }

  [Symbol.dispose](): void {
    this.#end();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
