import { DirtmapError, UsageError } from "../../errors.js";
import { pause } from "../../migration/deadline.js";
import { safeText } from "../../safe-text.js";
import { type EventStream, EventStreams } from "./event-stream.js";
import { readPassedOn } from "./messages.js";
import {
  ANSWER_MS,
  type ExecuteOptions,
  type LibvirtPlace,
  MAX_PENDING,
  type Monitor,
  type QmpEvent,
  QmpRefusal,
  timedOut,
  tooMany,
} from "./monitor.js";
import { askVirsh, VirshError, VirshShell, virshWord } from "./virsh.js";
import { type DomainRun, listenByAsking, listenByVirsh } from "./virsh-events.js";

/** Characters of a domain's name. */
const MAX_NAME = 256;

/** A guest that has ended is noticed by a command that fails; while only events are waited for, this often. */
const PROBE_MS = 2000;
/** What libvirt says of a domain whose QEMU is gone. */
const ENDED =
  /domain is not running|failed to get domain|Domain not found|End of file .*monitor|Unable to (read from|write to) monitor/i;
/** What it says where it is busy with the guest. */
const BUSY = /cannot acquire state change lock/i;

interface Pending {
  readonly command: string;
  readonly text: string;
  readonly timer: NodeJS.Timeout;
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/**
 * The monitor that libvirt holds, reached through virsh: commands by `qemu-monitor-command`, events by `qemu-monitor-event`.
 *
 * It belongs to the QEMU that runs when it is opened. Once that has ended, every command and every stream of events fails, also
 * if libvirt has started the domain again.
 */
export class LibvirtMonitor implements Monitor {
  readonly name: string;
  readonly place: LibvirtPlace;
  readonly #run: DomainRun;
  readonly #shell: VirshShell;
  readonly #closed = new AbortController();
  readonly #streams = new EventStreams();
  readonly #queue: Pending[] = [];
  #under: Pending | undefined;
  #failure: Error | undefined;

  private constructor(place: LibvirtPlace, run: DomainRun & { readonly uuid: string }) {
    this.place = { ...place, libvirt: run.uuid };
    this.#run = run;
    this.name = safeText(run.domain, MAX_NAME);
    this.#shell = new VirshShell(place);
    this.#shell.ended.then((error) => this.#fail(error));
  }

  /**
   * Finds the domain, and reaches its QEMU.
   * @param place domain: its name, UUID or number
   * @throws UsageError `BAD_OPTION`, `NO_VIRSH`, `QMP_UNREACHABLE` for a domain that is not there or does not run
   */
  static async open(place: LibvirtPlace): Promise<LibvirtMonitor> {
    const monitor = new LibvirtMonitor(place, await runOf(place));
    try {
      await monitor.#listen();
      await monitor.execute("query-status");
      void monitor.#probe();
      return monitor;
    } catch (error) {
      await monitor[Symbol.asyncDispose]();
      throw error;
    }
  }

  execute(command: string, args: object = {}, { limitMs = ANSWER_MS }: ExecuteOptions = {}): Promise<unknown> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (this.#queue.length >= MAX_PENDING) return Promise.reject(tooMany(this.name));
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        // One that was not sent yet is not sent any more.
        const at = this.#queue.indexOf(pending);
        if (at >= 0) this.#queue.splice(at, 1);
        reject(timedOut(this.name, command, limitMs));
      }, limitMs);
      const text = JSON.stringify({ execute: command, arguments: args });
      const pending: Pending = { command, text, timer, resolve, reject };
      this.#queue.push(pending);
      void this.#work();
    });
  }

  events(): EventStream {
    return this.#streams.open();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#fail(new DirtmapError(`the connection to QEMU of ${this.name} is closed`, { code: "QMP_CLOSED" }));
    await this.#shell.ended;
  }

  /** Does what waits, one after the other: virsh has no numbers by which answers could be told apart. */
  async #work(): Promise<void> {
    if (this.#under !== undefined) return;
    for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
      this.#under = next;
      try {
        next.resolve(await this.#ask(next));
      } catch (error) {
        next.reject(error as Error);
      }
      clearTimeout(next.timer);
    }
    this.#under = undefined;
  }

  /** Ends the whole monitor for everything that libvirt has no usual words for. */
  async #ask({ command, text }: Pending): Promise<unknown> {
    try {
      const line = `qemu-monitor-command --domain ${this.#run.id} --cmd ${virshWord(text)}`;
      const said = await this.#shell.json(line, `have QEMU do '${command}'`);
      const answer = readPassedOn(said ?? "", `libvirt, asked for QEMU of ${this.name},`);
      if (answer.kind === "answer") return answer.value;
      throw new QmpRefusal({ monitor: this.name, command, ...answer });
    } catch (error) {
      if (error instanceof QmpRefusal) throw error;
      if (error instanceof VirshError && BUSY.test(error.reason)) throw busy(this.name, command, error);
      this.#fail(error instanceof VirshError ? closed(this.name, error) : (error as Error));
      // QEMU has ended before libvirt had its answer.
      if (command === "quit" && error instanceof VirshError && ENDED.test(error.reason)) return {};
      throw this.#failure;
    }
  }

  /** Resolves once events are told: libvirt's own, or where it can't, those that are made of what QEMU answers. */
  async #listen(): Promise<void> {
    const { signal } = this.#closed;
    const event = (told: QmpEvent) => this.#streams.push(told);
    const listener = {
      event,
      error: (error: Error) => this.#fail(error),
      unavailable: () => void listenByAsking((command) => this.execute(command), event, signal),
    };
    await listenByVirsh(this.#run, this.place, listener, signal);
  }

  /** Notices the end of the guest where nobody gives commands. */
  async #probe(): Promise<void> {
    const { signal } = this.#closed;
    while (!signal.aborted) {
      await pause(PROBE_MS, signal);
      if (this.#streams.size > 0) await this.execute("query-status").catch(() => {});
    }
  }

  #fail(error: Error): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.#closed.abort();
    this.#shell[Symbol.dispose]();
    for (const { timer, reject } of this.#queue.splice(0)) {
      clearTimeout(timer);
      reject(error);
    }
    this.#streams.fail(error);
  }
}

/** The run of a domain that is there. @throws UsageError as {@link LibvirtMonitor.open} does */
async function runOf(place: LibvirtPlace): Promise<DomainRun & { readonly uuid: string }> {
  const shown = safeText(place.libvirt, MAX_NAME);
  const attempted = `find the domain '${shown}'`;
  try {
    const [id = ""] = await askVirsh(place, ["domid", `--domain=${place.libvirt}`], attempted);
    if (!/^\d+$/.test(id)) throw notThere(`domain '${shown}' does not run`, "start it first: virsh start");
    const [domain = "", uuid = ""] = await askVirsh(place, [`domname ${id}; domuuid ${id}`], attempted);
    return { id, domain, uuid };
  } catch (error) {
    if (!(error instanceof VirshError)) throw error;
    const isUnknown = /failed to get domain|Domain not found/i.test(error.reason);
    throw isUnknown
      ? notThere(
          `libvirt has no domain '${shown}'`,
          "see `virsh list`; another connection is named with --connect",
          error,
        )
      : notThere(error.message, "start libvirt's daemon, or name the connection with --connect", error);
  }
}

function notThere(message: string, remedy: string, cause?: Error): UsageError {
  return new UsageError(message, { code: "QMP_UNREACHABLE", remedy, cause });
}

function closed(name: string, cause: VirshError): DirtmapError {
  const what = ENDED.test(cause.reason) ? "has ended" : "can't be reached through libvirt any more";
  return new DirtmapError(`QEMU of ${name} ${what}: ${cause.reason}`, {
    code: "QMP_CLOSED",
    remedy: "see libvirt's log of the domain, and its daemon's",
    cause,
  });
}

function busy(name: string, command: string, cause: VirshError): DirtmapError {
  return new DirtmapError(`libvirt did not pass '${command}' on to QEMU of ${name}: ${cause.reason}`, {
    code: "QMP_TIMED_OUT",
    attempted: `have QEMU do '${command}'`,
    remedy: "wait until libvirt has done what it does with the domain: virsh domjobinfo",
    cause,
  });
}
