/** Bounds of the downtime limit, in milliseconds. More than an hour is no live migration. */
export const DOWNTIME_LIMIT_MS = { min: 1, max: 3_600_000 } as const;
