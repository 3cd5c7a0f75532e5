import { readdirSync, readSync, writeSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { dup } from "../../sys/fd.js";
import { socketPair, type UnixSocket } from "../../sys/unix-socket.js";
import { LinuxResumingStream, LinuxSavingStream } from "./data-stream.js";

/*
 * A socket stands for the driver's file: it too has nothing for a while, or no room. What real drivers do is in
 * test/conformance/vfio.ts.
 */

const OPTIONS = { device: "vf0", precopyInfoV2: () => false };

let driver: UnixSocket;
let before: number;
beforeEach(() => {
  before = descriptors();
});
afterEach(() => {
  driver[Symbol.dispose]();
  expect(descriptors()).toBe(before);
});

function descriptors(): number {
  return readdirSync("/proc/self/fd").length;
}

/** The library's end of a new pair, as a descriptor of its own. */
function dataFd(): number {
  const [library, other] = socketPair();
  driver = other;
  const fd = dup(library.fd);
  library[Symbol.dispose]();
  return fd;
}

describe("a saving stream", () => {
  it("waits for a driver that has nothing yet", async () => {
    await using stream = new LinuxSavingStream(dataFd(), OPTIONS);
    const reading = stream.read(100);
    await new Promise((resolve) => setTimeout(resolve, 50));
    writeSync(driver.fd, Uint8Array.of(1, 2, 3));
    expect([...(await reading)]).toEqual([1, 2, 3]);
  });

  it("reads up to what it was asked for", async () => {
    await using stream = new LinuxSavingStream(dataFd(), OPTIONS);
    writeSync(driver.fd, Uint8Array.of(1, 2, 3));
    expect([...(await stream.read(2))]).toEqual([1, 2]);
    expect([...(await stream.read(2))]).toEqual([3]);
  });

  it("takes no bytes for the temporary end in pre-copy, and for the real one in STOP_COPY", async () => {
    await using stream = new LinuxSavingStream(dataFd(), OPTIONS);
    driver[Symbol.dispose]();
    await expect(stream.read(2)).rejects.toMatchObject({ code: "ENOMSG" });
    stream.final = true;
    expect(await stream.read(2)).toHaveLength(0);
  });

  it("gives a driver up that has nothing for too long: ETIMEDOUT", async () => {
    await using stream = new LinuxSavingStream(dataFd(), { ...OPTIONS, timeoutMs: 60 });
    await expect(stream.read(2)).rejects.toMatchObject({ code: "ETIMEDOUT", remedy: "reset 'vf0'" });
  });

  it("wakes its reader when it is closed, and when its device ends the session", async () => {
    for (const [end, code] of [
      [(stream: LinuxSavingStream) => stream[Symbol.asyncDispose](), "EBADF"],
      [(stream: LinuxSavingStream) => stream.end("the device was reset"), "ENODEV"],
    ] as const) {
      const stream = new LinuxSavingStream(dataFd(), OPTIONS);
      const reading = expect(stream.read(2)).rejects.toMatchObject({ code });
      await new Promise((resolve) => setTimeout(resolve, 20));
      const since = performance.now();
      await end(stream);
      await reading;
      // Sooner than the wait in poll alone would end.
      expect(performance.now() - since).toBeLessThan(900);
      driver[Symbol.dispose]();
    }
  });

  it("lets readers take turns", async () => {
    await using stream = new LinuxSavingStream(dataFd(), OPTIONS);
    const reads = [stream.read(1), stream.read(1), stream.read(1)];
    writeSync(driver.fd, Uint8Array.of(1, 2, 3));
    expect((await Promise.all(reads)).map(([byte]) => byte)).toEqual([1, 2, 3]);
  });

  it("is closed once, however often it is asked to", async () => {
    const stream = new LinuxSavingStream(dataFd(), OPTIONS);
    await Promise.all([
      stream[Symbol.asyncDispose](),
      stream.end("the device was reset"),
      stream[Symbol.asyncDispose](),
    ]);
  });
});

describe("a resuming stream", () => {
  it("writes all, and waits for a driver that has no room", async () => {
    await using stream = new LinuxResumingStream(dataFd(), OPTIONS);
    const data = new Uint8Array(2 ** 20).map((_, i) => i % 251);
    const writing = stream.write(data);
    const received = new Uint8Array(data.length);
    for (let at = 0; at < data.length; ) {
      await new Promise((resolve) => setImmediate(resolve));
      try {
        at += readSync(driver.fd, received, at, data.length - at, null);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
      }
    }
    await writing;
    expect(Buffer.from(received).equals(Buffer.from(data))).toBe(true);
  });

  it("refuses what comes after its session: ENODEV", async () => {
    const stream = new LinuxResumingStream(dataFd(), OPTIONS);
    await stream.end("the device left RESUMING");
    await expect(stream.write(Uint8Array.of(1))).rejects.toMatchObject({ code: "ENODEV" });
  });
});
