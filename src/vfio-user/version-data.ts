import { z } from "zod";
import { VFIO_USER_MAJOR, vfio_user_version } from "../uapi/vfio-user.js";

/*
 * The payload of VFIO_USER_VERSION, which both sides send: the version, and capabilities as JSON that ends with a NUL.
 */

/** No side has more to say. */
const MAX_JSON_BYTES = 65536;

const size = z
  .int()
  .min(1)
  .max(2 ** 53 - 1);

const schema = z.looseObject({
  capabilities: z
    .looseObject({
      max_msg_fds: z.int().min(0).optional(),
      max_data_xfer_size: size.optional(),
      max_dma_maps: size.optional(),
      pgsizes: size.optional(),
      twin_socket: z.looseObject({ supported: z.boolean().optional(), fd_index: z.int().min(0).optional() }).optional(),
      write_multiple: z.boolean().optional(),
      dirtmap: z.looseObject({ protocol: z.int().min(1).max(0xffff) }).optional(),
    })
    .optional(),
});

/** What a side says of itself; what it leaves out has the specification's default. */
export type Capabilities = NonNullable<z.output<typeof schema>["capabilities"]>;

/** A whole payload. */
export function writeVersion(minor: number, capabilities: Capabilities): Uint8Array {
  const json = new TextEncoder().encode(`${JSON.stringify({ capabilities })}\0`);
  const payload = new Uint8Array(vfio_user_version.size + json.byteLength);
  vfio_user_version.encode({ major: VFIO_USER_MAJOR, minor }, payload);
  payload.set(json, vfio_user_version.size);
  return payload;
}

/**
 * Reads what follows the version. A missing NUL is for the caller to refuse or to bear.
 * @throws what `refuse` makes of a sentence about what is wrong: "they …"
 */
export function readCapabilities(bytes: Uint8Array, refuse: (problem: string) => Error): Capabilities {
  if (bytes.byteLength === 0) return {};
  if (bytes.byteLength > MAX_JSON_BYTES) throw refuse(`they have more than ${MAX_JSON_BYTES} bytes`);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes).replace(/\0+$/, ""));
  } catch {
    throw refuse("they are no JSON in UTF-8");
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data.capabilities ?? {};
  const { path, message } = parsed.error.issues[0];
  throw refuse(`${path.join(".") || "they"}: ${message}`);
}
