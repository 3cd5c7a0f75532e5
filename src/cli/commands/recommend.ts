import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { UsageError } from "../../errors.js";
import type { Recommendation } from "../../evidence/recommend/result.js";
import type { TrackerBenchmark } from "../../evidence/trackers/result.js";
import { safeStrings } from "../../safe-text.js";
import { POLICY_ORDERS } from "../../scenario/choices.js";
import { shellWord } from "../../shell-word.js";
import { VMMS } from "../choices.js";
import { EXIT_CODES } from "../exit-codes.js";
import {
  addLinkOptions,
  addStoreOption,
  choice,
  type LinkOptions,
  openStoreOf,
  orElse,
  type StoreOption,
} from "../options.js";
import { printResult, printText, runCommand, warn } from "../output.js";

interface RecommendOptions extends LinkOptions, StoreOption {
  readonly from?: string;
  readonly policy?: (typeof POLICY_ORDERS)[number];
  readonly output?: string;
  readonly only?: (typeof VMMS)[number];
  readonly check: boolean;
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap recommend
  dirtmap recommend --from bench.json --bandwidth 25Gbit --downtime-limit 50ms
  dirtmap recommend --output recommendation.json && dirtmap migrate --policy measured:recommendation.json
  dirtmap recommend --from bench.json --only qemu | grep -v '^#'
  dirtmap recommend --json

Decided by the first of these by which the measurement can tell two trackers apart: whether the machine can be stopped within
the downtime limit; the downtime; the length of the migration; the device's writes that are lost while it is tracked; what a
round pays for the tracker, in reading and in sending what nobody wrote. Trackers that are equal by all of that are
taken in the policy's order, and the table says so.

Without --from it is the newest benchmark of trackers in the store. The machine is asked whether it still is what was
measured, unless --no-check is given.
`;

/** `dirtmap recommend`: tracker, granule and domain for each device, from what was measured. */
export function addRecommend(program: Command): void {
  const command = program
    .command("recommend")
    .description("Recommends tracker, granule and domain for each device, from what `dirtmap bench trackers` measured")
    .option("--from <file>", "the benchmark (default: the store's newest)");
  addLinkOptions(addStoreOption(command), orElse)
    .addOption(choice("--policy <order>", POLICY_ORDERS, "policy", "whom ties go to", orElse(DEFAULTS.policy)))
    .option("-o, --output <file>", "write the recommendation to a file, for `--policy measured:FILE`")
    .addOption(choice("--only <vmm>", VMMS, "VMM", "print only what makes a VMM do the same").conflicts("json"))
    .option("--no-check", "don't ask the machine whether it is still what was measured")
    .option("--json", "print the recommendation as JSON")
    .addHelpText("after", NOTES)
    .action((options: RecommendOptions) =>
      runCommand({ json: options.json === true }, async (signal) => {
        await run(options, signal);
        return EXIT_CODES.done.code;
      }),
    );
}

async function run(options: RecommendOptions, signal: AbortSignal): Promise<void> {
  const { output, only, check, policy = DEFAULTS.policy, json = false } = options;
  const [
    { recommendationOf, writeRecommendation },
    { linkOf },
    { vmmOptionsOf },
    { recommendationText },
    { benchCommand, followCommand },
  ] = await Promise.all([
    import("../../evidence/recommend/recommendation.js"),
    import("../bench/link.js"),
    import("../bench/vmm-options.js"),
    import("../bench/recommendation-text.js"),
    import("../bench/bench-command.js"),
  ]);
  const { benchmark, from } = await readFrom(options);
  const recommendation = recommendationOf(benchmark, linkOf(options, {}), policy);
  const vmm = safeStrings(vmmOptionsOf(benchmark, recommendation));
  if (only !== undefined && vmm === null) {
    throw new UsageError(`${from} was taken on the host '${benchmark.host}': a VMM can be given no device of it`, {
      code: "WRONG_HOST",
      remedy: "take one of this machine's devices: dirtmap bench trackers --host linux",
    });
  }
  if (check) {
    const { checkMachine } = await import("../bench/check-machine.js");
    for (const id of await checkMachine(recommendation, { from, signal })) {
      warn(`${id} was not measured; ${benchCommand(benchmark)} measures it`);
    }
  }
  for (const { id, why } of benchmark.leftOut) warn(`${id} was not measured: ${why}`);
  if (output !== undefined) {
    writeRecommendation(output, recommendation);
    warn(`written to ${output}; to follow it: ${followCommand(output, benchmark)}`);
  }
  const [{ libvirtText }, { qemuText }] = await Promise.all([
    import("../../vmm-options/libvirt-xml.js"),
    import("../../vmm-options/qemu-command-line.js"),
  ]);
  const forVmm =
    vmm === null || vmm.qemu.arguments.length === 0
      ? null
      : { qemu: qemuText(vmm.qemu), libvirt: libvirtText(vmm.libvirt) };
  if (only !== undefined) {
    if (forVmm !== null) printText(forVmm[only]);
    return;
  }
  const text = (safe: Recommendation) =>
    [
      recommendationText(safe),
      ...(forVmm === null ? [] : [`QEMU\n\n${forVmm.qemu}`, `libvirt\n\n${forVmm.libvirt}`]),
    ].join("\n\n");
  printResult({ ...recommendation, vmm: forVmm }, { json, text });
}

/** The benchmark, and how messages name it. */
async function readFrom(options: RecommendOptions): Promise<{ benchmark: TrackerBenchmark; from: string }> {
  const { from } = options;
  const { checkBenchmark, readBenchmark } = await import("../../evidence/trackers/file.js");
  if (from !== undefined) return { benchmark: readBenchmark(from), from };
  using store = await openStoreOf(options);
  const newest = store?.benchmarks({ kind: "trackers", limit: 1 }).at(0);
  if (store === null || newest === undefined) {
    throw new UsageError(`there is no benchmark of trackers in ${store?.path ?? "the store"}`, {
      code: "NO_BENCHMARK",
      remedy: `take one: dirtmap bench trackers${storeArguments(options)}; or name a file (--from FILE)`,
    });
  }
  const name = `benchmark ${newest.id} of ${store.path}`;
  return { benchmark: checkBenchmark(store.benchmark(newest.id).result, name), from: name };
}

/** The same store, for a command that is printed. */
function storeArguments({ store }: StoreOption): string {
  return typeof store === "string" ? ` --store ${shellWord(store)}` : "";
}
