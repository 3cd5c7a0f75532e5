import { readFileSync } from "node:fs";
import { UapiError } from "../uapi/errno.js";

/** What would help against an errno of an ioctl of /dev/iommu; undefined where the errno says it all. */
function remedyOf({ syscall, code }: UapiError): string | undefined {
  if (code === "ENOTTY")
    return `use Linux ${SINCE.get(syscall) ?? "6.2"} or later: this kernel doesn't know ${syscall}`;
  switch (`${syscall} ${code}`) {
    case "IOMMU_IOAS_MAP ENOMEM":
    case "IOMMU_IOAS_MAP_FILE ENOMEM":
    case "IOMMU_IOAS_COPY ENOMEM":
    case "IOMMU_HWPT_ALLOC ENOMEM":
      return lockedMemoryRemedy();
    case "IOMMU_IOAS_MAP EEXIST":
    case "IOMMU_IOAS_MAP_FILE EEXIST":
    case "IOMMU_IOAS_COPY EEXIST":
      return "unmap what is there first: nothing is replaced";
    case "IOMMU_IOAS_COPY EPERM":
      return "map it writeable first, then copy it so";
    case "IOMMU_IOAS_UNMAP ENOENT":
      return "unmap whole mappings, where something is mapped";
    case "IOMMU_IOAS_ALLOW_IOVAS EADDRINUSE":
      return "allow only what iovaRanges() lists";
    case "IOMMU_HWPT_ALLOC EOPNOTSUPP":
      return "ask hwInfo() first: this device's IOMMU can't track, or the kernel is older than Linux 6.7; use the device's own tracker";
    case "IOMMU_HWPT_SET_DIRTY_TRACKING EOPNOTSUPP":
    case "IOMMU_HWPT_GET_DIRTY_BITMAP EOPNOTSUPP":
      return "make the HWPT with dirtyTracking: true";
    case "IOMMU_OPTION EPERM":
      return "run with CAP_SYS_RESOURCE";
    case "IOMMU_OPTION EBUSY":
      return "set it before the first object is made";
    case "IOMMU_DESTROY EBUSY":
      return "destroy, detach or unbind its users first";
    default:
      return undefined;
  }
}

/** The first Linux that has an ioctl, where it is not 6.2, iommufd's own. */
const SINCE: ReadonlyMap<string, string> = new Map([
  ["IOMMU_HWPT_ALLOC", "6.6"],
  ["IOMMU_GET_HW_INFO", "6.6"],
  ["IOMMU_HWPT_SET_DIRTY_TRACKING", "6.7"],
  ["IOMMU_HWPT_GET_DIRTY_BITMAP", "6.7"],
  ["IOMMU_IOAS_MAP_FILE", "6.13"],
]);

/** What would help against ENOMEM where memory was to be pinned: who lacks CAP_IPC_LOCK may pin no more than its limit. */
export function lockedMemoryRemedy(): string {
  return `RLIMIT_MEMLOCK is ${lockedMemoryLimit()}: raise it (ulimit -l, LimitMEMLOCK= in a systemd unit, <memtune> in libvirt) above what devices may reach, or run with CAP_IPC_LOCK; if it is high enough, memory is short`;
}

/**
 * The same error with what would help, if that is known.
 * @param remedyFor who knows; default: what helps against errors of /dev/iommu
 */
export function withRemedy(error: unknown, remedyFor: (error: UapiError) => string | undefined = remedyOf): unknown {
  if (!(error instanceof UapiError) || error.remedy !== undefined || error.attempted === undefined) return error;
  const { code, syscall, attempted, cause } = error;
  const remedy = remedyFor(error);
  return remedy === undefined ? error : new UapiError(code, { syscall, attempted, remedy, cause });
}

/** RLIMIT_MEMLOCK of this process in words, from /proc/self/limits (proc_pid_limits(5)). */
export function lockedMemoryLimit(): string {
  try {
    const line = /^Max locked memory\s+(\S+)/m.exec(readFileSync("/proc/self/limits", "utf8"));
    if (line === null) return "unknown";
    return line[1] === "unlimited" ? "unlimited" : `${line[1]} bytes`;
  } catch {
    return "unknown";
  }
}
