import type { EmulatedMachine } from "../emulated/machine.js";
import { UsageError } from "../errors.js";
import { PAGE_SIZE } from "../memory/address.js";
import { type MigrationEvent, migrationEvents } from "../migration/events.js";
import { followFeed, openFeeds } from "../observe/feed/follow.js";
import { publishFeed } from "../observe/feed/publish.js";
import type { TopHeader } from "../observe/top/state.js";
import { TopView } from "../observe/top/view.js";
import { watch } from "../observe/watch.js";
import { openDesign } from "../tracking/designs.js";
import { chooseTrackers } from "../tracking/policy.js";
import { probeMachine } from "../tracking/probe.js";
import type { VfioUserDevice } from "../vfio-user/client/device.js";
import type { TopOptions } from "./commands/top.js";
import { withDisks } from "./disks.js";
import { openMachine, openVfioUserHost } from "./hosts.js";
import { mayColor, out } from "./output.js";
import { watchHeader } from "./record-run.js";
import { checkMemory, readRequest } from "./request.js";

/*
 * Where `dirtmap top` gets what it shows: a run's feed, trackers of its own, or the counters of served devices.
 */

type ViewOptions = Pick<TopOptions, "interval" | "duration" | "once" | "json">;

/** Follows a run that is under way, the newest unless one is named. @throws UsageError `NO_SUCH_RUN` */
export async function showFeed(options: ViewOptions & Pick<TopOptions, "run">, signal: AbortSignal): Promise<void> {
  const run = options.run ?? (await newestRun());
  const ended = endOf(options, signal);
  using feed = await followFeed(run, { signal: ended });
  const { scenario, host, memoryBytes, devices } = feed.header;
  using view = openView({ title: `${scenario} (${run})`, host, memoryBytes, devices }, options);
  const startedAt = performance.now();
  for await (const event of feed) {
    view.show(event);
    // What was told before comes at once; the view is of now only after a while.
    if (options.once === true && view.state.run.reads > 0 && performance.now() - startedAt >= options.interval) break;
  }
  view.finish();
}

async function newestRun(): Promise<string> {
  const [newest] = await openFeeds();
  if (newest !== undefined) return newest.run;
  throw new UsageError("no run is under way on this machine", {
    code: "NO_SUCH_RUN",
    remedy: "start one with `dirtmap migrate`, or watch a scenario's machine: dirtmap top --scenario mixed",
  });
}

/**
 * Starts a scenario's machine and reads its trackers.
 * @param tooLarge what would work if its memory can't be had, for commands without `--memory`
 */
export async function showScenario(options: TopOptions, signal: AbortSignal, tooLarge?: string): Promise<void> {
  const { scenario, description: wanted, policy, design } = readRequest(options);
  checkMemory(wanted, 1, tooLarge);
  using disks = withDisks(wanted);
  await using machine = await openMachine(disks.description);
  const choices = chooseTrackers(await probeMachine(machine), policy);
  await using source = await openDesign(design, machine, choices, { signal });
  const header = watchHeader({ scenario, startedAt: new Date() }, disks.description, choices);
  // Without one, nobody else sees it; it is shown here all the same.
  await using _feed = await publishFeed(header).catch(() => undefined);
  using view = openView({ ...header, title: scenario }, options);
  let latest: MigrationEvent | undefined;
  const listener = (event: unknown) => {
    latest = event as MigrationEvent;
  };
  let before = await writtenBytes(machine);
  migrationEvents.subscribe(listener);
  try {
    await watch({
      source,
      intervalMs: options.interval,
      signal: endOf(options, signal),
      ...(options.once === true ? { reads: 1 } : {}),
      onRead: async (_read, elapsedMs) => {
        if (latest?.type !== "read") return;
        const now = await writtenBytes(machine);
        view.show({ type: "written", atMs: latest.atMs, elapsedMs, bytes: grown(before, now) });
        before = now;
        view.show(latest);
      },
    });
  } finally {
    migrationEvents.unsubscribe(listener);
  }
  view.finish();
}

/** Bytes that each device and vCPU has written so far, by its own count. */
async function writtenBytes(machine: EmulatedMachine): Promise<Map<string, number>> {
  const written = new Map<string, number>();
  // A unit of a vCPU's is a page.
  for (const { writer, lastSequence } of await machine.vcpus.trails()) written.set(writer, lastSequence * PAGE_SIZE);
  for (const { id, vfio } of machine.devices) {
    const { bytes } = await vfio.counters();
    if (bytes !== undefined) written.set(id, bytes);
  }
  return written;
}

/** Shows what served devices count, over their control connections. @throws UsageError `NO_COUNTERS`; UapiError */
export async function showServed(sockets: readonly string[], options: ViewOptions, signal: AbortSignal): Promise<void> {
  await using host = await openVfioUserHost(sockets);
  const devices: VfioUserDevice[] = [];
  for (const { id } of await host.devices()) devices.push(await host.openControl(id));
  const ask = async () => {
    const written = new Map<string, number>();
    const shown: TopHeader["devices"][number][] = [];
    for (const device of devices) {
      const counters = await device.serverCounters();
      if (counters?.dma === undefined) {
        throw new UsageError(`the server of ${device.id} tells no counters`, {
          code: "NO_COUNTERS",
          remedy: "only Dirtmap's own servers do (`dirtmap device`); its log belongs to whoever started it",
        });
      }
      const { log, dma, model } = counters;
      written.set(device.id, dma.bytesWritten);
      const tracker = log === null ? "log off" : `log of ${log.startedBy}`;
      shown.push({ id: device.id, model, tracker, granule: log?.granule ?? null });
    }
    return { written, shown };
  };
  let before = await ask();
  using view = openView(
    { title: "served devices", host: "vfio-user", memoryBytes: null, devices: before.shown },
    options,
  );
  const ended = endOf(options, signal);
  const startedAt = performance.now();
  for (let at = startedAt; !ended.aborted; ) {
    await aborted(ended, options.interval);
    if (ended.aborted) break;
    const now = await ask();
    const elapsedMs = performance.now() - at;
    at += elapsedMs;
    view.show({ type: "written", atMs: at - startedAt, elapsedMs, bytes: grown(before.written, now.written) });
    before = now;
    if (options.once === true) break;
  }
  view.finish();
}

function openView(header: TopHeader, { once = false, json = false }: ViewOptions): TopView {
  return new TopView(header, { stream: out, color: mayColor(out), once, json });
}

/** Aborted with the signal, and when the duration is over. */
function endOf({ duration }: ViewOptions, signal: AbortSignal): AbortSignal {
  return duration === undefined ? signal : AbortSignal.any([signal, AbortSignal.timeout(duration)]);
}

/** Bytes since the last count. What counts less than before was reset, and began anew. */
function grown(before: ReadonlyMap<string, number>, now: ReadonlyMap<string, number>): Record<string, number> {
  return Object.fromEntries(
    [...now].map(([writer, bytes]) => {
      const last = before.get(writer) ?? 0;
      return [writer, bytes >= last ? bytes - last : bytes];
    }),
  );
}

/** Resolves after a while, or with the signal. */
function aborted(signal: AbortSignal, ms: number): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done, { once: true });
  });
}
