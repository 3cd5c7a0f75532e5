import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Summary } from "../src/evidence/statistics.js";
import { boot } from "../tools/vm/boot.js";
import { prepareGuests } from "../tools/vm/image.js";
import { MissingError } from "../tools/vm/missing.js";

/*
 * What the library adds to an ioctl of /dev/iommu. It needs a kernel with the mock IOMMU, and so is measured in the
 * machine in which the kernel's tests run: bench/ioctl-guest.ts. That machine's processor is emulated in software, where
 * an instruction takes 5 to 10 times as long as outside; so does what the library adds.
 */

export interface IoctlRow {
  readonly bench: "ioctl";
  readonly call: "MAP" | "UNMAP" | "GET_DIRTY_BITMAP";
  /** Bytes that the call is about. */
  readonly rangeBytes: number;
  /** Whether the library hands the call to a thread, so that the event loop goes on. */
  readonly thread: boolean;
  /** Microseconds of the bare ioctl, through koffi with a prepared structure. */
  readonly bareUs: Summary;
  /** Microseconds of the library's call, awaited. */
  readonly libraryUs: Summary;
  /** What the library's batch took longer than the bare one of the same turn, in microseconds per call. */
  readonly addedUs: Summary;
  /** Bytes that a call allocates on JavaScript's heap and in array buffers. */
  readonly heapBytes: number;
}

const TIMEOUT_MS = 10 * 60_000;

/** Boots the machine and measures in it; nothing where QEMU or the kernel are missing, with a line that says so. */
export async function run({ repetitions }: { readonly repetitions: number }): Promise<IoctlRow[]> {
  const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
  // The machine must not outlive the bench, which ends without a word otherwise.
  const abort = new AbortController();
  const stop = () => abort.abort();
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, stop);
  try {
    using image = prepareGuests(root, ["mock"]);
    const share = join(image.folder, "share");
    const { status, kernelLog } = await boot({
      machine: "mock",
      image,
      command: [
        ...["node", "--expose-gc", "--max-semi-space-size=64", "dist/bench/ioctl-guest.js"],
        ...["/share/ioctl.json", String(repetitions)],
      ],
      env: {},
      share,
      timeoutMs: TIMEOUT_MS,
      output: (text) => process.stderr.write(text),
      signal: abort.signal,
    });
    if (status !== 0) {
      throw new Error(
        `the guest ended with status ${status ?? "none"}\n${kernelLog.split("\n").slice(-20).join("\n")}`,
      );
    }
    return JSON.parse(readFileSync(join(share, "ioctl.json"), "utf8")) as IoctlRow[];
  } catch (error) {
    if (!(error instanceof MissingError)) throw error;
    process.stderr.write(`ioctl skipped: ${error.message}\n`);
    return [];
  } finally {
    for (const signal of ["SIGINT", "SIGTERM"]) process.off(signal, stop);
  }
}
