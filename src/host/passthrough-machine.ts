import { UsageError } from "../errors.js";
import { iovaOf, PAGE_SIZE } from "../memory/address.js";
import { createGuestMemory, type GuestMemory, type Platform } from "../memory/guest-memory.js";
import type { PassthroughDescription } from "./description.js";
import type { KernelDesigns } from "./designs.js";
import type { AttachedDevice, Host, Iommufd, Machine, ObjectId, Vcpus, VfioDevice } from "./host.js";
import { NO_VCPUS } from "./no-vcpus.js";

/** What a machine of passed-through devices is made of. */
export interface PassthroughMachineOptions {
  /** Where its devices come from. It stays the caller's, who closes it after the machine. */
  readonly host: Host;
  /** Which devices: the id that the machine gives each, and a name that the host's `openDevice` takes. */
  readonly devices: readonly { readonly id: string; readonly hostId: string }[];
  /** The guest's memory; in bytes, it is made. */
  readonly memory: GuestMemory | number;
  /** How addresses are laid out in memory that is made, and what a destination is told. Default `pc`. */
  readonly platform?: Platform;
  /** The designs that the host's kernel has, for who compares them: a `Type1Host` has one. Default: none. */
  readonly designs?: KernelDesigns;
  /** The VMM's vCPUs. Default: none. */
  readonly vcpus?: Vcpus;
  /**
   * May the initiator write into the target's BARs? Nothing maps BARs for peers here; it tells what the VMM has mapped.
   * Default: nobody may.
   */
  readonly mayP2p?: (initiator: string, target: string) => boolean;
}

/**
 * Makes a machine of devices of this host's kernel, for who writes a VMM: maps the guest's memory into an IOAS, binds the
 * devices to one iommufd and attaches them. What is made can be given to `probeMachine`, `openDesign` and `migrate`.
 *
 * The devices are RUNNING from then on, and may do DMA to all of the memory as soon as their drivers let them.
 *
 * @example
 * ```ts
 * import { chooseTrackers, DEFAULT_POLICY, GiB, openDesign, probeMachine } from "dirtmap";
 * import { createPassthroughMachine, LinuxHost } from "dirtmap/linux";
 *
 * await using host = new LinuxHost();
 * await using machine = await createPassthroughMachine({
 *   host,
 *   devices: [{ id: "vf0", hostId: "0000:3b:00.1" }],
 *   memory: 4 * GiB,
 * });
 * const choices = chooseTrackers(await probeMachine(machine), DEFAULT_POLICY);
 * await using tracking = await openDesign("split", machine, choices);
 * await tracking.start();
 * const { dirty } = await tracking.read({ quiesced: false });
 * console.log(`${dirty.bytes} bytes are dirty`);
 * ```
 * @throws UsageError `DUPLICATE_DEVICE`, `MEMORY_DOES_NOT_FIT`; UapiError where the kernel refuses. Then nothing is left
 */
export async function createPassthroughMachine(options: PassthroughMachineOptions): Promise<PassthroughMachine> {
  const { host, devices, platform = "pc" } = options;
  for (const key of ["id", "hostId"] as const) {
    const twice = devices.find((device, index) => devices.findIndex((other) => other[key] === device[key]) !== index);
    if (twice === undefined) continue;
    throw new UsageError(`the device '${twice[key]}' is there twice`, {
      code: "DUPLICATE_DEVICE",
      remedy: "give each device once, with an id of its own",
    });
  }
  const memory = typeof options.memory === "number" ? createGuestMemory(options.memory, platform) : options.memory;
  const iommufd = await host.openIommufd();
  const machine = new PassthroughMachine({ ...options, platform, memory }, iommufd);
  try {
    const ioas = await iommufd.allocIoas();
    // Devices first: a type1 container has no address space without one.
    await machine.open(ioas);
    for (const { firstPage, pages, arena, arenaPage, writeable } of memory.regions) {
      const span = { arena: memory.arenas[arena], offset: arenaPage * PAGE_SIZE, length: pages * PAGE_SIZE };
      await iommufd.map(ioas, span, { iova: iovaOf(firstPage), readable: true, writeable });
    }
    return machine;
  } catch (error) {
    await machine[Symbol.asyncDispose]();
    throw error;
  }
}

/**
 * A machine of devices of this host's kernel. A device that the kernel wants back, since it is being unplugged, is closed, so
 * that its removal can go on; what is asked of it then is refused with ENODEV. Made by {@link createPassthroughMachine}.
 */
export class PassthroughMachine implements Machine {
  readonly memory: GuestMemory;
  readonly vcpus: Vcpus;
  readonly devices: AttachedDevice[] = [];
  readonly designs?: KernelDesigns;
  readonly #options: PassthroughMachineOptions & { readonly platform: Platform };
  readonly #iommufd: Iommufd;
  readonly #unreachable = new Set<string>();
  /** Devices that the kernel wanted back, being closed. */
  readonly #releasing: Promise<void>[] = [];

  /** For {@link createPassthroughMachine}. */
  constructor(
    options: PassthroughMachineOptions & { readonly platform: Platform; readonly memory: GuestMemory },
    iommufd: Iommufd,
  ) {
    this.memory = options.memory;
    this.vcpus = options.vcpus ?? NO_VCPUS;
    if (options.designs !== undefined) this.designs = options.designs;
    this.#options = options;
    this.#iommufd = iommufd;
  }

  /** What a destination must have the like of: the description to {@link migrate} this machine with. */
  get description(): PassthroughDescription {
    return {
      kind: "passthrough",
      memory: this.memory.bytes,
      platform: this.#options.platform,
      vcpus: this.vcpus.count,
      devices: this.devices.map(({ id, model }) => ({ id, model })),
    };
  }

  /** Opens, binds and attaches the devices, for {@link createPassthroughMachine}. @throws UapiError */
  async open(ioas: ObjectId): Promise<void> {
    const { host, devices } = this.#options;
    const known = devices.length === 0 ? [] : await host.devices();
    for (const { id, hostId } of devices) {
      const vfio = await host.openDevice(hostId);
      try {
        const deviceId = await vfio.bind(this.#iommufd);
        await vfio.attach(ioas);
        const mdev = known.find((device) => device.id === vfio.id)?.kind === "mdev";
        this.devices.push({ id, model: vfio.model, vfio, iommufd: this.#iommufd, deviceId, ioas, mdev });
      } catch (error) {
        await vfio[Symbol.asyncDispose]();
        throw error;
      }
      vfio.released?.addEventListener("abort", () => this.#release(vfio), { once: true });
    }
  }

  mayP2p(initiator: string, target: string): boolean {
    if (initiator === target || this.#unreachable.has(target)) return false;
    return this.#options.mayP2p?.(initiator, target) ?? false;
  }

  async setP2pReachable(device: string, reachable: boolean): Promise<void> {
    if (reachable) this.#unreachable.delete(device);
    else this.#unreachable.add(device);
  }

  /** What fails here fails in the kernel's log as well: nobody is there to be told. */
  #release(vfio: VfioDevice): void {
    this.#releasing.push(Promise.resolve(vfio[Symbol.asyncDispose]()).catch(() => undefined));
  }

  /** Closes the devices, the last first, and then lets go of the memory. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#releasing);
    for (const { vfio } of [...this.devices].reverse()) await vfio[Symbol.asyncDispose]();
    await this.#iommufd[Symbol.asyncDispose]();
  }
}
