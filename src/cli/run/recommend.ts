import { DEFAULTS } from "../../defaults.js";
import { UsageError } from "../../errors.js";
import { recommendationOf, writeRecommendation } from "../../evidence/recommend/recommendation.js";
import type { Recommendation } from "../../evidence/recommend/result.js";
import { checkBenchmark, readBenchmark } from "../../evidence/trackers/file.js";
import type { TrackerBenchmark } from "../../evidence/trackers/result.js";
import { safeStrings } from "../../safe-text.js";
import { shellWord } from "../../shell-word.js";
import { libvirtText } from "../../vmm-options/libvirt-xml.js";
import { qemuText } from "../../vmm-options/qemu-command-line.js";
import type { RecommendInput } from "../commands/recommend.js";
import { linkOf } from "../input/option-scenario-default.js";
import type { StoreOption } from "../input/options/places.js";
import { openStoreOf } from "../kept/store.js";
import { printResult, printText, warn } from "../output.js";
import type { Run } from "../run-command.js";
import { checkMachine } from "../sites/check-machine.js";
import { vmmOptionsOf } from "../sites/linux/vmm-options.js";
import { benchCommand, followCommand } from "../text/commands-to-type.js";
import { recommendationText } from "../text/recommendation-text.js";

export const run: Run<RecommendInput> = async (input, { signal }) => {
  const { output, only, check, policy = DEFAULTS.policy, json = false } = input;
  const { benchmark, from } = readFrom(input);
  const recommendation = recommendationOf(benchmark, linkOf(input), policy);
  const vmm = safeStrings(vmmOptionsOf(benchmark, recommendation));
  if (only !== undefined && vmm === null) {
    throw new UsageError(`${from} was taken on the host '${benchmark.host}': a VMM can be given no device of it`, {
      code: "WRONG_HOST",
      remedy: "take one of this machine's devices: dirtmap bench trackers --host linux",
    });
  }
  if (check) {
    for (const id of await checkMachine(recommendation, { from, signal })) {
      warn(`${id} was not measured; ${benchCommand(benchmark)} measures it`);
    }
  }
  for (const { id, why } of benchmark.leftOut) warn(`${id} was not measured: ${why}`);
  if (output !== undefined) {
    writeRecommendation(output, recommendation);
    warn(`written to ${output}; to follow it: ${followCommand(output, benchmark)}`);
  }
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
};

/** The benchmark, and how messages name it. */
function readFrom(input: RecommendInput): { benchmark: TrackerBenchmark; from: string } {
  const { from } = input;
  if (from !== undefined) return { benchmark: readBenchmark(from), from };
  using store = openStoreOf(input);
  const newest = store?.benchmarks({ kind: "trackers", limit: 1 }).at(0);
  if (store === null || newest === undefined) {
    throw new UsageError(`there is no benchmark of trackers in ${store?.path ?? "the store"}`, {
      code: "NO_BENCHMARK",
      remedy: `take one: dirtmap bench trackers${storeArguments(input)}; or name a file (--from FILE)`,
    });
  }
  const name = `benchmark ${newest.id} of ${store.path}`;
  return { benchmark: checkBenchmark(store.benchmark(newest.id).result, name), from: name };
}

/** The same store, for a command that is printed. */
function storeArguments({ store }: StoreOption): string {
  return typeof store === "string" ? ` --store ${shellWord(store)}` : "";
}
