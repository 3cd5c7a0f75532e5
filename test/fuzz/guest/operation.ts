/*
 * What a guest does to its device, and what happens to that meanwhile, as plain data: a run is a list of these, which can
 * be printed, shortened and done again.
 */

/** A write to a region. */
export interface RegionWrite {
  readonly region: number;
  readonly offset: number;
  readonly data: Uint8Array;
}

export type GuestOperation =
  | ({ readonly kind: "write" } & RegionWrite)
  | { readonly kind: "read"; readonly region: number; readonly offset: number; readonly bytes: number }
  /** The guest stores to its memory, at an address inside one of its regions. */
  | { readonly kind: "fill"; readonly address: number; readonly data: Uint8Array }
  /** So many slices of work, each as short as there are. */
  | { readonly kind: "work"; readonly slices: number }
  /** Another of the guest's CPUs writes registers in the middle of a DMA: of the one after so many. */
  | { readonly kind: "during"; readonly after: number; readonly writes: readonly RegionWrite[] }
  /** The VMM resets the device. */
  | { readonly kind: "reset" }
  /** The VMM takes a region of memory away, or gives it back. */
  | { readonly kind: "unmap" | "map"; readonly region: number }
  /** Logging of everything (0 ranges), or of each region. */
  | { readonly kind: "log"; readonly everything: boolean; readonly pageSize: number }
  /** The device's state moves to another. */
  | { readonly kind: "migrate"; readonly preCopy: boolean }
  /** The guest resets the device in one of the ways that it has, and uses it as it should. */
  | { readonly kind: "revive"; readonly how: number };
