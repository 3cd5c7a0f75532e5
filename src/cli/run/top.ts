import { setTimeout } from "node:timers/promises";
import { UsageError } from "../../errors.js";
import { followFeed, openFeeds } from "../../observe/feed/follow.js";
import type { TopHeader } from "../../observe/top/state.js";
import type { VfioUserDevice } from "../../vfio-user/client/device.js";
import type { TopInput } from "../commands/top.js";
import { servedSockets } from "../input/options/host.js";
import type { ViewOptions } from "../input/options/watch.js";
import { OF_MACHINES, refuseOptions } from "../input/which-go-together.js";
import type { Run } from "../run-command.js";
import { openVfioUserHost } from "../sites/hosts.js";
import { showScenario } from "./shared/show-scenario.js";
import { endOf, grown, openView } from "./shared/view.js";

/*
 * It shows a run's feed, trackers of its own, or the counters of served devices.
 */

export const run: Run<TopInput> = async (input, { signal, interrupts, typed }) => {
  interrupts.tellFirst(() => {});
  interrupts.endWithReader();
  const { host } = input;
  const sockets = servedSockets(host);
  if (sockets !== null) {
    refuseOptions(typed, [...OF_MACHINES, "run"], `--host ${host} has devices, and no machine`);
    await showServed(sockets, input, signal);
  } else if (host === "linux") {
    throw new UsageError("the trackers of a guest on this machine's devices belong to its VMM, and have one reader", {
      code: "NOT_THE_READER",
      remedy: "follow a run of Dirtmap's (--run), or served devices (--host vfio-user:PATH)",
    });
  } else if (typed("scenario")) {
    refuseOptions(typed, ["run"], "--scenario starts a machine of its own");
    await showScenario(input, signal);
  } else {
    refuseOptions(typed, OF_MACHINES, "a run that is under way has its machine; add --scenario to start one");
    await showFeed(input, signal);
  }
};

/** Follows a run that is under way, the newest unless one is named. @throws UsageError `NO_SUCH_RUN` */
async function showFeed(options: TopInput, signal: AbortSignal): Promise<void> {
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

/** Shows what served devices count, over their control connections. @throws UsageError `NO_COUNTERS`; UapiError */
async function showServed(sockets: readonly string[], options: ViewOptions, signal: AbortSignal): Promise<void> {
  await using host = await openVfioUserHost(sockets);
  const devices: VfioUserDevice[] = [];
  for (const { id } of await host.devices()) devices.push(await host.openControl(id));
  const ask = async () => {
    const written = new Map<string, number>();
    const shown: TopHeader["devices"][number][] = [];
    for (const device of devices) {
      const counters = await device.serverCounters();
      if (counters?.dma === undefined) {
        throw new UsageError(`the server of ${device.id} has no counters`, {
          code: "NO_COUNTERS",
          remedy: "only Dirtmap's own servers do (`dirtmap device`); the log belongs to the client that started it",
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
    await setTimeout(options.interval, undefined, { signal: ended }).catch(() => {});
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
