import type { IrqInfo } from "../../host/host.js";
import { EventFd, isEventFd } from "../../sys/eventfd.js";
import { POLLOUT, PollSet } from "../../sys/poll.js";
import { VFIO_IRQ_INFO_EVENTFD, VFIO_PCI_IRQ_INDEX } from "../../uapi/vfio.js";
import { VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_INFO_NORESIZE } from "../../uapi/vfio-user.js";
import { refusal } from "./refusal.js";

/** VFIO_PCI_NUM_IRQS: a PCI device has all indices, some with no interrupt. */
export const PCI_IRQS = 5;

const SET_IRQS = "VFIO_USER_DEVICE_SET_IRQS";

/** What is done to interrupts. */
export type IrqAction = "mask" | "unmask" | "trigger";

/** An interrupt, as its client has set it up. */
interface Vector {
  trigger: EventFd | undefined;
  /** To be polled before a write, which would block where the client keeps the counter at its limit. */
  room: PollSet | undefined;
  masked: boolean;
  /** It came while it was masked. */
  pending: boolean;
}

/**
 * A device's interrupts, which reach the client by eventfds. They belong to the client: when it goes, so do they.
 *
 * INTx is a level. It masks itself when it is sent, until the client unmasks it, by a command or by an eventfd of its own
 * that KVM signals at the guest's end of interrupt; if the device still asserts it, it is sent again. MSI and MSI-X are
 * masked by command, and one that comes while it is masked is sent once when it is unmasked. A vector without an eventfd, of
 * a type that is in use, counts as masked: QEMU gives a vector of MSI-X its eventfd only when the guest first unmasks it. Only
 * one of INTx, MSI and MSI-X is in use at a time, as in the kernel (drivers/vfio/pci/vfio_pci_intrs.c).
 */
export class Irqs {
  readonly #vectors: readonly Vector[][];
  /** Of INTx, MSI and MSI-X the one in use. */
  #active: number | null = null;
  #unmask: EventFd | undefined;
  /** The device asserts INTx, whether or not a client listens. */
  #asserted = false;

  constructor(infos: readonly IrqInfo[]) {
    const counts = Array.from(
      { length: PCI_IRQS },
      (_, index) => infos.find((info) => info.index === index)?.count ?? 0,
    );
    // Every device can say that it has failed, and that its server goes away.
    counts[VFIO_PCI_IRQ_INDEX.ERR] = 1;
    counts[VFIO_PCI_IRQ_INDEX.REQ] = 1;
    this.#vectors = counts.map((count) =>
      Array.from({ length: count }, () => ({ trigger: undefined, room: undefined, masked: false, pending: false })),
    );
  }

  /** struct vfio_irq_info of an index. @throws UapiError EINVAL */
  info(index: number): { count: number; flags: number } {
    const vectors = this.#vectors[index];
    if (vectors === undefined) {
      throw refusal(
        "EINVAL",
        "VFIO_USER_DEVICE_GET_IRQ_INFO",
        `ask for interrupt type ${index}`,
        `give 0 to ${PCI_IRQS - 1}`,
      );
    }
    let flags = VFIO_IRQ_INFO_EVENTFD;
    if (index === VFIO_PCI_IRQ_INDEX.INTX) flags |= VFIO_IRQ_INFO_AUTOMASKED;
    if (index <= VFIO_PCI_IRQ_INDEX.MSIX) flags |= VFIO_IRQ_INFO_MASKABLE;
    else flags |= VFIO_IRQ_INFO_NORESIZE;
    return { count: vectors.length, flags };
  }

  /** The device raises an interrupt. One of a type that is not in use is lost, as with real hardware. */
  raise(index: number, vector: number): void {
    const entry = this.#vectors[index]?.[vector];
    if (entry === undefined) return;
    if (index === VFIO_PCI_IRQ_INDEX.INTX) this.#asserted = true;
    this.#send(index, entry);
  }

  /** The device asserts INTx no longer. */
  lowerIntx(): void {
    this.#asserted = false;
    for (const entry of this.#vectors[VFIO_PCI_IRQ_INDEX.INTX]) entry.pending = false;
  }

  /** A descriptor that is readable when the client unmasks INTx by it; -1: there is none. */
  get unmaskFd(): number {
    return this.#unmask?.fd ?? -1;
  }

  /** {@link unmaskFd} was readable. */
  takeUnmask(): void {
    if (this.#unmask === undefined || this.#unmask.take() === 0n) return;
    const intx = this.#vectors[VFIO_PCI_IRQ_INDEX.INTX][0];
    if (intx !== undefined) this.#setMask(VFIO_PCI_IRQ_INDEX.INTX, intx, false);
  }

  /** Disables an interrupt type: DATA_NONE, ACTION_TRIGGER and a count of 0. */
  disable(index: number): void {
    for (const entry of this.#vectors[index]) release(entry);
    if (index === VFIO_PCI_IRQ_INDEX.INTX) this.#setUnmask(undefined);
    if (this.#active === index) this.#active = null;
  }

  /**
   * Does something to the interrupts from `start` on: to each whose place in `chosen` is true, or to all.
   * @param range inside the type's count
   * @throws UapiError EINVAL for a type that is not in use, ENOTTY for what a type can't
   */
  act(action: IrqAction, index: number, range: { start: number; count: number }, chosen?: readonly boolean[]): void {
    const isMsi = index <= VFIO_PCI_IRQ_INDEX.MSIX;
    if (!isMsi && action !== "trigger") throw notThat(index, action);
    if (isMsi && this.#active !== index) {
      throw refusal(
        "EINVAL",
        SET_IRQS,
        `${action} interrupts of type ${index}`,
        "give it eventfds first: it is not in use",
      );
    }
    for (let i = 0; i < range.count; i++) {
      if (chosen !== undefined && !chosen[i]) continue;
      const entry = this.#vectors[index][range.start + i];
      if (action === "trigger") this.#send(index, entry);
      else this.#setMask(index, entry, action === "mask");
    }
  }

  /**
   * Sets, replaces or takes away eventfds.
   * @param fds one per interrupt, taken over if this does not throw; undefined: take them away
   * @throws UapiError EINVAL for a descriptor that is no eventfd, or while another type is in use; ENOTTY
   */
  setEventFds(
    action: IrqAction,
    index: number,
    { start, count }: { start: number; count: number },
    fds: readonly number[] | undefined,
  ): void {
    for (const fd of fds ?? []) {
      if (!isEventFd(fd)) throw refusal("EINVAL", SET_IRQS, "set an interrupt's descriptor", "send an eventfd");
    }
    if (action === "unmask" && index === VFIO_PCI_IRQ_INDEX.INTX) {
      if (this.#active !== index)
        throw refusal("EINVAL", SET_IRQS, "unmask INTx, which is not in use", "give it an eventfd first");
      this.#setUnmask(fds?.[0]);
      return;
    }
    if (action !== "trigger") throw notThat(index, `${action} by eventfd`);
    if (index <= VFIO_PCI_IRQ_INDEX.MSIX) {
      if (this.#active !== null && this.#active !== index) {
        throw refusal("EINVAL", SET_IRQS, `set interrupts of type ${index}`, `disable type ${this.#active} first`);
      }
      this.#active = index;
    }
    for (let i = 0; i < count; i++) {
      const entry = this.#vectors[index][start + i];
      entry.trigger?.[Symbol.dispose]();
      entry.trigger = fds === undefined ? undefined : new EventFd(fds[i]);
      entry.room = fds === undefined ? undefined : new PollSet([{ fd: fds[i], events: POLLOUT }]);
      if (!entry.masked) this.#sendHeld(index, entry);
    }
  }

  /** The client has gone: closes all, and forgets masks. */
  clear(): void {
    for (let index = 0; index < this.#vectors.length; index++) this.disable(index);
  }

  #send(index: number, entry: Vector): void {
    if (entry.masked || entry.trigger === undefined || entry.room === undefined) {
      entry.pending = this.#active === index;
      return;
    }
    // INTx is a level: it stays until it is served, and would come again at once.
    if (index === VFIO_PCI_IRQ_INDEX.INTX) entry.masked = true;
    if (entry.room.wait(0) > 0) entry.trigger.signal();
  }

  #setMask(index: number, entry: Vector, masked: boolean): void {
    entry.masked = masked;
    if (!masked) this.#sendHeld(index, entry);
  }

  /** Sends what came while it could not be sent. */
  #sendHeld(index: number, entry: Vector): void {
    if (!entry.pending && !(index === VFIO_PCI_IRQ_INDEX.INTX && this.#asserted)) return;
    entry.pending = false;
    this.#send(index, entry);
  }

  #setUnmask(fd: number | undefined): void {
    this.#unmask?.[Symbol.dispose]();
    this.#unmask = fd === undefined ? undefined : new EventFd(fd);
  }
}

function release(entry: Vector): void {
  entry.trigger?.[Symbol.dispose]();
  entry.trigger = undefined;
  entry.room = undefined;
  entry.masked = false;
  entry.pending = false;
}

function notThat(index: number, action: string): Error {
  return refusal("ENOTTY", SET_IRQS, `${action} interrupts of type ${index}`, "it can't");
}
