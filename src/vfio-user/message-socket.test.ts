import { closeSync, fstatSync, openSync, readdirSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { socketPair } from "../sys/unix-socket.js";
import { VFIO_USER_COMMAND, VFIO_USER_F_NO_REPLY, vfio_user_header } from "../uapi/vfio-user.js";
import { closeFds, HEADER_BYTES, MessageSocket } from "./message-socket.js";

const MAX = 1 << 20;

function pair() {
  const [left, right] = socketPair();
  return { left: new MessageSocket(left, MAX), right: new MessageSocket(right, MAX), raw: left };
}

describe.runIf(process.platform === "linux")("vfio-user messages over a socket", () => {
  it("arrive whole, in order and with their own descriptors, however they were cut", () => {
    fc.assert(
      fc.property(
        fc.array(fc.record({ bytes: fc.nat(5000), fds: fc.nat(3) }), { minLength: 1, maxLength: 12 }),
        fc.nat(100),
        (messages, fill) => {
          const { left, right } = pair();
          const file = openSync("/dev/null", "r");
          messages.forEach(({ bytes, fds }, id) => {
            left.sendCommand(
              VFIO_USER_COMMAND.REGION_WRITE,
              id,
              new Uint8Array(bytes).fill(fill + id),
              Array(fds).fill(file),
            );
          });
          closeSync(file);
          messages.forEach(({ bytes, fds }, id) => {
            const message = right.receive();
            if (message === undefined || message === "closed") throw new Error(`message ${id} did not come`);
            expect(message).toMatchObject({
              id,
              command: VFIO_USER_COMMAND.REGION_WRITE,
              isReply: false,
              noReply: false,
            });
            expect(Buffer.compare(message.payload, Buffer.alloc(bytes, fill + id))).toBe(0);
            expect(message.fds).toHaveLength(fds);
            for (const fd of message.fds) expect(fstatSync(fd).isCharacterDevice()).toBe(true);
            closeFds(message.fds);
            expect(message.fds).toEqual([]);
          });
          expect(right.receive()).toBeUndefined();
          left[Symbol.dispose]();
          expect(right.receive()).toBe("closed");
          right[Symbol.dispose]();
        },
      ),
      { numRuns: 60 },
    );
  });

  it("are kept for a peer that does not keep up, and come in order when it does", () => {
    const { left, right } = pair();
    const big = new Uint8Array(MAX).fill(7);
    for (let id = 0; id < 4; id++) left.sendCommand(VFIO_USER_COMMAND.REGION_WRITE, id, big);
    left.sendCommand(VFIO_USER_COMMAND.DEVICE_RESET, 4, null);
    expect(left.unsent).toBe(true);
    const ids: number[] = [];
    for (let tries = 0; ids.length < 5 && tries < 1000; tries++) {
      const message = right.receive();
      if (message === undefined) left.flush();
      else if (message !== "closed") ids.push(message.id);
    }
    expect(ids).toEqual([0, 1, 2, 3, 4]);
    expect(left.unsent).toBe(false);
    expect(() => {
      for (let id = 0; id < 140; id++) left.sendCommand(VFIO_USER_COMMAND.REGION_WRITE, id, big);
    }).toThrow(expect.objectContaining({ code: "PEER_STUCK" }));
    left[Symbol.dispose]();
    right[Symbol.dispose]();
  });

  it("say what they are, and a reply with an error what it was", () => {
    const { left, right } = pair();
    left.send({ id: 9, command: 10, flags: VFIO_USER_F_NO_REPLY }, null);
    const command = right.receive();
    if (command === undefined || command === "closed") throw new Error("nothing came");
    expect(command).toMatchObject({ id: 9, command: 10, noReply: true, isReply: false, error: 0 });
    right.sendError(command, 22);
    expect(left.receive()).toMatchObject({ id: 9, command: 10, isReply: true, error: 22, payload: new Uint8Array(0) });
    left[Symbol.dispose]();
    right[Symbol.dispose]();
  });

  it("are sent from where they were put together, small and large", () => {
    const { left, right } = pair();
    for (const bytes of [8, 70_000, MAX, 100]) {
      const place = left.outgoing(bytes);
      expect(place.byteLength).toBe(bytes);
      place.fill(bytes & 0xff);
      left.sendCommand(VFIO_USER_COMMAND.REGION_WRITE, bytes & 0xffff, place);
      let message = right.receive();
      for (let tries = 0; message === undefined && tries < 1000; tries++) {
        left.flush();
        message = right.receive();
      }
      if (message === undefined || message === "closed") throw new Error("nothing came");
      expect(Buffer.compare(message.payload, Buffer.alloc(bytes, bytes & 0xff))).toBe(0);
    }
    const large = left.outgoing(70_000).fill(1);
    left.sendCommand(VFIO_USER_COMMAND.REGION_WRITE, 7, large.subarray(0, 3));
    expect(right.receive()).toMatchObject({ id: 7, payload: new Uint8Array(3).fill(1) });
    left[Symbol.dispose]();
    right[Symbol.dispose]();
  });

  it("come before a header that can't be, whose descriptors are closed", () => {
    const { left, right, raw } = pair();
    const open = () => readdirSync("/proc/self/fd").length;
    left.sendCommand(VFIO_USER_COMMAND.DEVICE_RESET, 5, null);
    const file = openSync("/dev/null", "r");
    const before = open();
    raw.send(vfio_user_header.encode({ msg_size: 15 }), 0, HEADER_BYTES, [file, file]);
    expect(right.receive()).toMatchObject({ id: 5, command: VFIO_USER_COMMAND.DEVICE_RESET, fds: [] });
    expect(open()).toBe(before + 2);
    expect(() => right.receive()).toThrow(expect.objectContaining({ code: "PROTOCOL" }));
    right[Symbol.dispose]();
    expect(open()).toBe(before - 1);
    closeSync(file);
    left[Symbol.dispose]();
  });

  it("end the connection where a header can't be", () => {
    for (const header of [{ msg_size: 15 }, { msg_size: HEADER_BYTES + MAX + 1 }, { msg_size: 16, flags: 2 }]) {
      const { left, right, raw } = pair();
      raw.send(vfio_user_header.encode(header), 0, HEADER_BYTES);
      expect(() => right.receive()).toThrow(expect.objectContaining({ code: "PROTOCOL" }));
      left[Symbol.dispose]();
      right[Symbol.dispose]();
    }
  });
});
