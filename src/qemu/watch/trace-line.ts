/*
 * Lines of QEMU's trace log, as its `log` backend writes them: `[TIME ]NAME TEXT`. Formats are those of QEMU 11.1.
 */

/** What a line tells; null for every other one. */
export type TraceFact =
  | {
      readonly kind: "pending";
      /** As QEMU's traces name the device. */
      readonly name: string;
      readonly stopCopyBytes: number;
      readonly preCopyBytes: number;
    }
  | {
      /** Pages that devices wrote, found in one range of a container: of which device, QEMU does not tell. */
      readonly kind: "dirty";
      readonly pages: number;
    }
  | { readonly kind: "sync-began" }
  | {
      /** Pages that memory's new pass has, of vCPUs and devices. */
      readonly kind: "sync-ended";
      readonly pages: number;
    }
  | { readonly kind: "state"; readonly name: string; readonly state: string };

const TIME = /^(?:\d{4}-\d\d-\d\dT[\d:.]+Z |\d+@\d+\.\d+:)/;

const READERS: readonly [RegExp, (match: RegExpExecArray) => TraceFact][] = [
  [
    /^vfio_state_pending {2}\(([^)]{1,200})\) stopcopy size (\d{1,15}),? precopy initial size (\d{1,15}),? precopy dirty size (\d{1,15})/,
    ([, name, stopCopy, initial, dirty]) => ({
      kind: "pending",
      name,
      stopCopyBytes: Number(stopCopy),
      preCopyBytes: Number(initial) + Number(dirty),
    }),
  ],
  [
    /^vfio_container_query_dirty_bitmap .*\bdirty_pages=(\d{1,15})$/,
    ([, pages]) => ({ kind: "dirty", pages: Number(pages) }),
  ],
  [/^migration_bitmap_sync_start\b/, () => ({ kind: "sync-began" })],
  [/^migration_bitmap_sync_end dirty_pages (\d{1,15})/, ([, pages]) => ({ kind: "sync-ended", pages: Number(pages) })],
  [
    /^vfio_migration_set_device_state {2}\(([^)]{1,200})\) state ([A-Z0-9_]{1,32})$/,
    ([, name, state]) => ({ kind: "state", name, state }),
  ],
];

export function readTraceLine(line: string): TraceFact | null {
  const text = line.trimEnd().replace(TIME, "");
  for (const [pattern, read] of READERS) {
    const match = pattern.exec(text);
    if (match !== null) return read(match);
  }
  return null;
}
