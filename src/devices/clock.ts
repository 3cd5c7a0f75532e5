/**
 * CLOCK_MONOTONIC in nanoseconds: the same in all processes of a machine, so that stamps of the source and of the
 * destination can be compared.
 */
export function clockMonotonic(): bigint {
  return process.hrtime.bigint();
}
