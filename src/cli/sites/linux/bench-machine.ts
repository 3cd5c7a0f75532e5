import { UsageError } from "../../../errors.js";
import type { BenchSite } from "../../../evidence/trackers/site.js";
import { createPassthroughMachine } from "../../../host/passthrough-machine.js";
import type { LinuxHost } from "../../../linux/host.js";
import { deviceNames } from "./device-names.js";
import { probeHost } from "./probe.js";

/**
 * Devices of this machine that nobody uses, with memory of our own mapped for them. They are opened, which resets them; no
 * driver tells them to do DMA, so that what costs a reader is measured, and nothing else. A device in use is not touched.
 * @param names which devices; absent: all that can be opened
 * @throws UsageError `UNKNOWN_DEVICE`, `AMBIGUOUS_DEVICE`, `NOTHING_TO_MEASURE`
 */
export async function linuxSite(
  host: LinuxHost,
  {
    names,
    memoryBytes,
    signal,
  }: { names?: readonly string[] | undefined; memoryBytes: number; signal?: AbortSignal | undefined },
): Promise<BenchSite> {
  const { id: idOf } = await deviceNames(host);
  const ids = names?.map(idOf);
  const { devices: probed } = await probeHost(host, { ids, signal });
  const usable = probed.filter(({ capabilities }) => capabilities !== null).map(({ device }) => device);
  const leftOut = probed.flatMap(({ device, capabilities, missing }) => {
    // All that could ever be assigned would be a long list: who names none is told of those on a VFIO driver.
    if (capabilities !== null || (ids === undefined && device.vfio === null)) return [];
    return [{ id: device.id, why: missing[0]?.message ?? "there is no /dev/iommu to open it through" }];
  });
  if (usable.length === 0) {
    const why = leftOut.map(({ id, why: reason }) => `${id}: ${reason}`).join("; ");
    throw new UsageError(`no device of this machine can be opened to be measured${why === "" ? "" : ` (${why})`}`, {
      code: "NOTHING_TO_MEASURE",
      remedy: "see `dirtmap probe --host linux` for what is missing, or leave out --host for the emulated host",
    });
  }
  const { kernel } = host.state();
  return {
    host: "linux",
    scenario: null,
    measures: `Linux ${kernel}, and devices that no guest drives: no DMA is done, so that what it loses and how exact trackers are is not known`,
    memoryBytes,
    sizes: [memoryBytes / 4, memoryBytes],
    devices: null,
    leftOut,
    async open(variant) {
      const machine = await createPassthroughMachine({
        host,
        devices: usable.map(({ id }) => ({ id, hostId: id })),
        memory: variant.memoryBytes,
      });
      return {
        machine,
        witnesses: new Map(),
        groups: new Map(usable.flatMap(({ id, iommuGroup }) => (iommuGroup === null ? [] : [[id, iommuGroup]]))),
        [Symbol.asyncDispose]: () => machine[Symbol.asyncDispose](),
      };
    },
  };
}
