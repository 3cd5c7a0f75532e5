import { chmodSync, closeSync, fchmodSync, lchownSync, rmSync } from "node:fs";
import { UsageError } from "../errors.js";
import { ERRNO, errnoName, UapiError } from "../uapi/errno.js";
import { struct } from "../uapi/struct.js";
import { addressOf } from "./address.js";
import { lastErrno, libc } from "./libc.js";

/*
 * UNIX stream sockets that pass descriptors (unix(7)), which node:net can't receive. Calls don't wait unless they are told
 * to, and then for {@link WAIT_MS}: who waits longer does so in a PollSet. Structures and numbers are Linux's on x86-64 and
 * arm64.
 */

const socketCall = libc.func("int socket(int domain, int type, int protocol)");
const socketpairCall = libc.func("socketpair", "int", ["int", "int", "int", "void *"]);
const bindCall = libc.func("bind", "int", ["int", "void *", "unsigned int"]);
const listenCall = libc.func("int listen(int fd, int backlog)");
const connectCall = libc.func("connect", "int", ["int", "void *", "unsigned int"]);
const acceptCall = libc.func("accept4", "int", ["int", "void *", "void *", "int"]);
const setsockoptCall = libc.func("setsockopt", "int", ["int", "int", "int", "void *", "unsigned int"]);
const getsockoptCall = libc.func("getsockopt", "int", ["int", "int", "int", "void *", "void *"]);
const shutdownCall = libc.func("int shutdown(int fd, int how)");
/** By the header's address, which its owner keeps alive: to find it anew costs more than the rest of a call. */
const recvmsgCall = libc.func("recvmsg", "int", ["int", "uintptr_t", "int"]);
const sendmsgCall = libc.func("sendmsg", "int", ["int", "uintptr_t", "int"]);

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_DGRAM = 2;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
/** Options of include/uapi/asm-generic/socket.h: a struct ucred, and two that take a struct timeval. */
const SO_PEERCRED = 17;
const SO_RCVTIMEO = 20;
const SO_SNDTIMEO = 21;
const SHUT_RDWR = 2;
const SCM_RIGHTS = 1;
const MSG_CTRUNC = 0x08;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x40000000;

/** sizeof sun_path in struct sockaddr_un, the terminating NUL included. */
const SUN_PATH_BYTES = 108;

const iovec = struct("iovec", { iov_base: "u64", iov_len: "u64" });
const msghdr = struct("msghdr", {
  msg_name: "u64",
  msg_namelen: "u32",
  msg_iov: "u64",
  msg_iovlen: "u64",
  msg_control: "u64",
  msg_controllen: "u64",
  msg_flags: "s32",
});
const ucred = struct("ucred", { pid: "s32", uid: "u32", gid: "u32" });
const cmsghdr = struct("cmsghdr", { cmsg_len: "u64", cmsg_level: "s32", cmsg_type: "s32" });

/** How long a call on an accepted socket waits at most, where it is told to wait. */
export const WAIT_MS = 10;

/** SCM_MAX_FD of the kernel: descriptors in one message. */
export const MAX_FDS = 253;

function failure(syscall: string, attempted: string): UapiError {
  return new UapiError(errnoName(lastErrno()), { syscall, attempted });
}

/** True where the last call would have had to wait. */
function wouldBlock(): boolean {
  const errno = lastErrno();
  return errno === ERRNO.EAGAIN || errno === ERRNO.EINTR;
}

/** @throws UsageError `BAD_SOCKET_PATH` for one that is empty or does not fit struct sockaddr_un */
function sockaddr(path: string): Uint8Array {
  const name = new TextEncoder().encode(path);
  if (name.byteLength === 0 || name.byteLength >= SUN_PATH_BYTES || name.includes(0)) {
    throw new UsageError(`'${path}' can't be the path of a socket`, {
      code: "BAD_SOCKET_PATH",
      remedy: `give 1 to ${SUN_PATH_BYTES - 1} bytes`,
    });
  }
  const address = new Uint8Array(2 + name.byteLength + 1);
  new DataView(address.buffer).setUint16(0, AF_UNIX, true);
  address.set(name, 2);
  return address;
}

function openSocket(type = SOCK_STREAM): number {
  const fd: number = socketCall(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) throw failure("socket", "make a UNIX socket");
  return fd;
}

/** Mode of a listening socket: its owner's alone, or also a group's. To connect to one takes the right to write to it. */
const OWNERS = 0o600;
const GROUPS = 0o660;

/**
 * Listens at a path that does not exist yet. Whatever the umask is, nobody but the owner, and the group if one is given, can
 * ever connect: bind(2) gives the path the mode of the socket's own inode, and connections are taken once the group has it.
 * The caller closes the descriptor and removes the path.
 * @param options.group the id of a group that may connect, too
 * @throws UsageError `BAD_SOCKET_PATH`; UapiError EADDRINUSE where something is at the path, EACCES, ENOENT …, EPERM for a
 * group that the socket can't be given to
 */
export function listenAt(path: string, { backlog = 4, group }: { backlog?: number; group?: number } = {}): number {
  const address = sockaddr(path);
  const fd = openSocket();
  let made = false;
  try {
    fchmodSync(fd, OWNERS);
    if (bindCall(fd, address, address.byteLength) !== 0) throw failure("bind", `listen at ${path}`);
    made = true;
    if (group !== undefined) giveToGroup(path, group);
    if (listenCall(fd, backlog) !== 0) throw failure("listen", `listen at ${path}`);
    return fd;
  } catch (error) {
    closeSync(fd);
    if (made) rmSync(path, { force: true });
    throw error;
  }
}

function giveToGroup(path: string, group: number): void {
  try {
    lchownSync(path, -1, group);
    chmodSync(path, GROUPS);
  } catch (cause) {
    const { code } = cause as { code?: string };
    if (code !== "EPERM" && code !== "EACCES") throw cause;
    throw new UapiError(code, { syscall: "chown", attempted: `give ${path} to group ${group}`, cause });
  }
}

/**
 * True where a process holds a stream socket that is bound to the path. It learns nothing of the question: a socket of
 * another type is refused with EPROTOTYPE before any connection is made.
 * @throws UsageError `BAD_SOCKET_PATH`; UapiError ENOENT, EACCES …
 */
export function isBound(path: string): boolean {
  const address = sockaddr(path);
  const fd = openSocket(SOCK_DGRAM);
  try {
    // Where a datagram socket is bound, this connects, which tells its owner nothing either.
    if (connectCall(fd, address, address.byteLength) === 0) return true;
    const errno = lastErrno();
    if (errno === ERRNO.EPROTOTYPE) return true;
    if (errno === ERRNO.ECONNREFUSED) return false;
    throw failure("connect", `find out who is at ${path}`);
  } finally {
    closeSync(fd);
  }
}

/** Takes the next connection, or returns undefined where none waits. Its calls can wait. @throws UapiError */
export function accept(listener: number): UnixSocket | undefined {
  const fd: number = acceptCall(listener, null, null, SOCK_CLOEXEC);
  if (fd >= 0) {
    // struct timeval: seconds and microseconds, 64 bits each.
    const limit = BigInt64Array.of(0n, BigInt(WAIT_MS) * 1000n);
    for (const option of [SO_RCVTIMEO, SO_SNDTIMEO]) {
      if (setsockoptCall(fd, SOL_SOCKET, option, limit, limit.byteLength) === 0) continue;
      const error = failure("setsockopt", "bound the waits of a connection");
      closeSync(fd);
      throw error;
    }
    return new UnixSocket(fd);
  }
  // A peer that has gone before it was taken is no failure of the listener.
  if (wouldBlock() || lastErrno() === ERRNO.ECONNABORTED) return undefined;
  throw failure("accept4", "take a connection");
}

/** @throws UsageError `BAD_SOCKET_PATH`; UapiError ENOENT, ECONNREFUSED, EACCES, EAGAIN for a full backlog */
export function connectTo(path: string): UnixSocket {
  const address = sockaddr(path);
  const fd = openSocket();
  if (connectCall(fd, address, address.byteLength) === 0) return new UnixSocket(fd);
  const error = failure("connect", `connect to ${path}`);
  closeSync(fd);
  throw error;
}

/** Two connected sockets. @throws UapiError */
export function socketPair(): [UnixSocket, UnixSocket] {
  const pair = new Int32Array(2);
  if (socketpairCall(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0) {
    throw failure("socketpair", "make a pair of sockets");
  }
  return [new UnixSocket(pair[0]), new UnixSocket(pair[1])];
}

/** Room for as many descriptors as a message can bring. */
const CONTROL_BYTES = cmsghdr.size + Math.ceil((MAX_FDS * 4) / 8) * 8;

const NO_FDS: readonly number[] = [];

/** struct msghdr of one direction, over one part of memory. */
class Header {
  /** Of the structure, in this process. */
  readonly address: number;
  readonly view: DataView;
  readonly #header = new Uint8Array(msghdr.size);
  readonly #vector = new Uint8Array(iovec.size);
  /** 64-bit fields by their halves: a bigint per call would be one allocation per call. */
  readonly #halves = new Uint32Array(this.#vector.buffer);
  /** Addresses of buffers that were used before: a connection has few. */
  readonly #addresses = new WeakMap<ArrayBufferLike, number>();
  /** The view that was used last, and its address. */
  #lastView: Uint8Array | undefined;
  #lastAddress = 0;

  constructor(control: Uint8Array) {
    this.address = Number(addressOf(this.#header));
    this.view = new DataView(this.#header.buffer);
    msghdr.encode({ msg_iov: addressOf(this.#vector), msg_iovlen: 1n, msg_control: addressOf(control) }, this.#header);
  }

  /** What is to be sent, or received into. */
  point(memory: Uint8Array, at: number, bytes: number): void {
    if (this.#lastView !== memory) {
      let base = this.#addresses.get(memory.buffer);
      if (base === undefined) {
        // Exact: an address of a user is below 2^53.
        base = Number(addressOf(memory)) - memory.byteOffset;
        this.#addresses.set(memory.buffer, base);
      }
      this.#lastView = memory;
      this.#lastAddress = base + memory.byteOffset;
    }
    const address = this.#lastAddress + at;
    this.#halves[0] = address;
    this.#halves[1] = Math.floor(address / 2 ** 32);
    this.#halves[2] = bytes;
    this.#halves[3] = 0;
  }
}

/** A connected socket. Closed once; a descriptor that arrives belongs to who receives it. */
export class UnixSocket implements Disposable {
  readonly fd: number;
  readonly #control = new Uint8Array(CONTROL_BYTES);
  readonly #in = new Header(this.#control);
  readonly #out = new Header(this.#control);
  #open = true;

  constructor(fd: number) {
    this.fd = fd;
  }

  /**
   * Reads into `into` from `at` on. Returns the bytes that came, 0 at the end of the stream, -1 where nothing waits.
   * @param fds descriptors that came along are added, close-on-exec; they belong to the last message that begins in what
   * was read, since a read ends behind the write that carried them
   * @param wait for something to come, up to {@link WAIT_MS}; of an accepted socket alone
   * @throws UapiError ECONNRESET …, EBADF after it was closed, EMSGSIZE where descriptors were cut off (those that came are closed)
   */
  receive(into: Uint8Array, at: number, fds: number[], wait = false): number {
    this.#checkOpen("recvmsg");
    this.#in.point(into, at, into.length - at);
    this.#in.view.setUint32(CONTROL_LENGTH, CONTROL_BYTES, true);
    const bytes: number = recvmsgCall(
      this.fd,
      this.#in.address,
      wait ? MSG_CMSG_CLOEXEC : MSG_DONTWAIT | MSG_CMSG_CLOEXEC,
    );
    if (bytes < 0) {
      if (wouldBlock()) return -1;
      throw failure("recvmsg", "receive a message");
    }
    if (this.#in.view.getUint32(CONTROL_LENGTH, true) > 0) this.#takeFds(fds);
    return bytes;
  }

  /**
   * Sends bytes, and descriptors with the first of them; what was sent may be closed at once. Returns how many bytes were
   * taken, 0 where the peer does not keep up (then no descriptor was sent either).
   * @param wait for the peer to take what is left, up to {@link WAIT_MS} without any progress; of an accepted socket alone
   * @throws UapiError EPIPE, ECONNRESET, EBADF after it was closed
   */
  send(from: Uint8Array, at: number, end: number, fds: readonly number[] = NO_FDS, wait = false): number {
    this.#checkOpen("sendmsg");
    this.#out.point(from, at, end - at);
    let length = 0;
    if (fds.length > 0) {
      length = cmsghdr.size + fds.length * 4;
      cmsghdr.encode({ cmsg_len: BigInt(length), cmsg_level: SOL_SOCKET, cmsg_type: SCM_RIGHTS }, this.#control);
      new Int32Array(this.#control.buffer, cmsghdr.size, fds.length).set(fds);
    }
    this.#out.view.setUint32(CONTROL_LENGTH, Math.ceil(length / 8) * 8, true);
    const bytes: number = sendmsgCall(this.fd, this.#out.address, wait ? MSG_NOSIGNAL : MSG_DONTWAIT | MSG_NOSIGNAL);
    if (bytes >= 0) return bytes;
    if (wouldBlock()) return 0;
    throw failure("sendmsg", `send ${end - at} bytes`);
  }

  /** SO_PEERCRED: the process that listened, or connected, at the other end; pid 0 for one of another PID namespace. */
  get peer(): { readonly pid: number; readonly uid: number } {
    this.#checkOpen("getsockopt");
    const credentials = new Uint8Array(ucred.size);
    const length = Uint32Array.of(ucred.size);
    if (getsockoptCall(this.fd, SOL_SOCKET, SO_PEERCRED, credentials, length) !== 0) {
      throw failure("getsockopt", "find out who is at the other end");
    }
    return ucred.decode(credentials);
  }

  /**
   * Ends the connection for all who have a descriptor of it (shutdown(2)): the peer sees its end now, also where a poll
   * that is under way on another thread keeps a closed socket alive until it returns.
   */
  shutdown(): void {
    // A connection that has ended already can't be ended again; there is nothing to do about it.
    if (this.#open) shutdownCall(this.fd, SHUT_RDWR);
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    closeSync(this.fd);
  }

  /** By then its descriptor may be another socket's. */
  #checkOpen(syscall: string): void {
    if (!this.#open) throw new UapiError("EBADF", { syscall, attempted: "use a socket that was closed" });
  }

  #takeFds(fds: number[]): void {
    const end = this.#in.view.getUint32(CONTROL_LENGTH, true);
    const came: number[] = [];
    for (let at = 0; at + cmsghdr.size <= end; ) {
      const { cmsg_len, cmsg_level, cmsg_type } = cmsghdr.decode(this.#control, at);
      const length = Math.min(Number(cmsg_len), end - at);
      if (length < cmsghdr.size) break;
      if (cmsg_level === SOL_SOCKET && cmsg_type === SCM_RIGHTS) {
        const count = Math.floor((length - cmsghdr.size) / 4);
        came.push(...new Int32Array(this.#control.buffer, at + cmsghdr.size, count));
      }
      at += Math.ceil(length / 8) * 8;
    }
    if ((this.#in.view.getInt32(FLAGS, true) & MSG_CTRUNC) !== 0) {
      for (const fd of came) closeSync(fd);
      throw new UapiError("EMSGSIZE", {
        syscall: "recvmsg",
        attempted: "receive descriptors, of which some were cut off",
        remedy: `send at most ${MAX_FDS} with a message, and leave this process descriptors to spare (ulimit -n)`,
      });
    }
    fds.push(...came);
  }
}

const CONTROL_LENGTH = msghdr.offsetOf("msg_controllen");
const FLAGS = msghdr.offsetOf("msg_flags");
