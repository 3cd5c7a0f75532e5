import type { AttachedDevice, Iommufd, Machine, ObjectId } from "../host/host.js";
import { type Iova, iovaOf, PAGE_SIZE } from "../memory/address.js";
import { isErrno } from "../uapi/errno.js";
import type { DomainChoice, TrackerChoice } from "./choice.js";
import { UndoStack } from "./undo.js";

/** A domain that was made, with the devices that were attached to it. */
export interface ArrangedDomain {
  readonly iommufd: Iommufd;
  /** The HWPT, or the emulated IOMMU. */
  readonly id: ObjectId;
  readonly type: DomainChoice["type"];
  readonly dirtyTracking: boolean;
  /** In the order of the choices. */
  readonly devices: readonly string[];
}

/** Devices attached as was chosen. Disposing attaches them to what they were attached to before. */
export interface Arrangement extends AsyncDisposable {
  readonly domains: readonly ArrangedDomain[];
  /** The IOASes that hold the machine's mappings now: who unmaps memory must do so in all of them. */
  readonly ioases: readonly { readonly iommufd: Iommufd; readonly ioas: ObjectId }[];
}

interface OpenDomain {
  readonly choice: DomainChoice;
  readonly sourceIoas: ObjectId;
  readonly iommufd: Iommufd;
  readonly id: ObjectId;
  readonly devices: string[];
}

/**
 * Makes the chosen domains on a running machine: an IOAS with small pages where a granule demands it, HWPTs with or
 * without dirty tracking, emulated IOMMUs; then replaces what each device is attached to, without a moment in which its
 * DMA is blocked. Devices that can't share an HWPT (they sit behind different IOMMUs) get one each.
 * @throws UapiError; then all is as before
 */
export async function arrange(
  machine: Machine,
  choices: readonly TrackerChoice[],
  signal?: AbortSignal,
): Promise<Arrangement> {
  const undo = new UndoStack();
  const ioases = new IoasPool(machine, undo);
  const domains: OpenDomain[] = [];
  try {
    for (const { device: id, domain } of choices) {
      signal?.throwIfAborted();
      const device = machine.devices.find((candidate) => candidate.id === id);
      if (domain === null || device === undefined) continue;
      const shared = await joinDomain(device, domain, domains, undo);
      if (!shared) domains.push(await openDomain(device, domain, ioases, undo));
    }
  } catch (error) {
    return undo.undoBecauseOf(error);
  }
  return {
    domains: domains.map(({ iommufd, id, choice, devices }) => {
      return { iommufd, id, type: choice.type, dirtyTracking: choice.dirtyTracking, devices };
    }),
    ioases: ioases.all(),
    [Symbol.asyncDispose]: () => undo.undo(),
  };
}

/** Attaches a device to a domain of its key that is there already. False where there is none that it can share. */
async function joinDomain(
  device: AttachedDevice,
  choice: DomainChoice,
  domains: readonly OpenDomain[],
  undo: UndoStack,
): Promise<boolean> {
  for (const domain of domains) {
    const { iommufd, sourceIoas } = domain;
    if (domain.choice.key !== choice.key || iommufd !== device.iommufd || sourceIoas !== device.ioas) continue;
    try {
      await attach(device, domain.id, undo);
    } catch (error) {
      // The kernel's answer for an HWPT of an IOMMU that is not the device's.
      if (isErrno(error, "EINVAL")) continue;
      throw error;
    }
    domain.devices.push(device.id);
    return true;
  }
  return false;
}

async function openDomain(
  device: AttachedDevice,
  choice: DomainChoice,
  ioases: IoasPool,
  undo: UndoStack,
): Promise<OpenDomain> {
  const { iommufd, deviceId } = device;
  const ioas = choice.hugePages ? device.ioas : await ioases.withSmallPages(device);
  const id =
    choice.type === "emulated"
      ? await iommufd.allocEmulatedIommu(ioas)
      : await iommufd.allocHwpt({ device: deviceId, ioas, dirtyTracking: choice.dirtyTracking });
  undo.add(`destroy the domain of ${device.id}`, () => iommufd.destroy(id));
  await attach(device, id, undo);
  return { choice, sourceIoas: device.ioas, iommufd, id, devices: [device.id] };
}

async function attach(device: AttachedDevice, id: ObjectId, undo: UndoStack): Promise<void> {
  await device.vfio.attach(id);
  undo.add(`attach ${device.id} to its IOAS`, () => device.vfio.attach(device.ioas));
}

/** The IOASes with small pages, one for each that devices are mapped in: HWPTs can share it. */
class IoasPool {
  readonly #machine: Machine;
  readonly #undo: UndoStack;
  readonly #small: { readonly iommufd: Iommufd; readonly source: ObjectId; readonly ioas: ObjectId }[] = [];

  constructor(machine: Machine, undo: UndoStack) {
    this.#machine = machine;
    this.#undo = undo;
  }

  async withSmallPages({ iommufd, ioas: source }: AttachedDevice): Promise<ObjectId> {
    const known = this.#small.find((entry) => entry.iommufd === iommufd && entry.source === source);
    if (known !== undefined) return known.ioas;
    const ioas = await iommufd.allocIoas();
    this.#undo.add("destroy the IOAS with small pages", () => iommufd.destroy(ioas));
    // Before anything is mapped: Linux refuses the option once domains hold mappings.
    await iommufd.setOption({ option: "HUGE_PAGES", ioas }, 0);
    for (const { iova, length, writeable } of mappings(this.#machine)) {
      await iommufd.copy({ ioas: source, iova, length }, { ioas, iova, readable: true, writeable });
    }
    this.#small.push({ iommufd, source, ioas });
    return ioas;
  }

  all(): Arrangement["ioases"] {
    const found: { iommufd: Iommufd; ioas: ObjectId }[] = [];
    const add = (iommufd: Iommufd, ioas: ObjectId) => {
      if (!found.some((entry) => entry.iommufd === iommufd && entry.ioas === ioas)) found.push({ iommufd, ioas });
    };
    for (const { iommufd, ioas } of this.#machine.devices) add(iommufd, ioas);
    for (const { iommufd, ioas } of this.#small) add(iommufd, ioas);
    return found;
  }
}

/** What is mapped for DMA: RAM and ROM, and the BARs that peers may reach. */
function mappings({ memory, peerMappings = [] }: Machine): { iova: Iova; length: bigint; writeable: boolean }[] {
  return [
    ...memory.regions.map(({ firstPage, pages, writeable }) => {
      return { iova: iovaOf(firstPage), length: BigInt(pages) * BigInt(PAGE_SIZE), writeable };
    }),
    ...peerMappings.map(({ iova, length }) => ({ iova, length, writeable: true })),
  ];
}
