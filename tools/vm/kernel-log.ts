/**
 * How the kernel begins a line that says that it, not a test, has gone wrong: warnings of its own code, bugs, faults,
 * the end. Compared at the start of a message, since some harmless messages have the word WARNING inside.
 */
const COMPLAINT =
  /^(?:WARNING: |BUG: |kernel BUG at |Oops: |Oops - |general protection fault|Kernel panic - |UBSAN: |INFO: task .* blocked for more than |Unable to handle kernel )/;

/** What printk puts before a message: the time, and where configured the caller. */
const STAMP = /^(?:\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? )?/;

/**
 * The lines of a kernel's log that a healthy run doesn't have.
 * @param log what the kernel printed, with or without times
 */
export function complaintsIn(log: string): readonly string[] {
  return log.split(/\r?\n/).filter((line) => COMPLAINT.test(line.replace(STAMP, "")));
}
