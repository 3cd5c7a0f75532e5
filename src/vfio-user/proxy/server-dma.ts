import type { DmaFault } from "../../devices/model.js";
import { PAGE_SIZE, pageOf, U64_MAX } from "../../memory/address.js";
import { ERRNO, type ErrnoName } from "../../uapi/errno.js";
import { VFIO_USER_COMMAND, vfio_user_dma_access } from "../../uapi/vfio-user.js";
import { closeFds, type Message, type MessageSocket } from "../message-socket.js";
import { replyProblem } from "../replies.js";
import { MAX_TRANSFER } from "../server/region-access.js";
import { nameOf } from "../server/rights.js";
import type { ProxiedDevice } from "./proxied-device.js";
import type { UnderWay } from "./under-way.js";

const HEAD = vfio_user_dma_access.size;

/** A client that can be asked for its memory. */
export interface AskedClient {
  readonly commands: UnderWay;
  /** Bytes of data that it takes in a message. */
  readonly maxTransfer: number;
  /** It has done what no client does: its connection is of no more use. */
  end(why: string): void;
}

interface DmaParties {
  readonly device: ProxiedDevice;
  readonly server: UnderWay;
  /** Null: there is none. */
  readonly client: AskedClient | null;
  /** Is told of work that goes on after the call. */
  background(work: Promise<void>): void;
}

/**
 * A command of the server's own: VFIO_USER_DMA_READ or _WRITE. It is the client's to answer. But memory that the client has
 * shared, and the server was not given, is read and written here: that takes the client no time, and can't meet a vCPU of QEMU
 * that waits for a register with the lock that its DMA needs. While writes go by messages, the client does them itself.
 */
export function serveDma(
  message: Message,
  from: MessageSocket,
  { device, server, client, background }: DmaParties,
): void {
  const { id, command, payload, noReply } = message;
  const refuse = (errno: ErrnoName) => {
    closeFds(message.fds);
    device.messages.refused++;
    if (!noReply) server.send(() => from.sendError({ id, command }, ERRNO[errno]));
  };
  const problem = problemOf(message);
  if (problem !== null || client === null) {
    refuse(problem ?? "EFAULT");
    return;
  }
  const isWrite = command === VFIO_USER_COMMAND.DMA_WRITE;
  const { address, count } = vfio_user_dma_access.decode(payload);
  const bytes = Number(count);

  if (isHere(device, address, bytes) && !(isWrite && device.writePath.state.path === "messages")) {
    closeFds(message.fds);
    const answer = isWrite ? payload.subarray(0, HEAD) : from.outgoing(HEAD + bytes);
    if (!isWrite) answer.set(payload);
    const fault = isWrite ? write(device, address, payload) : read(device, address, answer);
    if (fault !== null) refuse("EFAULT");
    else {
      device.messages.answered++;
      if (!noReply) server.send(() => from.sendReply({ id, command }, answer));
    }
    return;
  }
  if (client.commands.isFull) {
    refuse("EBUSY");
    return;
  }
  device.messages.passed++;
  if (bytes > client.maxTransfer) {
    closeFds(message.fds);
    const answer = (answered: Uint8Array | null) => {
      if (noReply) return;
      server.send(() =>
        answered === null ? from.sendError({ id, command }, ERRNO.EIO) : from.sendReply({ id, command }, answered),
      );
    };
    const parts = inParts({ command, address, bytes, payload: payload.slice() }, { device, client });
    background(parts.then(answer, () => answer(null)));
    return;
  }
  const head = payload.slice(0, HEAD);
  // Also where the server wants no answer: that the client has written is only then known.
  const answered = (reply: Message | null) => {
    const problem = reply === null || reply.error !== 0 ? null : replyProblem(command, head, reply.payload);
    // A server would take it for a mistake of this proxy's, and end the connection.
    if (problem !== null) client.end(`its answer to a DMA can't be: ${problem}`);
    else if (reply?.error === 0 && isWrite) device.noteWrite(address, bytes);
    if (noReply) return;
    server.send(() => {
      if (reply === null || problem !== null) from.sendError({ id, command }, ERRNO.EIO);
      // QEMU answers a write with the header alone, which libvfio-user's servers take for another write's answer.
      else if (reply.error === 0 && reply.payload.length === 0) from.sendReply({ id, command }, head);
      else from.pass(reply, id);
    });
  };
  client.commands.pass(message, answered, true);
}

/** Why the server can't ask that of anyone; null: it can. */
function problemOf({ command, payload }: Message): ErrnoName | null {
  const isWrite = command === VFIO_USER_COMMAND.DMA_WRITE;
  if (!isWrite && command !== VFIO_USER_COMMAND.DMA_READ) return "ENOTTY";
  if (payload.byteLength < HEAD) return "EINVAL";
  const { address, count } = vfio_user_dma_access.decode(payload);
  if (count > BigInt(MAX_TRANSFER) || address + count > U64_MAX) return "EINVAL";
  return payload.byteLength === HEAD + (isWrite ? Number(count) : 0) ? null : "EINVAL";
}

/** A DMA of more than the client takes in a message: the server was told before there was a client. Returns its answer. */
async function inParts(
  { command, address, bytes, payload }: { command: number; address: bigint; bytes: number; payload: Uint8Array },
  { device, client }: { device: ProxiedDevice; client: AskedClient },
): Promise<Uint8Array> {
  const isWrite = command === VFIO_USER_COMMAND.DMA_WRITE;
  const answer = isWrite ? payload.subarray(0, HEAD) : new Uint8Array(HEAD + bytes);
  answer.set(payload.subarray(0, HEAD));
  for (let done = 0; done < bytes; done += client.maxTransfer) {
    const count = Math.min(client.maxTransfer, bytes - done);
    const request = new Uint8Array(HEAD + (isWrite ? count : 0));
    vfio_user_dma_access.encode({ address: address + BigInt(done), count: BigInt(count) }, request);
    if (isWrite) request.set(payload.subarray(HEAD + done, HEAD + done + count), HEAD);
    const part = await client.commands.call(command, nameOf(command), request);
    if (isWrite) device.noteWrite(address + BigInt(done), count);
    else answer.set(part.subarray(HEAD), HEAD + done);
  }
  return answer;
}

function isHere(device: ProxiedDevice, address: bigint, bytes: number): boolean {
  if (device.dma !== "messages" || bytes === 0) return false;
  const first = pageOf(address);
  return device.memory.isHere(first, pageOf(address + BigInt(bytes) - 1n) - first + 1);
}

function write(device: ProxiedDevice, address: bigint, payload: Uint8Array): DmaFault | null {
  return byPages(address, payload.byteLength - HEAD, (page, offset, at, bytes) =>
    device.memory.write(page, offset, payload, HEAD + at, bytes),
  );
}

function read(device: ProxiedDevice, address: bigint, answer: Uint8Array): DmaFault | null {
  return byPages(address, answer.byteLength - HEAD, (page, offset, at, bytes) =>
    device.memory.read(page, offset, answer, HEAD + at, bytes),
  );
}

function byPages(
  address: bigint,
  bytes: number,
  each: (page: number, offset: number, at: number, bytes: number) => DmaFault | null,
): DmaFault | null {
  let page = pageOf(address);
  let offset = Number(address % BigInt(PAGE_SIZE));
  for (let at = 0; at < bytes; ) {
    const part = Math.min(PAGE_SIZE - offset, bytes - at);
    const fault = each(page, offset, at, part);
    if (fault !== null) return fault;
    at += part;
    page++;
    offset = 0;
  }
  return null;
}
