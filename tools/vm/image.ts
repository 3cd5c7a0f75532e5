import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeInitramfs } from "./initramfs.js";
import { findKernel } from "./kernel-image.js";
import { COMMON_NEEDS, MACHINE_KINDS, type MachineName } from "./machines.js";
import { findQemu, type Qemu } from "./qemu.js";

/** All that guests boot from. Disposing removes the folder, and the archive in it. */
export interface GuestImage extends Disposable {
  readonly qemu: Qemu;
  readonly kernel: string;
  readonly initramfs: string;
  /** Of this image alone: room for the folders that guests share with the host. */
  readonly folder: string;
}

/**
 * Finds QEMU and kernel, and makes the archive that guests boot from.
 * @param root the project's folder, built
 * @param machines the kinds of machine that are to be booted: QEMU must have their devices
 * @throws MissingError where a piece is missing on this machine
 */
export function prepareGuests(root: string, machines: readonly MachineName[]): GuestImage {
  const kernel = findKernel(root);
  const qemu = findQemu({ needs: [...COMMON_NEEDS, ...machines.flatMap((machine) => MACHINE_KINDS[machine].needs)] });
  const folder = mkdtempSync(join(tmpdir(), "dirtmap-vm-"));
  const remove = () => rmSync(folder, { recursive: true, force: true });
  try {
    return { qemu, kernel, initramfs: makeInitramfs(root, folder), folder, [Symbol.dispose]: remove };
  } catch (error) {
    remove();
    throw error;
  }
}
