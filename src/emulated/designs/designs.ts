import type { ContainerTracking, KernelDesigns } from "../../host/designs.js";
import type { GuestMemory } from "../../memory/guest-memory.js";
import type { PhysicalMemory } from "../physical-memory.js";
import { AggregatedContainer } from "./aggregated.js";
import { IteratingContainer } from "./iterating.js";
import { openType1 } from "./type1.js";

/** The rival designs of an emulated machine's kernel. */
export class EmulatedDesigns implements KernelDesigns {
  readonly #memory: GuestMemory;
  readonly #physical: PhysicalMemory;

  constructor({ memory, physical }: { memory: GuestMemory; physical: PhysicalMemory }) {
    this.#memory = memory;
    this.#physical = physical;
  }

  /** @throws UapiError for what the container refuses */
  async openContainer({
    design,
    members,
    mapped,
  }: Parameters<KernelDesigns["openContainer"]>[0]): Promise<ContainerTracking> {
    switch (design) {
      case "type1":
        return openType1({ members, memory: this.#memory, physical: this.#physical });
      case "aggregated":
        return new AggregatedContainer(members, mapped);
      case "iterating":
        return new IteratingContainer(members, mapped);
    }
  }
}
