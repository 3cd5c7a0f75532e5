import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Child } from "./child.js";
import { PROGRAM } from "./program.js";

/* Real `dirtmap` processes, on a machine that a busy computer keeps up with. */

const SCENARIO = `summary: small and slow
machine:
  memory: 16M
  fill: 0.1
  vcpus: { count: 1, rate: 1, footprint: 128K }
  iommus: [{ id: iommu0, format: amd-v1 }]
  devices:
    - { id: vf0, model: mlx5, iommu: iommu0, load: { rate: 1, footprint: 256K } }
    - { id: nic0, model: nic, iommu: iommu0, load: { rate: 1, footprint: 256K } }
migration: { trackers: { vf0: device }, downtimeLimit: 2s }
`;

/** Commands that keep their journals in one folder. */
export class CommandLine {
  readonly journals: string;
  readonly scenario: string;

  /** @param folder for the scenario, and for journals unless they have a folder of their own */
  constructor(folder: string, journals = folder) {
    this.journals = journals;
    this.scenario = join(folder, "tiny.yaml");
    writeFileSync(this.scenario, SCENARIO);
  }

  /** A command about the journals, with its result as JSON. */
  run(...args: string[]): Child {
    return new Child(PROGRAM, ...args, "--journal", this.journals, "--json");
  }

  migrate(...more: string[]): Child {
    return this.run("migrate", "--scenario", this.scenario, ...more);
  }

  /** `dirtmap receive`, once it listens. */
  async receive(...more: string[]): Promise<{ child: Child; port: number }> {
    const address = more.includes("--tls-folder") ? "tls://localhost:0" : "tcp://127.0.0.1:0";
    const child = this.run("receive", "--listen", address, ...more);
    const { address: actual } = await child.said("address");
    return { child, port: Number(new URL(String(actual)).port) };
  }
}
