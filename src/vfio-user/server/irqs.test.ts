import { closeSync } from "node:fs";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { EventFd } from "../../sys/eventfd.js";
import { socketPair } from "../../sys/unix-socket.js";
import {
  VFIO_IRQ_SET_DATA_EVENTFD as EVENTFD,
  VFIO_IRQ_SET_ACTION_TRIGGER as TRIGGER,
  vfio_irq_set,
} from "../../uapi/vfio.js";
import {
  VFIO_IRQ_SET_DATA_BOOL as BOOL,
  VFIO_IRQ_SET_ACTION_MASK as MASK,
  VFIO_IRQ_SET_DATA_NONE as NONE,
  VFIO_IRQ_SET_ACTION_UNMASK as UNMASK,
} from "../../uapi/vfio-user.js";
import { errnoOf, lower, raise, readable, Served } from "./served.test.helper.js";
import { TEST_COMMAND, TEST_REGISTER } from "./test-model.test.helper.js";

const INTX = 0;
const MSI = 1;
const MSIX = 2;
const ERR = 3;
const REQ = 4;

describe.runIf(process.platform === "linux")("interrupts of a served device", () => {
  let served: Served | undefined;
  const open: EventFd[] = [];
  beforeEach(async () => {
    served ??= await Served.start();
    served.reconnect();
    for (const fd of open.splice(0)) fd[Symbol.dispose]();
  });
  afterAll(async () => {
    for (const fd of open.splice(0)) fd[Symbol.dispose]();
    await served?.[Symbol.asyncDispose]();
  });
  const there = () => {
    if (served === undefined) throw new Error("no server");
    return served;
  };

  function set(
    flags: number,
    index: number,
    {
      start = 0,
      count = 1,
      fds,
      bools,
    }: { start?: number; count?: number; fds?: readonly EventFd[]; bools?: number[] } = {},
  ): void {
    const data = Uint8Array.from(bools ?? []);
    const argsz = vfio_irq_set.size + data.byteLength;
    there().client.call(
      "DEVICE_SET_IRQS",
      vfio_irq_set,
      { argsz, flags, index, start, count },
      fds === undefined ? { data } : { data, fds: fds.map(({ fd }) => fd) },
    );
  }

  function eventfds(count: number): EventFd[] {
    const made = Array.from({ length: count }, () => EventFd.create());
    open.push(...made);
    return made;
  }

  const fire = (index: number, vector: number) => raise(there().client, index, vector);

  it("come by the eventfd of their vector", () => {
    const fds = eventfds(3);
    set(EVENTFD | TRIGGER, MSIX, { start: 4, count: 3, fds });
    fire(MSIX, 5);
    fire(MSIX, 5);
    fire(MSIX, 6);
    fire(MSIX, 7);
    expect(fds.map((fd) => fd.take())).toEqual([0n, 2n, 1n]);
    const [other] = eventfds(1);
    set(EVENTFD | TRIGGER, MSIX, { start: 5, fds: [other] });
    fire(MSIX, 5);
    expect([other.take(), fds[1].take()]).toEqual([1n, 0n]);
  });

  it("come no more when their eventfds are taken away, or their type is disabled", () => {
    const fds = eventfds(4);
    set(EVENTFD | TRIGGER, MSI, { count: 4, fds });
    set(EVENTFD | TRIGGER, MSI, { start: 1, count: 2 });
    for (let vector = 0; vector < 4; vector++) fire(MSI, vector);
    expect(fds.map((fd) => fd.take())).toEqual([1n, 0n, 0n, 1n]);
    set(NONE | TRIGGER, MSI, { count: 0 });
    fire(MSI, 0);
    expect(fds[0].take()).toBe(0n);
  });

  it("are triggered by the client too, all or those that it chooses", () => {
    const fds = eventfds(3);
    expect(errnoOf(() => set(NONE | TRIGGER, MSIX, { count: 3 }))).toBe("EINVAL");
    set(EVENTFD | TRIGGER, MSIX, { count: 3, fds });
    set(NONE | TRIGGER, MSIX, { count: 2 });
    set(BOOL | TRIGGER, MSIX, { count: 3, bools: [0, 1, 1] });
    expect(fds.map((fd) => fd.take())).toEqual([1n, 2n, 1n]);
  });

  it("wait while they are masked, and come once when they are not", () => {
    const fds = eventfds(2);
    set(EVENTFD | TRIGGER, MSIX, { count: 2, fds });
    set(NONE | MASK, MSIX, { count: 2 });
    fire(MSIX, 0);
    fire(MSIX, 0);
    expect(fds[0].take()).toBe(0n);
    set(BOOL | UNMASK, MSIX, { count: 2, bools: [1, 0] });
    fire(MSIX, 1);
    expect(fds.map((fd) => fd.take())).toEqual([1n, 0n]);
    set(NONE | UNMASK, MSIX, { count: 2 });
    expect(fds.map((fd) => fd.take())).toEqual([0n, 1n]);
  });

  it("wait for an eventfd, of a type that is in use, and come once", () => {
    const fds = eventfds(3);
    fire(MSIX, 1);
    set(EVENTFD | TRIGGER, MSIX, { fds: [fds[0]] });
    fire(MSIX, 1);
    fire(MSIX, 1);
    fire(MSIX, 2);
    set(EVENTFD | TRIGGER, MSIX, { start: 1, fds: [fds[1]] });
    set(NONE | MASK, MSIX, { start: 2 });
    set(EVENTFD | TRIGGER, MSIX, { start: 2, fds: [fds[2]] });
    expect(fds.map((fd) => fd.take())).toEqual([0n, 1n, 0n]);
    set(NONE | UNMASK, MSIX, { start: 2 });
    expect(fds[2].take()).toBe(1n);
    set(NONE | TRIGGER, MSIX, { count: 0 });
    fire(MSIX, 1);
    set(EVENTFD | TRIGGER, MSIX, { count: 2, fds: fds.slice(0, 2) });
    expect(fds[1].take()).toBe(0n);
  });

  it("of INTx mask themselves until they are unmasked, by a command or by the client's eventfd", async () => {
    const [trigger, unmask] = eventfds(2);
    set(EVENTFD | TRIGGER, INTX, { fds: [trigger] });
    fire(INTX, 0);
    fire(INTX, 0);
    expect(trigger.take()).toBe(1n);
    set(NONE | UNMASK, INTX);
    expect(trigger.take()).toBe(1n);
    set(EVENTFD | UNMASK, INTX, { fds: [unmask] });
    fire(INTX, 0);
    expect(trigger.take()).toBe(0n);
    unmask.signal();
    expect(readable(trigger.fd, 5000)).toBe(true);
    expect(trigger.take()).toBe(1n);
    lower(there().client);
    set(NONE | UNMASK, INTX);
    expect(trigger.take()).toBe(0n);
    fire(INTX, 0);
    expect(trigger.take()).toBe(1n);
    expect(errnoOf(() => set(EVENTFD | MASK, INTX, { fds: [unmask] }))).toBe("ENOTTY");
  });

  it("of INTx come to a client that listens only after the device has asserted it", () => {
    const fds = eventfds(1);
    fire(INTX, 0);
    set(EVENTFD | TRIGGER, INTX, { fds });
    expect(fds[0].take()).toBe(1n);
    lower(there().client);
  });

  it("are of one type at a time", () => {
    const fds = eventfds(1);
    set(EVENTFD | TRIGGER, MSIX, { fds });
    expect(errnoOf(() => set(EVENTFD | TRIGGER, INTX, { fds }))).toBe("EINVAL");
    set(NONE | TRIGGER, MSIX, { count: 0 });
    set(EVENTFD | TRIGGER, INTX, { fds });
  });

  it("tell that the device has failed, and that its server goes", async () => {
    const [err, req] = eventfds(2);
    set(EVENTFD | TRIGGER, ERR, { fds: [err] });
    set(EVENTFD | TRIGGER, REQ, { fds: [req] });
    const { client, server } = there();
    errnoOf(() => client.writeRegister(0, TEST_REGISTER.COMMAND, TEST_COMMAND.THROW));
    expect([err.take(), req.take()]).toEqual([1n, 0n]);
    await server.close();
    expect(req.take()).toBe(1n);
    await there()[Symbol.asyncDispose]();
    served = undefined;
  });

  it("are refused with EINVAL, as the kernel does, where flags, range or descriptors can't be", () => {
    const [fd, other] = eventfds(2);
    for (const flags of [0, TRIGGER, EVENTFD, NONE | BOOL | TRIGGER, NONE | MASK | UNMASK, NONE | TRIGGER | 64]) {
      expect([flags, errnoOf(() => set(flags, MSIX))]).toEqual([flags, "EINVAL"]);
    }
    expect(errnoOf(() => set(EVENTFD | TRIGGER, 5, { fds: [fd] }))).toBe("EINVAL");
    expect(errnoOf(() => set(EVENTFD | TRIGGER, MSI, { start: 4, fds: [fd] }))).toBe("EINVAL");
    expect(errnoOf(() => set(EVENTFD | TRIGGER, MSI, { start: 3, count: 2, fds: [fd, other] }))).toBe("EINVAL");
    expect(errnoOf(() => set(EVENTFD | TRIGGER, MSI, { count: 0xffffffff, fds: [fd] }))).toBe("EINVAL");
    expect(errnoOf(() => set(EVENTFD | TRIGGER, MSI, { count: 2, fds: [fd] }))).toBe("EINVAL");
    expect(errnoOf(() => set(NONE | TRIGGER, MSI, { fds: [fd] }))).toBe("EINVAL");
    expect(errnoOf(() => set(BOOL | TRIGGER, MSI, { count: 2, bools: [1] }))).toBe("EINVAL");
    expect(errnoOf(() => set(NONE | MASK, MSI, { count: 0 }))).toBe("EINVAL");
    expect(errnoOf(() => set(NONE | MASK, REQ))).toBe("ENOTTY");
    const [a, b] = socketPair();
    expect(errnoOf(() => set(EVENTFD | TRIGGER, MSI, { fds: [new EventFd(a.fd)] }))).toBe("EINVAL");
    closeSync(a.fd);
    closeSync(b.fd);
    expect(errnoOf(() => there().client.request("DEVICE_SET_IRQS", new Uint8Array(19)))).toBe("EINVAL");
  });

  it("don't block a server whose client lets the counter stand at its limit", () => {
    const [fd] = eventfds(1);
    set(EVENTFD | TRIGGER, MSIX, { fds: [fd] });
    fd.add(0xffff_ffff_ffff_fffen);
    fire(MSIX, 0);
    expect(fd.take()).toBe(0xffff_ffff_ffff_fffen);
    fire(MSIX, 0);
    expect(fd.take()).toBe(1n);
  });
});
