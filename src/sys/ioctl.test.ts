import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ErrnoName } from "../uapi/errno.js";
import type { IoctlRequest } from "../uapi/ioctl.js";
import { dup } from "./fd.js";
import { ioctl, ioctlOnThread } from "./ioctl.js";
import { socketPair } from "./unix-socket.js";

/** include/uapi/asm-generic/ioctls.h: the bytes that wait in a socket. */
const FIONREAD: IoctlRequest = { name: "FIONREAD", number: 0x541b };
/** The same file: a terminal's settings. */
const TCGETS: IoctlRequest = { name: "TCGETS", number: 0x5401 };
/** include/uapi/linux/sockios.h: a network interface's index, by its name. */
const SIOCGIFINDEX: IoctlRequest = { name: "SIOCGIFINDEX", number: 0x8933 };

const linux = process.platform === "linux";

describe.skipIf(!linux)("ioctl", () => {
  const folder = mkdtempSync(join(tmpdir(), "dirtmap-ioctl-"));
  const file = openSync(join(folder, "plain"), "w");
  const [left, right] = linux ? socketPair() : [];

  beforeAll(() => {
    writeSync(left?.fd ?? -1, new Uint8Array(1234));
  });

  afterAll(() => {
    left?.[Symbol.dispose]();
    right?.[Symbol.dispose]();
    closeSync(file);
    rmSync(folder, { recursive: true });
  });

  /** Calls whose answers are known, each with another one. */
  const CALLS = {
    succeeds: { fd: () => right?.fd ?? -1, request: FIONREAD, outcome: 1234 },
    EBADF: { fd: () => -1, request: FIONREAD, outcome: "EBADF" },
    ENOTTY: { fd: () => file, request: TCGETS, outcome: "ENOTTY" },
    ENODEV: { fd: () => right?.fd ?? -1, request: SIOCGIFINDEX, outcome: "ENODEV" },
  } as const;
  type CallName = keyof typeof CALLS;

  /** struct ifreq is 40 bytes; the name in it is one that no interface has. FIONREAD and TCGETS write less. */
  function argument(): Uint8Array {
    const bytes = new Uint8Array(64);
    bytes.set(new TextEncoder().encode("no-such-if"));
    return bytes;
  }

  function outcomeOf(call: () => number, bytes: Uint8Array): number | ErrnoName {
    try {
      expect(call()).toBe(0);
      return new DataView(bytes.buffer).getInt32(0, true);
    } catch (error) {
      return (error as { code: ErrnoName }).code;
    }
  }

  function onThisThread(name: CallName): number | ErrnoName {
    const bytes = argument();
    return outcomeOf(() => ioctl(CALLS[name].fd(), CALLS[name].request, bytes, () => name), bytes);
  }

  async function onAnother(name: CallName): Promise<number | ErrnoName> {
    const bytes = argument();
    try {
      const answer = await ioctlOnThread(CALLS[name].fd(), CALLS[name].request, bytes, () => name);
      return outcomeOf(() => answer, bytes);
    } catch (error) {
      return (error as { code: ErrnoName }).code;
    }
  }

  it("tells each call its own errno, however many run on other threads at the same time", async () => {
    const anyCall = fc.record({
      name: fc.constantFrom(...(Object.keys(CALLS) as CallName[])),
      thread: fc.boolean(),
      yields: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(anyCall, { minLength: 1, maxLength: 200 }), async (calls) => {
        const outcomes: Promise<number | ErrnoName>[] = [];
        for (const { name, thread, yields } of calls) {
          outcomes.push(thread ? onAnother(name) : Promise.resolve(onThisThread(name)));
          // Lets callbacks in between the synchronous calls.
          if (yields) await new Promise(setImmediate);
        }
        expect(await Promise.all(outcomes)).toEqual(calls.map(({ name }) => CALLS[name].outcome));
      }),
      { numRuns: 40 },
    );
  });

  it.each([
    ["on this thread", async (fd: number) => ioctl(fd, TCGETS, argument(), () => "read its settings")],
    ["on another thread", (fd: number) => ioctlOnThread(fd, TCGETS, argument(), () => "read its settings")],
  ])("says %s which call failed, what for, and with which errno", async (_, call) => {
    await expect(call(file)).rejects.toMatchObject({
      code: "ENOTTY",
      errno: 25,
      syscall: "TCGETS",
      message: "TCGETS: ENOTTY: read its settings",
    });
  });

  it("takes an integer by value: one that is no address faults", () => {
    expect(() => ioctl(right?.fd ?? -1, FIONREAD, 1, () => "")).toThrow(expect.objectContaining({ code: "EFAULT" }));
  });

  it("works in place, in a view that lies within a larger buffer", () => {
    const bytes = new Uint8Array(64).fill(0xff);
    ioctl(right?.fd ?? -1, FIONREAD, bytes.subarray(10, 14), () => "");
    expect([...bytes.subarray(9, 15)]).toEqual([0xff, 0xd2, 0x04, 0, 0, 0xff]);
  });
});

describe.skipIf(!linux)("dup", () => {
  it("makes a descriptor that outlives the first one", () => {
    const [left, right] = socketPair();
    const copy = dup(left.fd);
    left[Symbol.dispose]();
    writeSync(copy, new Uint8Array(3));
    const into = new Uint8Array(8);
    expect(right.receive(into, 0, [])).toBe(3);
    closeSync(copy);
    right[Symbol.dispose]();
  });

  it("refuses a descriptor that isn't open", () => {
    expect(() => dup(-1)).toThrow(expect.objectContaining({ code: "EBADF", syscall: "dup" }));
  });
});
