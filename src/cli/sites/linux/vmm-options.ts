import { UsageError } from "../../../errors.js";
import { measuredChoices } from "../../../evidence/recommend/recommendation.js";
import type { Recommendation } from "../../../evidence/recommend/result.js";
import type { TrackerBenchmark } from "../../../evidence/trackers/result.js";
import { DEFAULT_POLICY } from "../../../tracking/choice.js";
import { chooseTrackers } from "../../../tracking/policy.js";
import { type LibvirtXml, libvirtXml } from "../../../vmm-options/libvirt-xml.js";
import { type QemuOptions, qemuOptions } from "../../../vmm-options/qemu-command-line.js";
import { type MdevModel, type VmmDevice, vmmAddress } from "../../../vmm-options/vmm-device.js";

/** What makes QEMU and libvirt follow a recommendation. */
export interface VmmOptions {
  readonly qemu: QemuOptions;
  readonly libvirt: LibvirtXml;
}

/**
 * For devices of this machine's kind; null where the benchmark is of others, which no VMM can be given. Platform devices are
 * left out: QEMU has no -device for them.
 */
export function vmmOptionsOf(
  { host, devices }: TrackerBenchmark,
  { devices: recommended }: Recommendation,
): VmmOptions | null {
  if (host !== "linux") return null;
  const measured = measuredChoices(recommended, { from: "the benchmark" });
  const choices = chooseTrackers(
    devices.map(({ capabilities }) => capabilities),
    { ...DEFAULT_POLICY, measured },
  );
  const forVmm = devices.flatMap(({ id, capabilities, iommuGroup }, index): VmmDevice[] => {
    if (!isAddress(id)) return [];
    const group = capabilities.mdev || iommuGroup === null ? null : String(iommuGroup);
    const address = vmmAddress(id, MODEL_OF_DRIVER.get(capabilities.model));
    return [{ choice: choices[index], capabilities, address, iommuGroup: group }];
  });
  return { qemu: qemuOptions(forVmm), libvirt: libvirtXml(forVmm) };
}

/** mdevs on s390 whose driver tells that they are no PCI devices; a benchmark does not keep `device_api`. */
const MODEL_OF_DRIVER: ReadonlyMap<string, MdevModel> = new Map([
  ["vfio_ap_mdev", "vfio-ap"],
  ["vfio_ccw_mdev", "vfio-ccw"],
]);

function isAddress(id: string): boolean {
  try {
    vmmAddress(id);
    return true;
  } catch (error) {
    if (error instanceof UsageError) return false;
    throw error;
  }
}
