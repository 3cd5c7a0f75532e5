import { UsageError } from "../errors.js";
import { iovaOf, PAGE_SIZE } from "../memory/address.js";
import { createGuestMemory, type GuestMemory, type Platform } from "../memory/guest-memory.js";
import type { PassthroughDescription } from "./description.js";
import type { KernelDesigns } from "./designs.js";
import type { AttachedDevice, Host, Iommufd, Machine, ObjectId, Vcpus, VfioDevice } from "./host.js";
import { NO_VCPUS } from "./no-vcpus.js";

/** The parts of a machine of passed-through devices. */
export interface PassthroughMachineOptions {
  /** The host of the devices. The caller keeps it, and closes it after the machine. */
  readonly host: Host;
  /** The devices: for each its id in the machine, and a name that the host's `openDevice` takes. */
  readonly devices: readonly { readonly id: string; readonly hostId: string }[];
  /** The guest's memory, or the number of bytes to make. */
  readonly memory: GuestMemory | number;
  /** The layout of addresses in memory that is made here, and in the description. Default: `pc`. */
  readonly platform?: Platform;
  /** The designs that the host's kernel has, for comparisons: a `Type1Host` has one. Default: none. */
  readonly designs?: KernelDesigns;
  /** The VMM's vCPUs. Default: none. */
  readonly vcpus?: Vcpus;
  /**
   * Returns true if the initiator may write into the target's BARs. The machine maps no BARs for peers: this function reports
   * what the VMM has mapped. Default: always false.
   */
  readonly mayP2p?: (initiator: string, target: string) => boolean;
}

/**
 * Makes a machine of devices of this host's kernel, for the author of a VMM. It maps the guest's memory into an IOAS, binds the
 * devices to one iommufd and attaches them. `probeMachine`, `openDesign` and `migrate` take the machine.
 *
 * The devices are RUNNING from then on, and may do DMA to all of the memory as soon as their drivers let them.
 *
 * @example
 * ```ts
 * import { chooseTrackers, createPassthroughMachine, DEFAULT_POLICY, GiB, openDesign, probeMachine } from "dirtmap";
 * import { LinuxHost } from "dirtmap/linux";
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
 * @throws UsageError `DUPLICATE_DEVICE`, `MEMORY_DOES_NOT_FIT`; UapiError if the kernel refuses. Nothing is left open then
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
 * A machine of devices of this host's kernel, made by {@link createPassthroughMachine}. If the kernel wants a device back
 * because it is being unplugged, the machine closes it, so that its removal can go on. Calls to it are then ENODEV.
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

  /** The description that `migrate` takes with this machine. The destination's machine must match it. */
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

  /** Closes the devices, the last first, and then unmaps the memory. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#releasing);
    for (const { vfio } of [...this.devices].reverse()) await vfio[Symbol.asyncDispose]();
    await this.#iommufd[Symbol.asyncDispose]();
  }
}
