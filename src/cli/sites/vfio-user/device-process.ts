import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { DirtmapError } from "../../../errors.js";
import type { DeviceDescription } from "../../../host/description.js";
import { endChild } from "../own-process.js";

const PROGRAM = fileURLToPath(new URL("../../../../../bin/dirtmap.js", import.meta.url));

/** Until it serves: Node's start, on a busy machine. */
const START_MS = 20_000;
/** What is kept of its standard error, for a message. */
const KEPT_ERROR_BYTES = 4096;

/** A `dirtmap device` that was started for a device; disposing ends it. */
export interface DeviceProcess extends AsyncDisposable {
  readonly pid: number | undefined;
}

/**
 * Starts `dirtmap device` with the load that is described. It ends with this process, however that ends.
 * @param seed of a disk that is made up
 * @param side destination: the device is to take over from another, which still has what both use
 * @throws DirtmapError `DEVICE_PROCESS_FAILED` where it does not come up
 */
export async function startDeviceProcess(
  description: DeviceDescription,
  { socket, seed, side = "source" }: { socket: string; seed: number; side?: "source" | "destination" },
): Promise<DeviceProcess> {
  const { id, model, dma = "auto" } = description;
  const options = optionsOf(description, { seed, side });
  const given = Object.entries(options).flatMap(([name, value]) => ["--option", `${name}=${value}`]);
  const args = [
    "device",
    model,
    "--socket",
    socket,
    "--id",
    id,
    "--dma",
    dma,
    "--json",
    "--until-stdin-ends",
    ...given,
  ];
  // A session of its own: Ctrl-C at the terminal is for us, and we need the device until we are done.
  const child = spawn(process.execPath, [PROGRAM, ...args], { stdio: ["pipe", "pipe", "pipe"], detached: true });
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    errors = (errors + text).slice(-KEPT_ERROR_BYTES);
  });
  child.stdin.on("error", () => undefined);
  const end = async () => {
    child.stdin.end();
    await endChild(child);
  };
  const lines = createInterface({ input: child.stdout });
  try {
    const failed = once(child, "exit").then(([code]) => {
      const why = errors.trim().split("\n").at(-1);
      throw new DirtmapError(`the process of '${id}' ended with ${code} before it served: ${why}`, {
        code: "DEVICE_PROCESS_FAILED",
      });
    });
    failed.catch(() => {});
    for (const late = AbortSignal.timeout(START_MS); ; ) {
      const [line] = (await Promise.race([once(lines, "line", { signal: late }), failed])) as [string];
      if ((JSON.parse(line) as { event?: string }).event === "ready") break;
    }
    return { pid: child.pid, [Symbol.asyncDispose]: end };
  } catch (cause) {
    await end();
    if (cause instanceof DirtmapError) throw cause;
    throw new DirtmapError(`the process of '${id}' did not serve within ${START_MS} ms`, {
      code: "DEVICE_PROCESS_FAILED",
      cause,
    });
  }
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
