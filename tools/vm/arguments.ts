import { parseArgs } from "node:util";
import { MACHINES, type MachineName } from "./machines.js";

/** What `npm run test:kernel` was asked to do. */
export interface TestKernelOptions {
  readonly machines: readonly MachineName[];
  /** Parts of test files' paths; a file that contains one of them runs. None: all files. */
  readonly filters: readonly string[];
  /** vitest's `-t`: a pattern of test names. */
  readonly testNamePattern?: string;
  readonly nightly: boolean;
  /** Seeds that the differential test runs again, instead of new ones. */
  readonly replay: readonly string[];
  /** Shows the kernel's log after a good run, too. */
  readonly kernelLog: boolean;
  /** A folder for vitest's results, a JSON file a machine. */
  readonly results?: string;
  readonly help: boolean;
}

export const USAGE = `usage: node scripts/test-kernel.js [options] [filter...]

Boots Linux in QEMU and runs the tests of test/kernel in it.

  filter               part of a test file's path; without one, all files run
  --machine NAME       ${MACHINES.join(", ")}; may be repeated; all by default
  -t PATTERN           only tests whose name matches
  --nightly            the long variants (DIRTMAP_NIGHTLY=1 in the guest)
  --replay SEED        run the differential test with this seed; may be repeated
  --results FOLDER     write vitest's results there, a JSON file a machine
  --kernel-log         show the kernel's log of a good run, too
  -h, --help           show this
`;

/**
 * Reads the command line.
 * @throws TypeError with what is wrong with it
 */
export function parseArguments(argv: readonly string[]): TestKernelOptions {
  const { values, positionals } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: {
      machine: { type: "string", multiple: true },
      testNamePattern: { type: "string", short: "t" },
      nightly: { type: "boolean", default: false },
      replay: { type: "string", multiple: true, default: [] },
      results: { type: "string" },
      "kernel-log": { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  const asked = values.machine ?? MACHINES;
  const unknown = asked.find((name) => !MACHINES.includes(name as MachineName));
  if (unknown !== undefined) throw new TypeError(`--machine ${unknown}: there are ${MACHINES.join(", ")}`);
  return {
    machines: MACHINES.filter((name) => asked.includes(name)),
    filters: positionals,
    nightly: values.nightly,
    replay: values.replay,
    kernelLog: values["kernel-log"],
    help: values.help,
    ...(values.testNamePattern === undefined ? {} : { testNamePattern: values.testNamePattern }),
    ...(values.results === undefined ? {} : { results: values.results }),
  };
}
