import { pause } from "../../migration/deadline.js";
import { readVirshEvent } from "./messages.js";
import type { QmpEvent } from "./monitor.js";
import { Virsh, type VirshOptions } from "./virsh.js";

/** virsh listens for so long, then is started anew: one whose Dirtmap was killed is not to wait forever. */
const LISTEN_S = 3600;

/** virsh says so when it is connected. */
const READY = "dirtmap-listens";

/** Where libvirt tells no events, QEMU is asked this often what has changed. */
const POLL_MS = 250;

/** A run of a domain. */
export interface DomainRun {
  /** libvirt's number of it. */
  readonly id: string;
  /** The domain's name. */
  readonly domain: string;
}

/** What listens to events is told. */
export interface EventListener {
  event(event: QmpEvent): void;
  /** What came is no event. */
  error(error: Error): void;
  /** libvirt tells none. */
  unavailable(): void;
}

/** Tells a domain's QMP events as libvirt passes them on, until the signal is aborted. Resolves once it does, or can't. */
export function listenByVirsh(
  { id, domain }: DomainRun,
  options: VirshOptions,
  tell: EventListener,
  signal: AbortSignal,
): Promise<void> {
  return new Promise((resolve) => {
    // The first command connects. Standard output is kept back until there is an event; standard error is not.
    const commands = `domid ${id}; echo --err ${READY}; qemu-monitor-event --loop --timeout ${LISTEN_S} --domain ${id}`;
    const onErrors = () => {
      if (!virsh.hasSaid(READY)) return;
      virsh.takeErrors();
      resolve();
    };
    const onLine = (line: string, isWhole: boolean) => {
      if (!isWhole || !/^event [A-Z]/.test(line)) return;
      try {
        tell.event(readVirshEvent(line, domain));
      } catch (error) {
        tell.error(error as Error);
      }
    };
    const virsh = new Virsh(options, [commands], onLine, { onErrors });
    const stop = () => virsh[Symbol.dispose]();
    signal.addEventListener("abort", stop, { once: true });
    const over = () => {
      signal.removeEventListener("abort", stop);
      resolve();
      if (signal.aborted) return;
      if (virsh.takeErrors() === "") void listenByVirsh({ id, domain }, options, tell, signal);
      else tell.unavailable();
    };
    virsh.ended.then(over, over);
  });
}

/** Tells the events that matter to a migration, made of what QEMU answers, until the signal is aborted or QEMU is gone. */
export async function listenByAsking(
  ask: (command: string) => Promise<unknown>,
  tell: (event: QmpEvent) => void,
  signal: AbortSignal,
): Promise<void> {
  let before: { running: unknown; status: unknown } | undefined;
  while (!signal.aborted) {
    try {
      const [{ running }, { status = "none" }] = (await Promise.all([ask("query-status"), ask("query-migrate")])) as [
        { running?: unknown },
        { status?: unknown },
      ];
      const at = Date.now();
      if (before !== undefined && before.status !== status) tell({ name: "MIGRATION", data: { status }, at });
      if (before !== undefined && before.running !== running) {
        tell({ name: running === true ? "RESUME" : "STOP", data: {}, at });
      }
      before = { running, status };
    } catch {
      // A monitor that is over tells so itself; what took too long is asked again.
    }
    await pause(POLL_MS, signal);
  }
}
