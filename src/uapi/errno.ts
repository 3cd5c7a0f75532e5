import { DirtmapError } from "../errors.js";

/**
 * Error numbers of Linux (include/uapi/asm-generic/errno-base.h and errno.h), those that iommufd, VFIO and vfio-user
 * answer with. The numbers are the same on x86-64 and arm64.
 */
export const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  E2BIG: 7,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  EINVAL: 22,
  EMFILE: 24,
  ENOTTY: 25,
  ENOSPC: 28,
  EPIPE: 32,
  ERANGE: 34,
  EDEADLK: 35,
  ENAMETOOLONG: 36,
  ENOSYS: 38,
  ENOMSG: 42,
  EPROTO: 71,
  EOVERFLOW: 75,
  EMSGSIZE: 90,
  EOPNOTSUPP: 95,
  EADDRINUSE: 98,
  ECONNRESET: 104,
  ETIMEDOUT: 110,
  ECANCELED: 125,
} as const;

/** The name of an errno, as Node's own system errors carry it in `code`. */
export type ErrnoName = keyof typeof ERRNO;

/** What a {@link UapiError} tells besides its errno. */
export interface UapiErrorDetails {
  /** The operation's name in the uAPI: `IOMMU_IOAS_MAP`, `VFIO_DEVICE_FEATURE_DMA_LOGGING_START` … */
  readonly syscall: string;
  /** What was being attempted, with its arguments: "map 0x2000 bytes at IOVA 0x1000". */
  readonly attempted: string;
  /** What would work. */
  readonly remedy?: string | undefined;
  readonly cause?: unknown;
}

/**
 * An operation of the uAPI was refused: by an emulated kernel, a real one, or a vfio-user peer. `code` is the errno's
 * name and `errno` its (positive) number, the same for all three, so that callers need not know which it was.
 */
export class UapiError extends DirtmapError {
  declare readonly code: ErrnoName;
  readonly errno: number;
  readonly syscall: string;

  constructor(code: ErrnoName, details: UapiErrorDetails) {
    super(`${details.syscall}: ${code}: ${details.attempted}`, { code, ...details });
    this.errno = ERRNO[code];
    this.syscall = details.syscall;
  }
}

/** True if `error` is a {@link UapiError} with this errno. */
export function isErrno(error: unknown, code: ErrnoName): error is UapiError {
  return error instanceof UapiError && error.code === code;
}
