import { addressOf } from "../../sys/address.js";
import type { IoctlRequest } from "../../uapi/ioctl.js";
import type { Fields, Struct } from "../../uapi/struct.js";

/**
 * A structure that is passed to an ioctl again and again: encoded once, and then only the fields that change are set. That
 * is what makes a call cheap; what {@link Struct} would encode anew each time takes longer than the system call.
 * One call at a time; one on another thread gets a copy of the bytes.
 */
export class Command {
  readonly request: IoctlRequest;
  /** What is passed. */
  readonly bytes: Uint8Array;
  /** Of `bytes`. */
  readonly address: number;
  /** By offset / 4. */
  readonly u32: Uint32Array;
  /** By offset / 8. */
  readonly u64: BigUint64Array;

  /** @param layout its first field is `size`, as in all structures of iommufd */
  constructor(request: IoctlRequest, layout: Struct<Fields>) {
    // Typed arrays of 8 bytes an element need whole ones.
    const buffer = new ArrayBuffer(Math.ceil(layout.size / 8) * 8);
    this.request = request;
    this.bytes = new Uint8Array(buffer);
    this.address = Number(addressOf(this.bytes));
    this.u32 = new Uint32Array(buffer);
    this.u64 = new BigUint64Array(buffer);
    this.u32[0] = layout.size;
  }

  /** Sets a u64 to a number below 2^53, without making a bigint of it. */
  setNumber(index64: number, value: number): void {
    this.u32[index64 * 2] = value;
    this.u32[index64 * 2 + 1] = value / 2 ** 32;
  }
}
