import { beforeEach, describe, expect, it, vi } from "vitest";
import { ERRNO } from "../uapi/errno.js";

/** What the C library's ioctl answers, call by call: an errno, or 0 for success with 7. */
const script = vi.hoisted(() => ({ errnos: [] as number[], errno: 0, calls: 0 }));

// No ioctl that is there without hardware can be interrupted at will.
vi.mock("./libc.js", () => ({
  libc: {
    func: () => {
      const call = () => {
        script.calls++;
        script.errno = script.errnos.shift() ?? 0;
        return script.errno === 0 ? 7 : -1;
      };
      const async = (
        _fd: number,
        _request: number,
        _argument: Uint8Array,
        done: (error: null, answer: number) => void,
      ) => setImmediate(() => done(null, call()));
      return Object.assign(call, { async });
    },
  },
  lastErrno: () => script.errno,
}));

// Another test of this process may have loaded it, with the C library that there is.
vi.resetModules();
const { ioctl, ioctlOnThread } = await import("./ioctl.js");
const request = { name: "ANY", number: 1 };

describe.each([
  ["ioctl", async () => ioctl(3, request, new Uint8Array(4), () => "try")],
  ["ioctlOnThread", () => ioctlOnThread(3, request, new Uint8Array(4), () => "try")],
])("%s", (_, call) => {
  beforeEach(() => {
    script.calls = 0;
  });

  it("makes a call anew that a signal interrupted", async () => {
    script.errnos = [ERRNO.EINTR, ERRNO.EINTR];
    await expect(call()).resolves.toBe(7);
    expect(script.calls).toBe(3);
  });

  it("does not make a call anew that failed", async () => {
    script.errnos = [ERRNO.EINTR, ERRNO.EBUSY];
    await expect(call()).rejects.toMatchObject({ code: "EBUSY" });
    expect(script.calls).toBe(2);
  });

  it("answers EIO for an errno that no header names", async () => {
    script.errnos = [517];
    await expect(call()).rejects.toMatchObject({ code: "EIO" });
  });
});
