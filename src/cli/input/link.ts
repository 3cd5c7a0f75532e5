import { DEFAULT_LINK, type Link, UNLIMITED_BANDWIDTH } from "../../evidence/trackers/estimate.js";
import type { LinkOptions } from "./options.js";

/** The migration that is estimated: as the options say, else as the scenario does, else a common one. */
export function linkOf(options: LinkOptions, defaults: LinkOptions): Link {
  const bandwidth = options.bandwidth ?? defaults.bandwidth ?? DEFAULT_LINK.bandwidth;
  return {
    bandwidth: Number.isFinite(bandwidth) ? bandwidth : UNLIMITED_BANDWIDTH,
    downtimeLimitMs: options.downtimeLimit ?? defaults.downtimeLimit ?? DEFAULT_LINK.downtimeLimitMs,
  };
}
