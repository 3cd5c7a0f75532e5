import { closeSync, fstatSync, mkdtempSync, openSync, readSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { POLLIN, PollSet } from "./poll.js";
import { accept, connectTo, isBound, listenAt, socketPair, type UnixSocket } from "./unix-socket.js";

function receiveAll(socket: UnixSocket, bytes: number): { data: Buffer; fds: number[] } {
  const data = Buffer.alloc(bytes);
  const fds: number[] = [];
  for (let at = 0; at < bytes; ) {
    const came = socket.receive(data, at, fds);
    expect(came).toBeGreaterThan(0);
    at += came;
  }
  return { data, fds };
}

describe.runIf(process.platform === "linux")("a UNIX socket", () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "dirtmap-socket-"));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it("passes bytes and descriptors both ways, and a descriptor opens the same file", () => {
    const file = join(folder, "file");
    writeFileSync(file, "what is in the file");
    const [left, right] = socketPair();
    using _left = left;
    using _right = right;
    const sent = [openSync(file, "r"), openSync(file, "r")];
    expect(left.send(Buffer.from("hello"), 0, 5, sent)).toBe(5);
    for (const fd of sent) closeSync(fd);
    const { data, fds } = receiveAll(right, 5);
    expect(data.toString()).toBe("hello");
    expect(fds).toHaveLength(2);
    const content = Buffer.alloc(19);
    readSync(fds[1], content, 0, 19, 0);
    expect(content.toString()).toBe("what is in the file");
    for (const fd of fds) closeSync(fd);
    expect(right.send(Buffer.from("..back"), 2, 6)).toBe(4);
    expect(receiveAll(left, 4).data.toString()).toBe("back");
  });

  it("says that nothing waits, that the peer does not keep up, and that it has gone", () => {
    const [left, right] = socketPair();
    using _left = left;
    expect(left.receive(new Uint8Array(8), 0, [])).toBe(-1);
    const block = new Uint8Array(1 << 20);
    let taken = 0;
    for (let sent = left.send(block, 0, block.length); sent > 0; sent = left.send(block, 0, block.length))
      taken += sent;
    expect(taken).toBeGreaterThan(0);
    right[Symbol.dispose]();
    right[Symbol.dispose]();
    expect(() => left.send(block, 0, 1)).toThrow(expect.objectContaining({ code: "EPIPE" }));
  });

  it("is of no use after it was closed, whatever has its descriptor by then: EBADF", () => {
    const [left, right] = socketPair();
    left[Symbol.dispose]();
    const [next, other] = socketPair();
    expect(next.fd).toBe(left.fd);
    expect(() => left.send(new Uint8Array(1), 0, 1)).toThrow(expect.objectContaining({ code: "EBADF" }));
    expect(() => left.receive(new Uint8Array(1), 0, [])).toThrow(expect.objectContaining({ code: "EBADF" }));
    expect(other.receive(new Uint8Array(1), 0, [])).toBe(-1);
    for (const socket of [right, next, other]) socket[Symbol.dispose]();
  });

  it("ends a read behind the write that carried descriptors", () => {
    const [left, right] = socketPair();
    using _left = left;
    using _right = right;
    const fd = openSync(folder, "r");
    left.send(Buffer.from("one"), 0, 3);
    left.send(Buffer.from("two"), 0, 3, [fd]);
    left.send(Buffer.from("three"), 0, 5);
    closeSync(fd);
    const into = Buffer.alloc(64);
    const fds: number[] = [];
    const first = right.receive(into, 0, fds);
    expect(into.toString("latin1", 0, first)).toBe("onetwo");
    expect(fds).toHaveLength(1);
    expect(fstatSync(fds[0]).isDirectory()).toBe(true);
    closeSync(fds[0]);
    expect(right.receive(into, 0, fds)).toBe(5);
  });

  it("tells whether a path is held, without a connection, and who holds it", () => {
    const path = join(folder, "held");
    const listener = listenAt(path);
    expect(isBound(path)).toBe(true);
    expect(new PollSet([{ fd: listener, events: POLLIN }]).wait(0)).toBe(0);
    using client = connectTo(path);
    expect(client.peer).toMatchObject({ pid: process.pid, uid: process.getuid?.() });
    closeSync(listener);
    expect(isBound(path)).toBe(false);
    expect(() => isBound(join(folder, "none"))).toThrow(expect.objectContaining({ code: "ENOENT" }));
  });

  it("listens for its owner alone, whatever the umask, or for a group, which has it before a connection is taken", () => {
    const before = process.umask(0);
    try {
      for (const group of [undefined, process.getgid?.() ?? 0]) {
        const path = join(folder, `mode-${group}`);
        const listener = listenAt(path, group === undefined ? {} : { group });
        expect(statSync(path).mode & 0o777).toBe(group === undefined ? 0o600 : 0o660);
        closeSync(listener);
      }
    } finally {
      process.umask(before);
    }
  });

  it("listens at a path, is refused where something is, and takes connections", () => {
    const path = join(folder, "socket");
    const listener = listenAt(path);
    expect(accept(listener)).toBeUndefined();
    expect(() => listenAt(path)).toThrow(expect.objectContaining({ code: "EADDRINUSE", syscall: "bind" }));
    using client = connectTo(path);
    expect(new PollSet([{ fd: listener, events: POLLIN }]).wait(1000)).toBe(1);
    const server = accept(listener);
    expect(server).toBeDefined();
    client.send(Buffer.from("x"), 0, 1);
    expect(server?.receive(new Uint8Array(8), 0, [])).toBe(1);
    server?.[Symbol.dispose]();
    expect(client.receive(new Uint8Array(8), 0, [])).toBe(0);
    closeSync(listener);
    expect(() => connectTo(path)).toThrow(expect.objectContaining({ code: "ECONNREFUSED" }));
    expect(() => connectTo(join(folder, "none"))).toThrow(expect.objectContaining({ code: "ENOENT" }));
    expect(() => listenAt("x".repeat(108))).toThrow(expect.objectContaining({ code: "BAD_SOCKET_PATH" }));
  });
});
