import { U64_MAX } from "../../src/memory/address.js";
import type { Answer, Name, Operation, Permissions } from "./operation.js";
import { larger, smaller } from "./units.js";

/** What an IOAS maps at an IOVA. */
export interface ModelArea {
  readonly iova: bigint;
  readonly length: bigint;
  readonly permissions: Permissions;
}

export type ModelObject =
  | { readonly kind: "ioas"; areas: ModelArea[] }
  | { readonly kind: "device"; readonly dirtyTracking: boolean; hwpt: Name }
  | {
      readonly kind: "hwpt";
      readonly ioas: Name;
      readonly dirtyTracking: boolean;
      readonly auto: boolean;
      tracking: boolean;
    };

/**
 * What is there, as far as the answers so far tell: the generator looks here for operations that mean something. It
 * predicts no answer; it only notes what both hosts have agreed on.
 */
export class Model {
  readonly objects = new Map<Name, ModelObject>();
  /** Names of objects that are gone. */
  readonly gone: Name[] = [];
  /** What devices have last written to. */
  marked: { readonly hwpt: Name; readonly iova: bigint; readonly pages: readonly number[] } | null = null;
  #count = 0;

  /** A name that was not used before. */
  fresh(prefix: string): Name {
    this.#count++;
    return `${prefix}${this.#count}`;
  }

  /** Names of what is there, of one kind. */
  names(kind: ModelObject["kind"]): Name[] {
    return [...this.objects].filter(([, object]) => object.kind === kind).map(([name]) => name);
  }

  /** By ascending IOVA; empty for what is no IOAS. */
  areas(ioas: Name): readonly ModelArea[] {
    const object = this.objects.get(ioas);
    return object?.kind === "ioas" ? object.areas : [];
  }

  /** The areas that an HWPT shows. */
  areasOf(hwpt: Name): readonly ModelArea[] {
    const object = this.objects.get(hwpt);
    return object?.kind === "hwpt" ? this.areas(object.ioas) : [];
  }

  /** Notes what an operation did; returns the names of the objects that it ended. */
  apply(op: Operation, answer: Answer): Name[] {
    if (op.kind === "unmap") this.#unmap(op.ioas, op.iova, op.length);
    if (!answer.ok) return [];
    switch (op.kind) {
      case "allocIoas":
        this.objects.set(op.as, { kind: "ioas", areas: [] });
        return [];
      case "destroy":
        return this.#end(op.target);
      case "map":
        this.#insert(op.ioas, { iova: answer.iova ?? 0n, length: BigInt(op.length), permissions: op.permissions });
        return [];
      case "copy": {
        // Copied areas stay apart.
        let at = answer.iova ?? 0n;
        for (const { iova, length } of this.areas(op.from).slice()) {
          const start = larger(iova, op.iova);
          const end = smaller(iova + length, op.iova + op.length);
          if (end <= start) continue;
          this.#insert(op.to, { iova: at, length: end - start, permissions: op.permissions });
          at += end - start;
        }
        return [];
      }
      case "addDevice":
        this.objects.set(op.as, { kind: "device", dirtyTracking: op.dirtyTracking, hwpt: "" });
        return this.#attach(op.as, op.pt, answer);
      case "replace":
        return this.#attach(op.device, op.pt, answer);
      case "removeDevice": {
        const device = this.objects.get(op.device);
        return [...this.#end(op.device), ...(device?.kind === "device" ? this.#left(device.hwpt) : [])];
      }
      case "allocHwpt":
        this.objects.set(op.as, {
          kind: "hwpt",
          ioas: op.ioas,
          dirtyTracking: op.dirtyTracking,
          auto: false,
          tracking: false,
        });
        return [];
      case "mark":
        this.marked = op;
        return [];
      case "setDirtyTracking": {
        const hwpt = this.objects.get(op.hwpt);
        if (hwpt?.kind === "hwpt") hwpt.tracking = op.on;
        return [];
      }
      default:
        return [];
    }
  }

  #insert(ioas: Name, area: ModelArea): void {
    const object = this.objects.get(ioas);
    if (object?.kind !== "ioas") return;
    object.areas = [...object.areas, area].sort((a, b) => (a.iova < b.iova ? -1 : 1));
  }

  /** An unmap that is refused at an area that is partly outside has unmapped those below. */
  #unmap(ioas: Name, iova: bigint, length: bigint): void {
    const object = this.objects.get(ioas);
    if (object?.kind !== "ioas") return;
    const everything = iova === 0n && length === U64_MAX;
    const last = everything ? U64_MAX : iova + length - 1n;
    if (!everything && (iova >= U64_MAX || length >= U64_MAX || length === 0n || last > U64_MAX)) return;
    let stopped = false;
    object.areas = object.areas.filter((area) => {
      const areaLast = area.iova + area.length - 1n;
      if (stopped || areaLast < iova || area.iova > last) return true;
      stopped = area.iova < iova || areaLast > last;
      return stopped;
    });
  }

  #attach(name: Name, pt: Name, { hwpt }: Answer): Name[] {
    const device = this.objects.get(name);
    if (device?.kind !== "device" || hwpt === undefined) return [];
    if (!this.objects.has(hwpt)) {
      this.objects.set(hwpt, { kind: "hwpt", ioas: pt, dirtyTracking: false, auto: true, tracking: false });
    }
    const old = device.hwpt;
    device.hwpt = hwpt;
    return this.#left(old);
  }

  /** An automatic HWPT ends with its last device. */
  #left(hwpt: Name): Name[] {
    const object = this.objects.get(hwpt);
    if (object?.kind !== "hwpt" || !object.auto) return [];
    for (const device of this.objects.values()) if (device.kind === "device" && device.hwpt === hwpt) return [];
    return this.#end(hwpt);
  }

  #end(name: Name): Name[] {
    if (!this.objects.delete(name)) return [];
    this.gone.push(name);
    return [name];
  }
}
