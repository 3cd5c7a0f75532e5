import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { POLICY_ORDERS } from "../../scenario/choices.js";
import { addLinkOptions, type LinkOptions } from "../input/options/migration.js";
import { addStoreOption, type StoreOption } from "../input/options/places.js";
import { choice, orElse } from "../input/options/values.js";
import { addVmmOption, type VmmOption } from "../input/options/vmm.js";
import { runBy } from "../run-command.js";

export interface RecommendInput extends LinkOptions, StoreOption, VmmOption {
  readonly from?: string;
  readonly policy?: (typeof POLICY_ORDERS)[number];
  readonly output?: string;
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

Two trackers are compared by the first of these criteria by which the measurement can tell them apart: whether the machine
can be stopped within the downtime limit; the downtime; the length of the migration; the share of the device's writes that
is lost while it is tracked; the cost of a round, in reading the tracker and in sending pages that nobody wrote. Trackers
that are equal by all of them are taken in the policy's order, and the table says so.

Without --from it uses the newest benchmark of trackers in the store. It asks the machine whether it is still the one that
was measured, unless --no-check is given.
`;

/** `dirtmap recommend`: tracker, granule and domain for each device, from what was measured. */
export function declareRecommend(program: Command): Command {
  const command = program
    .command("recommend")
    .description("recommend a tracker, granule and domain for each device, from what `dirtmap bench trackers` measured")
    .option("--from <file>", "use the result in this file (default: the store's newest)");
  addVmmOption(
    addLinkOptions(addStoreOption(command), orElse)
      .addOption(
        choice("--policy <order>", POLICY_ORDERS, "policy", "decide ties in this order", orElse(DEFAULTS.policy)),
      )
      .option("-o, --output <file>", "write the recommendation to this file, for `--policy measured:FILE`"),
  )
    .option("--no-check", "don't ask the machine whether it is still the one that was measured")
    .option("--json", "print the result as JSON")
    .addHelpText("after", NOTES);
  return runBy<RecommendInput>(command, () => import("../run/recommend.js"));
}
