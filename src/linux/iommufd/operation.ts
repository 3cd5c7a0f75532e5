import type { ObjectId } from "../../host/host.js";
import { U64_MAX } from "../../memory/address.js";
import { ioctlAt, ioctlOnThread } from "../../sys/ioctl.js";
import { populateOnThread, type Stretch } from "../../sys/populate.js";
import { type ErrnoName, errnoName, UapiError } from "../../uapi/errno.js";
import { withRemedy } from "../remedies.js";
import type { Command } from "./command.js";

/**
 * How a hot call is made. There is one of these per ioctl, so that a call costs one object for its arguments and no more.
 * The command's structure is lent to a call from `encode` to `decode`, between which nothing else runs on this thread.
 */
export interface Operation<Args, Answer> {
  readonly command: Command;
  /** What is being done, for an error. */
  readonly attempted: (args: Args) => string;
  /** Sets the fields of the command that change. @throws UapiError for what can't be passed to a kernel */
  readonly encode: (args: Args) => void;
  /**
   * Where the kernel writes what it would drop if there were no memory for it: for a call on a thread, which may be about much.
   * For a call on this thread {@link touch} sees to it without a system call.
   */
  readonly writes?: (args: Args) => Stretch;
  /** Writes to each page of {@link writes}, which changes nothing but that there is one. */
  readonly touch?: (args: Args) => void;
  /** Takes the kernel's answer out of the command. What the kernel wrote to is named by `args`, and so alive until here. */
  readonly decode: (args: Args) => Answer;
  /** Called where the kernel refused. */
  readonly failed?: (args: Args, fd: number) => void;
}

/** Makes a call on this thread. @throws UapiError with the kernel's errno */
export function perform<Args, Answer>(operation: Operation<Args, Answer>, fd: number, args: Args): Answer {
  const { command } = operation;
  operation.encode(args);
  operation.touch?.(args);
  const answer = ioctlAt(fd, command.request, command.address);
  if (answer < 0) {
    operation.failed?.(args, fd);
    refuse(errnoName(-answer), operation, args);
  }
  return operation.decode(args);
}

/** Makes a call on a thread of its own. @throws UapiError with the kernel's errno */
export async function performOnThread<Args, Answer>(
  operation: Operation<Args, Answer>,
  fd: number,
  args: Args,
): Promise<Answer> {
  const { command } = operation;
  operation.encode(args);
  const bytes = command.bytes.slice();
  if (operation.writes !== undefined) await populateOnThread(operation.writes(args));
  try {
    await ioctlOnThread(fd, command.request, bytes, () => operation.attempted(args));
  } catch (error) {
    operation.failed?.(args, fd);
    throw withRemedy(error);
  }
  command.bytes.set(bytes);
  return operation.decode(args);
}

/** Refuses a call, as the kernel or for it. */
export function refuse<Args>(
  code: ErrnoName,
  { command, attempted }: Operation<Args, unknown>,
  args: Args,
  remedy?: string,
): never {
  throw withRemedy(new UapiError(code, { syscall: command.request.name, attempted: attempted(args), remedy }));
}

export function isU64(value: bigint): boolean {
  return BigInt.asUintN(64, value) === value;
}

/** True for what can be an id. The kernel would see the low 32 bits of any other number, and mistake it for one. */
export function isId(id: ObjectId): boolean {
  return id >>> 0 === id;
}

/** The last address of a range, as far as there are addresses. */
export function lastOf(iova: bigint, length: bigint): bigint {
  const last = iova + length - 1n;
  return last > U64_MAX ? U64_MAX : last;
}
