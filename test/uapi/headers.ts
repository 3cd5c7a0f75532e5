import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

/** Headers of the kernel that this project is written for, by the names under which C includes them. */
const HEADERS = ["iommufd.h", "vfio.h", "iommufd_test.h"];

/** dist/test/uapi lies three levels below the project. */
const project = dirname(dirname(dirname(dirname(fileURLToPath(import.meta.url)))));

/** Where iommufd.h, vfio.h and iommufd_test.h of the right kernel are; null: only the system's own can be had. */
export function headerFolder(): string | null {
  const named = process.env.DIRTMAP_UAPI_HEADERS;
  if (named !== undefined) return resolve(named);
  const beside = resolve(project, "../shared/reference");
  return existsSync(beside) ? beside : null;
}

/** Why C that includes the headers can't be compiled here, and what to install; null: it can. */
export function missingCompiler(): string | null {
  if (process.platform !== "linux") return "the headers are Linux's";
  return spawnSync("cc", ["--version"]).status === 0 ? null : "no C compiler: install gcc and libc6-dev";
}

/** The C compiler, with the headers of `folder` in front of the system's. */
export class Compiler implements Disposable {
  readonly #work = mkdtempSync(join(tmpdir(), "dirtmap-uapi-"));
  readonly #includes: string;

  constructor(folder: string | null) {
    mkdirSync(join(this.#work, "linux"));
    const found = HEADERS.filter((header) => folder !== null && existsSync(join(folder, header)));
    // iommufd_test.h includes <linux/iommufd.h>: all must be found as linux/…, and be the same files.
    for (const header of found) symlinkSync(join(folder ?? "", header), join(this.#work, "linux", header));
    this.#includes = [
      "#include <errno.h>",
      "#include <stddef.h>",
      "#include <stdio.h>",
      "#include <linux/ioctl.h>",
      "#include <linux/types.h>",
      // Annotations of the kernel's own source, which `make headers_install` takes out.
      "#define __user",
      "#ifndef __counted_by",
      "#define __counted_by(member)",
      "#endif",
      ...HEADERS.flatMap((header) => [`#if __has_include(<linux/${header}>)`, `#include <linux/${header}>`, "#endif"]),
      "",
    ].join("\n");
  }

  /** What is left of the headers after preprocessing, macros' definitions included. */
  preprocessed(): string {
    return this.#cc(["-E", "-dD"], this.#includes);
  }

  /** Compiles a program that prints each expression's value, as 64 bits, and runs it. */
  evaluate(expressions: readonly string[]): bigint[] {
    const lines = expressions.map((expression) => `  printf("%llu\\n", (unsigned long long)(${expression}));`);
    const program = join(this.#work, "program");
    this.#cc(
      ["-Wall", "-Werror", "-o", program],
      `${this.#includes}int main(void) {\n${lines.join("\n")}\n  return 0;\n}\n`,
    );
    const { status, stdout } = spawnSync(program, { encoding: "utf8", timeout: 10_000 });
    if (status !== 0) throw new Error(`the C program ended with ${status}`);
    return stdout.trim().split("\n").map(BigInt);
  }

  [Symbol.dispose](): void {
    rmSync(this.#work, { recursive: true, force: true });
  }

  #cc(options: readonly string[], source: string): string {
    const file = join(this.#work, "source.c");
    writeFileSync(file, source);
    const { status, stdout, stderr } = spawnSync("cc", ["-I", this.#work, ...options, file], {
      encoding: "utf8",
      maxBuffer: 64 << 20,
      timeout: 60_000,
    });
    if (status !== 0) throw new Error(`cc: ${stderr.slice(0, 4000)}`);
    return stdout;
  }
}
