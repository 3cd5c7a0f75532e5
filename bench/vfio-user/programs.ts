import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { findLibvfioUser } from "../../test/interop/libvfio-user.js";
import { MissingError } from "../../tools/vm/missing.js";

/** The bench's own C programs, compiled. */
export interface Programs {
  readonly client: string;
  readonly bareServer: string;
  /** null: libvfio-user is not here. */
  readonly libvfioUserServer: string | null;
}

/**
 * Compiles the C programs of bench/vfio-user into a folder.
 * @param root the project's folder
 * @throws MissingError without a C compiler
 */
export function compile(root: string, folder: string): Programs {
  const build = (name: string, options: readonly string[] = []) => {
    const program = join(folder, name);
    const source = join(root, "bench/vfio-user", `${name}.c`);
    const { error, status, stderr } = spawnSync(
      "cc",
      ["-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source, ...options],
      { encoding: "utf8" },
    );
    if (error) throw new MissingError("no C compiler", "install the packages gcc and libc6-dev");
    if (status !== 0) throw new Error(`cc failed: ${stderr}`);
    return program;
  };
  return {
    client: build("client"),
    bareServer: build("bare-server"),
    libvfioUserServer: buildWithLibvfioUser(build),
  };
}

function buildWithLibvfioUser(build: (name: string, options: readonly string[]) => string): string | null {
  try {
    const { include, library } = findLibvfioUser();
    return build("libvfio-user-server", [`-I${include}`, `-L${library}`, "-lvfio-user", `-Wl,-rpath,${library}`]);
  } catch (error) {
    if (!(error instanceof MissingError)) throw error;
    process.stderr.write(`libvfio-user is left out: ${error.message}\n`);
    return null;
  }
}
