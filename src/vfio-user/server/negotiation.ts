import { PAGE_SIZE } from "../../memory/address.js";
import {
  DIRTMAP_PROTOCOL,
  VFIO_USER_COMMAND,
  VFIO_USER_DEFAULT_DATA_XFER,
  VFIO_USER_DEFAULT_MAX_FDS,
  VFIO_USER_MAJOR,
  VFIO_USER_MINOR,
  vfio_user_version,
} from "../../uapi/vfio-user.js";
import { versionMismatch } from "../dirtmap-protocol.js";
import type { Message } from "../message-socket.js";
import { type Capabilities, readCapabilities, writeVersion } from "../version-data.js";
import { MAX_DMA_MAPS } from "./client-memory.js";
import { refusal, requestOf } from "./refusal.js";
import { MAX_TRANSFER } from "./region-access.js";
import { nameOf, type SessionKind } from "./rights.js";

const VERSION = "VFIO_USER_VERSION";

/** Descriptors that we take in a message, for SET_IRQS: more than 16 are an error to QEMU's client. */
export const MAX_MSG_FDS = 16;

/** What this side takes, and says of itself. */
export interface ServerLimits {
  readonly maxFds: number;
  readonly maxTransfer: number;
  readonly maxDmaMaps: number;
  readonly pageSizes: number;
  readonly writeMultiple: boolean;
}

const LIMITS: ServerLimits = {
  maxFds: MAX_MSG_FDS,
  maxTransfer: MAX_TRANSFER,
  maxDmaMaps: MAX_DMA_MAPS,
  pageSizes: PAGE_SIZE,
  writeMultiple: true,
};

/** What was agreed on. */
export interface Agreement {
  readonly minor: number;
  /** Descriptors that the client takes in a message. */
  readonly maxFds: number;
  /** Bytes of data that the client takes in a message. */
  readonly maxTransfer: number;
  readonly twinSocket: boolean;
  readonly writeMultiple: boolean;
  /** The version of Dirtmap's own commands that the client speaks; null: it is not Dirtmap's. */
  readonly dirtmap: number | null;
}

/**
 * Answers a client's first message.
 * @throws UapiError of {@link readProposal}; EINVAL for another command
 */
export function agreeWith(
  { command, payload }: Message,
  kind: SessionKind,
  limits = LIMITS,
): { agreement: Agreement; answer: Uint8Array; mismatch: ReturnType<typeof versionMismatch> } {
  if (command !== VFIO_USER_COMMAND.VERSION) {
    throw refusal("EINVAL", nameOf(command), "do it before the version is agreed on", "send VFIO_USER_VERSION first");
  }
  const proposal = readProposal(payload);
  const agreement = {
    ...proposal,
    twinSocket: proposal.twinSocket && proposal.maxFds > 0 && kind === "main",
    writeMultiple: proposal.writeMultiple && limits.writeMultiple,
  };
  return {
    agreement,
    answer: writeAgreement(agreement, limits),
    mismatch: agreement.dirtmap === null ? null : versionMismatch(agreement.dirtmap, "client", "server"),
  };
}

/**
 * Reads what a client proposes.
 * @throws UapiError EPROTONOSUPPORT for another major version, EINVAL for what can't be understood
 */
export function readProposal(payload: Uint8Array): Agreement {
  const { major, minor } = requestOf(vfio_user_version, payload, VERSION);
  if (major !== VFIO_USER_MAJOR) {
    throw refusal(
      "EPROTONOSUPPORT",
      VERSION,
      `speak version ${major}.${minor}`,
      `upgrade the ${major < VFIO_USER_MAJOR ? "client" : "server"}: this server speaks ${VFIO_USER_MAJOR}.${VFIO_USER_MINOR}`,
    );
  }
  const capabilities = readProposed(payload.subarray(vfio_user_version.size));
  return {
    minor: Math.min(minor, VFIO_USER_MINOR),
    maxFds: capabilities.max_msg_fds ?? VFIO_USER_DEFAULT_MAX_FDS,
    maxTransfer: capabilities.max_data_xfer_size ?? VFIO_USER_DEFAULT_DATA_XFER,
    twinSocket: capabilities.twin_socket?.supported ?? false,
    writeMultiple: capabilities.write_multiple ?? false,
    dirtmap: capabilities.dirtmap?.protocol ?? null,
  };
}

/** The answer. The twin socket's descriptor, if there is one, is the first that comes along. */
export function writeAgreement({ minor, twinSocket, writeMultiple }: Agreement, limits = LIMITS): Uint8Array {
  return writeVersion(minor, {
    max_msg_fds: limits.maxFds,
    max_data_xfer_size: limits.maxTransfer,
    max_dma_maps: limits.maxDmaMaps,
    pgsizes: limits.pageSizes,
    ...(writeMultiple ? { write_multiple: true } : {}),
    ...(twinSocket ? { twin_socket: { supported: true, fd_index: 0 } } : {}),
    dirtmap: { protocol: DIRTMAP_PROTOCOL },
  });
}

function readProposed(bytes: Uint8Array): Capabilities {
  const refuse = (problem: string) =>
    refusal("EINVAL", VERSION, `read ${bytes.byteLength} bytes of version data: ${problem}`, "mend the client");
  if (bytes.byteLength > 0 && bytes[bytes.byteLength - 1] !== 0) throw refuse("they don't end with a NUL");
  return readCapabilities(bytes, refuse);
}
