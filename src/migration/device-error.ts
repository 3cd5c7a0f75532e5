import { DirtmapError, type ErrorDetails } from "../errors.js";
import { safeText } from "../safe-text.js";
import { UapiError } from "../uapi/errno.js";

/** Characters of a reason: a device's own words may come from another process. */
const MAX_REASON = 1000;

/** A device refuses a state, or the data of one. */
export class DeviceError extends DirtmapError {
  readonly device: string;
  /** In the device's own words: one line. */
  readonly reason: string;

  /** @param what it was asked for, as "take its state" */
  constructor(device: string, what: string, details: ErrorDetails) {
    const reason = safeText(reasonOf(details.cause), MAX_REASON);
    super(`${device} did not ${what}: ${reason}`, { attempted: `have ${device} ${what}`, ...details });
    this.device = device;
    this.reason = reason;
  }
}

/**
 * Why an operation was refused. The uAPI answers a number, and its errors have what to do about that as seen from the
 * device; who has asked knows better. So it is their cause that tells, where there is one.
 */
function reasonOf(error: unknown): string {
  let found = error;
  while (found instanceof UapiError && found.cause instanceof Error) found = found.cause;
  if (found instanceof UapiError) found = error;
  return found instanceof Error ? found.message : String(found);
}
