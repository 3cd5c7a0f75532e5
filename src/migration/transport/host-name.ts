import { isIP } from "node:net";
import { UsageError } from "../../errors.js";

/** A label of a host name: letters, digits and inner hyphens (RFC 1123, 2.1; RFC 1035, 2.3.4 has the length). */
const LABEL = /^(?!-)[A-Za-z0-9-]{1,63}(?<!-)$/;
/** The longest name that fits in 255 bytes of DNS's wire format. */
const MAX_NAME = 253;

/** True for an IP address, without brackets, or a host name whose last label is not a number. */
export function isHost(text: string): boolean {
  if (isIP(text) !== 0) return true;
  const labels = text.split(".");
  // A name that ends in a number is an IPv4 address that is not one.
  return (
    text.length <= MAX_NAME && labels.every((label) => LABEL.test(label)) && !/^\d+$/.test(labels[labels.length - 1])
  );
}

/**
 * A host that a certificate is for: as {@link isHost}, or with `*` for the first label.
 * @returns the host
 * @throws UsageError `BAD_HOST`
 */
export function checkHost(text: string): string {
  if (isHost(text.startsWith("*.") ? text.slice(2) : text)) return text;
  throw new UsageError(`${JSON.stringify(text)} is no host name and no IP address`, {
    code: "BAD_HOST",
    remedy: "give names such as dst.example.com, and addresses such as 10.0.0.7 or ::1",
  });
}
