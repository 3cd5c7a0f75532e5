import { type ChildProcess, fork } from "node:child_process";
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
import type { TestRequest } from "./runner.js";

/** How a run of tests ended. */
export type Verdict = "passed" | "failed" | "timed out";

/** A copy of the built project in which files may be broken. Disposing ends the tests that run in it, and removes it. */
export class Sandbox implements Disposable {
  readonly #folder: string;
  readonly root: string;
  /** See runner.ts. */
  #runner: ChildProcess | undefined;
  /** Files that the runner may know as they were. */
  readonly #changed = new Set<string>();

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
    this.#changed.add(file);
    try {
      return await run();
    } finally {
      writeFileSync(file, before);
      this.#changed.add(file);
    }
  }

  /** Runs the test files that a filter names, until the first failure. */
  async test(filters: readonly string[], limitMs: number): Promise<Verdict> {
    this.#runner ??= this.#start();
    const runner = this.#runner;
    const request: TestRequest = { filters: filters.map((filter) => `dist/${filter}`), changed: [...this.#changed] };
    this.#changed.clear();
    let timer: NodeJS.Timeout | undefined;
    const verdict = await new Promise<Verdict>((resolve, reject) => {
      timer = setTimeout(resolve, limitMs, "timed out");
      runner.once("message", (passed) => resolve(passed === true ? "passed" : "failed"));
      runner.once("error", reject);
      runner.once("exit", (code, signal) => reject(new Error(`vitest ended by itself: ${signal ?? code}`)));
      runner.send(request);
    }).finally(() => clearTimeout(timer));
    runner.removeAllListeners();
    if (verdict === "timed out") this.#end();
    return verdict;
  }

  #start(): ChildProcess {
    // A group of its own, so that what tests start ends with them.
    return fork(join(this.root, "dist/tools/mutants/runner.js"), {
      cwd: this.root,
      stdio: ["ignore", "ignore", "ignore", "ipc"],
      detached: true,
      env: { ...process.env, CI: "true" },
    });
  }

  #end(): void {
    try {
      if (this.#runner?.pid !== undefined) process.kill(-this.#runner.pid, "SIGKILL");
    } catch {
      // The group has ended.
    }
    this.#runner = undefined;
  }

  [Symbol.dispose](): void {
    this.#end();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
