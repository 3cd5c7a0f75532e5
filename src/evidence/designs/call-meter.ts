import type { DirtyBitmap } from "../../bitmap/dirty-bitmap.js";
import type { AttachedDevice, Iommufd, Machine, VfioDevice } from "../../host/host.js";
import type { CallCounts } from "./result.js";

const NOTHING: CallCounts = { calls: 0, innerCalls: 0, trackerReads: 0, bitmapBytes: 0 };

/** The calls that read a tracker. */
const TRACKER_READS = new Set(["getDirtyBitmap", "reportDmaLogging"]);

/**
 * Counts the calls that are made of a machine's iommufds, devices and container designs, by standing in front of them. One
 * call at a time is understood: what is called while another is under way counts as made by that one.
 */
export class CallMeter {
  /** The machine, with every call counted. */
  readonly machine: Machine;
  #counts: CallCounts = NOTHING;
  #depth = 0;
  #enteredAt = 0;
  #insideMs = 0;

  constructor(machine: Machine) {
    const iommufds = new Map<Iommufd, Iommufd>();
    const iommufdOf = (iommufd: Iommufd) => {
      const known = iommufds.get(iommufd) ?? this.#counting(iommufd);
      iommufds.set(iommufd, known);
      return known;
    };
    const devices: AttachedDevice[] = machine.devices.map((device) => ({
      ...device,
      vfio: this.#counting<VfioDevice>(device.vfio),
      iommufd: iommufdOf(device.iommufd),
    }));
    const { designs } = machine;
    const counted: Pick<Machine, "devices" | "designs"> = {
      devices,
      ...(designs === undefined
        ? {}
        : {
            designs: {
              openContainer: async (args) =>
                this.#counting(await this.#call("openContainer", [], () => designs.openContainer(args))),
            },
          }),
    };
    this.machine = new Proxy(machine, {
      get: (target, name) => (name in counted ? Reflect.get(counted, name) : bound(target, name)),
    });
  }

  /** True while a counted call is under way: who allocates now does so on the other side. */
  get inside(): boolean {
    return this.#depth > 0;
  }

  /** What was counted since the last time this was asked. */
  take(): CallCounts {
    const counts = this.#counts;
    this.#counts = NOTHING;
    return counts;
  }

  /** Milliseconds from the beginning to the end of the reader's calls, since the last time this was asked. */
  takeInsideMs(): number {
    const ms = this.#insideMs;
    this.#insideMs = 0;
    return ms;
  }

  #counting<T extends object>(object: T): T {
    return new Proxy(object, {
      get: (target, name) => {
        const value = bound(target, name);
        if (typeof value !== "function" || typeof name === "symbol") return value;
        return (...args: unknown[]) => this.#call(name, args, () => value(...args));
      },
    });
  }

  #call<T>(name: string, args: readonly unknown[], run: () => T): T {
    const isOuter = this.#depth === 0;
    this.#counts = {
      calls: this.#counts.calls + (isOuter ? 1 : 0),
      innerCalls: this.#counts.innerCalls + (isOuter ? 0 : 1),
      trackerReads: this.#counts.trackerReads + (TRACKER_READS.has(name) ? 1 : 0),
      bitmapBytes: this.#counts.bitmapBytes + (isOuter ? bitmapBytes(args) : 0),
    };
    if (this.#depth++ === 0) this.#enteredAt = performance.now();
    const leave = () => {
      if (--this.#depth === 0) this.#insideMs += performance.now() - this.#enteredAt;
    };
    let result: T;
    try {
      result = run();
    } catch (error) {
      leave();
      throw error;
    }
    if (!(result instanceof Promise)) {
      leave();
      return result;
    }
    return result.finally(leave) as T;
  }
}

/** A property of an object with private fields, which its methods must be called on. */
function bound(target: object, name: string | symbol): unknown {
  const value: unknown = Reflect.get(target, name, target);
  return typeof value === "function" ? value.bind(target) : value;
}

/** Bytes that the bits of a call's bitmaps take. */
function bitmapBytes(args: readonly unknown[]): number {
  return args.reduce<number>((sum, argument) => {
    const into = (argument as { into?: DirtyBitmap } | undefined)?.into;
    return sum + (into === undefined ? 0 : Math.ceil(into.bits / 8));
  }, 0);
}
