import type { DmaWitness } from "../../evidence/trackers/site.js";

/**
 * A device of Dirtmap's models as its own witness: by its counters, and by the numbers of the units that it stamps, of which
 * number n goes to slot n of its ring.
 */
export function witnessOf(vfio: { counters(): Promise<Record<string, number>> }): DmaWitness {
  const counters = async () => {
    const { units = 0, lastSequence = 0, slots = 0 } = await vfio.counters();
    return { units, lastSequence, slots };
  };
  return {
    writes: async () => (await counters()).units,
    mark: async () => {
      const { lastSequence: before } = await counters();
      return {
        pagesSince: async () => {
          const { lastSequence, slots } = await counters();
          return Math.min(lastSequence - before, slots);
        },
      };
    },
  };
}
