import { existsSync } from "node:fs";
import { join } from "node:path";
import { cacheFolder } from "./cache.js";
import { MissingError } from "./missing.js";

/**
 * The kernel that is booted: DIRTMAP_TEST_KERNEL if it is set, else the one that lies beside the project, else the one
 * that `scripts/kernel/build-kernel.sh` built.
 * @param root the project's folder
 * @throws MissingError where there is none
 */
export function findKernel(root: string): string {
  const given = process.env.DIRTMAP_TEST_KERNEL;
  const places = given ? [given] : [join(root, "../shared/test-kernel/bzImage"), join(cacheFolder(), "kernel/bzImage")];
  const found = places.find((path) => existsSync(path));
  if (found !== undefined) return found;
  throw new MissingError(
    given ? `DIRTMAP_TEST_KERNEL: there is no ${given}` : "no kernel to boot",
    "run scripts/kernel/build-kernel.sh (some 10 minutes), or set DIRTMAP_TEST_KERNEL to its bzImage",
  );
}
