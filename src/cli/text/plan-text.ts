import type { MigrationSupport } from "../../host/host.js";
import { formatSize } from "../../observe/format.js";
import { table } from "../../observe/table.js";
import type { Answer, DeviceCapabilities } from "../../tracking/capabilities.js";
import { DEVICE_TRACKERS, type Policy, type TrackerChoice } from "../../tracking/choice.js";
import type { ProbedServer } from "../sites/vfio-user/probe.js";

/** What `dirtmap probe` prints: per device its flags, and a line for every tracker. Ends without a newline. */
export function probeText(devices: readonly DeviceCapabilities[]): string {
  if (devices.length === 0) return "the machine has no devices";
  return devices.map((device) => deviceText(device)).join("\n\n");
}

/** What `dirtmap probe --host vfio-user:…` prints. Ends without a newline. */
export function serversText(devices: readonly ProbedServer[]): string {
  return devices
    .map((device) => {
      const { server } = device;
      const text = deviceText({ ...device, iommu: null }, "in another process");
      if (server === null) return text;
      const log = server.log === null ? "off" : `on, by ${server.log.granule} bytes, for ${server.log.startedBy}`;
      const state = `${server.state ?? "none"}${server.failure === null ? "" : ` (${server.failure.split("\n")[0]})`}`;
      return `${text}\n  now: state ${state}, log ${log}`;
    })
    .join("\n\n");
}

/**
 * One device: its flags, and a line for every tracker.
 * @param where it is; default: behind which IOMMU
 */
export function deviceText(
  { id, model, mdev, iommu, flags, migration, trackers }: DeviceCapabilities,
  where?: string,
): string {
  const behind = where ?? behindText(iommu);
  const can =
    migration === "unknown" ? ["not known"] : migration === null ? ["can't migrate"] : migrationWords(migration);
  const rows = DEVICE_TRACKERS.map((kind) => {
    const tracker = trackers[kind];
    if (tracker.available !== true) return [kind, answer(tracker.available), "", tracker.why];
    return [kind, "yes", tracker.pageSizes.map(formatSize).join(" "), tracker.what];
  });
  return [
    `${id}: ${model}${mdev ? " (mdev)" : ""}, ${behind}`,
    ...(iommu === null
      ? []
      : [`  its IOMMU: dirty tracking ${answer(iommu.dirtyTracking)}, page sizes ${sizesText(iommu.pageSizes)}`]),
    `  migration: ${can.join(", ")}`,
    `  internal dirty track supported: ${answer(flags.tracksInternally)}`,
    `  real dirty track through attached container supported: ${answer(flags.tracksThroughContainer)}`,
    ...table([["tracker", "has it", "granules", ""], ...rows]).map((line) => `  ${line}`),
  ].join("\n");
}

function behindText(iommu: DeviceCapabilities["iommu"]): string {
  if (iommu === null) return "no system IOMMU";
  return iommu.type === "none" ? "behind an IOMMU that does not say what it is" : `behind ${iommu.type}`;
}

function migrationWords({ stopCopy, p2p, preCopy }: MigrationSupport): string[] {
  return [...(stopCopy ? ["STOP_COPY"] : []), ...(p2p ? ["P2P"] : []), ...(preCopy ? ["PRE_COPY"] : [])];
}

/** "4K 2M 1G"; an AMD IOMMU has dozens, told as a range. (An SMMU has seven at most.) */
function sizesText(sizes: readonly number[]): string {
  if (sizes.length === 0) return "not told";
  if (sizes.length < 9) return sizes.map(formatSize).join(" ");
  const gap = sizes.some((size, index) => index > 0 && size !== 2 * sizes[index - 1]);
  const range = `${formatSize(sizes[0])} to ${formatSize(sizes[sizes.length - 1])}`;
  return `${gap ? "most powers of two" : "all powers of two"} from ${range}`;
}

function answer(known: Answer): string {
  return known === "unknown" ? "not known" : known ? "yes" : "no";
}

function policyText({ order, measured }: Policy): string {
  if (measured === undefined) return order;
  return `measured by ${measured.from}${measured.unmeasured === "refuse" ? "" : `, else ${order}`}`;
}

/**
 * What `dirtmap plan` prints: the choices as a table, then for each its reason and what was passed over.
 * @param remarks per device, a line more
 */
export function planText(
  choices: readonly TrackerChoice[],
  policy: Policy,
  remarks: ReadonlyMap<string, string> = new Map(),
): string {
  if (choices.length === 0) return "the machine has no devices";
  const rows = choices.map(({ device, tracker, granule, domain, suspend }) => [
    device,
    tracker,
    granule === null ? "-" : formatSize(granule),
    domain === null ? "-" : `${domain.key} (${domain.type}, dirty tracking ${domain.dirtyTracking ? "on" : "off"})`,
    suspend ? "suspended meanwhile" : "",
  ]);
  const lines = table([["device", "tracker", "granule", "domain", ""], ...rows], ["left", "left", "right"]);
  for (const { device, reason, alternatives } of choices) {
    lines.push("", `${device}: ${reason}`);
    const remark = remarks.get(device);
    if (remark !== undefined) lines.push(`  ${remark}`);
    for (const { tracker, why } of alternatives) lines.push(`  not ${tracker}: ${why}`);
  }
  return [`policy ${policyText(policy)}, domain ${policy.domain}, untracked ${policy.untracked}`, "", ...lines].join(
    "\n",
  );
}
