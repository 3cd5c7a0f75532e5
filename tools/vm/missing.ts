/** A piece of the outside world is not on this machine: QEMU, the kernel, busybox, cpio. */
export class MissingError extends Error {
  override readonly name = "MissingError";
  /** Which package to install, or which script to run. */
  readonly remedy: string;

  /**
   * @param what is missing
   * @param remedy which package to install, or which script to run
   */
  constructor(what: string, remedy: string) {
    super(`${what}: ${remedy}`);
    this.remedy = remedy;
  }
}

/** What `find` returns, or what it misses. */
export function foundOrMissing<Found>(find: () => Found): Found | MissingError {
  try {
    return find();
  } catch (error) {
    if (error instanceof MissingError) return error;
    throw error;
  }
}
