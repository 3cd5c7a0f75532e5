import { channel } from "node:diagnostics_channel";

/** Memory taken for dirty bits. It is given back with the object that holds it. */
export interface BitmapAllocation {
  readonly holder: object;
  /** `log`: what writers mark, in a device or in an object of the kernel's; `bitmap`: what a reader or a kernel fills. */
  readonly kind: "log" | "bitmap";
  /** As taken, with what alignment and padding cost. */
  readonly bytes: number;
}

/** The diagnostics channel on which each {@link BitmapAllocation} is published, synchronously, where it is made. */
export const bitmapAllocations = channel("dirtmap:bitmap");

/** Publishes an allocation; costs nothing where nobody listens. */
export function noteAllocation(allocation: BitmapAllocation): void {
  if (bitmapAllocations.hasSubscribers) bitmapAllocations.publish(allocation);
}
