import type { BenchMachine, BenchSite, BenchVariant } from "../../../evidence/trackers/site.js";
import type { MachineDescription } from "../../../host/description.js";
import { MiB, PAGE_SIZE } from "../../../memory/address.js";
import { checkDevices } from "../../input/policy.js";
import { witnessOf } from "../device-witness.js";
import { openMachine } from "../hosts.js";

/** More than any device's thread gets done: its pace is then its own. In megabytes (10^6) per second. */
const FLAT_OUT_RATE = 1000;
/** The share of memory that one device writes all over when it is flat out; less where there are many. */
const FLAT_OUT_SHARE = 0.12;
/** That all devices may take together. */
const ALL_SHARE = 0.7;
/** Guest memory besides the scenario's: a fourth and a sixteenth of it, from here on. */
const SMALLEST_BYTES = 32 * MiB;

/**
 * A scenario's machine on the emulated host, as the bench of trackers makes it.
 * @param only ids of devices; all by default
 * @throws UsageError `UNKNOWN_DEVICE`
 */
export function emulatedSite(
  scenario: string,
  description: MachineDescription,
  { only }: { only?: readonly string[] | undefined } = {},
): BenchSite {
  const ids = description.devices.map(({ id }) => id);
  checkDevices(ids, only);
  const { memory } = description;
  return {
    host: "emulated",
    scenario,
    measures: "the emulated host: its IOMMUs and devices are a model, and so are these figures",
    memoryBytes: memory,
    sizes: [memory / 16, memory / 4, memory].filter((bytes) => bytes === memory || bytes >= SMALLEST_BYTES),
    devices: only ?? null,
    leftOut: [],
    open: (variant) => open(description, variant),
  };
}

async function open(description: MachineDescription, variant: BenchVariant): Promise<BenchMachine> {
  const machine = await openMachine(variant.load === "workload" ? description : flatOut(description, variant));
  return {
    machine,
    witnesses: new Map(machine.devices.map(({ id, vfio }) => [id, witnessOf(vfio)])),
    groups: new Map(),
    [Symbol.asyncDispose]: () => machine[Symbol.asyncDispose](),
  };
}

/** Whole pages, as all sizes of guest memory are. */
function flatOut(description: MachineDescription, { memoryBytes }: BenchVariant): MachineDescription {
  const share = Math.min(FLAT_OUT_SHARE, ALL_SHARE / Math.max(1, description.devices.length));
  const footprint = Math.max(PAGE_SIZE, Math.floor((share * memoryBytes) / PAGE_SIZE) * PAGE_SIZE);
  return {
    ...description,
    memory: memoryBytes,
    fill: 0,
    vcpus: { ...description.vcpus, count: 0 },
    devices: description.devices.map((device) => ({ ...device, load: { rate: FLAT_OUT_RATE, footprint } })),
  };
}
