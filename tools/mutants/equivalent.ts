/**
 * Mutants that no test can notice, because the program does the same with them, by id, each with why. `npm run
 * test:mutants` fails on one that lives and isn't here, and on one that is here and no longer exists.
 */
export const EQUIVALENT: Readonly<Record<string, string>> = {
  // Bitmaps and shared logs.
  "bitmap/allocations:769e5cad6a": "Publishing on a channel without subscribers does nothing: only slower.",
  "bitmap/dirty-bitmap:45d4e63f36":
    "A kernel sets bits behind the last one without a break. If the first of them is clear, there is nothing to take out.",
  "bitmap/dirty-bitmap:5cd7d92c06":
    "A run outside the bitmap gives a count of 0 or below, for which setBits does nothing.",
  "bitmap/ram-runs:0bfe54dd57": "A list that is merged with itself stays the same: only slower.",

  // Logs of devices and mdevs.
  "devices/dma-log:f35c5d8ef4":
    "Unless the bitmap begins at 0, the bit isn't where it should be, and the log takes the way through a bitmap of its own: only slower.",
  "iommufd/pin-log:ff2a577b5a": "Runs are merged more often than they need to be: only slower.",
  "vfio-user/client/written-pages:24e23c4ccf": "Clean words are looked at bit by bit: only slower.",
  "vfio-user/client/written-pages:c69d6d2f7e": "Clean words but the first are looked at bit by bit: only slower.",
  "vfio-user/client/written-pages:ece8e75d5f": "Clean words are looked at bit by bit: only slower.",

  // Page tables and their dirty bits.
  "emulated/iommu/scan:30f62d1276": "An entry that isn't sized has one replica, and the run begins where it began.",
  "emulated/iommu/scan:06c1762cfc": "An entry that isn't sized has one replica, and the run ends where it ended.",
  "emulated/iommu/scan:7ce1e321d7":
    "Only a read of all pages leaps over holes. It comes to each hole at a multiple of the entry's reach, so that nothing is subtracted.",
  "emulated/iommu/iotlb:86a729b6b2":
    "An entry of the IOTLB without its tag is never hit, and each DMA is translated: only slower.",
  "emulated/iommu/walker:cf53202975": "The address is looked at only after a walk that succeeded, which sets it.",

  // Trackers and the union.
  "tracking/collector:06a5dac1d4": "No two areas begin at the same IOVA: they don't overlap.",
  "tracking/collector:7f5035c9eb": "Trackers take an undefined signal for an absent one.",

  // Stream, channels and digests.
  "migration/channels/page-sink:efed465811": "Each frame of pages sets it before it is looked at.",
  "migration/channels/page-sink:f8ebde094a": "Each frame of pages sets it before it is looked at.",
  "migration/channels/page-sink:9947e92dd6":
    "Before the hello both are 0 and after it neither is, until the sequence begins again after 2^32 frames.",
  "migration/channels/page-sink:0e567d19c2":
    "Channels have numbers up to 16. One of 256 or more in the header is refused all the same, in other words.",
  "migration/channels/page-sink:35805382f5":
    "All data goes through staging, which has room for any frame: only slower.",
  "migration/channels/page-sink:b86a6cc016": "A frame at the bound goes through staging: only slower.",
  "migration/channels/page-sink:32875079c5":
    "Short runs are received directly, long ones through staging: only slower.",
  "migration/channels/page-sink:b8124fb056": "Shorter runs are received directly: only slower.",
  "migration/channels/page-sink:8d83bd4094": "No body or data is waited for before a header has come.",
  "migration/channels/page-sink:1e42361222": "No body or data is waited for before a header has come.",
};
