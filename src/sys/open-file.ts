import { close, open, read, write } from "node:fs";
import { promisify } from "node:util";
import { type ErrnoName, errnoName, UapiError } from "../uapi/errno.js";
import type { IoctlRequest } from "../uapi/ioctl.js";
import { type IoctlArgument, ioctl, ioctlOnThread } from "./ioctl.js";

const openOnThread = promisify(open);
const closeOnThread = promisify(close);
const readOnThread = promisify(read);
const writeOnThread = promisify(write);

/**
 * A descriptor that is closed exactly once, and not before the last call on it has returned: the number of a descriptor
 * that was closed under a running call may belong to another file by then.
 *
 * Calls wait on threads of the pool, of which Node has four (UV_THREADPOOL_SIZE): what may take long is given time-outs.
 */
export class OpenFile implements AsyncDisposable {
  /** For messages: "device '0000:01:00.0'". */
  readonly name: string;
  readonly #fd: number;
  #calls = 0;
  #idle: (() => void) | undefined;
  #closing: Promise<void> | undefined;

  /** Takes over an open descriptor. */
  constructor(fd: number, name: string) {
    this.#fd = fd;
    this.name = name;
  }

  /**
   * open(2), close-on-exec.
   * @param remedy what to do about a refusal
   * @throws UapiError
   */
  static async open(
    path: string,
    flags: number,
    { name, remedy }: { name: string; remedy?: (code: ErrnoName) => string | undefined },
  ): Promise<OpenFile> {
    try {
      return new OpenFile(await openOnThread(path, flags), name);
    } catch (error) {
      throw uapiError(error, "open", `open ${path} for ${name}`, remedy);
    }
  }

  /** The descriptor, for a structure that carries it. @throws UapiError EBADF once it is closed */
  fd(syscall: string): number {
    if (this.#closing !== undefined) {
      throw new UapiError("EBADF", { syscall, attempted: `use ${this.name}`, remedy: "it is closed" });
    }
    return this.#fd;
  }

  get closed(): boolean {
    return this.#closing !== undefined;
  }

  /** An ioctl that returns at once. @throws UapiError */
  ioctl(request: IoctlRequest, argument: IoctlArgument, attempted: () => string): number {
    return ioctl(this.fd(request.name), request, argument, attempted);
  }

  /** An ioctl that may take a while. @throws UapiError */
  ioctlOnThread(request: IoctlRequest, argument: Uint8Array, attempted: () => string): Promise<number> {
    return this.#during(request.name, (fd) => ioctlOnThread(fd, request, argument, attempted));
  }

  /** read(2), or with a position pread(2). Returns the bytes read. @throws UapiError */
  async read(into: Uint8Array, position: number | null = null): Promise<number> {
    const syscall = position === null ? "read" : "pread";
    return this.#during(syscall, async (fd) => {
      try {
        return (await readOnThread(fd, into, 0, into.byteLength, position)).bytesRead;
      } catch (error) {
        throw uapiError(error, syscall, `read ${into.byteLength} bytes of ${this.name}`);
      }
    });
  }

  /** write(2), or with a position pwrite(2). Returns the bytes written. @throws UapiError */
  async write(from: Uint8Array, position: number | null = null): Promise<number> {
    const syscall = position === null ? "write" : "pwrite";
    return this.#during(syscall, async (fd) => {
      try {
        return (await writeOnThread(fd, from, 0, from.byteLength, position)).bytesWritten;
      } catch (error) {
        throw uapiError(error, syscall, `write ${from.byteLength} bytes to ${this.name}`);
      }
    });
  }

  /** Refuses further calls, waits for those under way, and closes. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    if (this.#calls > 0) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    }
    await closeOnThread(this.#fd);
  }

  async #during<T>(syscall: string, call: (fd: number) => Promise<T>): Promise<T> {
    const fd = this.fd(syscall);
    this.#calls++;
    try {
      return await call(fd);
    } finally {
      if (--this.#calls === 0) this.#idle?.();
    }
  }
}

/** One of Node's system errors as a UapiError. Its `code` is of no use: libuv has no names for ENOMSG and others. */
function uapiError(
  cause: unknown,
  syscall: string,
  attempted: string,
  remedy?: (code: ErrnoName) => string | undefined,
): unknown {
  const { errno } = cause as NodeJS.ErrnoException;
  if (typeof errno !== "number") return cause;
  const code = errnoName(-errno);
  return new UapiError(code, { syscall, attempted, remedy: remedy?.(code), cause });
}
