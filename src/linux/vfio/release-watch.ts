import { EventFd } from "../../sys/eventfd.js";
import type { OpenFile } from "../../sys/open-file.js";
import {
  VFIO_DEVICE_SET_IRQS,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_PCI_IRQ_INDEX,
  vfio_irq_set,
} from "../../uapi/vfio.js";

/** How often the eventfd is looked at. The kernel repeats its request every 10 s, and removes nothing until it is heeded. */
const INTERVAL_MS = 200;

/**
 * Watches for the kernel's request that a device be released, since it is being unplugged or unbound
 * (VFIO_PCI_REQ_IRQ_INDEX). A look now and then instead of a thread that waits: there may be many devices.
 */
export class ReleaseWatch implements Disposable {
  readonly #eventfd: EventFd;
  readonly #timer: NodeJS.Timeout;

  private constructor(eventfd: EventFd, onRequest: () => void) {
    this.#eventfd = eventfd;
    this.#timer = setInterval(() => {
      if (eventfd.take() > 0n) onRequest();
    }, INTERVAL_MS);
    // The watch alone keeps no process alive.
    this.#timer.unref();
  }

  /** @throws UapiError */
  static start(file: OpenFile, onRequest: () => void): ReleaseWatch {
    const eventfd = EventFd.create();
    try {
      const argsz = vfio_irq_set.size + 4;
      const argument = vfio_irq_set.encode(
        {
          argsz,
          flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
          index: VFIO_PCI_IRQ_INDEX.REQ,
          start: 0,
          count: 1,
        },
        new Uint8Array(argsz),
      );
      new DataView(argument.buffer).setInt32(vfio_irq_set.size, eventfd.fd, true);
      file.ioctl(VFIO_DEVICE_SET_IRQS, argument, () => `be told when '${file.name}' is to be released`);
      return new ReleaseWatch(eventfd, onRequest);
    } catch (error) {
      eventfd[Symbol.dispose]();
      throw error;
    }
  }

  /** After the device is closed, or before: the kernel holds the eventfd on its own. */
  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#eventfd[Symbol.dispose]();
  }
}
