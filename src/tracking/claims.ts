import { DirtmapError } from "../errors.js";

/*
 * One reader per tracker. Dirty bits belong to the HWPT, the device or the vCPUs, not to who reads them: a second
 * reader would steal them, and switching an IOMMU's tracking on while it is on wipes them. The kernel doesn't refuse
 * that, so this process does, for all who read through this library.
 */

/** Who reads what, per object that owns dirty bits (an iommufd, a device, a machine's vCPUs), by the tracker's name in it. */
const claims = new WeakMap<object, Map<string, string>>();

/**
 * Makes the caller the only reader of a tracker, until it disposes the claim.
 * @param holder the object that the tracker belongs to
 * @param tracker its name in that object: an HWPT's id, "DMA log"
 * @throws DirtmapError `TRACKER_BUSY`
 */
export function claimTracker(holder: object, tracker: string, reader: string): Disposable {
  const taken = claims.get(holder) ?? new Map<string, string>();
  claims.set(holder, taken);
  const other = taken.get(tracker);
  if (other !== undefined) {
    throw new DirtmapError(`the tracker of ${reader} (${tracker}) is being read already, for ${other}`, {
      code: "TRACKER_BUSY",
      attempted: `start the tracker of ${reader}`,
      remedy: "end the tracking session that is running: two readers would take each other's dirty bits",
    });
  }
  taken.set(tracker, reader);
  let released = false;
  return {
    [Symbol.dispose]: () => {
      if (!released) taken.delete(tracker);
      released = true;
    },
  };
}
