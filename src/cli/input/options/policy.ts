import { type Command, Option } from "commander";
import { DEFAULTS } from "../../../defaults.js";
import { UsageError } from "../../../errors.js";
import {
  DESIGNS,
  DEVICE_TRACKERS,
  DOMAINS,
  isMeasured,
  MEASURED,
  POLICY_ORDERS,
  UNMEASURED,
  UNTRACKED,
} from "../../../scenario/choices.js";
import { parseSize } from "../../../units.js";
import { argument, choice, oneOf, orScenario, perDevice } from "./values.js";

/** `--policy ORDER`, or `--policy measured:FILE`. */
export type PolicyOption = (typeof POLICY_ORDERS)[number] | `${typeof MEASURED}${string}`;

/** How the devices of a machine are to be tracked. */
export interface PolicyOptions {
  readonly policy?: PolicyOption;
  readonly unmeasured?: (typeof UNMEASURED)[number];
  readonly tracker?: Readonly<Record<string, (typeof DEVICE_TRACKERS)[number]>>;
  readonly granule?: Readonly<Record<string, number>>;
  readonly domain?: (typeof DOMAINS)[number];
  readonly untracked?: UntrackedOption;
  readonly design?: (typeof DESIGNS)[number];
}

/** `--untracked MODE` for all devices, `--untracked DEV=MODE` for one. */
export interface UntrackedOption {
  readonly all?: (typeof UNTRACKED)[number];
  readonly devices: Readonly<Record<string, (typeof UNTRACKED)[number]>>;
}

/** Adds the options of {@link PolicyOptions}. */
export function addPolicyOptions(command: Command): Command {
  const policies = [...POLICY_ORDERS, `${MEASURED}FILE`];
  return command
    .addOption(
      new Option(
        "--policy <order>",
        `ask for trackers in this order, or follow what was measured: ${policies.join(", ")}${orScenario(DEFAULTS.policy)}`,
      ).argParser(argument(policyOption)),
    )
    .addOption(
      choice(
        "--unmeasured <order>",
        UNMEASURED,
        "mode",
        `choose what happens to devices that ${MEASURED}FILE lacks`,
        orScenario(DEFAULTS.unmeasured),
      ),
    )
    .addOption(
      new Option(
        "--tracker <dev=tracker...>",
        `give a device this tracker, whatever the policy says: ${DEVICE_TRACKERS.join(", ")}`,
      ).argParser(perDevice(oneOf(DEVICE_TRACKERS, "tracker"))),
    )
    .addOption(
      new Option("--granule <dev=size...>", "track a device with this many bytes per dirty bit: 4K, 2M …").argParser(
        perDevice(parseSize),
      ),
    )
    .addOption(
      choice(
        "--domain <mode>",
        DOMAINS,
        "mode",
        "attach the devices on the system IOMMU to HWPTs that are",
        orScenario(DEFAULTS.domain),
      ),
    )
    .addOption(
      new Option(
        "--untracked <[dev=]mode...>",
        `choose what happens to devices without a tracker, or to one of them: ${UNTRACKED.join(", ")}${orScenario(DEFAULTS.untracked)}`,
      ).argParser(untracked),
    )
    .addOption(
      choice(
        "--design <design>",
        DESIGNS,
        "design",
        "choose the design that merges the trackers' answers",
        orScenario(DEFAULTS.design),
      ),
    );
}

/** @throws UsageError `BAD_OPTION` */
function policyOption(text: string): PolicyOption {
  if (!isMeasured(text)) return oneOf([...POLICY_ORDERS, `${MEASURED}FILE`], "policy")(text) as PolicyOption;
  if (text.length > MEASURED.length) return text;
  throw new UsageError(`'${text}' names no file`, {
    code: "BAD_OPTION",
    remedy: `write ${MEASURED}FILE, of \`dirtmap recommend --output FILE\``,
  });
}

function untracked(text: string, before: UntrackedOption = { devices: {} }): UntrackedOption {
  const mode = argument(oneOf(UNTRACKED, "mode"));
  if (!text.includes("=")) return { ...before, all: mode(text) };
  return { ...before, devices: perDevice(mode)(text, { ...before.devices }) };
}
