import {
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_DATA_EVENTFD,
  vfio_irq_info,
  vfio_irq_set,
} from "../../uapi/vfio.js";
import {
  VFIO_IRQ_SET_ACTION_MASK,
  VFIO_IRQ_SET_ACTION_TYPE_MASK,
  VFIO_IRQ_SET_ACTION_UNMASK,
  VFIO_IRQ_SET_DATA_BOOL,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_IRQ_SET_DATA_TYPE_MASK,
} from "../../uapi/vfio-user.js";
import type { Message } from "../message-socket.js";
import type { IrqAction, Irqs } from "./irqs.js";
import { refusal, sizedRequestOf } from "./refusal.js";

const ACTIONS: ReadonlyMap<number, IrqAction> = new Map([
  [VFIO_IRQ_SET_ACTION_MASK, "mask"],
  [VFIO_IRQ_SET_ACTION_UNMASK, "unmask"],
  [VFIO_IRQ_SET_ACTION_TRIGGER, "trigger"],
]);

/** VFIO_USER_DEVICE_GET_IRQ_INFO */
export function getIrqInfo({ payload }: Message, irqs: Irqs): Uint8Array {
  const { index } = sizedRequestOf(vfio_irq_info, payload, "VFIO_USER_DEVICE_GET_IRQ_INFO");
  return vfio_irq_info.encode({ argsz: vfio_irq_info.size, index, ...irqs.info(index) });
}

/**
 * VFIO_USER_DEVICE_SET_IRQS, checked as vfio_set_irqs_validate_and_prepare() does. Descriptors: as many as interrupts, or
 * none, which takes theirs away.
 */
export function setIrqs(message: Message, irqs: Irqs): null {
  const { payload, fds } = message;
  const syscall = "VFIO_USER_DEVICE_SET_IRQS";
  const { argsz, flags, index, start, count } = sizedRequestOf(vfio_irq_set, payload, syscall);
  const refuse = (remedy: string) =>
    refusal(
      "EINVAL",
      syscall,
      `set interrupts ${start} to ${start + count - 1} of type ${index} with flags ${flags}`,
      remedy,
    );

  const data = flags & VFIO_IRQ_SET_DATA_TYPE_MASK;
  const action = ACTIONS.get(flags & VFIO_IRQ_SET_ACTION_TYPE_MASK);
  if (flags >= 64 || action === undefined) throw refuse("give one action and one kind of data");
  const { count: there } = irqs.info(index);
  if (start >= there || start + count > there) throw refuse(`there are ${there}`);
  const range = { start, count };

  if (data === VFIO_IRQ_SET_DATA_EVENTFD) {
    if (count === 0) throw refuse("give a count");
    if (fds.length !== 0 && fds.length !== count)
      throw refuse(`${fds.length} descriptors came: send ${count}, or none`);
    irqs.setEventFds(action, index, range, fds.length === 0 ? undefined : fds);
    fds.fill(-1);
    return null;
  }
  if (fds.length > 0) throw refuse("descriptors come with DATA_EVENTFD only");
  if (data === VFIO_IRQ_SET_DATA_NONE) {
    if (count > 0) irqs.act(action, index, range);
    else if (action === "trigger" && start === 0) irqs.disable(index);
    else throw refuse("a count of 0 disables with DATA_NONE and ACTION_TRIGGER, from 0 on");
    return null;
  }
  if (data === VFIO_IRQ_SET_DATA_BOOL) {
    const bools = payload.subarray(vfio_irq_set.size);
    if (count === 0) throw refuse("give a count");
    if (argsz - vfio_irq_set.size < count || bools.byteLength < count) throw refuse("send a byte per interrupt");
    irqs.act(
      action,
      index,
      range,
      Array.from(bools.subarray(0, count), (value) => value !== 0),
    );
    return null;
  }
  throw refuse("give one kind of data");
}
