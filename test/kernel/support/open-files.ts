import { readdirSync, readlinkSync } from "node:fs";

/** What this project opens: device nodes, eventfds and data streams, memory files. A test runner's own files are others. */
const OURS = /^(?:\/dev\/(?:iommu|vfio)|anon_inode:|\/memfd:dirtmap)/;

/** What descriptors of this process lead to, of what the library may have opened; sorted, each as often as it is open. */
export function openFiles(): string[] {
  return readdirSync("/proc/self/fd")
    .map((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`);
      } catch {
        // The descriptor by which this very folder was read.
        return "";
      }
    })
    .filter((target) => OURS.test(target))
    .sort();
}
