import { hex } from "../../src/memory/address.js";

/*
 * What a sequence consists of: operations of iommufd as data, in the kernel's units, so that they can be printed, run
 * again and left out. Objects go by names (`ioas1`, `device2`, `hwpt3`), since the two hosts number them differently: the
 * kernel's mock devices have an object more.
 */

/** The name of an object: one that is there, was there or never was. */
export type Name = string;

/** Names of ids that no object ever has. */
export const ID_ZERO: Name = "id 0";
export const ID_LAST: Name = "id 0xffffffff";

/** IOMMU_IOAS_MAP_READABLE and _WRITEABLE. */
export type Permissions = "r" | "w" | "rw" | "";

export type Operation =
  | { readonly kind: "allocIoas"; readonly as: Name }
  | { readonly kind: "destroy"; readonly target: Name }
  | {
      readonly kind: "map";
      readonly ioas: Name;
      /** In bytes from the start of the memory that both hosts have. */
      readonly offset: number;
      readonly length: number;
      /** null: the host chooses. */
      readonly iova: bigint | null;
      readonly permissions: Permissions;
    }
  | {
      readonly kind: "copy";
      readonly from: Name;
      readonly iova: bigint;
      readonly length: bigint;
      readonly to: Name;
      readonly at: bigint | null;
      readonly permissions: Permissions;
    }
  | { readonly kind: "unmap"; readonly ioas: Name; readonly iova: bigint; readonly length: bigint }
  | { readonly kind: "iovaRanges"; readonly ioas: Name }
  | {
      readonly kind: "allowIovas";
      readonly ioas: Name;
      readonly ranges: readonly { readonly start: bigint; readonly last: bigint }[];
    }
  | { readonly kind: "setHugePages"; readonly ioas: Name; readonly value: number }
  | { readonly kind: "getHugePages"; readonly ioas: Name }
  | { readonly kind: "setRlimitMode"; readonly value: number }
  | { readonly kind: "getRlimitMode" }
  | {
      readonly kind: "addDevice";
      readonly as: Name;
      /** What an HWPT is named that the host makes for it. */
      readonly auto: Name;
      readonly pt: Name;
      readonly dirtyTracking: boolean;
    }
  | { readonly kind: "replace"; readonly device: Name; readonly auto: Name; readonly pt: Name }
  | { readonly kind: "removeDevice"; readonly device: Name }
  | { readonly kind: "hwInfo"; readonly device: Name }
  | {
      readonly kind: "allocHwpt";
      readonly as: Name;
      readonly device: Name;
      readonly ioas: Name;
      readonly dirtyTracking: boolean;
    }
  | { readonly kind: "setDirtyTracking"; readonly hwpt: Name; readonly on: boolean }
  /** A device writes to single IOMMU pages: `pages`, counted from `iova` in units of the smallest. */
  | { readonly kind: "mark"; readonly hwpt: Name; readonly iova: bigint; readonly pages: readonly number[] }
  | {
      readonly kind: "getDirtyBitmap";
      readonly hwpt: Name;
      readonly iova: bigint;
      readonly length: bigint;
      readonly pageSize: number;
      readonly clear: boolean;
      /** A bit that is set before, which must stay. */
      readonly preset: boolean;
    };

/** What a host answered: an errno, or what the operation returned. */
export interface Answer {
  /** What is compared, and printed. */
  readonly text: string;
  readonly ok: boolean;
  /** The IOVA that a mapping got. */
  readonly iova?: bigint;
  /** The HWPT that a device is attached to. */
  readonly hwpt?: Name;
}

/** One line for a person to read. */
export function describeOperation(op: Operation): string {
  switch (op.kind) {
    case "allocIoas":
      return `${op.as} = allocIoas()`;
    case "destroy":
      return `destroy(${op.target})`;
    case "map": {
      const where = op.iova === null ? "where there is room" : `at ${hex(op.iova)}`;
      return `map(${op.ioas}, memory ${hex(op.offset)}, ${hex(op.length)} bytes, ${where}, "${op.permissions}")`;
    }
    case "copy": {
      const where = op.at === null ? "where there is room" : `at ${hex(op.at)}`;
      return `copy(${op.from} ${hex(op.iova)}, ${hex(op.length)} bytes, to ${op.to} ${where}, "${op.permissions}")`;
    }
    case "unmap":
      return `unmap(${op.ioas}, ${hex(op.iova)}, ${hex(op.length)} bytes)`;
    case "iovaRanges":
      return `iovaRanges(${op.ioas})`;
    case "allowIovas":
      return `allowIovas(${op.ioas}, [${op.ranges.map(({ start, last }) => `${hex(start)}-${hex(last)}`).join(", ")}])`;
    case "setHugePages":
      return `setOption(HUGE_PAGES of ${op.ioas}, ${op.value})`;
    case "getHugePages":
      return `getOption(HUGE_PAGES of ${op.ioas})`;
    case "setRlimitMode":
      return `setOption(RLIMIT_MODE, ${op.value})`;
    case "getRlimitMode":
      return "getOption(RLIMIT_MODE)";
    case "addDevice":
      return `${op.as} = a device ${op.dirtyTracking ? "" : "without dirty tracking "}attached to ${op.pt}`;
    case "replace":
      return `attach(${op.device}, ${op.pt}) instead`;
    case "removeDevice":
      return `remove ${op.device}`;
    case "hwInfo":
      return `hwInfo(${op.device})`;
    case "allocHwpt":
      return `${op.as} = allocHwpt(${op.device}, ${op.ioas}${op.dirtyTracking ? ", dirty tracking" : ""})`;
    case "setDirtyTracking":
      return `setDirtyTracking(${op.hwpt}, ${op.on ? "on" : "off"})`;
    case "mark":
      return `a device writes through ${op.hwpt} to pages ${op.pages.join(", ")} from ${hex(op.iova)} on`;
    case "getDirtyBitmap":
      return (
        `getDirtyBitmap(${op.hwpt}, ${hex(op.iova)}, ${hex(op.length)} bytes, page size ${op.pageSize}` +
        `${op.clear ? "" : ", NO_CLEAR"}${op.preset ? ", last bit set before" : ""})`
      );
  }
}
