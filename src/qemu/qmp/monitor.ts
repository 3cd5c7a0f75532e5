import { DirtmapError } from "../../errors.js";
import type { EventStream } from "./event-stream.js";

/** Where a QEMU's monitor is: at a UNIX socket, or in the hands of libvirt. */
export type MonitorPlace = { readonly qmp: string } | LibvirtPlace;

/** A domain of libvirt's. */
export interface LibvirtPlace {
  /** Its name, UUID or number. */
  readonly libvirt: string;
  /** URI of libvirt's connection; left out: virsh's own default. */
  readonly connect?: string | undefined;
}

/** The way to one QEMU's monitor: a UNIX socket ({@link SocketMonitor}), or libvirt, which holds it ({@link LibvirtMonitor}). */
export interface Monitor extends AsyncDisposable {
  /** For messages: the socket's path, or the guest's name. */
  readonly name: string;
  /** How it is reached, also by a later process. */
  readonly place: MonitorPlace;
  /**
   * Has QEMU do a command; resolves to what it returns, unchecked. Commands are sent at once and answered in order, so several
   * may be under way.
   * @throws DirtmapError `QMP_REFUSED` for an error of QEMU's, `QMP_TIMED_OUT`, and what ended the connection
   */
  execute(command: string, args?: object, options?: ExecuteOptions): Promise<unknown>;
  /** What QEMU tells from now on, in order, with nothing left out. */
  events(): EventStream;
}

/** How long QEMU may take to answer a command. */
export const ANSWER_MS = 10_000;

/** Commands under way. */
export const MAX_PENDING = 4096;

export interface ExecuteOptions {
  /** Milliseconds to wait for the answer. Default: 10 s. */
  readonly limitMs?: number;
}

/** Something that QEMU tells by itself. */
export interface QmpEvent {
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
  /** When it happened, by QEMU's clock: milliseconds since 1970. */
  readonly at: number;
}

/** A command that QEMU refused. */
export class QmpRefusal extends DirtmapError {
  /** QEMU's class of the error: `GenericError`, `CommandNotFound` … */
  readonly qemuClass: string;
  /** QEMU's own words, made harmless. */
  readonly reason: string;

  constructor({
    monitor,
    command,
    qemuClass,
    reason,
  }: { monitor: string; command: string; qemuClass: string; reason: string }) {
    const isUnknown = qemuClass === "CommandNotFound";
    super(`QEMU at ${monitor} refuses '${command}': ${reason}`, {
      code: "QMP_REFUSED",
      attempted: `have QEMU do '${command}'`,
      remedy: isUnknown ? "use a newer QEMU: this one does not know the command" : undefined,
    });
    this.qemuClass = qemuClass;
    this.reason = reason;
  }
}

/** QEMU has not answered in time. */
export function timedOut(monitor: string, command: string, limitMs: number): DirtmapError {
  return new DirtmapError(`QEMU at ${monitor} has not answered '${command}' for ${limitMs} ms`, {
    code: "QMP_TIMED_OUT",
    attempted: `have QEMU do '${command}'`,
    remedy: "see whether QEMU hangs, or the host is too busy; its state is not known",
  });
}

/** More commands wait than anyone should have given. */
export function tooMany(monitor: string): DirtmapError {
  return new DirtmapError(`${MAX_PENDING} commands wait for QEMU at ${monitor}`, { code: "QMP_TIMED_OUT" });
}
