import { z } from "zod";
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

const VERSION = "VFIO_USER_VERSION";

/** Bytes of data in a message, both ways: the specification's default. */
const MAX_TRANSFER = VFIO_USER_DEFAULT_DATA_XFER;

/** No server has more to say. */
const MAX_JSON_BYTES = 65536;

const size = z
  .int()
  .min(1)
  .max(2 ** 53 - 1);
const serverSchema = z.looseObject({
  capabilities: z
    .looseObject({
      max_msg_fds: z.int().min(0).optional(),
      max_data_xfer_size: size.optional(),
      max_dma_maps: size.optional(),
      dirtmap: z.looseObject({ protocol: z.int().min(1).max(0xffff) }).optional(),
    })
    .optional(),
});

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
  const capabilities = {
    // Descriptors that a server sends are closed: regions are read and written by messages.
    max_msg_fds: 8,
    max_data_xfer_size: MAX_TRANSFER,
    pgsizes: PAGE_SIZE,
    dirtmap: { protocol: DIRTMAP_PROTOCOL },
  };
  const json = new TextEncoder().encode(`${JSON.stringify({ capabilities })}\0`);
  const proposal = new Uint8Array(vfio_user_version.size + json.byteLength);
  vfio_user_version.encode({ major: VFIO_USER_MAJOR, minor: VFIO_USER_MINOR }, proposal);
  proposal.set(json, vfio_user_version.size);
  return proposal;
}

/**
 * Reads the server's answer; null: what holds where it says nothing.
 * @throws UapiError EPROTONOSUPPORT for another version, also of Dirtmap's own commands; EPROTO for what can't be understood
 */
export function readAgreement(reply: Uint8Array | null): Agreement {
  const capabilities = reply === null ? {} : readCapabilities(reply);
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

function readCapabilities(reply: Uint8Array): NonNullable<z.output<typeof serverSchema>["capabilities"]> {
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
  const json = reply.subarray(vfio_user_version.size);
  if (json.byteLength === 0) return {};
  if (json.byteLength > MAX_JSON_BYTES) throw refuse(`its capabilities have ${json.byteLength} bytes`);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(json).replace(/\0+$/, ""));
  } catch {
    throw refuse("its capabilities are no JSON");
  }
  const parsed = serverSchema.safeParse(value);
  if (parsed.success) return parsed.data.capabilities ?? {};
  const { path, message } = parsed.error.issues[0];
  throw refuse(`${path.join(".")}: ${message}`);
}
