import { readdirSync, readlinkSync } from "node:fs";

/** What this process has open, as the kernel names it, of files that matter here: VFIO's, iommufd's, eventfds, memory. */
export function openDescriptors(): string[] {
  return readdirSync("/proc/self/fd")
    .map((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`);
      } catch {
        // The descriptor by which the folder was read.
        return "";
      }
    })
    .filter((name) => /^\/dev\/(vfio\/|iommu$)|^\/memfd:dirtmap|\[(vfio|eventfd|mtty)/.test(name))
    .sort();
}
