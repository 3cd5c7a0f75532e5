import { isIP } from "node:net";
import { UsageError } from "../errors.js";
import { isLoopback } from "../migration/transport/endpoint.js";
import type { Qemu } from "./qmp/qemu.js";

/*
 * Where one QEMU sends its own migration stream, and the other listens for it. Each side's operator names it; nothing that a peer
 * says is ever connected to.
 */

/**
 * Checks an address: `tcp:HOST:PORT` or `unix:PATH`. QEMU has others, which run commands and open files.
 * @returns the address
 * @throws UsageError `BAD_ADDRESS`
 */
export function checkStreamAddress(address: string): string {
  if (/^unix:\/[^,\s]*$/.test(address) || hostOf(address) !== null) return address;
  throw new UsageError(`'${address}' is no address for QEMU's own stream`, {
    code: "BAD_ADDRESS",
    remedy: "give tcp:HOST:PORT, or unix:PATH with the whole path",
  });
}

/**
 * Refuses a stream that anyone on the way could read.
 * @param insecure the operator allows it
 * @throws UsageError `INSECURE_ADDRESS` for TCP to another machine without TLS of QEMU's own
 */
export async function checkStreamSecurity(qemu: Qemu, address: string, insecure: boolean): Promise<void> {
  const host = hostOf(address);
  if (insecure || host === null || isLoopback(host)) return;
  const { "tls-creds": credentials } = await qemu.parameters();
  if (typeof credentials === "string" && credentials !== "") return;
  throw new UsageError(
    `QEMU's stream to or from ${host} would not be encrypted: anyone on the way can read the guest's memory`,
    {
      code: "INSECURE_ADDRESS",
      remedy:
        "give both QEMUs TLS credentials: object_add tls-creds-x509, then migrate_set_parameter tls-creds ID; or allow it: --insecure",
    },
  );
}

/** The host of `tcp:HOST:PORT`; null for anything else. */
function hostOf(address: string): string | null {
  const found = /^tcp:(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})$/.exec(address);
  if (found === null || Number(found[3]) > 65_535) return null;
  const [, v6, name] = found;
  return v6 === undefined ? name : isIP(v6) === 6 ? v6 : null;
}
