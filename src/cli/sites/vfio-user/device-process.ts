import type { DeviceDescription } from "../../../host/description.js";
import { type OwnProcess, startOwnProcess } from "../own-process.js";

/**
 * Starts `dirtmap device` with the load that is described. It ends with this process, however that ends.
 * @param seed of a disk that is made up
 * @param side destination: the device is to take over from another, which still has what both use
 * @throws DirtmapError `DEVICE_PROCESS_FAILED` if it does not come up
 */
export async function startDeviceProcess(
  description: DeviceDescription,
  { socket, seed, side = "source" }: { socket: string; seed: number; side?: "source" | "destination" },
): Promise<OwnProcess<true>> {
  const { id, model, dma = "auto" } = description;
  const given = Object.entries(optionsOf(description, { seed, side })).flatMap(([name, value]) => [
    "--option",
    `${name}=${value}`,
  ]);
  return await startOwnProcess({
    args: ["device", model, "--socket", socket, "--id", id, "--dma", dma, "--json", "--until-stdin-ends", ...given],
    name: `the process of '${id}'`,
    code: "DEVICE_PROCESS_FAILED",
    ready: ({ event }) => (event === "ready" ? true : undefined),
    endsWithStdin: true,
  });
}

function optionsOf(
  description: DeviceDescription,
  { seed, side }: { seed: number; side: "source" | "destination" },
): Record<string, string | number> {
  const { rate } = description.load;
  const place = "file" in description ? { file: description.file, within: description.within } : {};
  const disk = Object.fromEntries(Object.entries(place).filter(([, path]) => path !== undefined)) as Record<
    string,
    string
  >;
  switch (description.model) {
    case "nvme":
      return {
        ...disk,
        incoming: side === "destination" ? 1 : 0,
      };
    case "dma-engine":
      return { memory: description.memory };
    case "vgpu":
      return { rate, vram: description.vram };
    case "blk":
      return { rate, seed, ...disk };
    default:
      return { rate };
  }
}
