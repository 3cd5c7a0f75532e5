import { z } from "zod";
import { PAGE_SIZE } from "../../memory/address.js";
import {
  DIRTMAP_PROTOCOL,
  VFIO_USER_DEFAULT_DATA_XFER,
  VFIO_USER_DEFAULT_MAX_FDS,
  VFIO_USER_MAJOR,
  VFIO_USER_MINOR,
  vfio_user_version,
} from "../../uapi/vfio-user.js";
import { MAX_DMA_MAPS } from "./client-memory.js";
import { refusal, requestOf } from "./refusal.js";
import { MAX_TRANSFER } from "./region-access.js";

const VERSION = "VFIO_USER_VERSION";

/** Descriptors that we take in a message, for SET_IRQS: more than 16 are an error to QEMU's client. */
const MAX_MSG_FDS = 16;

/** No client has more to say. */
const MAX_JSON_BYTES = 65536;

const size = z
  .int()
  .min(1)
  .max(2 ** 53 - 1);
const clientSchema = z.looseObject({
  capabilities: z
    .looseObject({
      max_msg_fds: z.int().min(0).optional(),
      max_data_xfer_size: size.optional(),
      max_dma_maps: size.optional(),
      pgsizes: size.optional(),
      twin_socket: z.looseObject({ supported: z.boolean().optional() }).optional(),
      write_multiple: z.boolean().optional(),
      dirtmap: z.looseObject({ protocol: z.int().min(1).max(0xffff) }).optional(),
    })
    .optional(),
});

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
  const capabilities = readJson(payload.subarray(vfio_user_version.size)).capabilities ?? {};
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
export function writeAgreement({ minor, twinSocket, writeMultiple }: Agreement): Uint8Array {
  const capabilities = {
    max_msg_fds: MAX_MSG_FDS,
    max_data_xfer_size: MAX_TRANSFER,
    max_dma_maps: MAX_DMA_MAPS,
    pgsizes: PAGE_SIZE,
    ...(writeMultiple ? { write_multiple: true } : {}),
    ...(twinSocket ? { twin_socket: { supported: true, fd_index: 0 } } : {}),
    dirtmap: { protocol: DIRTMAP_PROTOCOL },
  };
  const json = new TextEncoder().encode(`${JSON.stringify({ capabilities })}\0`);
  const answer = new Uint8Array(vfio_user_version.size + json.byteLength);
  vfio_user_version.encode({ major: VFIO_USER_MAJOR, minor }, answer);
  answer.set(json, vfio_user_version.size);
  return answer;
}

function readJson(bytes: Uint8Array): z.output<typeof clientSchema> {
  if (bytes.byteLength === 0) return {};
  const refuse = (remedy: string) =>
    refusal("EINVAL", VERSION, `read ${bytes.byteLength} bytes of version data`, remedy);
  if (bytes.byteLength > MAX_JSON_BYTES) throw refuse(`send at most ${MAX_JSON_BYTES}`);
  if (bytes[bytes.byteLength - 1] !== 0) throw refuse("end them with a NUL");
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(0, -1)));
  } catch {
    throw refuse("send JSON in UTF-8");
  }
  const parsed = clientSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const { path, message } = parsed.error.issues[0];
  throw refuse(`${path.join(".") || "they"}: ${message}`);
}
