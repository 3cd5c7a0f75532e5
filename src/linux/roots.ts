/** Where the kernel's file systems are mounted. Another place than the usual is for tests, and for a chroot's view. */
export interface Roots {
  /** sysfs, without a slash at the end. */
  readonly sys: string;
  /** devtmpfs. */
  readonly dev: string;
  /** procfs. */
  readonly proc: string;
  /** The kernels' configurations, /boot. */
  readonly boot: string;
  /** The kernels' modules, /lib/modules. */
  readonly modules: string;
}

/** This machine. */
export const ROOTS: Roots = { sys: "/sys", dev: "/dev", proc: "/proc", boot: "/boot", modules: "/lib/modules" };
