/** The longest downtime limit that can be asked for, in milliseconds: an hour is no live migration any more. */
export const MAX_DOWNTIME_LIMIT_MS = 3_600_000;
