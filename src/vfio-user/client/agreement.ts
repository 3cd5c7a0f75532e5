import { PAGE_SIZE } from "../../memory/address.js";
import { MAX_FDS } from "../../sys/unix-socket.js";
import { UapiError } from "../../uapi/errno.js";
import {
  DIRTMAP_PROTOCOL,
  VFIO_USER_DEFAULT_DATA_XFER,
  VFIO_USER_DEFAULT_DMA_MAPS,
  VFIO_USER_DEFAULT_MAX_FDS,
  VFIO_USER_MAJOR,
  VFIO_USER_MINOR,
  vfio_user_version,
} from "../../uapi/vfio-user.js";
import { versionMismatch } from "../dirtmap-protocol.js";
import { type Capabilities, readCapabilities, writeVersion } from "../version-data.js";

const VERSION = "VFIO_USER_VERSION";

/** Bytes of data in a message, both ways: the specification's default. */
const MAX_TRANSFER = VFIO_USER_DEFAULT_DATA_XFER;

/** What the server takes. */
export interface Agreement {
  /** Descriptors in a message. */
  readonly maxFds: number;
  /** Bytes of data in a message, both ways. */
  readonly maxTransfer: number;
  readonly maxDmaMaps: number;
  /** It speaks Dirtmap's own commands, in the version of this client. */
  readonly dirtmap: boolean;
}

/** What this client proposes. */
export function writeProposal(): Uint8Array {
  return writeVersion(VFIO_USER_MINOR, {
    // Descriptors that a server sends are closed: regions are read and written by messages.
    max_msg_fds: 8,
    max_data_xfer_size: MAX_TRANSFER,
    pgsizes: PAGE_SIZE,
    dirtmap: { protocol: DIRTMAP_PROTOCOL },
  });
}

/**
 * Reads the server's answer; null: what holds where it says nothing.
 * @throws UapiError EPROTONOSUPPORT for another version, also of Dirtmap's own commands; EPROTO for what can't be understood
 */
export function readAgreement(reply: Uint8Array | null): Agreement {
  const capabilities = reply === null ? {} : readAnswer(reply);
  const protocol = capabilities.dirtmap?.protocol;
  const mismatch = protocol === undefined ? null : versionMismatch(protocol, "server", "client");
  if (mismatch !== null) {
    const { problem, remedy } = mismatch;
    throw new UapiError("EPROTONOSUPPORT", { syscall: VERSION, attempted: `agree on a version: ${problem}`, remedy });
  }
  return {
    maxFds: Math.min(capabilities.max_msg_fds ?? VFIO_USER_DEFAULT_MAX_FDS, MAX_FDS),
    maxTransfer: Math.min(capabilities.max_data_xfer_size ?? VFIO_USER_DEFAULT_DATA_XFER, MAX_TRANSFER),
    maxDmaMaps: capabilities.max_dma_maps ?? VFIO_USER_DEFAULT_DMA_MAPS,
    dirtmap: protocol !== undefined,
  };
}

/**
 * What a server says of itself.
 * @throws UapiError EPROTONOSUPPORT for another version, EPROTO for what can't be understood
 */
export function readAnswer(reply: Uint8Array): Capabilities {
  const refuse = (what: string) =>
    new UapiError("EPROTO", { syscall: VERSION, attempted: `read the server's answer: ${what}` });
  if (reply.byteLength < vfio_user_version.size) throw refuse(`it has ${reply.byteLength} bytes`);
  const { major, minor } = vfio_user_version.decode(reply);
  if (major !== VFIO_USER_MAJOR || minor > VFIO_USER_MINOR) {
    throw new UapiError("EPROTONOSUPPORT", {
      syscall: VERSION,
      attempted: `speak version ${major}.${minor}, which the server chose`,
      remedy: `upgrade the ${major < VFIO_USER_MAJOR ? "server" : "client"}: this client speaks ${VFIO_USER_MAJOR}.${VFIO_USER_MINOR}`,
    });
  }
  return readCapabilities(reply.subarray(vfio_user_version.size), (problem) => refuse(`its capabilities: ${problem}`));
}
